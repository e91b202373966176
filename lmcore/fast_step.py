"""One token more, fast: what `model.GPT` computes, without its many small calls.

Beside chapter 14 of the book. When a model writes, every step is one token, and most of
the time goes into calling modules and not into numbers. Here the same step is one
function over the weights, with queries, keys and values in one product. `sample.Reader`
uses it where it fits; the chapter's version is `model.GPT.forward`.

Left out: experts, and layers that somebody has exchanged or watches.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import attention, model, position, transformer


def fits(gpt: nn.Module) -> bool:
    """Say whether a model is a plain `model.GPT` whose step can be taken fast.

    Args:
        gpt: any module

    Returns:
        True if it is `model.GPT` itself with ``fused``, without experts, on one device
        and floating type, with all its parts as they were made, and none of them
        watched by a hook.

    >>> fits(model.GPT(model.ModelConfig.preset("tiny"))), fits(nn.Linear(1, 1))
    (True, False)
    """
    if type(gpt) is not model.GPT or not gpt.config.fused or gpt.config.n_experts:
        return False
    kinds = {
        *(model.GPT, model.GeGLU, nn.Embedding, nn.ModuleList, nn.Linear, nn.Dropout),
        *(nn.LayerNorm, nn.RMSNorm, transformer.Decoder, transformer.DecoderLayer),
        *(transformer.PositionalAttention, transformer.Residual),
        *(transformer.FeedForward, transformer.SwiGLU),
        *(attention.MultiHeadAttention, position.LearnedPosition),
    }
    return len({(p.dtype, p.device) for p in gpt.parameters()}) == 1 and all(
        type(part) in kinds
        and not (part._forward_hooks or part._forward_pre_hooks)
        and not nn.utils.parametrize.is_parametrized(part)
        for part in gpt.modules()
    )


class FastStep:
    """Takes single steps of a `model.GPT`, as its weights are now.

    Args:
        gpt: a model for which `fits` says True

    Raises:
        ValueError: if it says False.

    >>> gpt = model.GPT(model.ModelConfig.preset("tiny")).eval()
    >>> step, cache = FastStep(gpt), gpt.new_cache()
    >>> with torch.no_grad():
    ...     expected = gpt(torch.tensor([[3, 1]]))[:, -1]
    ...     _ = gpt(torch.tensor([[3]]), cache=cache)
    ...     torch.allclose(step(torch.tensor([[1]]), None, cache), expected, atol=1e-5)
    True
    """

    def __init__(self, gpt: nn.Module) -> None:
        if not fits(gpt):
            raise ValueError(
                f"{type(gpt).__name__} is no plain GPT with fused=True and without "
                "experts: use its own forward"
            )
        self.gpt, self.config = gpt, gpt.config
        self.layers = [self._weights(layer) for layer in gpt.decoder.layers]

    def _weights(self, layer: transformer.DecoderLayer) -> tuple:
        heads = layer.self_attention.heads
        asks = heads.project_query, heads.project_key, heads.project_value
        bias = None
        if heads.project_query.bias is not None:
            bias = torch.cat([linear.bias for linear in asks])
        return (
            layer.around_self_attention.norm,
            # Column by column: small products are faster that way on a CPU.
            torch.cat([linear.weight for linear in asks]).T.contiguous().T,
            bias,
            heads.project_output,
            layer.around_feed_forward.norm,
            layer.feed_forward,
        )

    def __call__(
        self, ids: Tensor, mask: Tensor | None, cache: transformer.DecoderCache
    ) -> Tensor:
        """Read one token and score the next.

        Args:
            ids: (B, 1)
            mask: (B, S) boolean, True = a real token; all if not given. S counts the
                tokens in the cache and the new one.
            cache: what was read before; it is added to

        Returns:
            The logits, (B, V).
        """
        gpt, start = self.gpt, len(cache)
        places = model.token_positions(mask, start, ids)
        x = gpt._add_positions(F.embedding(ids, gpt.embedding.weight), places)
        rotate = gpt._rotation(places)
        added = self._added(mask, start, x)
        for weights, layer_cache in zip(self.layers, cache.text, strict=True):
            x = self._layer(x, weights, layer_cache, rotate, added)
        return gpt.logits(_norm(gpt.decoder.final_norm, x[:, 0]))

    def _added(self, mask: Tensor | None, start: int, x: Tensor) -> Tensor | None:
        """What attention is told: a mask, a bias, or both as one."""
        may_look = None if mask is None else mask[:, None, None, :]
        bias = self.gpt._bias(1, start, x)
        if bias is None:
            return may_look
        bias = bias.to(x.dtype)
        if may_look is None:
            return bias[None]
        return bias.masked_fill(~may_look, -torch.inf)

    def _layer(self, x: Tensor, weights: tuple, cache, rotate, added) -> Tensor:
        norm, asks, bias, output, second_norm, feed_forward = weights
        n_heads, n_kv = self.config.n_heads, self.config.key_heads
        asked = F.linear(_norm(norm, x), asks, bias)  # (B, 1, (H + 2 H_kv) D)
        asked = asked.view(len(x), n_heads + 2 * n_kv, 1, -1)
        query, key, value = asked.split((n_heads, n_kv, n_kv), dim=1)
        if rotate is not None:
            query, key = rotate(query), rotate(key)
        key, value = cache.append(key, value)
        if n_heads != n_kv:
            key = attention.repeat_kv_heads(key, n_heads // n_kv)
            value = attention.repeat_kv_heads(value, n_heads // n_kv)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=added)
        x = x + F.linear(seen.view(len(x), 1, -1), output.weight, output.bias)
        return x + _think(feed_forward, _norm(second_norm, x))


def _norm(norm: nn.LayerNorm | nn.RMSNorm, x: Tensor) -> Tensor:
    if isinstance(norm, nn.LayerNorm):
        return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return F.rms_norm(x, norm.normalized_shape, norm.weight, norm.eps)


def _think(part: transformer.FeedForward | transformer.SwiGLU, x: Tensor) -> Tensor:
    if not isinstance(part, transformer.FeedForward):
        return part(x)
    up, down = part.project_up, part.project_down
    bend = transformer.ACTIVATIONS[part.activation]
    return F.linear(bend(F.linear(x, up.weight, up.bias)), down.weight, down.bias)

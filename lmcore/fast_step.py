"""One token more, fast: what `model.GPT` computes, without its many small calls.

Beside chapter 14 of the book. When a model writes, every step is one token, and most of
the time goes into calling modules and not into numbers. Here the same step is one
function over the weights: queries, keys and values are one product, and keys and values
are kept by one copy. `sample.Reader` uses it where it fits; the chapter's version is
`model.GPT.forward`.

Left out: experts, and layers that somebody has exchanged or watches.
"""

from collections.abc import Callable
from functools import partial

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

    >>> from lmcore.sample import KVCache
    >>> gpt = model.GPT(model.ModelConfig.preset("tiny")).eval()
    >>> step, cache = FastStep(gpt), KVCache(gpt.config.n_layers)
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
        self.layers = [_Layer(layer) for layer in gpt.decoder.layers]
        self.final_norm = _norm(gpt.decoder.final_norm)

    def __call__(
        self, ids: Tensor, mask: Tensor | None, cache: transformer.DecoderCache
    ) -> Tensor:
        """Read one token and score the next.

        Args:
            ids: (B, 1)
            mask: (B, S) boolean, True = a real token; all if not given. S counts the
                tokens in the cache and the new one.
            cache: a `sample.KVCache` of what was read before; it is added to

        Returns:
            The logits, (B, V).
        """
        gpt, start = self.gpt, len(cache)
        places = model.token_positions(mask, start, ids)
        x = gpt._add_positions(F.embedding(ids, gpt.embedding.weight), places)[:, 0]
        rotate = gpt._rotation(places)
        added = self._added(mask, start, x)
        for layer, layer_cache in zip(self.layers, cache.text, strict=True):
            x = x + self._look(layer, x, layer_cache, rotate, added)
            x = x + layer.think(layer.second_norm(x))  # (B, C)
        return gpt.logits(self.final_norm(x))

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

    def _look(self, layer: "_Layer", x: Tensor, cache, rotate, added) -> Tensor:
        n_heads, n_kv = self.config.n_heads, self.config.key_heads
        asked = layer.ask(layer.first_norm(x))  # (B, (H + 2 H_kv) D)
        asked = asked.view(-1, n_heads + 2 * n_kv, 1, self.config.head_width)
        if rotate is not None:  # queries and keys, which stand before the values
            turns, stays = asked.split((n_heads + n_kv, n_kv), dim=1)
            asked = torch.cat([rotate(turns), stays], dim=1)
        query, pair = asked.split((n_heads, 2 * n_kv), dim=1)  # (B, H or 2 H_kv, 1, D)
        key, value = cache.append_pair(pair)
        if n_heads != n_kv:
            key = attention.repeat_kv_heads(key, n_heads // n_kv)
            value = attention.repeat_kv_heads(value, n_heads // n_kv)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=added)
        return layer.output(seen.flatten(1))


class _Layer:
    """The five functions that a layer is made of, each with its weights in it."""

    def __init__(self, layer: transformer.DecoderLayer) -> None:
        heads = layer.self_attention.heads
        asks = heads.project_query, heads.project_key, heads.project_value
        bias = None
        if heads.project_query.bias is not None:
            bias = torch.cat([linear.bias for linear in asks])
        self.first_norm = _norm(layer.around_self_attention.norm)
        self.ask = _linear(torch.cat([linear.weight for linear in asks]), bias)
        self.output = _linear(heads.project_output.weight, heads.project_output.bias)
        self.second_norm = _norm(layer.around_feed_forward.norm)
        self.think = _feed_forward(layer.feed_forward)


def _linear(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """For small products: column by column they are faster on a CPU."""
    return partial(F.linear, weight=weight.T.contiguous().T, bias=bias)


def _norm(norm: nn.LayerNorm | nn.RMSNorm) -> Callable[[Tensor], Tensor]:
    options = {
        "normalized_shape": norm.normalized_shape,
        "weight": norm.weight,
        "eps": norm.eps,
    }
    if isinstance(norm, nn.LayerNorm):
        return partial(F.layer_norm, bias=norm.bias, **options)
    return partial(F.rms_norm, **options)


def _feed_forward(part: nn.Module) -> Callable[[Tensor], Tensor]:
    if not isinstance(part, transformer.FeedForward):
        return part
    up, down = (
        partial(F.linear, weight=linear.weight, bias=linear.bias)
        for linear in (part.project_up, part.project_down)
    )
    bend = transformer.ACTIVATIONS[part.activation]
    return lambda x: down(bend(up(x)))

"""The transformer: attention and a small network, again and again, on one stream.

Chapter 09 of the book, second half. The module builds, in this order: the two norms
that keep the size of the numbers in bounds, the two networks that work on every token
alone, attention that is told where its tokens stand, the residual stream with the norm
before or behind each step, the layers of an encoder and of a decoder, the stacks, and
the whole machine of 2017 that reads one text and writes another.

Left out: everything that makes a certain model of it (``lmcore.model``, chapter 10),
training (``lmcore.train``, chapter 11) and ways to choose the next token other than the
likeliest (``lmcore.sample``, chapter 14).

Papers: Vaswani et al., 2017 (the transformer, norm behind); Ba, Kiros and Hinton, 2016
(LayerNorm); Zhang and Sennrich, 2019 (RMSNorm); Xiong et al., 2020 (norm before);
Shazeer, 2020 (SwiGLU).

Masks are boolean everywhere, as in ``lmcore.attention``: True means "may look".
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import attention, network, position, require

# --- Norms --------------------------------------------------------------------------


class LayerNorm(nn.Module):
    """Give every token mean 0 and variance 1, then a learned scale and shift.

    ``(x - mean) / √(variance + eps) · weight + bias``, over the C numbers of one token,
    with the variance that divides by C. Ba, Kiros and Hinton, 2016, § 3.

    The parameters are ``weight`` and ``bias``, (C,) each; ``bias`` is None with
    ``bias=False``.

    Args:
        d_model: C
        eps: keeps the root away from 0
        bias: whether there is a shift
        device: where the parameters are made
        dtype: their floating type

    >>> LayerNorm(2)(torch.tensor([[1.0, 3.0], [10.0, 10.0]]))
    tensor([[-1.0000,  1.0000],
            [ 0.0000,  0.0000]], grad_fn=<AddBackward0>)
    """

    def __init__(
        self,
        d_model: int,
        eps: float = 1e-5,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        options = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.ones(d_model, **options))
        self.bias = nn.Parameter(torch.zeros(d_model, **options)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every token by itself.

        Args:
            x: (..., C)

        Returns:
            (..., C), of the type of ``x``.

        Raises:
            ValueError: if the width of ``x`` is not the layer's.
        """
        require.width("x", x, len(self.weight))
        # Half precision has too few digits for sums of squares.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        centred = wide - wide.mean(dim=-1, keepdim=True)  # (..., C)
        variance = centred.square().mean(dim=-1, keepdim=True)  # (..., 1)
        output = centred * torch.rsqrt(variance + self.eps) * self.weight
        output = output if self.bias is None else output + self.bias
        return output.to(x.dtype)


class RMSNorm(nn.Module):
    """Give every token the root mean square 1, then a learned scale.

    ``x / √(mean of x² + eps) · weight``: `LayerNorm` without the mean and without the
    shift. Zhang and Sennrich, 2019, § 4.

    The parameter is ``weight``, (C,).

    Args:
        d_model: C
        eps: keeps the root away from 0
        device: where the parameter is made
        dtype: its floating type

    >>> RMSNorm(2)(torch.tensor([3.0, 4.0])).detach()
    tensor([0.8485, 1.1314])
    """

    def __init__(
        self,
        d_model: int,
        eps: float = 1e-5,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every token by itself.

        Args:
            x: (..., C)

        Returns:
            (..., C), of the type of ``x``.

        Raises:
            ValueError: if the width of ``x`` is not the layer's.
        """
        require.width("x", x, len(self.weight))
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean_square = wide.square().mean(dim=-1, keepdim=True)  # (..., 1)
        return (wide * torch.rsqrt(mean_square + self.eps) * self.weight).to(x.dtype)


# --- The network for one token ------------------------------------------------------


class FeedForward(nn.Module):
    """Widen a token, bend it, and narrow it again, every token alone.

    ``activation(x W_up + b_up) W_down + b_down``. Vaswani et al., 2017, § 3.3.

    The parameters are those of the `nn.Linear` layers ``project_up`` (F, C) and
    ``project_down`` (C, F).

    Args:
        d_model: C
        d_ff: F, the width in between
        activation: "relu" (2017), "gelu", or "gelu_tanh", the approximation of GELU
            that GPT-2 was trained with
        bias: whether the projections add a bias
        dropout: the share of widened numbers dropped in training
        device: where the parameters are made
        dtype: their floating type

    Raises:
        ValueError: if the activation is unknown.

    >>> FeedForward(d_model=2, d_ff=8)(torch.zeros(1, 3, 2)).shape
    torch.Size([1, 3, 2])
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        activation: str = "gelu",
        bias: bool = True,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require.one_of("activation", activation, ACTIVATIONS)
        self.activation = activation
        options = {"bias": bias, "device": device, "dtype": dtype}
        self.project_up = nn.Linear(d_model, d_ff, **options)
        self.project_down = nn.Linear(d_ff, d_model, **options)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Work on every token by itself.

        Args:
            x: (..., C)

        Returns:
            (..., C)

        Raises:
            ValueError: if the width of ``x`` is not the layer's.
        """
        require.width("x", x, self.project_up.in_features)
        hidden = ACTIVATIONS[self.activation](self.project_up(x))  # (..., F)
        return self.project_down(self.dropout(hidden))


class SwiGLU(nn.Module):
    """Widen a token twice, and let one of the two decide how much of the other passes.

    ``(silu(x W_gate) · x W_up) W_down`` with ``silu(z) = z · sigmoid(z)``. With three
    projections instead of two, F is usually chosen a third smaller than in
    `FeedForward`. Shazeer, 2020, eq. (6).

    The parameters are those of the `nn.Linear` layers ``project_gate`` (F, C),
    ``project_up`` (F, C) and ``project_down`` (C, F).

    Args:
        d_model: C
        d_ff: F, the width in between
        bias: whether the projections add a bias
        dropout: the share of widened numbers dropped in training
        device: where the parameters are made
        dtype: their floating type

    >>> SwiGLU(d_model=2, d_ff=8)(torch.zeros(1, 3, 2)).shape
    torch.Size([1, 3, 2])
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        bias: bool = False,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        options = {"bias": bias, "device": device, "dtype": dtype}
        self.project_gate = nn.Linear(d_model, d_ff, **options)
        self.project_up = nn.Linear(d_model, d_ff, **options)
        self.project_down = nn.Linear(d_ff, d_model, **options)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Work on every token by itself.

        Args:
            x: (..., C)

        Returns:
            (..., C)

        Raises:
            ValueError: if the width of ``x`` is not the layer's.
        """
        require.width("x", x, self.project_up.in_features)
        gate = F.silu(self.project_gate(x))  # (..., F)
        return self.project_down(self.dropout(gate * self.project_up(x)))


# PyTorch's own functions: chapter 04 builds them by hand, here they must be fast.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}
FEED_FORWARDS = (*ACTIVATIONS, "swiglu")
NORMS = ("layer", "rms")


# --- What all layers of a model share -----------------------------------------------


@dataclass(frozen=True)
class LayerConfig:
    """How the layers of a transformer are built.

    >>> LayerConfig(d_model=8, n_heads=2, d_ff=32).norm
    'layer'
    """

    d_model: int  # C, the width of a token
    n_heads: int  # H, a divisor of C
    d_ff: int  # F, the width between the two halves of the feed-forward network
    n_kv_heads: int | None = None  # H_kv, a divisor of H; H if not given
    feed_forward: str = "gelu"  # an activation of FeedForward, or "swiglu"
    norm: str = "layer"  # "layer" or "rms"
    norm_first: bool = True  # norm before each step (GPT-2), or behind (2017, BERT)
    norm_eps: float = 1e-5  # keeps the root of the norm away from 0
    bias: bool = True  # whether projections add a bias, and LayerNorm a shift
    dropout: float = 0.0  # the share dropped in training, of weights and of steps
    fused: bool = False  # PyTorch's fast attention and norms, without the weights

    def __post_init__(self) -> None:
        require.at_least_one(d_model=self.d_model, n_heads=self.n_heads, d_ff=self.d_ff)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must lie in [0, 1)")
        require.one_of("feed_forward", self.feed_forward, FEED_FORWARDS)
        require.one_of("norm", self.norm, NORMS)


def make_norm(
    config: LayerConfig,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Make the norm that a configuration asks for.

    Args:
        config: ``norm``, ``norm_eps``, ``bias`` and ``fused`` count
        device: where the parameters are made
        dtype: their floating type

    Returns:
        `LayerNorm` or `RMSNorm`, or PyTorch's layer of the same name, with the same
        parameters, if the configuration says ``fused``.

    >>> make_norm(LayerConfig(d_model=8, n_heads=2, d_ff=32, norm="rms"))
    RMSNorm()
    """
    options = {"eps": config.norm_eps, "device": device, "dtype": dtype}
    if config.norm == "rms":
        return (nn.RMSNorm if config.fused else RMSNorm)(config.d_model, **options)
    layer_norm = nn.LayerNorm if config.fused else LayerNorm
    return layer_norm(config.d_model, bias=config.bias, **options)


def make_feed_forward(
    config: LayerConfig,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> FeedForward | SwiGLU:
    """Make the network for one token that a configuration asks for.

    Args:
        config: ``d_model``, ``d_ff``, ``feed_forward``, ``bias`` and ``dropout`` count
        device: where the parameters are made
        dtype: their floating type

    Returns:
        The layer, with random parameters.

    >>> config = LayerConfig(d_model=8, n_heads=2, d_ff=32, feed_forward="swiglu")
    >>> type(make_feed_forward(config)).__name__
    'SwiGLU'
    """
    options = {
        "bias": config.bias,
        "dropout": config.dropout,
        "device": device,
        "dtype": dtype,
    }
    if config.feed_forward == "swiglu":
        return SwiGLU(config.d_model, config.d_ff, **options)
    return FeedForward(
        config.d_model, config.d_ff, activation=config.feed_forward, **options
    )


# --- Attention that knows positions -------------------------------------------------


def biased_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    mask: Tensor | None = None,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Average the values as always, with something added to every score before.

    ``softmax(query keyᵀ / √D + bias) value``. Press, Smith and Lewis, 2022, § 3.

    Args:
        query: (..., T, D)
        key: (..., S, D)
        value: (..., S, Dv)
        bias: broadcastable to (..., T, S), such as `position.alibi_bias`
        mask: boolean, broadcastable to (..., T, S); True = may look. None = all may.
        dropout_p: the share of weights set to zero at random; 0 outside training.

    Returns:
        The output, (..., T, Dv), and the weights before dropout, (..., T, S). A query
        that may look at no key gets zeros.

    Raises:
        TypeError: if the mask is not boolean.

    >>> query, value = torch.zeros(1, 1), torch.tensor([[10.0], [20.0]])
    >>> biased_attention(query, value, value, bias=torch.tensor([0.0, math.log(3)]))
    (tensor([[17.5000]]), tensor([[0.2500, 0.7500]]))
    """
    _check_mask(mask)
    scores = query / math.sqrt(query.shape[-1]) @ key.transpose(-2, -1) + bias
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1).to(value.dtype)  # (..., T, S)
    if mask is not None:
        weights = weights.masked_fill(~mask, 0.0)
    return F.dropout(weights, dropout_p) @ value, weights


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """The same output by PyTorch's own function, fast and without the weights.

    Args:
        query: (..., T, D)
        key: (..., S, D)
        value: (..., S, Dv)
        bias: broadcastable to (..., T, S), added to the scores; None = nothing
        mask: boolean, broadcastable to (..., T, S); True = may look. None = all may.
        dropout_p: the share of weights set to zero at random; 0 outside training.

    Returns:
        The output, (..., T, Dv). A query that may look at no key gets zeros.

    Raises:
        TypeError: if the mask is not boolean.

    >>> query, value = torch.zeros(1, 1), torch.tensor([[10.0], [20.0]])
    >>> fused_attention(query, value, value, bias=torch.tensor([[0.0, math.log(3)]]))
    tensor([[17.5000]])
    """
    _check_mask(mask)
    added = mask
    if bias is not None:
        added = bias if mask is None else bias.masked_fill(~mask, -math.inf)
        added = added.to(query.dtype)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=added, dropout_p=dropout_p
    )


class PositionalAttention(nn.Module):
    """The attention of chapter 08, told where its tokens stand.

    ``heads`` is an `attention.MultiHeadAttention` and holds all the parameters. As long
    as nothing is said about positions, it also does all the work.

    Args:
        config: ``d_model``, ``n_heads``, ``n_kv_heads``, ``bias``, ``dropout`` and
            ``fused`` count
        device: where the parameters are made
        dtype: their floating type

    Raises:
        ValueError: if the heads do not divide the width.

    >>> look = PositionalAttention(LayerConfig(d_model=8, n_heads=2, d_ff=32))
    >>> output, weights = look(torch.zeros(1, 3, 8), bias=position.alibi_bias(2, 3))
    >>> output.shape, weights.shape
    (torch.Size([1, 3, 8]), torch.Size([1, 2, 3, 3]))
    """

    def __init__(
        self,
        config: LayerConfig,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.fused = config.fused
        self.heads = attention.MultiHeadAttention(
            config.d_model,
            config.n_heads,
            config.n_kv_heads,
            bias=config.bias,
            dropout=config.dropout,
            device=device,
            dtype=dtype,
        )

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        cache: attention.KeyValueCache | None = None,
        *,
        rotate: Callable[[Tensor], Tensor] | None = None,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Let the tokens of ``x`` look at themselves or at a context.

        Args:
            x: (B, T, C), the tokens that ask
            context: (B, S, C), the tokens that are asked; ``x`` if not given
            mask: boolean, broadcastable to (B, H, T, S); True = may look
            cache: keys and values of earlier tokens, to which the new ones are added.
                With a context: its keys and values, computed at the first call and
                used at all later ones.
            rotate: turns the new queries and keys, (B, H, T, D) and (B, H_kv, T, D), by
                their positions, such as `position.apply_rope` with all but its first
                argument given. For self-attention only.
            bias: broadcastable to (B, H, T, S), added to the scores

        Returns:
            The output, (B, T, C), and the weights before dropout, (B, H, T, S); with
            ``fused``, None in their place.

        Raises:
            ValueError: if a width is not the layer's, ``rotate`` comes with a context,
                or a context has another length than the one in the cache.
            TypeError: if the mask is not boolean.
        """
        caches_context = context is not None and cache is not None
        knows_positions = rotate is not None or bias is not None
        if not (knows_positions or caches_context or self.fused):
            return self.heads(x, context, mask, cache)
        query, key, value = self._project(x, context, cache, rotate)
        dropout_p = self.heads.dropout if self.training else 0.0
        weights = None
        if self.fused:
            output = fused_attention(query, key, value, bias, mask, dropout_p)
        elif bias is not None:
            output, weights = biased_attention(query, key, value, bias, mask, dropout_p)
        else:
            output, weights = attention.scaled_dot_product_attention(
                query, key, value, mask, dropout_p
            )
        return self.heads.project_output(attention.merge_heads(output)), weights

    def _project(
        self,
        x: Tensor,
        context: Tensor | None,
        cache: attention.KeyValueCache | None,
        rotate: Callable[[Tensor], Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, D), keys and values (B, H, S, D), turned and cached."""
        if rotate is not None and context is not None:
            raise ValueError(
                "rotate cannot turn the keys of a context, which has positions of its "
                "own: give one of them"
            )
        heads = self.heads
        require.width("x", x, heads.project_query.in_features)
        query = attention.split_heads(heads.project_query(x), heads.n_heads)
        if context is not None and cache is not None and len(cache) > 0:
            if len(cache) != context.shape[-2]:
                raise ValueError(
                    f"context has {context.shape[-2]} tokens and its cache has "
                    f"{len(cache)}: every context needs a cache of its own"
                )
            key, value = cache.key, cache.value  # (B, H_kv, S, D)
        else:
            asked = x if context is None else context
            require.width("context", asked, heads.project_key.in_features)
            key = attention.split_heads(heads.project_key(asked), heads.n_kv_heads)
            value = attention.split_heads(heads.project_value(asked), heads.n_kv_heads)
            if rotate is not None:
                query, key = rotate(query), rotate(key)
            if cache is not None:
                key, value = cache.append(key, value)
        n_repeats = heads.n_heads // heads.n_kv_heads
        if n_repeats == 1:  # repeating once would copy the whole cache
            return query, key, value
        key = attention.repeat_kv_heads(key, n_repeats)  # (B, H, S, D)
        return query, key, attention.repeat_kv_heads(value, n_repeats)


# --- Layers -------------------------------------------------------------------------


class Residual(nn.Module):
    """Add what a step found to what was known before.

    ``x + step(norm(x))`` with the norm first: the stream itself is never normalised,
    and gradients run along it unhindered (Xiong et al., 2020, § 3). Otherwise
    ``norm(x + step(x))``, as in Vaswani et al., 2017, § 3.1.

    Args:
        config: ``norm_first``, ``dropout`` and what `make_norm` needs count
        device: where the parameters are made
        dtype: their floating type

    >>> residual = Residual(LayerConfig(d_model=2, n_heads=1, d_ff=8))
    >>> residual(torch.tensor([10.0, 30.0]), lambda normed: normed).detach()
    tensor([ 9., 31.])
    """

    def __init__(
        self,
        config: LayerConfig,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.norm = make_norm(config, device, dtype)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, step: Callable[[Tensor], Tensor]) -> Tensor:
        """Take one step.

        Args:
            x: (B, T, C), the stream
            step: from (B, T, C) to (B, T, C)

        Returns:
            (B, T, C), the stream after the step; ``x`` itself stays as it was.
        """
        if self.norm_first:
            return x + self.dropout(step(self.norm(x)))
        return self.norm(x + self.dropout(step(x)))


class EncoderLayer(nn.Module):
    """Every token looks at the others, then thinks for itself.

    Vaswani et al., 2017, § 3.1. The parts are ``self_attention``, ``feed_forward``, and
    the `Residual` around each of them.

    Args:
        config: how the layer is built
        device: where the parameters are made
        dtype: their floating type

    Raises:
        ValueError: if the heads do not divide the width.

    >>> layer = EncoderLayer(LayerConfig(d_model=8, n_heads=2, d_ff=32))
    >>> layer(torch.zeros(1, 3, 8)).shape
    torch.Size([1, 3, 8])
    """

    def __init__(
        self,
        config: LayerConfig,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.self_attention = PositionalAttention(config, device, dtype)
        self.feed_forward = make_feed_forward(config, device, dtype)
        self.around_self_attention = Residual(config, device, dtype)
        self.around_feed_forward = Residual(config, device, dtype)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        rotate: Callable[[Tensor], Tensor] | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Take the two steps of the layer.

        Args:
            x: (B, T, C), the stream
            mask: boolean, broadcastable to (B, H, T, T); True = may look
            rotate: turns queries and keys (`PositionalAttention`)
            bias: broadcastable to (B, H, T, T), added to the scores

        Returns:
            (B, T, C)

        Raises:
            ValueError: if the width of ``x`` is not the layer's.
        """

        def look_around(x: Tensor) -> Tensor:
            return self.self_attention(x, mask=mask, rotate=rotate, bias=bias)[0]

        x = self.around_self_attention(x, look_around)
        return self.around_feed_forward(x, self.feed_forward)


class DecoderLayer(nn.Module):
    """A token looks at its own text, then at the text to be answered, then thinks.

    Vaswani et al., 2017, § 3.1. The parts are ``self_attention``, ``cross_attention``,
    ``feed_forward``, and the `Residual` around each of them. Without cross-attention
    this is the layer of a decoder that continues a text, such as GPT.

    Args:
        config: how the layer is built
        cross_attention: whether there is a context to look at
        device: where the parameters are made
        dtype: their floating type

    Raises:
        ValueError: if the heads do not divide the width.

    >>> layer = DecoderLayer(LayerConfig(d_model=8, n_heads=2, d_ff=32))
    >>> layer(torch.zeros(1, 3, 8), context=torch.zeros(1, 5, 8)).shape
    torch.Size([1, 3, 8])
    """

    def __init__(
        self,
        config: LayerConfig,
        *,
        cross_attention: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.self_attention = PositionalAttention(config, device, dtype)
        self.around_self_attention = Residual(config, device, dtype)
        self.cross_attention = None
        if cross_attention:
            self.cross_attention = PositionalAttention(config, device, dtype)
            self.around_cross_attention = Residual(config, device, dtype)
        self.feed_forward = make_feed_forward(config, device, dtype)
        self.around_feed_forward = Residual(config, device, dtype)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        cache: attention.KeyValueCache | None = None,
        context_cache: attention.KeyValueCache | None = None,
        *,
        rotate: Callable[[Tensor], Tensor] | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Take the three steps of the layer, or two without cross-attention.

        Args:
            x: (B, T, C), the stream
            context: (B, S, C), what the encoder made of the source
            mask: boolean, broadcastable to (B, H, T, T) or, with a cache, to the keys
                of all tokens so far. None = all may look at all: it is `Decoder` that
                adds a causal mask.
            context_mask: boolean, broadcastable to (B, H, T, S)
            cache: keys and values of the text so far
            context_cache: keys and values of the context, filled at the first call
            rotate: turns queries and keys of self-attention (`PositionalAttention`)
            bias: broadcastable as ``mask``, added to the scores of self-attention

        Returns:
            (B, T, C)

        Raises:
            ValueError: if a width is not the layer's, or a layer with cross-attention
                gets no context, or one without gets one.
        """
        if (context is None) != (self.cross_attention is None):
            raise ValueError(
                "a layer with cross-attention needs a context, and one without takes "
                f"none: cross_attention={self.cross_attention is not None} and "
                f"context={None if context is None else tuple(context.shape)}"
            )

        def look_back(x: Tensor) -> Tensor:
            return self.self_attention(
                x, mask=mask, cache=cache, rotate=rotate, bias=bias
            )[0]

        def look_at_context(x: Tensor) -> Tensor:
            return self.cross_attention(x, context, context_mask, context_cache)[0]

        x = self.around_self_attention(x, look_back)
        if context is not None:
            x = self.around_cross_attention(x, look_at_context)
        return self.around_feed_forward(x, self.feed_forward)


# --- Stacks -------------------------------------------------------------------------


class Encoder(nn.Module):
    """Layers on top of each other, each improving what the one below found.

    With the norm first, a last norm follows the stack, which otherwise would leave the
    stream as large as it has grown.

    Args:
        config: how the layers are built
        n_layers: L
        device: where the parameters are made
        dtype: their floating type

    Raises:
        ValueError: if ``n_layers`` is smaller than 1 or the heads do not divide the
            width.

    >>> encoder = Encoder(LayerConfig(d_model=8, n_heads=2, d_ff=32), n_layers=6)
    >>> encoder(torch.zeros(1, 3, 8)).shape
    torch.Size([1, 3, 8])
    """

    def __init__(
        self,
        config: LayerConfig,
        n_layers: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require.at_least_one(n_layers=n_layers)
        self.layers = nn.ModuleList(
            EncoderLayer(config, device, dtype) for _ in range(n_layers)
        )
        self.final_norm = _final_norm(config, device, dtype)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        rotate: Callable[[Tensor], Tensor] | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Send the stream through all layers.

        Args:
            x: (B, T, C), the tokens with their positions
            mask: boolean, broadcastable to (B, H, T, T), such as
                `attention.padding_mask`; True = may look
            rotate: turns queries and keys (`PositionalAttention`)
            bias: broadcastable to (B, H, T, T), added to the scores

        Returns:
            (B, T, C)

        Raises:
            ValueError: if the width of ``x`` is not the layers'.
        """
        for layer in self.layers:
            x = layer(x, mask, rotate=rotate, bias=bias)
        return self.final_norm(x)


class DecoderCache:
    """What a decoder keeps between two calls: the keys and values of every layer.

    ``text`` and ``context`` hold an `attention.KeyValueCache` for each layer. The
    length is the number of tokens that the decoder has read.

    Args:
        n_layers: L

    >>> decoder = Decoder(LayerConfig(d_model=8, n_heads=2, d_ff=32), n_layers=2)
    >>> cache = DecoderCache(2)
    >>> _ = decoder(torch.zeros(1, 3, 8), torch.zeros(1, 5, 8), cache=cache)
    >>> len(cache), len(cache.context[0])
    (3, 5)
    """

    def __init__(self, n_layers: int) -> None:
        require.at_least_one(n_layers=n_layers)
        self.text = [attention.KeyValueCache() for _ in range(n_layers)]
        self.context = [attention.KeyValueCache() for _ in range(n_layers)]

    def __len__(self) -> int:
        return len(self.text[0])


class Decoder(nn.Module):
    """Layers that read a text from left to right, and a context if there is one.

    With the norm first, a last norm follows the stack.

    Args:
        config: how the layers are built
        n_layers: L
        cross_attention: whether the layers look at a context
        device: where the parameters are made
        dtype: their floating type

    Raises:
        ValueError: if ``n_layers`` is smaller than 1 or the heads do not divide the
            width.

    >>> config = LayerConfig(d_model=8, n_heads=2, d_ff=32)
    >>> decoder = Decoder(config, n_layers=6, cross_attention=False)
    >>> decoder(torch.zeros(1, 3, 8)).shape
    torch.Size([1, 3, 8])
    """

    def __init__(
        self,
        config: LayerConfig,
        n_layers: int,
        *,
        cross_attention: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require.at_least_one(n_layers=n_layers)
        options = {"cross_attention": cross_attention, "device": device, "dtype": dtype}
        self.layers = nn.ModuleList(
            DecoderLayer(config, **options) for _ in range(n_layers)
        )
        self.final_norm = _final_norm(config, device, dtype)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        cache: DecoderCache | None = None,
        *,
        causal: bool = True,
        rotate: Callable[[Tensor], Tensor] | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Send the stream through all layers.

        With a cache, ``x`` holds the new tokens only, S counts them and all tokens
        before, and positions (in ``x``, ``rotate`` and ``bias``) go on from
        ``len(cache)``. The result is the same as without.

        Args:
            x: (B, T, C), the tokens with their positions
            context: (B, S_context, C), what the encoder made of the source
            mask: boolean, broadcastable to (B, H, T, S); True = may look, as far as
                causality allows
            context_mask: boolean, broadcastable to (B, H, T, S_context)
            cache: what earlier calls have read; the new tokens are added to it
            causal: whether a token sees only itself and what stands before it. If not,
                the mask alone decides (`attention.prefix_mask`).
            rotate: turns queries and keys of self-attention (`PositionalAttention`)
            bias: broadcastable to (B, H, T, S), added to the scores of self-attention

        Returns:
            (B, T, C)

        Raises:
            ValueError: if a width is not the layers', the cache has another number of
                layers, or a context is missing or not asked for.
        """
        n_layers = len(self.layers)
        if cache is not None and len(cache.text) != n_layers:
            raise ValueError(
                f"cache has {len(cache.text)} layers and the decoder has {n_layers}"
            )
        if causal:
            n_keys = x.shape[-2] + (0 if cache is None else len(cache))
            not_later = attention.causal_mask(x.shape[-2], n_keys, x.device)  # (T, S)
            mask = not_later if mask is None else not_later & mask
        nothing = [None] * n_layers
        of_text, of_context = (
            (nothing, nothing) if cache is None else (cache.text, cache.context)
        )
        for layer, text_cache, context_cache in zip(
            self.layers, of_text, of_context, strict=True
        ):
            x = layer(
                x,
                context,
                mask,
                context_mask,
                text_cache,
                None if context is None else context_cache,
                rotate=rotate,
                bias=bias,
            )
        return self.final_norm(x)


# --- The whole machine --------------------------------------------------------------


def draw_parameters(module: nn.Module, generator: torch.Generator) -> None:
    """Give every parameter of a module a first value.

    Matrices are drawn as `network.xavier_uniform` does, shifts become 0 and scales 1.

    Args:
        module: built of the layers of this chapter and `nn.Linear` or `nn.Embedding`;
            changed in place
        generator: draws the numbers, on its own device

    Raises:
        ValueError: if a parameter is neither a matrix, nor a shift named ``bias``, nor
            a scale named ``weight``.

    >>> layer = nn.Linear(2, 2)
    >>> draw_parameters(layer, torch.Generator().manual_seed(1))
    >>> layer.bias.tolist()
    [0.0, 0.0]
    """
    for name, parameter in module.named_parameters():
        kind = name.rpartition(".")[-1]
        with torch.no_grad():
            if parameter.dim() == 2:
                n_out, n_in = parameter.shape
                parameter.copy_(network.xavier_uniform(n_in, n_out, generator))
            elif parameter.dim() == 1 and kind in ("weight", "bias"):
                parameter.fill_(1.0 if kind == "weight" else 0.0)
            else:
                raise ValueError(
                    f"{name} has shape {tuple(parameter.shape)}: expected a matrix, or "
                    "one axis and the name weight or bias"
                )


def shift_right(targets: Tensor, start: int) -> Tensor:
    """Make the decoder's input from the text that it is to write.

    At every place the decoder reads the token before the one it has to find. Fed with
    the targets themselves, it would learn to copy, and could not write.

    Args:
        targets: (B, T), ids
        start: the id that stands before every text

    Returns:
        (B, T): the start, then all targets but the last.

    >>> shift_right(torch.tensor([[5, 6, 7]]), start=1)
    tensor([[1, 5, 6]])
    """
    return torch.cat([torch.full_like(targets[:, :1], start), targets[:, :-1]], dim=1)


class EncoderDecoder(nn.Module):
    """The transformer: reads a source text and writes a target text, token by token.

    Embeddings, multiplied by √C, plus sinusoidal positions; the encoder; the decoder
    with masked and cross-attention; a final linear layer to a score for every token.
    Vaswani et al., 2017, § 3 and fig. 1. The paper's three matrices of size V × C are
    one there; here they are three.

    Args:
        config: how the layers are built
        n_layers: L, in the encoder and again in the decoder
        n_source_words: V of the source
        n_target_words: V of the target
        generator: draws the first parameters, on its own device
        dtype: the floating type of the parameters

    Raises:
        ValueError: if a size is smaller than 1 or the heads do not divide the width.

    >>> config = LayerConfig(d_model=8, n_heads=2, d_ff=32)
    >>> dice = torch.Generator().manual_seed(1)
    >>> model = EncoderDecoder(config, 2, 11, 13, generator=dice)
    >>> model(source=torch.tensor([[3, 1, 4]]), target=torch.tensor([[1, 5]])).shape
    torch.Size([1, 2, 13])
    """

    def __init__(
        self,
        config: LayerConfig,
        n_layers: int,
        n_source_words: int,
        n_target_words: int,
        *,
        generator: torch.Generator,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require.at_least_one(
            n_source_words=n_source_words, n_target_words=n_target_words
        )
        # On the meta device nothing is drawn: the generator alone is to decide.
        options = {"device": "meta", "dtype": dtype}
        d_model = config.d_model
        self.source_embedding = nn.Embedding(n_source_words, d_model, **options)
        self.target_embedding = nn.Embedding(n_target_words, d_model, **options)
        self.encoder = Encoder(config, n_layers, **options)
        self.decoder = Decoder(config, n_layers, **options)
        self.project_logits = nn.Linear(d_model, n_target_words, **options)
        self.dropout = nn.Dropout(config.dropout)
        self.to_empty(device=generator.device)
        draw_parameters(self, generator)

    def forward(
        self, source: Tensor, target: Tensor, source_mask: Tensor | None = None
    ) -> Tensor:
        """Score the next token at every place of the target.

        Args:
            source: (B, S), ids
            target: (B, T), ids, what was written so far: in training, the text to be
                written, shifted by `shift_right`
            source_mask: boolean, broadcastable to (B, H, T, S) and to (B, H, S, S),
                such as `attention.padding_mask`; True = a real token

        Returns:
            The logits, (B, T, V); those at place t see the target up to place t.

        Raises:
            ValueError: if an id is not in the vocabulary.
        """
        return self.decode(target, self.encode(source, source_mask), source_mask)

    def encode(self, source: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """Read the source.

        Args:
            source: (B, S), ids
            source_mask: boolean, broadcastable to (B, H, S, S); True = a real token

        Returns:
            The context for `decode`, (B, S, C).

        Raises:
            ValueError: if an id is not in the vocabulary.
        """
        return self.encoder(self._embed(source, self.source_embedding), source_mask)

    def decode(
        self,
        target: Tensor,
        context: Tensor,
        source_mask: Tensor | None = None,
        cache: DecoderCache | None = None,
    ) -> Tensor:
        """Score the next token at every place of the target.

        Args:
            target: (B, T), ids; with a cache, those that came after the last call
            context: (B, S, C), from `encode`
            source_mask: boolean, broadcastable to (B, H, T, S); True = a real token
            cache: what earlier calls have read; the new tokens are added to it

        Returns:
            The logits, (B, T, V).

        Raises:
            ValueError: if an id is not in the vocabulary, or the cache does not fit.
        """
        start = 0 if cache is None else len(cache)
        x = self._embed(target, self.target_embedding, start)
        x = self.decoder(x, context, None, source_mask, cache)
        return self.project_logits(x)  # (B, T, C) -> (B, T, V)

    @torch.no_grad()
    def translate(
        self,
        source: Tensor,
        start: int,
        stop: int,
        max_tokens: int,
        source_mask: Tensor | None = None,
    ) -> Tensor:
        """Write the target by taking the likeliest token each time.

        Dropout stays as it is: call ``eval()`` before.

        Args:
            source: (B, S), ids
            start: the id that stands before every target
            stop: the id that ends a target
            max_tokens: how many tokens are written at most
            source_mask: boolean, broadcastable to (B, H, T, S) and to (B, H, S, S)

        Returns:
            (B, T) ids with T ≤ ``max_tokens``, without the start; behind a row's first
            ``stop``, only ``stop`` follows.

        Raises:
            ValueError: if an id is not in the vocabulary, or ``max_tokens`` is
                negative.
        """
        require.not_negative(max_tokens=max_tokens)
        context = self.encode(source, source_mask)
        cache = DecoderCache(len(self.decoder.layers))
        token = torch.full_like(source[:, :1], start)  # (B, 1)
        ended = torch.zeros_like(token, dtype=torch.bool)
        written = [source[:, :0]]
        while len(written) <= max_tokens and not ended.all():
            logits = self.decode(token, context, source_mask, cache)  # (B, 1, V)
            token = logits.argmax(dim=-1).masked_fill(ended, stop)
            ended = ended | (token == stop)
            written.append(token)
        return torch.cat(written, dim=1)

    def _embed(self, ids: Tensor, embedding: nn.Embedding, start: int = 0) -> Tensor:
        """Vectors of tokens that stand at start, start + 1, …: (B, T) -> (B, T, C)."""
        n_words, d_model = embedding.weight.shape
        require.indices("ids", ids, n_words=n_words)
        x = embedding(ids) * math.sqrt(d_model)
        table = position.sinusoidal_positions(
            start + ids.shape[1], d_model, device=x.device, dtype=x.dtype
        )
        return self.dropout(x + table[start:])  # (B, T, C) + (T, C)


def _final_norm(
    config: LayerConfig, device: torch.device | str | None, dtype: torch.dtype | None
) -> nn.Module:
    return make_norm(config, device, dtype) if config.norm_first else nn.Identity()


def _check_mask(mask: Tensor | None) -> None:
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(
            f"mask has dtype {mask.dtype}, expected torch.bool with True = may look"
        )

"""Attention: every token looks at the others and takes a weighted average.

Chapter 08 of the book. The module builds, in this order: a score for how well a query
fits a key, the weighted average over the values, the masks that say who may look at
whom, several heads side by side, the layer that puts them together, and the same
average computed block by block without ever holding all the weights.

Left out: positions (``lmcore.position``), so that nothing here knows the order of the
tokens unless a mask tells it.

Papers: Bahdanau, Cho and Bengio, 2015 (additive score); Vaswani et al., 2017 (scaled
dot product, heads); Shazeer, 2019, and Ainslie et al., 2023 (shared and grouped keys);
Milakov and Gimelshein, 2018, and Dao et al., 2022 (online softmax).

Masks are boolean everywhere: True means "this query may look at this key".
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import require


def additive_score(
    query: Tensor, key: Tensor, w_query: Tensor, w_key: Tensor, w_score: Tensor
) -> Tensor:
    """Score every query against every key with a small network of one hidden layer.

    The score is ``w_score · tanh(w_query q + w_key k)``; query and key may have
    different widths. Bahdanau, Cho and Bengio, 2015, appendix A.1.2.

    Args:
        query: (..., T, Dq)
        key: (..., S, Dk)
        w_query: (A, Dq), the weights from the query to the hidden layer of width A
        w_key: (A, Dk), the weights from the key to the same hidden layer
        w_score: (A,), the weights from the hidden layer to the score

    Returns:
        Scores, (..., T, S); row t holds the scores of query t against all keys.

    >>> one = torch.ones(1, 1)
    >>> additive_score(torch.tensor([[0.0], [1.0]]), one, one, one, torch.tensor([2.0]))
    tensor([[1.5232],
            [1.9281]])
    """
    from_query = query @ w_query.T  # (..., T, A)
    from_key = key @ w_key.T  # (..., S, A)
    hidden = torch.tanh(from_query[..., :, None, :] + from_key[..., None, :, :])
    return hidden @ w_score  # (..., T, S, A) @ (A,) -> (..., T, S)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Average the values, weighted by how well each key fits the query.

    ``softmax(query keyᵀ / √D) value``, with the softmax over the keys. A query that may
    look at no key at all gets zeros. What stands in a key and a value that no query may
    look at never reaches the output, not even NaN. Vaswani et al., 2017, § 3.2.1.

    Args:
        query: (..., T, D)
        key: (..., S, D)
        value: (..., S, Dv)
        mask: boolean, broadcastable to (..., T, S); True = may look. None = all may.
        dropout_p: the share of weights set to zero at random; 0 outside training.

    Returns:
        The output, (..., T, Dv), and the weights before dropout, (..., T, S). The
        weights of a query sum to 1, or are all 0 if it may look at no key.

    Raises:
        ValueError: if the widths of query and key differ, or their numbers of keys and
            values do, or the mask does not broadcast to (..., T, S).
        TypeError: if the mask is not boolean.

    >>> query = torch.tensor([[1.0, 0.0]])
    >>> key = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> value = torch.tensor([[10.0], [20.0]])
    >>> scaled_dot_product_attention(query, key, value)
    (tensor([[13.3024]]), tensor([[0.6698, 0.3302]]))
    """
    _check_attention_inputs(query, key, value, mask)
    if mask is not None:
        # Zero times NaN is NaN, on the way forward and on the way back.
        nobody_looks = ~torch.atleast_2d(mask).any(dim=-2)[..., None]  # (..., S, 1)
        key = key.masked_fill(nobody_looks, 0.0)
        value = value.masked_fill(nobody_looks, 0.0)
    # Scaled before the product, which could overflow in half precision.
    query = query / math.sqrt(query.shape[-1])
    scores = query @ key.transpose(-2, -1)  # (..., T, D) @ (..., D, S) -> (..., T, S)
    if mask is not None:
        # A finite floor instead of -inf: the softmax of a row of -inf would be NaN.
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1)
    if mask is not None:
        weights = weights.masked_fill(~mask, 0.0)
    output = F.dropout(weights, dropout_p) @ value  # (..., T, S) @ (..., S, Dv)
    return output, weights


def causal_mask(
    n_queries: int, n_keys: int | None = None, device: torch.device | str | None = None
) -> Tensor:
    """Let every token look at itself and at the tokens before it.

    With more keys than queries, the queries are the last ones of the text: this is the
    case of a model that has already read ``n_keys - n_queries`` tokens.

    Args:
        n_queries: T
        n_keys: S, at least T; T if not given
        device: where the mask is made

    Returns:
        A boolean mask, (T, S), True = may look.

    Raises:
        ValueError: if ``n_queries`` is negative, or there are fewer keys than queries.

    >>> causal_mask(2, 3)
    tensor([[ True,  True, False],
            [ True,  True,  True]])
    """
    n_keys = n_queries if n_keys is None else n_keys
    require.not_negative(n_queries=n_queries)
    if n_keys < n_queries:
        raise ValueError(
            f"n_keys={n_keys} is less than n_queries={n_queries}: every query is a "
            "token of the text, so there must be at least as many keys"
        )
    query_position = torch.arange(n_keys - n_queries, n_keys, device=device)  # (T,)
    key_position = torch.arange(n_keys, device=device)  # (S,)
    return key_position[None, :] <= query_position[:, None]  # (T, S)


def padding_mask(lengths: Tensor, n_keys: int | None = None) -> Tensor:
    """Hide the padding that fills the shorter sentences of a batch.

    Args:
        lengths: (B,) whole numbers, how many real tokens each sentence has
        n_keys: S, the padded length; the longest sentence if not given

    Returns:
        A boolean mask, (B, 1, 1, S), True = a real token. It broadcasts over heads and
        queries, so it combines with any other mask by ``&``.

    Raises:
        ValueError: if a length is negative or exceeds ``n_keys``.

    >>> padding_mask(torch.tensor([1, 3]))[:, 0, 0]
    tensor([[ True, False, False],
            [ True,  True,  True]])
    """
    n_keys = int(lengths.max()) if n_keys is None else n_keys
    if lengths.min() < 0 or lengths.max() > n_keys:
        raise ValueError(
            f"lengths={lengths.tolist()} must lie between 0 and n_keys={n_keys}"
        )
    key_position = torch.arange(n_keys, device=lengths.device)  # (S,)
    return (key_position < lengths[:, None])[:, None, None, :]  # (B, 1, 1, S)


def prefix_mask(
    n_tokens: int, prefix_length: int, device: torch.device | str | None = None
) -> Tensor:
    """Let the prompt look both ways and the answer only backwards.

    The first ``prefix_length`` tokens all see each other; every later token sees the
    prefix, itself, and what stands between. Nobody in the prefix sees the answer.
    Dong et al., 2019 (UniLM), fig. 1; Raffel et al., 2020 (T5), fig. 4.

    Args:
        n_tokens: T, prompt and answer together
        prefix_length: the tokens of the prompt, between 0 and T
        device: where the mask is made

    Returns:
        A boolean mask, (T, T), True = may look.

    Raises:
        ValueError: if the prefix is negative or longer than the text.

    >>> prefix_mask(3, 2)
    tensor([[ True,  True, False],
            [ True,  True, False],
            [ True,  True,  True]])
    """
    if not 0 <= prefix_length <= n_tokens:
        raise ValueError(
            f"prefix_length={prefix_length} must lie between 0 and n_tokens={n_tokens}"
        )
    in_prefix = torch.arange(n_tokens, device=device) < prefix_length  # (T,)
    return causal_mask(n_tokens, device=device) | in_prefix[None, :]  # (T, T)


def sliding_window_mask(
    n_queries: int,
    window: int,
    n_keys: int | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Let every token look at itself and at the ``window - 1`` tokens before it.

    The window counts the token itself: ``window=1`` is a token alone. Beltagy, Peters
    and Cohan, 2020 (Longformer), § 3.1, in the causal form of Jiang et al., 2023
    (Mistral), § 2.

    Args:
        n_queries: T
        window: how many keys a query sees at most, itself included; at least 1
        n_keys: S, at least T; T if not given. The queries are the last ones.
        device: where the mask is made

    Returns:
        A boolean mask, (T, S), True = may look.

    Raises:
        ValueError: if the window is smaller than 1, or there are fewer keys than
            queries.

    >>> sliding_window_mask(3, window=2)
    tensor([[ True, False, False],
            [ True,  True, False],
            [False,  True,  True]])
    """
    if window < 1:
        raise ValueError(f"window={window} must be at least 1: the token itself")
    not_later = causal_mask(n_queries, n_keys, device)  # (T, S)
    n_keys = not_later.shape[1]
    query_position = torch.arange(n_keys - n_queries, n_keys, device=device)  # (T,)
    key_position = torch.arange(n_keys, device=device)  # (S,)
    not_too_old = key_position[None, :] > query_position[:, None] - window
    return not_later & not_too_old


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """Cut the width of every token into heads and bring the heads to the front.

    Head h of a token is the slice ``[h * D : (h + 1) * D]`` of its C numbers.

    Args:
        x: (B, T, C)
        n_heads: H, a divisor of C

    Returns:
        (B, H, T, D) with D = C / H.

    Raises:
        ValueError: if C is not divisible by H.

    >>> split_heads(torch.tensor([[[1, 2, 3, 4]]]), n_heads=2)
    tensor([[[[1, 2]],
    <BLANKLINE>
             [[3, 4]]]])
    """
    d_model = x.shape[-1]
    require.divisible(d_model=d_model, n_heads=n_heads)
    return x.unflatten(-1, (n_heads, d_model // n_heads)).transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """Put the heads of every token side by side again: the inverse of `split_heads`.

    Args:
        x: (B, H, T, D)

    Returns:
        (B, T, C) with C = H · D.

    >>> merge_heads(split_heads(torch.tensor([[[1, 2, 3, 4]]]), n_heads=2))
    tensor([[[1, 2, 3, 4]]])
    """
    return x.transpose(-3, -2).flatten(-2)  # (B, T, H, D) -> (B, T, C)


def repeat_kv_heads(x: Tensor, n_repeats: int) -> Tensor:
    """Give every key and value head to a group of neighbouring query heads.

    Queries 0 … n_repeats - 1 share key head 0, the next ``n_repeats`` share key head 1,
    and so on. Ainslie et al., 2023 (grouped-query attention), § 2.2.

    Args:
        x: (B, H_kv, S, D)
        n_repeats: how many query heads share one key and value head

    Returns:
        (B, H_kv · n_repeats, S, D)

    >>> repeat_kv_heads(torch.tensor([[[[1]], [[2]]]]), 2).flatten()
    tensor([1, 1, 2, 2])
    """
    return x.repeat_interleave(n_repeats, dim=-3)


class KeyValueCache:
    """The keys and values of the tokens that a layer has already read.

    A model that writes one token at a time would otherwise compute them again for the
    whole text at every step.

    >>> cache = KeyValueCache()
    >>> key, value = cache.append(torch.zeros(1, 2, 3, 4), torch.ones(1, 2, 3, 4))
    >>> key, value = cache.append(torch.zeros(1, 2, 1, 4), torch.ones(1, 2, 1, 4))
    >>> len(cache), key.shape
    (4, torch.Size([1, 2, 4, 4]))
    """

    def __init__(self) -> None:
        self.key: Tensor | None = None  # (B, H_kv, S, D)
        self.value: Tensor | None = None  # (B, H_kv, S, D)

    def __len__(self) -> int:
        return 0 if self.key is None else self.key.shape[-2]

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens and return all of them.

        Args:
            key: (B, H_kv, T, D)
            value: (B, H_kv, T, D)

        Returns:
            All keys and all values so far, (B, H_kv, S, D) each.
        """
        if self.key is None:
            self.key, self.value = key, value
        else:
            self.key = torch.cat([self.key, key], dim=-2)
            self.value = torch.cat([self.value, value], dim=-2)
        return self.key, self.value


class MultiHeadAttention(nn.Module):
    """Several heads look at once, each with its own queries, keys and values.

    Self-attention with ``forward(x)``; cross-attention with ``forward(x, context)``,
    where the queries come from ``x`` and the keys and values from ``context``. With
    fewer key and value heads than query heads, neighbouring query heads share them
    (grouped-query attention). Vaswani et al., 2017, § 3.2.2.

    The projections are `nn.Linear` layers with these parameters, where D = C / H:
    ``project_query`` (C, C), ``project_key`` and ``project_value`` (H_kv · D, C) and
    ``project_output`` (C, C), each with a bias unless ``bias=False``.

    Args:
        d_model: C, the width of a token
        n_heads: H, the number of query heads, a divisor of C
        n_kv_heads: H_kv, the number of key and value heads, a divisor of H; H if not
            given
        d_context: the width of the context's tokens; C if not given
        bias: whether the projections add a bias
        dropout: the share of weights dropped in training
        device: where the parameters are made
        dtype: the floating type of the parameters

    Raises:
        ValueError: if C is not divisible by H, or H not by H_kv.

    >>> attention = MultiHeadAttention(d_model=8, n_heads=4, n_kv_heads=2)
    >>> output, weights = attention(torch.zeros(1, 3, 8), mask=causal_mask(3))
    >>> output.shape, weights.shape
    (torch.Size([1, 3, 8]), torch.Size([1, 4, 3, 3]))
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int | None = None,
        *,
        d_context: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        d_context = d_model if d_context is None else d_context
        require.divisible(d_model=d_model, n_heads=n_heads, n_kv_heads=n_kv_heads)
        self.n_heads, self.n_kv_heads, self.dropout = n_heads, n_kv_heads, dropout
        d_kv = d_model // n_heads * n_kv_heads
        options = {"bias": bias, "device": device, "dtype": dtype}
        self.project_query = nn.Linear(d_model, d_model, **options)
        self.project_key = nn.Linear(d_context, d_kv, **options)
        self.project_value = nn.Linear(d_context, d_kv, **options)
        self.project_output = nn.Linear(d_model, d_model, **options)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Let the tokens of ``x`` look at themselves or at a context.

        Args:
            x: (B, T, C), the tokens that ask
            context: (B, S, d_context), the tokens that are asked; ``x`` if not given
            mask: boolean, broadcastable to (B, H, T, S); True = may look
            cache: keys and values of earlier tokens; the new ones are added to it, and
                S counts both. For self-attention only.

        Returns:
            The output, (B, T, C), and the weights before dropout, (B, H, T, S).

        Raises:
            ValueError: if the width of ``x`` or ``context`` is not the layer's, or a
                cache is given together with a context.
        """
        if cache is not None and context is not None:
            raise ValueError(
                "a cache grows with the text and a context does not: give one of them"
            )
        context = x if context is None else context
        require.width("x", x, self.project_query.in_features)
        require.width("context", context, self.project_key.in_features)
        query = split_heads(self.project_query(x), self.n_heads)  # (B, H, T, D)
        key = split_heads(self.project_key(context), self.n_kv_heads)
        value = split_heads(self.project_value(context), self.n_kv_heads)
        if cache is not None:
            key, value = cache.append(key, value)  # (B, H_kv, S, D)
        n_repeats = self.n_heads // self.n_kv_heads
        key = repeat_kv_heads(key, n_repeats)  # (B, H, S, D)
        value = repeat_kv_heads(value, n_repeats)
        dropout_p = self.dropout if self.training else 0.0
        output, weights = scaled_dot_product_attention(
            query, key, value, mask, dropout_p
        )
        return self.project_output(merge_heads(output)), weights


def online_softmax_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = False,
    window: int | None = None,
    block_size: int = 128,
) -> Tensor:
    """Compute attention block by block, without ever holding the T × S weights.

    The keys are read in blocks. For every query the function carries the largest score
    so far, the sum of the exponentials measured against it, and the weighted sum of
    values; when a block brings a larger score, what was summed before is scaled down to
    the new measure. While gradients are recorded, autograd keeps the blocks for the
    way back; FlashAttention computes them anew instead. Milakov and Gimelshein, 2018,
    alg. 3; Dao et al., 2022 (FlashAttention), alg. 1.

    Args:
        query: (..., T, D)
        key: (..., S, D)
        value: (..., S, Dv)
        causal: whether a query sees only itself and what stands before it, as in
            `causal_mask`
        window: how many keys a query sees, itself included (`sliding_window_mask`);
            a window is always causal
        block_size: how many keys are read at once

    Returns:
        The output, (..., T, Dv), as `scaled_dot_product_attention` up to rounding.

    Raises:
        ValueError: if shapes do not fit, ``block_size`` or ``window`` is smaller than
            1, or causal attention has fewer keys than queries.

    >>> query, key = torch.tensor([[1.0]]), torch.tensor([[0.0], [1.0]])
    >>> value = torch.tensor([[1.0], [0.0]])
    >>> online_softmax_attention(query, key, value, block_size=1)
    tensor([[0.2689]])
    """
    _check_attention_inputs(query, key, value, None)
    n_queries, n_keys = query.shape[-2], key.shape[-2]
    require.at_least_one(block_size=block_size)
    if window is not None and window < 1:
        raise ValueError(f"window={window} must be at least 1: the token itself")
    if (causal or window is not None) and n_keys < n_queries:
        raise ValueError(f"n_keys={n_keys} is less than n_queries={n_queries}")
    query_position = torch.arange(n_keys - n_queries, n_keys, device=query.device)
    key_position = torch.arange(n_keys, device=query.device)
    # Sums of many small terms need more digits than half precision has.
    dtype, wide = query.dtype, torch.promote_types(query.dtype, torch.float32)
    floor = torch.finfo(wide).min
    query = query / math.sqrt(query.shape[-1])
    batch_shape = torch.broadcast_shapes(
        query.shape[:-2], key.shape[:-2], value.shape[:-2]
    )
    wide_like = {"dtype": wide, "device": query.device}
    largest = torch.full((*batch_shape, n_queries, 1), floor, **wide_like)
    total = torch.zeros((*batch_shape, n_queries, 1), **wide_like)
    output = torch.zeros((*batch_shape, n_queries, value.shape[-1]), **wide_like)
    for start in range(0, n_keys, block_size):
        block = slice(start, start + block_size)
        scores = (query @ key[..., block, :].transpose(-2, -1)).to(wide)
        age = query_position[:, None] - key_position[block]  # (T, block)
        may_look = torch.ones_like(age, dtype=torch.bool)  # (T, block)
        if causal or window is not None:
            may_look = age >= 0
        if window is not None:
            may_look = may_look & (age < window)
        scores = scores.masked_fill(~may_look, floor)
        new_largest = torch.maximum(largest, scores.amax(dim=-1, keepdim=True))
        rescale = torch.exp(largest - new_largest)
        weights = torch.exp(scores - new_largest).masked_fill(~may_look, 0.0)
        total = total * rescale + weights.sum(dim=-1, keepdim=True)
        output = output * rescale + weights @ value[..., block, :].to(wide)
        largest = new_largest
    # The largest score counts 1, so the total is at least 1, unless there are no keys.
    return (output / total.clamp_min(1.0)).to(dtype)


def _check_attention_inputs(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> None:
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"query has width {query.shape[-1]} and key has width {key.shape[-1]}: "
            "a dot product needs the same width"
        )
    if key.shape[-2] != value.shape[-2]:
        raise ValueError(
            f"there are {key.shape[-2]} keys and {value.shape[-2]} values: "
            "every key needs its value"
        )
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(
            f"mask has dtype {mask.dtype}, expected torch.bool with True = may look"
        )
    if mask is not None:
        batch_shape = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])
        scores_shape = (*batch_shape, query.shape[-2], key.shape[-2])
        fits = mask.ndim <= len(scores_shape) and all(
            size in (1, wanted)
            for size, wanted in zip(mask.shape[::-1], scores_shape[::-1], strict=False)
        )
        if not fits:
            raise ValueError(
                f"mask has shape {tuple(mask.shape)}, which does not broadcast to the "
                f"shape of the scores (..., T, S) = {scores_shape}"
            )

"""Positions: attention sees a set of tokens, so somebody must say who stands where.

Chapter 09 of the book, first half. The module builds four answers, in the order in
which they were found: waves of many lengths added to the tokens, a vector learned for
every place, queries and keys that are turned by an angle that grows with their place,
and a penalty on the score that grows with the distance.

Left out: the learned distances of T5 (a bias as well, made in ``lmcore.model``), and
the ways to stretch rotary positions to longer texts. They change the frequencies, and
`apply_rope` takes any frequencies.

Papers: Vaswani et al., 2017 (sinusoidal); Devlin et al., 2019 (learned); Su et al.,
2021 (rotary, RoPE); Press, Smith and Lewis, 2022 (ALiBi).

The first token stands at position 0.
"""

import math

import torch
from torch import Tensor, nn

from . import require

# --- Added to the tokens ------------------------------------------------------------


def sinusoidal_positions(
    n_tokens: int,
    d_model: int,
    base: float = 10_000.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Describe every position by waves of many lengths, as a clock does by its hands.

    Column 2j of position t is ``sin(t / base^(2j / C))``, column 2j + 1 the cosine of
    the same angle. If C is odd, the last sine has no cosine. Vaswani et al., 2017,
    § 3.5.

    Args:
        n_tokens: T
        d_model: C, the width of a token
        base: decides how slow the slowest wave is
        device: where the table is made
        dtype: its floating type

    Returns:
        (T, C), one row for each position, to be added to the tokens at that position.

    Raises:
        ValueError: if ``n_tokens`` is negative, ``d_model`` is smaller than 1 or
            ``base`` is not positive.

    >>> sinusoidal_positions(2, 4)
    tensor([[0.0000, 1.0000, 0.0000, 1.0000],
            [0.8415, 0.5403, 0.0100, 0.9999]])
    """
    require.not_negative(n_tokens=n_tokens)
    require.at_least_one(d_model=d_model)
    require.positive(base=base)
    # In float32 also for a narrow type, which could not tell large positions apart.
    wide = {"dtype": torch.promote_types(dtype, torch.float32), "device": device}
    even_columns = torch.arange(0, d_model, 2, **wide)  # 2j, (⌈C/2⌉,)
    frequencies = torch.exp(even_columns * (-math.log(base) / d_model))
    angles = torch.arange(n_tokens, **wide)[:, None] * frequencies  # (T, ⌈C/2⌉)
    table = torch.empty(n_tokens, d_model, **wide)
    table[:, 0::2] = torch.sin(angles)
    table[:, 1::2] = torch.cos(angles[:, : d_model // 2])
    return table.to(dtype)


class LearnedPosition(nn.Module):
    """A vector for every position, learned like the vector of a word.

    The parameter is ``weight``, (n_positions, C). What was never seen in training has
    no vector: a longer text is refused. Devlin et al., 2019 (BERT), § 3.

    Args:
        n_positions: how many tokens a text has at most
        d_model: C, the width of a token
        generator: draws the first vectors, on its own device, with standard deviation
            0.02
        dtype: the floating type of the vectors

    Raises:
        ValueError: if a size is smaller than 1.

    >>> position = LearnedPosition(8, d_model=2, generator=torch.Generator())
    >>> position(torch.zeros(1, 3, 2)).shape
    torch.Size([1, 3, 2])
    """

    def __init__(
        self,
        n_positions: int,
        d_model: int,
        *,
        generator: torch.Generator,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require.at_least_one(n_positions=n_positions, d_model=d_model)
        weight = torch.empty(n_positions, d_model, dtype=dtype, device=generator.device)
        self.weight = nn.Parameter(weight.normal_(std=0.02, generator=generator))

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Add to every token the vector of its position.

        Args:
            x: (B, T, C)
            positions: (T,) or (B, T) whole numbers, where the tokens stand; 0 … T - 1
                if not given

        Returns:
            (B, T, C)

        Raises:
            ValueError: if the width of ``x`` is not the layer's, the positions do not
                fit the tokens, or one of them has no vector.
        """
        n_positions, d_model = self.weight.shape
        require.width("x", x, d_model)
        if positions is None:
            if x.shape[-2] > n_positions:
                raise ValueError(
                    f"x has {x.shape[-2]} tokens, more than n_positions={n_positions}"
                )
            return x + self.weight[: x.shape[-2]]  # (B, T, C) + (T, C)
        _check_positions(positions, x)
        require.indices("positions", positions, n_positions=n_positions)
        return x + self.weight[positions]


# --- Turned into queries and keys ---------------------------------------------------


def rope_frequencies(
    d_head: int,
    base: float = 10_000.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """How fast each pair of numbers turns, in radians per token.

    Pair j turns by ``base^(-2j / D)``: the first by one radian, the others slower and
    slower. Su et al., 2021, § 3.2.2.

    Args:
        d_head: D, the width of a head, an even number
        base: decides how slow the slowest pair is
        device: where the frequencies are made
        dtype: their floating type, in which `apply_rope` also computes the angles

    Returns:
        (D/2,)

    Raises:
        ValueError: if ``d_head`` is not even and positive, or ``base`` not positive.

    >>> rope_frequencies(4)
    tensor([1.0000, 0.0100])
    """
    if d_head < 2 or d_head % 2 != 0:
        raise ValueError(f"d_head={d_head} must be even: the numbers turn in pairs")
    require.positive(base=base)
    even_columns = torch.arange(0, d_head, 2, device=device, dtype=dtype)  # (D/2,)
    return base ** (-even_columns / d_head)


def apply_rope(
    x: Tensor, positions: Tensor, frequencies: Tensor, *, interleaved: bool = False
) -> Tensor:
    """Turn every pair of numbers of a query or key by an angle that grows with t.

    Pair (a, b) at position t becomes ``(a cos tθ - b sin tθ, a sin tθ + b cos tθ)``
    with the pair's frequency θ. Lengths stay, and the product of a query and a key
    depends on the distance of their positions alone. Values are never turned. Su et
    al., 2021, eq. (34).

    Which numbers are a pair is a convention: column j and column j + D/2 (two halves;
    most published weights), or columns 2j and 2j + 1 (``interleaved``; the paper).
    Weights made for one give nonsense with the other; `interleaved_to_halves` converts
    them.

    Args:
        x: (..., T, D), queries or keys
        positions: (T,) or more axes, broadcastable to (..., T); of any number type
        frequencies: (D/2,), radians per token (`rope_frequencies`)
        interleaved: whether neighbours are the pairs, instead of halves

    Returns:
        (..., T, D), of the type of ``x``.

    Raises:
        ValueError: if there are not D/2 frequencies, or the positions do not fit ``x``.

    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> apply_rope(x, torch.arange(2), rope_frequencies(2))
    tensor([[1.0000, 0.0000],
            [0.5403, 0.8415]])
    """
    if x.shape[-1] != 2 * len(frequencies):
        raise ValueError(
            f"x has width {x.shape[-1]} and there are {len(frequencies)} frequencies: "
            "every pair of numbers needs one"
        )
    _check_positions(positions, x)
    # In float32 at least: a narrow type could not tell large positions apart.
    angles = positions[..., None].to(frequencies.dtype) * frequencies  # (..., T, D/2)
    cos, sin = torch.cos(angles), torch.sin(angles)
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
    turned = a * cos - b * sin, a * sin + b * cos  # (..., T, D/2) each
    if interleaved:
        return torch.stack(turned, dim=-1).flatten(-2).to(x.dtype)  # (..., T, D)
    return torch.cat(turned, dim=-1).to(x.dtype)  # (..., T, D)


def interleaved_to_halves(weight: Tensor, n_heads: int) -> Tensor:
    """Reorder a projection made for interleaved pairs so that it serves halves.

    Apply it to the weight, and to the bias, of the projections to queries and to keys;
    the scores then stay the same. Values and output stay as they are.

    Args:
        weight: (H · D, ...), the projection of H heads
        n_heads: H; for grouped keys, the number of key heads

    Returns:
        (H · D, ...): within each head first the even rows, then the odd ones.

    Raises:
        ValueError: if the rows do not split into heads of even width.

    >>> interleaved_to_halves(torch.arange(8), n_heads=2)
    tensor([0, 2, 1, 3, 4, 6, 5, 7])
    """
    n_rows = weight.shape[0]
    if n_heads < 1 or n_rows % (2 * n_heads) != 0:
        raise ValueError(
            f"{n_rows} rows do not split into n_heads={n_heads} heads of even width"
        )
    rows = torch.arange(n_rows, device=weight.device).reshape(n_heads, -1, 2)
    return weight[rows.transpose(-2, -1).flatten()]  # (H, D/2, 2) -> (H, 2, D/2)


# --- Added to the scores ------------------------------------------------------------


def alibi_slopes(n_heads: int) -> list[float]:
    """How much every token of distance costs each head.

    For H heads, H a power of two, the slopes are ``2^(-8h / H)`` for h = 1 … H.
    Otherwise the slopes of the next smaller power of two are followed by every second
    slope of the next larger one. Press, Smith and Lewis, 2022, § 3; between the powers
    of two, as in their published code.

    Args:
        n_heads: H

    Returns:
        H slopes, score per token.

    Raises:
        ValueError: if ``n_heads`` is smaller than 1.

    >>> alibi_slopes(3)
    [0.0625, 0.00390625, 0.25]
    """
    require.at_least_one(n_heads=n_heads)
    power = 2 ** (n_heads.bit_length() - 1)  # the largest power of two up to H
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    between = [2 ** (-4 * h / power) for h in range(1, 2 * power + 1, 2)]
    return slopes + between[: n_heads - power]


def alibi_bias(
    n_heads: int,
    n_queries: int,
    n_keys: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Let far keys lose score, by a slope that differs from head to head.

    The bias is ``-slope · |t - s|``, added to the scaled score of query t and key s.
    Press, Smith and Lewis, 2022, § 3.

    Args:
        n_heads: H
        n_queries: T
        n_keys: S, at least T; T if not given. The queries are the last ones, as in
            `attention.causal_mask`.
        device: where the bias is made
        dtype: its floating type

    Returns:
        (H, T, S), 0 where a query meets its own token and negative elsewhere. Keys
        behind the query are not hidden: that is the mask's work.

    Raises:
        ValueError: if ``n_heads`` is smaller than 1, ``n_queries`` is negative or there
            are fewer keys than queries.

    >>> alibi_bias(8, n_queries=1, n_keys=3)[:2]
    tensor([[[-1.0000, -0.5000,  0.0000]],
    <BLANKLINE>
            [[-0.5000, -0.2500,  0.0000]]])
    """
    n_keys = n_queries if n_keys is None else n_keys
    if not 0 <= n_queries <= n_keys:
        raise ValueError(
            f"n_queries={n_queries} must lie between 0 and n_keys={n_keys}"
        )
    slopes = torch.tensor(alibi_slopes(n_heads), device=device, dtype=dtype)  # (H,)
    query_position = torch.arange(n_keys - n_queries, n_keys, device=device)  # (T,)
    key_position = torch.arange(n_keys, device=device)  # (S,)
    distance = (query_position[:, None] - key_position).abs()  # (T, S)
    return slopes[:, None, None] * -distance  # (H, T, S)


def _check_positions(positions: Tensor, x: Tensor) -> None:
    """Positions may have fewer axes than the tokens, but one entry for every token."""
    sizes = zip(positions.shape[::-1], x.shape[-2::-1], strict=False)
    fits = positions.dim() < x.dim() and all(have in (1, want) for have, want in sizes)
    if not fits or positions.dim() < 1 or positions.shape[-1] != x.shape[-2]:
        raise ValueError(
            f"positions has shape {tuple(positions.shape)}, which does not fit the "
            f"{x.shape[-2]} tokens of x, {tuple(x.shape)}"
        )

"""How well a machine is used, and how much better a larger model will be.

Chapter 11 of the book, last part; its names are also reachable as ``lmcore.train``.

Papers: Chowdhery et al., 2022 (PaLM), app. B (utilisation); Kaplan et al., 2020, and
Hoffmann et al., 2022 (scaling laws).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def estimate_mfu(
    n_parameters: int,
    n_tokens: int,
    seconds: float,
    peak_flops: float,
    *,
    n_layers: int = 0,
    d_model: int = 0,
    n_context: int = 0,
) -> float:
    """Estimate the model FLOPs utilisation: operations needed over operations possible.

    Training needs ``6 N + 12 L C T`` operations a token: each parameter is used once
    forward and twice backward, with a product and a sum each, and so is each pair of
    tokens in attention. What is computed twice to save memory does not count.
    Chowdhery et al., 2022, app. B.

    Args:
        n_parameters: N; without embeddings that are only looked up
        n_tokens: how many tokens were learned from, of all micro-batches and processes
        seconds: in which time
        peak_flops: what the machine can do in a second, all devices together
        n_layers: L; with 0, attention is left out
        d_model: C
        n_context: T

    Returns:
        The share of the machine that was used, 0 … 1.

    Raises:
        ValueError: if a number is negative, or seconds or the peak are not positive.

    >>> estimate_mfu(1_000_000, n_tokens=50_000, seconds=3.0, peak_flops=1e12)
    0.1
    """
    numbers = (n_parameters, n_tokens, n_layers, d_model, n_context)
    if min(numbers) < 0 or not (seconds > 0 and peak_flops > 0):
        raise ValueError(
            f"{n_parameters=}, {n_tokens=}, {n_layers=}, {d_model=}, {n_context=} must "
            f"not be negative, {seconds=} and {peak_flops=} must be more than 0"
        )
    per_token = 6 * n_parameters + 12 * n_layers * d_model * n_context
    return per_token * n_tokens / seconds / peak_flops


@dataclass(frozen=True)
class ScalingLaw:
    """A power law: ``loss = floor + scale · size ** -exponent``.

    >>> law = ScalingLaw(scale=10.0, exponent=0.5)
    >>> law.predict(100.0)
    1.0
    """

    scale: float  # the loss above the floor at size 1
    exponent: float  # how fast it falls: 0.5 = a tenth at 100 times the size
    floor: float = 0.0  # what no size gets below, in the unit of the loss

    def predict(self, size: float) -> float:
        """Give the loss expected at a size."""
        return self.floor + self.scale * size**-self.exponent


def fit_scaling_law(
    sizes: Sequence[float], losses: Sequence[float], *, floor: bool = False
) -> ScalingLaw:
    """Fit a power law to measured losses.

    Without floor, least squares on the logarithms of both, where a power law is a
    straight line: Kaplan et al., 2020. With one, least squares on the losses: for every
    exponent the best floor and scale follow from a linear equation, so that only the
    exponent, between 0 and 4, is searched for: Hoffmann et al., 2022, approach 3, with
    squares in place of the Huber loss.

    Args:
        sizes: parameters, tokens or operations, all positive
        losses: one a size, all positive
        floor: whether the loss tends to a number other than 0

    Returns:
        The law.

    Raises:
        ValueError: if the numbers are not positive, not of one length, or too few
            different sizes: two are needed, with a floor three.

    >>> law = fit_scaling_law([1e2, 1e4, 1e6], [1.0, 0.1, 0.01])
    >>> round(law.scale, 6), round(law.exponent, 6)
    (10.0, 0.5)
    """
    _check_points(sizes, losses, 3 if floor else 2)
    x = torch.tensor(sizes, dtype=torch.float64).log()
    y = torch.tensor(losses, dtype=torch.float64)
    if not floor:
        height, slope = _line(x, y.log())
        return ScalingLaw(math.exp(height), -slope)
    # Sizes are counted from their (geometric) mean, so that no power overflows.
    centre = x.mean().item()
    exponent = _least(lambda a: _residual(torch.exp(-a * (x - centre)), y))
    height, slope = _line(torch.exp(-exponent * (x - centre)), y)
    return ScalingLaw(slope * math.exp(exponent * centre), exponent, height)


def _line(x: Tensor, y: Tensor) -> tuple[float, float]:
    # Least squares: y = height + slope · x.
    away = x - x.mean()
    slope = (away @ (y - y.mean())) / (away @ away)
    return (y.mean() - slope * x.mean()).item(), slope.item()


def _residual(x: Tensor, y: Tensor) -> float:
    height, slope = _line(x, y)
    return (height + slope * x - y).square().sum().item()


def _least(measure, low: float = 1e-3, high: float = 4.0) -> float:
    # The best of a grid, then the golden section between its neighbours.
    grid = torch.linspace(math.log(low), math.log(high), 200).exp().tolist()
    best = min(range(1, 199), key=lambda i: measure(grid[i]))
    low, high = grid[best - 1], grid[best + 1]
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(80):
        left, right = high - golden * (high - low), low + golden * (high - low)
        if measure(left) < measure(right):
            high = right
        else:
            low = left
    return (low + high) / 2


def _check_points(
    sizes: Sequence[float], losses: Sequence[float], n_needed: int
) -> None:
    if len(sizes) != len(losses):
        raise ValueError(f"{len(sizes)} sizes and {len(losses)} losses do not match")
    for name, numbers in (("size", sizes), ("loss", losses)):
        for number in numbers:
            if not (number > 0 and math.isfinite(number)):
                raise ValueError(f"the {name} {number} is not a positive number")
    if len(set(sizes)) < n_needed:
        raise ValueError(
            f"{len(set(sizes))} different sizes are too few: {n_needed} are needed"
        )

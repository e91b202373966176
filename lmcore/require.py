"""What the arguments of a function must be, and a refusal where they are not.

Used by every chapter. A wrong number is cheapest to find where it comes in: ten lines
further down it is a puzzle about shapes. Each function here checks one kind of argument
and raises an error that names the argument, says what it is and what was expected::

    require.at_least_one(n_words=n_words, d_model=d_model)
    require.one_of("norm", norm, ("layer", "rms"))

Numbers are given by keyword, so that the message can name them. None stands for a
number that was not given, and passes. Where all is well nothing happens.

Left out: what only one module asks for. It stands in that module.
"""

from collections.abc import Collection, Sequence
from itertools import pairwise

import torch
from torch import Tensor


def at_least_one(**numbers: int | None) -> None:
    """Refuse a count that is smaller than 1.

    Raises:
        ValueError: if one of the numbers is smaller than 1.

    >>> at_least_one(n_words=5, d_model=0)
    Traceback (most recent call last):
    ...
    ValueError: d_model=0 must be at least 1
    """
    for name, number in numbers.items():
        if number is not None and not number >= 1:
            raise ValueError(f"{name}={number} must be at least 1")


def not_negative(**numbers: float | None) -> None:
    """Refuse a number that is smaller than 0, or no number at all (NaN).

    Raises:
        ValueError: if one of the numbers is negative or NaN.

    >>> not_negative(weight_decay=-0.1)
    Traceback (most recent call last):
    ...
    ValueError: weight_decay=-0.1 must not be negative
    """
    for name, number in numbers.items():
        if number is not None and not number >= 0:
            raise ValueError(f"{name}={number} must not be negative")


def positive(**numbers: float | None) -> None:
    """Refuse a number that is 0 or smaller, or no number at all (NaN).

    Raises:
        ValueError: if one of the numbers is 0, negative or NaN.

    >>> positive(temperature=0.0)
    Traceback (most recent call last):
    ...
    ValueError: temperature=0.0 must be positive
    """
    for name, number in numbers.items():
        if number is not None and not number > 0:
            raise ValueError(f"{name}={number} must be positive")


def between(low: float, high: float, **numbers: float | None) -> None:
    """Refuse a number outside a range; both ends belong to it.

    Args:
        low: the smallest number that passes
        high: the largest number that passes
        numbers: what is checked

    Raises:
        ValueError: if one of the numbers is smaller, larger or NaN.

    >>> between(0, 1, gamma=0.99, lam=95)
    Traceback (most recent call last):
    ...
    ValueError: lam=95 must lie between 0 and 1
    """
    for name, number in numbers.items():
        if number is not None and not low <= number <= high:
            raise ValueError(f"{name}={number} must lie between {low} and {high}")


def divisible(**numbers: int) -> None:
    """Refuse numbers that do not divide each other: each must be divisible by the next.

    Raises:
        ValueError: if a number is not divisible by the next, or the next is smaller
            than 1.

    >>> divisible(d_model=12, n_heads=4, n_kv_heads=2)
    >>> divisible(d_model=100, n_heads=12)
    Traceback (most recent call last):
    ...
    ValueError: d_model=100 is not divisible by n_heads=12
    """
    for (name, number), (by, divisor) in pairwise(numbers.items()):
        if divisor < 1 or number % divisor != 0:
            raise ValueError(f"{name}={number} is not divisible by {by}={divisor}")


def one_of(name: str, choice: str, choices: Collection[str]) -> None:
    """Refuse a word that is not among the choices.

    Args:
        name: what the argument is called
        choice: what was given
        choices: what may be given

    Raises:
        ValueError: if the choice is none of the choices.

    >>> one_of("norm", "batch", ("layer", "rms"))
    Traceback (most recent call last):
    ...
    ValueError: norm='batch' must be one of layer, rms
    """
    if choice not in choices:
        raise ValueError(f"{name}={choice!r} must be one of {', '.join(choices)}")


def width(name: str, x: Tensor, width: int) -> None:
    """Refuse a tensor whose last axis has another size than the layer it comes to.

    Args:
        name: what the tensor is called
        x: (..., C)
        width: C, what was expected

    Raises:
        ValueError: if the width is another.

    >>> width("x", torch.zeros(2, 3), width=6)
    Traceback (most recent call last):
    ...
    ValueError: x has shape (2, 3), expected width 6
    """
    if x.shape[-1] != width:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, expected width {width}")


def indices(name: str, x: Tensor, **size: int) -> None:
    """Refuse ids that are not places in a table of a given size.

    What is being compiled, or has no numbers yet (the device "meta"), passes.

    Args:
        name: what the ids are called
        x: (...), whole numbers
        size: how many rows the table has, under its name

    Raises:
        ValueError: if an id is negative, or as large as the table or larger.

    >>> indices("ids", torch.tensor([0, 7]), n_words=5)
    Traceback (most recent call last):
    ...
    ValueError: ids from 0 to 7 must lie between 0 and n_words - 1 = 4
    """
    if torch.compiler.is_compiling() or x.numel() == 0 or x.is_meta:
        return
    ((of, n),) = size.items()
    low, high = (int(end) for end in x.aminmax())
    if low < 0 or high >= n:
        raise ValueError(
            f"{name} from {low} to {high} must lie between 0 and {of} - 1 = {n - 1}"
        )


def lengths(lengths: Tensor, n_rows: int, n_tokens: int) -> None:
    """Refuse lengths that do not fit a padded batch.

    Args:
        lengths: (B,), how many real tokens each row has
        n_rows: B
        n_tokens: T

    Raises:
        ValueError: if there is not one length for each row, or one of them does not
            lie between 1 and T.

    >>> lengths(torch.tensor([5]), n_rows=1, n_tokens=4)
    Traceback (most recent call last):
    ...
    ValueError: lengths=[5] must be one number for each of the 1 rows, between 1 and 4
    """
    if lengths.shape != (n_rows,) or not (
        n_rows == 0 or 1 <= lengths.min() <= lengths.max() <= n_tokens
    ):
        raise ValueError(
            f"lengths={lengths.tolist()} must be one number for each of the {n_rows} "
            f"rows, between 1 and {n_tokens}"
        )


def words(text: Sequence[str]) -> None:
    """Refuse a string where a list of words belongs: its letters would pass for words.

    Raises:
        TypeError: if the text is a string.

    >>> words("the cat")
    Traceback (most recent call last):
    ...
    TypeError: 'the cat' is a string, expected a list of words
    """
    if isinstance(text, str):
        raise TypeError(f"{text[:40]!r} is a string, expected a list of words")

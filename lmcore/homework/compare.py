"""Compare a value with the expected one and say what is wrong in a learner's words.

Used by the checks of the homework, in the notebook and when it is graded, so that both
call the same values right. Knows plain data only: numbers, strings, lists, tuples,
dictionaries and tensors.
"""

import cmath
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Unsupported:
    """Stands for a Python object that is not plain data.

    >>> simple(np.array([None]))
    Unsupported(type_name='array of object')
    """

    type_name: str


@dataclass(frozen=True)
class Mismatch:
    """The first thing that is wrong with a value.

    ``kind`` is one of type, length, keys, shape, dtype, nan, value, bound and error;
    ``where`` is the entry, such as ``[1, 2]``, or empty for the whole value.

    >>> print(Mismatch("value", "[1]", yours="2.0", expected="3.0"))
    at [1]: yours is 2.0, expected 3.0
    """

    kind: str
    where: str
    yours: str
    expected: str
    note: str = ""

    def __str__(self) -> str:
        place = f"at {self.where}: " if self.where else ""
        note = f" ({self.note})" if self.note else ""
        return f"{place}yours is {self.yours}, expected {self.expected}{note}"


def simple(x: object) -> object:
    """Bring NumPy's types, dtypes and devices to the types known here.

    >>> simple(np.float32(0.5)), simple(torch.int64)
    (0.5, 'torch.int64')
    """
    if isinstance(x, np.generic):
        return x.item()
    if isinstance(x, np.ndarray):
        try:
            return torch.from_numpy(np.ascontiguousarray(x).reshape(x.shape))
        except TypeError:
            return Unsupported(f"array of {x.dtype}")
    if isinstance(x, torch.dtype | torch.device):
        return str(x)
    return x


def compare(
    yours: object, expected: object, atol: float = 1e-5, rtol: float = 1e-5
) -> Mismatch | None:
    """Find the first difference between a value and the expected one.

    A list of numbers, an array and a tensor of the same shape and kind are the same
    answer, and so are a list and a tuple. Kinds differ: True is not 1, and 2.0 is not a
    whole number; a single whole number may stand where a float is expected. Precision
    (float32, float64) does not matter. Floats are close when
    ``|yours - expected| <= atol + rtol * |expected|``; NaN equals only NaN.

    Raises:
        TypeError: if ``expected`` is not plain data.

    >>> print(compare(torch.tensor([[1.0, 2.0]]), [[1.0, 3.0]]))
    at [0, 1]: yours is 2.0, expected 3.0 (1 of 2 numbers differs)
    >>> print(compare(True, 1))
    yours is True, a bool, expected 1, an int
    """
    return _compare(yours, expected, (atol, rtol), "")


def within(
    yours: object, at_least: float | None = None, at_most: float | None = None
) -> Mismatch | None:
    """Find the first number of a value outside the bounds.

    >>> print(within(0.25, at_least=0.5))
    yours is 0.25, expected at least 0.5
    """
    numbers = _as_array(simple(yours))
    words = [] if at_least is None else [f"at least {at_least}"]
    words += [] if at_most is None else [f"at most {at_most}"]
    bounds = " and ".join(words)
    if numbers is None or _kind(numbers) in ("bool", "complex"):
        return Mismatch("type", "", describe(yours), f"a number, {bounds}")
    if numbers.numel() == 0:
        return Mismatch("shape", "", describe(yours), f"numbers, {bounds}")
    wrong = torch.isnan(numbers.double())
    if at_least is not None:
        wrong |= numbers < at_least
    if at_most is not None:
        wrong |= numbers > at_most
    if not wrong.any():
        return None
    index = tuple(torch.nonzero(wrong)[0].tolist())
    return Mismatch("bound", _place(index), repr(numbers[index].item()), bounds)


def describe(x: object) -> str:
    """Say in a few words what a value is.

    >>> describe(torch.zeros(2, 3)), describe([1, 2]), describe(1.5)
    ('a float tensor of shape (2, 3)', 'a list of 2', '1.5, a float')
    """
    x = simple(x)
    if isinstance(x, Tensor):
        return f"{_article(_kind(x))} tensor of shape {_shape(x)}"
    if isinstance(x, list | tuple):
        return f"a {_type_name(x)} of {len(x)}"
    if isinstance(x, dict):
        return f"a dictionary with the keys {sorted(map(str, x))}"
    if x is None:
        return "None"
    if isinstance(x, bool | int | float | complex | str):
        return f"{_cut(repr(x))}, {_article(_type_name(x))}"
    return _article(x.type_name if isinstance(x, Unsupported) else type(x).__name__)


def _compare(
    yours: Any, expected: Any, tolerance: tuple[float, float], where: str
) -> Mismatch | None:
    yours, expected = _scalar(simple(yours)), _scalar(simple(expected))
    if isinstance(expected, dict) and set(expected) == {"shape"}:
        expected = torch.zeros(expected["shape"])
    if isinstance(yours, Tensor) or isinstance(expected, Tensor):
        return _compare_arrays(yours, expected, tolerance, where)
    if isinstance(expected, list | tuple):
        if not isinstance(yours, list | tuple):
            return Mismatch("type", where, describe(yours), describe(expected))
        if len(yours) != len(expected):
            return Mismatch("length", where, describe(yours), describe(expected))
        keys = range(len(expected))
    elif isinstance(expected, dict):
        if not isinstance(yours, dict):
            return Mismatch("type", where, describe(yours), describe(expected))
        if set(yours) != set(expected):
            return Mismatch("keys", where, describe(yours), describe(expected))
        keys = list(expected)
    else:
        return _compare_single(yours, expected, tolerance, where)
    for key in keys:
        place = f"{where}[{key!r}]"
        if found := _compare(yours[key], expected[key], tolerance, place):
            return found
    return None


def _compare_single(
    yours: Any, expected: Any, tolerance: tuple[float, float], where: str
) -> Mismatch | None:
    if expected is not None and not isinstance(
        expected, bool | int | float | complex | str
    ):
        raise TypeError(f"a check cannot expect {describe(expected)}")
    if isinstance(expected, float | complex) and type(yours) is int:
        yours = float(yours) if abs(yours) < 2**1000 else cmath.inf
    if isinstance(expected, complex) and isinstance(yours, float):
        yours = complex(yours)
    if _type_name(yours) != _type_name(expected):
        return Mismatch("type", where, describe(yours), describe(expected))
    if isinstance(expected, float | complex):
        atol, rtol = tolerance
        if yours == expected or (cmath.isnan(expected) and cmath.isnan(yours)):
            return None
        if abs(yours - expected) <= atol + rtol * abs(expected) < cmath.inf:
            return None
    elif yours == expected:
        return None
    kind = "nan" if yours != yours else "value"
    return Mismatch(kind, where, _cut(repr(yours)), _cut(repr(expected)))


def _compare_arrays(
    yours: Any, expected: Any, tolerance: tuple[float, float], where: str
) -> Mismatch | None:
    y, e = _as_array(yours), _as_array(expected)
    one_for_many = isinstance(yours, Tensor) and isinstance(expected, tuple)
    if y is None or e is None or one_for_many:
        return Mismatch("type", where, describe(yours), describe(expected))
    if y.shape != e.shape:
        shapes = (f"a tensor of shape {_shape(x)}" for x in (y, e))
        return Mismatch("shape", where, *shapes)
    if y.numel() == 0:
        return None
    if _kind(y) != _kind(e):
        kinds = (f"{_article(_kind(x))} tensor" for x in (y, e))
        return Mismatch("dtype", where, *kinds)
    if _kind(e) in ("bool", "int"):
        wrong = y != e
    else:
        wide = torch.complex128 if _kind(e) == "complex" else torch.float64
        y, e, (atol, rtol) = y.to(wide), e.to(wide), tolerance
        wrong = ~torch.isclose(y, e, rtol=rtol, atol=atol, equal_nan=True)
    n_wrong = int(wrong.sum())
    if n_wrong == 0:
        return None
    index = tuple(torch.nonzero(wrong)[0].tolist())
    mine, right = y[index].item(), e[index].item()
    kind = "nan" if mine != mine else "value"
    verb = "differs" if n_wrong == 1 else "differ"
    noun = "entries" if _kind(e) == "bool" else "numbers"
    note = f"{n_wrong} of {y.numel()} {noun} {verb}"
    return Mismatch(kind, where + _place(index), _number(mine), _number(right), note)


def _as_array(x: Any) -> Tensor | None:
    """A tensor as it is; numbers and rectangular lists of one kind as a tensor."""
    if isinstance(x, Tensor):
        plain = (
            x.layout == torch.strided and x.device.type != "meta" and not x.is_quantized
        )
        return x.detach().cpu() if plain else None
    if isinstance(x, bool | int | float | complex):
        wide = {bool: torch.bool, int: torch.int64, float: torch.float64}
        try:
            return torch.tensor(x, dtype=wide.get(type(x)))
        except (OverflowError, RuntimeError):
            return None
    if not isinstance(x, list | tuple):
        return None
    if len(x) == 0:
        return torch.zeros(0)
    rows = [_as_array(simple(item)) for item in x]
    if any(row is None for row in rows) or len({row.shape for row in rows}) > 1:
        return None
    if len({_kind(row) for row in rows}) > 1:
        if any(_kind(row) == "bool" for row in rows):
            return None
        rows = [row.to(torch.float64) for row in rows]
    return torch.stack(rows)


def _scalar(x: object) -> object:
    if isinstance(x, Tensor) and x.dim() == 0 and x.device.type != "meta":
        return x.item()
    return x


def _kind(x: Tensor) -> str:
    if x.dtype == torch.bool:
        return "bool"
    if x.is_complex():
        return "complex"
    return "float" if x.is_floating_point() else "int"


def _type_name(x: object) -> str:
    for known in (bool, int, float, complex, str, tuple, list, dict):
        if isinstance(x, known):
            return known.__name__
    return type(x).__name__


def _article(noun: str) -> str:
    return f"{'an' if noun[:1] in 'aeiouAEIOU' else 'a'} {noun}"


def _shape(x: Tensor) -> str:
    return str(tuple(x.shape))


def _place(index: tuple[int, ...]) -> str:
    return str(list(index)) if index else ""


def _number(x: bool | int | float | complex) -> str:
    return repr(float(f"{x:.7g}")) if isinstance(x, float) else repr(x)


def _cut(text: str, length: int = 200) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"

"""Plain data: what a check's value is turned into, so that it can be sent and compared.

Values of a homework check leave the process that computed them as JSON: numbers,
strings, lists, and tensors as dtype, shape and raw bytes. Reading them back never
executes anything and never trusts a size. `judge` compares a value that came back so
with what the reference recorded for the same check.

Left out on purpose: any other Python object. A check that needs one compares what it
gives instead.
"""

import base64
import binascii
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .compare import Mismatch, Unsupported, compare, describe, simple, within

__all__ = [
    "Malformed",
    "Mismatch",
    "TooLarge",
    "Unsupported",
    "compare",
    "decode",
    "describe",
    "encode",
    "judge",
    "literal",
    "within",
]

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.complex64, torch.complex128),
    )
}
MAX_BYTES = 16_000_000  # of tensors and text in one value
MAX_ITEMS = 200_000  # in lists and dictionaries of one value
MAX_DEPTH = 20
MAX_DIMENSIONS = 16
MAX_INT = 2**4096
_SPECIAL_FLOATS = ("nan", "inf", "-inf")


class TooLarge(ValueError):  # noqa: N818
    """A value is larger than a check may record.

    >>> encode("a long text", max_bytes=5)
    Traceback (most recent call last):
    ...
    lmcore.homework.plain.TooLarge: the value is larger than a check may record
    """


class Malformed(ValueError):  # noqa: N818
    """Data that should be plain is not.

    >>> decode({"no": "such form"})
    Traceback (most recent call last):
    ...
    lmcore.homework.plain.Malformed: unknown kind of data: 'no'
    """


class _Budget:
    """Counts bytes and items down while a value is read or written."""

    def __init__(self, max_bytes: int) -> None:
        self.bytes, self.items = max_bytes, MAX_ITEMS

    def take(self, n_bytes: int = 0, items: int = 0) -> None:
        self.bytes -= n_bytes
        self.items -= items
        if self.bytes < 0 or self.items < 0:
            raise TooLarge("the value is larger than a check may record")


def encode(x: object, max_bytes: int = MAX_BYTES) -> Any:
    """Turn a value into data that JSON can carry.

    Tensors and NumPy arrays keep their dtype, shape and bytes; Python's numbers,
    strings, lists, tuples and dictionaries with string keys keep their structure;
    ``torch.dtype`` and ``torch.device`` become strings. Of anything else only the name
    of its type is kept.

    Raises:
        TooLarge: if the value has more than ``max_bytes`` bytes, too many items, or is
            nested too deeply.

    >>> encode((1, 2.5, float("nan")))
    {'tuple': [1, 2.5, {'float': 'nan'}]}
    >>> encode(torch.tensor([True]))
    {'tensor': {'dtype': 'bool', 'shape': [1], 'bytes': 'AQ=='}}
    """
    return _encode(x, _Budget(max_bytes), 0)


def _encode(x: object, budget: _Budget, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise TooLarge(f"the value is nested more than {MAX_DEPTH} levels deep")
    budget.take(items=1)
    x = simple(x)
    if x is None or isinstance(x, bool):
        return x
    if isinstance(x, str):
        budget.take(n_bytes=4 * len(x))
        return str(x)
    if isinstance(x, int):
        if abs(x) >= MAX_INT:
            raise TooLarge("the whole number has too many digits")
        return int(x)
    if isinstance(x, float):
        return float(x) if math.isfinite(x) else {"float": str(float(x))}
    if isinstance(x, complex):
        return {"complex": [_encode(part, budget, depth) for part in (x.real, x.imag)]}
    if isinstance(x, Tensor):
        return _encode_tensor(x, budget)
    if isinstance(x, list | tuple):
        items = [_encode(item, budget, depth + 1) for item in x]
        return items if isinstance(x, list) else {"tuple": items}
    if isinstance(x, dict):
        for key in x:
            if not isinstance(key, str):
                kind = type(key).__name__
                return {"unsupported": f"dictionary with keys of type {kind}"}
            budget.take(n_bytes=4 * len(key))
        items = {str(k): _encode(item, budget, depth + 1) for k, item in x.items()}
        return {"dict": items}
    name = x.type_name if isinstance(x, Unsupported) else type(x).__name__
    return {"unsupported": name[:100]}


def _encode_tensor(x: Tensor, budget: _Budget) -> dict[str, Any]:
    dtype = str(x.dtype).removeprefix("torch.")
    if dtype not in DTYPES or x.layout != torch.strided or x.device.type == "meta":
        return {"unsupported": f"tensor of {x.dtype} on {x.device}, {x.layout}"[:100]}
    budget.take(n_bytes=x.numel() * x.element_size())
    flat = x.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    raw = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    content = base64.b64encode(raw).decode("ascii")
    return {"tensor": {"dtype": dtype, "shape": list(x.shape), "bytes": content}}


def decode(data: object, max_bytes: int = MAX_BYTES) -> Any:
    """Turn data from `encode` back into values, tensors as tensors on the CPU.

    Never executes anything; checks every name, size and shape before it is used.

    Raises:
        Malformed: if the data could not have come from `encode`.
        TooLarge: if it is larger than ``max_bytes``, or too deep.

    >>> decode({"tuple": [1, {"float": "nan"}]})
    (1, nan)
    """
    return _decode(data, _Budget(max_bytes), 0)


def _decode(data: object, budget: _Budget, depth: int) -> Any:
    if depth > 2 * MAX_DEPTH:
        raise TooLarge("the data is nested too deeply")
    budget.take(items=1)
    if data is None or isinstance(data, bool):
        return data
    if isinstance(data, str):
        budget.take(n_bytes=len(data))
        return data
    if isinstance(data, int):
        if abs(data) >= MAX_INT:
            raise TooLarge("the whole number has too many digits")
        return data
    if isinstance(data, float):
        if not math.isfinite(data):
            raise Malformed("a float outside JSON's numbers")
        return data
    if isinstance(data, list):
        return [_decode(item, budget, depth + 1) for item in data]
    if not isinstance(data, dict) or len(data) != 1:
        raise Malformed(f"{type(data).__name__} is not plain data")
    ((tag, content),) = data.items()
    if tag == "float" and content in _SPECIAL_FLOATS:
        return float(content)
    if tag == "tuple" and isinstance(content, list):
        return tuple(_decode(item, budget, depth + 1) for item in content)
    if tag == "dict" and isinstance(content, dict):
        return {
            _decode(key, budget, depth): _decode(item, budget, depth + 1)
            for key, item in content.items()
        }
    if tag == "complex" and isinstance(content, list) and len(content) == 2:
        real, imaginary = (_decode(part, budget, depth + 1) for part in content)
        if isinstance(real, float) and isinstance(imaginary, float):
            return complex(real, imaginary)
    if tag == "tensor":
        return _decode_tensor(content, budget)
    if tag == "unsupported" and isinstance(content, str):
        return Unsupported(content[:100])
    raise Malformed(f"unknown kind of data: {str(tag)[:40]!r}")


def _decode_tensor(data: object, budget: _Budget) -> Tensor:
    if not isinstance(data, dict) or set(data) != {"dtype", "shape", "bytes"}:
        raise Malformed("a tensor needs dtype, shape and bytes")
    shape, content = data["shape"], data["bytes"]
    dtype = DTYPES.get(data["dtype"]) if isinstance(data["dtype"], str) else None
    if dtype is None or not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise Malformed("a tensor with an unknown dtype or shape")
    for size in shape:
        if type(size) is not int or not 0 <= size < 2**31:
            raise Malformed("a tensor with an impossible size")
    if not isinstance(content, str):
        raise Malformed("a tensor whose bytes are no text")
    n_bytes = math.prod(shape) * dtype.itemsize
    budget.take(n_bytes=n_bytes)
    if len(content) > 4 * (n_bytes // 3 + 1):
        raise Malformed("a tensor with more bytes than its shape says")
    try:
        raw = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("a tensor whose bytes are not base64") from None
    if len(raw) != n_bytes:
        raise Malformed(f"a tensor of {len(raw)} bytes, its shape says {n_bytes}")
    if dtype == torch.bool and raw.strip(b"\x00\x01"):
        raise Malformed("a boolean tensor with bytes other than 0 and 1")
    if n_bytes == 0:
        return torch.zeros(shape, dtype=dtype)
    return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)


def literal(x: object) -> Any:
    """Write a value as the nested lists that a student reads in a check.

    Tensors become lists of lists; half and single precision numbers are written with as
    few digits as give exactly the same number back. Only an empty tensor of several
    dimensions needs its shape spelled out.

    Raises:
        TypeError: if the value is not plain data, so that no literal can stand for it.

    >>> literal((torch.tensor([[0.1, 2.0]]), torch.tensor(3)))
    ([[0.1, 2.0]], 3)
    >>> literal(torch.zeros(0, 3))
    {'shape': [0, 3]}
    """
    x = simple(x)
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        if x.numel() == 0 and x.dim() > 1:
            return {"shape": list(x.shape)}
        if x.dtype in (torch.float16, torch.bfloat16, torch.float32):
            return _short(x.float().numpy())
        return x.tolist()
    if isinstance(x, list):
        return [literal(item) for item in x]
    if isinstance(x, tuple):
        return tuple(literal(item) for item in x)
    if isinstance(x, dict) and all(isinstance(key, str) for key in x):
        return {key: literal(item) for key, item in x.items()}
    if x is None or isinstance(x, bool | int | float | complex | str):
        return x
    raise TypeError(f"no check can be written for a value of type {type(x).__name__}")


def _short(x: np.ndarray) -> Any:
    if x.ndim == 0:
        return float(str(x[()]))
    return [_short(item) for item in x]


def judge(yours: object, reference: dict[str, Any]) -> Mismatch | None:
    """Judge a recorded value by the reference's record of the same check.

    Args:
        yours: the value as `encode` wrote it, from a process that is not trusted
        reference: the record of the same check made by the reference: its ``value``,
            ``atol`` and ``rtol``, or the bounds ``at_least`` and ``at_most``

    Returns:
        None if the value is right, else what is wrong with it.

    >>> print(judge(3, {"value": 4, "atol": 1e-5, "rtol": 1e-5}))
    yours is 3, expected 4
    >>> judge(3, {"value": 4, "at_least": 2.5})
    """
    if isinstance(yours, dict) and set(yours) - {"message"} == {"error"}:
        name, message = (str(yours.get(k, ""))[:500] for k in ("error", "message"))
        happened = f"an error, {name}: {message}" if message else f"an error, {name}"
        return Mismatch("error", "", happened, "a value")
    at_least, at_most = reference.get("at_least"), reference.get("at_most")
    within_bounds = at_least is not None or at_most is not None
    if not within_bounds and _same_tensor(yours, reference["value"]):
        return None
    try:
        value = decode(yours)
    except (Malformed, TooLarge) as problem:
        return Mismatch("type", "", f"unreadable: {problem}", "plain data")
    if within_bounds:
        return within(value, at_least, at_most)
    expected = decode(reference["value"])
    return compare(value, expected, reference["atol"], reference["rtol"])


def _same_tensor(yours: object, expected: object) -> bool:
    """Whether two values are the same tensor, bit for bit: most right answers are."""
    return isinstance(yours, dict) and "tensor" in yours and yours == expected

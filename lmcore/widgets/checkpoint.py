"""The file format of the live figures: named arrays and a few words about them.

A checkpoint is a real safetensors file (Hugging Face, 2022): eight bytes with the
length of the header, the header as JSON (for each array its type, shape and place, and
strings under ``__metadata__``), then the numbers of all arrays. The `safetensors`
package opens it, and a browser reads it with a few lines.

Left out: every number type but float32.
"""

import json
import math
import struct

import torch
from torch import Tensor


def pack(arrays: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Write named arrays as the bytes of a safetensors file, in float32.

    Args:
        arrays: name -> array of any shape, device and floating type
        metadata: name -> text

    Returns:
        The bytes of the file.

    Raises:
        ValueError: if a number is NaN or infinite.

    >>> unpack(pack({"a": torch.tensor([1.0, 2.0])}, {"for": "a test"}))
    ({'a': tensor([1., 2.])}, {'for': 'a test'})
    """
    header: dict[str, dict] = {"__metadata__": metadata}
    blob = b""
    for name, array in arrays.items():
        if not torch.isfinite(array).all():
            raise ValueError(f"{name} has a number that is NaN or infinite")
        data = array.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
        place = [len(blob), len(blob) + len(data)]
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": place,
        }
        blob += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the numbers to eight bytes
    return struct.pack("<Q", len(text)) + text + blob


def unpack(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what `pack` wrote.

    Args:
        data: the bytes of a safetensors file that holds float32 arrays

    Returns:
        The arrays and the metadata.

    Raises:
        ValueError: if these are not the bytes of such a file.

    >>> unpack(b"no checkpoint")
    Traceback (most recent call last):
        ...
    ValueError: this is not a safetensors file: its header cannot be read
    """
    try:
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        metadata = header.pop("__metadata__", {})
    except (struct.error, ValueError, AttributeError) as error:
        raise ValueError(
            "this is not a safetensors file: its header cannot be read"
        ) from error
    blob = data[8 + length :]
    return {name: _array(name, place, blob) for name, place in header.items()}, metadata


def _array(name: str, place: dict, blob: bytes) -> Tensor:
    if place["dtype"] != "F32":
        raise ValueError(f"{name} has type {place['dtype']}, expected F32")
    begin, end = place["data_offsets"]
    n_bytes = 4 * math.prod(place["shape"])
    if not 0 <= begin <= end <= len(blob) or end - begin != n_bytes:
        raise ValueError(
            f"{name} has shape {place['shape']} and {end - begin} bytes, "
            f"expected {n_bytes} bytes inside the file"
        )
    numbers = torch.frombuffer(bytearray(blob[begin:end]), dtype=torch.float32)
    return numbers.reshape(place["shape"])

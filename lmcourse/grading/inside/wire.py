"""Messages between the grader's processes: JSON of a stated length over a socket.

The reader trusts nothing: it knows the length before it reads, refuses what is longer
than it expects, and takes no longer than it was told.
"""

import json
import socket
import struct
import time
from typing import Any

HEADER = struct.Struct(">I")
MAX_BYTES = 64_000_000
MAX_ITEMS = 2_000_000  # numbers, texts, lists: small ones grow thirtyfold when read


class Broken(Exception):  # noqa: N818
    """The other side closed the connection, or sent something that is no message."""


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    """Send one message.

    Raises:
        Broken: if nobody reads any more.
    """
    content = json.dumps(message).encode("ascii")
    try:
        connection.sendall(HEADER.pack(len(content)) + content)
    except OSError as error:
        raise Broken(str(error)) from None


def receive(
    connection: socket.socket,
    deadline: float | None = None,
    max_bytes: int = MAX_BYTES,
) -> dict[str, Any]:
    """Read one message; see `receive_sized`."""
    return receive_sized(connection, deadline, max_bytes)[0]


def receive_sized(
    connection: socket.socket, deadline: float | None, max_bytes: int
) -> tuple[dict[str, Any], int]:
    """Read one message and say how many bytes it had.

    Args:
        connection: the socket
        deadline: the time on the clock ``time.monotonic`` at which to give up
        max_bytes: how long a message may be

    Raises:
        Broken: if the connection ends, or the message is too long or no JSON object.
        TimeoutError: at the deadline.
    """
    (length,) = HEADER.unpack(_read(connection, HEADER.size, deadline))
    if length > max_bytes:
        raise Broken(f"a message of {length} bytes, at most {max_bytes} are read")
    try:
        message = json.loads(_not_too_many(_read(connection, length, deadline)))
    except (ValueError, RecursionError, MemoryError):
        raise Broken("a message that is no JSON") from None
    if not isinstance(message, dict):
        raise Broken("a message that is no object")
    return message, length


def _not_too_many(content: bytes) -> bytes:
    """Refuse a text that would become more objects than any honest message has."""
    if sum(map(content.count, (b",", b"[", b"{"))) > MAX_ITEMS:
        raise Broken(f"a message of more than {MAX_ITEMS} items")
    return content


def _read(connection: socket.socket, length: int, deadline: float | None) -> bytes:
    parts = []
    while length > 0:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            connection.settimeout(left)
        else:
            connection.settimeout(None)
        try:
            part = connection.recv(min(length, 1 << 20))
        except TimeoutError:
            raise
        except OSError as error:
            raise Broken(str(error)) from None
        if not part:
            raise Broken("the connection was closed")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)

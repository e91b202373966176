"""Files that are there completely or not at all.

Used from chapter 11 on. A training runs for hours and is killed at any moment: by the
power, by a full disk, by the one who waits. Whoever starts it again must find the old
file or the new one, and never the first half of the new one.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

Result = TypeVar("Result")


def write_whole(path: str | Path, write: Callable[[BinaryIO], Result]) -> Result:
    """Write a file so that nobody ever sees half of it, even if the power fails.

    The content goes to a file beside it, then to the disk, and only then takes the
    name, which file systems do in one piece. Until then the old file stays.

    Args:
        path: the file
        write: is called with a file and writes the content into it

    Returns:
        What ``write`` returned.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "letter"
    >>> write_whole(path, lambda file: file.write(b"all of it"))
    9
    >>> path.read_bytes()
    b'all of it'
    """
    path = Path(path)
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("wb") as file:
        result = write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)  # the new name is on the disk, too
        os.close(folder)
    return result

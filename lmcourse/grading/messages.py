"""What a student reads about a check: what went wrong, never what is hidden.

For a visible check, whose input and expected value stand in the notebook, the message
has all of it. For a hidden one it says what kind of thing is wrong, in our own words
only: the text of an error comes from the student's code and could carry the input out.
"""

import re
from typing import TYPE_CHECKING, Any

from lmcore.homework import unwritten

if TYPE_CHECKING:  # torch is not needed to write messages
    from lmcore.homework.compare import Mismatch

HIDDEN = {
    "type": "It gives another kind of value than asked for.",
    "length": "It gives a list of another length.",
    "keys": "The names in it are not the expected ones.",
    "shape": "The shape is not the expected one.",
    "dtype": "The kind of number (bool, whole, float) is not the expected one.",
    "nan": "There are NaNs where numbers should be, or the other way round.",
    "value": "Some of the values are not the expected ones.",
    "bound": "It lies outside the bounds.",
}
ENDS = {
    "timeout": "It did not end in time.",
    "crash": "Python itself was killed while it ran.",
    "exit": "It ended Python while it ran.",
    "too much": "It gave more data than a check may record.",
    "lost": "It could not run: the notebook's process had been ended.",
}
NOT_REACHED = "Not reached: a line before it failed."
ONLY_VISIBLE = (
    "No hidden check passes, so the visible ones earn nothing: their expected values "
    "stand in the notebook."
)
NOT_WRITTEN = "Not written yet."


def of_value(mismatch: "Mismatch", hidden: bool) -> str:
    """Say what is wrong with a value."""
    if hidden:
        return HIDDEN.get(mismatch.kind, HIDDEN["value"])
    text = str(mismatch)
    return text[:1].upper() + text[1:] + "."


def of_error(error: dict[str, Any], hidden: bool) -> str:
    """Say that an error stood in the place of a value."""
    name, message = str(error.get("error")), str(error.get("message", ""))
    if name == "NotImplementedError" and unwritten.PHRASE in message:
        return NOT_WRITTEN
    if name in ("TooLarge", "MemoryError") or "can't allocate memory" in message:
        return "It asks for more memory than it may use."
    if not hidden:
        return f"It raised {name}: {message}" if message else f"It raised {name}."
    if error.get("builtin"):
        return f"It raised {name}."
    return "It raised an error."


def of_cell(cell: dict[str, Any], seconds: int, memory_mb: int) -> str:
    """Say why a student's own cell did not run to its end; empty if it did."""
    if cell["end"] == "timeout":
        return (
            f"This cell did not end within {seconds} s of computing; it was left out."
        )
    if cell["end"] != "done":
        return f"{ENDS.get(cell['end'], ENDS['crash'])} The cell was left out."
    error = cell["error"]
    if error is None:
        return ""
    where = f" (line {error['line']})" if error.get("line") else ""
    text = of_error(error, hidden=False)
    if "memory" in text:
        text = f"It asks for more than {memory_mb} MB of memory."
    return f"This cell ended with an error{where}. {text}"


def in_words(name: str) -> str:
    """The name of a mistake in words.

    >>> in_words("HeadsTiled"), in_words("heads_tiled")
    ('heads tiled', 'heads tiled')
    """
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).replace("_", " ").lower()

"""What nbgrader's exchange lays beside a submission: when it came, and a secret.

Without them nbgrader can give the student no feedback. They may be anything: students
can write them themselves.
"""

import contextlib
from datetime import datetime
from pathlib import Path

from nbgrader import utils

from . import intake

NAMES = ("timestamp.txt", "submission_secret.txt")
MAX_BYTES = 200


def read(folder: Path) -> dict[str, bytes]:
    """Read the receipts in a folder, as far as they are of use; by their names."""
    found = {}
    for name in NAMES:
        content = intake.read_file(folder / name)
        if isinstance(content, bytes) and 0 < len(content) <= MAX_BYTES:
            with contextlib.suppress(UnicodeDecodeError):
                content.decode("utf-8")
                found[name] = content
    if timestamp(folder) is None:
        found.pop("timestamp.txt", None)
    return found


def timestamp(folder: Path) -> datetime | None:
    """Read nbgrader's note of the time of submission, in UTC, if it is one."""
    content = intake.read_file(folder / "timestamp.txt")
    if isinstance(content, intake.Refusal) or len(content) > MAX_BYTES:
        return None
    with contextlib.suppress(ValueError, OverflowError, TypeError, AttributeError):
        text = content.decode("utf-8").strip()
        return utils.parse_utc(text) if text else None
    return None

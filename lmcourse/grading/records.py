"""Bring what came out of the student's world to a shape that can be relied on.

Every message from there may be forged. Whatever has not the expected type becomes
something harmless; values stay as they are, to be read by `judge` of
`lmcore.homework.plain` alone.
"""

from typing import Any

Run = dict[str, Any]  # how a test ended, and for each statement its values and error

MAX_TEXT = 12_000
ENDS = ("done", "timeout", "crash", "exit", "too much", "skipped", "lost")
KILLED = "killed"  # by a signal that no process survives, whoever sent it: a crash


def cell(data: object, cell_id: str) -> dict[str, Any]:
    """How one of the student's cells went."""
    data = data if isinstance(data, dict) else {}
    return {
        "id": cell_id,
        "end": _end(data.get("end")),
        "output": _text(data.get("output")),
        "error": error(data.get("error")),
    }


def test(data: object, n_statements: int) -> dict[str, Any]:
    """What one test cell recorded."""
    data = data if isinstance(data, dict) else {}
    done = data.get("statements")
    done = done if isinstance(done, list) else []
    return {
        "end": _end(data.get("end")),
        "statements": [_statement(item) for item in done[:n_statements]],
    }


def _statement(data: object) -> dict[str, Any]:
    data = data if isinstance(data, dict) else {}
    values = data.get("values")
    return {
        "values": values if isinstance(values, list) else [],
        "error": error(data.get("error")),
    }


def error(data: object) -> dict[str, Any] | None:
    """An error as plain text, or None."""
    if data is None:
        return None
    data = data if isinstance(data, dict) else {}
    line = data.get("line")
    return {
        "error": _text(data.get("error"))[:100] or "Error",
        "builtin": data.get("builtin") is True,
        "message": _text(data.get("message"))[:500],
        "line": line if type(line) is int and 0 < line < 10**6 else None,
    }


def killed(data: object) -> bool:
    """Whether something killed the process of a cell or test."""
    return isinstance(data, dict) and data.get("end") == KILLED


def _end(how: object) -> str:
    if how == KILLED:
        return "crash"
    return how if isinstance(how, str) and how in ENDS else "lost"


def _text(text: object) -> str:
    """Text without lone surrogates and control characters."""
    if not isinstance(text, str):
        return ""
    text = text[:MAX_TEXT].encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c for c in text if c in "\n\t" or c.isprintable())

"""Read a submission: the text of the cells we know, or a refusal that says why.

Nothing else of a notebook is used: no outputs, no metadata but the cells' ids, no cell
that was added, no source of a cell that is not the student's to write.
"""

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_BYTES = 20_000_000  # of a notebook, pictures in its outputs included
MAX_CELL = 100_000  # characters of one cell
STUDENTS = ("solution", "written")  # kinds of cells that a student writes


@dataclass(frozen=True)
class Refusal:
    """A submission that cannot be graded, and the sentence that says why."""

    kind: str
    message: str


Content = bytes | Refusal  # what reading a submitted file gave


@dataclass(frozen=True)
class Work:
    """What a student wrote: the text of each known cell, by the cell's id."""

    cells: dict[str, str]
    missing: list[str]  # ids of cells that the student's notebook no longer has


def read_file(path: Path) -> Content:
    """Read a submitted file that may be anything.

    Links are not followed, and only plain files are opened, so that neither a pipe can
    stop the class nor a link lead elsewhere. A file with a second name is refused too:
    a hard link could lead to a solution.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return Refusal("missing", f"There is no notebook called {path.name}.")
    except OSError:
        return Refusal("no file", f"{path.name} is no plain file.")
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:
        os.close(descriptor)
        return Refusal("no file", f"{path.name} is no plain file of its own.")
    with open(descriptor, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        return _too_large(max(facts.st_size, len(content)))
    return content


def _too_large(size: int) -> Refusal:
    return Refusal(
        "too large",
        f"The notebook has {size:,} bytes; at most {MAX_BYTES:,} are read. "
        "Clear its outputs and hand it in again.",
    )


def read(content: bytes, manifest: dict[str, Any]) -> Work | Refusal:
    """Take the text of the known cells out of a notebook.

    Args:
        content: the bytes of the notebook
        manifest: the unit's manifest, which knows the cells
    """
    if len(content) > MAX_BYTES:
        return _too_large(len(content))
    if not content.strip():
        return Refusal("empty", "The notebook is an empty file.")
    try:
        notebook = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError:
        return Refusal("no notebook", "The file is not UTF-8 text, so no notebook.")
    except (ValueError, RecursionError):
        return Refusal("no notebook", "The file is not JSON, so no notebook.")
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list):
        return Refusal("no notebook", "The file has no list of cells, so no notebook.")
    kinds = {cell["id"]: cell["kind"] for cell in manifest["cells"]}
    found: dict[str, str] = {}
    for cell in cells:
        name = _grade_id(cell)
        if kinds.get(name) not in STUDENTS:
            continue
        source = _source(cell)
        if source is None or len(source) > MAX_CELL:
            return Refusal(
                "bad cell", f"The cell {name} holds no text of usual length."
            )
        if found.get(name, source) != source:
            return Refusal(
                "two answers",
                f"The cell {name} is there twice, with different text: it is not clear "
                "which one counts.",
            )
        found[name] = source
    known = [name for name, kind in kinds.items() if kind in STUDENTS]
    if not found:
        return Refusal(
            "other notebook",
            f"None of the exercises of {manifest['unit']} is in this notebook.",
        )
    return Work(found, [name for name in known if name not in found])


def _grade_id(cell: object) -> str | None:
    for key in ("metadata", "nbgrader"):
        cell = cell.get(key) if isinstance(cell, dict) else None
    name = cell.get("grade_id") if isinstance(cell, dict) else None
    return name if isinstance(name, str) else None


def _source(cell: dict[str, Any]) -> str | None:
    source = cell.get("source")
    if isinstance(source, list) and all(isinstance(line, str) for line in source):
        source = "".join(source)
    if not isinstance(source, str):
        return None
    # A lone surrogate can be written in JSON but in no file: show what it stands for.
    return source.encode("utf-8", "backslashreplace").decode("utf-8")

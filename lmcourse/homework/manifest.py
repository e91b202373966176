"""What the grader needs to know about a unit, the secret part included."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nbformat

from .. import CourseError, paths
from . import notebooks
from .release import write_json
from .source import Cell, Source


@dataclass(frozen=True)
class Manifest:
    """A unit's cells and questions, as dictionaries of plain data.

    ``cells``, in the notebook's order: ``id``, ``kind`` (text, given, solution, test,
    written), ``question``, ``source`` (with solution or hidden checks, ready to run),
    ``released``, ``points``. ``questions``, by id: ``title``, ``section``, ``points``,
    ``minutes``, ``difficulty``, ``hints``, ``implements``, ``forbidden``, ``limits``,
    ``visible`` and ``hidden`` (how many checks), ``measured`` (``seconds``,
    ``memory_mb``); ``measured`` of the unit has ``gflops`` too.
    """

    unit: str
    notebook: str
    digest: str
    book_url: str
    cells: list[dict[str, Any]]
    questions: dict[str, dict[str, Any]]
    measured: dict[str, float]


def make(
    source: Source,
    cells: list[Cell],
    released: Path,
    measured: dict[str, Any],
    *,
    gflops: float,
    digest: str,
    book_url: str,
) -> Manifest:
    """Put together what is known about a unit."""
    node = nbformat.read(released / f"{source.unit}.ipynb", as_version=4)
    texts = {cell.metadata.nbgrader.grade_id: cell.source for cell in node.cells}
    rows = [
        {
            "id": cell.id,
            "kind": cell.kind,
            "question": cell.question,
            "source": notebooks.executable_checks(cell)
            if cell.kind == "test"
            else cell.source,
            "released": texts[cell.id],
            "points": cell.points,
        }
        for cell in cells
    ]
    questions = {}
    for exercise in source.exercises.values():
        facts = asdict(exercise)
        for key in ("id", "sketch", "given_methods"):
            del facts[key]
        own = measured.get(exercise.id, {})
        facts["visible"] = sum(own.get("visible", []))
        facts["hidden"] = sum(own.get("hidden", []))
        facts["measured"] = {key: own.get(key, 0) for key in ("seconds", "memory_mb")}
        questions[exercise.id] = facts
    work = {
        "seconds": sum(q["measured"]["seconds"] for q in questions.values()),
        "memory_mb": max(q["measured"]["memory_mb"] for q in questions.values()),
        "gflops": gflops,
    }
    notebook = f"{source.unit}.ipynb"
    return Manifest(source.unit, notebook, digest, book_url, rows, questions, work)


def save(manifest: Manifest) -> None:
    """Write a manifest where the grader looks for it."""
    write_json(paths.manifest(manifest.unit), asdict(manifest))


def load(unit: str) -> Manifest:
    """Read a unit's manifest.

    Raises:
        CourseError: if the unit was not released yet.
    """
    path = paths.manifest(unit)
    if not path.is_file():
        raise CourseError(f"{unit} is not released yet: run lmcourse release {unit}")
    return Manifest(**json.loads(path.read_text(encoding="utf-8")))

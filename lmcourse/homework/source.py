"""Read ``solutions/NN_name.md``, the only source of a unit's homework.

The file is a MyST notebook. What a cell is stands in its metadata: ``given``,
``exercise``, ``checks`` or, for markdown, ``written``. Everything that an author can
get wrong is refused here, with the file and the cell.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jupytext
from nbformat import NotebookNode

from .. import paths
from .text import (
    BEGIN_SOLUTION,
    END_SOLUTION,
    SourceError,
    count_regions,
    parse,
    tidy_checks,
)

UNIT = re.compile(r"\d\d_[a-z][a-z0-9_]*")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
LIMITS = {"seconds": 10, "memory_mb": 1024, "device": "cpu"}
DEVICES = ("cpu", "cuda")

_KEYS = {  # what each kind of cell may state, and whether it must
    "given": {"given": True},
    "exercise": {
        **dict.fromkeys(("exercise", "title", "section", "points", "minutes"), True),
        **dict.fromkeys(("difficulty", "hints", "sketch"), True),
        **dict.fromkeys(("implements", "limits", "forbidden", "given_methods"), False),
    },
    "checks": {"checks": True, "points": False},
    "written": {"written": True, "title": True, "points": True, "minutes": True},
}


@dataclass(frozen=True)
class Exercise:
    """What is stated about one exercise or written question."""

    id: str
    title: str
    points: float
    minutes: int
    section: str = ""
    difficulty: int = 1
    hints: list[str] = field(default_factory=list)
    sketch: str = ""
    implements: str = ""  # module.name in lmcore; empty if the body stands in the cell
    forbidden: list[str] = field(default_factory=list)
    given_methods: list[str] = field(default_factory=list)
    limits: dict[str, Any] = field(default_factory=lambda: dict(LIMITS))
    written: bool = False


@dataclass
class Cell:
    """One cell of the source: its kind, its question if it has one, and its text."""

    kind: str  # text, given, solution, test or written
    id: str
    source: str
    question: str = ""
    points: float = 0
    part: int = 1  # of a question with several test cells
    place: str = ""  # for messages: file and cell


@dataclass(frozen=True)
class Source:
    """A unit's homework as its author wrote it."""

    unit: str
    cells: list[Cell]
    exercises: dict[str, Exercise]

    def text_of(self, question: str) -> list[Cell]:
        """The text cells that belong to a question, the one with its heading first."""
        own: list[Cell] = []
        for cell in self.cells:
            if cell.question == question:
                break
            own = [] if cell.question else [*own, cell]
        texts = [cell for cell in own if cell.kind == "text"]
        starts = [i for i, cell in enumerate(texts) if has_heading(cell.source)]
        return texts[starts[-1] :] if starts else texts[-1:]


def has_heading(text: str) -> bool:
    """Whether a text begins with a heading."""
    return text.lstrip().startswith("#")


def read(unit: str) -> Source:
    """Read a unit's homework.

    Raises:
        SourceError: if the unit does not exist, or something in it is wrong.
    """
    path = paths.solutions(unit)
    if not UNIT.fullmatch(unit) or not path.is_file():
        raise SourceError(f"there is no homework {unit!r}: no solutions/{unit}.md")
    return read_file(path)


def read_file(path: Path) -> Source:
    """Read the homework in a file."""
    name = f"solutions/{path.name}"
    try:
        notebook = jupytext.read(path, fmt="md:myst")
    except Exception as error:
        message = " ".join(str(error).split())
        raise SourceError(f"{name} is no readable MyST notebook: {message}") from None
    source = Source(path.stem, [], {})
    for number, cell in enumerate(notebook.cells, start=1):
        _add_cell(source, cell, f"{name}, cell {number}")
    _check_whole(source, name)
    return source


def _add_cell(source: Source, cell: NotebookNode, place: str) -> None:
    facts, cells, text = dict(cell.metadata), source.cells, cell.source.strip("\n")
    stated = [kind for kind in _KEYS if kind in facts]
    if cell.cell_type == "markdown" and not stated:
        if text.strip():
            number = 1 + sum(known.kind == "text" for known in cells)
            cells.append(Cell("text", f"text_{number:02}", text, place=place))
        return
    place += f" ({stated[0]} {facts[stated[0]]})" if stated else ""
    kind = _kind(stated, cell.cell_type, place)
    _check_keys(kind, facts, place)
    name = _name(facts[kind], place)
    if kind == "given":
        parse(text, place)
        cells.append(Cell("given", f"given_{name}", text, place=place))
    elif kind == "checks":
        if name not in source.exercises or source.exercises[name].written:
            raise SourceError(
                f"{place}: there is no exercise {name} above these checks"
            )
        part = 1 + sum(
            known.kind == "test" and known.question == name for known in cells
        )
        cell_id = f"{name}_checks" + (f"_{part}" if part > 1 else "")
        points, text = facts.get("points", 0), tidy_checks(text, place)
        cells.append(Cell("test", cell_id, text, name, points, part, place))
    else:
        if name in source.exercises:
            raise SourceError(f"{place}: there are two exercises of this name")
        exercise = source.exercises[name] = _exercise(facts, kind, text, place)
        points = exercise.points if exercise.written else 0
        cell_kind = "written" if exercise.written else "solution"
        cells.append(Cell(cell_kind, name, text, name, points, place=place))


def _kind(kinds: list[str], cell_type: str, place: str) -> str:
    if len(kinds) != 1:
        options = "given, exercise or checks"
        raise SourceError(f"{place}: a code cell must state one of {options}")
    if (kinds[0] == "written") != (cell_type == "markdown"):
        raise SourceError(f"{place}: a {cell_type} cell cannot be {kinds[0]}")
    return kinds[0]


def _check_keys(kind: str, facts: dict[str, Any], place: str) -> None:
    known = _KEYS[kind]
    if unknown := sorted(set(facts) - set(known)):
        raise SourceError(
            f"{place}: unknown key {unknown[0]!r}; known are {', '.join(known)}"
        )
    for key, needed in known.items():
        if needed and facts.get(key) in (None, "", []):
            raise SourceError(f"{place}: {key} is missing")
    numbers = {"points": (int, float), "minutes": int, "difficulty": int}
    for key, types in numbers.items():
        x = facts.get(key, 1)
        if isinstance(x, bool) or not isinstance(x, types) or x <= 0:
            raise SourceError(f"{place}: {key} is {x!r}, expected a positive number")
    if facts.get("difficulty", 1) > 3:
        raise SourceError(f"{place}: difficulty is 1, 2 or 3")
    for key in ("hints", "forbidden", "given_methods"):
        x = facts.get(key, [])
        if not isinstance(x, list) or not all(isinstance(item, str) for item in x):
            raise SourceError(f"{place}: {key} must be a list of texts")


def _name(name: object, place: str) -> str:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise SourceError(f"{place}: a name has letters, digits and _ only")
    return name


def _exercise(facts: dict[str, Any], kind: str, source: str, place: str) -> Exercise:
    facts = dict(facts)
    name = _name(facts.pop(kind), place)
    limits = facts.pop("limits", None) or {}
    if not isinstance(limits, dict) or set(limits) - set(LIMITS):
        raise SourceError(f"{place}: limits may state {', '.join(LIMITS)}")
    for key in ("seconds", "memory_mb"):
        x = limits.get(key, 1)
        if isinstance(x, bool) or not isinstance(x, int) or x <= 0:
            raise SourceError(f"{place}: limits: {key} is {x!r}, expected 1 or more")
    if limits.get("device", "cpu") not in DEVICES:
        raise SourceError(f"{place}: limits: device is one of {', '.join(DEVICES)}")
    written = kind == "written"
    exercise = Exercise(name, limits=LIMITS | limits, written=written, **facts)
    if written:
        return exercise
    if exercise.implements and source.strip():
        raise SourceError(
            f"{place}: the body comes from lmcore ({exercise.implements}), so the cell "
            "must be empty; or leave out implements"
        )
    if not exercise.implements:
        if not count_regions(source, BEGIN_SOLUTION, END_SOLUTION, place):
            raise SourceError(
                f"{place}: neither implements nor a body with {BEGIN_SOLUTION}"
            )
        parse(source, place)
    return exercise


def _check_whole(source: Source, name: str) -> None:
    if not source.exercises:
        raise SourceError(f"{name}: there is no exercise in it")
    ids = [cell.id for cell in source.cells]
    if doubled := sorted({cell_id for cell_id in ids if ids.count(cell_id) > 1}):
        raise SourceError(f"{name}: two cells are called {doubled[0]}")
    for exercise in source.exercises.values():
        if not source.text_of(exercise.id):
            raise SourceError(f"{name}: exercise {exercise.id} has no text before it")
        if exercise.written:
            continue
        tests = [
            c for c in source.cells if c.kind == "test" and c.question == exercise.id
        ]
        if not tests:
            raise SourceError(f"{name}: exercise {exercise.id} has no checks")
        if len(tests) == 1 and not tests[0].points:
            tests[0].points = exercise.points
        total = sum(test.points for test in tests)
        if total != exercise.points or not all(test.points for test in tests):
            raise SourceError(
                f"{name}: the checks of {exercise.id} give {total:g} points, "
                f"it states {exercise.points:g}"
            )

"""Turn a unit's source into the notebook that nbgrader takes, solutions included."""

import ast
from dataclasses import replace
from typing import Any

import nbformat.v4
from nbformat import NotebookNode

from . import bodies
from .bodies import Graded
from .source import Cell, Exercise, Source, has_heading
from .text import BEGIN_SOLUTION, executable

STUBS = "stubs"  # the key in a cell's metadata that `release.StubSolutions` reads
SECONDS = (1, 3, 10, 30, 60, 120, 300, 600)
GIGABYTES = (1, 2, 4, 8, 16, 32)
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}

_ABOUT = """\
*Unit {chapter} of Language Models by Hand, the homework. This notebook is made from \
`solutions/{unit}.md` and `lmcore` by `lmcourse release {unit}`: change those, not \
this file.*

**How to work.** Read the text of an exercise, write your code where it says \
`YOUR CODE HERE`, run that cell, then run the checks below it. Each line with ✓ is a \
check that passes; the first one that fails says what differs and what may be wrong. \
Points are shared by the checks of a cell, the hidden ones included, and those run \
only when your work is graded. Where all hidden checks of a cell fail, its visible \
ones earn nothing: their answers stand in the notebook.

**What is graded** is what stands in the cells of the exercises, nothing else. If you \
need a helper function or another import, put it into the same cell as the exercise. \
Cells that you add and changes to other cells are yours to try things out.

Before you hand in, press *Validate* (or *Restart Kernel and Run All Cells*): your \
notebook must run from top to bottom."""


def completed(source: Source) -> list[Cell]:
    """All cells of the notebook, with the graded bodies taken from lmcore."""
    about = _ABOUT.format(unit=source.unit, chapter=chapter(source.unit))
    cells = [Cell("text", "text_00", about)]
    bound: set[str] = set()
    for cell in source.cells:
        if cell.kind == "given":
            for statement in ast.parse(cell.source).body:
                bound |= bodies.bound_names(statement)
        elif cell.kind == "solution" and not cell.source.strip():
            graded = graded_of(source, source.exercises[cell.question])
            cell = replace(cell, source=bodies.as_solution(graded, bound))
        cells.append(cell)
    cells.append(Cell("text", "text_99", "## How far you are"))
    cells.append(
        Cell(
            "given",
            "given_progress",
            "from lmcore.homework import progress\n\nprogress()",
        )
    )
    return cells


def chapter(unit: str) -> str:
    """The number of a unit's chapter."""
    return unit.partition("_")[0]


def graded_of(source: Source, exercise: Exercise) -> Graded:
    """Which function of lmcore an exercise asks for."""
    return Graded(
        exercise.implements, tuple(exercise.given_methods), _where(source, exercise)
    )


def all_graded(source: Source) -> list[Graded]:
    """All functions and classes of lmcore that a unit asks for."""
    return [
        graded_of(source, exercise)
        for exercise in source.exercises.values()
        if exercise.implements
    ]


def _where(source: Source, exercise: Exercise) -> str:
    return f"chapter {chapter(source.unit)}, section '{exercise.section}'"


def stubs(source: Source, cell: Cell) -> list[str]:
    """What stands in the place of every solution region of a cell."""
    exercise, found = source.exercises[cell.question], []
    tree = ast.parse(cell.source)
    for number, line in enumerate(cell.source.splitlines(), start=1):
        if line.strip() != BEGIN_SOLUTION:
            continue
        names = [
            node.name
            for node in ast.walk(tree)
            if isinstance(node, bodies.Definition)
            and node.lineno <= number <= node.end_lineno
        ]
        name = ".".join(names) or exercise.id
        stub = bodies.stub_lines(name, _where(source, exercise))
        found.append("\n".join(["# YOUR CODE HERE", *stub]))
    return found


def notebook(
    source: Source, cells: list[Cell], measured: dict[str, Any]
) -> NotebookNode:
    """Make the notebook with nbgrader's metadata.

    Args:
        source: the unit
        cells: from `completed`
        measured: per question ``visible``, ``hidden`` (lists with the number of checks
            of each test cell), ``seconds`` and ``memory_mb``
    """
    headings = {
        source.text_of(exercise.id)[0].id: exercise
        for exercise in source.exercises.values()
    }
    nodes = []
    for cell in cells:
        text, facts = cell.source, measured.get(cell.question, {})
        if exercise := headings.get(cell.id):
            text = with_label(text, exercise, measured.get(exercise.id, {}))
        if cell.kind == "test":
            n_visible, n_hidden = (
                facts[key][cell.part - 1] for key in ("visible", "hidden")
            )
            heading = [
                question_line(cell),
                f"# {shares(cell.points, n_visible, n_hidden)}",
            ]
            text = "\n".join([*heading, text])
        nodes.append(_node(source, cell, text))
    metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    return nbformat.v4.new_notebook(cells=nodes, metadata=metadata)


def _node(source: Source, cell: Cell, text: str) -> NotebookNode:
    is_code = cell.kind in ("given", "solution", "test")
    grades = cell.kind in ("test", "written")
    solves = cell.kind in ("solution", "written")
    about = {
        "cell_type": "code" if is_code else "markdown",
        "grade": grades,
        "grade_id": cell.id,
        "locked": not solves,
        "schema_version": 3,
        "solution": solves,
        "task": False,
    }
    if grades:
        about["points"] = cell.points
    metadata = {"nbgrader": about}
    if cell.kind == "solution":
        metadata[STUBS] = stubs(source, cell)
    make = nbformat.v4.new_code_cell if is_code else nbformat.v4.new_markdown_cell
    return make(text, id=cell.id, metadata=metadata)


def question_line(cell: Cell) -> str:
    """The first line of a test cell."""
    part = f", part={cell.part}" if cell.part > 1 else ""
    return f'question("{cell.question}"{part})'


def executable_checks(cell: Cell) -> str:
    """A test cell as it runs in the two worlds, hidden checks included."""
    return f"{question_line(cell)}\n{executable(cell.source)}"


def shares(points: float, n_visible: int, n_hidden: int) -> str:
    """How a cell's points are shared by its checks.

    >>> shares(3, 3, 2)
    '3 points: 3 checks visible, 2 hidden, 0.6 points each'
    >>> shares(0.5, 1, 0)
    '0.5 points: 1 check visible, 0 hidden, 0.5 points each'
    """
    total = f"{points:g} point{'s' * (points != 1)}"
    each = f"{points / (n_visible + n_hidden):.3g} points each"
    noun = "check" if n_visible == 1 else "checks"
    return f"{total}: {n_visible} {noun} visible, {n_hidden} hidden, {each}"


def band(x: float, limits: tuple[int, ...], unit: str) -> str:
    """A measured number as the band that readers are told.

    >>> band(0.2, (1, 3), "s"), band(2.0, (1, 3), "s"), band(9.0, (1, 3), "s")
    ('under 1 s', 'under 3 s', 'over 3 s')
    """
    for limit in limits:
        if x < limit:
            return f"under {limit} {unit}"
    return f"over {limits[-1]} {unit}"


def label(exercise: Exercise, measured: dict[str, Any]) -> str:
    """One line: points, minutes, difficulty, and what the checks cost."""
    parts = [
        f"**{exercise.points:g} point{'s' * (exercise.points != 1)}**",
        f"about {exercise.minutes} minute{'s' * (exercise.minutes != 1)}",
    ]
    if exercise.written:
        return " · ".join([*parts, "graded by hand"])
    parts.append(f"difficulty {exercise.difficulty} of 3")
    seconds = band(measured["seconds"], SECONDS, "s")
    memory = band(measured["memory_mb"] / 1000, GIGABYTES, "GB")
    parts.append(f"the checks run in {seconds} and {memory}")
    return " · ".join(parts)


def with_label(text: str, exercise: Exercise, measured: dict[str, Any]) -> str:
    """The text of an exercise with its label under the heading."""
    if not has_heading(text):
        text = f"## {exercise.title}\n\n{text.lstrip()}"
    heading, _, rest = text.lstrip().partition("\n")
    lines = [heading, "", label(exercise, measured)]
    if exercise.forbidden:
        names = ", ".join(f"`{name}`" for name in exercise.forbidden)
        lines += ["", f"Do it without {names}."]
    return "\n".join(lines) + "\n" + (f"\n{rest.strip()}" if rest.strip() else "")

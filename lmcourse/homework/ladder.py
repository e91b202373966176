"""The answer ladder: every exercise's hints, its sketch, perhaps its solution."""

import datetime
from dataclasses import dataclass

from .. import course
from . import bodies, manifest, notebooks, source
from .source import Cell, Exercise, Source
from .text import without_markers


@dataclass(frozen=True)
class Step:
    """An exercise as the book shows it.

    ``text`` is the exercise's Markdown without its heading. ``solution`` is Python, or
    Markdown if ``written``; it is None while the teacher's ``course.yml`` does not show
    it, so that what is built from this cannot leak it.
    """

    id: str
    title: str
    text: str
    hints: list[str]
    sketch: str
    solution: str | None
    written: bool
    points: float
    minutes: int
    difficulty: int
    section: str
    seconds: str  # the band of the measured time, such as "under 1 s"
    memory: str
    label: str  # all of this in one line of Markdown


def ladder(unit: str, today: datetime.date | None = None) -> list[Step]:
    """The steps of a unit, in the notebook's order.

    Args:
        unit: a unit that has been built
        today: decides whether its date has passed; today if not given

    Raises:
        CourseError: if the unit does not exist or was not built yet.
    """
    plan, known = source.read(unit), manifest.load(unit)
    shown = course.load().shows_solutions(unit, today)
    return [
        _step(plan, cell, known.questions[cell.question]["measured"], shown)
        for cell in plan.cells
        if cell.kind in ("solution", "written")
    ]


def _step(plan: Source, cell: Cell, measured: dict[str, float], shown: bool) -> Step:
    exercise = plan.exercises[cell.question]
    texts = [text.source for text in plan.text_of(exercise.id)]
    if source.has_heading(texts[0]):
        texts[0] = texts[0].lstrip().partition("\n")[2]
    return Step(
        id=exercise.id,
        title=exercise.title,
        text="\n\n".join(texts).strip(),
        hints=exercise.hints,
        sketch=exercise.sketch,
        solution=_solution(plan, exercise, cell) if shown else None,
        written=exercise.written,
        points=exercise.points,
        minutes=exercise.minutes,
        difficulty=exercise.difficulty,
        section=exercise.section,
        seconds=notebooks.band(measured["seconds"], notebooks.SECONDS, "s"),
        memory=notebooks.band(measured["memory_mb"] / 1000, notebooks.GIGABYTES, "GB"),
        label=notebooks.label(exercise, measured),
    )


def _solution(plan: Source, exercise: Exercise, cell: Cell) -> str:
    if exercise.implements:
        return bodies.plain_source(notebooks.graded_of(plan, exercise))
    return cell.source if exercise.written else without_markers(cell.source)

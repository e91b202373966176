"""What a teacher decides in ``course.yml``: units, dates, and solutions."""

import datetime
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from . import CourseError, paths

FILE = "course.yml"
KEYS = ("solutions", "units", "book_url")
SOLUTIONS = ("after-due", "never", "always")


@dataclass(frozen=True)
class Course:
    """A course: which units it has and what it shows of their solutions."""

    solutions: Literal["after-due", "never", "always"] = "after-due"
    units: dict[str, datetime.date | None] = field(default_factory=dict)  # due dates
    book_url: str = ""  # where the book is published, if it is

    def is_due(self, unit: str, today: datetime.date | None = None) -> bool:
        """Whether a unit's last day to hand in has passed."""
        due = self.units.get(unit)
        return due is not None and (today or datetime.date.today()) > due

    def shows_solutions(self, unit: str, today: datetime.date | None = None) -> bool:
        """Whether readers may see the solutions of a unit."""
        if self.solutions == "after-due":
            return self.is_due(unit, today)
        return self.solutions == "always"


def load() -> Course:
    """Read the project's ``course.yml``; without one, nothing is due and nothing shown.

    Raises:
        CourseError: if something in it is not understood.
    """
    path = paths.root() / FILE
    if not path.exists():
        return Course()
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise CourseError(f"{FILE} is not readable: {error}") from None
    if not isinstance(data, dict):
        raise CourseError(f"{FILE} must hold keys and values, such as solutions: never")
    if unknown := sorted(set(map(str, data)) - set(KEYS)):
        raise CourseError(
            f"{FILE}: unknown {unknown[0]!r}; known are {', '.join(KEYS)}"
        )
    solutions = data.get("solutions", "after-due")
    if solutions not in SOLUTIONS:
        options = ", ".join(SOLUTIONS)
        raise CourseError(f"{FILE}: solutions is {solutions!r}, expected {options}")
    units = data.get("units") or {}
    if not isinstance(units, dict):
        raise CourseError(f"{FILE}: units must be lines such as 08_attention: {{}}")
    dates = {unit: _due(unit, facts) for unit, facts in units.items()}
    return Course(solutions, dates, str(data.get("book_url") or "").rstrip("/"))


def _due(unit: object, facts: Any) -> datetime.date | None:
    facts = facts or {}
    if not isinstance(facts, dict) or set(facts) - {"due"}:
        raise CourseError(f"{FILE}: {unit} may state only due: year-month-day")
    due = facts.get("due")
    if due is not None and type(due) is not datetime.date:
        raise CourseError(f"{FILE}: {unit} is due {due!r}, expected year-month-day")
    return due

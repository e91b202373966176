"""Grades for the campus system: CSV for Canvas and Moodle, JSON for anything else.

Points given by hand and what lateness costs are in them, as the gradebook has them.
"""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmcourse import CourseError, paths

from . import handin, report
from .feedback import number
from .unit import load_result


def write(unit: str, form: str, path: Path | None = None) -> Path:
    """Write the grades of a unit.

    Args:
        unit: the unit's name
        form: ``canvas``, ``moodle`` or ``json``
        path: the file to write; beside the class report if not given

    Raises:
        CourseError: if the form is not known or nothing is graded.
    """
    if form not in FORMS:
        raise CourseError(f"no such form {form!r}; there are: {', '.join(FORMS)}")
    known = report.read_class(unit)
    people = handin.load_people(handin.people_path())
    kind = FORMS[form]
    path = path or paths.course() / "report" / unit / f"grades-{form}.{kind.suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(kind.make(known, people), encoding="utf-8", newline="")
    return path


def canvas(known: report.Class, people: dict[str, handin.Person]) -> str:
    """The file for Canvas, Grades, Import.

    A student who did not come from a Canvas zip is named by the login. The line of
    possible points is the one that Canvas itself exports.
    """
    rows = [
        ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", known.unit],
        ["    Points Possible", "", "", "", "", number(known.points)],
    ]
    for row in known.rows:
        person = people.get(row.student, handin.Person(""))
        ours = person.system == "canvas"
        name = person.name or row.student
        login = "" if ours else row.student
        rows.append([name, person.user if ours else "", "", login, "", _total(row)])
    return _csv(rows)


def moodle(known: report.Class, people: dict[str, handin.Person]) -> str:
    """The file for Moodle: an assignment's grading worksheet.

    A student who did not come from a Moodle zip is named by the user name; import that
    in the gradebook, and map *Identifier* to *Username*.
    """
    rows = [["Identifier", "Full name", "Grade", "Maximum Grade", "Feedback comments"]]
    for row in known.rows:
        person = people.get(row.student, handin.Person(""))
        ours = person.system == "moodle"
        own = f"Participant {person.user}" if ours else row.student
        waiting = None in row.scores.values()
        comment = "Not all questions are graded yet." if waiting else ""
        name = person.name or row.student
        rows.append([own, name, _total(row), number(known.points), comment])
    return _csv(rows)


def as_json(known: report.Class, people: dict[str, handin.Person]) -> str:
    """Everything that is known, for a program to read."""
    data = {
        "unit": known.unit,
        "points": known.points,
        "questions": {
            name: {"title": facts["title"], "points": facts["points"]}
            for name, facts in known.questions.items()
        },
        "students": [_student(known.unit, row, people) for row in known.rows],
    }
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def _student(
    unit: str, row: report.Row, people: dict[str, handin.Person]
) -> dict[str, Any]:
    kept = load_result(unit, row.student)
    result = kept["result"] if kept else {"status": "unknown", "questions": {}}
    facts = result["questions"].items()
    return {
        "student": row.student,
        "campus": vars(people[row.student]) if row.student in people else None,
        "status": result["status"],
        "total": row.total,
        "late_penalty": row.penalty,
        "scores": row.scores,
        "mistakes": {name: own["mistakes"] for name, own in facts if own["mistakes"]},
        "flags": {name: own["flags"] for name, own in facts if own["flags"]},
    }


def _total(row: report.Row) -> str:
    return number(row.total)


def _csv(rows: list[list[str]]) -> str:
    lines: list[str] = []

    class Lines:
        write = staticmethod(lines.append)

    csv.writer(Lines).writerows([[report.no_formula(x) for x in row] for row in rows])
    return "".join(lines)


@dataclass(frozen=True)
class Form:
    """A form of export: its file's suffix, and what makes the text."""

    suffix: str
    make: Callable[[report.Class, dict[str, handin.Person]], str]


FORMS = {
    "canvas": Form("csv", canvas),
    "moodle": Form("csv", moodle),
    "json": Form("json", as_json),
}

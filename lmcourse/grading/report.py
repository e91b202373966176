"""The class report: what the class knows and misunderstood, what a person must see.

Points come from nbgrader's gradebook, points given by hand included; mistakes, refusals
and flags from the results. The page needs no other file and nothing from the network.
"""

import csv
import statistics
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from lmcourse import CourseError, homework, mistakes, paths

from . import messages, similarity
from .feedback import number
from .unit import load_result

ENDS = {
    "timeout": "did not end in time",
    "crash": "was killed",
    "exit": "ended Python",
    "too much": "gave too much data",
    "lost": "could not run",
}


@dataclass(frozen=True)
class Row:
    """One student: points per question; None where a person has not graded yet.

    ``total`` is what counts: ``penalty``, the cost of handing in late, is taken off.
    """

    student: str
    scores: dict[str, float | None]
    total: float
    penalty: float = 0.0


@dataclass(frozen=True)
class Class:
    """All that the report shows."""

    unit: str
    questions: dict[str, dict[str, Any]]
    rows: list[Row]
    mistakes: list[dict[str, Any]]
    for_a_person: list[dict[str, str]]
    similar: list[similarity.Group] = field(default_factory=list)

    @property
    def points(self) -> float:
        """The points of the whole unit."""
        return sum(facts["points"] for facts in self.questions.values())

    def exercise(self, name: str) -> dict[str, Any]:
        """How the class did in one exercise: graded, mean, and how many had all."""
        scores = [row.scores[name] for row in self.rows]
        graded = [score for score in scores if score is not None]
        points = self.questions[name]["points"]
        return {
            "title": self.questions[name]["title"],
            "points": points,
            "graded": len(graded),
            "mean": statistics.fmean(graded) if graded else None,
            "all": sum(score == points for score in graded),
        }

    def distribution(self, n_bands: int = 10) -> list[dict[str, Any]]:
        """How many students have how many points, in bands of equal width."""
        width = self.points / n_bands
        counts = Counter(min(int(row.total / width), n_bands - 1) for row in self.rows)
        return [
            {"low": band * width, "high": (band + 1) * width, "count": counts[band]}
            for band in range(n_bands)
        ]


def read_class(unit: str) -> Class:
    """Collect what is known about a graded unit.

    Raises:
        CourseError: if no submission was graded yet.
    """
    made = asdict(homework.load_manifest(unit))
    question_of = {
        cell["id"]: cell["question"]
        for cell in made["cells"]
        if cell["kind"] in ("test", "written")
    }
    rows = _rows(unit, question_of)
    if not rows:
        raise CourseError(
            f"no submission of {unit} is graded: run lmcourse grade {unit}"
        )
    results = {}
    for row in rows:
        if (data := load_result(unit, row.student)) is not None:
            results[row.student] = data["result"]
    return Class(
        unit,
        made["questions"],
        rows,
        _mistakes(unit, results, made["questions"]),
        _for_a_person(rows, results, made["questions"]),
        similarity.of_class(made["cells"], unit, [row.student for row in rows]),
    )


def _rows(unit: str, question_of: dict[str, str]) -> list[Row]:
    """Read the gradebook in a few queries, whatever the size of the class."""
    from . import gradebook

    if not gradebook.exists():
        return []
    with gradebook.open_gradebook() as book:
        given = gradebook.marks(book, unit)
    names = list(dict.fromkeys(question_of.values()))
    rows = []
    for student in sorted(given):
        scores: dict[str, list[float | None]] = defaultdict(list)
        for cell, mark in given[student].cells.items():
            scores[question_of[cell]].append(mark.score)
        rows.append(_row(student, scores, names, given[student].penalty))
    return rows


def _row(
    student: str,
    own: dict[str, list[float | None]],
    names: list[str],
    penalty: float,
) -> Row:
    summed = {
        name: None if None in own[name] else round(sum(own[name]), 2) for name in names
    }
    total = max(0.0, sum(s for s in summed.values() if s) - penalty)
    return Row(student, summed, round(total, 2), penalty)


def _mistakes(
    unit: str, results: dict[str, Any], questions: dict[str, Any]
) -> list[dict[str, Any]]:
    """The recognised mistakes, the most frequent first."""
    says = {known.name: known.says for known in mistakes.load(unit).mistakes}
    students: dict[str, set[str]] = defaultdict(set)
    where: dict[str, dict[str, None]] = defaultdict(dict)
    for student, result in results.items():
        for question, facts in result["questions"].items():
            for name in facts["mistakes"]:
                students[name].add(student)
                where[name][questions[question]["title"]] = None
    order = sorted(students, key=lambda name: (-len(students[name]), name.lower()))
    return [
        {
            "name": messages.in_words(name),
            "says": says.get(name, ""),
            "where": ", ".join(where[name]),
            "count": len(students[name]),
        }
        for name in order
    ]


def _for_a_person(
    rows: list[Row], results: dict[str, Any], questions: dict[str, Any]
) -> list[dict[str, str]]:
    """What a machine cannot decide, or should not alone."""
    found = []

    def add(student: str, where: str, what: str) -> None:
        found.append({"student": student, "where": where, "what": what})

    for row in rows:
        result = results.get(row.student, {})
        if result.get("status") == "refused":
            add(row.student, "the notebook", result["refusal"]["message"])
            continue
        for name, score in row.scores.items():
            if score is None:
                add(row.student, questions[name]["title"], "to be graded by hand")
        for name, facts in result.get("questions", {}).items():
            if facts["message"]:
                add(row.student, questions[name]["title"], facts["message"])
            for flag in facts["flags"]:
                add(row.student, questions[name]["title"], flag)
        for verdict in result.get("tests", {}).values():
            if verdict["end"] in ENDS:
                title = questions[verdict["question"]]["title"]
                add(row.student, title, f"the checks: {ENDS[verdict['end']]}")
        for name, cell in result.get("cells", {}).items():
            if cell["end"] in ENDS:
                title = questions[name]["title"] if name in questions else name
                add(row.student, title, f"the cell: {ENDS[cell['end']]}")
    return found


def write_report(unit: str) -> Path:
    """Write ``index.html`` and ``grades.csv``; returns the page's path."""
    known = read_class(unit)
    folder = paths.course() / "report" / unit
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(known, folder / "grades.csv")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    totals = [row.total for row in known.rows]
    page = environment.get_template("report.html").render(
        known=known,
        exercises=[known.exercise(name) for name in known.questions],
        bands=known.distribution(),
        mean=statistics.fmean(totals),
        median=statistics.median(totals),
    )
    path = folder / "index.html"
    path.write_text(page, encoding="utf-8")
    return path


def write_csv(known: Class, path: Path) -> None:
    """One line per student: points per question, the total, and the most possible."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["student", *known.questions, "total", "points"])
        for row in known.rows:
            scores = [number(row.scores[name]) for name in known.questions]
            student = no_formula(row.student)
            total = number(row.total)
            writer.writerow([student, *scores, total, number(known.points)])


def no_formula(text: str) -> str:
    """Keep a spreadsheet from taking a name for a formula."""
    return f"'{text}" if text.startswith(tuple("=+-@\t\r")) else text

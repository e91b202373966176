"""Which students' work is much alike: a hint for a person, never a verdict.

What everybody was given, and lines that many have, say nothing. Of the rest, students
who share several lines are compared with RapidFuzz. Only those pairs are, so a class of
ten thousand takes seconds, not the fifty million comparisons of all with all.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from rapidfuzz import fuzz

from lmcourse import paths

MIN_LENGTH = 12  # characters of a line that can tell anything
MIN_SHARED = 4  # unusual lines in common
MIN_PERCENT = 80
MANY = 12  # students; a line that more of them have is not unusual
MAX_GROUPS = 50


@dataclass(frozen=True)
class Group:
    """Students whose unusual lines are alike, by so many percent."""

    students: list[str]
    percent: int
    lines: int


def of_class(
    cells: list[dict[str, Any]], unit: str, students: list[str]
) -> list[Group]:
    """Compare the graded notebooks of a class.

    Args:
        cells: the manifest's cells
        unit: the unit's name
        students: whose
    """
    given = [cell[key] for cell in cells for key in ("source", "released")]
    own = {cell["id"] for cell in cells if cell["kind"] in ("solution", "written")}
    return find({student: _answers(unit, student, own) for student in students}, given)


def _answers(unit: str, student: str, own: set[str]) -> list[str]:
    path = paths.autograded(unit, student)
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except FileNotFoundError:
        return []
    return [
        "".join(cell["source"])
        for cell in cells
        if cell["metadata"].get("nbgrader", {}).get("grade_id") in own
    ]


def find(answers: dict[str, list[str]], given: Iterable[str] = ()) -> list[Group]:
    """Find students whose answers are alike, the most alike first.

    Args:
        answers: the texts of each student
        given: texts that everybody has
    """
    known = {line for text in given for line in _lines(text)}
    same: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for student, texts in sorted(answers.items()):
        own = tuple(x for text in texts for x in _lines(text) if x not in known)
        same[own].append(student)
    same.pop((), None)
    groups = [
        Group(students, 100, len(set(lines)))
        for lines, students in same.items()
        if len(students) > 1 and len(set(lines)) >= MIN_SHARED
    ]
    groups += _alike({students[0]: lines for lines, students in same.items()})
    groups.sort(key=lambda group: (-group.percent, -group.lines, group.students))
    return groups[:MAX_GROUPS]


def _alike(lines_of: dict[str, tuple[str, ...]]) -> list[Group]:
    """Pairs that share unusual lines, and how much alike those are as a whole."""
    having: dict[str, list[str]] = defaultdict(list)
    for student, lines in lines_of.items():
        for line in set(lines):
            having[line].append(student)
    unusual = {line for line, students in having.items() if len(students) <= MANY}
    shared = Counter(pair for line in unusual for pair in combinations(having[line], 2))
    found = []
    for (one, other), n_shared in shared.items():
        if n_shared < MIN_SHARED:
            continue
        texts = (
            "\n".join(line for line in lines_of[student] if line in unusual)
            for student in (one, other)
        )
        percent = int(fuzz.ratio(*texts))
        if percent >= MIN_PERCENT:
            found.append(Group([one, other], percent, n_shared))
    return found


def _lines(text: str) -> list[str]:
    """The lines of a text, spaces apart, without those that are short."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return [line for line in lines if len(line) >= MIN_LENGTH]

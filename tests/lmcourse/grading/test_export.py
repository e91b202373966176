"""Grades for campus systems."""

import csv
import io
import json

import pytest

from lmcourse import CourseError, paths
from lmcourse.grading import export, handin, report

UNIT = "07_tiny"
QUESTIONS = {
    "average": {"title": "The average", "points": 4},
    "why": {"title": "Why", "points": 2},
}
ROWS = [
    report.Row("lovelaceada-101", {"average": 4, "why": 1.5}, 5.5),
    report.Row("Zoë-O-Brien-202", {"average": 3.25, "why": None}, 2.25, 1),
    report.Row("=1+1", {"average": 0, "why": 0}, 0),
]
PEOPLE = {
    "lovelaceada-101": handin.Person("canvas", "101", "lovelaceada"),
    "Zoë-O-Brien-202": handin.Person("moodle", "202", "Zoë O'Brien"),
}


@pytest.fixture
def known(here, monkeypatch):
    made = report.Class(UNIT, QUESTIONS, ROWS, [], [])
    monkeypatch.setattr(report, "read_class", lambda unit: made)
    handin.save_people(handin.people_path(), PEOPLE)
    yield made
    handin.people_path().unlink()


def read(path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_canvas_knows_its_students_by_number(known):
    points, ada, zoe, formula = read(export.write(UNIT, "canvas"))
    assert list(ada) == [
        *("Student", "ID", "SIS User ID", "SIS Login ID", "Section", UNIT)
    ]
    assert (points["Student"].strip(), points[UNIT]) == ("Points Possible", "6")
    assert (ada["Student"], ada["ID"], ada[UNIT]) == ("lovelaceada", "101", "5.5")
    assert (zoe["ID"], zoe["SIS Login ID"], zoe[UNIT]) == (
        "",
        "Zoë-O-Brien-202",
        "2.25",
    )
    assert formula["Student"] == formula["SIS Login ID"] == "'=1+1"


def test_moodle_s_worksheet_names_participants(known):
    ada, zoe, _ = read(export.write(UNIT, "moodle"))
    assert zoe == {
        "Identifier": "Participant 202",
        "Full name": "Zoë O'Brien",
        "Grade": "2.25",
        "Maximum Grade": "6",
        "Feedback comments": "Not all questions are graded yet.",
    }
    assert (ada["Identifier"], ada["Feedback comments"]) == ("lovelaceada-101", "")


def test_json_holds_all(known, tmp_path):
    path = export.write(UNIT, "json", tmp_path / "own" / "grades.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["points"] == 6
    assert data["questions"]["average"] == {"title": "The average", "points": 4}
    zoe = data["students"][1]
    assert zoe["scores"] == {"average": 3.25, "why": None}
    assert (zoe["total"], zoe["late_penalty"]) == (2.25, 1)
    assert zoe["campus"]["name"] == "Zoë O'Brien"


def test_bad_use_is_told(here):
    with pytest.raises(CourseError, match="canvas, moodle, json"):
        export.write(UNIT, "excel")
    with pytest.raises(CourseError, match=f"run lmcourse grade {UNIT}"):
        export.write(UNIT, "canvas")


def test_it_lies_beside_the_report(known):
    path = export.write(UNIT, "canvas")
    assert path == paths.course() / "report" / UNIT / "grades-canvas.csv"

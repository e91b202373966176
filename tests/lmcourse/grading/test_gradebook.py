"""The bulk writer: the rows that nbgrader itself writes, and nothing lost."""

import datetime
import json
import subprocess
import sys

import pytest
from nbgrader.api import Comment, Grade, SubmittedAssignment, SubmittedNotebook
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from lmcourse import CourseError, paths
from lmcourse.grading import engine, gradebook, handback, intake, notebooks
from lmcourse.grading.unit import Unit

UNIT = "07_tiny"
MISTAKEN = "def average(x):\n    return x.sum(-1) / (x.shape[-1] - 1)"
HALF = "def average(x):\n    return x.sum(-1) / x.shape[-1] if x.shape[-1] > 1 else x"


def rows() -> dict:
    """All that the gradebook holds about submissions, but for the ids."""
    with gradebook.open_gradebook() as book:
        return {
            submission.student_id: {
                "time": str(submission.timestamp),
                "late": [n.late_submission_penalty for n in submission.notebooks],
                "grades": sorted(
                    (
                        *(g.name, g.auto_score, g.manual_score, g.extra_credit),
                        *(g.needs_manual_grade, g.max_score),
                    )
                    for notebook in submission.notebooks
                    for g in notebook.grades
                ),
                "comments": sorted(
                    (c.name, str(c.auto_comment), str(c.manual_comment))
                    for notebook in submission.notebooks
                    for c in notebook.comments
                ),
            }
            for submission in book.assignment_submissions(UNIT)
        }


def notebook(student: str) -> list:
    made = notebooks.read(paths.autograded(UNIT, student))
    cells = [(c.source, c.get("outputs"), c.metadata.nbgrader) for c in made.cells]
    return [cells, made.metadata.kernelspec]


@pytest.fixture
def write(hand_in, handed_in, worker):
    """Grade a notebook and write it, without the engine."""
    unit = Unit(UNIT)

    def put(**contents: bytes) -> None:
        graded = {}
        for student, content in contents.items():
            hand_in(student, content)
            result = worker.grade(content)
            unit.save(student, unit.key(content), result)
            graded[student] = result, unit.read(content)
        handback.write_batch(UNIT, graded)

    return put


@pytest.mark.slow
def test_rows_and_notebooks_are_those_of_nbgrader_autograde(
    sandboxed, hand_in, handed_in
):
    hand_in("ada")
    hand_in("bob", handed_in(average=MISTAKEN))
    (released,) = [c for c in Unit(UNIT).manifest["cells"] if c["id"] == "why"]
    hand_in("chen", handed_in(average=HALF, why=released["released"]))
    when = paths.course() / "submitted" / "ada" / UNIT / "timestamp.txt"
    when.write_text("2027-01-05 10:00:00 CET")
    (paths.course() / "gradebook.db").unlink()  # nbgrader makes it
    command = [sys.executable, "-m", "nbgrader", "autograde", UNIT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    theirs, books = rows(), {s: notebook(s) for s in ("ada", "bob", "chen")}
    assert theirs["chen"]["comments"][-1] == ("why", "No response.", "None")
    assert theirs["ada"]["time"] != "None"
    (paths.course() / "gradebook.db").unlink()
    paths.autograded(UNIT, "ada").unlink()
    assert engine.grade_folder(UNIT).graded == 0  # the results are kept and shared
    assert rows() == theirs
    assert {student: notebook(student) for student in books} == books


def test_what_a_person_gave_stays_when_the_work_is_graded_again(write, handed_in):
    write(ada=handed_in(average=MISTAKEN), bob=handed_in())
    with gradebook.open_gradebook() as book:
        grade = book.find_grade("average_checks", UNIT, UNIT, "ada")
        grade.manual_score, grade.extra_credit = 2.5, 0.5
        grade.needs_manual_grade = False
        comment = book.find_comment("why", UNIT, UNIT, "ada")
        comment.manual_comment = "Well said."
        book.db.commit()
    write(ada=handed_in(), bob=handed_in(average=MISTAKEN))
    after = rows()
    assert ("average_checks", 4.0, 2.5, 0.5, True, 4.0) in after["ada"]["grades"]
    assert ("why", "None", "Well said.") in after["ada"]["comments"]
    assert ("average_checks", 0.0, None, None, False, 4.0) in after["bob"]["grades"]
    with gradebook.open_gradebook() as book:
        for model in (SubmittedAssignment, SubmittedNotebook):
            assert len(book.db.scalars(select(model)).all()) == 2
        # two test cells and the written one; two solutions and the written one
        assert len(book.db.scalars(select(Grade)).all()) == 2 * 3
        assert len(book.db.scalars(select(Comment)).all()) == 2 * 3
    page = paths.feedback(UNIT, "ada").read_text(encoding="utf-8")
    assert "Well said." in page
    assert "3 of 4" in page


def test_lateness_is_left_to_nbgrader_s_plugin(write, handed_in, hand_in, monkeypatch):
    settings = gradebook.settings()
    settings.LateSubmissionPlugin.penalty_method = "zero"
    monkeypatch.setattr(gradebook, "settings", lambda: settings)
    with gradebook.open_gradebook() as book:
        book.find_assignment(UNIT).duedate = datetime.datetime(2027, 1, 5)
        book.db.commit()
    for student, day in (("ada", 4), ("bob", 6)):
        path = hand_in(student).with_name("timestamp.txt")
        path.write_text(f"2027-01-0{day} 10:00 UTC")
    write(ada=handed_in(), bob=handed_in())
    assert rows()["ada"]["late"] == [None]
    assert rows()["bob"]["late"] == [7.0]
    page = paths.feedback(UNIT, "bob").read_text(encoding="utf-8")
    assert "0 of 9 points" in page
    assert "7 points were taken off" in page


def test_a_batch_is_written_whole_or_not_at_all(write, handed_in, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("the power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(gradebook.Writer, "_punish_lateness", fail)
        with pytest.raises(RuntimeError, match="power"):
            write(ada=handed_in())
    assert rows() == {}
    write(ada=handed_in())
    assert list(rows()) == ["ada"]


def test_a_busy_database_is_asked_again(write, handed_in, monkeypatch):
    attempts, once = [], gradebook._in_transaction

    def busy_at_first(book, do):
        attempts.append(1)
        if len(attempts) < 3:
            raise OperationalError("INSERT", {}, Exception("database is locked"))
        return once(book, do)

    monkeypatch.setattr(gradebook, "_in_transaction", busy_at_first)
    monkeypatch.setattr(gradebook, "WAITS", (0.01, 0.01, 0.01))
    write(ada=handed_in())
    assert len(attempts) == 3
    assert len(rows()["ada"]["grades"]) == 3


def test_a_database_that_cannot_be_read_is_named(here, hand_in):
    hand_in("ada")
    (paths.course() / "gradebook.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(CourseError, match=r"gradebook\.db cannot be used: .*database"):
        handback.complete(UNIT)


def test_a_password_is_not_shown(here):
    url = "postgresql+psycopg://teacher:geheim@127.0.0.1:1/course"
    with pytest.raises(CourseError) as caught, gradebook.open_gradebook(url):
        pass
    assert "geheim" not in str(caught.value)
    assert "127.0.0.1:1" in str(caught.value)


def test_the_address_comes_from_nbgrader_s_own_settings(here, monkeypatch):
    assert gradebook.database_url() == f"sqlite:///{paths.course()}/gradebook.db"
    config = here / "nbgrader_config.py"
    before = config.read_text()
    config.write_text(before + '\nc.CourseDirectory.db_url = "sqlite:////tmp/x.db"\n')
    try:
        assert gradebook.database_url() == "sqlite:////tmp/x.db"
    finally:
        config.write_text(before)


def test_a_refused_submission_has_rows_and_a_page(write, here):
    write(emil=b"this is no notebook")
    grades = {name: score for name, score, *_ in rows()["emil"]["grades"]}
    assert grades == {"average_checks": 0, "causal_mask_checks": 0, "why": 0}
    page = paths.feedback(UNIT, "emil").read_text(encoding="utf-8")
    assert "not JSON" in page


def test_the_notebook_that_is_written_is_valid(write, handed_in):
    import nbformat

    write(ada=handed_in(average=HALF))
    path = paths.autograded(UNIT, "ada")
    nbformat.validate(nbformat.read(path, as_version=4))
    assert path.stat().st_mode & 0o222 == 0  # nobody's to change, as nbgrader's own


def test_intake_and_writer_agree_on_what_is_missing(write, handed_in):
    made = json.loads(handed_in())
    made["cells"] = [
        c
        for c in made["cells"]
        if c["metadata"].get("nbgrader", {}).get("grade_id") != "average"
    ]
    content = json.dumps(made).encode()
    assert intake.read(content, Unit(UNIT).manifest).missing == ["average"]
    write(ada=content)
    page = paths.feedback(UNIT, "ada").read_text(encoding="utf-8")
    assert "not in your notebook any more" in page

"""A class of the tiny unit: gradebook, feedback and report."""

import csv
from pathlib import Path

import pytest

from lmcourse import CourseError, homework, paths
from lmcourse.grading import engine, gradebook, receipts, report, sandbox, seeds
from lmcourse.grading.unit import Unit, load_result

UNIT = "07_tiny"
MISTAKEN = "def average(x):\n    return x.sum(-1) / (x.shape[-1] - 1)"
HALF = "def average(x):\n    return x.sum(-1) / x.shape[-1] if x.shape[-1] > 1 else x"
SHOWS_OFF = "def average(x): return x\nprint('<script>alert(1)</script>')"


@pytest.fixture
def handed(here, handed_in, tmp_path):
    """A folder with a class of six, somewhere else on the disk."""
    contents = {
        "ada": handed_in(),
        "bob": handed_in(average=MISTAKEN),
        "chen": handed_in(average=HALF),
        "dora": handed_in(average=SHOWS_OFF),
        "emil": b"this is no notebook",
        "fay": handed_in(average="def average(x): return x.mean(-1)"),
    }
    for student, content in contents.items():
        folder = tmp_path / "handed" / student / UNIT
        folder.mkdir(parents=True)
        (folder / f"{UNIT}.ipynb").write_bytes(content)
    (tmp_path / "handed/ada" / UNIT / "timestamp.txt").write_text(
        "2027-01-05 10:00 UTC"
    )
    (tmp_path / "handed/ada" / UNIT / "virus.sh").write_text("rm -rf /")
    return tmp_path / "handed"


def book_scores() -> dict[str, float]:
    with gradebook.open_gradebook() as book:
        return {s.student.id: s.score for s in book.assignment_submissions(UNIT)}


EXPECTED = {"ada": 7, "bob": 3, "chen": 6, "dora": 3, "emil": 0, "fay": 3}


def test_a_class_from_folder_to_report(sandboxed, handed, hand_in):
    """One class, graded once, looked at from all sides."""
    before = sorted(handed.rglob("*"))
    summary = engine.grade_folder(UNIT, handed)
    assert (summary.submissions, summary.graded, summary.refused) == (6, 6, 1)
    assert book_scores() == EXPECTED
    _the_folder_stays_and_plain_files_were_copied(handed, before)
    _feedback_shows_messages_and_no_hidden_check()
    _report_and_csv_agree_with_the_gradebook()
    _hand_given_points_stay_and_a_second_run_grades_nothing()
    hand_in("bob")  # again, and right this time
    assert engine.grade_folder(UNIT).graded == 1
    assert book_scores() == EXPECTED | {"ada": 8.5, "bob": 7}


def _the_folder_stays_and_plain_files_were_copied(handed: Path, before: list[Path]):
    assert sorted(handed.rglob("*")) == before
    kept = paths.submitted(UNIT, "ada").parent
    assert {p.name for p in kept.iterdir()} == {f"{UNIT}.ipynb", "timestamp.txt"}
    with gradebook.open_gradebook() as book:
        submission = book.find_submission(UNIT, "ada")
        assert str(submission.timestamp) == "2027-01-05 10:00:00"


def _feedback_shows_messages_and_no_hidden_check():
    pages = {
        student: paths.feedback(UNIT, student).read_text(encoding="utf-8")
        for student in EXPECTED
    }
    for page in pages.values():
        assert "generator(1)" not in page  # stands in hidden checks only
        assert "BEGIN HIDDEN" not in page
        assert "<script>alert(1)" not in page
    assert "You divided by one too few." in pages["bob"]
    assert 'one lonely number <span class="faint">(hidden)</span>' in pages["chen"]
    assert "without torch.mean" in pages["fay"]
    assert "not JSON" in pages["emil"]
    assert "&lt;script&gt;alert(1)" in pages["dora"]


def _report_and_csv_agree_with_the_gradebook():
    page = report.write_report(UNIT)
    with open(page.parent / "grades.csv", newline="", encoding="utf-8") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    assert {name: float(row["total"]) for name, row in rows.items()} == EXPECTED
    assert rows["chen"] == {
        "student": "chen",
        "average": "3",
        "causal_mask": "3",
        "why": "",
        "total": "6",
        "points": "9",
    }
    known = report.read_class(UNIT)
    assert known.exercise("average")["mean"] == pytest.approx((4 + 0 + 3) / 6)
    assert known.exercise("average")["all"] == 1
    assert sum(band["count"] for band in known.distribution()) == 6
    assert [(m["name"], m["count"]) for m in known.mistakes] == [
        ("divides by one too few", 1)
    ]
    told = {(item["student"], item["where"]) for item in known.for_a_person}
    assert ("emil", "the notebook") in told
    assert ("ada", "Why") in told
    assert ("fay", "The average") in told
    text = page.read_text(encoding="utf-8")
    assert "You divided by one too few." in text
    assert "No two students share many lines" in text
    assert "http://" not in text
    assert "https://" not in text
    assert "<script" not in text


def _hand_given_points_stay_and_a_second_run_grades_nothing():
    with gradebook.open_gradebook() as book:
        grade = book.find_grade("why", UNIT, UNIT, "ada")
        grade.manual_score, grade.needs_manual_grade = 1.5, False
        book.db.commit()
    again = engine.grade_folder(UNIT)
    assert (again.submissions, again.graded) == (6, 0)
    assert book_scores() == EXPECTED | {"ada": 8.5}
    assert report.read_class(UNIT).rows[0].total == 8.5


@pytest.mark.parametrize("timestamp", ["", "yesterday", "9" * 150, "\x00\xff"])
def test_a_malformed_timestamp_is_left_out(timestamp, tmp_path):
    (tmp_path / "timestamp.txt").write_text(timestamp, encoding="latin-1")
    assert receipts.timestamp(tmp_path) is None


def test_without_a_sandbox_strangers_are_refused(hand_in, monkeypatch):
    hand_in("ada")
    monkeypatch.setattr(sandbox, "why_unavailable", lambda: "macOS has no namespaces")
    with pytest.raises(sandbox.NoSandbox, match="macOS has no namespaces"):
        engine.grade_folder(UNIT)
    assert load_result(UNIT, "ada") is None


@pytest.mark.slow
def test_unsafe_says_what_it_gives_up(hand_in, monkeypatch):
    hand_in("ada")
    monkeypatch.setattr(sandbox, "why_unavailable", lambda: "macOS has no namespaces")
    summary = engine.grade_folder(UNIT, unsafe=True)
    assert engine.UNSAFE in str(summary)
    assert book_scores() == {"ada": 7}


def test_bad_use_names_what_to_do(here, tmp_path):
    with pytest.raises(CourseError, match=f"no unit '99_none'.*{UNIT}"):
        engine.grade_folder("99_none")
    with pytest.raises(CourseError, match=f"no submissions.*<student>/{UNIT}"):
        engine.grade_folder(UNIT, tmp_path)
    with pytest.raises(CourseError, match=f"run lmcourse grade {UNIT}"):
        report.write_report(UNIT)
    solutions = paths.solutions(UNIT)
    text = solutions.read_text(encoding="utf-8")
    solutions.write_text(text + "\nMore.\n", encoding="utf-8")
    try:
        with pytest.raises(CourseError, match=f"older.*lmcourse release {UNIT}"):
            engine.grade_folder(UNIT)
    finally:
        solutions.write_text(text, encoding="utf-8")


def test_an_exercise_for_a_gpu_is_not_graded_on_something_else(hand_in, monkeypatch):
    hand_in("ada")
    made = homework.load_manifest(UNIT)
    made.questions["average"]["limits"]["device"] = "cuda"
    monkeypatch.setattr(homework, "load_manifest", lambda unit: made)
    with pytest.raises(CourseError, match=f"average of {UNIT} asks for a GPU"):
        engine.grade_folder(UNIT)
    assert Unit(UNIT, device="cuda").manifest["questions"]["average"]


def test_folders_that_are_no_students_are_left_out(hand_in, tmp_path):
    path = hand_in("ada")
    folder = path.parents[2]
    (folder / ".hidden" / UNIT).mkdir(parents=True)
    (folder / "a*b" / UNIT).mkdir(parents=True)
    (folder / "link").symlink_to(path.parents[1])
    notes: list[str] = []
    assert list(engine.find_submissions(UNIT, folder, notes)) == ["ada"]
    assert len(notes) == 2


def test_the_secret_is_made_once_and_for_its_owner_only(tmp_path):
    first = seeds.load_secret(tmp_path / "secret")
    assert len(first) == 32
    assert seeds.load_secret(tmp_path / "secret") == first
    assert (tmp_path / "secret").stat().st_mode & 0o077 == 0


def test_seeds_belong_to_secret_submission_and_question():
    seed = seeds.seed_of(b"s", "digest", "q")
    assert seed == seeds.seed_of(b"s", "digest", "q")
    others = [(b"t", "digest", "q"), (b"s", "other", "q"), (b"s", "digest", "r")]
    assert seed not in [seeds.seed_of(*other) for other in others]


def test_a_name_is_no_formula_in_the_csv(tmp_path):
    known = report.Class(
        UNIT,
        {"q": {"title": "Q", "points": 2}},
        [report.Row("=1+1", {"q": 2}, 2)],
        [],
        [],
    )
    report.write_csv(known, tmp_path / "grades.csv")
    lines = Path(tmp_path / "grades.csv").read_text().splitlines()
    assert lines == ["student,q,total,points", "'=1+1,2,2,2"]

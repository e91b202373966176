"""The sample class of unit 08 earns what follows from how it was made."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lmcourse.grading import engine, sample_class
from lmcourse.grading.unit import Unit

UNIT = "08_attention"
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def attention(tmp_path_factory) -> Path:
    """A project of its own with unit 08, released as in the repository."""
    build = f"from lmcourse import homework; homework.build({UNIT!r})"
    subprocess.run([sys.executable, "-c", build], cwd=REPOSITORY, check=True)
    folder = tmp_path_factory.mktemp("attention")
    for name in ("_config.yml", "autotests.yml", "course.yml"):
        shutil.copy(REPOSITORY / name, folder / name)
    for name in ("solutions", "tests/mistakes", "build/homework"):
        shutil.copytree(REPOSITORY / name, folder / name)
    for step in ("source", "release"):
        inner = f"build/course/{step}/{UNIT}"
        shutil.copytree(REPOSITORY / inner, folder / inner)
    return folder


@pytest.fixture
def here(attention, monkeypatch):
    monkeypatch.chdir(attention)


@pytest.fixture(scope="module")
def students(attention):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(attention)
        return sample_class.students(UNIT)


def test_the_class_is_a_dozen_or_more_and_always_the_same(here, students):
    assert students == sample_class.students(UNIT)
    names = [student.name for student in students]
    assert len(names) == len(set(names)) >= 12
    for name in ("all-right", "written-differently", "half-done", "blank", "crash"):
        assert name in names
    exercises = {q for student in students for q in student.earns}
    mistaken = {
        q for student in students for q, e in student.earns.items() if e == "less"
    }
    assert mistaken == exercises  # a known mistake for every exercise


@pytest.mark.slow
def test_every_submission_of_it_earns_what_it_must(sandboxed, here, students):
    unit = Unit(UNIT)
    points = {
        name: facts["points"]
        for name, facts in unit.manifest["questions"].items()
        if not facts["written"]
    }
    contents = {student.name: student.notebook for student in students}
    engine.grade_all(unit, contents, jobs=2, sandboxed=True)
    scores = {}
    for student in students:
        result = unit.known(student.name, student.notebook)
        _check(student, result, points)
        scores[student.name] = result["score"]
    total = sum(points.values())
    assert scores["all-right"] == scores["written-differently"] == total
    assert scores["blank"] == 0
    half = list(points.values())[: len(points) // 2]
    assert scores["half-done"] == sum(half)
    for student in students:
        if student.name in ("crash", "endless-loop"):
            (lost,) = [q for q, e in student.earns.items() if e == "nothing"]
            assert scores[student.name] == total - points[lost]


def _check(student, result, points):
    for question, earns in student.earns.items():
        score = result["questions"][question]["score"]
        where = f"{student.name}, {question}: {score} points"
        if earns == "all":
            assert score == points[question], where
        elif earns == "nothing":
            assert score == 0, where
        elif earns == "less":
            assert score < points[question], where
        assert result["questions"][question]["flags"] == [], where
    if student.mistake:
        (question,) = [q for q, e in student.earns.items() if e == "less"]
        found = result["questions"][question]["mistakes"]
        assert found == [student.mistake], student.name


def test_our_own_class_is_graded_without_a_sandbox_with_a_notice(
    here, students, monkeypatch
):
    """Decides only; the grading itself without a sandbox is tried on the tiny unit."""
    monkeypatch.setattr(engine.sandbox, "why_unavailable", lambda: "no namespaces")
    ours = [student.notebook for student in students]
    notes: list[str] = []
    assert engine.may_run(UNIT, ours, unsafe=False, notes=notes) is False
    (note,) = notes
    assert "our own sample class only: no namespaces" in note
    with pytest.raises(engine.sandbox.NoSandbox):
        engine.may_run(UNIT, [*ours, ours[0] + b" "], unsafe=False, notes=[])

"""Made-up students go when their mistake is renamed; nobody else does."""

import shutil

import pytest

from lmcourse import paths
from lmcourse.grading import engine, gradebook, sample_class

UNIT = "07_tiny"
LOOKS, DIVIDES = "mistake-looks-ahead", "mistake-divides-by-one-too-few"
NEW = {LOOKS: "mistake-peeks", DIVIDES: "mistake-forgets-one"}


@pytest.fixture
def rename(here, hand_in, monkeypatch):
    """Make a small class; afterwards as if the known mistakes had other names."""
    whole = sample_class.submissions(UNIT)
    made = {name: whole[name] for name in ("all-right", LOOKS, DIVIDES)}
    monkeypatch.setattr(sample_class, "submissions", lambda unit: made)

    def give_other_names() -> None:
        renamed = {NEW.get(name, name): content for name, content in made.items()}
        monkeypatch.setattr(sample_class, "submissions", lambda unit: renamed)

    yield give_other_names
    shutil.rmtree(paths.course() / "sample-class")


def in_gradebook() -> set[str]:
    with gradebook.open_gradebook() as book:
        return {student.id for student in book.students}


def traces(student: str) -> list[str]:
    """All that is left of a student in the course's folder."""
    steps = ("submitted", "autograded", "feedback")
    found = [paths.course() / step / student for step in steps]
    found += (paths.course() / "results" / UNIT).glob(f"{student}.*")
    return [str(path) for path in found if path.exists()]


def test_students_who_are_made_up_no_more_are_taken_away(sandboxed, rename, hand_in):
    made = set(sample_class.write_sample_class(UNIT))
    assert {LOOKS, DIVIDES} <= made
    hand_in("mistake-of-my-own")  # nobody made up this one
    assert engine.grade_folder(UNIT).submissions == len(made) + 1
    assert in_gradebook() == made | {"mistake-of-my-own"}
    assert len(traces(LOOKS)) == 5
    rename()
    # Somebody real has taken one of the names meanwhile.
    own = hand_in(DIVIDES).read_bytes()
    now = set(sample_class.write_sample_class(UNIT))
    assert now == made - NEW.keys() | set(NEW.values())
    assert traces(LOOKS) == []
    assert paths.submitted(UNIT, DIVIDES).read_bytes() == own
    assert in_gradebook() == (made | {"mistake-of-my-own"}) - {LOOKS}
    engine.grade_folder(UNIT)
    assert in_gradebook() == now | {"mistake-of-my-own", DIVIDES}
    for student in ("mistake-of-my-own", "all-right", DIVIDES):
        assert len(traces(student)) == 5
    assert set(sample_class.write_sample_class(UNIT)) == now
    assert in_gradebook() == now | {"mistake-of-my-own", DIVIDES}


def test_one_of_whom_the_gradebook_knows_more_stays_in_it(rename):
    made = sample_class.write_sample_class(UNIT)
    with gradebook.open_gradebook() as book:
        book.update_or_create_student(LOOKS, last_name="Ahead")
        book.update_or_create_student(DIVIDES)
    rename()
    sample_class.write_sample_class(UNIT)
    assert traces(LOOKS) == traces(DIVIDES) == []
    assert in_gradebook() == {LOOKS}
    assert NEW[LOOKS] not in made


def test_a_call_that_was_cut_off_loses_nobody(rename, monkeypatch):
    sample_class.write_sample_class(UNIT)
    rename()
    with monkeypatch.context() as patch:
        patch.setattr(gradebook, "remove", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sample_class.write_sample_class(UNIT)
    assert traces(LOOKS)
    sample_class.write_sample_class(UNIT)
    assert traces(LOOKS) == traces(DIVIDES) == []
    assert traces(NEW[LOOKS])

"""What a class gets back: rows in the gradebook, graded notebooks, feedback pages.

Each submission that is complete has a note of the result that it was made from, so that
a second run writes only what is new, and a run that was cut off what is missing.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lmcourse import CourseError, paths

from . import feedback, gradebook, intake, notebooks, receipts
from .intake import Content
from .unit import Unit

BATCH = 100  # submissions written to the gradebook in one transaction
Graded = dict[str, tuple[dict[str, Any], intake.Work | None]]  # by student


def write(about: Unit, contents: Mapping[str, Content]) -> list[str]:
    """Write everything that a class gets back, as far as it is not there already.

    Args:
        about: the unit
        contents: what was handed in, by student; each lies at `paths.submitted`

    Returns:
        Whose submission has no result, as it changed while the class was graded.
    """
    gradebook.make_assignment(about.name, about.manifest)
    there = complete(about.name)
    notes = {s: paths.handed_back(about.name, s) for s in contents}
    changed: list[str] = []
    waiting = [
        student
        for student, content in contents.items()
        if not (
            student in there
            and notes[student].is_file()
            and notes[student].read_text() == about.key(content)
        )
    ]
    with tqdm(
        total=len(waiting), desc="gradebook, feedback", disable=None, unit="student"
    ) as progress:
        for start in range(0, len(waiting), BATCH):
            some = waiting[start : start + BATCH]
            graded: Graded = {}
            keys = {}
            for student in some:
                content = contents[student]
                result = about.known(student, content)
                if result is None:
                    changed.append(student)
                else:
                    graded[student] = result, about.read(content)
                    keys[student] = about.key(content)
            write_batch(about.name, graded)
            for student, key in keys.items():
                notes[student].write_text(key)
            progress.update(len(some))
    return changed


def write_batch(unit: str, graded: Graded) -> None:
    """Write some submissions: gradebook, autograded notebooks, feedback.

    Args:
        unit: the unit
        graded: by student, whose submission lies at `paths.submitted`: its result, and
            what intake read, None if the submission was refused
    """
    with gradebook.open_gradebook() as book:
        writer = gradebook.Writer(book, unit)
        made = {
            student: writer.fill_in(result, work)
            for student, (result, work) in graded.items()
        }
        for student, node in made.items():
            path = paths.autograded(unit, student)
            # Not by nbformat, which checks our own notebook and takes half the time.
            _replace(path, json.dumps(node, ensure_ascii=False) + "\n", 0o444)
        writer.write(made)
        given = gradebook.marks(book, unit, list(graded))
    for student, node in made.items():
        result = graded[student][0]
        page = feedback.page(
            unit, student, result, notebooks.texts(node), given[student]
        )
        _replace(paths.feedback(unit, student), page, 0o644)
        _pass_on_receipts(unit, student)


def complete(unit: str) -> set[str]:
    """Whose graded work and feedback are there, in files and in the gradebook."""
    return {
        student
        for student in gradebook.students(unit)
        if paths.autograded(unit, student).is_file()
        and paths.feedback(unit, student).is_file()
        and receipts.read(paths.submitted(unit, student).parent)
        == receipts.read(paths.feedback(unit, student).parent)
    }


def write_feedback(unit: str) -> int:
    """Make all feedback pages again, with what was given by hand since.

    Returns:
        How many there are.

    Raises:
        CourseError: if nothing of the unit is graded.
    """
    known = sorted(complete(unit)) if gradebook.exists() else []
    if not known:
        raise CourseError(
            f"no submission of {unit} is graded: run lmcourse grade {unit}"
        )
    with gradebook.open_gradebook() as book:
        given = gradebook.marks(book, unit, known)
    for student in known:
        node = notebooks.read(paths.autograded(unit, student))
        page = feedback.of_notebook(unit, student, node, given[student])
        _replace(paths.feedback(unit, student), page, 0o644)
        _pass_on_receipts(unit, student)
    return len(known)


def _pass_on_receipts(unit: str, student: str) -> None:
    """Put the receipts of a submission beside what was made of it."""
    found = receipts.read(paths.submitted(unit, student).parent)
    for made in (paths.autograded(unit, student), paths.feedback(unit, student)):
        for name in receipts.NAMES:
            if name in found:
                text = found[name].decode("utf-8")
                _replace(made.with_name(name), text, 0o644)
            else:
                made.with_name(name).unlink(missing_ok=True)


def _replace(path: Path, text: str, mode: int) -> None:
    """Write a file so that a reader finds the old one or the new one, never a half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.new")
    half.write_text(text, encoding="utf-8")
    half.chmod(mode)
    half.replace(path)

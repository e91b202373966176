"""Into nbgrader's gradebook, with nbgrader's own converters.

`GradeInSandbox` stands in the place of nbgrader's ``Execute``: instead of running a
notebook it asks for the submission's result and writes it into the cells' outputs. So
``nbgrader autograde``, formgrader's button and ``lmcourse grade`` give the same grades.
"""

import contextlib
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbgrader.api import Gradebook, MissingEntry
from nbgrader.converters import Autograde, GenerateFeedback
from nbgrader.coursedir import CourseDirectory
from nbgrader.preprocessors import (
    ClearHiddenTests,
    Execute,
    NbGraderPreprocessor,
    OverwriteCells,
)
from nbgrader.utils import parse_utc
from traitlets.config import Config

from lmcourse import CourseError, paths
from lmcourse.homework import release

from . import intake, notebooks

INTAKE = "intake"  # the step whose notebooks are made from ours, not the student's file
MAX_TIMESTAMP = 200  # bytes


_at_hand: dict[tuple[str, str], tuple[dict[str, Any], intake.Work | None]] = {}


class GradeInSandbox(NbGraderPreprocessor):
    """Puts a submission's result into its notebook, in the place of running it."""

    def preprocess(
        self, nb: NotebookNode, resources: dict[str, Any]
    ) -> tuple[NotebookNode, dict[str, Any]]:
        """Replace the notebook by ours, with the student's text and the verdicts."""
        from . import engine

        unit = resources["nbgrader"]["assignment"]
        student = resources["nbgrader"]["student"]
        result, work = _at_hand.get((unit, student)) or engine.result_of(unit, student)
        node = notebooks.clean(paths.release(unit) / f"{unit}.ipynb", work)
        node, resources = OverwriteCells(parent=self.parent).preprocess(node, resources)
        notebooks.write_outputs(node, result)
        return node, resources


def configure(config: Config) -> None:
    """Fill in nbgrader's configuration as far as it is about grading.

    Used here and by ``nbgrader_config.py``.
    """
    steps = Autograde.autograde_preprocessors.default()
    config.Autograde.autograde_preprocessors = [
        GradeInSandbox if step is Execute else step for step in steps
    ]
    shown = GenerateFeedback.preprocessors.default()
    config.GenerateFeedback.preprocessors = [shown[0], ClearHiddenTests, *shown[1:]]


def submitted_path(unit: str, student: str) -> Path:
    """Where the file lies that a student handed in."""
    return paths.course() / "submitted" / student / unit / f"{unit}.ipynb"


def autograded_path(unit: str, student: str) -> Path:
    """Where nbgrader keeps the graded notebook."""
    return paths.course() / "autograded" / student / unit / f"{unit}.ipynb"


def feedback_path(unit: str, student: str) -> Path:
    """Where the page lies that the student gets back."""
    return paths.course() / "feedback" / student / unit / f"{unit}.html"


def database_url() -> str:
    """The address of the gradebook."""
    return f"sqlite:///{paths.course() / 'gradebook.db'}"


def make_assignment(unit: str, manifest: dict[str, Any]) -> None:
    """See to it that the gradebook knows the unit's cells as the manifest does."""
    wanted = {
        cell["id"]: float(cell["points"])
        for cell in manifest["cells"]
        if cell["kind"] in ("test", "written")
    }
    with open_gradebook() as gradebook:
        try:
            notebook = gradebook.find_notebook(unit, unit)
        except MissingEntry:
            known = {}
        else:
            known = {cell.name: float(cell.max_score) for cell in notebook.grade_cells}
    if known != wanted:
        release.generate(unit, paths.course())


def open_gradebook() -> Gradebook:
    """Open the gradebook, to be used in a ``with`` statement."""
    with _programs_of_this_python():
        return Gradebook(database_url(), "language-models-by-hand")


def is_written(unit: str, student: str) -> bool:
    """Whether the gradebook, the graded notebook and the feedback are there."""
    files = (autograded_path(unit, student), feedback_path(unit, student))
    if not all(path.is_file() for path in files):
        return False
    with open_gradebook() as gradebook:
        try:
            gradebook.find_submission(unit, student)
        except MissingEntry:
            return False
    return True


def write(
    unit: str, student: str, result: dict[str, Any], work: intake.Work | None
) -> None:
    """Write one graded submission: gradebook, autograded notebook, feedback.

    Args:
        unit: the unit
        student: the student's id; the submission lies at `submitted_path`
        result: what it earned
        work: what intake read; None if the submission was refused
    """
    folder = paths.course() / INTAKE / student / unit
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    node = notebooks.clean(paths.release(unit) / f"{unit}.ipynb", work)
    nbformat.write(node, folder / f"{unit}.ipynb")
    _copy_timestamp(submitted_path(unit, student).parent, folder)
    config = Config()
    release.configure(config)
    configure(config)
    config.CourseDirectory.submitted_directory = INTAKE
    _at_hand[unit, student] = result, work
    try:
        for converter in (Autograde, GenerateFeedback):
            _convert(converter, unit, student, config)
    finally:
        del _at_hand[unit, student]


def _convert(
    converter: type[Autograde | GenerateFeedback],
    unit: str,
    student: str,
    config: Config,
) -> None:
    course = CourseDirectory(config=config)
    course.assignment_id, course.student_id = unit, student
    running = converter(coursedir=course, config=config)
    running.force = True
    with _quiet() as said, _programs_of_this_python():
        try:
            running.start()
        except Exception as error:
            causes = [text for text in said if text.startswith("Traceback")]
            cause = [*causes, *said, str(error)][0].strip().splitlines()[-1]
            raise CourseError(
                f"nbgrader could not write {student}'s {unit}: {cause}"
            ) from error


def _copy_timestamp(source: Path, target: Path) -> None:
    """Copy nbgrader's note of the day of submission, if it is one."""
    content = intake.read_file(source / "timestamp.txt")
    if isinstance(content, intake.Refusal) or len(content) > MAX_TIMESTAMP:
        return
    with contextlib.suppress(ValueError, OverflowError, TypeError, AttributeError):
        text = content.decode("utf-8").strip()
        if text and parse_utc(text) is not None:
            (target / "timestamp.txt").write_text(text + "\n", encoding="utf-8")


@contextlib.contextmanager
def _programs_of_this_python() -> Iterator[None]:
    """Let nbgrader find alembic, also where the virtual environment is not active."""
    before = os.environ.get("PATH", "")
    folder = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([folder, before])
    try:
        yield
    finally:
        os.environ["PATH"] = before


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """Keep nbgrader's log, of which only errors matter, instead of printing it."""
    from traitlets.log import get_logger

    logger, said = get_logger(), []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler = Keep(level=logging.ERROR)
    before, propagate = list(logger.handlers), logger.propagate
    logger.handlers, logger.propagate = [handler], False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield said
    finally:
        logger.handlers, logger.propagate = before, propagate

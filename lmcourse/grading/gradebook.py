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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbgrader.api import Gradebook, MissingEntry
from nbgrader.converters import Autograde, GenerateFeedback
from nbgrader.coursedir import CourseDirectory
from nbgrader.preprocessors import (
    AssignLatePenalties,
    ClearHiddenTests,
    Execute,
    NbGraderPreprocessor,
    OverwriteCells,
    SaveAutoGrades,
)
from nbgrader.utils import parse_utc
from tqdm import tqdm
from traitlets.config import Config

from lmcourse import CourseError, paths
from lmcourse.homework import release

from . import intake, notebooks

INTAKE = "intake"  # the step whose notebooks are made from ours, not the student's file
MAX_TIMESTAMP = 200  # bytes


Graded = dict[str, tuple[dict[str, Any], intake.Work | None]]  # by student
_at_hand: dict[tuple[str, str], tuple[dict[str, Any], intake.Work | None]] = {}


class GradeInSandbox(NbGraderPreprocessor):
    """Puts a submission's result into its notebook, in the place of running it."""

    def preprocess(
        self, nb: NotebookNode, resources: dict[str, Any]
    ) -> tuple[NotebookNode, dict[str, Any]]:
        """Write the verdicts into our notebook with the student's text."""
        from . import engine

        unit = resources["nbgrader"]["assignment"]
        student = resources["nbgrader"]["student"]
        if (unit, student) in _at_hand:  # `write` has made the notebook
            node, result = nb, _at_hand[unit, student][0]
        else:
            result, work = engine.result_of(unit, student)
            node = notebooks.clean(paths.release(unit) / f"{unit}.ipynb", work)
            restore = OverwriteCells(parent=self.parent)
            node, resources = restore.preprocess(node, resources)
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


def students(unit: str) -> set[str]:
    """Whose graded work and feedback are there, in files and in the gradebook."""
    with open_gradebook() as gradebook:
        try:
            known = gradebook.assignment_submissions(unit)
        except MissingEntry:
            known = []
        found = {submission.student_id for submission in known}
    return {
        student
        for student in found
        if autograded_path(unit, student).is_file()
        and feedback_path(unit, student).is_file()
    }


def write(unit: str, graded: Graded) -> None:
    """Write graded submissions: gradebook, autograded notebooks, feedback.

    Args:
        unit: the unit
        graded: by student, whose submission lies at `submitted_path`: its result, and
            what intake read, None if the submission was refused
    """
    shutil.rmtree(paths.course() / INTAKE, ignore_errors=True)
    released = paths.release(unit) / f"{unit}.ipynb"
    for student, (_, work) in graded.items():
        folder = paths.course() / INTAKE / student / unit
        folder.mkdir(parents=True)
        nbformat.write(notebooks.clean(released, work), folder / f"{unit}.ipynb")
        _copy_timestamp(submitted_path(unit, student).parent, folder)
    config = Config()
    release.configure(config)
    configure(config)
    config.CourseDirectory.submitted_directory = INTAKE
    # The notebooks are ours: what nbgrader does to students' files has no work here.
    config.Autograde.sanitize_preprocessors = [OverwriteCells]
    config.Autograde.autograde_preprocessors = [
        GradeInSandbox,
        SaveAutoGrades,
        AssignLatePenalties,
    ]
    _at_hand.update({(unit, student): facts for student, facts in graded.items()})
    with tqdm(
        total=2 * len(graded), desc="gradebook, feedback", disable=None, unit="page"
    ) as progress:
        try:
            for converter in (Autograde, GenerateFeedback):
                convert(converter, unit, list(graded), config, progress.update)
        finally:
            _at_hand.clear()


def convert(
    converter: type[Autograde | GenerateFeedback],
    unit: str,
    students: list[str],
    config: Config,
    done: Callable[[], object] = lambda: None,
) -> None:
    """Run one of nbgrader's converters over some students' work.

    Args:
        converter: the converter
        unit: the unit
        students: whose work; that of others is let alone
        config: nbgrader's configuration
        done: called after each student
    """
    course = CourseDirectory(config=config)
    course.assignment_id = unit
    steps = (course.submitted_directory, course.autograded_directory)
    known = {
        path.name
        for step in steps
        for path in (paths.course() / step).glob("*")
        if path.is_dir()
    }
    course.student_id_exclude = ",".join(sorted(known - set(students)))
    running = converter(coursedir=course, config=config)
    running.force = True
    running.post_convert_hook = lambda **_: done()
    with _quiet() as said, _programs_of_this_python():
        try:
            running.start()
        except Exception as error:
            causes = [text for text in said if text.startswith("Traceback")]
            cause = [*causes, *said, str(error)][0].strip().splitlines()[-1]
            raise CourseError(
                f"nbgrader could not write {unit} into the gradebook: {cause}"
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

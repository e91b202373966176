"""Our steps in nbgrader's own commands.

`GradeInSandbox` stands in the place of nbgrader's ``Execute``: instead of running a
notebook it asks for the submission's result and writes it into the cells' outputs. So
``nbgrader autograde``, formgrader's button and ``lmcourse grade`` give the same grades.
`FeedbackPage` makes the same page for ``nbgrader generate_feedback`` as for us. The
steps of nbgrader's exchange are in `exchange`.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import nh3
from nbconvert.exporters import HTMLExporter
from nbconvert.filters import markdown2html
from nbformat import NotebookNode
from nbgrader.converters import Autograde, GenerateFeedback
from nbgrader.coursedir import CourseDirectory
from nbgrader.preprocessors import (
    ClearHiddenTests,
    Execute,
    NbGraderPreprocessor,
    OverwriteCells,
)
from traitlets.config import Config

from lmcourse import CourseError, homework, paths

from . import exchange, feedback, gradebook, notebooks
from .unit import load_result


class GradeInSandbox(NbGraderPreprocessor):
    """Puts a submission's result into its notebook, in the place of running it."""

    def preprocess(
        self, nb: NotebookNode, resources: dict[str, Any]
    ) -> tuple[NotebookNode, dict[str, Any]]:
        """Write the verdicts into our notebook with the student's text."""
        from . import engine

        unit = resources["nbgrader"]["assignment"]
        student = resources["nbgrader"]["student"]
        result, work = engine.result_of(unit, student)
        node = notebooks.clean(paths.release(unit) / f"{unit}.ipynb", work)
        restore = OverwriteCells(parent=self.parent)
        node, resources = restore.preprocess(node, resources)
        notebooks.write_outputs(node, result)
        return node, resources


class FeedbackPage(HTMLExporter):
    """Our feedback page; nbgrader's own for an assignment that is none of our units."""

    def from_notebook_node(
        self, nb: NotebookNode, resources: dict[str, Any] | None = None, **options: Any
    ) -> tuple[str, dict[str, Any]]:
        """Make the page of one student, points and comments given by hand included."""
        about = (resources or {}).get("nbgrader", {})
        unit, student = about.get("assignment"), about.get("student")
        if unit not in homework.units() or load_result(unit, student) is None:
            return super().from_notebook_node(nb, resources, **options)
        resources = self._init_resources(resources)
        with gradebook.open_gradebook(about["db_url"]) as book:
            marks = gradebook.marks(book, unit, [student])[student]
        return feedback.of_notebook(unit, student, nb, marks), resources


def configure(config: Config) -> None:
    """Fill in nbgrader's configuration as far as it is about grading.

    Used here and by ``nbgrader_config.py``.
    """
    steps = Autograde.autograde_preprocessors.default()
    config.Autograde.autograde_preprocessors = [
        GradeInSandbox if step is Execute else step for step in steps
    ]
    config.Autograde.pre_convert_hook = prepare
    shown = GenerateFeedback.preprocessors.default()
    config.GenerateFeedback.preprocessors = [shown[0], ClearHiddenTests, *shown[1:]]
    config.GenerateFeedback.exporter_class = FeedbackPage
    config.ExchangeFactory.collect = exchange.Collect
    config.ExchangeFactory.release_feedback = exchange.ReleaseFeedback
    # In formgrader, a script in a written answer must not run.
    config.HTMLExporter.filters = {"markdown2html": safe_markdown}


def prepare(assignment: str, **_: Any) -> None:
    """See to it that the gradebook knows a unit, before nbgrader grades a submission.

    A new database has not even tables. nbgrader makes them with a program that it
    finds only where the virtual environment is active, and knows no assignment that
    was not generated with this database.
    """
    if assignment in homework.units():
        about = homework.load_manifest(assignment)
        gradebook.make_assignment(assignment, {"cells": about.cells})


def safe_markdown(text: str) -> str:
    """Markdown as HTML in which nothing runs and nothing loads from elsewhere.

    nbgrader's own filter lets every tag of a written answer pass.
    """
    return nh3.clean(
        markdown2html(text),
        tags=nh3.ALLOWED_TAGS,
        attributes={"a": {"href"}, "*": {"class", "alt"}, "img": {"src"}},
        attribute_filter=_without_far_pictures,
        url_schemes={"http", "https", "mailto", "data"},
    )


def _without_far_pictures(tag: str, name: str, value: str) -> str | None:
    if name == "src" and not value.startswith("data:image/"):
        return None
    return None if name == "href" and value.startswith("data:") else value


def convert(
    converter: type[Autograde | GenerateFeedback],
    unit: str,
    students: list[str],
    config: Config,
) -> None:
    """Run one of nbgrader's converters over some students' work.

    Args:
        converter: the converter
        unit: the unit
        students: whose work; that of others is let alone
        config: nbgrader's configuration
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
    with _quiet() as said, gradebook.programs_of_this_python():
        try:
            running.start()
        except Exception as error:
            causes = [text for text in said if text.startswith("Traceback")]
            cause = [*causes, *said, str(error)][0].strip().splitlines()[-1]
            raise CourseError(f"nbgrader could not convert {unit}: {cause}") from error


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

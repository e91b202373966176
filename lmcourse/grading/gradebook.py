"""nbgrader's gradebook: the same rows as nbgrader's converters write, in bulk.

nbgrader's own interface asks the database anew for every cell. Here a batch of
submissions is one transaction of a few statements, through nbgrader's own models. What
a person has given by hand (scores, extra credit, comments) is never touched.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from nbformat import NotebookNode
from nbgrader import utils
from nbgrader.api import (
    Assignment,
    BaseCell,
    Comment,
    Grade,
    Gradebook,
    GradeCell,
    MissingEntry,
    Notebook,
    SourceCell,
    Student,
    SubmittedAssignment,
    SubmittedNotebook,
    TaskCell,
)
from nbgrader.preprocessors import AssignLatePenalties
from sqlalchemy import insert, select, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DatabaseError, NoSuchModuleError, OperationalError
from traitlets.config import Config, PyFileConfigLoader

from lmcourse import CourseError, paths
from lmcourse.homework import release

from . import intake, notebooks, receipts

Result = TypeVar("Result")
WAITS = (0.5, 1, 2, 4, 8)  # seconds between attempts, while the database is busy
COURSE = "language-models-by-hand"


def settings() -> Config:
    """nbgrader's settings: the course's ``nbgrader_config.py``, if it has one."""
    config = Config()
    release.configure(config)
    path = paths.root() / "nbgrader_config.py"
    if path.is_file():
        config.merge(PyFileConfigLoader(path.name, path=str(path.parent)).load_config())
    return config


def database_url() -> str:
    """Where the gradebook is: nbgrader's ``db_url`` if set, or the course's file."""
    own = settings().CourseDirectory
    return own.db_url if "db_url" in own else f"sqlite:///{_own_file()}"


def _own_file() -> Path:
    return paths.course() / "gradebook.db"


def exists() -> bool:
    """Whether there is a gradebook; one on a server is taken to be there."""
    return database_url() != f"sqlite:///{_own_file()}" or _own_file().is_file()


@contextlib.contextmanager
def open_gradebook(url: str | None = None) -> Iterator[Gradebook]:
    """Open the gradebook, to be used in a ``with`` statement.

    Raises:
        CourseError: if the database cannot be reached or read.
    """
    url = url or database_url()
    with readable(url):
        with programs_of_this_python():
            book = Gradebook(url, COURSE)
        with book:
            yield book


@contextlib.contextmanager
def readable(url: str) -> Iterator[None]:
    """Say in one sentence why a database cannot be used.

    Raises:
        CourseError: if it cannot.
    """
    try:
        yield
    except (DatabaseError, NoSuchModuleError, ModuleNotFoundError) as error:
        cause = str(getattr(error, "orig", error)).strip().splitlines()[0]
        shown = make_url(url).render_as_string(hide_password=True)
        raise CourseError(
            f"the gradebook {shown} cannot be used: {cause}. "
            "Nothing is lost: results are kept, run the same command again"
        ) from error


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
        release.generate(unit, paths.course(), database_url())


def students(unit: str) -> list[str]:
    """Whose work on a unit the gradebook knows."""
    with open_gradebook() as book:
        return sorted(
            book.db.scalars(
                select(SubmittedAssignment.student_id)
                .join(Assignment, SubmittedAssignment.assignment_id == Assignment.id)
                .where(Assignment.name == unit)
            )
        )


def remove(unit: str, student: str) -> None:
    """Take a student's submission away, and the student, if nothing else is known.

    Other submissions, and a name or address that was given to the student, keep them.
    """
    if not exists():
        return
    with open_gradebook() as book:
        with contextlib.suppress(MissingEntry):
            _patiently(book, lambda: book.remove_submission(unit, student))
        with contextlib.suppress(MissingEntry):
            known = book.find_student(student)
            about = (known.first_name, known.last_name, known.email, known.lms_user_id)
            if not known.submissions and not any(about):
                _patiently(book, lambda: book.remove_student(student))


def _patiently(book: Gradebook, do: Callable[[], Result]) -> Result:
    """Run a transaction; while the database is locked or away, try again."""
    for wait in WAITS:
        try:
            return _in_transaction(book, do)
        except OperationalError:
            time.sleep(wait)
    return _in_transaction(book, do)


def _in_transaction(book: Gradebook, do: Callable[[], Result]) -> Result:
    try:
        result = do()
        book.db.commit()
    except BaseException:
        book.db.rollback()
        raise
    return result


class Writer:
    """Writes submissions of a unit: knows what its rows hang on, and its notebook.

    Args:
        book: the gradebook, which knows the unit
        unit: the unit
    """

    def __init__(self, book: Gradebook, unit: str) -> None:
        self.book, self.db, self.unit = book, book.db, unit
        notebook = book.find_notebook(unit, unit)
        self.notebook_id, self.assignment = notebook.id, notebook.assignment
        self.assignment_id = notebook.assignment.id
        cells = self.db.execute(
            select(BaseCell.name, BaseCell.id, BaseCell.type).where(
                BaseCell.notebook_id == notebook.id
            )
        ).all()
        self.graded = {n: i for n, i, kind in cells if kind != "SolutionCell"}
        self.commented = {n: i for n, i, kind in cells if kind != "GradeCell"}
        source = select(SourceCell).where(SourceCell.notebook_id == notebook.id)
        self.template = notebooks.restored(
            notebooks.read(paths.release(unit) / f"{unit}.ipynb"),
            {cell.name: cell for cell in self.db.scalars(source)},
        )

    def fill_in(self, result: dict[str, Any], work: intake.Work | None) -> NotebookNode:
        """The autograded notebook of one submission."""
        node = notebooks.filled_in(self.template, work)
        notebooks.write_outputs(node, result)
        return node

    def write(self, made: dict[str, NotebookNode]) -> None:
        """Write a batch of graded notebooks, by student, in one transaction."""
        _patiently(self.book, lambda: self._write_rows(made))

    def _write_rows(self, made: dict[str, NotebookNode]) -> None:
        self._add_students(list(made))
        submissions = self._submissions(list(made))
        notebook_ids = self._notebooks(submissions)
        grades, comments = [], []
        for student, node in made.items():
            for cell in node.cells:
                self._read_cell(cell, notebook_ids[student], grades, comments)
        self._store(Grade, grades, self.graded)
        self._store(Comment, comments, self.commented)
        self.db.flush()
        self._punish_lateness(notebook_ids)

    def _read_cell(
        self, cell: NotebookNode, notebook: str, grades: list, comments: list
    ) -> None:
        """Take from a cell what nbgrader's ``SaveAutoGrades`` would."""
        name = notebooks.grade_id(cell)
        if name in self.graded and utils.is_grade(cell):
            score, _ = utils.determine_grade(cell)
            row = {"notebook_id": notebook, "cell_id": self.graded[name]}
            grades.append({**row, "auto_score": score})
        if name in self.commented and (utils.is_solution(cell) or utils.is_task(cell)):
            same = cell.metadata.nbgrader.get("checksum") == utils.compute_checksum(
                cell
            )
            text = "No response." if same and not utils.is_task(cell) else None
            row = {"notebook_id": notebook, "cell_id": self.commented[name]}
            comments.append({**row, "auto_comment": text})

    def _add_students(self, names: list[str]) -> None:
        there = set(self.db.scalars(select(Student.id).where(Student.id.in_(names))))
        if new := [{"id": name} for name in names if name not in there]:
            self.db.execute(insert(Student), new)

    def _submissions(self, names: list[str]) -> dict[str, str]:
        """The submissions' ids by student; new ones are made."""
        found = self.db.execute(
            select(SubmittedAssignment.student_id, SubmittedAssignment.id).where(
                SubmittedAssignment.assignment_id == self.assignment_id,
                SubmittedAssignment.student_id.in_(names),
            )
        ).all()
        known, new, dated = dict(found), [], []
        for name in names:
            when = receipts.timestamp(paths.submitted(self.unit, name).parent)
            if name in known:
                if when is not None:
                    dated.append({"id": known[name], "timestamp": when})
                continue
            known[name] = uuid4().hex
            row = {"id": known[name], "assignment_id": self.assignment_id}
            new.append({**row, "student_id": name, "timestamp": when})
        self._write(SubmittedAssignment, new, dated)
        return known

    def _notebooks(self, submissions: dict[str, str]) -> dict[str, str]:
        """The submitted notebooks' ids by student; new ones are made."""
        found = self.db.execute(
            select(SubmittedNotebook.assignment_id, SubmittedNotebook.id).where(
                SubmittedNotebook.notebook_id == self.notebook_id,
                SubmittedNotebook.assignment_id.in_(list(submissions.values())),
            )
        ).all()
        known, new = dict(found), []
        for submission in submissions.values():
            if submission not in known:
                known[submission] = uuid4().hex
                row = {"id": known[submission], "assignment_id": submission}
                new.append({**row, "notebook_id": self.notebook_id})
        self._write(SubmittedNotebook, new, [])
        return {student: known[own] for student, own in submissions.items()}

    def _store(self, model: Any, rows: list[dict], cells: dict[str, str]) -> None:
        """Write grades or comments, into the rows that are there or into new ones."""
        own = {row["notebook_id"] for row in rows}
        there = self.db.execute(select(model).where(model.notebook_id.in_(own)))
        known = {(row.notebook_id, row.cell_id): row for row in there.scalars()}
        new, changed = [], []
        for row in rows:
            old = known.get((row["notebook_id"], row["cell_id"]))
            if model is Grade:
                given = old is not None and old.manual_score is not None
                row["needs_manual_grade"] = given or row["auto_score"] is None
            if old is None:
                new.append({"id": uuid4().hex, **row})
            else:
                changed.append({"id": old.id, **row})
        self._write(model, new, changed)

    def _write(self, model: Any, new: list[dict], changed: list[dict]) -> None:
        if new:
            self.db.execute(insert(model), new)
        if changed:
            self.db.execute(update(model), changed)

    def _punish_lateness(self, notebook_ids: dict[str, str]) -> None:
        """Ask nbgrader's plugin for late submissions, where one is late."""
        self.db.expire_all()
        step = AssignLatePenalties(config=settings())
        step.init_plugin()
        found = self.db.execute(
            select(SubmittedNotebook, SubmittedAssignment)
            .join(SubmittedNotebook.assignment)
            .where(SubmittedNotebook.id.in_(list(notebook_ids.values())))
        ).all()
        for notebook, submission in found:
            late = submission.total_seconds_late if self.assignment.duedate else 0
            penalty = None
            if late > 0:
                penalty = step.plugin_inst.late_submission_penalty(
                    submission.student_id, notebook.score, late
                )
            if penalty is not None:
                penalty = min(max(penalty, 0), notebook.score)
            if notebook.late_submission_penalty != penalty:
                notebook.late_submission_penalty = penalty


@dataclass(frozen=True)
class Mark:
    """One cell's points, as they count; None while a person has not graded it."""

    score: float | None
    max_score: float


@dataclass(frozen=True)
class Marks:
    """What the gradebook holds about one submission, by cell."""

    cells: dict[str, Mark]
    comments: dict[str, str]
    penalty: float

    @property
    def total(self) -> float:
        """The points that count, what lateness costs taken off."""
        return max(0.0, sum(m.score or 0 for m in self.cells.values()) - self.penalty)


def marks(
    book: Gradebook, unit: str, students: list[str] | None = None
) -> dict[str, Marks]:
    """Read scores and comments in a few queries, whatever the size of the class.

    Args:
        book: the gradebook
        unit: the unit
        students: whose; everybody's if not given
    """
    found: dict[str, Marks] = {}
    for student, penalty in book.db.execute(
        _of(
            select(
                SubmittedAssignment.student_id,
                SubmittedNotebook.late_submission_penalty,
            ).select_from(SubmittedNotebook),
            unit,
            students,
        )
    ):
        found[student] = Marks({}, {}, penalty or 0.0)
    points = {
        name: score
        for kind in (GradeCell, TaskCell)
        for name, score in book.db.execute(
            select(kind.name, kind.max_score)
            .join(Notebook, kind.notebook_id == Notebook.id)
            .join(Assignment, Notebook.assignment_id == Assignment.id)
            .where(Assignment.name == unit)
        )
    }
    columns = (Grade.auto_score, Grade.manual_score, Grade.extra_credit)
    for student, cell, automatic, manual, extra in book.db.execute(
        _of(_per_cell(Grade, *columns), unit, students)
    ):
        score = automatic if manual is None else manual
        score = None if score is None else score + (extra or 0)
        found[student].cells[cell] = Mark(score, points[cell])
    columns = (Comment.auto_comment, Comment.manual_comment)
    for student, cell, automatic, manual in book.db.execute(
        _of(_per_cell(Comment, *columns), unit, students)
    ):
        if text := automatic if manual is None else manual:
            found[student].comments[cell] = text
    return found


def _per_cell(model: Any, *columns: Any) -> Any:
    return (
        select(SubmittedAssignment.student_id, BaseCell.name, *columns)
        .select_from(model)
        .join(BaseCell, model.cell_id == BaseCell.id)
        .join(SubmittedNotebook, model.notebook_id == SubmittedNotebook.id)
    )


def _of(query: Any, unit: str, students: list[str] | None) -> Any:
    query = query.join(
        SubmittedAssignment, SubmittedNotebook.assignment_id == SubmittedAssignment.id
    ).join(Assignment, SubmittedAssignment.assignment_id == Assignment.id)
    query = query.where(Assignment.name == unit)
    if students is not None:
        query = query.where(SubmittedAssignment.student_id.in_(students))
    return query


@contextlib.contextmanager
def programs_of_this_python() -> Iterator[None]:
    """Let nbgrader find alembic, also where the virtual environment is not active."""
    before = os.environ.get("PATH", "")
    folder = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([folder, before])
    try:
        yield
    finally:
        os.environ["PATH"] = before

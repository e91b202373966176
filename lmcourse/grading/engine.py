"""Grade a class: find the submissions, grade them side by side, keep every result.

Every result is kept at once (`unit`), so what was graded stays graded when a run is cut
off, and a second run grades only what is new.
"""

import atexit
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lmcourse import CourseError, paths

from . import handin, intake, sandbox
from .pool import Pool
from .unit import Content, Unit
from .worker import refused

STUDENT = re.compile(r"[^\W_][\w.@ +-]{0,99}")
UNSAFE = (
    "Grading without a sandbox: these submissions can read and change every file of "
    "yours, use the network, and give themselves any grade."
)


@dataclass
class Summary:
    """What grading a class came to."""

    unit: str
    submissions: int
    graded: int  # the others had a result already
    refused: int
    seconds: float
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{self.unit}: {self.submissions} submissions, {self.graded} graded now, "
            f"{self.refused} refused, {self.seconds:.1f} s"
        ]
        return "\n".join([*lines, *self.notes])


def grade_folder(
    unit: str,
    submitted: Path | None = None,
    jobs: int | None = None,
    unsafe: bool = False,
    scheduler: str | None = None,
) -> Summary:
    """Grade a class and write nbgrader's gradebook and the feedback.

    Args:
        unit: the unit's name
        submitted: a folder with ``<student>/<unit>/<unit>.ipynb``, or what `handin`
            reads; the course's own ``submitted`` if not given
        jobs: how many submissions at a time; one per core if not given
        unsafe: grade strangers' code also where the system has no sandbox
        scheduler: the address of a Dask cluster that grades; this machine if not given

    Raises:
        CourseError: if something is missing or cannot be done.
    """
    if unsafe and scheduler:
        raise CourseError("a cluster grades in sandboxes only: leave out --unsafe")
    start = time.perf_counter()
    about = Unit(unit)
    own = paths.course() / "submitted"
    folder = own if submitted is None else Path(submitted).resolve()
    notes: list[str] = []
    if folder == own.resolve() or handin.is_nbgrader_s(unit, folder):
        contents = find_submissions(unit, folder, notes)
        if folder != own.resolve():
            for student in contents:
                _copy_in(folder / student / unit, own / student / unit, unit)
    else:
        contents = handin.take_in(unit, folder, own, notes)
    waiting = [s for s, content in contents.items() if about.known(s, content) is None]
    sandboxed = scheduler is not None or may_run(
        unit, [contents[s] for s in waiting], unsafe, notes
    )
    try:
        grade_all(about, {s: contents[s] for s in waiting}, jobs, sandboxed, scheduler)
        about.write(contents)
    except OSError as error:  # a full disk, a folder that cannot be written
        raise CourseError(
            f"{error}. Nothing is lost: results are kept, run the same command again"
        ) from error
    n_refused = sum(
        about.known(student, content)["status"] == "refused"
        for student, content in contents.items()
    )
    seconds = time.perf_counter() - start
    return Summary(unit, len(contents), len(waiting), n_refused, seconds, notes)


def find_submissions(unit: str, folder: Path, notes: list[str]) -> dict[str, Content]:
    """Read all submissions of a unit in a folder like nbgrader's ``submitted``.

    Raises:
        CourseError: if there is none.
    """
    found = {}
    folders = sorted(folder.iterdir()) if folder.is_dir() else []
    for student in folders:
        inner = student / unit
        if student.is_symlink() or inner.is_symlink() or not inner.is_dir():
            continue
        if not STUDENT.fullmatch(student.name):
            notes.append(f"left out, as no student's id: {student.name!r}")
            continue
        found[student.name] = intake.read_file(inner / f"{unit}.ipynb")
    if not found:
        raise CourseError(
            f"there are no submissions of {unit} in {folder}; "
            f"expected <student>/{unit}/{unit}.ipynb there"
        )
    return found


def _copy_in(source: Path, target: Path, unit: str) -> None:
    """Keep what was handed in, as plain files of our own."""
    from . import gradebook  # nbgrader takes a second to import

    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in (f"{unit}.ipynb", *gradebook.RECEIPTS):
        content = intake.read_file(source / name)
        if isinstance(content, bytes):
            (target / name).write_bytes(content)


def may_run(unit: str, contents: list[Content], unsafe: bool, notes: list[str]) -> bool:
    """Decide whether to run in a sandbox.

    Raises:
        NoSandbox: if there is none and a submission is not one of our own.
    """
    reason = sandbox.why_unavailable() if contents else None
    if reason is None:
        return True
    from . import sample_class

    ours = set(sample_class.submissions(unit).values())
    if all(content in ours for content in contents if isinstance(content, bytes)):
        notes.append(f"Graded without a sandbox, our own sample class only: {reason}.")
    elif unsafe:
        notes.append(UNSAFE)
    else:
        raise sandbox.NoSandbox(
            f"{reason}; strangers' code is not run without a sandbox. Grade on Linux "
            "with bubblewrap and user namespaces, or see --unsafe"
        )
    return False


def grade_all(
    about: Unit,
    contents: dict[str, Content],
    jobs: int | None,
    sandboxed: bool,
    scheduler: str | None = None,
) -> None:
    """Grade submissions, several at a time, and keep each result at once."""
    readable: dict[str, bytes] = {}
    for student, content in contents.items():
        if isinstance(content, bytes):
            readable[student] = content
        else:
            about.save(student, content, _refused(about, content))
    if not readable:
        return
    about.make_tree()
    if scheduler is None:
        results = _grade_here(about, readable, jobs, sandboxed)
    else:
        from . import cluster  # Dask takes a second to import

        results = cluster.grade(scheduler, about, readable, jobs)
    with (
        closing(results),
        tqdm(
            total=len(readable), desc="grading", disable=None, unit="submission"
        ) as progress,
    ):
        for student, result in results:
            about.save(student, readable[student], result)
            progress.update()


def _refused(about: Unit, refusal: intake.Refusal) -> dict[str, Any]:
    """The result of what could not even be read."""
    return refused(about.manifest, refusal, hashlib.sha256(b"").hexdigest())


def _grade_here(
    about: Unit, contents: dict[str, bytes], jobs: int | None, sandboxed: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Grade submissions on this machine; yields each student with the result."""
    n_threads = max(1, min(jobs or os.cpu_count() or 1, len(contents)))
    with (
        Pool(lambda: about.worker(sandboxed)) as pool,
        ThreadPoolExecutor(n_threads) as threads,
    ):
        running = {
            threads.submit(pool.grade, content): student
            for student, content in contents.items()
        }
        try:
            for done in as_completed(running):
                yield running.pop(done), done.result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


_served: dict[str, tuple[Unit, Pool]] = {}  # for nbgrader, one submission at a time


def result_of(unit: str, student: str) -> tuple[dict[str, Any], intake.Work | None]:
    """The result of what a student handed in, graded now if need be.

    This is what nbgrader's converter asks for, one submission after the other; the
    student's world stays warm between them.
    """
    if unit not in _served:
        about = Unit(unit)
        about.make_tree()
        pool = Pool(lambda: about.worker(sandboxed=sandbox.why_unavailable() is None))
        atexit.register(pool.close)
        _served[unit] = about, pool
    about, pool = _served[unit]
    path = paths.course() / "submitted" / student / unit / f"{unit}.ipynb"
    content = intake.read_file(path)
    result = about.known(student, content)
    if result is None:
        may_run(unit, [content], unsafe=False, notes=[])
        refusal = isinstance(content, intake.Refusal)
        result = _refused(about, content) if refusal else pool.grade(content)
        about.save(student, content, result)
    return result, about.read(content)

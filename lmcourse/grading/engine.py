"""Grade a class: find the submissions, grade them side by side, keep every result.

Every result is kept at once (`unit`), so what was graded stays graded when a run is cut
off, and a second run grades only what is new.
"""

import atexit
import functools
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lmcourse import CourseError, paths
from lmcourse.homework.source import DEVICES

from . import handin, intake, sandbox
from .pool import Pool
from .unit import Content, Submissions, Unit

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
    device: str = "cpu",
) -> Summary:
    """Grade a class and write nbgrader's gradebook and the feedback.

    Args:
        unit: the unit's name
        submitted: a folder with ``<student>/<unit>/<unit>.ipynb``, or what `handin`
            reads; the course's own ``submitted`` if not given
        jobs: how many submissions at a time; one per core if not given
        unsafe: grade strangers' code also where the system has no sandbox
        scheduler: the address of a Dask cluster that grades; this machine if not given
        device: what tensors are made on, ``cpu`` or ``cuda``

    Raises:
        CourseError: if something is missing or cannot be done.
    """
    if unsafe and scheduler:
        raise CourseError("a cluster grades in sandboxes only: leave out --unsafe")
    start = time.perf_counter()
    if device not in DEVICES:
        known = " or ".join(DEVICES)
        raise CourseError(f"no device {device!r} to grade on: it is {known}")
    about = Unit(unit, device)
    own = paths.course() / "submitted"
    folder = own if submitted is None else Path(submitted).resolve()
    notes: list[str] = []
    if folder == own.resolve() or handin.is_nbgrader_s(unit, folder):
        contents = find_submissions(unit, folder, notes)
        if folder != own.resolve():
            contents = _copied_in(unit, contents, folder, own)
    else:
        contents = handin.take_in(unit, folder, own, notes)
    waiting = contents.of(
        [s for s, content in contents.items() if about.known(s, content) is None]
    )
    sandboxed = scheduler is not None or not waiting
    sandboxed = sandboxed or may_run(unit, waiting.values(), unsafe, notes)
    from . import handback  # nbgrader takes a second to import

    try:
        grade_all(about, waiting, jobs, sandboxed, scheduler)
        if changed := handback.write(about, contents):
            names = ", ".join(changed)
            notes.append(f"changed while it was graded, so grade again: {names}")
    except OSError as error:  # a full disk, a folder that cannot be written
        raise CourseError(
            f"{error}. Nothing is lost: results are kept, run the same command again"
        ) from error
    results = (about.known(student, content) for student, content in contents.items())
    n_refused = sum(r is not None and r["status"] == "refused" for r in results)
    seconds = time.perf_counter() - start
    return Summary(unit, len(contents), len(waiting), n_refused, seconds, notes)


def find_submissions(unit: str, folder: Path, notes: list[str]) -> Submissions:
    """Find all submissions of a unit in a folder like nbgrader's ``submitted``.

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
        path = inner / f"{unit}.ipynb"
        found[student.name] = functools.partial(intake.read_file, path)
    if not found:
        raise CourseError(
            f"there are no submissions of {unit} in {folder}; "
            f"expected <student>/{unit}/{unit}.ipynb there"
        )
    return Submissions(found)


def _copied_in(
    unit: str, contents: Submissions, source: Path, target: Path
) -> Submissions:
    """Keep what was handed in elsewhere, as plain files of our own."""
    from . import receipts  # nbgrader takes a second to import

    kept = {}
    for student, content in contents.items():
        folder = target / student / unit
        shutil.rmtree(folder, ignore_errors=True)
        kept[student] = handin.keep(content, folder / f"{unit}.ipynb")
        for name in receipts.NAMES:
            handin.keep(intake.read_file(source / student / unit / name), folder / name)
    return Submissions(kept)


def may_run(
    unit: str, contents: Iterable[Content], unsafe: bool, notes: list[str]
) -> bool:
    """Decide whether to run in a sandbox.

    Raises:
        NoSandbox: if there is none and a submission is not one of our own.
    """
    reason = sandbox.why_unavailable()
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
    contents: Mapping[str, Content],
    jobs: int | None,
    sandboxed: bool,
    scheduler: str | None = None,
) -> None:
    """Grade submissions, several at a time, and keep each result at once."""
    if not contents:
        return
    about.make_tree()
    if scheduler is None:
        results = _grade_here(about, contents, jobs, sandboxed)
    else:
        from . import cluster  # Dask takes a second to import

        results = cluster.grade(scheduler, about, contents, jobs)
    with (
        closing(results),
        tqdm(
            total=len(contents), desc="grading", disable=None, unit="submission"
        ) as progress,
    ):
        for student, key, result in results:
            about.save(student, key, result)
            progress.update()


def _grade_here(
    about: Unit, contents: Mapping[str, Content], jobs: int | None, sandboxed: bool
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Grade submissions on this machine; yields student, key and result."""
    n_threads = max(1, min(jobs or os.cpu_count() or 1, len(contents)))
    with (
        Pool(lambda: about.worker(sandboxed)) as pool,
        ThreadPoolExecutor(n_threads) as threads,
    ):

        def grade(student: str) -> tuple[str, str, dict[str, Any]]:
            content = contents[student]
            return student, about.key(content), pool.grade(content)

        try:
            for done in as_completed([threads.submit(grade, s) for s in contents]):
                yield done.result()
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
    content = intake.read_file(paths.submitted(unit, student))
    result = about.known(student, content)
    if result is None:
        may_run(unit, [content], unsafe=False, notes=[])
        result = pool.grade(content)
        about.save(student, about.key(content), result)
    return result, about.read(content)

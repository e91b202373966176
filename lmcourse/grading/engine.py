"""Grade a class: find the submissions, grade them side by side, keep every result.

A result depends on the submission's bytes, the manifest, the course's secret and the
grader's own code, and is kept under a key of these four. So a second run grades only
what is new.
"""

import atexit
import hashlib
import json
import os
import queue
import re
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lmcourse import CourseError, homework, paths
from lmcourse.homework import builder

from . import intake, sandbox, seeds
from .worker import Worker, refused

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


class Unit:
    """What is needed to grade a unit: manifest, secret, blank lmcore, known results."""

    def __init__(self, name: str) -> None:
        if name not in homework.units():
            known = ", ".join(homework.units()) or "none"
            raise CourseError(
                f"there is no unit {name!r}; units with homework: {known}"
            )
        self.name = name
        made = homework.load_manifest(name)
        if made.digest != builder.digest_of(name):
            raise CourseError(
                f"the release of {name} is older than its sources; "
                f"run: lmcourse release {name}"
            )
        self.manifest: dict[str, Any] = asdict(made)
        self.secret = seeds.load_secret(paths.course() / "secret")
        self.tree = paths.course() / "jail" / name
        self._code = _digest_of_code()

    def key(self, content: bytes) -> str:
        """What a result depends on, in a few letters."""
        parts = [self.manifest["digest"], self._code, self.secret.hex()]
        text = hashlib.sha256(content).hexdigest() + "".join(parts)
        return hashlib.sha256(text.encode()).hexdigest()

    def known(self, student: str, content: bytes) -> dict[str, Any] | None:
        """The result that a submission already has, if it has one."""
        data = load_result(self.name, student)
        if data is None or data["key"] != self.key(content):
            return None
        return data["result"]

    def save(self, student: str, content: bytes, result: dict[str, Any]) -> None:
        """Keep a result; a reader finds the old one or the new one, never a half."""
        path = result_path(self.name, student)
        path.parent.mkdir(parents=True, exist_ok=True)
        data = {"key": self.key(content), "student": student, "result": result}
        half = path.with_suffix(".new")
        half.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        half.replace(path)

    def write(
        self, student: str, content: bytes | intake.Refusal, result: dict[str, Any]
    ) -> None:
        """Bring a result into the gradebook, unless it is there already."""
        from . import gradebook

        note = result_path(self.name, student).with_suffix(".written")
        key = self.key(_bytes(content))
        written = note.is_file() and note.read_text() == key
        if written and gradebook.is_written(self.name, student):
            return
        gradebook.write(self.name, student, result, _read_work(self, content))
        note.write_text(key)

    def worker(self, sandboxed: bool) -> Worker:
        """Start a student's world and a judge."""
        mistakes = paths.root() / "tests" / "mistakes" / f"{self.name}.py"
        return Worker(
            self.manifest,
            paths.manifest(self.name),
            mistakes,
            self.tree,
            self.secret,
            sandboxed,
        )

    def make_tree(self) -> None:
        """Write lmcore with the bodies of this unit and all later ones blank."""
        stamp = self.tree.with_suffix(".made")
        if stamp.is_file() and stamp.read_text() == self.manifest["digest"]:
            return
        shutil.rmtree(self.tree, ignore_errors=True)
        all_units = homework.units()
        blank = all_units[all_units.index(self.name) :]
        homework.blank_lmcore(self.tree, blank)
        # Figures compute in Python too: students need them, graded code does not.
        shutil.rmtree(self.tree / "lmcore" / "widgets", ignore_errors=True)
        stamp.write_text(self.manifest["digest"])


def grade_folder(
    unit: str,
    submitted: Path | None = None,
    jobs: int | None = None,
    unsafe: bool = False,
) -> Summary:
    """Grade a class and write nbgrader's gradebook and the feedback.

    Args:
        unit: the unit's name
        submitted: a folder with ``<student>/<unit>/<unit>.ipynb``; the course's own
            ``submitted`` if not given
        jobs: how many submissions at a time; one per core if not given
        unsafe: grade strangers' code also where the system has no sandbox

    Raises:
        CourseError: if something is missing or cannot be done.
    """
    from . import gradebook

    start = time.perf_counter()
    about = Unit(unit)
    own = paths.course() / "submitted"
    folder = own if submitted is None else Path(submitted).resolve()
    notes: list[str] = []
    contents = find_submissions(unit, folder, notes)
    if folder != own.resolve():
        for student in contents:
            _copy_in(folder / student / unit, own / student / unit, unit)
    waiting = [s for s, content in contents.items() if not _known(about, s, content)]
    sandboxed = _may_run(unit, [contents[s] for s in waiting], unsafe, notes)
    _grade_all(about, {s: contents[s] for s in waiting}, jobs, sandboxed)
    gradebook.make_assignment(unit, about.manifest)
    n_refused = 0
    for student in tqdm(contents, desc="gradebook", disable=None, unit="submission"):
        result = about.known(student, _bytes(contents[student]))
        n_refused += result["status"] == "refused"
        about.write(student, contents[student], result)
    seconds = time.perf_counter() - start
    return Summary(unit, len(contents), len(waiting), n_refused, seconds, notes)


def find_submissions(
    unit: str, folder: Path, notes: list[str]
) -> dict[str, bytes | intake.Refusal]:
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
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in (f"{unit}.ipynb", "timestamp.txt"):
        content = intake.read_file(source / name)
        if isinstance(content, bytes):
            (target / name).write_bytes(content)


def _may_run(
    unit: str, contents: list[bytes | intake.Refusal], unsafe: bool, notes: list[str]
) -> bool:
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


def _grade_all(
    about: Unit,
    contents: dict[str, bytes | intake.Refusal],
    jobs: int | None,
    sandboxed: bool,
) -> None:
    """Grade submissions, several at a time, and keep each result at once."""
    if not contents:
        return
    about.make_tree()
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for student in contents:
        waiting.put(student)
    n_workers = max(1, min(jobs or os.cpu_count() or 1, len(contents)))
    stop = threading.Event()
    with tqdm(
        total=len(contents), desc="grading", disable=None, unit="submission"
    ) as progress:

        def work_on() -> None:
            with _Lazy(lambda: about.worker(sandboxed)) as worker:
                while not stop.is_set():
                    try:
                        student = waiting.get_nowait()
                    except queue.Empty:
                        return
                    content = contents[student]
                    about.save(student, _bytes(content), worker.grade(about, content))
                    progress.update()

        with ThreadPoolExecutor(n_workers) as pool:
            running = [pool.submit(work_on) for _ in range(n_workers)]
            try:
                for one in running:
                    one.result()
            finally:
                stop.set()


class _Lazy:
    """A worker that is started when the first readable submission comes."""

    def __init__(self, start: Callable[[], Worker]) -> None:
        self.start = start
        self.worker: Worker | None = None

    def __enter__(self) -> "_Lazy":
        return self

    def __exit__(self, *_: object) -> None:
        if self.worker is not None:
            self.worker.close()

    def grade(self, about: Unit, content: bytes | intake.Refusal) -> dict[str, Any]:
        """Grade one submission, or say why it is refused."""
        if isinstance(content, intake.Refusal):
            return refused(about.manifest, content, hashlib.sha256(b"").hexdigest())
        if self.worker is None:
            self.worker = self.start()
        return self.worker.grade(content)


def _known(about: Unit, student: str, content: bytes | intake.Refusal) -> bool:
    return about.known(student, _bytes(content)) is not None


def _bytes(content: bytes | intake.Refusal) -> bytes:
    return content if isinstance(content, bytes) else content.message.encode()


def _read_work(about: Unit, content: bytes | intake.Refusal) -> intake.Work | None:
    if isinstance(content, bytes):
        work = intake.read(content, about.manifest)
        if isinstance(work, intake.Work):
            return work
    return None


_served: dict[str, tuple[Unit, _Lazy]] = {}  # for nbgrader, one submission at a time


def result_of(unit: str, student: str) -> tuple[dict[str, Any], intake.Work | None]:
    """The result of what a student handed in, graded now if need be.

    This is what nbgrader's converter asks for, one submission after the other; the
    student's world stays warm between them.
    """
    if unit not in _served:
        about = Unit(unit)
        about.make_tree()
        lazy = _Lazy(lambda: about.worker(sandboxed=sandbox.why_unavailable() is None))
        atexit.register(lazy.__exit__)
        _served[unit] = about, lazy
    about, lazy = _served[unit]
    path = paths.course() / "submitted" / student / unit / f"{unit}.ipynb"
    content = intake.read_file(path)
    result = about.known(student, _bytes(content))
    if result is None:
        _may_run(unit, [content], unsafe=False, notes=[])
        result = lazy.grade(about, content)
        about.save(student, _bytes(content), result)
    return result, _read_work(about, content)


def result_path(unit: str, student: str) -> Path:
    """Where the result of a submission is kept."""
    return paths.course() / "results" / unit / f"{student}.json"


def load_result(unit: str, student: str) -> dict[str, Any] | None:
    """Read a kept result with its key; None if there is none."""
    try:
        return json.loads(result_path(unit, student).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _digest_of_code() -> str:
    """A digest of the code that decides results."""
    here = Path(__file__).parent
    return builder.digest_files(sorted(here.rglob("*.py")))

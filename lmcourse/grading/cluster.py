"""Grade on a Dask cluster, whatever it runs on.

Each process of the cluster gets the unit once, as a plugin of Dask, and starts worlds
for students and judges of its own when the first submission comes. Students' code runs
in those worlds only, never in Dask's process. Results come back to the command, which
alone writes. A submission whose process dies is given to another one by Dask.
"""

import functools
import hashlib
import itertools
import platform
import shutil
import sys
import tempfile
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
from distributed import (
    CancelledError,
    Client,
    KilledWorker,
    WorkerPlugin,
    as_completed,
    get_worker,
)
from distributed import Worker as DaskWorker
from tqdm import tqdm

import lmcore
import lmcourse
from lmcourse import CourseError

from .intake import Content
from .pool import Pool
from .worker import Worker

if TYPE_CHECKING:  # the cluster's processes need not import how a unit is made
    from .unit import Unit

CONNECT_SECONDS = 8
AHEAD = 200  # submissions on the cluster at a time, or two full tasks for each thread
TOGETHER = 8  # submissions in a task at most; for one alone Dask adds a quarter to it
ROUNDS = 8  # tasks for each thread at least, so that all end at about the same time
KEPT = "results are kept, run the same command again"


def grade(
    address: str,
    about: "Unit",
    contents: Mapping[str, Content],
    ahead: int | None = None,
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Grade submissions on a cluster; yields student, key and result.

    Args:
        address: the scheduler's, such as ``tcp://10.0.0.7:8786``
        about: the unit; its blank lmcore is made already
        contents: by student what was handed in
        ahead: how many submissions are on the cluster at a time

    Raises:
        CourseError: if the cluster cannot be used, or lost submissions for good.
    """
    unit = UnitOnWorker(about)
    with _connect(address) as client:
        try:
            client.register_plugin(unit, name=unit.name)
            yield from _map(client, about, unit, contents, ahead)
        except CourseError:
            raise
        except (CancelledError, OSError) as error:
            raise CourseError(f"the cluster at {address} is gone; {KEPT}") from error
        except Exception as error:  # whatever a process without the project raises
            raise CourseError(
                f"the cluster at {address} cannot grade: {error!r}; its scheduler and "
                "its workers need this project, installed as it is here"
            ) from error
        finally:
            if client.status == "running":
                client.unregister_worker_plugin(unit.name)


def _connect(address: str) -> Client:
    """Connect to a scheduler."""
    try:
        return Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise CourseError(
            f"no Dask scheduler answers at {address} ({error}); it is an address such "
            "as tcp://10.0.0.7:8786, which `dask scheduler` says when it starts"
        ) from error


def _map(
    client: Client,
    about: "Unit",
    unit: "UnitOnWorker",
    contents: Mapping[str, Content],
    ahead: int | None,
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Have so many submissions on the cluster, and new ones when some are done."""
    n_threads = sum(client.nthreads().values())
    if n_threads == 0:
        waits = "the cluster has no worker yet; waiting for the first one"
        tqdm.write(waits, file=sys.stderr)
        n_threads = 1
    run, numbers, there, lost = uuid.uuid4().hex, itertools.count(), {}, []
    ahead = ahead or max(AHEAD, 2 * n_threads * TOGETHER)
    fair = len(contents) // (ROUNDS * n_threads), ahead // (2 * n_threads)
    together = max(1, min(*fair, TOGETHER))
    everybody = list(contents)
    waiting = deque(
        everybody[i : i + together] for i in range(0, len(everybody), together)
    )

    def submit_next() -> Any:
        students = waiting.popleft()
        key = (f"grade-{run}", next(numbers))  # as one group, which Dask holds back
        work = (unit.name, unit.key, [contents[student] for student in students])
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1G"}):
            future = client.submit(grade_some, *work, key=key)
        there[future.key] = students
        return future

    n_first = min(ahead // together, len(waiting))
    first = [submit_next() for _ in range(n_first)]
    running = as_completed(first, loop=client.loop)
    for future in running:
        students = there.pop(future.key)
        try:
            results = future.result()
        except KilledWorker:
            if len(students) == 1:
                lost += students
            else:  # one of them perhaps; the others need not suffer from it
                waiting.extendleft([student] for student in students)
        else:
            for student, result in zip(students, results, strict=True):
                yield student, about.key(contents[student]), result
        if waiting:
            running.add(submit_next())
    if lost:
        raise CourseError(
            f"{len(lost)} submissions lost their worker again and again, {lost[0]} "
            f"among them; the other {KEPT}"
        )


def grade_some(name: str, key: str, contents: list[Content]) -> list[dict[str, Any]]:
    """Grade submissions; runs in a process of the cluster."""
    dask_worker = get_worker()
    unit = dask_worker.plugins.get(name)
    if unit is None or unit.key != key:
        raise CourseError(f"another command grades this unit on the cluster; {KEPT}")
    try:
        return [unit.grade(content) for content in contents]
    except CourseError as error:
        raise CourseError(f"worker {dask_worker.address}: {error}") from None


class UnitOnWorker(WorkerPlugin):
    """A unit under grading in a process of the cluster: all that is known there.

    The files lie in Dask's scratch folder, readable for their owner, and disappear with
    the run. The secret is in memory only.
    """

    def __init__(self, about: "Unit") -> None:
        course = hashlib.sha256(about.secret).hexdigest()[:16]
        self.name = f"lmcourse {about.name} {course}"
        self.facts = (about.manifest, about.tests)
        self.secret, self.device = about.secret, about.device
        places = {"manifest.json": about.manifest_path}
        places |= {"mistakes.py": about.mistakes_path}
        for path in sorted(about.tree.rglob("*")):
            places[f"tree/{path.relative_to(about.tree).as_posix()}"] = path
        self.files = {n: p.read_bytes() for n, p in places.items() if p.is_file()}
        self.key = about.key(b"")
        self.made_with = environment()

    def setup(self, worker: DaskWorker) -> None:
        """Write the files."""
        scratch = worker.local_directory
        self.folder = Path(tempfile.mkdtemp(prefix="lmcourse-", dir=scratch))
        for name, content in self.files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        self.pool = Pool(self._start)

    def teardown(self, worker: DaskWorker) -> None:
        """End the worlds and the judges, and forget the unit."""
        self.pool.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def grade(self, content: Content) -> dict[str, Any]:
        """Grade a submission.

        Raises:
            CourseError: if this process would not give the same result as the command.
        """
        ours = environment()
        for name, theirs in self.made_with.items():
            if ours[name] != theirs:
                raise CourseError(
                    f"it has {name} {ours[name]}, the command has {theirs}; install "
                    "the same project there and start the cluster again"
                )
        return self.pool.grade(content)

    def _start(self) -> Worker:
        manifest, mistakes = self.folder / "manifest.json", self.folder / "mistakes.py"
        places = (manifest, mistakes, self.folder / "tree")
        return Worker(*self.facts, *places, self.secret, device=self.device)


@functools.cache
def environment() -> dict[str, str]:
    """What has to be the same for the same bytes to give the same result."""
    packages = (Path(lmcourse.__file__).parent, Path(lmcore.__file__).parent)
    code = hashlib.sha256()
    for path in (
        path for package in packages for path in sorted(package.rglob("*.py"))
    ):
        code.update(path.read_bytes())
    return {
        "the project's code": code.hexdigest()[:12],
        "Python": platform.python_version(),
        "torch": metadata.version("torch"),
        "numpy": metadata.version("numpy"),
    }

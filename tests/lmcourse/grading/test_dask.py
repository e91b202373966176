"""A class graded on a Dask cluster: a scheduler and two workers, real processes.

SLURM is not here. What dask-jobqueue would hand to it runs on this machine instead,
from the very lines of the page for teachers.
"""

import contextlib
import importlib.util
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from distributed import Client

from lmcourse import CourseError, paths
from lmcourse.grading import cluster, engine
from lmcourse.grading.unit import Unit, load_result

UNIT = "07_tiny"
REPOSITORY = Path(__file__).parents[3]
SECONDS = 60  # that anything may take to start or to end
ANSWERS = [
    "def average(x):\n    return x.sum(-1) / x.shape[-1]",
    "def average(x):\n    return x.sum(-1) / (x.shape[-1] - 1)",
    "def average(x):\n    return x.sum(-1) / x.shape[-1] if len(x) > 2 else x",
    "def average(x):\n    return x.sum(-1) / x.shape[-1] + torch.rand(()) / 1e3",
    "import os\nprint(sorted(os.environ), os.getcwd())\nos._exit(3)",
]


class Cluster:
    """A scheduler and two workers that know the project, but not the class."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "scheduler.json"
        self.scratch = folder / "scratch"
        self.processes: list[subprocess.Popen] = []
        self.start("scheduler", "--port", "0", "--host", "127.0.0.1")
        self.address = self._read_address()
        self.workers = [self.start_worker() for _ in range(2)]

    def _read_address(self) -> str:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError, ValueError):
                return json.loads(self.file.read_text())["address"]
            time.sleep(0.05)
        raise AssertionError("the scheduler does not start")

    def start(self, kind: str, *options: str) -> subprocess.Popen:
        """Start one of Dask's own commands in an empty folder."""
        command = [sys.executable, "-m", "dask", kind, "--no-dashboard", *options]
        with (self.folder / f"{kind}.log").open("ab") as log:
            process = subprocess.Popen(
                [*command, "--scheduler-file", str(self.file)],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def start_worker(self) -> subprocess.Popen:
        """Start a worker that nobody starts again when it dies."""
        scratch = ["--local-directory", str(self.scratch)]
        return self.start("worker", "--nthreads", "1", "--no-nanny", *scratch)

    def allow(self, failures: int) -> None:
        """Have the scheduler give up a task that has lost more workers than that."""

        def set_there(dask_scheduler) -> None:
            dask_scheduler.allowed_failures = failures

        with Client(self.address, set_as_default=False) as client:
            client.run_on_scheduler(set_there)

    def close(self) -> None:
        """End all processes."""
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def dask_cluster(sandboxed, tmp_path_factory) -> Iterator[Cluster]:
    with contextlib.closing(Cluster(tmp_path_factory.mktemp("cluster"))) as running:
        yield running


@pytest.fixture
def handed(hand_in, handed_in) -> dict[str, bytes]:
    """A class of ten in the course's folder; nobody's work is like another's."""
    contents = {
        f"student{n:02}": handed_in(average=f"{ANSWERS[n % 5]}\nprint({n})")
        for n in range(10)
    }
    for student, content in contents.items():
        hand_in(student, content)
    return contents


def helpers(process: subprocess.Popen) -> list[psutil.Process]:
    """The judges and students' worlds that a worker has started."""
    return psutil.Process(process.pid).children(recursive=True)


def forget() -> None:
    """Forget all results."""
    shutil.rmtree(paths.course() / "results")
    (paths.course() / "gradebook.db").unlink(missing_ok=True)


def files_of(students: list[str]) -> dict[str, str]:
    """The kept results, byte for byte."""
    folder = paths.course() / "results" / UNIT
    return {student: (folder / f"{student}.json").read_text() for student in students}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rounds", "failures"), [(8, 3), (2, 0)], ids=["one by one", "tasks taken apart"]
)
def test_a_worker_killed_half_way_changes_no_result(
    dask_cluster, handed, hand_in, rounds, failures, monkeypatch
):
    """Dask gives a task that was lost to another worker, until it has failed so often.

    Then its submissions go there one by one.
    """
    monkeypatch.setattr(cluster, "ROUNDS", rounds)
    dask_cluster.allow(failures)
    hand_in("zoe", b"no notebook")
    students = [*handed, "zoe"]
    engine.grade_folder(UNIT)
    expected = files_of(students)
    forget()
    about = Unit(UNIT)
    done = []
    victim = dask_cluster.workers[0]
    for student, key, result in cluster.grade(dask_cluster.address, about, handed):
        about.save(student, key, result)
        done.append(student)
        if victim.returncode is None and len(done) >= 3 and (theirs := helpers(victim)):
            victim.kill()
            assert victim.wait() == -9
    assert victim.returncode == -9
    assert sorted(done) == list(handed)
    gone, alive = psutil.wait_procs(theirs, SECONDS)
    assert gone
    assert not alive
    assert helpers(dask_cluster.workers[1]) == []
    assert not list(dask_cluster.scratch.glob(f"*{dask_cluster.workers[1].pid}*/lmc*"))
    # The command goes on from here: one is left, and a worker that came later helps.
    (paths.course() / "results" / UNIT / "student03.json").unlink()
    dask_cluster.workers[0] = dask_cluster.start_worker()
    summary = engine.grade_folder(UNIT, scheduler=dask_cluster.address)
    assert (summary.graded, summary.refused) == (2, 1)
    assert files_of(students) == expected


@pytest.mark.slow
def test_another_environment_is_named(dask_cluster, hand_in, monkeypatch):
    hand_in("ada")
    other = {**cluster.environment(), "torch": "1.0"}
    monkeypatch.setattr(cluster, "environment", lambda: other)
    with pytest.raises(CourseError, match=r"worker tcp:.*it has torch .* has 1\.0"):
        engine.grade_folder(UNIT, scheduler=dask_cluster.address)
    assert load_result(UNIT, "ada") is None
    assert all(helpers(worker) == [] for worker in dask_cluster.workers)


def test_a_worker_holds_the_unit_and_nothing_of_the_class(handed, here):
    about = Unit(UNIT)
    about.make_tree()
    unit = cluster.UnitOnWorker(about)
    others = {name for name in unit.files if not name.startswith("tree/lmcore/")}
    assert others == {"manifest.json", "mistakes.py"}
    blank = unit.files["tree/lmcore/attention.py"]
    assert b"NotImplementedError" in blank
    assert blank == (about.tree / "lmcore" / "attention.py").read_bytes()
    shipped = pickle.dumps(unit)
    assert not [student for student in handed if student.encode() in shipped]
    assert str(here).encode() not in shipped  # no path of this machine


def test_no_scheduler_is_one_sentence(hand_in, monkeypatch):
    hand_in("ada")
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    for address in ("tcp://127.0.0.1:9", "nonsense://here", "tcp://127.0.0.1"):
        with pytest.raises(CourseError, match=f"no Dask scheduler answers.*{address}"):
            engine.grade_folder(UNIT, scheduler=address)
    with pytest.raises(CourseError, match="leave out --unsafe"):
        engine.grade_folder(UNIT, unsafe=True, scheduler=address)


SBATCH = """#!/bin/sh
cp "$1" "$0.script"
sh "$0.script" > "$0.log" 2>&1 &
echo "Submitted batch job $!"
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """Commands of SLURM's names that run a job right here; gives the one to submit."""
    if importlib.util.find_spec("dask_jobqueue") is None:
        pytest.skip("dask-jobqueue is not installed: nothing was tried about SLURM")
    submit = tmp_path / "sbatch"
    submit.write_text(SBATCH)
    (tmp_path / "scancel").write_text('#!/bin/sh\nkill "$@"\n')
    for command in tmp_path.iterdir():
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    known = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(known))
    return submit


@pytest.mark.slow
def test_slurm_as_the_page_for_teachers_says(slurm, sandboxed, hand_in, handed_in):
    page = (REPOSITORY / "book" / "teachers.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```python\n([^`]*SLURMCluster[^`]*)```", page)
    text = "\n".join(line.removeprefix("  ") for line in lines.splitlines())
    for large, small in (("cores=16", "cores=1"), ("jobs=8", "jobs=1")):
        assert text.count(large) == 1
        text = text.replace(large, small)  # what this machine can do
    hand_in("ada")
    hand_in("bob", handed_in(average=ANSWERS[1]))
    login = subprocess.Popen(
        [sys.executable, "-c", text],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        address = login.stdout.readline().strip()
        assert address.startswith("tcp://")
        assert engine.grade_folder(UNIT, scheduler=address).graded == 2
        login.communicate("\n", timeout=SECONDS)
        assert login.returncode == 0
    finally:
        login.send_signal(signal.SIGKILL)
        login.wait()
    assert load_result(UNIT, "ada")["result"]["score"] == 7
    assert load_result(UNIT, "bob")["result"]["score"] == 3
    script = slurm.with_name("sbatch.script").read_text()
    wanted = ("-p normal", "-n 1", "--cpus-per-task=1", "--mem=30G", "-t 01:00:00")
    for option in wanted:
        assert f"#SBATCH {option}\n" in script
    assert f"dask_worker {address}" in script
    assert "--local-directory /tmp" in script

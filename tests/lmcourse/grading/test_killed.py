"""A process of a submission that is killed: who kills cannot be seen, so it runs again.

A kill from outside costs nothing. One by the student's own code costs what it always
did, as it happens again; the second time counts, whatever happened the first time.
"""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from lmcourse.grading import sandbox

pytestmark = pytest.mark.slow

UNIT = "07_tiny"
WAITS = "import time\ntime.sleep(4)\n"
RIGHT = "def average(x):\n    {}return x.sum(-1) / x.shape[-1]\n"
SLOW_CELL = WAITS + RIGHT.format("")
SLOW_TEST = RIGHT.format("import time; time.sleep(1); ")
KILL = "import os\n    os.kill({}, 9)\n    "
KILL_OTHERS = (
    "import contextlib, os\n    with contextlib.suppress(OSError):\n"
    "        os.kill({}, 9)\n    "
)
OTHERS = {"the keeper": "os.getppid()", "all": "-1"}
SECONDS = 60  # to wait for a process of the submission


@pytest.fixture(scope="module")
def worker(start_worker):
    """A student's world and a judge of our own, which are gone after these tests."""
    with start_worker() as running:
        yield running


@pytest.fixture
def worlds(worker, monkeypatch) -> list[int]:
    """Counts the worlds that are opened for submissions."""
    opened, once = [], sandbox.WarmParent.open

    def count(self: sandbox.WarmParent) -> object:
        opened.append(1)
        return once(self)

    monkeypatch.setattr(sandbox.WarmParent, "open", count)
    return opened


def chain(worker) -> list[psutil.Process]:
    """From the warm parent down: what was forked from it, one from the other."""
    found = [psutil.Process(worker.parent.process.pid)]
    while below := found[-1].children():
        found.append(below[-1])
    return [p for p in found if p.name() != "bwrap"]


def kill_from_outside(worker, which: int, times: int) -> int:
    """Kill one of warm parent, its fork, keeper and main line, once per world."""
    worlds = set()
    deadline = time.monotonic() + SECONDS
    while len(worlds) < times and time.monotonic() < deadline:
        time.sleep(0.02)
        with contextlib.suppress(psutil.NoSuchProcess):
            found = chain(worker)
            world = found[min(which, 2)].pid if len(found) > which else None
            if world not in {None, *worlds}:
                time.sleep(0.5)  # what is given has run then; what is slow has not
                found[which].kill()
                worlds.add(world)
    return len(worlds)


@pytest.mark.parametrize(
    ("which", "answer"),
    [(0, SLOW_CELL), (2, SLOW_CELL), (2, SLOW_TEST), (3, SLOW_CELL), (3, SLOW_TEST)],
    ids=["warm parent", "keeper", "keeper in a test", "main line", "test"],
)
def test_a_kill_from_outside_costs_nothing(worker, handed_in, worlds, which, answer):
    content = handed_in(average=answer)
    expected = worker.grade(content)
    assert expected["score"] == 7
    assert len(worlds) == 1
    with ThreadPoolExecutor() as meanwhile:
        killing = meanwhile.submit(kill_from_outside, worker, which, times=1)
        result = worker.grade(content)
    assert killing.result() == 1
    assert len(worlds) >= 3
    assert result == expected


def test_a_second_kill_counts(worker, handed_in):
    with ThreadPoolExecutor() as meanwhile:
        killing = meanwhile.submit(kill_from_outside, worker, which=3, times=2)
        result = worker.grade(handed_in(average=SLOW_CELL))
    assert killing.result() == 2
    assert result["questions"]["average"]["score"] == 0
    assert result["questions"]["causal_mask"]["score"] == 3
    assert result["cells"]["average"]["end"] == "crash"


def test_who_kills_oneself_gains_nothing(worker, handed_in, worlds):
    suicide = RIGHT.format(KILL.format("os.getpid()"))
    result = worker.grade(handed_in(average=suicide))
    assert result["questions"]["average"]["score"] == 0
    assert result["questions"]["causal_mask"]["score"] == 3
    assert result["tests"]["average_checks"]["end"] == "crash"
    assert len(worlds) > 1


@pytest.mark.parametrize("victim", OTHERS)
def test_nobody_else_can_be_killed(worker, handed_in, worlds, victim):
    """The keeper is the first of its processes: the kernel keeps such signals away."""
    harmless = RIGHT.format(KILL_OTHERS.format(OTHERS[victim]))
    result = worker.grade(handed_in(average=harmless))
    assert result["score"] == 7
    assert len(worlds) == 1


def test_who_crashes_otherwise_is_run_once(worker, handed_in, worlds):
    """Nobody outside sends these signals, so there is nothing to find out."""
    segfault = "import ctypes\n    ctypes.string_at(0)\n    "
    result = worker.grade(handed_in(average=RIGHT.format(segfault)))
    assert result["tests"]["average_checks"]["end"] == "crash"
    assert result["score"] == 3
    assert len(worlds) == 1

"""The student's world: run a submission's cells and record the values of its checks.

Four kinds of process, each forked from the one before:

- the *warm parent* has imported torch and a lmcore without the graded bodies. It reads
  no submission; for each one it receives a socket and forks,
- the *keeper*, first process of new namespaces. It talks with the grader outside, keeps
  the time, and runs no student's code. From it comes
- the *main line*, which runs the cells. If one hangs or dies, the keeper forks another
  main line, which runs the others without that one. Then
- *tests* run in a fork of the main line: one alone, or several one after the other.
  What is hidden of a test arrives statement by statement, each when the one before it
  is done, and the first one only after all cells; where several tests share a process,
  after all that is visible of them.

Values leave as plain data; whether they are right is not known here.
"""

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

from . import crowd, jail, wire

SLACK = 3  # seconds on the clock allowed for each second of computing
GRACE = 5.0  # seconds for a process that ended to be reported
TICK = 0.1  # seconds from one look at the main line to the next
MAX_TEST_BYTES = 32_000_000  # of all the values of one test
MAX_PROCESS = 1 << 22  # the largest number that Linux gives to a process
SHARE = 3  # times what one process may have is what all of a submission may have


def main() -> None:
    """Be the warm parent: fork once for every socket that arrives."""
    sandboxed = "--no-sandbox" not in sys.argv
    if sandboxed:
        jail.become_nobody()
    control = socket.socket(fileno=0)
    _warm_up()
    orders = wire.receive(control)
    for module in orders["import"]:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    gc.collect()
    gc.freeze()  # so that a child's garbage collection copies no page of the parent
    base = jail.address_space()
    processes = crowd.Crowd(SHARE * (orders["memory_mb"] << 20))
    wire.send(control, {"ready": True})
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not descriptors:
            return
        child = os.fork()
        if child == 0:
            control.close()
            _keep(socket.socket(fileno=descriptors[0]), base, sandboxed)
            os._exit(0)
        os.close(descriptors[0])
        if sandboxed:
            processes.wait(child)
        else:
            os.waitpid(child, 0)


def _warm_up() -> None:
    """Import what every submission needs, and let torch look at the processor."""
    import torch

    torch.set_num_threads(1)
    from . import world

    weight = torch.ones(8, 8, requires_grad=True)
    torch.softmax(weight @ weight, dim=-1).sum().backward()
    world.Test("", 0, {}).run("1 / 0")
    world.run_cell("print(1)", "warm", {})


def _keep(channel: socket.socket, base: int, sandboxed: bool) -> None:
    """Be the keeper of one submission, from its first cell to its last value."""
    if sandboxed:
        jail.enter()
    else:
        os.setsid()
    # The one signal that a student's code could end this process with.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    try:
        work = wire.receive(channel)
        keeper = Keeper(channel, work, base, sandboxed)
        wire.send(channel, {"cells": keeper.run_cells(work["cells"])})
        while True:
            order = wire.receive(channel)
            for result in keeper.run_tests(order["tests"], order["go_on"]):
                wire.send(channel, result)
    except wire.Broken:
        return  # the grader has gone away


class Keeper:
    """Runs cells and tests through the main line, and ends what exceeds its limit."""

    def __init__(
        self, channel: socket.socket, work: dict[str, Any], base: int, sandboxed: bool
    ) -> None:
        self.channel, self.base = channel, base
        self.main_line: int  # the process
        self.status: int | None = None  # with which the main line has ended
        self.link: socket.socket  # to the main line and what comes from it
        self.process: object = None  # the one for tests: its number, as it says itself
        self.begun: set[str] = set()  # the tests that have run in it
        self.length = 0  # bytes of the last message
        self.lost = False  # the main line itself is gone
        if sandboxed:
            jail.limit_submission(
                self._memory(work["max_memory_mb"]),
                work["max_seconds"],
            )

    def _memory(self, megabytes: int) -> int:
        return self.base + (megabytes << 20) if self.base else 0

    def _order(self, facts: dict[str, Any]) -> dict[str, Any]:
        """A cell or test as the main line gets it."""
        return {**facts, "memory": self._memory(facts["memory_mb"])}

    # Cells

    def run_cells(self, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Run the cells: for each how it ended, what it printed, and its error."""
        results: dict[str, dict[str, Any]] = {}
        waiting = list(cells)
        while True:
            done, how = self._try_cells(waiting)
            results.update(done)
            if how is None:
                return [results[cell["id"]] for cell in cells]
            bad = waiting.pop(len(done))
            results[bad["id"]] = {"end": how}

    def _try_cells(
        self, cells: list[dict[str, Any]]
    ) -> tuple[dict[str, dict[str, Any]], str | None]:
        """Run cells in a new main line: those done, and how the next one ended."""
        done: dict[str, dict[str, Any]] = {}
        self._start_main_line([self._order(cell) for cell in cells])
        for cell in cells:
            deadline = time.monotonic() + SLACK * cell["seconds"] + 1
            try:
                answer = self._receive(deadline, MAX_TEST_BYTES)
            except TimeoutError:
                self._end_main_line(0)
                return done, "timeout"
            except (wire.Broken, EOFError):
                return done, self._end_main_line(GRACE)
            done[cell["id"]] = {"end": "done", **answer}
        return done, None

    def _start_main_line(self, cells: list[dict[str, Any]]) -> None:
        self.link, theirs = socket.socketpair()
        self.status = None
        self.main_line = os.fork()
        if self.main_line == 0:
            self.channel.close()
            self.link.close()
            _be_main_line(theirs, cells)
            os._exit(0)
        theirs.close()

    def _end_main_line(self, patience: float) -> str:
        """Wait for the main line's end, or end it; says how it ended by itself."""
        self.link.close()
        deadline = time.monotonic() + patience
        while not self._main_line_ended():
            if time.monotonic() > deadline:
                _kill(self.main_line)
                os.waitpid(self.main_line, 0)
                return "too much"
            time.sleep(TICK)
        return _how(self.status)

    def _main_line_ended(self) -> bool:
        if self.status is None:
            process, status = os.waitpid(self.main_line, os.WNOHANG)
            self.status = status if process else None
        return self.status is not None

    def _receive(self, deadline: float, max_bytes: int) -> dict[str, Any]:
        """The next message over the link.

        Raises:
            TimeoutError: at the deadline.
            wire.Broken: for a message that is none.
            EOFError: if the main line has ended and said nothing more; a process that
                it left may hold the link open.
        """
        while not self._has_word(TICK):
            if time.monotonic() > deadline:
                raise TimeoutError
            if self._main_line_ended() and not self._has_word(0):
                raise EOFError
        answer, self.length = wire.receive_sized(self.link, deadline, max_bytes)
        return answer

    def _has_word(self, seconds: float) -> bool:
        return bool(select.select([self.link], [], [], seconds)[0])

    # Tests

    def run_tests(
        self, tests: list[dict[str, Any]], go_on: bool
    ) -> Iterator[dict[str, Any]]:
        """Run tests one after the other in one new process; after a bad end in another.

        Args:
            tests: what to run
            go_on: run more statements of tests in the process where they began; those
                whose process is gone are skipped

        Yields:
            For each how it ended, and for each statement done its values and its error.
        """
        if not go_on:
            self._end_process()
        for test in tests:
            if go_on and test["id"] not in self.begun:
                result = {"id": test["id"], "end": "skipped", "statements": []}
            else:
                result = self._run_test(test)
            if go_on and self._main_line_ended():
                result["end"] = "lost"  # a test may have outlived what it killed
            yield result

    def _run_test(self, test: dict[str, Any]) -> dict[str, Any]:
        result = {"id": test["id"], "end": "done", "statements": []}
        try:
            if not self.begun:
                self._begin()
            self.begun.add(test["id"])
            wire.send(self.link, {"test": self._order({**test, "batches": []})})
            for answer in self._run_statements(test):
                result["statements"].append(answer)
        except _Ended as end:
            result["end"] = end.how
            self.begun.clear()
        except wire.Broken:
            self.lost = True
            result["end"] = "lost"
        return result

    def _run_statements(self, test: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Hand a test's statements in, batch by batch."""
        deadline = time.monotonic() + SLACK * test["seconds"] + 1
        room = MAX_TEST_BYTES
        for batch in test["batches"]:
            wire.send(self.link, {"statements": batch})
            for _ in batch:
                yield self._answer(deadline, room)
                room -= self.length
        wire.send(self.link, {"statements": []})

    def _begin(self) -> None:
        """Have the main line fork for tests."""
        self.process = None
        if self.lost:
            raise _Ended("lost")
        wire.send(self.link, {"fork": True})
        try:
            answer = self._answer(time.monotonic() + GRACE)
        except _Ended:
            answer = {}  # of the process before, which had sent a message too many
        if "started" not in answer:
            self.lost = True
            raise _Ended("lost")
        self.process = answer["started"]

    def _end_process(self) -> None:
        """Let the process for tests end, if there is one; how it does costs nothing."""
        if self.begun and not self.lost:
            self.begun.clear()
            with contextlib.suppress(_Ended, wire.Broken):
                wire.send(self.link, {"test": None})
                self._answer(time.monotonic() + GRACE)

    def _answer(
        self, deadline: float, max_bytes: int = MAX_TEST_BYTES
    ) -> dict[str, Any]:
        """The next message from the running process.

        Raises:
            _Ended: if the process ended or was ended.
        """
        how = None
        try:
            answer = self._receive(deadline, max_bytes)
        except TimeoutError:
            how, answer = "timeout", self._kill()
        except wire.Broken:
            # Nothing can be read after a broken message: its end is unknown.
            self.lost = True
            self._kill_process()
            raise _Ended("too much") from None
        except EOFError:
            self.lost = True
            self._kill_process()
            how = "killed" if _how(self.status) == "killed" else "crash"
            raise _Ended(how) from None
        if "ended" in answer:
            raise _Ended(how or _how(answer["ended"]))
        return answer

    def _kill_process(self) -> None:
        if type(self.process) is int and 1 < self.process <= MAX_PROCESS:
            _kill(self.process)

    def _kill(self) -> dict[str, Any]:
        """End the running process; skip what it had still sent."""
        self._kill_process()
        deadline = time.monotonic() + GRACE
        try:
            while "ended" not in (answer := wire.receive(self.link, deadline)):
                continue
        except (TimeoutError, wire.Broken):
            self.lost = True
            return {"ended": 0}
        return answer


class _Ended(Exception):  # noqa: N818
    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


def _how(status: object) -> str:
    """Say in a word how a process ended that should have gone on."""
    if not isinstance(status, int) or not os.WIFSIGNALED(status):
        return "exit"
    ends = {signal.SIGXCPU: "timeout", signal.SIGKILL: "killed"}
    return ends.get(os.WTERMSIG(status), "crash")


def _kill(process: int) -> None:
    """End a process and those in its group."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            kill(process, signal.SIGKILL)


def _be_main_line(link: socket.socket, cells: list[dict[str, Any]]) -> None:
    """Run the cells, then fork for every order."""
    from . import world

    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setpgid(0, 0)
    namespace = world.new_namespace()
    for cell in cells:
        jail.limit_work(cell["memory"], cell["seconds"])
        wire.send(link, world.run_cell(cell["source"], cell["id"], namespace))
    while True:
        try:
            wire.receive(link)
        except wire.Broken:
            return
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a cell may have ignored it
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            wire.send(link, {"started": os.getpid()})
            _run_tests(link, namespace)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        wire.send(link, {"ended": status})


def _run_tests(link: socket.socket, namespace: dict) -> None:
    """Run the statements that arrive, each in the test that it belongs to."""
    from . import world

    running: dict[str, world.Test] = {}
    while order := wire.receive(link)["test"]:
        name = order["id"]
        if name not in running:
            running[name] = world.Test(order["question"], order["seed"], namespace)
        jail.limit_work(order["memory"], order["seconds"])
        while batch := wire.receive(link)["statements"]:
            for statement in batch:
                records, error = running[name].run(statement)
                values = [record["value"] for record in records]
                wire.send(link, {"values": values, "error": error})


if __name__ == "__main__":
    main()

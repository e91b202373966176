"""The student's world: run a submission's cells and record the values of its checks.

Three kinds of process, each forked from the one before:

- the *warm parent* has imported torch and a lmcore without the graded bodies. It reads
  no submission; for each one it receives a socket and forks,
- the *keeper*, first process of new namespaces. It talks with the grader outside, keeps
  the time, and runs no student's code. From it comes
- the *main line*, which runs the cells and then tests: several one after the other, or
  one alone. If a cell hangs or dies, the keeper forks another main line, which runs the
  others without that one. If a test does, or is to run alone, another main line runs
  the cells again: only files that a test has written reach a later process.

What is hidden of a test arrives statement by statement, each when the one before it is
done, and the first one only after all cells; where several tests share a main line,
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
TICK = 0.05  # seconds from one look at the main line to the next
MAX_TEST_BYTES = 32_000_000  # of all the values of one test
SHARE = 3  # times what one process may have is what all of a submission may have


def main() -> None:
    """Be the warm parent: fork once for every socket that arrives."""
    sandboxed = "--no-sandbox" not in sys.argv
    if sandboxed:
        jail.become_nobody()
    control = socket.socket(fileno=0)
    _warm_up()
    orders = wire.receive(control)
    device = orders["device"]
    for module in orders["import"]:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    gc.collect()
    gc.freeze()  # so that a child's garbage collection copies no page of the parent
    # A GPU's memory takes up addresses, as much as there is: no limit would hold.
    base = jail.address_space() if device == "cpu" else 0
    processes = crowd.Crowd(SHARE * (orders["memory_mb"] << 20))
    wire.send(control, {"ready": True})
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not descriptors:
            return
        child = os.fork()
        if child == 0:
            control.close()
            _keep(socket.socket(fileno=descriptors[0]), device, base, sandboxed)
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
    world.Test("", 0, {}).run(compile("1 / 0", "<check>", "exec"))
    world.run_cell("print(1)", "warm", {})


def _keep(channel: socket.socket, device: str, base: int, sandboxed: bool) -> None:
    """Be the keeper of one submission, from its first cell to its last value."""
    if sandboxed:
        jail.enter(hide_proc=device == "cpu")  # a GPU's driver reads there
    else:
        os.setsid()
    # The one signal that a student's code could end this process with.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    try:
        work = wire.receive(channel)
        keeper = Keeper(channel, work, device, base, sandboxed)
        wire.send(channel, {"cells": keeper.run_cells(work["cells"])})
        while True:
            order = wire.receive(channel)
            for result in keeper.run_tests(order["tests"], order["go_on"]):
                wire.send(channel, result)
    except wire.Broken:
        return  # the grader has gone away


class Keeper:
    """Runs cells and tests in main lines, and ends what exceeds its limit."""

    def __init__(
        self,
        channel: socket.socket,
        work: dict[str, Any],
        device: str,
        base: int,
        sandboxed: bool,
    ) -> None:
        self.channel, self.device = channel, device
        self.base, self.sandboxed = base, sandboxed
        self.cells: list[dict[str, Any]] = []  # those that end
        self.main_line: int | None = None  # the process
        self.status: int | None = None  # with which it has ended
        self.link: socket.socket  # to it
        self.length = 0  # bytes of its last message
        self.begun: set[str] = set()  # the tests that have run in it
        self.last_start = time.monotonic() + SLACK * work["max_seconds"]
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
        self.cells = list(cells)
        results: dict[str, dict[str, Any]] = {}
        while True:
            done, how = self._try_cells()
            results.update(done)
            if how is None:
                return [results[cell["id"]] for cell in cells]
            bad = self.cells.pop(len(done))
            results[bad["id"]] = {"end": how}

    def _try_cells(self) -> tuple[dict[str, dict[str, Any]], str | None]:
        """Run the cells in a new main line: those done, and how the next one ended."""
        done: dict[str, dict[str, Any]] = {}
        self._start_main_line()
        for cell in self.cells:
            deadline = time.monotonic() + SLACK * cell["seconds"] + 1
            try:
                answer = self._answer(deadline, MAX_TEST_BYTES)
            except _Ended as end:
                return done, end.how
            done[cell["id"]] = {"end": "done", **answer}
        return done, None

    # Tests

    def run_tests(
        self, tests: list[dict[str, Any]], go_on: bool
    ) -> Iterator[dict[str, Any]]:
        """Run tests one after the other in one main line; after a bad end in another.

        Args:
            tests: what to run
            go_on: run more statements of tests in the main line where they began; those
                whose main line is gone are skipped

        Yields:
            For each how it ended, and for each statement done its values and its error.
        """
        if self.begun and not go_on:
            self._end_main_line()
        for test in tests:
            result = {"id": test["id"], "end": "done", "statements": []}
            if go_on and test["id"] not in self.begun:
                result["end"] = "skipped"
            else:
                try:
                    for answer in self._run_test(test):
                        result["statements"].append(answer)
                except _Ended as end:
                    result["end"] = end.how
            yield result

    def _run_test(self, test: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Hand a test's statements in, batch by batch."""
        if self.main_line is None:
            self._run_cells_again()
        self.begun.add(test["id"])
        self._send({"test": self._order({**test, "batches": []})})
        deadline = time.monotonic() + SLACK * test["seconds"] + 1
        room = MAX_TEST_BYTES
        for batch in test["batches"]:
            self._send({"statements": batch})
            for _ in batch:
                yield self._answer(deadline, room)
                room -= self.length
        self._send({"statements": []})

    def _run_cells_again(self) -> None:
        """Start another main line for tests.

        Raises:
            _Ended: if a cell ends it now, or the whole submission takes too long.
        """
        if time.monotonic() > self.last_start:
            raise _Ended("timeout")
        _, how = self._try_cells()
        if how is not None:
            raise _Ended(how)

    # The main line

    def _start_main_line(self) -> None:
        self.link, theirs = socket.socketpair()
        self.status = None
        self.main_line = os.fork()
        if self.main_line == 0:
            self.channel.close()
            self.link.close()
            orders = [self._order(cell) for cell in self.cells]
            _be_main_line(theirs, orders, self.device)
            os._exit(0)
        theirs.close()

    def _end_main_line(self, patience: float = 0.0) -> str:
        """End the main line and what it left; says how it ended if by itself."""
        self.link.close()
        deadline = time.monotonic() + patience
        while not (ended := self._main_line_ended()) and time.monotonic() < deadline:
            time.sleep(TICK)
        if not ended:
            _kill(self.main_line)
            os.waitpid(self.main_line, 0)
        if self.sandboxed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)  # all but this first process
        self.main_line = None
        self.begun.clear()
        return _how(self.status) if ended else "too much"

    def _main_line_ended(self) -> bool:
        if self.status is None:
            process, status = os.waitpid(self.main_line, os.WNOHANG)
            self.status = status if process else None
        return self.status is not None

    def _send(self, message: dict[str, Any]) -> None:
        """Send a message to the main line.

        Raises:
            _Ended: if it has ended.
        """
        try:
            wire.send(self.link, message)
        except wire.Broken:
            raise _Ended(self._end_main_line(GRACE)) from None

    def _answer(self, deadline: float, max_bytes: int) -> dict[str, Any]:
        """The main line's next message.

        Raises:
            _Ended: if it has ended, or was ended at the deadline or for a message that
                is none.
        """
        try:
            return self._receive(deadline, max_bytes)
        except TimeoutError:
            self._end_main_line()
            raise _Ended("timeout") from None
        except (wire.Broken, EOFError):
            raise _Ended(self._end_main_line(GRACE)) from None

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


class _Ended(Exception):  # noqa: N818
    """The main line has ended."""

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


def _be_main_line(
    link: socket.socket, cells: list[dict[str, Any]], device: str
) -> None:
    """Run the cells, then the statements that arrive, each in its test."""
    from . import world

    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setpgid(0, 0)
    world.use(device)  # here, as no process may fork that has used a GPU
    namespace = world.new_namespace()
    for cell in cells:
        jail.limit_work(cell["memory"], cell["seconds"])
        wire.send(link, world.run_cell(cell["source"], cell["id"], namespace))
    running: dict[str, world.Test] = {}
    while True:
        try:
            order = wire.receive(link)["test"]
        except wire.Broken:
            return
        name = order["id"]
        if name not in running:
            running[name] = world.Test(order["question"], order["seed"], namespace)
        jail.limit_work(order["memory"], order["seconds"])
        while batch := wire.receive(link)["statements"]:
            for statement in batch:
                records, error = running[name].run(world.unpacked(statement))
                values = [record["value"] for record in records]
                wire.send(link, {"values": values, "error": error})


if __name__ == "__main__":
    main()

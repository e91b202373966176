"""The student's world: run a submission's cells and record the values of its checks.

Four kinds of process, each forked from the one before:

- the *warm parent* has imported torch and a lmcore without the graded bodies. It reads
  no submission; for each one it receives a socket and forks,
- the *keeper*, first process of new namespaces. It talks with the grader outside, keeps
  the time, and runs no student's code. From it comes
- the *main line*: the cells run in a fork of it, which becomes the main line if every
  cell returns in time. If one hangs or dies, the main line is as it was before, and the
  others run again without that one. Then
- each *test* runs in a fork of the main line, statement by statement. A statement
  arrives only when the ones before it are done, and the first one only after all cells.

Values leave as plain data; whether they are right is not known here.
"""

import contextlib
import gc
import importlib
import os
import signal
import socket
import sys
import time
from typing import Any

from . import crowd, jail, wire

SLACK = 3  # seconds on the clock allowed for each second of computing
GRACE = 5.0  # seconds for a killed process to be reported
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
            for test in wire.receive(channel)["tests"]:
                wire.send(channel, keeper.run_test(test))
    except wire.Broken:
        return  # the grader has gone away


class Keeper:
    """Runs cells and tests through the main line, and ends what exceeds its limit."""

    def __init__(
        self, channel: socket.socket, work: dict[str, Any], base: int, sandboxed: bool
    ) -> None:
        self.base = base
        self.process: object = None  # the running one's number, as it says itself
        self.length = 0  # bytes of the last message
        self.lost = False  # the main line itself is gone
        if sandboxed:
            jail.limit_submission(
                self._memory(work["max_memory_mb"]),
                work["max_seconds"],
            )
        self.link, theirs = socket.socketpair()
        if os.fork() == 0:
            channel.close()
            self.link.close()
            _be_main_line(theirs)
            os._exit(0)
        theirs.close()

    def _memory(self, megabytes: int) -> int:
        return self.base + (megabytes << 20) if self.base else 0

    def run_cells(self, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Run the cells: for each how it ended, what it printed, and its error."""
        results: dict[str, dict[str, Any]] = {}
        waiting = list(cells)
        while waiting:
            done, how = self._try_cells(waiting)
            results.update(done)
            if how is None:
                break
            bad = waiting.pop(len(done))
            results[bad["id"]] = {"end": how}
        return [results[cell["id"]] for cell in cells]

    def _try_cells(
        self, cells: list[dict[str, Any]]
    ) -> tuple[dict[str, dict[str, Any]], str | None]:
        """Run cells in one fork: those that were done, and how the next one ended."""
        done: dict[str, dict[str, Any]] = {}
        deadline_of = [SLACK * cell["seconds"] + 1 for cell in cells]
        try:
            self._begin({"cells": [self._order(cell) for cell in cells]})
            for cell, seconds in zip(cells, deadline_of, strict=True):
                answer = self._answer(time.monotonic() + seconds)
                done[cell["id"]] = {"end": "done", **answer}
        except _Ended as end:
            return done, end.how
        return done, None

    def _order(self, facts: dict[str, Any]) -> dict[str, Any]:
        """A cell or test as the main line gets it."""
        return {**facts, "memory": self._memory(facts["memory_mb"])}

    def run_test(self, test: dict[str, Any]) -> dict[str, Any]:
        """Run a test's statements: for each that was done, its values and its error."""
        deadline = time.monotonic() + SLACK * test["seconds"] + 1
        done: list[dict[str, Any]] = []
        result = {"id": test["id"], "end": "done", "statements": done}
        room = MAX_TEST_BYTES
        try:
            self._begin({"test": self._order({**test, "statements": None})})
            for source in test["statements"]:
                wire.send(self.link, {"statement": source})
                answer = self._answer(deadline, room)
                room -= self.length
                done.append(answer)
            wire.send(self.link, {"statement": None})
            self._answer(deadline)
        except _Ended as end:
            if len(done) < len(test["statements"]):
                result["end"] = end.how
        except wire.Broken:
            self.lost = True
            result["end"] = "lost"
        return result

    def _begin(self, order: dict[str, Any]) -> None:
        """Have the main line fork for this order."""
        self.process = None
        try:
            if self.lost:
                raise wire.Broken
            wire.send(self.link, order)
        except wire.Broken:
            self.lost = True
            raise _Ended("lost") from None
        try:
            answer = self._answer(time.monotonic() + GRACE)
        except _Ended:
            answer = {}  # of the process before, which had sent a message too many
        if "started" not in answer:
            self.lost = True
            raise _Ended("lost")
        self.process = answer["started"]

    def _answer(
        self, deadline: float, max_bytes: int = MAX_TEST_BYTES
    ) -> dict[str, Any]:
        """The next message from the running process.

        Raises:
            _Ended: if the process ended or was ended.
        """
        how = None
        try:
            answer, self.length = wire.receive_sized(self.link, deadline, max_bytes)
        except TimeoutError:
            how, answer = "timeout", self._kill()
        except wire.Broken:
            # Nothing can be read after a broken message: its end is unknown.
            self.lost = True
            self._kill_process()
            raise _Ended("too much") from None
        if "ended" in answer:
            raise _Ended(how or _how(answer["ended"]))
        return answer

    def _kill_process(self) -> None:
        if type(self.process) is int and 1 < self.process <= MAX_PROCESS:
            for kill in (os.killpg, os.kill):
                try:
                    kill(self.process, signal.SIGKILL)
                except OSError:
                    continue

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
    return "timeout" if os.WTERMSIG(status) == signal.SIGXCPU else "crash"


def _be_main_line(link: socket.socket) -> None:
    """Fork for every order; the fork that ran cells goes on as the main line."""
    from . import world

    signal.signal(signal.SIGINT, signal.default_int_handler)
    namespace = world.new_namespace()
    while True:
        try:
            order = wire.receive(link)
        except wire.Broken:
            return
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a cell may have ignored it
        child = os.fork()
        if child != 0:
            _, status = os.waitpid(child, 0)
            wire.send(link, {"ended": status})
            continue
        os.setpgid(0, 0)
        wire.send(link, {"started": os.getpid()})
        if "test" in order:
            jail.limit_work(order["test"]["memory"], order["test"]["seconds"])
            _run_test(order["test"], link, namespace)
            os._exit(0)
        for cell in order["cells"]:
            jail.limit_work(cell["memory"], cell["seconds"])
            answer = world.run_cell(cell["source"], cell["id"], namespace)
            wire.send(link, answer)


def _run_test(test: dict[str, Any], link: socket.socket, namespace: dict) -> None:
    from . import world

    running = world.Test(test["question"], test["seed"], namespace)
    while (statement := wire.receive(link)["statement"]) is not None:
        records, error = running.run(statement)
        values = [record["value"] for record in records]
        wire.send(link, {"values": values, "error": error})


if __name__ == "__main__":
    main()

"""Run a submission's cells and tests in one student's world, round by round.

What a student reads about visible checks is what they gave in the first round, when no
hidden check had come to that world.
"""

import socket
import time
from typing import Any

from . import records
from .inside import wire
from .inside.student import SLACK
from .records import Run

PATIENCE = 30  # seconds on the clock beyond the limits of what runs


class Killed(Exception):  # noqa: N818
    """A process of the submission was killed: by its own code, or from outside."""


class Rounds:
    """Talks with the keeper of one submission.

    Args:
        channel: leads to the keeper
        final: whether a kill counts as a crash; else it raises `Killed`
    """

    def __init__(self, channel: socket.socket, final: bool) -> None:
        self.channel, self.final = channel, final
        self.cell_seconds = 0  # what all cells may compute, whenever they run again

    def cells(self, order: dict[str, Any]) -> list[dict[str, Any]]:
        """Run the cells; says how each went."""
        self.cell_seconds = sum(cell["seconds"] for cell in order["cells"])
        wire.send(self.channel, order)
        # Each one that hangs or dies has those before it run again.
        deadline = self._deadline(order["cells"], starts=len(order["cells"]))
        done = wire.receive(self.channel, deadline).get("cells")
        done = done if isinstance(done, list) else []
        if not self.final and any(map(records.killed, done)):
            raise Killed
        done += [None] * len(order["cells"])
        pairs = zip(done, order["cells"], strict=False)
        return [records.cell(data, cell["id"]) for data, cell in pairs]

    def together(self, tests: list[dict[str, Any]]) -> dict[str, Run]:
        """Run tests in one process: what is visible of all, then what is hidden.

        A test whose process has ended meanwhile leaves its hidden part out.
        """
        visible = self._run([self._order(test, hidden=False) for test in tests])
        rest = [self._order(test, visible=False) for test in tests]
        hidden = self._run(rest, go_on=True)
        return {
            name: {**hidden[name], "end": _end(visible[name], hidden[name])}
            | {"statements": visible[name]["statements"] + hidden[name]["statements"]}
            for name in hidden
        }

    def alone(self, tests: list[dict[str, Any]]) -> dict[str, Run]:
        """Run each test after the cells in a process of its own."""
        runs: dict[str, Run] = {}
        for test in tests:
            runs |= self._run([self._order(test)])
        return runs

    def _order(
        self, test: dict[str, Any], visible: bool = True, hidden: bool = True
    ) -> dict[str, Any]:
        """A test with its statements in batches: the hidden ones come one by one."""
        statements = test["statements"]
        batches = [statements["visible"]] if visible and statements["visible"] else []
        batches += [[one] for one in statements["hidden"]] if hidden else []
        order = {key: value for key, value in test.items() if key != "statements"}
        return {**order, "batches": batches}

    def _run(self, orders: list[dict[str, Any]], go_on: bool = False) -> dict[str, Run]:
        """Run tests in a new process, or in the one where they began."""
        runs: dict[str, Run] = {}
        wire.send(self.channel, {"tests": orders, "go_on": go_on})
        deadline = self._deadline(orders, starts=len(orders))
        for order in orders:
            data = wire.receive(self.channel, deadline)
            if not self.final and records.killed(data):
                raise Killed
            runs[order["id"]] = records.test(data, sum(map(len, order["batches"])))
        return runs

    def _deadline(self, items: list[dict[str, Any]], starts: int) -> float:
        """When the keeper must have run these cells or tests, by ``time.monotonic``."""
        seconds = sum(item["seconds"] for item in items) + starts * self.cell_seconds
        return time.monotonic() + SLACK * seconds + len(items) + PATIENCE


def _end(visible: Run, hidden: Run) -> str:
    """How a test ended that ran in two parts."""
    return hidden["end"] if visible["end"] == "done" else visible["end"]

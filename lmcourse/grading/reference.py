"""The judge: a process in which no student's code ever runs.

It runs the notebook with its solutions once. For a submission it runs each test cell
with the submission's seed, compares the recorded values with the reference's, and where
they differ looks for a known mistake that gives the student's values. Of the student it
sees plain data, and the source of the solutions as text that it parses and never runs.
"""

import contextlib
import gc
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch

from lmcore.homework import plain

from .. import mistakes
from . import forbidden, messages
from .cells import Statement, statements
from .inside import jail, wire, world
from .recognise import Found, Key, Recogniser, is_error
from .records import Run

MAX_SECONDS = 300  # of computing, to judge one submission


class Reference:
    """The notebook with its solutions, run, and the known mistakes of its unit."""

    def __init__(self, manifest: dict[str, Any], known: mistakes.UnitMistakes) -> None:
        self.manifest = manifest
        self.tests = {
            cell["id"]: cell for cell in manifest["cells"] if cell["kind"] == "test"
        }
        self.statements: dict[str, list[Statement]] = {
            name: statements(cell["source"]) for name, cell in self.tests.items()
        }
        self.namespace = world.new_namespace()
        for cell in manifest["cells"]:
            if cell["kind"] in ("given", "solution"):
                done = world.run_cell(cell["source"], cell["id"], self.namespace)
                if done["error"] is not None:
                    raise RuntimeError(f"the solution of {cell['id']}: {done['error']}")
        self.recogniser = Recogniser(self, known.mistakes)
        self.next_submission()
        for name in self.tests:
            self._refuse_leftovers(name)

    def next_submission(self) -> None:
        """Forget the last submission."""
        self.known_values: dict[tuple[str, int], dict[Key, dict[str, Any]]] = {}
        # By test cell and number of its runs, to which only another one is added.
        self.known_wrong: dict[tuple[str, int], dict[Key, str]] = {}
        self.known_mistakes: dict[tuple[str, int], Found] = {}
        self.recogniser.next_submission()

    def _refuse_leftovers(self, name: str) -> None:
        """Run a test cell twice: what it leaves behind must change nothing later.

        All submissions of a class are judged by one run of the solutions.
        """
        first, again = self.record(name, seed=0), self.record(name, seed=0)
        for number, (key, record) in enumerate(first.items(), start=1):
            same = key in again and plain.judge(again[key]["value"], record) is None
            if not same:
                raise RuntimeError(
                    f"{name} gives another value when it runs again (check {number}): "
                    "it changes something from outside the cell; let it make its own"
                )

    def record(
        self,
        name: str,
        seed: int,
        mistake: mistakes.Known | None = None,
        last: int | None = None,
    ) -> dict[Key, dict[str, Any]]:
        """Run a test cell on the reference, or with a mistake in its place.

        Args:
            name: the test cell's id
            seed: the seed it runs with
            mistake: what to put in the place of the reference's function
            last: the statement to stop after; the cell's last one if not given
        """
        place = (
            contextlib.nullcontext()
            if mistake is None
            else mistakes.in_place(mistake, self.namespace)
        )
        found = {}
        with place:
            test = world.Test(self.tests[name]["question"], seed, self.namespace)
            for number, statement in enumerate(self.statements[name]):
                records, error = test.run(statement.whole)
                if error is not None and mistake is None:
                    raise RuntimeError(f"{name} fails on the reference: {error}")
                for record in records:
                    found[number, record["nth"]] = record
                if number == last or (error is not None and not statement.checks):
                    break
        return found

    def wrong(self, name: str, seed: int, runs: list[Run]) -> dict[Key, str]:
        """The checks of a test cell that failed in all of its runs, and why.

        What is said of a visible check comes from the first run, in which no hidden
        check had come before it.
        """
        if (name, len(runs)) in self.known_wrong:
            return self.known_wrong[name, len(runs)]
        known = self.statements[name]
        outcomes = [_outcomes(run, known) for run in runs]
        wrong: dict[Key, str] = {}
        for key, record in self.expected(name, seed).items():
            hidden = known[key[0]].hidden
            why = [
                _why_wrong(outcome.get(key), record, run, key, hidden)
                for outcome, run in zip(outcomes, runs, strict=True)
            ]
            if all(why):
                wrong[key] = why[-1] if hidden else why[0]
        self.known_wrong[name, len(runs)] = wrong
        return wrong

    def recognised(self, name: str, seed: int, runs: list[Run]) -> Found:
        """The known mistake that a test cell's last run shows, if there is one."""
        if (name, len(runs)) not in self.known_mistakes:
            outcomes = _outcomes(runs[-1], self.statements[name])
            values = {key: o["value"] for key, o in outcomes.items() if "value" in o}
            wrong = set(self.wrong(name, seed, runs))
            expected = self.expected(name, seed)
            found = self.recogniser.find(name, seed, expected, values, wrong)
            self.known_mistakes[name, len(runs)] = found
        return self.known_mistakes[name, len(runs)]

    def judge(self, name: str, seed: int, runs: list[Run]) -> dict[str, Any]:
        """Judge what a test cell recorded in the student's world.

        Args:
            name: the test cell's id
            seed: the seed it ran with
            runs: how it ran, once or twice: its end, and for each statement done the
                values and the error. A check passes if it did in one of them.

        Returns:
            ``score``; ``checks``, for each its title, whether it is hidden and passed,
            and a message; ``mistakes``, the names of those recognised; ``end``.
        """
        expected = self.expected(name, seed)
        known = self.statements[name]
        wrong = self.wrong(name, seed, runs)
        mistake = self.recognised(name, seed, runs).mistake
        points = self.tests[name]["points"]
        copied = self._only_visible_pass(name, expected, wrong)
        counted = 0 if copied else len(expected) - len(wrong)
        return {
            "question": self.tests[name]["question"],
            "note": messages.ONLY_VISIBLE
            if copied and len(wrong) < len(expected)
            else "",
            "score": round(points * counted / max(len(expected), 1), 2),
            "max_score": points,
            "end": runs[-1]["end"],
            "checks": [
                {
                    "title": record["title"] or f"check {number}",
                    "hidden": known[key[0]].hidden,
                    "passed": key not in wrong,
                    "message": wrong.get(key, ""),
                }
                for number, (key, record) in enumerate(expected.items(), start=1)
            ],
            "mistakes": [mistake.name] if mistake else [],
            "says": mistake.says if mistake else "",
        }

    def expected(self, name: str, seed: int) -> dict[Key, dict[str, Any]]:
        """What a test cell records on the reference; run once for each submission."""
        if (name, seed) not in self.known_values:
            self.known_values[name, seed] = self.record(name, seed)
        return self.known_values[name, seed]

    def failed(self, tests: dict[str, Any]) -> list[str]:
        """Which test cells failed, and not as unwritten."""
        return [
            name
            for name, test in tests.items()
            if set(self.wrong(name, test["seed"], test["runs"]).values())
            - {messages.NOT_WRITTEN}
        ]

    def unexplained(self, tests: dict[str, Any]) -> list[str]:
        """Which test cells may do better alone: no known mistake is all that is wrong.

        Where one is, nothing that ran before has spoiled the test.
        """
        return [
            name
            for name in self.failed(tests)
            if not self.recognised(
                name, tests[name]["seed"], tests[name]["runs"]
            ).explains_all
        ]

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Judge a whole submission: its recorded tests, and its solutions as text."""
        verdicts = {
            name: self.judge(name, test["seed"], test["runs"])
            for name, test in request["tests"].items()
        }
        given = [c["source"] for c in self.manifest["cells"] if c["kind"] == "given"]
        calls = {}
        for cell in self.manifest["cells"]:
            if cell["kind"] == "solution":
                facts = self.manifest["questions"][cell["question"]]
                sources = dict(request["solutions"])
                own = sources.pop(cell["id"], "")
                found = forbidden.find(facts, own, list(sources.values()), given)
                calls[cell["question"]] = found
        return {"verdicts": verdicts, "calls": calls}

    def _only_visible_pass(
        self, name: str, expected: dict[Key, Any], wrong: dict[Key, Any]
    ) -> bool:
        """Whether every hidden check fails.

        The visible expected values stand in the notebook, where anybody can copy them.
        So the visible checks earn nothing then.
        """
        hidden = {key for key in expected if self.statements[name][key[0]].hidden}
        return bool(hidden) and hidden <= set(wrong)


def _outcomes(run: dict[str, Any], known: list[Statement]) -> dict[Key, dict]:
    """For every check that was reached: its ``value``, or the ``error`` in its place.

    As in a notebook, an error outside a check ends the cell: what comes after it would
    rest on something that never happened.
    """
    found: dict[Key, dict] = {}
    pairs = zip(run["statements"], known, strict=False)
    for number, (done, statement) in enumerate(pairs):
        for nth, value in enumerate(done["values"]):
            found[number, nth] = {"value": value}
        if done["error"] is not None:
            found[number, len(done["values"])] = {"error": done["error"]}
            if not statement.checks:
                break
    return found


def _why_wrong(
    outcome: dict[str, Any] | None,
    record: dict[str, Any],
    run: dict[str, Any],
    key: Key,
    hidden: bool,
) -> str:
    """Say what is wrong with a check's outcome; empty if nothing is."""
    if outcome is None:
        reached = key[0] < len(run["statements"])
        return (
            messages.NOT_REACHED
            if reached
            else messages.ENDS.get(run["end"], messages.NOT_REACHED)
        )
    if "error" in outcome:
        return messages.of_error(outcome["error"], hidden)
    if is_error(outcome["value"]):
        return messages.of_error(outcome["value"], hidden)
    mismatch = plain.judge(outcome["value"], record)
    return "" if mismatch is None else messages.of_value(mismatch, hidden)


def main() -> None:
    """Serve: read the manifest once, then judge a submission per message."""
    torch.set_num_threads(1)
    control = socket.socket(fileno=0)
    manifest = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    known = mistakes.load_file(Path(sys.argv[2]))
    device = sys.argv[3]
    before = set(sys.modules)
    try:
        world.use(device)
        reference = Reference(manifest, known)
    except RuntimeError as error:
        wire.send(control, {"error": str(error)})
        return
    wire.send(control, {"modules": [m for m in sys.modules if m not in before]})
    gc.collect()
    gc.freeze()  # so that a child's garbage collection copies no page
    with contextlib.suppress(wire.Broken):  # the grader has gone away
        while True:
            _serve(reference, control, wire.receive(control), can_fork=device == "cpu")


def _serve(
    reference: Reference,
    control: socket.socket,
    request: dict[str, Any],
    can_fork: bool,
) -> None:
    """Judge a submission; one that is hard to judge stops no other one.

    A process that has used a GPU cannot fork. Known mistakes run in it then; what one
    leaves behind could change which mistake a later student is told.
    """
    jail.limit_work(0, MAX_SECONDS)
    reference.next_submission()
    try:
        if can_fork and reference.failed(request["tests"]):
            _answer_in_child(reference, control, request)
        else:
            _answer(reference, control, request)
    except wire.Broken:
        raise
    except Exception:
        wire.send(control, {"failed": True})


def _answer(
    reference: Reference, control: socket.socket, request: dict[str, Any]
) -> None:
    """Ask for another run of what may do better alone, once; then judge."""
    if request["more_to_come"] and (again := reference.unexplained(request["tests"])):
        wire.send(control, {"again": again})
        request = wire.receive(control)
    wire.send(control, reference.answer(request))


def _answer_in_child(
    reference: Reference, control: socket.socket, request: dict[str, Any]
) -> None:
    """Judge in a process that ends: what known mistakes leave behind ends with it."""
    child = os.fork()
    if child == 0:
        gc.disable()  # it ends before its garbage could matter
        try:
            _answer(reference, control, request)
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(child, 0)[1] != 0:
        wire.send(control, {"failed": True})


if __name__ == "__main__":
    main()

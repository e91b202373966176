"""Grade one submission: a pure function of the manifest, the bytes and the secret.

A `Worker` owns one student's world and one judge. It hands cells and bare checks to the
first, the recorded values to the second, and joins the verdicts to a result. It runs
neither the student's code nor the reference itself.
"""

import hashlib
import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmcourse import CourseError

from . import intake, messages, records, sandbox
from .inside import wire
from .inside.student import SLACK
from .seeds import seed_of

ATTEMPTS = 2  # a world that breaks down is started anew once
PATIENCE = 30  # seconds on the clock beyond the limits of all cells together
JUDGE_SECONDS = 600  # on the clock, for the reference to start or to judge
BROKEN = "A process of the grader broke down twice over it; a person must look."


class Worker:
    """One student's world and one judge, for submissions of one unit.

    Args:
        manifest: the unit's manifest
        tests: from `cells.bare_tests`, made before: Python 3.11 cannot parse in threads
        n_visible: from `cells.n_visible`: how many of a test's statements come first
        manifest_path: where it lies, for the judge to read
        mistakes_path: the file with the unit's known mistakes
        blank_tree: a folder that holds lmcore with the graded bodies blank
        secret: decides the seeds
        sandboxed: False only for submissions that are our own
    """

    def __init__(
        self,
        manifest: dict[str, Any],
        tests: dict[str, list[str]],
        n_visible: dict[str, int],
        manifest_path: Path,
        mistakes_path: Path,
        blank_tree: Path,
        secret: bytes,
        sandboxed: bool = True,
    ) -> None:
        self.manifest, self.secret = manifest, secret
        self.blank_tree, self.sandboxed = blank_tree, sandboxed
        self.tests, self.n_visible = tests, n_visible
        self.judge_files = [str(manifest_path), str(mistakes_path)]
        self._start()

    def _start(self) -> None:
        self.modules: list[str] | None = None  # what the reference's run imported
        self.judge, theirs = socket.socketpair()
        self.judge_process = subprocess.Popen(
            [sys.executable, "-m", "lmcourse.grading.reference", *self.judge_files],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            env={**os.environ, **sandbox.BOTH_WORLDS},
        )
        theirs.close()
        self.parent = sandbox.start(self.blank_tree, self.sandboxed)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End both worlds."""
        self.parent.close()
        self.judge.close()
        sandbox.end(self.judge_process)

    def _prepare(self) -> None:
        """Wait for the judge; it knows what the student's world needs to import."""
        if self.modules is None:
            self.modules = self._ask(None)["modules"]
            self.parent.prepare(self.modules, self._memory_mb())

    def _restart(self) -> None:
        self.close()
        self._start()

    def grade(self, content: bytes) -> dict[str, Any]:
        """Grade the bytes of a notebook; the same bytes give the same result."""
        digest = hashlib.sha256(content).hexdigest()
        work = intake.read(content, self.manifest)
        if isinstance(work, intake.Refusal):
            return refused(self.manifest, work, digest)
        for _ in range(ATTEMPTS):
            try:
                self._prepare()
                cells, runs = self._run(work, digest)
                answer = self._judge(work, runs, digest)
            except (wire.Broken, TimeoutError):
                self._restart()
            else:
                return join(self.manifest, work, digest, cells, answer)
        return refused(self.manifest, intake.Refusal("broken", BROKEN), digest)

    def _run(
        self, work: intake.Work, digest: str
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Run a submission in the student's world; returns what cells and tests did.

        A test that ends the process it came from costs itself only. Which one that was
        is known when each runs alone; those after it run in another student's world.
        """
        cells = [self._cell(cell, work) for cell in self._code("given", "solution")]
        tests = [self._test(cell, digest) for cell in self._code("test")]
        done, rounds = self._run_once(cells, tests, together=True)
        runs = {} if rounds.ruined else rounds.runs
        while waiting := [test for test in tests if test["id"] not in runs]:
            _, rounds = self._run_once(cells, waiting, together=False)
            runs |= rounds.runs
        pairs = zip(cells, [*done, *[None] * len(cells)], strict=False)
        return [records.cell(data, cell["id"]) for cell, data in pairs], runs

    def _run_once(
        self, cells: list[dict[str, Any]], tests: list[dict[str, Any]], together: bool
    ) -> tuple[list[Any], "_Rounds"]:
        """Run cells and tests in a new student's world, until one test ruins it.

        Returns:
            What the cells did, and the rounds of the tests.
        """
        seconds = sum(item["seconds"] for item in [*cells, *tests, *tests])
        deadline = time.monotonic() + SLACK * seconds + PATIENCE
        rounds = _Rounds(tests, self.n_visible, together)
        with self.parent.open() as channel:
            wire.send(channel, self._order(cells, tests))
            done = wire.receive(channel, deadline).get("cells")
            for groups in rounds:
                wire.send(channel, {"groups": groups})
                for order in itertools.chain.from_iterable(groups):
                    rounds.take(order, wire.receive(channel, deadline))
                    if rounds.ruined:
                        break
        return done if isinstance(done, list) else [], rounds

    def _order(
        self, cells: list[dict[str, Any]], tests: list[dict[str, Any]]
    ) -> dict[str, Any]:
        return {
            "cells": cells,
            "max_seconds": sum(item["seconds"] for item in [*cells, *tests]),
            "max_memory_mb": self._memory_mb(),
        }

    def _memory_mb(self) -> int:
        """The most that any question which runs code may use."""
        questions = self.manifest["questions"].values()
        running = [facts for facts in questions if not facts["written"]]
        return max(facts["limits"]["memory_mb"] for facts in running)

    def _code(self, *kinds: str) -> list[dict[str, Any]]:
        return [cell for cell in self.manifest["cells"] if cell["kind"] in kinds]

    def _cell(self, cell: dict[str, Any], work: intake.Work) -> dict[str, Any]:
        given = cell["kind"] == "given"
        source = cell["source"] if given else work.cells.get(cell["id"], "")
        return {"id": cell["id"], "source": source, **self._limits(cell)}

    def _test(self, cell: dict[str, Any], digest: str) -> dict[str, Any]:
        return {
            "id": cell["id"],
            "question": cell["question"],
            "seed": seed_of(self.secret, digest, cell["question"]),
            "statements": self.tests[cell["id"]],
            **self._limits(cell),
        }

    def _limits(self, cell: dict[str, Any]) -> dict[str, int]:
        questions = self.manifest["questions"]
        limits = [
            q["limits"] for name, q in questions.items() if name == cell["question"]
        ]
        running = [q["limits"] for q in questions.values() if not q["written"]]
        limits = limits or running  # a given cell may need what any of them does
        return {
            "seconds": max(limit["seconds"] for limit in limits),
            "memory_mb": max(limit["memory_mb"] for limit in limits),
        }

    def _judge(
        self, work: intake.Work, runs: dict[str, Any], digest: str
    ) -> dict[str, Any]:
        tests = {
            cell["id"]: {
                "seed": seed_of(self.secret, digest, cell["question"]),
                "run": runs[cell["id"]],
            }
            for cell in self._code("test")
        }
        solutions = {
            cell["id"]: work.cells.get(cell["id"], "")
            for cell in self._code("solution")
        }
        return self._ask({"tests": tests, "solutions": solutions})

    def _ask(self, request: dict[str, Any] | None) -> dict[str, Any]:
        """Ask the judge.

        Raises:
            CourseError: if the reference does not run.
            wire.Broken, TimeoutError: if the judge broke down over this request.
        """
        if request is not None:
            wire.send(self.judge, request)
        answer = wire.receive(self.judge, time.monotonic() + JUDGE_SECONDS)
        if "error" in answer:
            raise CourseError(f"the reference does not run: {answer['error']}")
        if "failed" in answer:
            raise wire.Broken("the judge failed on this submission")
        return answer


class _Rounds:
    """The two rounds of a submission's tests: first what is visible of all, then each.

    What a student reads about visible checks was written in the first round, when no
    hidden check was there. It runs as in the student's notebook: one test after the
    other in one process (or in one each, if not ``together``). In the second round each
    test runs whole and alone, so that no other one can spoil it.

    Iterating gives what to run in each round: groups of tests that share a process.
    `take` gets what came back; after the last round, or when a test has ruined the
    student's world, `runs` holds the tests that are done with.
    """

    def __init__(
        self, tests: list[dict[str, Any]], n_visible: dict[str, int], together: bool
    ) -> None:
        self.tests, self.n_visible, self.together = tests, n_visible, together
        self.runs: dict[str, Any] = {}
        self.first: dict[str, Any] = {}  # runs of visible statements
        self.last: str | None = None  # the test that ran before
        self.ruined = False

    def __iter__(self) -> Iterator[list[list[dict[str, Any]]]]:
        orders = [self._order(test, hidden=False) for test in self.tests]
        yield [orders] if self.together else [[order] for order in orders]
        if not self.ruined:
            yield [[self._order(test, hidden=True)] for test in self.tests]

    def _order(self, test: dict[str, Any], hidden: bool) -> dict[str, Any]:
        """A test with its statements in batches: the hidden ones come one by one."""
        n_visible = self.n_visible[test["id"]]
        rest = test["statements"][n_visible:] if hidden else []
        batches = [test["statements"][:n_visible], *([one] for one in rest)]
        order = {key: value for key, value in test.items() if key != "statements"}
        return {**order, "batches": [batch for batch in batches if batch]}

    def take(self, order: dict[str, Any], data: dict[str, Any]) -> None:
        """Note what a test did."""
        name = order["id"]
        run = records.test(data, sum(map(len, order["batches"])))
        if run["end"] == "lost":
            self._ruin()
        elif name in self.first:
            self.runs[name] = {**run, "first": self.first[name]}
        else:
            self.first[name] = run
        self.last = name

    def _ruin(self) -> None:
        """Lay the loss on the test that ran before; on all where none did."""
        self.ruined = True
        if self.last is None:
            gone = {"end": "lost", "statements": []}
            self.runs |= {test["id"]: {**gone, "first": gone} for test in self.tests}
        elif self.last not in self.runs:
            run = self.first[self.last]
            end = "crash" if run["end"] == "done" else run["end"]
            self.runs[self.last] = {**run, "end": end, "first": {**run, "end": end}}


def refused(
    manifest: dict[str, Any], refusal: intake.Refusal, digest: str
) -> dict[str, Any]:
    """The result of a submission that was not graded: no points, and the reason."""
    questions = {
        name: {
            "title": facts["title"],
            "score": None if _is_written(manifest, name) else 0,
            "max_score": facts["points"],
            "message": refusal.message,
            "mistakes": [],
            "flags": [],
        }
        for name, facts in manifest["questions"].items()
    }
    return {
        "unit": manifest["unit"],
        "digest": digest,
        "manifest": manifest["digest"],
        "status": "refused",
        "refusal": {"kind": refusal.kind, "message": refusal.message},
        "score": 0,
        "max_score": sum(facts["points"] for facts in manifest["questions"].values()),
        "questions": questions,
        "cells": {},
        "tests": {},
        "missing": [],
    }


def join(
    manifest: dict[str, Any],
    work: intake.Work,
    digest: str,
    cells: list[dict[str, Any]],
    answer: dict[str, Any],
) -> dict[str, Any]:
    """Put the verdicts together, question by question."""
    result = refused(manifest, intake.Refusal("", ""), digest)
    result |= {"status": "graded", "refusal": None, "missing": work.missing}
    tests = {cell["id"]: cell for cell in manifest["cells"] if cell["kind"] == "test"}
    solutions = {c["id"]: c for c in manifest["cells"] if c["kind"] == "solution"}
    for name, facts in result["questions"].items():
        if facts["score"] is None:
            continue
        certain, flags = answer["calls"].get(name, ([], []))
        if certain:
            facts["message"] = (
                f"This exercise is to be solved without {', '.join(certain)}; "
                "your solution calls it, so it earns nothing."
            )
        facts["flags"] = flags
    for cell_id, test in tests.items():
        verdict = answer["verdicts"][cell_id]
        question = result["questions"][test["question"]]
        if question["message"]:
            verdict["score"] = 0
        question["score"] = round(question["score"] + verdict["score"], 2)
        question["mistakes"] += [
            name for name in verdict["mistakes"] if name not in question["mistakes"]
        ]
        result["tests"][cell_id] = verdict
    for cell in cells:
        if cell["id"] in solutions:
            name = solutions[cell["id"]]["question"]
            limits = manifest["questions"][name]["limits"]
            text = messages.of_cell(cell, limits["seconds"], limits["memory_mb"])
            result["cells"][cell["id"]] = {
                "end": cell["end"],
                "output": cell["output"],
                "message": text,
            }
    scores = [facts["score"] or 0 for facts in result["questions"].values()]
    result["score"] = round(sum(scores), 2)
    return result


def _is_written(manifest: dict[str, Any], question: str) -> bool:
    return any(
        cell["kind"] == "written" and cell["question"] == question
        for cell in manifest["cells"]
    )

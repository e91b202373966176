"""Grade one submission: a pure function of the manifest, the bytes and the secret.

A `Worker` owns one student's world and one judge. It hands cells and bare checks to the
first, the recorded values to the second, and joins the verdicts to a result. It runs
neither the student's code nor the reference itself.
"""

import contextlib
import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmcourse import CourseError

from . import intake, messages, sandbox
from .inside import wire
from .records import Run
from .rounds import Killed, Rounds
from .seeds import seed_of

ATTEMPTS = 2  # a world that breaks down or is killed is started anew once
JUDGE_SECONDS = 600  # on the clock, for the reference to start or to judge
BROKEN = "A process of the grader broke down twice over it; a person must look."


class Worker:
    """One student's world and one judge, for submissions of one unit.

    Args:
        manifest: the unit's manifest
        tests: from `cells.bare_tests`, made before: Python 3.11 cannot parse in threads
        manifest_path: where it lies, for the judge to read
        mistakes_path: the file with the unit's known mistakes
        blank_tree: a folder that holds lmcore with the graded bodies blank
        secret: decides the seeds
        sandboxed: False only for submissions that are our own
        device: what tensors are made on, in both worlds
    """

    def __init__(
        self,
        manifest: dict[str, Any],
        tests: dict[str, dict[str, list[str]]],
        manifest_path: Path,
        mistakes_path: Path,
        blank_tree: Path,
        secret: bytes,
        sandboxed: bool = True,
        device: str = "cpu",
    ) -> None:
        self.manifest, self.secret = manifest, secret
        self.blank_tree, self.sandboxed = blank_tree, sandboxed
        self.tests, self.device = tests, device
        self.judge_arguments = [str(manifest_path), str(mistakes_path), device]
        self._start()

    def _start(self) -> None:
        self.modules: list[str] | None = None  # what the reference's run imported
        self.judge, theirs = socket.socketpair()
        self.judge_process = subprocess.Popen(
            [sys.executable, "-m", "lmcourse.grading.reference", *self.judge_arguments],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            env={**os.environ, **sandbox.BOTH_WORLDS},
        )
        theirs.close()
        self.parent = sandbox.start(self.blank_tree, self.sandboxed, self.device)

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

    def grade(self, content: intake.Content) -> dict[str, Any]:
        """Grade what was handed in; the same bytes give the same result."""
        own = content if isinstance(content, bytes) else b""
        digest = hashlib.sha256(own).hexdigest()
        read = isinstance(content, bytes)
        work = intake.read(content, self.manifest) if read else content
        if isinstance(work, intake.Refusal):
            return refused(self.manifest, work, digest)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._prepare()
                cells, answer = self._run(work, digest, final=attempt == ATTEMPTS)
            except Killed:
                continue  # perhaps it was not the submission that did it
            except (wire.Broken, TimeoutError):
                self._restart()
            else:
                return join(self.manifest, work, digest, cells, answer)
        return refused(self.manifest, intake.Refusal("broken", BROKEN), digest)

    def _run(
        self, work: intake.Work, digest: str, final: bool
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Run a submission; returns what its cells did, and the judge's answer.

        First all tests run in one process, as in the student's notebook. Those that
        fail there run once more, each alone, so that no other one can spoil them.

        Raises:
            Killed: if a process of the submission was killed, unless this is final.
        """
        cells = [self._cell(cell, work) for cell in self._code("given", "solution")]
        tests = [self._test(cell, digest) for cell in self._code("test")]
        with self._world(final) as rounds:
            done = rounds.cells(self._order(cells, tests))
            runs = {name: [run] for name, run in rounds.together(tests).items()}
            answer = self._judge(tests, runs, work, more_to_come=True)
            if "again" in answer:
                again = [test for test in tests if test["id"] in answer["again"]]
                for name, run in rounds.alone(again).items():
                    runs[name].append(run)
                answer = self._judge(tests, runs, work)
        return done, answer

    @contextlib.contextmanager
    def _world(self, final: bool) -> Iterator[Rounds]:
        """A new student's world, for one submission."""
        with self.parent.open() as channel:
            yield Rounds(channel, final)

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
        self,
        tests: list[dict[str, Any]],
        runs: dict[str, list[Run]],
        work: intake.Work,
        more_to_come: bool = False,
    ) -> dict[str, Any]:
        """Ask for verdicts, or, if more is to come, first for what failed."""
        solutions = {
            cell["id"]: work.cells.get(cell["id"], "")
            for cell in self._code("solution")
        }
        return self._ask(
            {
                "tests": {
                    test["id"]: {"seed": test["seed"], "runs": runs[test["id"]]}
                    for test in tests
                },
                "solutions": solutions,
                "more_to_come": more_to_come,
            }
        )

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

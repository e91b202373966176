"""Grade one submission: a pure function of the manifest, the bytes and the secret.

A `Worker` owns one student's world and one judge. It hands cells and bare checks to the
first, the recorded values to the second, and joins the verdicts to a result. It runs
neither the student's code nor the reference itself.
"""

import hashlib
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lmcourse import CourseError

from . import intake, messages, records, sandbox
from .inside import wire
from .inside.student import SLACK
from .seeds import seed_of

ATTEMPTS = 2  # a student's world that breaks down is started anew once
PATIENCE = 30  # seconds on the clock beyond the limits of all cells together


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
    """

    def __init__(
        self,
        manifest: dict[str, Any],
        tests: dict[str, list[str]],
        manifest_path: Path,
        mistakes_path: Path,
        blank_tree: Path,
        secret: bytes,
        sandboxed: bool = True,
    ) -> None:
        self.manifest, self.secret = manifest, secret
        self.blank_tree, self.sandboxed = blank_tree, sandboxed
        self.tests = tests
        self.judge, theirs = socket.socketpair()
        self.judge_process = subprocess.Popen(
            [
                *(sys.executable, "-m", "lmcourse.grading.reference"),
                *(str(manifest_path), str(mistakes_path)),
            ],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
        )
        theirs.close()
        self.parent = sandbox.start(blank_tree, sandboxed)
        self.modules: list[str] | None = None  # what the reference's run imported

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
            self.parent.prepare(self.modules)

    def _restart(self) -> None:
        self.parent.close()
        self.parent = sandbox.start(self.blank_tree, self.sandboxed)
        self.parent.prepare(self.modules)

    def grade(self, content: bytes) -> dict[str, Any]:
        """Grade the bytes of a notebook; the same bytes give the same result."""
        digest = hashlib.sha256(content).hexdigest()
        work = intake.read(content, self.manifest)
        if isinstance(work, intake.Refusal):
            return refused(self.manifest, work, digest)
        for attempt in range(ATTEMPTS):
            try:
                self._prepare()
                cells, runs = self._run(work, digest)
                break
            except (wire.Broken, TimeoutError):
                self._restart()
                if attempt == ATTEMPTS - 1:
                    reason = "The student's world broke down; a person must look."
                    broken = intake.Refusal("broken", reason)
                    return refused(self.manifest, broken, digest)
        answer = self._judge(work, runs, digest)
        return join(self.manifest, work, digest, cells, answer)

    def _run(self, work: intake.Work, digest: str) -> tuple[list, dict[str, Any]]:
        """Run a submission in the student's world; returns what cells and tests did."""
        cells = [self._cell(cell, work) for cell in self._code("given", "solution")]
        tests = [self._test(cell, digest) for cell in self._code("test")]
        limits = [q["limits"] for q in self.manifest["questions"].values()]
        seconds = sum(item["seconds"] for item in [*cells, *tests])
        deadline = time.monotonic() + SLACK * seconds + PATIENCE
        channel = self.parent.open()
        with channel:
            wire.send(
                channel,
                {
                    "cells": cells,
                    "max_seconds": sum(cell["seconds"] for cell in cells),
                    "max_memory_mb": max(limit["memory_mb"] for limit in limits),
                },
            )
            done = wire.receive(channel, deadline).get("cells")
            wire.send(channel, {"tests": tests})
            runs = {
                test["id"]: records.test(
                    wire.receive(channel, deadline), len(test["statements"])
                )
                for test in tests
            }
        done = done if isinstance(done, list) else []
        pairs = zip(cells, [*done, *[None] * len(cells)], strict=False)
        return [records.cell(data, cell["id"]) for cell, data in pairs], runs

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
        limits = limits or [q["limits"] for q in questions.values()]
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
        try:
            if request is not None:
                wire.send(self.judge, request)
            answer = wire.receive(self.judge)
        except wire.Broken as problem:
            raise CourseError(f"the reference's process ended: {problem}") from None
        if "error" in answer:
            raise CourseError(f"the reference does not run: {answer['error']}")
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

"""Run a unit's solved homework once: what its checks give, cost, and confuse with.

Runs as a process of its own, ``python -m lmcourse.homework.reference IN OUT``,
so that nothing it puts into lmcore stays behind. For every test cell it finds out how
many checks there are, what each known mistake gives at each visible check, and how long
and how much memory the checks take.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import CodeType
from typing import Any

from .. import paths
from . import notebooks
from .source import Cell, Source
from .text import SourceError, visible


def run(source: Source, cells: list[Cell]) -> dict[str, Any]:
    """Run the solved homework in a process of its own.

    Returns:
        ``gflops`` of this machine, and per test cell (``tests``) the ``titles`` of its
        visible checks, ``visible`` and ``hidden`` (how many), ``seconds``,
        ``memory_mb``, and ``mistakes``: for each visible check, what each known mistake
        gives there, if it is not the right value.

    Raises:
        SourceError: if a cell fails on the reference itself.
    """
    work = work_for(source, cells)
    with tempfile.TemporaryDirectory() as folder:
        given, taken = Path(folder) / "in.json", Path(folder) / "out.json"
        given.write_text(json.dumps(work), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(given), str(taken)],
            cwd=paths.root(),
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if not taken.exists():
            raise SourceError(
                f"{source.unit}: the solved homework fails\n{done.stderr}"
            )
        result = json.loads(taken.read_text(encoding="utf-8"))
    if "problem" in result:
        raise SourceError(result["problem"])
    return result


def work_for(source: Source, cells: list[Cell]) -> dict[str, Any]:
    """What the process is given to do, as plain data."""
    mistakes = paths.root() / "tests" / "mistakes" / f"{source.unit}.py"
    return {
        "mistakes": str(mistakes),
        "targets": {e.id: e.implements or e.id for e in source.exercises.values()},
        "cells": [_for_process(cell) for cell in cells],
    }


def environment() -> dict[str, str]:
    """The environment of processes that run homework.

    The project's lmcore first, one thread, and the programs beside this Python, of
    which nbgrader starts one by its bare name.
    """
    programs = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    own = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    own["PATH"] = os.pathsep.join(programs)
    if (paths.root() / "lmcore").is_dir():
        known = [path for path in (os.environ.get("PYTHONPATH"),) if path]
        own["PYTHONPATH"] = os.pathsep.join([str(paths.root()), *known])
    return os.environ | own


def _for_process(cell: Cell) -> dict[str, Any]:
    facts = {"id": cell.id, "kind": cell.kind, "place": cell.place}
    facts |= {"question": cell.question, "source": cell.source}
    if cell.kind == "test":
        facts["source"] = notebooks.executable_checks(cell)
        facts["visible"] = visible(facts["source"])
    return facts


def _main(given: Path, taken: Path) -> None:
    work = json.loads(given.read_text(encoding="utf-8"))
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            result = _Run(work).everything()
        except SourceError as error:
            result = {"problem": str(error)}
    taken.write_text(json.dumps(result), encoding="utf-8")


class _Run:
    def __init__(self, work: dict[str, Any]) -> None:
        from lmcore.homework import checks

        from .. import mistakes

        self.checks, self.in_place = checks, mistakes.in_place
        self.mistakes = mistakes.load_file(Path(work["mistakes"])).mistakes
        self.targets, self.cells = work["targets"], work["cells"]
        self.namespace: dict[str, Any] = {"__name__": "__main__"}

    def everything(self) -> dict[str, Any]:
        from lmcore import doctor

        self.checks._world = self.checks.Recorder(0, "")
        for cell in self.cells:
            if cell["kind"] in ("given", "solution"):
                self._run_cell(cell)
        tests = [cell for cell in self.cells if cell["kind"] == "test"]
        results = {cell["id"]: self._test(cell) for cell in tests}
        return {"tests": results, "gflops": doctor.matmul_gflops()}

    def _run_cell(self, cell: dict[str, Any]) -> None:
        try:
            exec(compile(cell["source"], f"<{cell['id']}>", "exec"), self.namespace)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            raise SourceError(f"{cell['place'] or cell['id']}: {problem}") from error

    def _records(self, cell: dict[str, Any], source: str) -> list[dict[str, Any]]:
        recorder = self.checks.Recorder(self.checks.Notebook.seed, cell["question"])
        self.checks._world = recorder
        recorder.run(source, dict(self.namespace))
        return recorder.records

    def _test(self, cell: dict[str, Any]) -> dict[str, Any]:
        start = time.process_time()
        everything = self._records(cell, cell["source"])
        seconds = time.process_time() - start
        with _calls() as called:
            shown = self._records(cell, cell["visible"])
        for record in everything:
            self._check_reference(cell, record)
        return {
            "titles": [record["title"] for record in shown],
            "visible": len(shown),
            "hidden": len(everything) - len(shown),
            "seconds": round(seconds, 4),
            "memory_mb": round(_peak_memory_mb()),
            "mistakes": self._known_values(cell, shown, called),
        }

    def _check_reference(self, cell: dict[str, Any], record: dict[str, Any]) -> None:
        from lmcore.homework import plain

        value = record["value"]
        if isinstance(value, dict) and set(value) == {"error", "message"}:
            problem = f"{value['error']}: {value['message']}"
        elif isinstance(value, dict) and "unsupported" in value:
            problem = f"a check cannot compare a value of type {value['unsupported']}"
        elif wrong := plain.judge(value, record):
            problem = f"the reference fails its own check {record['title']!r}: {wrong}"
        else:
            return
        raise SourceError(f"{cell['place']}: {problem}")

    def _known_values(
        self, cell: dict[str, Any], shown: list[dict[str, Any]], called: set[CodeType]
    ) -> list[list[dict[str, Any]]]:
        """For each visible check: the wrong values that known mistakes give there."""
        found: list[list[dict[str, Any]]] = [[] for _ in shown]
        own = self.targets[cell["question"]]
        for known in sorted(self.mistakes, key=lambda known: known.target != own):
            if not self._codes(known.target) & called:
                continue
            with self.in_place(known, self.namespace):
                records = self._records(cell, cell["visible"])
            for record in records:
                index = _index(record, shown)
                if index >= len(shown):
                    break
                wrong = _wrong(record, shown[index])
                known_already = [_given(fact) for fact in found[index]]
                # What two mistakes give at one check is put down to the first.
                if wrong and wrong not in known_already:
                    fact = {"says": known.says, "target": known.target, **wrong}
                    found[index].append(fact)
                if "error" in (wrong or {}):
                    break
        return found

    def _codes(self, target: str) -> set[CodeType]:
        """The code of a function, or of a class's methods."""
        module, _, name = target.rpartition(".")
        names = vars(import_module(f"lmcore.{module}")) if module else self.namespace
        if name not in names:
            raise SourceError(f"a known mistake stands in for {target}: there is none")
        original = names[name]
        functions = (
            vars(original).values() if isinstance(original, type) else [original]
        )
        return {f.__code__ for f in functions if hasattr(f, "__code__")}


@contextlib.contextmanager
def _calls() -> Iterator[set[CodeType]]:
    """Collect the code of all functions that are called."""
    called: set[CodeType] = set()
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, argument: called.add(frame.f_code))
    try:
        yield called
    finally:
        sys.setprofile(before)


def _index(record: dict[str, Any], shown: list[dict[str, Any]]) -> int:
    """Which visible check a record belongs to, also after a statement that failed."""
    before = sum(other["statement"] < record["statement"] for other in shown)
    return before + record["nth"]


def _wrong(record: dict[str, Any], right: dict[str, Any]) -> dict[str, Any] | None:
    """The value of a record as `checks.json` keeps it; None if it is right."""
    from lmcore.homework import plain

    value = record["value"]
    if plain.judge(value, right) is None:
        return None
    if isinstance(value, dict) and set(value) == {"error", "message"}:
        return {"error": value}
    try:
        return {"value": plain.encode(plain.literal(plain.decode(value)))}
    except TypeError:
        return None


def _given(fact: dict[str, Any]) -> dict[str, Any]:
    return {key: fact[key] for key in ("value", "error") if key in fact}


def _peak_memory_mb() -> float:
    """The most memory that this process has had so far."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))

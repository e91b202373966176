"""Checks as a student meets them in a notebook: compare, explain, point to the book.

What is known about the questions (their titles, hints, sections, the number of checks,
and the values that well-known mistakes give) lies beside the notebook in
``checks.json``. Without that file the checks still compare, only with fewer words.
"""

import importlib
import inspect
import json
import linecache
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from . import forbidden, plain, unwritten

FACTS_FILE = "checks.json"


class CheckFailed(AssertionError):  # noqa: N818
    """A check found a wrong value; the message explains it.

    >>> issubclass(CheckFailed, AssertionError)
    True
    """

    def _render_traceback_(self) -> list[str]:
        return str(self).splitlines()


class Notebook:
    """Compares the values of checks and explains what is wrong with them.

    Args:
        nothing: stands for "no expected value was given"

    >>> notebook = Notebook()
    >>> notebook.begin("sums", part=1)
    >>> closeness = {"atol": 0.0, "rtol": 0.0, "at_least": None, "at_most": None}
    >>> notebook.take(3, "one and one", expected=2, **closeness)
    Traceback (most recent call last):
    ...
    lmcore.homework.notebook.CheckFailed: ✗ one and one (check 1)
      yours is 3, expected 2
    <BLANKLINE>
    """

    seed = 0

    def __init__(self, nothing: object = None) -> None:
        self._nothing = nothing
        self.question, self._part, self._index = "", 1, 0
        self._unit: dict[str, Any] = {}
        self._passed: dict[tuple[str, int], int] = {}
        self._unwritten: set[str] = set()

    def begin(self, question: str, part: int) -> None:
        """Start the checks of a question."""
        self.question, self._part, self._index = question, part, 0
        self._unit = read_facts()
        self._passed[question, part] = 0
        self._unwritten.discard(question)
        self._explain_errors_of_this_cell()
        self._refuse_forbidden_calls()

    def take(
        self,
        value: object,
        title: str,
        *,
        expected: object,
        atol: float,
        rtol: float,
        at_least: float | None,
        at_most: float | None,
    ) -> None:
        """Compare one value; print a line if it is right, raise if it is wrong."""
        title = title or f"check {self._index + 1}"
        if at_least is not None or at_most is not None:
            wrong = plain.within(value, at_least, at_most)
        elif expected is self._nothing:
            print(f"· {title}: written down; judged when graded")
            return
        else:
            wrong = plain.compare(value, expected, atol, rtol)
        if wrong is not None:
            says = self._recognise(value, atol, rtol)
            raise CheckFailed(self._explanation(title, str(wrong), says))
        self._index += 1
        key = (self.question, self._part)
        self._passed[key] = max(self._index, self._passed.get(key, 0))
        print(f"✓ {title}")
        if self._index == len(self._known_checks()):
            print(self._summary([self.question]))

    def table(self) -> str:
        """List the unit's questions and how their visible checks went so far."""
        self._unit = read_facts()
        questions = self._unit.get("questions", {})
        if not questions:
            return f"There is no {FACTS_FILE} beside this notebook, so nothing to list."
        width = max(len(facts["title"]) for facts in questions.values())
        lines = []
        for name, facts in questions.items():
            n_passed = self._n_passed([name])
            state = f"{n_passed} of {facts['visible']} visible checks pass"
            if name in self._unwritten:
                state = "not written yet"
            elif not any(key[0] == name for key in self._passed):
                state = "not checked yet"
            lines.append(f"{facts['title']:{width}}  {state}")
        return "\n".join([*lines, "", self._summary(list(questions))])

    def _facts(self) -> dict[str, Any]:
        return self._unit.get("questions", {}).get(self.question, {})

    def _known_checks(self) -> list[dict[str, Any]]:
        parts = self._facts().get("parts", [])
        return parts[self._part - 1] if self._part <= len(parts) else []

    def _n_passed(self, names: list[str]) -> int:
        return sum(n for (name, _), n in self._passed.items() if name in names)

    def _summary(self, names: list[str]) -> str:
        questions = self._unit.get("questions", {})
        known = [questions[name] for name in names if name in questions]
        if not known:
            return ""
        n_visible = sum(facts["visible"] for facts in known)
        n_hidden = sum(facts["hidden"] for facts in known)
        noun = "visible check passes" if n_visible == 1 else "visible checks pass"
        text = f"{self._n_passed(names)} of {n_visible} {noun}"
        if n_hidden == 0:
            return f"{text}; there are no hidden ones."
        verb = "checks run" if n_hidden != 1 else "check runs"
        return f"{text}; {n_hidden} hidden {verb} when graded."

    def _explanation(self, title: str, problem: str, says: str) -> str:
        facts, n_checks = self._facts(), len(self._known_checks())
        number = f"check {self._index + 1}"
        number += f" of {n_checks}" if n_checks else ""
        heading = f"✗ {title}" + (
            f" ({number})" if title != number.split(" of")[0] else ""
        )
        lines = [heading, *(f"  {line}" for line in problem.splitlines()), ""]
        if says:
            lines += [f"Recognised: {says}", ""]
        hints = facts.get("hints", [])
        lines += [f"Hint {i}: {hint}" for i, hint in enumerate(hints, start=1)]
        return "\n".join([*lines, *self._closing()])

    def _closing(self) -> list[str]:
        lines = []
        if section := self._facts().get("section"):
            chapter = self._unit.get("unit", "").partition("_")[0]
            lines.append(f'Book: chapter {chapter}, section "{section}"')
            if url := self._unit.get("book_url"):
                lines[-1] += f", {url}/{self._unit['unit']}.html#{section}"
        return lines + [text for text in [self._summary([self.question])] if text]

    def _mistakes(self) -> list[dict[str, Any]]:
        known = self._known_checks()
        return known[self._index]["mistakes"] if self._index < len(known) else []

    def _recognise(self, value: object, atol: float, rtol: float) -> str:
        for mistake in self._mistakes():
            if "value" not in mistake:
                continue
            if plain.compare(value, plain.decode(mistake["value"]), atol, rtol) is None:
                return self._says(mistake)
        return ""

    def _recognise_error(self, error: Exception) -> str:
        happened = {"error": type(error).__name__, "message": str(error)[:500]}
        for mistake in self._mistakes():
            if mistake.get("error") == happened:
                return self._says(mistake)
        return ""

    def _says(self, mistake: dict[str, Any]) -> str:
        target = mistake["target"]
        if target in (self._facts().get("implements"), self.question):
            return mistake["says"]
        return f"(in {target.rpartition('.')[2]}) {mistake['says']}"

    def _refuse_forbidden_calls(self) -> None:
        names, target = self._facts().get("forbidden"), self._facts().get("implements")
        if not names or not target:
            return
        module, _, name = target.rpartition(".")
        mine = getattr(importlib.import_module(f"lmcore.{module}"), name, None)
        if getattr(mine, "__module__", "").startswith("lmcore"):
            return
        try:
            used = forbidden.find(inspect.getsource(mine), names)
        except (OSError, TypeError, SyntaxError):
            return
        if used:
            problem = f"uses {', '.join(used)}, which would do the exercise for you"
            raise CheckFailed(self._explanation(f"{name} by hand", problem, ""))

    def _explain_errors_of_this_cell(self) -> None:
        """Let an error of the code under check be shown without a traceback."""
        get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
        shell = get_ipython()
        if shell is None or shell.custom_exceptions:
            return

        def show(
            shell: Any,
            error_type: type[Exception],
            error: Exception,
            traceback: TracebackType,
            tb_offset: int | None = None,
        ) -> None:
            text = str(error)
            if not isinstance(error, CheckFailed):
                text = self.explain_error(error, traceback)
            error._render_traceback_ = text.splitlines
            shell.showtraceback((error_type, error, traceback), tb_offset=tb_offset)

        def stop(*_: object) -> None:
            shell.set_custom_exc((), None)
            shell.events.unregister("post_run_cell", stop)

        shell.set_custom_exc((Exception,), show)
        shell.events.register("post_run_cell", stop)

    def explain_error(self, error: Exception, traceback: TracebackType | None) -> str:
        """Explain an error that ended a cell of checks."""
        if unwritten.is_reason(error):
            self._unwritten.add(self.question)
            lines = [f"○ not written yet: {error}", *self._closing()[1:]]
            return "\n".join(lines)
        checks = self._known_checks()
        title = checks[self._index]["title"] if self._index < len(checks) else ""
        problem = f"your code stopped with {type(error).__name__}: {error}"
        if place := _place_in_notebook(traceback):
            problem += f"\n{place}"
        number = f"check {self._index + 1}"
        return self._explanation(title or number, problem, self._recognise_error(error))


def read_facts() -> dict[str, Any]:
    """Read what lies beside the notebook about its questions; nothing if unreadable.

    >>> import contextlib, tempfile
    >>> with contextlib.chdir(tempfile.mkdtemp()):
    ...     Path(FACTS_FILE).write_text('{"unit": "08_attention"}')
    ...     read_facts()
    24
    {'unit': '08_attention'}
    """
    try:
        facts = json.loads(Path(FACTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _place_in_notebook(traceback: TracebackType | None) -> str:
    """Say which line of the notebook's own code an error came from."""
    place, depth = "", 0
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_globals.get("__name__") == "__main__":
            name = frame.f_code.co_name
            line = linecache.getline(frame.f_code.co_filename, traceback.tb_lineno)
            where = f"in {name}, line" if not name.startswith("<") else "line"
            place = f"{where} {traceback.tb_lineno}: {line.strip()}"
        traceback, depth = traceback.tb_next, depth + 1
    return place

"""Find the known mistake that gives a student's wrong values.

Each mistake is put in the reference's place and the test cell runs with it, so this is
the dearest thing the judge does. It tries little: only mistakes in what the test cell
calls, those first that this student made elsewhere, each only up to the first wrong
check if that differs already. And it gives up after a number of statements, never
after a time: the same submission is told the same on a slow day.
"""

import importlib
import inspect
import sys
from types import CodeType
from typing import TYPE_CHECKING, Any, NamedTuple

from lmcore.homework import plain

from ..mistakes import Known

if TYPE_CHECKING:
    from .reference import Reference

Key = tuple[int, int]  # the statement, and which of its checks
MAX_STATEMENTS = 2000  # run with mistakes in place, for one submission


class Found(NamedTuple):
    """The known mistake behind a test cell's wrong values."""

    mistake: Known | None = None
    explains_all: bool = False  # whether all would be right without it


class Recogniser:
    """Knows which mistakes can matter to which test cell of a unit.

    Args:
        reference: the unit's reference; its solutions have run
        known: the unit's mistakes
    """

    def __init__(self, reference: "Reference", known: list[Known]) -> None:
        self.reference = reference
        self.known = {name: self._that_matter(name, known) for name in reference.tests}
        self.next_submission()

    def next_submission(self) -> None:
        """Forget what the last student did."""
        self.spent = 0
        self.made: list[str] = []  # names of the mistakes recognised so far

    def find(
        self,
        name: str,
        seed: int,
        expected: dict[Key, Any],
        values: dict[Key, Any],
        wrong: set[Key],
    ) -> Found:
        """Find the known mistake that gives most of the student's wrong values.

        Args:
            name: the test cell's id
            seed: the seed it ran with
            expected: the reference's records
            values: the student's values
            wrong: the checks that failed
        """
        telling = {key for key in wrong & set(values) if not is_error(values[key])}
        if not telling:
            return Found()
        target, first = self._target(name), min(telling)
        best, best_rank, explains_all = None, (0, 0, 0), False
        for known in self._likeliest_first(name, target):
            if self.spent >= MAX_STATEMENTS:
                break
            theirs = self._record(name, seed, known, last=first[0])
            if not _same(values[first], theirs.get(first), expected[first]):
                continue  # most are told apart here, before the rest of the cell runs
            theirs = self._record(name, seed, known)
            same = {
                key
                for key in telling
                if _same(values[key], theirs.get(key), expected[key])
            }
            also_right = sum(
                key in theirs and plain.judge(theirs[key]["value"], record) is None
                for key, record in expected.items()
                if key not in wrong
            )
            rank = (len(same), also_right, known.target == target)
            if same and rank > best_rank:
                best, best_rank = known, rank
            if len(same) == len(telling) and also_right == len(expected) - len(wrong):
                explains_all = telling == wrong
                break
        if best is not None and best.name not in self.made:
            self.made.append(best.name)
        return Found(best, explains_all)

    def _record(
        self, name: str, seed: int, known: Known, last: int | None = None
    ) -> dict[Key, dict[str, Any]]:
        n_statements = len(self.reference.statements[name])
        self.spent += n_statements if last is None else last + 1
        return self.reference.record(name, seed, known, last)

    def _likeliest_first(self, name: str, target: str) -> list[Known]:
        """First what this student did elsewhere, then mistakes in this exercise."""
        return sorted(
            self.known[name],
            key=lambda known: (known.name not in self.made, known.target != target),
        )

    def _target(self, name: str) -> str:
        question = self.reference.tests[name]["question"]
        facts = self.reference.manifest["questions"][question]
        return facts.get("implements") or question

    def _that_matter(self, name: str, known: list[Known]) -> list[Known]:
        """The mistakes in something that the test cell calls."""
        called: set[CodeType] = set()
        # This first run also shows that the cell runs, and imports what it needs.
        sys.setprofile(lambda frame, event, _: called.add(frame.f_code))
        try:
            self.reference.record(name, seed=0)
        finally:
            sys.setprofile(None)
        codes = {one.target: self._codes(one.target) for one in known}
        return [
            one
            for one in known
            if codes[one.target] is not None
            and (not codes[one.target] or codes[one.target] & called)
        ]

    def _codes(self, target: str) -> set[CodeType] | None:
        """The code behind a target; None if this notebook does not have it."""
        module, _, name = target.rpartition(".")
        names = self.reference.namespace
        if module:
            names = vars(importlib.import_module(f"lmcore.{module}"))
        if name not in names:
            return None
        parts = [names[name], inspect.unwrap(names[name])]
        if inspect.isclass(parts[0]):
            parts = list(vars(parts[0]).values())
        return {part.__code__ for part in parts if hasattr(part, "__code__")}


def _same(
    yours: Any, mistaken: dict[str, Any] | None, expected: dict[str, Any]
) -> bool:
    """Whether a value is the one that a mistake gives."""
    if mistaken is None or is_error(mistaken["value"]):
        return False
    exact = {"value": mistaken["value"], "at_least": None, "at_most": None}
    return plain.judge(yours, {**expected, **exact}) is None


def is_error(value: object) -> bool:
    """Whether a recorded value is an error that stands in a value's place."""
    return isinstance(value, dict) and "error" in value

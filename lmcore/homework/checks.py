"""The calls of a homework notebook, and the two ways in which a check runs."""

import ast
import difflib
import hashlib
import json
import pprint
import random
from collections.abc import Callable
from types import CodeType, ModuleType
from typing import Any

import numpy as np
import torch

from . import plain, unwritten
from .notebook import Notebook

_NOTHING = object()


class Recorder:
    """Writes down the values of checks instead of judging them.

    Both the student's and the reference process use it when homework is graded. Records
    are dictionaries of plain data: ``question``; ``check``, the number of the record;
    ``statement`` and ``nth``, which check of which statement of the cell it is, so that
    records still belong together when a statement fails half-way; ``title``; ``value``,
    as `plain.encode` writes it, or ``{"error": type name, "message": text}``;
    and how to judge it: ``atol``, ``rtol``, ``at_least``, ``at_most`` and
    ``has_expected``.

    Args:
        seed: decides everything drawn from `generator`
        question: the id of the question whose checks run

    >>> recorder = Recorder(seed=1, question="sums")
    >>> recorder.take(1 + 1, "a sum", expected=2)
    >>> record = recorder.records[0]
    >>> record["title"], record["value"], record["has_expected"]
    ('a sum', 2, True)
    """

    def __init__(self, seed: int, question: str) -> None:
        self.seed, self.question = seed, question
        self.records: list[dict[str, Any]] = []
        self.statement = 0
        self._nth = 0

    def run(self, source: str, namespace: dict[str, Any]) -> None:
        """Run a cell of checks statement by statement; an error ends one statement."""
        for self.statement, code in enumerate(compile_statements(source)):
            self._nth = 0
            try:
                exec(code, namespace)
            except (Exception, SystemExit) as error:
                self.failed(error)

    def failed(self, error: BaseException) -> None:
        """Write down that the current statement ended with an error."""
        try:
            message = str(error)[:500]
        except Exception:
            message = ""
        self._add({"error": type(error).__name__, "message": message}, "")

    def begin(self, question: str, part: int) -> None:
        """Nothing to do: whose checks run was said when the recorder was made."""

    def take(self, value: object, title: str, **judged_by: Any) -> None:
        """Write one value down."""
        judged_by["has_expected"] = judged_by.pop("expected") is not _NOTHING
        try:
            data = plain.encode(value)
        except Exception as error:
            data = {"error": type(error).__name__, "message": str(error)[:500]}
        self._add(data, title, **judged_by)

    def _add(self, data: object, title: str, **judged_by: Any) -> None:
        self.records.append(
            {
                "question": self.question,
                "check": len(self.records),
                "statement": self.statement,
                "nth": self._nth,
                "title": title,
                "value": data,
                **judged_by,
            }
        )
        self._nth += 1


def compile_statements(source: str, filename: str = "<checks>") -> list[CodeType]:
    """Compile a cell into one piece of code per statement at its top level.

    >>> for code in compile_statements("a = 1\\nprint(a)"):
    ...     exec(code)
    1
    """
    body = ast.parse(source, filename).body
    modules = [ast.Module(body=[statement], type_ignores=[]) for statement in body]
    return [compile(module, filename, "exec") for module in modules]


_world: Notebook | Recorder = Notebook(_NOTHING)


def implements(module: ModuleType) -> Callable[[Any], Any]:
    """Put the function or class below into a module of lmcore, in place of its own.

    Everything in lmcore that uses it then runs on yours.

    Raises:
        AttributeError: if the module has nothing of that name.

    >>> from lmcore import attention
    >>> @implements(attention)
    ... def causal_masc():
    ...     "A slip of the pen."
    Traceback (most recent call last):
    ...
    AttributeError: attention has no causal_masc; did you mean causal_mask?
    """
    if not isinstance(module, ModuleType):
        raise TypeError("name the module: @implements(attention), not @implements")

    def put(mine: Any) -> Any:
        name = mine.__name__
        if not hasattr(module, name):
            short = module.__name__.rpartition(".")[2]
            public = [known for known in vars(module) if not known.startswith("_")]
            close = difflib.get_close_matches(name, public, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise AttributeError(f"{short} has no {name}{hint}")
        setattr(module, name, mine)
        return mine

    return put


def question(name: str, part: int = 1) -> None:
    """Say that the checks below belong to a question.

    Also seeds torch, NumPy and Python's `random`, so that a check gives the same result
    each time it runs.

    Args:
        name: the question's id
        part: counts the check cells of one question

    >>> question("sums")
    >>> first = torch.rand(2)
    >>> question("sums")
    >>> torch.equal(torch.rand(2), first)
    True
    """
    _world.begin(name, part)
    seed = _derived_seed("global", name)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # Not torch.manual_seed: its first call imports the compiler, which takes seconds.
    torch.default_generator.manual_seed(seed)


def check(
    value: object,
    expected: object = _NOTHING,
    *,
    title: str = "",
    atol: float = 1e-5,
    rtol: float = 1e-5,
    at_least: float | None = None,
    at_most: float | None = None,
) -> None:
    """Check that a value is the expected one, or lies within bounds.

    A list of numbers, an array and a tensor of the same shape and kind count as the
    same answer; floats are close when they differ by at most
    ``atol + rtol * |expected|``.

    Args:
        value: what your code gives: numbers, strings, tensors, and lists, tuples and
            dictionaries of these
        expected: the right value. Left out in hidden checks.
        title: what is checked, in a few words
        atol: the absolute tolerance
        rtol: the relative tolerance
        at_least: the smallest value that is right, instead of ``expected``
        at_most: the largest value that is right, instead of ``expected``

    Raises:
        CheckFailed: in the notebook, if the value is wrong, with an explanation.

    >>> question("sums")
    >>> check(1 + 1, 2, title="one and one")
    ✓ one and one
    >>> check(0.3, at_least=0.25, at_most=0.5, title="a third, about")
    ✓ a third, about
    """
    bounded = at_least is not None or at_most is not None
    if bounded and expected is not _NOTHING:
        raise TypeError("a check has either an expected value or bounds, not both")
    bounds = {"at_least": at_least, "at_most": at_most}
    _world.take(value, title, expected=expected, atol=atol, rtol=rtol, **bounds)


class value:  # noqa: N801
    """Writes a value as a Python literal; nbgrader uses it to fill in checks.

    >>> repr(value(torch.tensor([[0.5, 1.0]]))).strip()
    '[[0.5, 1.0]]'
    """

    def __init__(self, x: object, **options: Any) -> None:
        unknown = set(options) - {"title", "atol", "rtol"}
        if unknown:
            raise TypeError(f"an AUTOTEST line cannot state {sorted(unknown)}")
        self.literal = plain.literal(x)

    def __repr__(self) -> str:
        # nbgrader strips quotes from the ends of what it reads: spaces protect them.
        text = pprint.pformat(
            _readable(self.literal), width=72, compact=True, sort_dicts=False
        )
        return f" {text} "


class _SpecialFloat(float):
    """NaN or an infinity that is written as Python code."""

    def __repr__(self) -> str:
        return f'float("{float(self)!r}")'


class _Text(str):
    """A string that is written with double quotes."""

    def __repr__(self) -> str:
        return json.dumps(str(self), ensure_ascii=False)


def _readable(x: Any) -> Any:
    if isinstance(x, list | tuple):
        return type(x)(_readable(item) for item in x)
    if isinstance(x, dict):
        return {_Text(key): _readable(item) for key, item in x.items()}
    if isinstance(x, str):
        return _Text(x)
    if isinstance(x, float) and not np.isfinite(x):
        return _SpecialFloat(x)
    return x


def refusal(
    error_type: type[Exception], function: Callable[..., Any], *args: Any, **kwargs: Any
) -> str:
    """Say how a call was refused: the name of the error, if it is the right one.

    >>> refusal(ValueError, int, "three")
    'ValueError'
    >>> refusal(ValueError, int, 3)
    'no error, but 3, an int'
    """
    try:
        result = function(*args, **kwargs)
    except error_type as error:
        if unwritten.is_reason(error):
            raise
        return error_type.__name__
    except Exception as error:
        if unwritten.is_reason(error):
            raise
        return f"{type(error).__name__}: {error}"
    return f"no error, but {plain.describe(result)}"


def generator(offset: int = 0) -> torch.Generator:
    """Make a random generator whose seed belongs to the current question.

    It draws on torch's default device. In the notebook it is always the same; when
    graded it is another one for every submission, and the same one at every regrade.

    Args:
        offset: tells several generators of one question apart

    >>> question("sums")
    >>> draws = [torch.rand(1, generator=generator(offset)) for offset in (0, 0, 1)]
    >>> torch.equal(draws[0], draws[1]), torch.equal(draws[0], draws[2])
    (True, False)
    """
    seed = _derived_seed(str(offset), _world.question)
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


def _derived_seed(purpose: str, name: str) -> int:
    text = f"{_world.seed}/{name}/{purpose}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def load_my_work() -> None:
    """Put what you wrote in earlier notebooks into lmcore, and say what was found.

    What is missing, unfinished or does not run stays as lmcore has it. When the
    homework is graded, this does nothing.

    >>> import contextlib, pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp()) / "01_language"
    >>> folder.mkdir()
    >>> with contextlib.chdir(folder):
    ...     load_my_work()
    No earlier homework beside this notebook, so nothing to put into lmcore.
    """
    if isinstance(_world, Notebook):
        from . import my_work

        my_work.load()


def progress() -> None:
    """Show how many visible checks of this notebook pass so far.

    >>> import contextlib, tempfile
    >>> with contextlib.chdir(tempfile.mkdtemp()):
    ...     progress()
    There is no checks.json beside this notebook, so nothing to list.
    """
    if isinstance(_world, Notebook):
        print(_world.table())

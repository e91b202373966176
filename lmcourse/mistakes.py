"""The wrong and the unusual right answers that are known for every exercise.

``tests/mistakes/NN_name.py`` holds them as plain functions and classes. They prove that
the checks reject what is wrong and accept what is right, and they let a check say which
misunderstanding a student's value comes from.
"""

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from . import paths

_ATTRIBUTE = "__lmcourse_known__"


@dataclass(frozen=True)
class Known:
    """A known answer to an exercise.

    ``name`` is the function's or class's own name, ``target`` what it stands in for
    (``attention.causal_mask``, or the plain name of something written in the notebook),
    ``says`` the message for a student who made this mistake, empty for a right answer.
    """

    name: str
    target: str
    says: str
    obj: Any


@dataclass(frozen=True)
class UnitMistakes:
    """All known answers of a unit, in the order they are written."""

    mistakes: list[Known] = field(default_factory=list)
    variants: list[Known] = field(default_factory=list)


def mistake(target: str, says: str) -> Callable[[Any], Any]:
    """Declare that the function or class below is a well-known wrong answer.

    Args:
        target: what it stands in for: ``module.name`` of lmcore, or a name in the
            notebook
        says: one or two sentences to the student: what was misunderstood, not how to
            mend it
    """
    if not says.strip():
        raise ValueError(f"a mistake of {target} must say what was misunderstood")
    return _declare(target, says)


def variant(target: str) -> Callable[[Any], Any]:
    """Declare that the function or class below is right, only written differently."""
    return _declare(target, "")


def _declare(target: str, says: str) -> Callable[[Any], Any]:
    def put(obj: Any) -> Any:
        known = Known(obj.__name__, target, says, obj)
        setattr(obj, _ATTRIBUTE, [*vars(obj).get(_ATTRIBUTE, []), known])
        return obj

    return put


def load(unit: str) -> UnitMistakes:
    """Read the known answers of a unit; none if it has no such file."""
    return load_file(paths.root() / "tests" / "mistakes" / f"{unit}.py")


def load_file(path: Path) -> UnitMistakes:
    """Read the known answers that stand in a file.

    Raises:
        ValueError: if two have the same name, or a target does not exist in lmcore.
    """
    found = UnitMistakes()
    if not path.exists():
        return found
    spec = importlib.util.spec_from_file_location(f"mistakes_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names = set()
    for obj in vars(module).values():
        for known in getattr(obj, "__dict__", {}).get(_ATTRIBUTE, []):
            if known.name in names:
                raise ValueError(f"{path.name}: two answers are called {known.name}")
            names.add(known.name)
            _check_target(known, path)
            (found.mistakes if known.says else found.variants).append(known)
    return found


def _check_target(known: Known, path: Path) -> None:
    module_name, _, name = known.target.rpartition(".")
    if not module_name:
        return
    try:
        original = getattr(importlib.import_module(f"lmcore.{module_name}"), name)
    except (ImportError, AttributeError):
        message = f"{path.name}: {known.name} stands in for {known.target}, "
        raise ValueError(f"{message}which lmcore does not have") from None
    if inspect.isclass(original) != inspect.isclass(known.obj):
        kind = "class" if inspect.isclass(original) else "function"
        raise ValueError(f"{path.name}: {known.name} must be a {kind}")


@contextmanager
def in_place(known: Known, namespace: dict[str, Any]) -> Iterator[None]:
    """Put a known answer where its target stands, in lmcore and in a notebook's names.

    Args:
        known: the answer
        namespace: the names of the notebook that runs; its own name for the target is
            replaced too, if it has one
    """
    module_name, _, name = known.target.rpartition(".")
    places: list[ModuleType | dict[str, Any]] = []
    if module_name:
        places.append(vars(importlib.import_module(f"lmcore.{module_name}")))
    if name in namespace:
        places.append(namespace)
    if not places:
        raise ValueError(f"{known.target} is neither in lmcore nor in the notebook")
    before = [names[name] for names in places]
    try:
        for names in places:
            names[name] = known.obj
        yield
    finally:
        for names, original in zip(places, before, strict=True):
            names[name] = original

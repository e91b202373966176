"""Collect what a student wrote in earlier notebooks and put it into lmcore.

Notebooks are looked for beside the current one: ``../NN_name/NN_name.ipynb``, or all in
one folder. Of each only its imports and the cells with an ``@implements`` run, every
cell on its own, so that one that fails costs only itself.
"""

import ast
import contextlib
import importlib
import io
import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from . import notebook, unwritten

_UNIT = re.compile(r"\d\d_\w+")


@dataclass(frozen=True)
class Piece:
    """One function or class that a notebook asks for, and how it went.

    ``state`` is ``yours``, ``unfinished``, or the reason why yours did not run.

    >>> Piece("08_attention", "attention.causal_mask", "yours").state
    'yours'
    """

    unit: str
    name: str  # module.name in lmcore
    state: str


def load(folder: Path | None = None) -> list[Piece]:
    """Put the student's earlier work into lmcore and print what was found.

    Args:
        folder: where the current notebook lies; the current folder if not given

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "01_language"
    >>> folder.mkdir()
    >>> load(folder)
    No earlier homework beside this notebook, so nothing to put into lmcore.
    []
    """
    folder = (folder or Path.cwd()).resolve()
    pieces = [
        piece for path in earlier_notebooks(folder) for piece in load_notebook(path)
    ]
    print(table(pieces))
    return pieces


def earlier_notebooks(folder: Path) -> list[Path]:
    """List the notebooks of the units before this one, in the course's order.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for unit in ("09_transformer", "02_ngrams", "08_attention"):
    ...     (folder / unit).mkdir()
    ...     (folder / unit / f"{unit}.ipynb").touch()
    >>> [path.name for path in earlier_notebooks(folder / "09_transformer")]
    ['02_ngrams.ipynb', '08_attention.ipynb']
    """
    this_unit = notebook.read_facts().get("unit", "") or folder.name
    found: dict[str, Path] = {}
    for pattern in ("*.ipynb", "../*/*.ipynb"):
        for path in sorted(folder.glob(pattern)):
            unit = path.stem
            beside = path.parent == folder or path.parent.name == unit
            if _UNIT.fullmatch(unit) and beside:
                found.setdefault(unit, path.resolve())
    if _UNIT.fullmatch(this_unit):
        found = {unit: path for unit, path in found.items() if unit < this_unit}
    return [found[unit] for unit in sorted(found)]


def load_notebook(path: Path) -> list[Piece]:
    """Run the imports and the ``@implements`` cells of one notebook.

    >>> import tempfile
    >>> stub = f"raise NotImplementedError('causal_mask {unwritten.PHRASE}')"
    >>> source = f"@implements(attention)\\ndef causal_mask():\\n    {stub}"
    >>> path = Path(tempfile.mkdtemp()) / "08_attention.ipynb"
    >>> cells = [{"cell_type": "code", "source": [source]}]
    >>> _ = path.write_text(json.dumps({"cells": cells}))
    >>> load_notebook(path)
    [Piece(unit='08_attention', name='attention.causal_mask', state='unfinished')]
    """
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = [
            "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [Piece(path.stem, "", f"unreadable notebook ({_in_a_line(error)})")]
    names = _names_of(sources)
    pieces = []
    for source in sources:
        try:
            definitions = _implemented(ast.parse(source))
        except SyntaxError as error:
            if found := re.search(
                r"@implements\((\w+)\)\s*(?:def|class)\s+(\w+)", source
            ):
                name = ".".join(found.groups())
                pieces.append(Piece(path.stem, name, _in_a_line(error)))
            continue
        if definitions:
            pieces += _load_cell(path.stem, source, definitions, names)
    return pieces


def _load_cell(
    unit: str, source: str, definitions: dict[str, ast.AST], names: dict[str, Any]
) -> list[Piece]:
    if any(_is_unfinished(node) for node in definitions.values()):
        return [Piece(unit, name, "unfinished") for name in definitions]
    try:
        before = {name: _get(name) for name in definitions}
    except (ImportError, AttributeError) as error:
        return [Piece(unit, name, _in_a_line(error)) for name in definitions]
    try:
        silent = contextlib.redirect_stdout(io.StringIO())
        with silent, contextlib.redirect_stderr(io.StringIO()):
            exec(compile(source, f"<{unit}>", "exec"), names)
    except (Exception, SystemExit) as error:
        for name, original in before.items():
            _put(name, original)
        return [Piece(unit, name, _in_a_line(error)) for name in definitions]
    return [Piece(unit, name, "yours") for name in definitions]


def table(pieces: list[Piece]) -> str:
    """Say which work is the student's, and what stands in for the rest.

    >>> print(table([Piece("08_attention", "attention.causal_mask", "yours")]))
    Of your earlier work, 1 of 1 run in lmcore now:
      08_attention  attention.causal_mask  yours
    """
    if not pieces:
        return (
            "No earlier homework beside this notebook, so nothing to put into lmcore."
        )
    blank = _blank_names()
    width = max(len(piece.name) for piece in pieces)
    n_yours = sum(piece.state == "yours" for piece in pieces)
    lines = [f"Of your earlier work, {n_yours} of {len(pieces)} run in lmcore now:"]
    for piece in pieces:
        instead = "still blank" if piece.name in blank else "the reference stands in"
        if piece.state == "yours":
            state = "yours"
        elif piece.state == "unfinished":
            state = f"not written yet, {instead}"
        else:
            state = f"{piece.state}; {instead}"
        lines.append(f"  {piece.unit}  {piece.name:{width}}  {state}")
    return "\n".join(lines)


def _blank_names() -> list[str]:
    """Names whose bodies are blank in this installation of lmcore (the student kit)."""
    try:
        return json.loads(resources.files("lmcore").joinpath("blank.json").read_text())
    except (OSError, ValueError):
        return []


def _names_of(sources: list[str]) -> dict[str, Any]:
    """Run the imports of a notebook, each on its own, and keep what they bring."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for source in sources:
        try:
            body = ast.parse(source).body
        except SyntaxError:
            continue
        for node in body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = ast.Module(body=[node], type_ignores=[])
                with contextlib.suppress(Exception):
                    exec(compile(module, "<imports>", "exec"), names)
    return names


def _implemented(tree: ast.Module) -> dict[str, ast.AST]:
    """The functions and classes of a cell that have ``@implements(module)``."""
    found = {}
    for node in tree.body:
        for decorator in getattr(node, "decorator_list", []):
            is_call = isinstance(decorator, ast.Call) and decorator.args
            if is_call and ast.unparse(decorator.func).endswith("implements"):
                module = ast.unparse(decorator.args[0]).rpartition(".")[2]
                found[f"{module}.{node.name}"] = node
    return found


def _is_unfinished(node: ast.AST) -> bool:
    """Whether a function, or a method of a class, still raises what the stub raised."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Raise) and unwritten.PHRASE in ast.unparse(inner):
            return True
    return False


def _get(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(f"lmcore.{module}"), attribute)


def _put(name: str, value: Any) -> None:
    module, _, attribute = name.rpartition(".")
    setattr(importlib.import_module(f"lmcore.{module}"), attribute, value)


def _in_a_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:120]

"""Graded functions in lmcore: take their source, mark it for nbgrader, or blank it.

Works on the text of ``lmcore/*.py``; nothing is imported. What stands in a body is
found by Python's own parser, so that docstrings, signatures and comments elsewhere stay
as they are.
"""

import ast
import builtins
from dataclasses import dataclass
from pathlib import Path

import lmcore
from lmcore.homework import unwritten

from .. import paths
from .text import BEGIN_SOLUTION, END_SOLUTION, SourceError

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Graded:
    """A function or class of lmcore whose body students write."""

    target: str  # module.name
    given_methods: tuple[str, ...] = ()  # of a class: methods that stay as they are
    where: str = ""  # for the stub: which chapter and section

    @property
    def module(self) -> str:
        return self.target.rpartition(".")[0]

    @property
    def name(self) -> str:
        return self.target.rpartition(".")[2]


def lmcore_folder() -> Path:
    """The library's source: the project's own, else the installed one."""
    own = paths.root() / "lmcore"
    return own if own.is_dir() else Path(lmcore.__file__).parent


def stub_lines(name: str, where: str) -> list[str]:
    """The stub of a body, not indented: what is to be written, and where to read.

    >>> stub_lines("causal_mask", "chapter 08, section 'masks'")[1]
    '    "causal_mask is yours to write: "'
    """
    what, _, book = unwritten.message(name, where).partition(": ")
    return ["raise NotImplementedError(", f'    "{what}: "', f'    "{book}"', ")"]


def read_module(module: str) -> str:
    """The source of a module of lmcore.

    Raises:
        SourceError: if lmcore has no such module.
    """
    path = lmcore_folder() / f"{module.replace('.', '/')}.py"
    if not path.is_file():
        raise SourceError(f"lmcore has no module {module}")
    return path.read_text(encoding="utf-8")


def definition(tree: ast.Module, graded: Graded) -> Definition:
    """Find a graded function or class.

    Raises:
        SourceError: if the module has none of that name.
    """
    for node in tree.body:
        if isinstance(node, Definition) and node.name == graded.name:
            return node
    raise SourceError(f"lmcore.{graded.module} has no function or class {graded.name}")


def bodies(node: Definition, graded: Graded) -> list[tuple[str, ast.FunctionDef]]:
    """The functions whose bodies are graded, with their full names, in order."""
    if isinstance(node, _FUNCTION):
        return [(node.name, node)]
    methods = [inner for inner in node.body if isinstance(inner, _FUNCTION)]
    names = [method.name for method in methods]
    if missing := sorted(set(graded.given_methods) - set(names)):
        raise SourceError(f"{graded.target} has no method {missing[0]} to be given")
    found = [
        (f"{node.name}.{method.name}", method)
        for method in methods
        if method.name not in graded.given_methods
    ]
    if not found:
        raise SourceError(f"{graded.target} has no method left to write")
    return found


def body_lines(function: ast.FunctionDef, lines: list[str]) -> tuple[int, int]:
    """The first and last line (counted from 1) of a body, docstring excluded.

    Comments right after the body, indented like it, belong to it.
    """
    if ast.get_docstring(function) is None:
        first = function.body[0].lineno
        before = max(
            [
                function.lineno,
                *(
                    arg.lineno
                    for arg in ast.walk(function.args)
                    if isinstance(arg, ast.arg)
                ),
            ]
        )
        while first - 1 > before and lines[first - 2].lstrip().startswith("#"):
            first -= 1
    elif len(function.body) > 1:
        first = function.body[0].end_lineno + 1
    else:
        raise SourceError(f"{function.name} has only a docstring, so nothing to write")
    last = function.end_lineno
    if first <= function.lineno:
        raise SourceError(f"{function.name} is written on one line: break it")
    for number in range(last + 1, len(lines) + 1):
        line = lines[number - 1]
        if not line.strip():
            continue
        indent = len(line) - len(line.lstrip())
        if not line.lstrip().startswith("#") or indent <= function.col_offset:
            break
        last = number
    return first, last


def blank(source: str, all_graded: list[Graded]) -> str:
    """A module's source in which the graded bodies only say what is to be written."""
    tree, lines = ast.parse(source), source.splitlines()
    cuts = []
    for graded in all_graded:
        for name, function in bodies(definition(tree, graded), graded):
            stub = stub_lines(name, graded.where)
            cuts.append((*body_lines(function, lines), function.col_offset + 4, stub))
    for first, last, indent, stub in sorted(cuts, reverse=True):
        lines[first - 1 : last] = [" " * indent + line for line in stub]
    return "\n".join(lines) + "\n"


def as_solution(graded: Graded, bound: set[str]) -> str:
    """The source of a graded function as a notebook's cell, with solution markers.

    Names that only its module knows are written with the module's name in front.

    Args:
        graded: what to take
        bound: the names that the notebook has when this cell runs

    Raises:
        SourceError: if the notebook lacks something that the function needs.
    """
    source = read_module(graded.module)
    tree, lines = ast.parse(source), source.splitlines()
    node = definition(tree, graded)
    short = graded.module.rpartition(".")[2]
    for needed in (short, "implements"):
        if needed not in bound:
            raise SourceError(f"the notebook must import {needed} in a given cell")
    _qualify(tree, node, lines, short, bound)
    for _, function in reversed(bodies(node, graded)):
        first, last = body_lines(function, lines)
        indent = " " * (function.col_offset + 4)
        lines[last:last] = [indent + END_SOLUTION]
        lines[first - 1 : first - 1] = [indent + BEGIN_SOLUTION]
    start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    n_added = 2 * len(bodies(node, graded))
    own = lines[start - 1 : node.end_lineno + n_added]
    return "\n".join([f"@implements({short})", *own])


def plain_source(graded: Graded) -> str:
    """The source of a graded function as it stands in lmcore."""
    source = read_module(graded.module)
    node = definition(ast.parse(source), graded)
    start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    return "\n".join(source.splitlines()[start - 1 : node.end_lineno])


def _qualify(
    tree: ast.Module, node: Definition, lines: list[str], module: str, bound: set[str]
) -> None:
    """Write ``module.name`` for the names of the module that the notebook lacks."""
    imported = {
        name
        for statement in tree.body
        if isinstance(statement, ast.Import | ast.ImportFrom)
        for name in bound_names(statement)
    }
    own = {name for statement in tree.body for name in bound_names(statement)}
    local = {
        inner.id
        for inner in ast.walk(node)
        if isinstance(inner, ast.Name) and not isinstance(inner.ctx, ast.Load)
    } | {inner.arg for inner in ast.walk(node) if isinstance(inner, ast.arg)}
    known = bound | local | set(dir(builtins)) | {node.name}
    places = []
    for inner in ast.walk(node):
        if not isinstance(inner, ast.Name) or inner.id in known:
            continue
        if inner.id in imported or inner.id not in own:
            raise SourceError(
                f"{module}.{node.name} uses {inner.id}: import it in a given cell"
            )
        places.append((inner.lineno, inner.col_offset))
    for number, offset in sorted(places, reverse=True):
        line = lines[number - 1].encode()
        lines[number - 1] = b"".join(
            [line[:offset], f"{module}.".encode(), line[offset:]]
        ).decode()


def bound_names(statement: ast.stmt) -> set[str]:
    """The names that a statement at the top level of a module or cell binds."""
    if isinstance(statement, Definition):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {item.asname or item.name.partition(".")[0] for item in statement.names}
    return {
        inner.id
        for inner in ast.walk(statement)
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store)
    }

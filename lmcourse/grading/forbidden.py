"""Find calls that an exercise does without, in the text of a solution.

Certain is a use inside a function or class of the exercise's own cell: it earns
nothing. Everything else (a use beside it, in a helper elsewhere, or ways to call a
function by its name as text) is only pointed out to a person.
"""

import ast
import functools
import sys
from typing import Any

from lmcore.homework import forbidden

from .inside.world import parse_cell

BODIES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
DEEP = 10_000  # calls within calls, to write down what Python could read
INDIRECT = ("getattr", "eval", "exec", "compile", "__import__", "importlib", "vars")


def find(
    question: dict[str, Any], own: str, others: list[str], given: list[str]
) -> tuple[list[str], list[str]]:
    """Look for forbidden calls.

    Args:
        question: the question's facts from the manifest
        own: the source of the exercise's cell
        others: the sources of the student's other cells
        given: the sources of the given cells, for their imports

    Returns:
        The names that are certainly used, and sentences for a person to look at.
    """
    if not question.get("forbidden"):
        return [], []
    try:
        return _find(question["forbidden"], own, others, given)
    except (RecursionError, ValueError, MemoryError):
        # Python can read such a text, but not write it down again.
        return [], ["is written in a way that cannot be searched for forbidden calls"]


def _find(
    names: list[str], own: str, others: list[str], given: list[str]
) -> tuple[list[str], list[str]]:
    tree = _parse(own)
    if tree is None:
        return [], []
    full = {_full(name): name for name in names}
    texts = [*given, *others]
    imports = _text([node for text in texts for node in _imports(_parse(text))])
    anywhere = _used([tree], imports, full)
    bodies = [node for node in ast.walk(tree) if isinstance(node, BODIES)]
    certain = _used([*_imports(tree), *bodies], imports, full) if anywhere else []
    flags = []
    if beside := sorted(set(anywhere) - set(certain)):
        flags.append(f"uses {', '.join(beside)} outside the function")
    called = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for text in others:
        helpers = [
            node
            for node in getattr(_parse(text), "body", [])
            if getattr(node, "name", None) in called
        ]
        if helpers and (found := _used(helpers, imports, full)):
            flags.append(f"calls a helper that uses {', '.join(found)}")
    if ways := sorted(called & set(INDIRECT)):
        flags.append(f"may call functions by their names as text: {', '.join(ways)}")
    return certain, flags


def _full(name: str) -> str:
    return name if name.split(".")[0] in ("torch", "numpy") else f"lmcore.{name}"


def _used(nodes: list[ast.AST], imports: str, full: dict[str, str]) -> list[str]:
    """The forbidden names that the nodes use, given the imports made elsewhere."""
    used = forbidden.find(f"{imports}\n{_text(nodes)}", list(full))
    if not used:
        return []
    imported = forbidden.find(imports, used)
    words = {n.id for node in nodes for n in ast.walk(node) if isinstance(n, ast.Name)}
    return [
        full[name]
        for name in used
        if name not in imported or name.rpartition(".")[2] in words
    ]


def _text(nodes: list[ast.AST]) -> str:
    """Write nodes down as text again, also deeply nested ones."""
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(DEEP)
    try:
        return "\n".join(map(ast.unparse, nodes))
    finally:
        sys.setrecursionlimit(usual)


@functools.lru_cache(maxsize=500)  # each cell is looked at per question
def _imports(tree: ast.Module | None) -> list[ast.AST]:
    nodes = [] if tree is None else ast.walk(tree)
    return [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]


@functools.lru_cache(maxsize=500)  # each cell is looked at per question
def _parse(source: str) -> ast.Module | None:
    try:
        tree = parse_cell(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):  # no name, and some cannot be written again
            node.value = "" if isinstance(node.value, str) else 0
    return tree

"""Take a test cell apart into statements, for the one world and for the other."""

import ast
import base64
import marshal
from dataclasses import dataclass
from types import CodeType
from typing import Any

AUTOTEST = "### AUTOTEST "
BEGIN_HIDDEN, END_HIDDEN = "### BEGIN HIDDEN TESTS", "### END HIDDEN TESTS"


@dataclass(frozen=True)
class Statement:
    """One statement at the top level of a test cell, compiled.

    ``whole`` is what the reference runs. ``bare`` is what the student's world runs:
    the same without expected values, tolerances, bounds and titles. A statement is
    ``hidden`` also where it comes after hidden ones, for it could tell of them.
    """

    whole: CodeType
    bare: CodeType
    hidden: bool
    checks: bool  # whether it contains a check


def statements(test_cell: str) -> list[Statement]:
    """Split the source of a test cell, hidden checks included."""
    lines, hidden_lines, hidden = [], set(), False
    for line in test_cell.splitlines():
        if line.startswith(AUTOTEST):
            line = f"check({line.removeprefix(AUTOTEST).strip()})"
        hidden = (hidden or line.strip() == BEGIN_HIDDEN) and line.strip() != END_HIDDEN
        lines.append(line)
        if hidden:
            hidden_lines.add(len(lines))
    found = []
    for node in ast.parse("\n".join(lines)).body:
        whole = _compiled(node)
        checks = [inner for inner in ast.walk(node) if _is_check(inner)]
        for check in checks:
            check.args, check.keywords = check.args[:1], []
        found.append(
            Statement(
                whole=whole,
                bare=_compiled(node),
                hidden=bool(hidden_lines) and node.lineno >= min(hidden_lines),
                checks=bool(checks),
            )
        )
    return found


def bare_tests(manifest: dict[str, Any]) -> dict[str, dict[str, list[str]]]:
    """What the student's world runs for each test cell, by the cell's id.

    Compiled here, once for a class, and not there, once for each submission.

    Returns:
        For each cell the statements that are ``visible``, and the ``hidden`` ones,
        which come after them.
    """
    return {
        cell["id"]: _bare_test(cell["source"])
        for cell in manifest["cells"]
        if cell["kind"] == "test"
    }


def _bare_test(test_cell: str) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {"visible": [], "hidden": []}
    for statement in statements(test_cell):
        part = parts["hidden" if statement.hidden else "visible"]
        part.append(_packed(statement.bare))
    return parts


def _packed(code: CodeType) -> str:
    """As text, which ``inside.world.unpacked`` reads."""
    return base64.b64encode(marshal.dumps(code)).decode()


def _compiled(node: ast.stmt) -> CodeType:
    return compile(ast.unparse(node), "<check>", "exec")


def _is_check(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "check"
    )

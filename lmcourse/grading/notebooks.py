"""The autograded notebook: the released cells, the student's text, and what it earned.

It is made from our own release, not from the student's file: of that come only the
texts of the known cells. What a student printed and what we say stand in the outputs;
nbgrader reads the points there, and its feedback shows them.
"""

from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from . import intake


def read(path: Path) -> NotebookNode:
    """Read a notebook of ours."""
    return nbformat.read(path, as_version=4)


def clean(release: Path, work: intake.Work | None) -> NotebookNode:
    """The released notebook with the student's text in its cells; see `filled_in`."""
    return filled_in(read(release), work)


def filled_in(node: NotebookNode, work: intake.Work | None) -> NotebookNode:
    """A notebook with the student's text in its cells, and without outputs.

    Args:
        node: the notebook; it stays as it is, and the copy shares the cells' metadata
        work: what the student wrote; None for a submission that was refused
    """
    cells = []
    for cell in node.cells:
        own = NotebookNode(cell)
        name = grade_id(cell)
        if work is not None and name in work.cells:
            own.source = work.cells[name]
        if cell.cell_type == "code":
            own.outputs, own.execution_count = [], None
        cells.append(own)
    return NotebookNode({**node, "cells": cells})


def restored(node: NotebookNode, known: dict[str, Any]) -> NotebookNode:
    """Give locked cells the source that the gradebook keeps, hidden checks included.

    This is what nbgrader's ``OverwriteCells`` does to every submission.

    Args:
        node: the released notebook, which is changed
        known: by the cell's id, nbgrader's ``SourceCell``
    """
    for cell in node.cells:
        if (source := known.get(grade_id(cell))) is not None:
            cell.metadata.nbgrader["checksum"] = source.checksum
            if source.locked:
                cell.source = source.source
    return node


def texts(node: NotebookNode) -> dict[str, str]:
    """The text of every cell that has an id."""
    return {name: cell.source for cell in node.cells if (name := grade_id(cell))}


def grade_id(cell: NotebookNode) -> str:
    """The id that nbgrader knows a cell by."""
    return cell.metadata.get("nbgrader", {}).get("grade_id", "")


def write_outputs(node: NotebookNode, result: dict[str, Any]) -> None:
    """Fill in the outputs of all code cells from a result."""
    for cell in node.cells:
        if cell.cell_type != "code":
            continue
        cell.outputs = []
        name = grade_id(cell)
        if cell.metadata.get("nbgrader", {}).get("grade"):
            cell.outputs = _test_outputs(name, cell, result)
        elif name in result["cells"]:
            facts = result["cells"][name]
            text = "\n".join(filter(None, [facts["output"], facts["message"]]))
            if text:
                cell.outputs = [_stream(text)]


def _test_outputs(
    name: str, cell: NotebookNode, result: dict[str, Any]
) -> list[NotebookNode]:
    verdict = result["tests"].get(name)
    if verdict is None:
        points = float(cell.metadata.nbgrader["points"])
        return _nothing(result["refusal"]["message"], points)
    message = result["questions"][verdict["question"]]["message"]
    listing = "\n".join(
        [describe(check) for check in verdict["checks"]]
        + [text for text in (verdict["says"], verdict["note"], message) if text]
    )
    score, points = verdict["score"], verdict["max_score"]
    if score == points:
        return [_stream(f"{listing}\n{points:g} of {points:g} points")]
    if score == 0:
        return _nothing(listing, points)
    data = {
        "text/plain": repr(score),
        "text/html": f"<b>{score:g} of {points:g} points</b>",
    }
    shown = {"execution_count": 1, "metadata": {}, "data": data}
    return [_stream(listing), NotebookNode(output_type="execute_result", **shown)]


def describe(check: dict[str, Any]) -> str:
    """One check in one line: whether it passed, and what was wrong."""
    mark = "✓" if check["passed"] else "✗"
    hidden = " (hidden)" if check["hidden"] else ""
    message = f": {check['message']}" if check["message"] else ""
    return f"{mark} {check['title']}{hidden}{message}"


def _stream(text: str) -> NotebookNode:
    text = text.rstrip("\n") + "\n"
    return NotebookNode(output_type="stream", name="stdout", text=text)


def _nothing(text: str, points: float) -> list[NotebookNode]:
    """Outputs that earn nothing: nbgrader gives no points where an error stands."""
    summary = f"0 of {points:g} points"
    return [
        _stream(text),
        NotebookNode(
            output_type="error",
            ename="No points",
            evalue=summary,
            traceback=[summary],
        ),
    ]

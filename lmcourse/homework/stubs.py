"""The steps of nbgrader from source to release, with stubs that say what is missing."""

import re
from typing import Any

from nbformat import NotebookNode
from nbgrader import utils
from nbgrader.converters import GenerateAssignment
from nbgrader.preprocessors import (
    ClearHiddenTests,
    ClearSolutions,
    NbGraderPreprocessor,
)

from .notebooks import STUBS
from .text import BEGIN_SOLUTION, END_SOLUTION


class StubSolutions(ClearSolutions):
    """Replaces every solution region by the stub that the cell's metadata holds for it.

    Cells without such metadata are treated as nbgrader does.
    """

    def preprocess_cell(
        self, cell: NotebookNode, resources: dict[str, Any], cell_index: int
    ) -> tuple[NotebookNode, dict[str, Any]]:
        """Clear one cell."""
        stubs = cell.metadata.pop(STUBS, None)
        if stubs is None:
            return super().preprocess_cell(cell, resources, cell_index)
        lines, inside = [], False
        for line in cell.source.split("\n"):
            if line.strip() == BEGIN_SOLUTION:
                indent = line[: len(line) - len(line.lstrip())]
                lines += [indent + stub for stub in stubs.pop(0).split("\n")]
                inside = True
            elif line.strip() == END_SOLUTION:
                inside = False
            elif not inside:
                lines.append(line)
        cell.source = "\n".join(lines)
        return cell, resources


class TidyChecks(NbGraderPreprocessor):
    """Removes the empty lines that filling in and clearing checks leave behind."""

    def preprocess_cell(
        self, cell: NotebookNode, resources: dict[str, Any], cell_index: int
    ) -> tuple[NotebookNode, dict[str, Any]]:
        """Tidy one cell."""
        if utils.is_grade(cell) and cell.cell_type == "code":
            cell.source = re.sub(r"\n{4,}", "\n\n\n", cell.source.rstrip())
        return cell, resources


def release_steps() -> list[type[NbGraderPreprocessor]]:
    """The steps of nbgrader, with ours in their places."""
    steps: list[type[NbGraderPreprocessor]] = []
    for step in GenerateAssignment.preprocessors.default():
        steps.append(StubSolutions if step is ClearSolutions else step)
        if step is ClearHiddenTests:
            steps.append(TidyChecks)
    return steps

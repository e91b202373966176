"""Grade real hostile submissions of the tiny unit, many in one batch.

Every batch has honest work in its midst, whose exact score shows that no attack reached
beyond itself.
"""

import contextlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lmcourse import paths
from lmcourse.grading import engine, gradebook
from lmcourse.grading.unit import Unit, load_result

GRADING = Path(__file__).parents[1] / "lmcourse" / "grading" / "conftest.py"
_spec = importlib.util.spec_from_file_location("tiny_unit", GRADING)
tiny_unit = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny_unit)

shared, project = tiny_unit.shared, tiny_unit.project
here, sandboxed = tiny_unit.here, tiny_unit.sandboxed
UNIT, RIGHT = tiny_unit.UNIT, tiny_unit.RIGHT

NOISY = (
    "import sys, warnings\n"
    "warnings.warn('a warning costs nothing')\n"
    "print('nor does this', file=sys.stderr)\n" + RIGHT["average"]
)


@dataclass(frozen=True)
class Graded:
    """What became of one submission."""

    result: dict[str, Any]

    @property
    def score(self) -> float:
        """All its points."""
        return self.result["score"]

    @property
    def output(self) -> str:
        """What the cell of ``average`` printed."""
        return self.result["cells"]["average"]["output"]

    @property
    def told(self) -> dict[str, Any]:
        """The JSON in the last line that this cell printed."""
        assert self.result["cells"]["average"]["message"] == ""
        return json.loads(self.output.splitlines()[-1])

    def checks(self, question: str = "average") -> list[bool]:
        """Which checks of a question passed."""
        checks = self.result["tests"][f"{question}_checks"]["checks"]
        return [check["passed"] for check in checks]


@dataclass
class Batch:
    """A graded batch: hostile submissions by name, and the honest ones beside them."""

    hostile: dict[str, Graded] = field(default_factory=dict)
    honest: dict[str, Graded] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Graded:
        return self.hostile[name]


@pytest.fixture(scope="session")
def written(project) -> Callable[..., bytes]:
    """Make a notebook as a student hands it in, some cells in other words."""
    released = project / "build/course/release" / UNIT / f"{UNIT}.ipynb"

    def make(**cells: str) -> bytes:
        made = json.loads(released.read_text(encoding="utf-8"))
        for cell in made["cells"]:
            name = cell["metadata"].get("nbgrader", {}).get("grade_id")
            if name in (known := RIGHT | cells):
                cell["source"] = known[name].splitlines(keepends=True)
        return json.dumps(made).encode()

    return make


@pytest.fixture(scope="session")
def grade_batch(project, sandboxed, written) -> Callable[[dict[str, Any]], Batch]:
    """Grade submissions in one batch with two workers, honest ones among them."""

    def grade(attacks: dict[str, dict[str, str]]) -> Batch:
        hostile = {name: written(**cells) for name, cells in attacks.items()}
        honest = {
            "first": written(),
            "noisy": written(average=NOISY),
            "last": written(why="Because I say so."),
        }
        first, noisy, last = honest.items()
        contents = dict([first, *hostile.items(), noisy, last])
        contents = dict(sorted(contents.items(), key=lambda item: item[0] == "last"))
        with contextlib.chdir(project):
            unit = Unit(UNIT)
            engine.grade_all(unit, contents, jobs=2, sandboxed=True)
            results = {
                name: Graded(load_result(UNIT, name)["result"]) for name in contents
            }
            shutil.rmtree(paths.course() / "results")
        return Batch(
            {name: results[name] for name in hostile},
            {name: results[name] for name in honest},
        )

    return grade


@pytest.fixture(scope="session")
def grade_handed(project, sandboxed) -> Callable[[Path], dict[str, float]]:
    """Grade a folder of submissions up to the gradebook; gives the scores there."""

    def grade(folder: Path) -> dict[str, float]:
        with contextlib.chdir(project):
            engine.grade_folder(UNIT, folder, jobs=2)
            with gradebook.open_gradebook() as book:
                return {
                    submission.student.id: submission.score
                    for submission in book.assignment_submissions(UNIT)
                    if (folder / submission.student.id).is_dir()
                }

    return grade

"""CONTRIBUTING's page "Adding a unit", followed step by step in a copy of the project.

The files of a throw-away unit lie in ``unit/``. They are put where the page says, the
page's commands run, and what it says follows from these files must be there.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup

PROJECT = Path(__file__).parents[2]
FILES = Path(__file__).parent / "unit"
UNIT, MODULE = "90_voting", "voting"
NOT_COPIED = (".*", "__pycache__", "build", "node_modules", "*.egg-info")
KEPT = ("assets", "_build/.jupyter_cache")  # what npm fetched, and chapters that ran

WRITTEN = {  # the page's numbered list, and what this test puts there
    "lmcore/<module>.py": "voting.py",
    "tests/lmcore/test_<module>.py": "tests.py",
    "book/NN_name.md": "chapter.md",
    "solutions/NN_name.md": "solutions.md",
    "tests/mistakes/NN_name.py": "mistakes.py",
    "course.yml": None,
}

pytestmark = pytest.mark.slow


def the_page() -> str:
    text = (PROJECT / "CONTRIBUTING.md").read_text("utf8")
    return text.split("## Adding a unit")[1].split("\n## ")[0]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project in which the page was followed."""
    copy = tmp_path_factory.mktemp("copy") / "project"
    shutil.copytree(PROJECT, copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
    for name in KEPT:
        if (PROJECT / "build" / name).is_dir():
            shutil.copytree(PROJECT / "build" / name, copy / "build" / name)
    assert re.findall(r"^\d\. `([^`]+)`", the_page(), re.M) == list(WRITTEN)
    for place, name in WRITTEN.items():
        if name is not None:
            path = place.replace("<module>", MODULE).replace("NN_name", UNIT)
            shutil.copy(FILES / name, copy / path)
    put_before(
        copy / "book/_toc.yml",
        "  - caption: Look up",
        "  - caption: Part VI · Thrown away\n    chapters:\n"
        f"      - file: {UNIT}\n        sections:\n"
        f"          - file: homework/{UNIT}\n",
    )
    dates = copy / "course.yml"
    dates.write_text(
        f"{dates.read_text('utf8').rstrip()}\n  {UNIT}: {{due: 2030-01-31}}\n"
    )
    commands = re.search(r"```sh\n(.*?)```", the_page(), re.S)[1].splitlines()
    for line in commands:
        follow(line.partition("#")[0].replace("NN_name", UNIT).split(), copy)
    return copy


def put_before(path: Path, line: str, more: str) -> None:
    text = path.read_text("utf8")
    assert text.count(line) == 1
    path.write_text(text.replace(line, more + line), "utf8")


def follow(command: list[str], project: Path) -> str:
    """Run one of the page's commands; of ``make test``, the tests of this unit."""
    if command == ["make", "test"]:
        own = [f"tests/lmcore/test_{MODULE}.py", "tests/lmcourse/test_units.py"]
        pick = ["-k", MODULE, "-p", "no:cacheprovider", "-m", "slow or not slow"]
        command = [sys.executable, "-m", "pytest", "-q", *own, *pick]
    else:
        command = [str(Path(sys.executable).parent / command[0]), *command[1:]]
    known = os.environ | {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    for name in list(known):
        if name.startswith("PYTEST_"):
            del known[name]
    done = subprocess.run(
        command, cwd=project, env=known, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (
        f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    )
    return done.stdout


def test_the_released_notebook_has_a_stub_and_no_solution(project):
    path = project / "exercises" / UNIT / f"{UNIT}.ipynb"
    text = "\n".join(cell.source for cell in nbformat.read(path, 4).cells)
    assert "most_common is yours to write" in text
    assert "words.count" not in text
    assert "a late winner" not in text  # hidden


def test_the_notebook_knows_the_mistakes(project):
    facts = (project / "exercises" / UNIT / "checks.json").read_text("utf8")
    assert "You gave the rarest word" in facts
    assert json.loads(facts)["questions"]["most_common"]["hidden"] == 2


def test_the_book_has_chapter_and_answer_ladder(project):
    site = project / "build/_build/html"
    chapter = BeautifulSoup((site / f"{UNIT}.html").read_text("utf8"), "html.parser")
    assert "min to read" in chapter.select_one(".lm-labels").get_text(" ")
    assert "'to'" in chapter.select_one(".cell_output").get_text()
    assert len(chapter.select(".lm-quiz input[type=radio]")) == 2
    page = (site / f"homework/{UNIT}.html").read_text("utf8")
    folds = BeautifulSoup(page, "html.parser").select(".lm-ladder > details > summary")
    assert [fold.get_text() for fold in folds] == ["Hint 1", "Hint 2", "Sketch"]
    assert (site / "downloads" / UNIT / f"{UNIT}.ipynb").is_file()
    kits = [*(site / "downloads").glob("*.zip")]
    assert len(kits) == 1


def test_a_sample_class_is_written_graded_and_reported(project):
    follow(["lmcourse", "sample-class", UNIT], project)
    follow(["lmcourse", "grade", UNIT], project)
    follow(["lmcourse", "report", UNIT], project)
    folder = project / "build/course/report" / UNIT
    report = (folder / "index.html").read_text("utf8")
    assert "takes the rarest" in report
    assert "all-right" in report
    results = project / "build/course/results" / UNIT
    right, different = (
        json.loads((results / f"{name}.json").read_text("utf8"))["result"]["score"]
        for name in ("all-right", "written-differently")
    )
    assert different == right > 0

"""From the solved notebook to the released one: nbgrader's own generate_assignment."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from .. import CourseError, paths
from . import reference
from .source import Source

_NUMBER = re.compile(r"-?\d+\.\d+(?:e[-+]?\d+)?")
_BAND = re.compile(r"(?:under|over) \d+ (?:s|GB)")


def configure(config: Any) -> None:
    """Fill in nbgrader's configuration as far as it is about homework.

    Used here and by ``nbgrader_config.py``, so that nbgrader's own command line and
    formgrader make the same release.
    """
    from .stubs import release_steps

    config.CourseDirectory.root = str(paths.course())
    config.CourseDirectory.course_id = "language-models-by-hand"
    config.InstantiateTests.autotest_filename = str(paths.root() / "autotests.yml")
    config.GenerateAssignment.preprocessors = release_steps()


def write_source(folder: Path, node: NotebookNode, facts: dict[str, Any]) -> None:
    """Write the solved notebook, and what its checks know, for nbgrader."""
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(node, folder / f"{folder.name}.ipynb")
    write_json(folder / "checks.json", facts, depth=8)


def write_json(path: Path, data: Any, depth: int = 3) -> None:
    """Write JSON, the same bytes for the same data; one line each below some depth."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_json(data, depth, "") + "\n", encoding="utf-8")


def _json(data: Any, depth: int, indent: str) -> str:
    if depth == 0 or not data or not isinstance(data, dict | list):
        return json.dumps(data, ensure_ascii=False)
    inner = indent + " "
    if isinstance(data, dict):
        items = [
            f"{json.dumps(key, ensure_ascii=False)}: {_json(x, depth - 1, inner)}"
            for key, x in data.items()
        ]
    else:
        items = [_json(x, depth - 1, inner) for x in data]
    start, end = "{}" if isinstance(data, dict) else "[]"
    return start + ",".join(f"\n{inner}{item}" for item in items) + f"\n{indent}{end}"


def facts_for_notebook(
    source: Source, measured: dict[str, Any], results: dict[str, Any], book_url: str
) -> dict[str, Any]:
    """What lies beside the notebook as ``checks.json``: no code, no solution."""
    questions = {}
    for exercise in source.exercises.values():
        if exercise.written:
            continue
        parts = [
            [
                {"title": title, "mistakes": mistakes}
                for title, mistakes in zip(
                    test["titles"], test["mistakes"], strict=True
                )
            ]
            for test in (
                results[cell.id]
                for cell in source.cells
                if cell.kind == "test" and cell.question == exercise.id
            )
        ]
        questions[exercise.id] = {
            "title": exercise.title,
            "section": exercise.section,
            "hints": exercise.hints,
            "implements": exercise.implements,
            "forbidden": exercise.forbidden,
            "visible": sum(measured[exercise.id]["visible"]),
            "hidden": sum(measured[exercise.id]["hidden"]),
            "parts": parts,
        }
    about = {"unit": source.unit, "questions": questions}
    return about | ({"book_url": book_url} if book_url else {})


def generate(unit: str, course: Path, database: str = "") -> Path:
    """Have nbgrader make the release of a unit in a course folder.

    It runs as a process of its own: it starts a kernel, and leaves it to the end of the
    process to close what it opened.

    Args:
        unit: the unit
        course: nbgrader's course folder
        database: the address of the gradebook; the folder's own if not given

    Raises:
        CourseError: if nbgrader cannot.
    """
    done = subprocess.run(
        [sys.executable, "-m", __name__, unit, str(course), database],
        cwd=paths.root(),
        env=reference.environment() | _quiet_kernel(course),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        problem = done.stderr.strip()
        raise CourseError(f"nbgrader could not release {unit}:\n{problem}")
    return course / "release" / unit


def _quiet_kernel(course: Path) -> dict[str, str]:
    """Let the kernel start as on any machine: no one's profile, no warnings."""
    profile = course / ".ipython" / "profile_default"
    profile.mkdir(parents=True, exist_ok=True)
    settings = "c = get_config()\nc.IPKernelApp.log_level = 'ERROR'\n"
    (profile / "ipython_kernel_config.py").write_text(settings, encoding="utf-8")
    return {"IPYTHONDIR": str(profile.parent)}


def _main(unit: str, course: str, database: str) -> None:
    from nbgrader.apps import NbGraderAPI
    from traitlets.config import Config

    config = Config()
    configure(config)
    config.CourseDirectory.root = course
    if database:
        config.CourseDirectory.db_url = database
    result = NbGraderAPI(config=config).generate_assignment(unit)
    if not result["success"]:
        sys.exit("\n".join([result.get("log") or "", result.get("error") or ""]))


def copy_release(released: Path, exercises: Path) -> bool:
    """Put a release where students get it; returns whether anything changed.

    Files that differ only in the last digits of numbers, as they do between
    processors, stay as they are.
    """
    if not differences(released, exercises):
        return False
    shutil.rmtree(exercises, ignore_errors=True)
    exercises.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(released, exercises)
    return True


def differences(released: Path, exercises: Path) -> list[str]:
    """Say which files of two folders differ, except in the last digits of numbers."""
    ours, theirs = (
        {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.*")}
        for folder in (released, exercises)
    )
    found = [f"{name} is missing" for name in sorted(set(ours) - set(theirs))]
    found += [
        f"{name} is not made any more" for name in sorted(set(theirs) - set(ours))
    ]
    for name in sorted(set(ours) & set(theirs)):
        texts = [
            path.read_text(encoding="utf-8") for path in (ours[name], theirs[name])
        ]
        if not same_up_to_rounding(*texts):
            found.append(f"{name} differs")
    return found


def same_up_to_rounding(a: str, b: str) -> bool:
    """Whether two texts are equal but for rounding in numbers and measured bands.

    Checksums of cells follow from the text of the cells, so they are not compared.

    >>> same_up_to_rounding("x = 0.3333333", "x = 0.33333334")
    True
    >>> same_up_to_rounding("x = 0.3333333", "x = 0.3334")
    False
    """
    if a == b:
        return True
    a, b = (_BAND.sub("band", re.sub(r'"checksum": "\w+"', "", x)) for x in (a, b))
    if _NUMBER.sub("0", a) != _NUMBER.sub("0", b):
        return False
    pairs = zip(_NUMBER.findall(a), _NUMBER.findall(b), strict=True)
    return all(
        abs(float(x) - float(y)) <= 1e-6 + 1e-5 * abs(float(y)) for x, y in pairs
    )


if __name__ == "__main__":
    _main(*sys.argv[1:])

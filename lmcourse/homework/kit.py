"""What students start from: a zip with the notebooks and a blank lmcore as a wheel."""

import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path

from .. import CourseError, course, paths
from . import bodies, builder, manifest, notebooks, source
from .release import write_json

NAME = "language-models-by-hand-homework"
EPOCH = (2020, 1, 1, 0, 0, 0)  # of every file in the zip, so that it is reproducible

_README = """\
# Language Models by Hand: the homework

You need Python {python} or newer. In this folder, run

    python3 -m venv .venv
    .venv/bin/pip install "./{wheel}[notebook]"
    .venv/bin/jupyter lab

On Windows, write `py -m venv .venv` and `.venv\\Scripts\\` for `.venv/bin/`.

JupyterLab opens in your browser. Open the folder of a unit, then its notebook:

{units}

Write your code where it says `YOUR CODE HERE`, and run the checks below it. The button
*Validate* above the notebook runs everything once more, from top to bottom. Hand in the
notebook, under its own name.

`lmcore`, the library of the course, comes with this folder. What you are asked to
write is left out of it{left_in}. Keep the folders beside each other: each notebook
finds what you wrote in the earlier ones.

`.venv/bin/lmcore doctor` says whether this machine is ready and how long the checks of
every unit run on it.
"""

_PROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "lmcore"
version = {version}
description = "The library of Language Models by Hand, for its homework."
requires-python = {python}
dependencies = {dependencies}

[project.optional-dependencies]
notebook = {notebook}

[project.scripts]
lmcore = "lmcore.__main__:app"

[tool.setuptools]
packages = {packages}
include-package-data = false

[tool.setuptools.package-data]
"*" = ["*.json", "*.js", "*.css", "*.mplstyle", "*.txt"]
"""


def blank_lmcore(
    target_dir: Path | str, units: Iterable[str], *, leave_in: Iterable[str] = ()
) -> Path:
    """Write an lmcore package in which the graded bodies of some units are blank.

    Args:
        target_dir: the folder that will hold ``lmcore/``
        units: the units whose graded functions are blanked
        leave_in: units among them whose functions stay, since their date has passed

    Returns:
        The package's folder.
    """
    package = Path(target_dir) / "lmcore"
    shutil.rmtree(package, ignore_errors=True)
    folder, kept = bodies.lmcore_folder(), set(leave_in)
    for path in builder.library_files():
        copy = package / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    graded = [
        graded
        for unit in units
        if unit not in kept
        for graded in notebooks.all_graded(source.read(unit))
    ]
    for module in sorted({one.module for one in graded}):
        own = [one for one in graded if one.module == module]
        text = bodies.blank(bodies.read_module(module), own)
        path = package / f"{module.replace('.', '/')}.py"
        path.write_text(text, encoding="utf-8")
    names = sorted(one.target for one in graded)
    write_json(package / "blank.json", names)
    return package


def build_kit(today: datetime.date | None = None) -> Path:
    """Make the students' zip: every released unit, and lmcore without the solutions.

    Functions of units that are over stay in lmcore if ``course.yml`` says that their
    solutions may be seen.

    Raises:
        CourseError: if a unit is not released yet, or the wheel cannot be built.
    """
    units, plan = builder.units(), course.load()
    open_units = [unit for unit in units if plan.shows_solutions(unit, today)]
    known = {unit: manifest.load(unit) for unit in units}
    zip_path = paths.kit()
    files = [path for unit in units for path in _files(paths.exercises(unit))]
    pyproject = paths.root() / "pyproject.toml"
    inputs = [*builder.library_files(), *files, pyproject, Path(__file__)]
    digest = builder.digest_files(inputs, [NAME, *open_units])
    stamp = zip_path.with_suffix(".digest")
    if zip_path.exists() and stamp.exists() and stamp.read_text() == digest:
        return zip_path
    zip_path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(Path(folder), units, leave_in=open_units)
        entries = {wheel.name: wheel.read_bytes()}
        entries["README.md"] = _readme(wheel.name, units, open_units).encode()
    for unit in units:
        for path in _files(paths.exercises(unit)):
            name = path.relative_to(paths.exercises(unit)).as_posix()
            entries[f"{unit}/{name}"] = path.read_bytes()
        work = json.dumps({unit: known[unit].measured})
        entries[f"{unit}/work.json"] = work.encode()
    with zipfile.ZipFile(zip_path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(entries.items()):
            archive.writestr(zipfile.ZipInfo(f"{NAME}/{name}", EPOCH), content)
    stamp.write_text(digest)
    return zip_path


def build_wheel(
    folder: Path, units: Iterable[str], *, leave_in: Iterable[str] = ()
) -> Path:
    """Build the wheel of a blank lmcore, without any network."""
    project = folder / "project"
    package = blank_lmcore(project, units, leave_in=leave_in)
    (project / "pyproject.toml").write_text(_project(package), encoding="utf-8")
    # Not `pip wheel`, which would ask the network for setuptools.
    code = "from setuptools.build_meta import build_wheel; build_wheel('..')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project,
        env=os.environ | {"SOURCE_DATE_EPOCH": "1577836800"},
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise CourseError(f"the wheel of lmcore could not be built:\n{done.stderr}")
    return wheels[0]


def _project(package: Path) -> str:
    facts = tomllib.loads((paths.root() / "pyproject.toml").read_text(encoding="utf-8"))
    known = facts["project"]
    extras = known.get("optional-dependencies", {})
    wanted = ("jupyterlab", "nbgrader", "matplotlib")
    notebook = [
        requirement
        for extra in ("grading", "book")
        for requirement in extras.get(extra, [])
        if requirement.startswith(wanted)
    ]
    packages = sorted(
        path.parent.relative_to(package.parent).as_posix().replace("/", ".")
        for path in package.rglob("__init__.py")
    )
    return _PROJECT.format(
        version=json.dumps(known["version"]),
        python=json.dumps(known["requires-python"]),
        dependencies=json.dumps(known["dependencies"]),
        notebook=json.dumps(notebook),
        packages=json.dumps(packages),
    )


def _readme(wheel: str, units: list[str], open_units: list[str]) -> str:
    left_in = f",\nexcept for {', '.join(open_units)}" if open_units else ""
    lines = [f"- `{unit}/{unit}.ipynb`" for unit in units]
    return _README.format(
        wheel=wheel, units="\n".join(lines), left_in=left_in, python="3.11"
    )


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())

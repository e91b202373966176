"""Build a unit's homework: source notebook, release, manifest, exercises."""

import hashlib
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

from .. import course, paths
from . import bodies, manifest, notebooks, reference, release, source
from .manifest import Manifest
from .source import Source


@dataclass(frozen=True)
class Built:
    """What a build made of a unit."""

    unit: str
    exercises: Path
    n_exercises: int
    points: float
    changed: bool

    def __str__(self) -> str:
        where = self.exercises.relative_to(paths.root())
        state = "made anew" if self.changed else "unchanged"
        return (
            f"{self.unit}: {self.n_exercises} exercises, {self.points:g} points, "
            f"in {where} ({state})"
        )


def units() -> list[str]:
    """All units that have homework, in the course's order."""
    folder = paths.root() / "solutions"
    found = [path.stem for path in folder.glob("*.md")]
    return sorted(unit for unit in found if source.UNIT.fullmatch(unit))


def build(unit: str) -> Built:
    """Make the release of a unit; nothing to do if its sources are unchanged.

    Raises:
        SourceError: if something in the sources is wrong.
        CourseError: if nbgrader cannot make the release.
    """
    paths.build().mkdir(exist_ok=True)
    with FileLock(paths.build() / "homework.lock"):
        return _build(unit)


def _build(unit: str) -> Built:
    plan = source.read(unit)
    digest = digest_of(unit)
    exercises = paths.exercises(unit)
    fresh = paths.release(unit) / f"{unit}.ipynb"
    if fresh.exists() and paths.manifest(unit).exists():
        known = manifest.load(unit)
        if known.digest == digest:
            changed = release.copy_release(paths.release(unit), exercises)
            return _built(known, exercises, changed)
    made = _make(plan, paths.course(), digest)
    changed = release.copy_release(paths.release(unit), exercises)
    manifest.save(made)
    return _built(made, exercises, changed)


def check_released(unit: str) -> list[str]:
    """Make a unit's release in a temporary place and compare it with ``exercises/``.

    Returns:
        What differs, each with the command that mends it; empty if nothing does.
    """
    with tempfile.TemporaryDirectory() as folder:
        _make(source.read(unit), Path(folder), "")
        found = release.differences(
            Path(folder) / "release" / unit, paths.exercises(unit)
        )
    command = f"run: lmcourse release {unit}"
    return [f"exercises/{unit}/{difference}; {command}" for difference in found]


def _make(plan: Source, course_folder: Path, digest: str) -> Manifest:
    cells = notebooks.completed(plan)
    results = reference.run(plan, cells)
    measured = _by_question(plan, results["tests"])
    book_url = course.load().book_url
    node = notebooks.notebook(plan, cells, measured)
    facts = release.facts_for_notebook(plan, measured, results["tests"], book_url)
    release.write_source(course_folder / "source" / plan.unit, node, facts)
    released = release.generate(plan.unit, course_folder)
    return manifest.make(
        plan,
        cells,
        released,
        measured,
        gflops=results["gflops"],
        digest=digest,
        book_url=book_url,
    )


def _by_question(plan: Source, tests: dict[str, Any]) -> dict[str, Any]:
    """Add up what the test cells of each question cost."""
    measured: dict[str, Any] = {}
    for cell in plan.cells:
        if cell.kind != "test":
            continue
        one = tests[cell.id]
        own = measured.setdefault(
            cell.question, {"visible": [], "hidden": [], "seconds": 0, "memory_mb": 0}
        )
        own["visible"].append(one["visible"])
        own["hidden"].append(one["hidden"])
        own["seconds"] += one["seconds"]
        own["memory_mb"] = max(own["memory_mb"], one["memory_mb"])
    return measured


def digest_of(unit: str) -> str:
    """A digest of everything that a unit's release depends on."""
    root, here = paths.root(), Path(__file__).parent
    files: list[Path] = [
        paths.solutions(unit),
        root / "tests" / "mistakes" / f"{unit}.py",
        root / "autotests.yml",
        root / course.FILE,
        here.parent / "mistakes.py",
        *sorted(here.glob("*.py")),
        *library_files(),
    ]
    versions = [f"{name} {metadata.version(name)}" for name in ("nbgrader", "torch")]
    return digest_files(files, versions)


def library_files() -> list[Path]:
    """The files of lmcore, without what Python or the system leave there."""
    folder = bodies.lmcore_folder()
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and not path.name.startswith(".")
    )


def digest_files(files: Iterable[Path], more: Iterable[str] = ()) -> str:
    """A digest of the names and contents of files, those that exist."""
    digest = hashlib.sha256("\n".join(more).encode())
    for path in files:
        if path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"\n{path.name} {content}".encode())
    return digest.hexdigest()


def _built(made: Manifest, exercises: Path, changed: bool) -> Built:
    points = sum(question["points"] for question in made.questions.values())
    return Built(made.unit, exercises, len(made.questions), points, changed)

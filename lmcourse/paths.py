"""Where things are: the project's folder, and what is built under it.

The project is the one the current folder belongs to: the nearest folder upwards with a
``_config.yml``. ``paths.ROOT``, ``paths.BUILD`` and ``paths.COURSE`` are looked up when
they are used, so that one process can work on several projects, one after the other.
"""

from pathlib import Path

from . import CourseError

MARKER = "_config.yml"


class NoProject(CourseError):  # noqa: N818
    """The current folder does not belong to a project."""


def root(start: Path | None = None) -> Path:
    """Find the project's folder.

    Raises:
        NoProject: if neither the folder nor one above it holds a ``_config.yml``.
    """
    start = Path.cwd() if start is None else start.resolve()
    for folder in (start, *start.parents):
        if (folder / MARKER).is_file():
            return folder
    raise NoProject(f"no {MARKER} in {start} or above: run this inside the project")


def build() -> Path:
    """Everything that is built."""
    return root() / "build"


def course() -> Path:
    """The course folder of nbgrader, with its gradebook.db."""
    return build() / "course"


def solutions(unit: str) -> Path:
    """The homework's source, with solutions."""
    return root() / "solutions" / f"{unit}.md"


def exercises(unit: str) -> Path:
    """The homework as students get it."""
    return root() / "exercises" / unit


def source(unit: str) -> Path:
    """The notebook with solutions, as nbgrader takes it."""
    return course() / "source" / unit


def release(unit: str) -> Path:
    """The notebook as nbgrader released it."""
    return course() / "release" / unit


def manifest(unit: str) -> Path:
    """What the grader needs to know about a unit."""
    return build() / "homework" / unit / "manifest.json"


def submitted(unit: str, student: str) -> Path:
    """The notebook that a student handed in."""
    return course() / "submitted" / student / unit / f"{unit}.ipynb"


def result(unit: str, student: str) -> Path:
    """What the grader found out about a submission."""
    return course() / "results" / unit / f"{student}.json"


def handed_back(unit: str, student: str) -> Path:
    """The note of which result the student's rows and page were made from."""
    return result(unit, student).with_suffix(".written")


def autograded(unit: str, student: str) -> Path:
    """The graded notebook, where nbgrader expects it."""
    return course() / "autograded" / student / unit / f"{unit}.ipynb"


def feedback(unit: str, student: str) -> Path:
    """The page that a student gets back."""
    return course() / "feedback" / student / unit / f"{unit}.html"


def kit() -> Path:
    """The zip that students start from."""
    return build() / "kit" / "language-models-by-hand-homework.zip"


def __getattr__(name: str) -> Path:
    places = {"ROOT": root, "BUILD": build, "COURSE": course}
    if name not in places:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return places[name]()

"""What a teacher hands over: a zip or a folder, read without unpacking anything.

Known are the zips that Canvas and Moodle make of a class (unpacked ones too), a flat
folder with one notebook per student, and nbgrader's own layout:

- nbgrader: ``<student>/<unit>/<unit>.ipynb``, and beside it ``timestamp.txt``
- Canvas: ``lastfirst_12345_67890_08_attention.ipynb``; ``lastfirst_LATE_12345_…`` where
  it came late; ``…-1.ipynb`` where it was handed in again
- Moodle: ``First Last_12345_assignsubmission_file_/08_attention.ipynb``
- flat: ``<student>.ipynb`` or ``<student>_<unit>.ipynb``

No path of a zip is ever written to: of each student one notebook is read, as bytes, and
kept under a name of ours. Links and entries that lead elsewhere are left out.
"""

import contextlib
import functools
import json
import re
import shutil
import stat
import unicodedata
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from lmcourse import CourseError, paths

from . import intake
from .intake import Content
from .unit import Submissions

STUDENT = re.compile(r"[^\W_][\w.@ +-]{0,99}")
CANVAS = re.compile(
    r"(?P<name>[^_]+)_(?P<late>LATE_)?(?P<user>\d+)_(?P<file>\d+)_(?P<title>.+?)"
    r"(?:-(?P<again>\d+))?\.ipynb"
)
MOODLE = re.compile(
    r"(?P<name>[^_/]+)_(?P<user>\d+)_assignsubmission_(?:file|onlinetext)_?"
)
MAX_ENTRIES = 200_000  # files in one zip
MAX_DEPTH = 3  # folders above a notebook
MAX_NOTES = 20


@dataclass(frozen=True)
class Person:
    """Who handed in, as far as the campus system says."""

    system: str  # canvas, moodle, or empty
    user: str = ""  # the number in the campus system
    name: str = ""
    late: bool = False


@dataclass
class HandedIn:
    """What was found: notebooks by student, and who they are."""

    contents: Mapping[str, Content] = field(default_factory=dict)
    timestamps: Mapping[str, Content] = field(default_factory=dict)
    people: dict[str, Person] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Found:
    """One notebook: whose, and which one if there are several."""

    student: str
    person: Person
    order: tuple[int, str]


def is_nbgrader_s(unit: str, place: Path) -> bool:
    """Whether this is a folder like nbgrader's ``submitted``."""
    return place.is_dir() and any(path.is_dir() for path in place.glob(f"*/{unit}"))


@contextlib.contextmanager
def read(unit: str, place: Path) -> Iterator[HandedIn]:
    """Find what was handed in of a unit, to be read within a ``with`` statement.

    Args:
        unit: the unit's name
        place: a folder, or a zip

    Raises:
        CourseError: if there is nothing, or the zip cannot be read.
    """
    if not place.exists():
        raise CourseError(f"there is no {place}")
    found = HandedIn()
    with contextlib.ExitStack() as until_read:
        if place.is_dir():
            files = _files_of_folder(place, found)
        else:
            files = _files_of_zip(until_read.enter_context(_open_zip(place)), found)
        _choose(unit, files, found)
        if not found.contents:
            raise CourseError(
                f"there are no submissions of {unit} in {place}; expected "
                f"<student>/{unit}/{unit}.ipynb, a zip of Canvas or Moodle, or one "
                f"notebook per student"
            )
        yield found


def _open_zip(place: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(place)
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise CourseError(f"{place} is no zip that can be read: {error}") from error


def take_in(unit: str, place: Path, submitted: Path, notes: list[str]) -> Submissions:
    """Read what was handed in, and keep it in nbgrader's layout; see `read`.

    Args:
        unit: the unit's name
        place: a folder, or a zip
        submitted: the course's own ``submitted``
        notes: what was left out is told here
    """
    kept = {}
    with read(unit, place) as found:
        for student, content in found.contents.items():
            folder = submitted / student / unit
            shutil.rmtree(folder, ignore_errors=True)
            kept[student] = keep(content, folder / f"{unit}.ipynb")
            if student in found.timestamps:
                keep(found.timestamps[student], folder / "timestamp.txt")
    save_people(people_path(), found.people)
    notes += found.notes[:MAX_NOTES]
    if len(found.notes) > MAX_NOTES:
        notes.append(f"and {len(found.notes) - MAX_NOTES} more left out")
    return Submissions(kept)


def keep(content: Content, path: Path) -> Callable[[], Content]:
    """Write what was handed in as a plain file of ours; returns what reads it again.

    A refusal is remembered; no file stands for it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, bytes):
        return lambda: content
    path.write_bytes(content)
    return functools.partial(intake.read_file, path)


class _File:
    """A file of a folder or of a zip: its path inside, and a way to read it."""

    def __init__(self, path: PurePosixPath, read: Callable[[], Content]) -> None:
        self.path, self.read = path, read


def _files_of_folder(folder: Path, found: HandedIn) -> Iterator[_File]:
    """Plain files not too deep; neither a linked folder nor a hidden one is entered."""
    waiting = [(folder, PurePosixPath())]
    while waiting:
        here, inner = waiting.pop(0)
        for path in sorted(here.iterdir()):
            own = inner / path.name
            if path.name.startswith("."):
                _leave_out(found, own, "hidden")
            elif path.is_symlink() and path.suffix != ".ipynb":
                _leave_out(found, own, "a link")
            elif path.is_dir():
                if len(own.parts) <= MAX_DEPTH:
                    waiting.append((path, own))
            else:
                yield _File(own, lambda path=path: intake.read_file(path))


def _files_of_zip(archive: zipfile.ZipFile, found: HandedIn) -> Iterator[_File]:
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise CourseError(
            f"the zip has {len(entries):,} entries; at most {MAX_ENTRIES:,}"
        )
    for entry in entries:
        path = PurePosixPath(entry.filename.replace("\\", "/"))
        if entry.is_dir() or path.parts[:1] == ("__MACOSX",):
            continue
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
            _leave_out(found, path, "it leads elsewhere")
        elif kind not in (0, stat.S_IFREG):
            _leave_out(found, path, "no plain file")
        elif len(path.parts) <= MAX_DEPTH + 1:
            yield _File(path, lambda entry=entry: _unpack(archive, entry))


def _unpack(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Content:
    """Read one entry, and no more than a notebook may have.

    What the zip says about the size may be a lie, so it is not asked.
    """
    if entry.flag_bits & 0x1:
        return intake.Refusal("no file", f"{entry.filename} is encrypted.")
    try:
        with archive.open(entry) as file:
            content = file.read(intake.MAX_BYTES + 1)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, ValueError):
        return intake.Refusal("no file", f"{entry.filename} is damaged in the zip.")
    if len(content) > intake.MAX_BYTES:
        message = f"{entry.filename} has more than {intake.MAX_BYTES:,} bytes."
        return intake.Refusal("too large", message)
    return content


def _leave_out(found: HandedIn, path: PurePosixPath, why: str) -> None:
    found.notes.append(f"left out, {why}: {str(path)!r}")


def _choose(unit: str, files: Iterator[_File], found: HandedIn) -> None:
    """Choose the notebook that counts of each student: the one handed in last."""
    best: dict[str, tuple[tuple[int, str], _File]] = {}
    dates: dict[str, _File] = {}
    for file in files:
        if file.path.name == "timestamp.txt" and len(file.path.parts) > 1:
            dates[file.path.parts[max(0, len(file.path.parts) - 3)]] = file
        if file.path.suffix != ".ipynb":
            continue
        one = _whose(unit, file.path)
        if file.path.stem != unit and file.path.parent.name == file.path.stem:
            continue  # another unit's, in nbgrader's layout
        if one is None or not STUDENT.fullmatch(one.student):
            _leave_out(found, file.path, f"not known as a notebook of {unit}")
            continue
        if one.student in best and best[one.student][0] >= one.order:
            continue
        best[one.student] = one.order, file
        found.people[one.student] = one.person
    found.contents = Submissions({s: best[s][1].read for s in sorted(best)})
    found.timestamps = Submissions({s: dates[s].read for s in best if s in dates})


def _whose(unit: str, path: PurePosixPath) -> _Found | None:
    """Say by its path whose notebook this is; None if it is none of this unit."""
    name = unicodedata.normalize("NFC", path.name)
    folders = [unicodedata.normalize("NFC", part) for part in path.parts[:-1]]
    if len(folders) >= 2 and folders[-1] == unit:
        own = name == f"{unit}.ipynb"
        return _Found(folders[-2], Person(""), (0, "")) if own else None
    for folder in reversed(folders):
        if match := MOODLE.fullmatch(folder):
            person = Person("moodle", match["user"], match["name"])
            rank = int(name == f"{unit}.ipynb")
            return _Found(_id(match), person, (rank, name))
    if match := CANVAS.fullmatch(name):
        if not _same_title(match["title"], unit):
            return None
        late = match["late"] is not None
        person = Person("canvas", match["user"], match["name"], late)
        order = (int(match["again"] or 0), match["file"].zfill(12))
        return _Found(_id(match), person, order)
    if len(folders) > 1:
        return None
    stem = name.removesuffix(".ipynb").removesuffix(f"_{unit}")
    if stem == unit:
        return _Found(folders[0], Person(""), (0, "")) if folders else None
    return _Found(stem, Person(""), (0, "")) if not folders else None


def _id(match: re.Match[str]) -> str:
    """An id for nbgrader: the name, as far as a path may hold it, and the number."""
    name = re.sub(r"[^\w.@]+|_", "-", match["name"]).strip("-.")[:60]
    return f"{name}-{match['user']}" if name else match["user"]


def _same_title(title: str, unit: str) -> bool:
    """Whether a file name is the unit's, also after a browser's `` (1)``."""
    return re.sub(r"\s*\(\d+\)$", "", title).replace(" ", "_") == unit


def people_path() -> Path:
    """Where it is kept who is who in the campus system."""
    return paths.course() / "people.json"


def save_people(path: Path, people: dict[str, Person]) -> None:
    """Remember who is who, for the campus system's gradebook."""
    known = load_people(path)
    known.update({s: person for s, person in people.items() if person.system})
    if not known:
        return
    rows = {student: vars(person) for student, person in sorted(known.items())}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", "utf-8")


def load_people(path: Path) -> dict[str, Person]:
    """Who is who, as far as campus systems have said."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return {student: Person(**row) for student, row in rows.items()}

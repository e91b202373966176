"""One unit as the grader sees it, and the results it keeps.

A result depends on the submission's bytes, the manifest, the course's secret, the
device and the grader's own code, and is kept under a key of these. So a second run
grades only what is new.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lmcourse import CourseError, homework, paths
from lmcourse.homework import builder

from . import cells, intake, seeds
from .intake import Content
from .worker import Worker


class Submissions(Mapping[str, Content]):
    """What students handed in, each file read anew whenever it is asked for.

    A class may be larger than the memory. So a file may also be another one the next
    time: whoever needs the same bytes twice keeps them.

    Args:
        readers: by student, what gives the content
    """

    def __init__(self, readers: dict[str, Callable[[], Content]]) -> None:
        self._readers = readers

    def __getitem__(self, student: str) -> Content:
        return self._readers[student]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def of(self, students: list[str]) -> "Submissions":
        """Those of some students only."""
        return Submissions({student: self._readers[student] for student in students})


class Unit:
    """What is needed to grade a unit: manifest, secret, blank lmcore, known results.

    Args:
        name: the unit
        device: what tensors are made on when its checks run

    Raises:
        CourseError: if there is no such unit, its release is older than its sources, or
            an exercise needs another device.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        if name not in homework.units():
            known = ", ".join(homework.units()) or "none"
            raise CourseError(
                f"there is no unit {name!r}; units with homework: {known}"
            )
        self.name = name
        made = homework.load_manifest(name)
        if made.digest != builder.digest_of(name):
            raise CourseError(
                f"the release of {name} is older than its sources; "
                f"run: lmcourse release {name}"
            )
        if on_gpu := [
            question
            for question, facts in made.questions.items()
            if device == "cpu" and facts["limits"]["device"] != "cpu"
        ]:
            raise CourseError(
                f"{', '.join(on_gpu)} of {name} asks for a GPU (device: cuda): run "
                f"lmcourse grade {name} --device cuda on a machine that has one"
            )
        self.device = device
        self.manifest: dict[str, Any] = asdict(made)
        self.tests = cells.bare_tests(self.manifest)
        self.secret = seeds.load_secret(paths.course() / "secret")
        self.tree = paths.course() / "jail" / name
        self.manifest_path = paths.manifest(name)
        self.mistakes_path = paths.root() / "tests" / "mistakes" / f"{name}.py"
        self._code = _digest_of_code()

    def key(self, content: Content) -> str:
        """What a result depends on, in a few letters."""
        own = content if isinstance(content, bytes) else content.message.encode()
        parts = [self.manifest["digest"], self._code, self.secret.hex(), self.device]
        text = hashlib.sha256(own).hexdigest() + "".join(parts)
        return hashlib.sha256(text.encode()).hexdigest()

    def read(self, content: Content) -> intake.Work | None:
        """What the student wrote; None if that cannot be read."""
        if isinstance(content, bytes):
            content = intake.read(content, self.manifest)
        return content if isinstance(content, intake.Work) else None

    def known(self, student: str, content: Content) -> dict[str, Any] | None:
        """The result that a submission already has, if it has one."""
        data = load_result(self.name, student)
        if data is None or data["key"] != self.key(content):
            return None
        return data["result"]

    def save(self, student: str, key: str, result: dict[str, Any]) -> None:
        """Keep a result; a reader finds the old one or the new one, never a half."""
        path = paths.result(self.name, student)
        path.parent.mkdir(parents=True, exist_ok=True)
        data = {"key": key, "student": student, "result": result}
        half = path.with_suffix(".new")
        half.write_text(json.dumps(data) + "\n", encoding="utf-8")
        half.replace(path)

    def worker(self, sandboxed: bool) -> Worker:
        """Start a student's world and a judge."""
        return Worker(
            self.manifest,
            self.tests,
            self.manifest_path,
            self.mistakes_path,
            self.tree,
            self.secret,
            sandboxed,
            self.device,
        )

    def make_tree(self) -> None:
        """Write lmcore with the bodies of this unit and all later ones blank."""
        stamp = self.tree.with_suffix(".made")
        if stamp.is_file() and stamp.read_text() == self.manifest["digest"]:
            return
        shutil.rmtree(self.tree, ignore_errors=True)
        all_units = homework.units()
        blank = all_units[all_units.index(self.name) :]
        homework.blank_lmcore(self.tree, blank)
        # Figures compute in Python too: students need them, graded code does not.
        shutil.rmtree(self.tree / "lmcore" / "widgets", ignore_errors=True)
        stamp.write_text(self.manifest["digest"])


def load_result(unit: str, student: str) -> dict[str, Any] | None:
    """Read a kept result with its key; None if there is none."""
    try:
        return json.loads(paths.result(unit, student).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _digest_of_code() -> str:
    """A digest of the code that decides results."""
    here = Path(__file__).parent
    return builder.digest_files(sorted(here.rglob("*.py")))

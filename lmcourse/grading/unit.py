"""One unit as the grader sees it, and the results it keeps.

A result depends on the submission's bytes, the manifest, the course's secret and the
grader's own code, and is kept under a key of these four. So a second run grades only
what is new.
"""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lmcourse import CourseError, homework, paths
from lmcourse.homework import builder

from . import cells, intake, seeds
from .worker import Worker

Content = bytes | intake.Refusal  # what reading a submitted file gave
BATCH = 100  # submissions written to the gradebook in one transaction


class Unit:
    """What is needed to grade a unit: manifest, secret, blank lmcore, known results."""

    def __init__(self, name: str) -> None:
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
        self.manifest: dict[str, Any] = asdict(made)
        self.tests = cells.bare_tests(self.manifest)
        self.n_visible = cells.n_visible(self.manifest)
        self.secret = seeds.load_secret(paths.course() / "secret")
        self.tree = paths.course() / "jail" / name
        self.manifest_path = paths.manifest(name)
        self.mistakes_path = paths.root() / "tests" / "mistakes" / f"{name}.py"
        self._code = _digest_of_code()

    def key(self, content: Content) -> str:
        """What a result depends on, in a few letters."""
        own = content if isinstance(content, bytes) else content.message.encode()
        parts = [self.manifest["digest"], self._code, self.secret.hex()]
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

    def save(self, student: str, content: Content, result: dict[str, Any]) -> None:
        """Keep a result; a reader finds the old one or the new one, never a half."""
        path = result_path(self.name, student)
        path.parent.mkdir(parents=True, exist_ok=True)
        data = {"key": self.key(content), "student": student, "result": result}
        half = path.with_suffix(".new")
        half.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        half.replace(path)

    def write(self, contents: dict[str, Content]) -> None:
        """Bring the results into the gradebook, those that are not there already."""
        from . import gradebook

        gradebook.make_assignment(self.name, self.manifest)
        there = gradebook.students(self.name)
        notes = {s: result_path(self.name, s).with_suffix(".written") for s in contents}
        waiting = [
            student
            for student, content in contents.items()
            if not (
                student in there
                and notes[student].is_file()
                and notes[student].read_text() == self.key(content)
            )
        ]
        with tqdm(
            total=len(waiting), desc="gradebook, feedback", disable=None, unit="student"
        ) as progress:
            for start in range(0, len(waiting), BATCH):
                some = waiting[start : start + BATCH]
                graded = {
                    s: (self.known(s, contents[s]), self.read(contents[s]))
                    for s in some
                }
                gradebook.write(self.name, graded)
                for student in some:
                    notes[student].write_text(self.key(contents[student]))
                progress.update(len(some))

    def worker(self, sandboxed: bool) -> Worker:
        """Start a student's world and a judge."""
        return Worker(
            self.manifest,
            self.tests,
            self.n_visible,
            self.manifest_path,
            self.mistakes_path,
            self.tree,
            self.secret,
            sandboxed,
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


def result_path(unit: str, student: str) -> Path:
    """Where the result of a submission is kept."""
    return paths.course() / "results" / unit / f"{student}.json"


def load_result(unit: str, student: str) -> dict[str, Any] | None:
    """Read a kept result with its key; None if there is none."""
    try:
        return json.loads(result_path(unit, student).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _digest_of_code() -> str:
    """A digest of the code that decides results."""
    here = Path(__file__).parent
    return builder.digest_files(sorted(here.rglob("*.py")))

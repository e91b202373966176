"""nbgrader's exchange, where students and teachers are users of one machine.

What lies in the exchange's ``inbound`` folder was put there by students, by nbgrader's
command or by hand: names, times and links in it say what their writer likes. `Collect`
believes the system about whose work it is, and takes plain files only; one folder that
is not as it should be does not stop the class. `ReleaseFeedback` passes over those
whose work came another way.
"""

import os
from datetime import datetime
from pathlib import Path
from typing import Any

from nbgrader.exchange import ExchangeError
from nbgrader.exchange.default import ExchangeCollect, ExchangeReleaseFeedback

from lmcourse import homework

from . import intake, receipts

Record = dict[str, Any]
NO_NAME = "unknown"


class Collect(ExchangeCollect):
    """Collects what belongs to its student, as plain files."""

    def _path_to_record(self, path: str) -> Record:
        """Say whose a submitted folder is: its owner's, whatever its name claims.

        Where all users are one to the system, as in containers, owners say nothing, and
        the name counts.
        """
        try:
            record = super()._path_to_record(path)
        except (ExchangeError, ValueError, OverflowError):
            record = {"username": NO_NAME, "timestamp": datetime.min}
            record["filename"] = os.path.basename(path)
        if record["username"].startswith("."):  # no folder's name
            record["username"] = NO_NAME
        owner = _owner(path) if self.check_owner else None
        if owner is not None and owner != record["username"]:
            self.log.warning("%s belongs to %s, so it counts as theirs", path, owner)
            record["username"] = owner
        return record

    def copy_files(self) -> None:
        """Collect; whose each folder is has been found out already."""
        self.check_owner = False
        super().copy_files()

    def do_copy(self, src: str, dest: str, log: Any = None) -> None:
        """Copy a unit's notebook and nbgrader's two notes, and follow no link."""
        unit = self.coursedir.assignment_id
        if unit not in homework.units():
            super().do_copy(src, dest, log)
            return
        os.makedirs(dest)
        try:
            folder = os.open(src, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            self.log.warning("%s cannot be read: %s", src, error)
            return
        try:
            # Through the open folder: by its name it could be another one by now.
            inside = Path(f"/proc/self/fd/{folder}")
            inside = inside if inside.is_dir() else Path(src)
            name = f"{unit}.ipynb"
            files = receipts.read(inside) | {name: intake.read_file(inside / name)}
        finally:
            os.close(folder)
        for name, content in files.items():
            if isinstance(content, intake.Refusal):
                self.log.warning("%s: %s", src, content.message)
            else:
                Path(dest, name).write_bytes(content)


def _owner(path: str) -> str | None:
    """The user who made a folder; None if that is ourselves or nobody we know."""
    import pwd  # Unix has it, as it has the exchange

    user = os.lstat(path).st_uid
    if user == os.getuid():
        return None
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return None


class ReleaseFeedback(ExchangeReleaseFeedback):
    """Releases feedback to those who handed in through the exchange."""

    def copy_files(self) -> None:
        """Leave out those for whom nbgrader has no place to put it."""
        course = self.coursedir
        pattern = course.format_path(
            course.feedback_directory, course.student_id or "*", course.assignment_id
        )
        others = {
            folder.parent.name
            for folder in Path("/").glob(pattern.lstrip("/"))
            if not all((folder / name).is_file() for name in receipts.NAMES)
        }
        if others:
            names = ", ".join(sorted(others))
            self.log.warning("Not handed in through the exchange, left out: %s", names)
        before = course.student_id_exclude
        course.student_id_exclude = ",".join(sorted({*before.split(","), *others}))
        try:
            super().copy_files()
        finally:  # formgrader goes on with the same course
            course.student_id_exclude = before

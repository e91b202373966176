"""The teacher's doctor: the student's examinations and what only a teacher needs."""

import shutil
from collections.abc import Iterable

from lmcore import doctor
from lmcore.doctor import Finding

from . import homework, paths
from .grading import sandbox


def examine_sandbox() -> Finding:
    """Strangers' code is graded only where the system can lock it in."""
    reason = sandbox.why_unavailable()
    if reason is None:
        return Finding("sandbox", "well", "bubblewrap and namespaces work")
    return Finding(
        "sandbox",
        "missing",
        reason,
        "grade on Linux with bubblewrap and user namespaces; reading, building and "
        "releasing work without",
    )


def examine_program(name: str, programs: tuple[str, ...], feature: str) -> Finding:
    """A program of the system that one feature needs."""
    for program in programs:
        if (path := shutil.which(program)) is not None:
            return Finding(name, "well", path)
    return Finding(
        name,
        "missing",
        f"none of {', '.join(programs)} is installed",
        f"install one for {feature}; everything else works without",
    )


def examine_release() -> Iterable[Finding]:
    """Predict how long the checks of every released unit take on this machine."""
    released = [u for u in homework.units() if homework.manifest_path(u).exists()]
    if not released:
        yield Finding(
            "homework", "missing", "none is released yet", "run: lmcourse release"
        )
        return
    gflops = doctor.matmul_gflops()
    for unit in released:
        work = homework.load_manifest(unit).measured
        seconds = doctor.predict_seconds(work, gflops)
        yield Finding("homework", "well", f"{unit}: {seconds:.1f} s a submission")


def examine_teacher() -> list[Finding]:
    """Everything a teacher needs, examined in the course's folder."""
    return [
        doctor.examine_python(),
        doctor.examine_torch(),
        doctor.examine_device(),
        doctor.examine_kernel(),
        doctor.examine_disk(paths.ROOT, needed_gb=5),
        examine_sandbox(),
        examine_program(
            "browser",
            ("chromium", "chromium-browser", "google-chrome"),
            "the tests that open the book in a real browser",
        ),
        *examine_release(),
    ]

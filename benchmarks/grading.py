"""Seconds per submission: stock ``nbgrader autograde`` against ours, in one run.

The same notebooks of unit 08, the same nbgrader, the same machine, one at a time, first
the one and then the other. What is done once per class (importing torch into our warm
parent, say) is left out: the class is graded with one submission and with all, and the
difference is divided by the submissions added. Both make the feedback too.

    python benchmarks/grading.py [--submissions 4]
"""

import argparse
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lmcourse import homework, paths
from lmcourse.grading import engine, gradebook, sample_class
from lmcourse.grading.unit import Unit
from lmcourse.homework import release

UNIT = "08_attention"
STUDENTS = ("all-right", "written-differently", "half-done", "mistake-not-scaled")


def main() -> None:
    """Run both and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--submissions", type=int, default=4, help="at least 2")
    n = max(2, parser.parse_args().submissions)
    homework.build(UNIT)
    made = sample_class.submissions(UNIT)
    notebooks = [made[STUDENTS[i % len(STUDENTS)]] for i in range(n)]
    with _course_of_its_own() as folder:
        gradebook.make_assignment(UNIT, Unit(UNIT).manifest)
        stock = _marginal(_grade_stock, notebooks, folder)
        ours = _marginal(_grade_ours, notebooks, folder)
    n_cells = sum(c["kind"] == "test" for c in homework.load_manifest(UNIT).cells)
    print(
        f"{UNIT}, {n_cells} test cells, {n} submissions, one at a time; per submission"
    )
    print("                 wall      CPU")
    for name, (wall, cpu) in (("stock nbgrader", stock), ("lmcourse grade", ours)):
        print(f"{name}  {wall:5.2f} s  {cpu:5.2f} s")
    print(f"ratio           {stock[0] / ours[0]:5.1f}    {stock[1] / ours[1]:5.1f}")


@contextlib.contextmanager
def _course_of_its_own() -> Iterator[Path]:
    """A copy of the project's release, so that the course itself is left alone."""
    root, before = paths.root(), Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("_config.yml", "autotests.yml", "course.yml"):
            shutil.copy(root / file, folder / file)
        for inner in ("solutions", "tests/mistakes", "build/homework"):
            shutil.copytree(root / inner, folder / inner)
        for step in ("source", "release"):
            inner = f"build/course/{step}/{UNIT}"
            shutil.copytree(root / inner, folder / inner)
        os.chdir(folder)
        try:
            yield folder
        finally:
            os.chdir(before)


def _marginal(
    grade: Callable[[], None], notebooks: list[bytes], folder: Path
) -> tuple[float, float]:
    """Seconds per submission beyond the first: on the clock, and of the processor."""
    measured = []
    for some in (notebooks[:1], notebooks):
        for step in ("submitted", "autograded", "feedback", "results", "intake"):
            shutil.rmtree(folder / "build" / "course" / step, ignore_errors=True)
        for number, content in enumerate(some):
            path = gradebook.submitted_path(UNIT, f"student{number:03}")
            path.parent.mkdir(parents=True)
            # Every submission differs: none can be graded from a kept result.
            path.write_bytes(content.replace(b"\n}", b"\n}" + b" " * number))
        wall, cpu = time.perf_counter(), _cpu_seconds()
        grade()
        measured.append((time.perf_counter() - wall, _cpu_seconds() - cpu))
        print(f"  {grade.__name__}, {len(some)}: {measured[-1][0]:.1f} s")
    first, all_of_them = measured
    n_more = len(notebooks) - 1
    return tuple((b - a) / n_more for a, b in zip(first, all_of_them, strict=True))


def _cpu_seconds() -> float:
    """What this process and all its ended children have computed."""
    return sum(os.times()[:4])


def _grade_ours() -> None:
    engine.grade_folder(UNIT, jobs=1)


def _grade_stock() -> None:
    """nbgrader's own steps, with a kernel for every notebook."""
    from nbgrader.converters import Autograde, GenerateFeedback
    from traitlets.config import Config

    config = Config()
    release.configure(config)
    config.Execute.timeout = 120
    handed_in = (paths.course() / "submitted").iterdir()
    students = [folder.name for folder in handed_in]
    for converter in (Autograde, GenerateFeedback):
        gradebook.convert(converter, UNIT, students, config)


if __name__ == "__main__":
    main()

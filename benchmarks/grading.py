"""What grading costs: stock ``nbgrader autograde`` against ours, and a large class.

First the same few notebooks are graded by both, in one run, on the same machine: stock
nbgrader with a kernel for every notebook, one after the other, as it works; ours with
one worker for every core. What is done once per class (importing torch into our warm
parents, say) is left out: the class is graded with one submission for each worker and
with all, and the difference is divided by the submissions added. Intake, database,
autograded notebooks and feedback are included on both sides.

Then a class of generated submissions of the same kinds is graded by ours alone, on a
local Dask cluster with a process for every core: the cost of a submission in a small
class and in a large one, the peak memory, and what 10,000 would take.

    python benchmarks/grading.py                    # five questions, 1,000 submissions
    python benchmarks/grading.py --questions 14     # the whole of unit 08
    python benchmarks/grading.py --students 10000   # no extrapolation
"""

import argparse
import ast
import contextlib
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from distributed import LocalCluster

from lmcourse import homework, paths
from lmcourse.grading import converters, engine, gradebook, sample_class
from lmcourse.grading.unit import Unit
from lmcourse.homework import release

UNIT = "08_attention"
STUDENTS = ("all-right", "written-differently", "half-done", "mistake-not-scaled")
EXERCISE = re.compile(r"^exercise: (\w+)$", re.MULTILINE)
KNOWN = ("mistake", "variant")  # the decorators of known answers
SECTION = re.compile(r"^## (\d+) · ", re.MULTILINE)
STEPS = ("submitted", "autograded", "feedback", "results")
LARGE = 10_000
MEMORY_SECONDS = 5  # between two looks; each costs what a submission does


def main() -> None:
    """Run both parts and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--questions", type=int, default=5, help="of unit 08's 14")
    parser.add_argument("--submissions", type=int, default=5, help="graded by both")
    parser.add_argument("--students", type=int, default=1000, help="0: no large class")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="our workers")
    wanted = parser.parse_args()
    with _course_of_its_own(wanted.questions) as folder:
        made = sample_class.submissions(UNIT)
        questions = homework.load_manifest(UNIT).questions.values()
        n_questions = sum(not facts["written"] for facts in questions)
        print(f"{UNIT}, {n_questions} graded questions, {wanted.jobs} workers of ours")
        print(f"load of the machine before: {os.getloadavg()[0]:.1f}")
        if wanted.submissions > 1:
            _compare(made, wanted.submissions, wanted.jobs, folder)
        if wanted.students:
            _clear(folder)
            _grow([made[name] for name in STUDENTS], wanted.students, wanted.jobs)
    print(f"load of the machine after: {os.getloadavg()[0]:.1f}")


def _compare(made: dict[str, bytes], n: int, jobs: int, folder: Path) -> None:
    """Print what one more submission costs stock nbgrader, and us."""
    notebooks = [made[STUDENTS[i % len(STUDENTS)]] for i in range(n)]
    gradebook.make_assignment(UNIT, Unit(UNIT).manifest)
    stock = _marginal(_grade_stock, notebooks, 1, folder)
    ours = _marginal(
        lambda: engine.grade_folder(UNIT, jobs=jobs), 16 * notebooks, jobs, folder
    )
    print("one more submission       wall       CPU")
    for name, (wall, cpu) in (("stock nbgrader", stock), ("lmcourse grade", ours)):
        print(f"  {name}     {wall:6.3f} s   {cpu:6.3f} s")
    print(f"  ratio            {stock[0] / ours[0]:7.1f}    {stock[1] / ours[1]:7.1f}")


def _grow(contents: list[bytes], n: int, jobs: int) -> None:
    """Grade a class that grows, and print what each part of it cost."""
    sizes = sorted({min(jobs, n), min(100, n), n})
    before, start, rate = 0, 0.0, 0.0
    cluster = LocalCluster(n_workers=jobs, threads_per_worker=1, dashboard_address=None)
    with cluster, _peak_memory() as peak:
        for size in sizes:
            for number in range(before, size):
                _hand_in(contents[number % len(contents)], number)
            began = time.perf_counter()
            summary = engine.grade_folder(UNIT, scheduler=cluster.scheduler_address)
            wall = time.perf_counter() - began
            assert summary.graded == size - before, summary
            if before == 0:
                start = wall
                print(f"a class of {size}: {wall:.1f} s, most of it to start")
            else:
                rate = (wall - start) / (size - before)
                print(f"submission {before + 1} to {size}: {rate:.3f} s each")
            before = size
    print(f"peak memory of all processes: {peak[0] / 2**30:.2f} GiB")
    if n < LARGE and rate:
        minutes = (start + LARGE * rate) / 60
        print(f"{LARGE:,} submissions would take {minutes:.0f} minutes")


def _hand_in(content: bytes, number: int) -> None:
    """Write a submission; each differs, so none is graded from a kept result."""
    path = paths.submitted(UNIT, f"student{number:05}")
    path.parent.mkdir(parents=True)
    path.write_bytes(content.replace(b"\n}", b"\n}" + b" " * number))


@contextlib.contextmanager
def _course_of_its_own(n_questions: int) -> Iterator[Path]:
    """A project with a part of unit 08, so that the course itself is left alone."""
    root, before = paths.root(), Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("_config.yml", "autotests.yml", "course.yml"):
            shutil.copy(root / file, folder / file)
        (folder / "solutions").mkdir()
        (folder / "tests" / "mistakes").mkdir(parents=True)
        text = (root / "solutions" / f"{UNIT}.md").read_text(encoding="utf-8")
        ends = [m.start() for m in SECTION.finditer(text) if int(m[1]) > n_questions]
        text = text[: ends[0]] if ends else text
        (folder / "solutions" / f"{UNIT}.md").write_text(text, encoding="utf-8")
        known = (root / "tests" / "mistakes" / f"{UNIT}.py").read_text(encoding="utf-8")
        known = _only_about(set(EXERCISE.findall(text)), known)
        (folder / "tests" / "mistakes" / f"{UNIT}.py").write_text(known, "utf-8")
        os.chdir(folder)
        try:
            homework.build(UNIT)
            yield folder
        finally:
            os.chdir(before)


def _only_about(exercises: set[str], known: str) -> str:
    """The known answers, without those to exercises that were taken out."""
    tree = ast.parse(known)
    kept = []
    for node in tree.body:
        calls = [d for d in getattr(node, "decorator_list", []) if hasattr(d, "args")]
        targets = [call.args[0].value for call in calls if call.func.id in KNOWN]
        if all("." in target or target in exercises for target in targets):
            kept.append(node)
    return ast.unparse(ast.Module(kept, tree.type_ignores)) + "\n"


def _clear(folder: Path) -> None:
    for step in STEPS:
        shutil.rmtree(folder / "build" / "course" / step, ignore_errors=True)


def _marginal(
    grade: Callable[[], object], notebooks: list[bytes], n_first: int, folder: Path
) -> tuple[float, float]:
    """Seconds per submission beyond the first ones: on the clock, of the processor."""
    measured = []
    for some in (notebooks[:n_first], notebooks):
        _clear(folder)
        for number, content in enumerate(some):
            _hand_in(content, number)
        wall, cpu = time.perf_counter(), _cpu_seconds()
        grade()
        measured.append((time.perf_counter() - wall, _cpu_seconds() - cpu))
    first, all_of_them = measured
    n_more = len(notebooks) - n_first
    return tuple((b - a) / n_more for a, b in zip(first, all_of_them, strict=True))


def _cpu_seconds() -> float:
    """What the whole machine has computed.

    A sandbox ends without telling its parent what was computed in it, so the times of
    our children would be too short. Run nothing else beside the benchmark.
    """
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq


@contextlib.contextmanager
def _peak_memory() -> Iterator[list[int]]:
    """The most memory that this process and its children held; shared pages once."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        own = psutil.Process()
        while not done.wait(MEMORY_SECONDS):
            total = 0
            for process in [own, *own.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += process.memory_full_info().pss
            peak[0] = max(peak[0], total)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield peak
    finally:
        done.set()
        watching.join()


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
        converters.convert(converter, UNIT, students, config)


if __name__ == "__main__":
    main()

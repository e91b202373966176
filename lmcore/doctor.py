"""The doctor: is this machine ready for the course, and how long will homework run?

``lmcore doctor`` runs these examinations for a student, ``lmcourse doctor`` the same
and a teacher's on top. Every finding that is not well says what to do about it.
"""

import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

WORK_FILE = "work.json"  # beside the homework: what its questions cost when measured


@dataclass(frozen=True)
class Finding:
    """What one examination found.

    >>> print(Finding("disk", "ill", "0.1 GB free", "make room"))
    ✗ disk       0.1 GB free
        → make room
    """

    name: str  # what was examined
    state: Literal["well", "missing", "ill"]  # missing: optional, costs one feature
    detail: str  # what was found, in a few words
    advice: str = ""  # what to do, unless all is well

    def __str__(self) -> str:
        sign = {"well": "✓", "missing": "–", "ill": "✗"}[self.state]
        line = f"{sign} {self.name:<10} {self.detail}"
        return f"{line}\n    → {self.advice}" if self.advice else line


def matmul_gflops(size: int = 384, repeats: int = 20) -> float:
    """Measure this machine: 10⁹ floating-point operations per second in a product of
    two (size, size) matrices, one thread, the best of several tries.

    One thread and small matrices, since that is what a homework's checks run.

    >>> matmul_gflops(size=64, repeats=3) > 0
    True
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a = torch.ones(size, size)
        best = float("inf")
        for _ in range(repeats):
            start = time.perf_counter()
            a @ a
            best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(n_threads)
    return 2 * size**3 / best / 1e9


def predict_seconds(work: dict, gflops: float) -> float:
    """Predict how long a homework's checks take on a machine of a given speed.

    Args:
        work: ``{"seconds": …, "gflops": …}``, what the checks took where they were
            measured and that machine's `matmul_gflops`
        gflops: this machine's `matmul_gflops`

    Returns:
        Seconds.

    >>> predict_seconds({"seconds": 3.0, "gflops": 50.0}, gflops=25.0)
    6.0
    """
    return work["seconds"] * work["gflops"] / gflops


def examine_python() -> Finding:
    """Say which Python this is, and whether it is the course's own environment.

    >>> examine_python().name
    'Python'
    """
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.prefix != sys.base_prefix:
        return Finding("Python", "well", f"{version}, in a virtual environment")
    return Finding(
        "Python",
        "missing",
        f"{version}, outside any virtual environment",
        "python -m venv .venv keeps the course apart from your other work",
    )


def examine_torch() -> Finding:
    """PyTorch must multiply two matrices correctly.

    >>> examine_torch().state
    'well'
    """
    product = torch.ones(2, 3) @ torch.ones(3, 2)
    if torch.equal(product, torch.full((2, 2), 3.0)):
        return Finding("torch", "well", torch.__version__)
    return Finding(
        "torch",
        "ill",
        f"{torch.__version__} multiplies wrongly: {product.tolist()}",
        "install it again: python -m pip install --force-reinstall torch",
    )


def examine_device() -> Finding:
    """Say which device a notebook can use; a CPU is enough for all homework.

    >>> examine_device().state
    'well'
    """
    if torch.cuda.is_available():
        return Finding("device", "well", f"cuda: {torch.cuda.get_device_name()}")
    if torch.backends.mps.is_available():
        return Finding("device", "well", "mps: the GPU of an Apple computer")
    return Finding(
        "device",
        "well",
        "cpu: enough for all homework; no GPU found, none needed",
    )


def examine_kernel() -> Finding:
    """Notebooks need a Python kernel and JupyterLab.

    >>> examine_kernel().name
    'notebooks'
    """
    lacking = [
        name
        for name in ("ipykernel", "jupyterlab")
        if importlib.util.find_spec(name) is None
    ]
    if not lacking:
        return Finding("notebooks", "well", "JupyterLab and a Python kernel are there")
    return Finding(
        "notebooks",
        "ill",
        f"not installed: {', '.join(lacking)}",
        f"python -m pip install {' '.join(lacking)}",
    )


def examine_disk(folder: Path, needed_gb: float = 1.0) -> Finding:
    """Homework and checkpoints need a little room.

    >>> examine_disk(Path.cwd(), needed_gb=0).state
    'well'
    >>> examine_disk(Path.cwd(), needed_gb=2_000_000).advice
    'make room: 2e+06 GB are needed'
    """
    free_gb = shutil.disk_usage(folder).free / 1e9
    detail = f"{free_gb:.1f} GB free in {folder}"
    if free_gb >= needed_gb:
        return Finding("disk", "well", detail)
    return Finding("disk", "ill", detail, f"make room: {needed_gb:g} GB are needed")


def examine_homework(folder: Path) -> Iterable[Finding]:
    """Predict how long the checks of every homework below a folder take here.

    >>> import tempfile
    >>> [finding.state for finding in examine_homework(Path(tempfile.mkdtemp()))]
    ['missing']
    """
    files = sorted([*folder.glob(WORK_FILE), *folder.glob(f"*/{WORK_FILE}")])
    if not files:
        yield Finding(
            "homework",
            "missing",
            f"no homework below {folder}",
            "go to the folder into which you unpacked the homework, then ask again",
        )
        return
    gflops = matmul_gflops()
    for file in files:
        for unit, work in json.loads(file.read_text(encoding="utf-8")).items():
            seconds = predict_seconds(work, gflops)
            memory = f"{work['memory_mb'] / 1000:.1f} GB of memory"
            yield Finding(
                "homework", "well", f"{unit}: all checks in {seconds:.1f} s, {memory}"
            )


def examine_student(folder: Path) -> list[Finding]:
    """Everything a student needs, examined from the folder of the homework.

    >>> import tempfile
    >>> [finding.name for finding in examine_student(Path(tempfile.mkdtemp()))]
    ['Python', 'torch', 'device', 'notebooks', 'disk', 'homework']
    """
    return [
        examine_python(),
        examine_torch(),
        examine_device(),
        examine_kernel(),
        examine_disk(folder),
        *examine_homework(folder),
    ]

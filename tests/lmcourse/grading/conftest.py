"""A tiny unit that is built once, and a worker that grades it.

The unit goes the real way, through nbgrader's release. It has a function written in the
notebook, one of lmcore, and a written question.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from lmcourse import paths
from lmcourse.grading import gradebook, sandbox
from lmcourse.grading.unit import Unit
from lmcourse.grading.worker import Worker

UNIT = "07_tiny"
REPOSITORY = Path(__file__).parents[3]

SOLUTIONS = '''---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# Homework 07 · Tiny

```{code-cell} ipython3
---
given: setup
---
import torch
from torch import Tensor

from lmcore import attention, homework, require
from lmcore.homework import check, generator, implements, question, refusal
homework.load_my_work()
```

## The average

Average the numbers along the last axis.

```{code-cell} ipython3
---
exercise: average
title: The average
section: averages
points: 4
minutes: 5
difficulty: 1
limits: {seconds: 2, memory_mb: 512}
hints: ["How many numbers are there?"]
sketch: "Add, then divide."
forbidden: [torch.mean]
---
def average(x):
    """Average the numbers along the last axis."""
    ### BEGIN SOLUTION
    return x.sum(-1) / x.shape[-1]
    ### END SOLUTION
```

```{code-cell} ipython3
---
checks: average
---
### AUTOTEST average(torch.tensor([1.0, 3.0]))  # title: two numbers
### BEGIN HIDDEN TESTS
x = torch.randn(3, 5, generator=generator(1))
check(average(x), title="a table")
check(average(x.double()), title="double precision")
check(average(x[:, :1]), title="one lonely number")
### END HIDDEN TESTS
```

## The mask

Let every token look at itself and at the ones before it.

```{code-cell} ipython3
---
exercise: causal_mask
title: The mask
implements: attention.causal_mask
section: masks
points: 3
minutes: 5
difficulty: 1
limits: {seconds: 2, memory_mb: 512}
hints: ["Read a row aloud."]
sketch: "Compare positions."
---
```

```{code-cell} ipython3
---
checks: causal_mask
---
### AUTOTEST attention.causal_mask(3)  # title: three tokens
### BEGIN HIDDEN TESTS
n = int(torch.randint(4, 9, (), generator=generator(1)))
check(attention.causal_mask(n), title="a longer text")
check(attention.causal_mask(n, n + 2), title="with tokens read before")
### END HIDDEN TESTS
```

## Why

Why does a token not look ahead?

+++ {"written": "why", "points": 2, "minutes": 5, "title": "Why"}

It is what the model has to guess.
'''

MISTAKES = """
import torch
from lmcourse.mistakes import mistake, variant


@mistake("average", says="You divided by one too few.")
def divides_by_one_too_few(x):
    return x.sum(-1) / (x.shape[-1] - 1)


@variant("average")
def adds_the_parts(x):
    return sum(x[..., i] / x.shape[-1] for i in range(x.shape[-1]))


def _square(n_queries, n_keys):
    return torch.ones(n_queries, n_keys or n_queries, dtype=torch.bool)


@mistake("attention.causal_mask", says="Your mask looks ahead.")
def looks_ahead(n_queries, n_keys=None, device=None):
    return _square(n_queries, n_keys).triu((n_keys or n_queries) - n_queries)
"""

RIGHT = {
    "average": "def average(x):\n    return x.sum(-1) / x.shape[-1]\n",
    "causal_mask": (
        "@implements(attention)\n"
        "def causal_mask(n_queries, n_keys=None, device=None):\n"
        "    n_keys = n_queries if n_keys is None else n_keys\n"
        "    places = torch.arange(n_keys)\n"
        "    return places[None] <= places[n_keys - n_queries :, None]\n"
    ),
    "why": "Because.",
}


def make_project(folder: Path) -> None:
    """A folder that is a project: settings, but no unit yet."""
    folder.mkdir(parents=True)
    (folder / "solutions").mkdir()
    (folder / "tests" / "mistakes").mkdir(parents=True)
    for name in ("_config.yml", "autotests.yml", "course.yml", "nbgrader_config.py"):
        shutil.copy(REPOSITORY / name, folder / name)


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder for all processes that run tests."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def project(shared, tmp_path_factory) -> Path:
    """The tiny unit's project, built; once for all processes that run tests."""
    built = shared / "tiny-unit"
    with FileLock(shared / "tiny-unit.lock"):
        if not built.exists():
            build_project(shared / "tiny-unit-in-the-making").rename(built)
    return shutil.copytree(built, tmp_path_factory.mktemp("projects") / "tiny")


def build_project(folder: Path) -> Path:
    """Write the tiny unit and build its release."""
    make_project(folder)
    (folder / "solutions" / f"{UNIT}.md").write_text(SOLUTIONS, encoding="utf-8")
    (folder / "tests" / "mistakes" / f"{UNIT}.py").write_text(MISTAKES)
    build = f"from lmcourse import homework; homework.build({UNIT!r})"
    subprocess.run([sys.executable, "-c", build], cwd=folder, check=True)
    return folder


@pytest.fixture
def here(project, monkeypatch) -> Path:
    """Work in the tiny unit's project."""
    monkeypatch.chdir(project)
    return project


@pytest.fixture(scope="session")
def sandboxed() -> None:
    """Skip a test that runs code as a stranger's where the system cannot lock it in."""
    if (reason := sandbox.why_unavailable()) is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def start_worker(project, sandboxed):
    """Starts a student's world and a judge for the tiny unit, for a ``with``."""

    def start(device: str = "cpu") -> Worker:
        with contextlib.chdir(project):
            unit = Unit(UNIT, device)
            unit.make_tree()
            return unit.worker(sandboxed=True)

    return start


@pytest.fixture(scope="session")
def worker(start_worker):
    """A student's world and a judge for the tiny unit."""
    with start_worker() as running:
        yield running


@pytest.fixture(scope="session")
def empty_gradebook(project, shared) -> Path:
    """A gradebook that knows the unit and no student; making one takes a kernel."""
    kept = shared / "empty-gradebook.db"
    with contextlib.chdir(project), FileLock(shared / "empty-gradebook.lock"):
        if not kept.exists():
            own = paths.course() / "gradebook.db"
            own.unlink(missing_ok=True)
            gradebook.make_assignment(UNIT, Unit(UNIT).manifest)
            own.rename(kept)
    return kept


@pytest.fixture
def handed_in(project):
    """Make a notebook as a student hands it in, some cells in other words."""

    def make(**cells: str) -> bytes:
        text = (project / "build/course/release" / UNIT / f"{UNIT}.ipynb").read_text()
        made = json.loads(text)
        for cell in made["cells"]:
            name = cell["metadata"].get("nbgrader", {}).get("grade_id")
            if name in (known := RIGHT | cells):
                cell["source"] = known[name].splitlines(keepends=True)
        return json.dumps(made).encode()

    return make


@pytest.fixture
def hand_in(here, handed_in, empty_gradebook):
    """Put a notebook into the ``submitted`` folder of a course that knows the unit."""
    shutil.copy(empty_gradebook, paths.course() / "gradebook.db")

    def put(student: str, content: bytes | None = None) -> Path:
        folder = paths.course() / "submitted" / student / UNIT
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{UNIT}.ipynb"
        path.write_bytes(handed_in() if content is None else content)
        return path

    yield put
    for name in ("submitted", "autograded", "feedback", "results", "intake", "report"):
        shutil.rmtree(paths.course() / name, ignore_errors=True)
    (paths.course() / "gradebook.db").unlink(missing_ok=True)

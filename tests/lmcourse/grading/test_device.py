"""Grading on another device, as far as a machine without a GPU can show.

``cpu:0`` is the processor under another name: it takes every turn that a GPU takes (no
process forks that has used it, ``/proc`` stays, addresses are not limited).
"""

import pytest
import torch

from lmcourse import CourseError
from lmcourse.grading import engine, sandbox
from lmcourse.grading.unit import Unit

UNIT = "07_tiny"
AVERAGE = "def average(x):\n    "
ANSWERS = {
    "right": {},
    "a known mistake": {"average": AVERAGE + "return x.sum(-1) / (x.shape[-1] - 1)"},
    "ends itself": {"average": AVERAGE + "import os; os._exit(0)"},
}


@pytest.fixture(scope="module")
def other_worker(start_worker):
    """A worker for the processor under another name."""
    with start_worker(device="cpu:0") as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("name", ANSWERS)
def test_the_way_of_a_gpu_gives_the_same_result(worker, other_worker, handed_in, name):
    content = handed_in(**ANSWERS[name])
    assert other_worker.grade(content) == worker.grade(content)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_there_is_one_clear_line(hand_in):
    hand_in("ada")
    with pytest.raises(CourseError, match="cuda cannot be used here") as refusal:
        engine.grade_folder(UNIT, device="cuda")
    assert "\n" not in str(refusal.value)


def test_an_unknown_device_is_named(here):
    with pytest.raises(CourseError, match=r"no device .tpu.* it is cpu or cuda"):
        engine.grade_folder(UNIT, device="tpu")


def test_a_result_belongs_to_its_device(here):
    assert Unit(UNIT).key(b"work") != Unit(UNIT, "cuda").key(b"work")


def test_the_sandbox_gets_the_driver_s_files_before_dev_is_closed(
    monkeypatch, tmp_path
):
    for name in ("nvidia0", "nvidiactl", "sda"):
        (tmp_path / name).touch()
    monkeypatch.setattr(sandbox, "GPU_NODES", str(tmp_path / "nvidia*"))
    command = sandbox._bubblewrap_command("bwrap", tmp_path, packages=False, gpu=True)
    nodes = [str(tmp_path / name) for name in ("nvidia0", "nvidiactl")]
    binds = [word for node in nodes for word in ("--dev-bind", node, node)]
    first, last = command.index("--dev-bind"), command.index("--remount-ro")
    assert command.index("--dev") < first
    assert command[first : first + len(binds)] == binds
    assert first + len(binds) < last
    assert command.count("--dev-bind") == len(nodes)
    without = sandbox._bubblewrap_command("bwrap", tmp_path, packages=False)
    assert "--dev-bind" not in without

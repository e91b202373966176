"""The doctor finds what is there, says what to do, and predicts run times."""

import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

from lmcore import doctor
from lmcore.__main__ import app


def test_a_finding_shows_its_advice_on_a_line_of_its_own():
    finding = doctor.Finding("disk", "ill", "0.1 GB free", "make room")
    assert str(finding) == "✗ disk       0.1 GB free\n    → make room"


def test_a_machine_twice_as_fast_needs_half_the_time():
    work = {"seconds": 4.0, "gflops": 10.0}
    assert doctor.predict_seconds(work, gflops=20.0) == 2.0


def test_measuring_the_machine_leaves_the_thread_count_alone():
    before = torch.get_num_threads()
    assert doctor.matmul_gflops(size=32, repeats=2) > 0
    assert torch.get_num_threads() == before


def test_every_homework_below_the_folder_gets_its_prediction(tmp_path):
    unit = tmp_path / "homework"
    unit.mkdir()
    work = {"08_attention": {"seconds": 2.0, "memory_mb": 400, "gflops": 1e-3}}
    (unit / doctor.WORK_FILE).write_text(json.dumps(work))
    (finding,) = doctor.examine_homework(tmp_path)
    assert finding.state == "well"
    assert finding.detail.startswith("08_attention: all checks in 0.0 s")
    assert finding.detail.endswith("0.4 GB of memory")


def test_without_homework_the_doctor_says_where_to_go(tmp_path):
    (finding,) = doctor.examine_homework(tmp_path)
    assert finding.state == "missing"
    assert str(tmp_path) in finding.detail
    assert "unpacked" in finding.advice


@pytest.mark.parametrize(("free", "state"), [(5e9, "well"), (0.2e9, "ill")])
def test_the_disk_is_well_with_enough_room(monkeypatch, tmp_path, free, state):
    usage = shutil.disk_usage(tmp_path)._replace(free=int(free))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    finding = doctor.examine_disk(tmp_path)
    assert finding.state == state
    assert bool(finding.advice) == (state == "ill")


def test_what_a_notebook_lacks_is_named_with_the_command_to_install_it(monkeypatch):
    monkeypatch.setattr(
        doctor.importlib.util,
        "find_spec",
        lambda name: None if name == "jupyterlab" else object(),
    )
    finding = doctor.examine_kernel()
    assert (finding.state, finding.advice) == (
        "ill",
        "python -m pip install jupyterlab",
    )


def test_the_command_fails_when_something_is_ill(monkeypatch):
    ill = doctor.Finding("torch", "ill", "broken", "install it again")
    monkeypatch.setattr(doctor, "examine_student", lambda folder: [ill])
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "install it again" in result.output


def test_the_command_succeeds_on_this_machine():
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    assert f"✓ torch      {torch.__version__}" in result.output

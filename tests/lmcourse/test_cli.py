"""The command line says what a person can mend, in one sentence, without traceback."""

import pytest
from typer.testing import CliRunner

from lmcore.doctor import Finding
from lmcourse import CourseError, book, cli, doctor, homework
from lmcourse.grading import engine


@pytest.fixture
def run():
    runner = CliRunner()
    return lambda *words: runner.invoke(cli.app, list(words))


def test_without_a_command_the_help_lists_them_all(run):
    result = run()
    for command in ("course", "book", "release", "sample-class", "grade", "doctor"):
        assert command in result.output


def test_what_a_person_can_mend_is_one_line_and_exit_1(run, monkeypatch):
    def refuse(unit):
        raise CourseError(f"there is no unit {unit!r}")

    monkeypatch.setattr(homework, "build", refuse)
    result = run("release", "99_magic")
    assert result.exit_code == 1
    assert result.stderr == "lmcourse: there is no unit '99_magic'\n"


def test_a_programming_error_is_not_hidden(run, monkeypatch):
    def fail(unit):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(homework, "build", fail)
    assert isinstance(run("release", "08_attention").exception, ZeroDivisionError)


def test_grade_passes_on_what_was_asked(run, monkeypatch, tmp_path):
    asked = {}

    def grade_folder(unit, submitted, **options):
        asked.update(unit=unit, submitted=submitted, **options)
        return "graded"

    monkeypatch.setattr(engine, "grade_folder", grade_folder)
    options = ["--jobs", "2", "--scheduler", "tcp://here:8786"]
    result = run("grade", "08_attention", str(tmp_path), *options)
    assert result.exit_code == 0
    assert asked == {
        "unit": "08_attention",
        "submitted": tmp_path,
        "jobs": 2,
        "unsafe": False,
        "scheduler": "tcp://here:8786",
        "device": "cpu",
    }


def test_an_ill_machine_fails_the_doctor(run, monkeypatch):
    ill = Finding("disk", "ill", "0.1 GB free", "make room")
    monkeypatch.setattr(doctor, "examine_teacher", lambda: [ill])
    result = run("doctor")
    assert result.exit_code == 1
    assert "make room" in result.output


def test_a_missing_browser_costs_one_line_and_nothing_else(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda program: None)
    finding = doctor.examine_program("browser", ("chromium",), "the browser tests")
    assert finding.state == "missing"
    assert "the browser tests" in finding.advice


def test_serving_a_book_that_is_not_built_names_the_command(run, monkeypatch, tmp_path):
    monkeypatch.setattr(book, "site", lambda: tmp_path / "nowhere")
    result = run("serve")
    assert result.exit_code == 1
    assert "lmcourse book" in result.stderr

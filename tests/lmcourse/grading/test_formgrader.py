"""Plain nbgrader on top of our gradebook: a person grades in formgrader, in a browser.

Its button grades as we do, in the sandbox and without a kernel. What she gives by hand
is in the feedback, in the exports and in the report, and stays when the work is graded
again.
"""

import csv
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from selenium.common.exceptions import TimeoutException, WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from lmcourse import homework, paths
from lmcourse.grading import engine, export, gradebook, handback, notebooks, report
from lmcourse.grading.unit import load_result

UNIT = "07_tiny"
WAIT_SECONDS = 60


@pytest.fixture(scope="module")
def browser() -> ModuleType:
    """The hands of the book's tests; skips where there is no browser."""
    path = Path(__file__).parents[2] / "book" / "browser.py"
    spec = importlib.util.spec_from_file_location("browser", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if reason := module.missing():
        pytest.skip(reason)
    return module


@pytest.fixture
def server(here, browser, tmp_path) -> Iterator[str]:
    """A Jupyter server with formgrader, in the project's folder; gives its address."""
    extensions = "{'nbgrader.server_extensions.formgrader':True}"
    command = ("jupyter_server", f"--ServerApp.jpserver_extensions={extensions}")
    with browser.jupyter(here, tmp_path, "formgrader", *command) as address:
        yield address


def nbgrader(*arguments: str) -> None:
    command = [sys.executable, "-m", "nbgrader", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr


def submitted_notebook(student: str) -> str:
    with gradebook.open_gradebook() as book:
        return book.find_submission_notebook(UNIT, UNIT, student).id


def in_gradebook(student: str) -> tuple[float | None, str | None]:
    with gradebook.open_gradebook() as book:
        score = book.find_grade("why", UNIT, UNIT, student).manual_score
        return score, book.find_comment("why", UNIT, UNIT, student).manual_comment


def give(driver, address: str, score: str, comment: str) -> None:
    """Open a submission and type points and a comment for the written question."""

    def found(how: str, what: str):
        return WebDriverWait(driver, WAIT_SECONDS).until(
            lambda page: page.find_element(how, what)
        )

    driver.get(address)
    points = found(By.CSS_SELECTOR, "input.score#why")
    # The page fetches what is there already before it listens.
    WebDriverWait(driver, WAIT_SECONDS).until(
        lambda page: (
            page.execute_script("return typeof grade_uis !== 'undefined'")
            or points.get_attribute("placeholder") is not None
        )
    )
    points.clear()
    points.send_keys(score)
    box = found(By.ID, "why-comment")
    box.click()
    box.send_keys(comment)
    points.click()


@pytest.mark.slow
def test_a_person_grades_in_formgrader_and_it_counts_everywhere(
    sandboxed, hand_in, handed_in, server, browser, tmp_path
):
    hand_in("ada")
    hand_in("bob", handed_in(average="x = 1"))
    engine.grade_folder(UNIT)
    address = f"{server}/submissions/{submitted_notebook('ada')}/"
    with browser.chromium(tmp_path) as driver:
        driver.get(f"{server}/gradebook/{UNIT}/{UNIT}/")
        WebDriverWait(driver, WAIT_SECONDS).until(
            lambda page: page.find_elements(By.CSS_SELECTOR, "tbody tr td a")
        )
        try:
            give(driver, address, "1.5", "You saw the point.")
        except WebDriverException as error:
            pytest.fail(f"{error}\n{driver.page_source[-2000:]}")
        WebDriverWait(driver, WAIT_SECONDS).until(
            lambda _: in_gradebook("ada") == (1.5, "You saw the point.")
        )
        # The hidden checks are the teacher's to see, in the page she grades.
        assert "one lonely number" in driver.page_source
    _nbgrader_s_feedback_is_ours_with_her_words()
    _exports_have_her_points(tmp_path)
    _grading_again_keeps_what_she_gave(hand_in, handed_in)


def _nbgrader_s_feedback_is_ours_with_her_words() -> None:
    nbgrader("generate_feedback", UNIT, "--force")
    page = paths.feedback(UNIT, "ada").read_text(encoding="utf-8")
    assert "You saw the point." in page
    assert "8.5 of 9 points" in page
    assert "generator(1)" not in page
    assert "<script" not in page
    before = page
    assert handback.write_feedback(UNIT) == 2
    assert paths.feedback(UNIT, "ada").read_text(encoding="utf-8") == before


def _exports_have_her_points(tmp_path: Path) -> None:
    nbgrader("export", f"--to={tmp_path / 'nbgrader.csv'}")
    with open(tmp_path / "nbgrader.csv", newline="", encoding="utf-8") as file:
        theirs = {
            row["student_id"]: float(row["score"]) for row in csv.DictReader(file)
        }
    assert theirs == {"ada": 8.5, "bob": 3.0}
    with open(export.write(UNIT, "moodle"), newline="", encoding="utf-8") as file:
        ours = {row["Identifier"]: float(row["Grade"]) for row in csv.DictReader(file)}
    assert ours == theirs
    assert report.read_class(UNIT).rows[0].total == 8.5


def _grading_again_keeps_what_she_gave(hand_in, handed_in) -> None:
    hand_in("ada", handed_in(average="x = 1"))
    assert engine.grade_folder(UNIT).graded == 1
    assert in_gradebook("ada") == (1.5, "You saw the point.")
    assert {row.student: row.total for row in report.read_class(UNIT).rows} == {
        "ada": 4.5,
        "bob": 3.0,
    }
    nbgrader("autograde", UNIT, "--force")
    assert in_gradebook("ada") == (1.5, "You saw the point.")
    assert (paths.course() / "autograded" / "ada" / UNIT).is_dir()


TABLE = """
const table = {};
for (const row of document.querySelectorAll("#main-table tr")) {
  const text = (column) => row.querySelector("." + column)?.textContent;
  table[text("student-id")] = [text("status"), text("score")];
}
return table;
"""


def wait_for_row(driver, student: str, status: str, score: str) -> None:
    """Wait until formgrader's table of submissions says this about a student."""
    expected, shown = [status, score], {}

    def says(page) -> bool:
        shown.update(page.execute_script(TABLE))
        return shown.get(student) == expected

    try:
        WebDriverWait(driver, WAIT_SECONDS).until(says)
    except TimeoutException:
        pytest.fail(f"expected {expected} for {student}, formgrader shows {shown}")


def press_autograde(driver, student: str) -> str:
    """Click on a student's lightning; gives what formgrader's message says."""
    row = f"//tr[td[contains(@class, 'student-id')][text()='{student}']]"
    driver.find_element(By.XPATH, f"{row}/td[contains(@class, 'autograde')]/a").click()
    message = WebDriverWait(driver, WAIT_SECONDS).until(
        lambda page: page.find_element(By.CSS_SELECTOR, ".modal.in .modal-body p")
    )
    said = driver.execute_script("return arguments[0].textContent", message)
    driver.execute_script("$('.modal.in').modal('hide')")
    WebDriverWait(driver, WAIT_SECONDS).until(
        lambda page: not page.find_elements(By.CSS_SELECTOR, ".modal-backdrop")
    )
    return said


@pytest.mark.slow
def test_formgrader_s_button_grades_in_our_sandbox(
    sandboxed, hand_in, handed_in, server, browser, tmp_path
):
    """A kernel could write the file that this submission tries to write."""
    escaped = tmp_path / "escaped.txt"
    average = (
        "def average(x):\n"
        "    return x.sum(-1) / (x.shape[-1] - 1)\n"
        "try:\n"
        f"    open({str(escaped)!r}, 'w').close()\n"
        "except OSError:\n"
        "    pass\n"
    )
    exec(average)
    escaped.unlink()  # outside a sandbox it can be written
    hand_in("ada", handed_in(average=average))
    hand_in("bob")
    gradebook.make_assignment(UNIT, {"cells": homework.load_manifest(UNIT).cells})
    with browser.chromium(tmp_path) as driver:
        driver.get(f"{server}/manage_submissions/{UNIT}/")
        wait_for_row(driver, "ada", "needs autograding", "")
        assert "Successfully autograded" in press_autograde(driver, "ada")
        wait_for_row(driver, "ada", "needs manual grading", "3 / 9")
        # Only the one whose button it was is graded.
        wait_for_row(driver, "bob", "needs autograding", "")
        assert load_result(UNIT, "bob") is None
        assert "Successfully autograded" in press_autograde(driver, "bob")
        wait_for_row(driver, "bob", "needs manual grading", "7 / 9")
    assert not escaped.exists()
    result = load_result(UNIT, "ada")["result"]
    assert result["questions"]["average"]["mistakes"] == ["divides_by_one_too_few"]
    node = notebooks.read(paths.autograded(UNIT, "ada"))
    assert "You divided by one too few." in str(node)
    # The command finds the button's results, and adds its pages of feedback.
    summary = engine.grade_folder(UNIT)
    assert (summary.submissions, summary.graded) == (2, 0)
    totals = {row.student: row.total for row in report.read_class(UNIT).rows}
    assert totals == {"ada": 3.0, "bob": 7.0}
    assert paths.feedback(UNIT, "ada").is_file()

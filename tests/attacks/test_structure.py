"""Attacks by the form of what is handed in: the notebook, the file, the zip.

A submission here earns what its own cells are worth, whatever it says about itself, or
is refused with a sentence; the others are graded as if it were not there.
"""

import json
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lmcourse import paths
from lmcourse.grading import gradebook, handin
from lmcourse.grading.unit import load_result

pytestmark = pytest.mark.slow

UNIT = "07_tiny"
WRONG = "def average(x):\n    return x\n"
ALL, SECOND_ONLY, MAX_SCORE = 7, 3, 9


def _cells(made: dict, *names: str) -> list[dict]:
    """The cells of a notebook with these ids."""
    return [cell for cell in made["cells"] if _about(cell).get("grade_id") in names]


def _about(cell: dict) -> dict:
    return cell["metadata"].get("nbgrader", {})


def _tests(made: dict) -> list[dict]:
    return _cells(made, "average_checks", "causal_mask_checks")


def edit_tests(made: dict) -> None:
    for cell in _tests(made):
        cell["source"] = "assert True"


def delete_tests(made: dict) -> None:
    tests = _tests(made)
    made["cells"] = [cell for cell in made["cells"] if cell not in tests]


def reorder(made: dict) -> None:
    made["cells"].reverse()


def duplicate_tests(made: dict) -> None:
    made["cells"] += [{**cell, "source": "4.0"} for cell in _tests(made)]


def add_cells(made: dict) -> None:
    patch = "import torch\ntorch.allclose = lambda *a: True\naverage = 1 / 0"
    added = {"cell_type": "code", "metadata": {}, "source": patch, "outputs": []}
    forged = {"nbgrader": {"grade_id": "bonus", "grade": True, "points": 50}}
    made["cells"] = [
        added,
        *made["cells"],
        {**added, "metadata": {"nbgrader": {"grade_id": "given_setup"}}},
        {**added, "metadata": forged, "source": "50.0"},
    ]


def retype_tests(made: dict) -> None:
    for cell in _tests(made):
        cell["cell_type"] = "markdown"
        _about(cell)["cell_type"] = "markdown"
        del cell["outputs"]


def flip_flags(made: dict) -> None:
    for cell in made["cells"]:
        about = _about(cell)
        for flag in ("grade", "locked", "solution", "task"):
            about[flag] = not about.get(flag, False)


def claim_points(made: dict) -> None:
    for cell in made["cells"]:
        _about(cell)["points"] = 100
    for cell in _tests(made):
        shown = {"output_type": "execute_result", "execution_count": 1, "metadata": {}}
        cell["outputs"] = [{**shown, "data": {"text/plain": "100.0"}}]


def bad_schema(made: dict) -> None:
    for number, cell in enumerate(made["cells"]):
        _about(cell)["schema_version"] = [99, -1, "one", None, {}][number % 5]
    made["nbformat"], made["nbformat_minor"] = 99, -7
    made["metadata"] = "none"


def strange_cells(made: dict) -> None:
    made["cells"] += [
        *(None, 7, "text", [], {}, {"metadata": []}, {"metadata": {"nbgrader": 3}}),
        {"metadata": {"nbgrader": {"grade_id": ["average"]}}, "source": WRONG},
        {"metadata": {"nbgrader": {"grade_id": "average_checks"}}, "source": {}},
    ]


CHANGES: dict[str, Callable[[dict], None]] = {
    "edited tests": edit_tests,
    "deleted tests": delete_tests,
    "reordered cells": reorder,
    "duplicated tests": duplicate_tests,
    "added cells": add_cells,
    "retyped tests": retype_tests,
    "flipped flags": flip_flags,
    "a hundred points": claim_points,
    "bad schema version": bad_schema,
    "strange cells": strange_cells,
}


def two_answers(path: Path, right: bytes) -> None:
    made = json.loads(right)
    (cell,) = _cells(made, "average")
    made["cells"].append({**cell, "source": WRONG})
    path.write_bytes(json.dumps(made).encode())


def number_for_a_source(path: Path, right: bytes) -> None:
    made = json.loads(right)
    _cells(made, "average")[0]["source"] = 7
    path.write_bytes(json.dumps(made).encode())


def renamed(path: Path, right: bytes) -> None:
    path.with_name("homework (1).ipynb").write_bytes(right)


def missing(path: Path, right: bytes) -> None:
    pass


def large(path: Path, right: bytes) -> None:
    with open(path, "wb") as file:
        file.write(right)
        file.truncate(200_000_000)


def pipe(path: Path, right: bytes) -> None:
    os.mkfifo(path)


def folder_for_a_file(path: Path, right: bytes) -> None:
    path.mkdir()


def device(path: Path, right: bytes) -> None:
    path.symlink_to("/dev/zero")


def symbolic_link(path: Path, right: bytes) -> None:
    path.symlink_to(_solution(path, right))


def hard_link(path: Path, right: bytes) -> None:
    path.hardlink_to(_solution(path, right))


def _solution(path: Path, right: bytes) -> Path:
    """A file that is worth all points, but is not the student's."""
    solution = path.parents[2] / "solution.ipynb"
    solution.write_bytes(right)
    return solution


def _bytes(content: bytes) -> Callable[[Path, bytes], None]:
    return lambda path, right: path.write_bytes(content) and None


REFUSED = {  # name: (how it is handed in, the kind of refusal)
    "two answers": (two_answers, "two answers"),
    "a number for a source": (number_for_a_source, "bad cell"),
    "renamed": (renamed, "missing"),
    "missing": (missing, "missing"),
    "empty": (_bytes(b""), "empty"),
    "a list": (_bytes(b"[1, 2, 3]"), "no notebook"),
    "nested 200000 deep": (_bytes(b'{"cells": ' + b"[" * 200_000), "no notebook"),
    "deep and closed": (_bytes(b"[" * 200_000 + b"]" * 200_000), "no notebook"),
    "not UTF-8": (_bytes(b'{"cells": ["\xff\xfe"]}'), "no notebook"),
    "a number of 100000 digits": (_bytes(b"9" * 100_000), "no notebook"),
    "200 MB": (large, "too large"),
    "a pipe": (pipe, "no file"),
    "a folder": (folder_for_a_file, "no file"),
    "a device": (device, "no file"),
    "a symbolic link": (symbolic_link, "no file"),
    "a hard link": (hard_link, "no file"),
}
TIMESTAMPS = {
    "a time long ago": b"1970-01-01 00:00:00 UTC",
    "a time to come": b"9999-12-31 23:59:59 UTC",
    "no time": b"yesterday",
    "no text": b"\xff\x00\xfe",
    "a long text": b"2027" * 100_000,
    "a year too large": b"99999999-01-01",
}
SAFE_NAME = str.maketrans(" ", "-")


@pytest.fixture(scope="module")
def scores(grade_handed, written, tmp_path_factory):
    """One class with all of them; wrong and right work where that can differ."""
    folder = tmp_path_factory.mktemp("handed")
    right, wrong = written(), written(average=WRONG)

    def place(name: str) -> Path:
        own = folder / name.translate(SAFE_NAME) / UNIT
        own.mkdir(parents=True)
        return own / f"{UNIT}.ipynb"

    for name in ("honest", "z-honest"):
        place(name).write_bytes(right)
    for name, change in CHANGES.items():
        for work, content in (("right", right), ("wrong", wrong)):
            made = json.loads(content)
            change(made)
            place(f"{name} {work}").write_text(json.dumps(made))
    for name, (hand_in, _) in REFUSED.items():
        hand_in(place(name), right)
    for name, content in TIMESTAMPS.items():
        path = place(name)
        path.write_bytes(right)
        path.with_name("timestamp.txt").write_bytes(content)
    path = place("a pipe for a time")
    path.write_bytes(right)
    os.mkfifo(path.with_name("timestamp.txt"))
    return grade_handed(folder)


@pytest.mark.parametrize("name", CHANGES)
def test_changes_of_form_neither_give_nor_cost_a_point(scores, name):
    name = name.translate(SAFE_NAME)
    assert scores[f"{name}-right"] == ALL
    assert scores[f"{name}-wrong"] == SECOND_ONLY


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_submission_is_refused_with_a_sentence(scores, here, name):
    student = name.translate(SAFE_NAME)
    assert scores[student] == 0
    result = load_result(UNIT, student)["result"]
    assert result["status"] == "refused"
    assert result["refusal"]["kind"] == REFUSED[name][1]
    assert result["refusal"]["message"].endswith(".")
    page = paths.feedback(UNIT, student).read_text(encoding="utf-8")
    assert result["refusal"]["message"].split(";")[0] in page


def test_timestamps_change_no_score_and_stop_nothing(scores, here):
    for name in [*TIMESTAMPS, "a pipe for a time"]:
        assert scores[name.translate(SAFE_NAME)] == ALL, name
    with gradebook.open_gradebook() as book:
        for name in ("no-time", "no-text", "a-long-text", "a-year-too-large"):
            assert book.find_submission(UNIT, name).timestamp is None, name


def test_honest_work_beside_them_keeps_its_score(scores):
    assert {scores["honest"], scores["z-honest"]} == {ALL}


def test_the_gradebook_knows_our_cells_and_points_only(scores, here):
    with gradebook.open_gradebook() as book:
        cells = {cell.name for cell in book.find_notebook(UNIT, UNIT).grade_cells}
        assert cells == {"average_checks", "causal_mask_checks", "why"}
        for submission in book.assignment_submissions(UNIT):
            assert submission.max_score == MAX_SCORE
            assert len(submission.notebooks[0].grades) == 3
    assert len(scores) == 2 * len(CHANGES) + len(REFUSED) + len(TIMESTAMPS) + 3


def test_nothing_that_is_kept_is_a_link_or_has_another_name(scores, here):
    kept = [*(paths.course() / "submitted").rglob("*")]
    assert {path.name for path in kept if path.is_file()} == {
        *(f"{UNIT}.ipynb", "timestamp.txt")
    }
    for path in kept:
        kind = stat.S_IFMT(path.lstat().st_mode)
        assert kind in (stat.S_IFREG, stat.S_IFDIR), path


@pytest.fixture
def zipped(tmp_path, written):
    """Make a zip with Ada's honest notebook and one more entry."""

    def make(name: str, content: bytes, mode: int = stat.S_IFREG | 0o644) -> Path:
        path = tmp_path / "class" / "handed.zip"
        path.parent.mkdir()
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr(f"ada/{UNIT}/{UNIT}.ipynb", written())
            about = zipfile.ZipInfo(name)
            about.external_attr = mode << 16
            about.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(about, content)
        return path

    return make


@pytest.mark.parametrize(
    "name",
    [
        f"../../eve/{UNIT}/{UNIT}.ipynb",
        f"eve/../../{UNIT}/{UNIT}.ipynb",
        f"/tmp/eve/{UNIT}/{UNIT}.ipynb",
        f"C:/eve/{UNIT}/{UNIT}.ipynb",
        f"..\\eve\\{UNIT}\\{UNIT}.ipynb",
        f"../{UNIT}/{UNIT}.ipynb",
        "eve/" * 50 + f"{UNIT}.ipynb",
    ],
)
def test_names_in_a_zip_lead_nowhere(here, zipped, tmp_path, name):
    path = zipped(name, b"forged")
    notes: list[str] = []
    contents = handin.take_in(UNIT, path, tmp_path / "class" / "in", notes)
    assert list(contents) == ["ada"]
    files = [found for found in tmp_path.rglob("*") if found.is_file()]
    kept = tmp_path / "class" / "in" / "ada" / UNIT / f"{UNIT}.ipynb"
    assert sorted(files) == sorted([path, kept])


def test_a_link_in_a_zip_is_left_out(zipped):
    path = zipped(f"eve/{UNIT}/{UNIT}.ipynb", b"/etc/passwd", stat.S_IFLNK | 0o777)
    with handin.read(UNIT, path) as found:
        assert list(found.contents) == ["ada"]


def test_a_zip_bomb_is_refused_and_costs_nobody_else(zipped):
    bomb = zipped(f"eve/{UNIT}/{UNIT}.ipynb", bytes(300_000_000))
    assert bomb.stat().st_size < 1_000_000
    with handin.read(UNIT, bomb) as found:
        assert found.contents["eve"].kind == "too large"
        assert isinstance(found.contents["ada"], bytes)

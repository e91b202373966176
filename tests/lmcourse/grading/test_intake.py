"""Intake takes the text of the known cells, or says in one sentence why not."""

import json
import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcourse.grading import intake

MANIFEST = {
    "unit": "07_tiny",
    "cells": [
        {"id": "given_setup", "kind": "given"},
        {"id": "average", "kind": "solution"},
        {"id": "average_checks", "kind": "test"},
        {"id": "why", "kind": "written"},
    ],
}


def cell(name: str, source: object) -> dict:
    return {"metadata": {"nbgrader": {"grade_id": name}}, "source": source}


def notebook(*cells: dict) -> bytes:
    return json.dumps({"cells": list(cells)}).encode()


def test_only_the_student_s_own_cells_are_taken():
    content = notebook(
        cell("why", ["Because\n", "it is so."]),
        cell("given_setup", "import os"),
        cell("average_checks", "assert True"),
        cell("unknown", "x = 1"),
        {"source": "added"},
        cell("average", "def average(x): ..."),
    )
    work = intake.read(content, MANIFEST)
    assert work.cells == {
        "why": "Because\nit is so.",
        "average": "def average(x): ...",
    }
    assert work.missing == []


def test_a_deleted_cell_is_missing_not_fatal():
    work = intake.read(notebook(cell("average", "x")), MANIFEST)
    assert work.missing == ["why"]


def test_the_same_cell_twice_with_the_same_text_is_one_answer():
    work = intake.read(notebook(*[cell("average", "x")] * 2), MANIFEST)
    assert work.cells == {"average": "x"}


def test_a_lone_surrogate_becomes_text_that_can_be_written():
    content = notebook(cell("why", "\ud800"))
    assert b"\\ud800" in content
    text = intake.read(content, MANIFEST).cells["why"]
    assert text.encode("utf-8") == b"\\ud800"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"not json", "no notebook"),
        (b"\xff\xfe{}", "no notebook"),
        (b"[]", "no notebook"),
        (b"{}", "no notebook"),
        (b'{"cells": 3}', "no notebook"),
        (b"[" * 200_000, "no notebook"),
        (b'{"cells":' + b"[" * 200_000, "no notebook"),
        (notebook(), "other notebook"),
        (notebook(cell("other", "x")), "other notebook"),
        (notebook(cell("average", None)), "bad cell"),
        (notebook(cell("average", ["x", 1])), "bad cell"),
        (notebook(cell("average", "x" * 100_001)), "bad cell"),
        (notebook(cell("average", "x"), cell("average", "y")), "two answers"),
        (b"x" * (intake.MAX_BYTES + 1), "too large"),
    ],
)
def test_what_cannot_be_graded_is_refused_with_a_sentence(content, kind):
    refusal = intake.read(content, MANIFEST)
    assert refusal.kind == kind
    assert refusal.message.endswith(".")
    assert "Traceback" not in refusal.message


@given(st.binary(max_size=300))
def test_no_bytes_make_it_fail(content):
    assert isinstance(intake.read(content, MANIFEST), intake.Work | intake.Refusal)


_json = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["cells", "metadata", "nbgrader", "grade_id", "source"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(_json)
def test_no_json_makes_it_fail(data):
    content = json.dumps({"cells": [data, data]}).encode()
    assert isinstance(intake.read(content, MANIFEST), intake.Work | intake.Refusal)


def test_a_plain_file_is_read(tmp_path):
    (tmp_path / "a.ipynb").write_bytes(b"{}")
    assert intake.read_file(tmp_path / "a.ipynb") == b"{}"


def test_links_pipes_folders_and_sockets_are_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    (tmp_path / "secret").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        for name in ("link", "pipe", "folder", "socket"):
            assert intake.read_file(tmp_path / name).kind == "no file", name
    assert intake.read_file(tmp_path / "nothing").kind == "missing"


def test_a_huge_file_is_refused_without_reading_it_all(tmp_path):
    with open(tmp_path / "huge.ipynb", "wb") as file:
        file.truncate(200_000_000)
    refusal = intake.read_file(tmp_path / "huge.ipynb")
    assert refusal.kind == "too large"
    assert "200,000,000" in refusal.message

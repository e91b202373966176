"""What a student's notebook imports: checks that explain, work that is collected."""

import json

import nbformat
import pytest
import torch

from lmcore import attention, homework
from lmcore.homework import (
    CheckFailed,
    Recorder,
    check,
    checks,
    forbidden,
    my_work,
    question,
    refusal,
)
from lmcore.homework.notebook import Notebook

STUB = "raise NotImplementedError('causal_mask is yours to write: see the book')"
FACTS = {
    "unit": "08_attention",
    "questions": {
        "causal_mask": {
            "title": "Who may look at whom?",
            "section": "masks",
            "hints": ["Read row 0 aloud.", "Where does query 0 stand?"],
            "implements": "attention.causal_mask",
            "forbidden": ["torch.tril"],
            "visible": 2,
            "hidden": 3,
            "parts": [
                [
                    {
                        "title": "three",
                        "mistakes": [
                            {
                                "says": "You turned the mask round.",
                                "target": "attention.causal_mask",
                                "value": [[True, True], [False, True]],
                            },
                            {
                                "says": "Too many heads.",
                                "target": "attention.split_heads",
                                "error": {"error": "IndexError", "message": "axis 3"},
                            },
                        ],
                    },
                    {"title": "four", "mistakes": []},
                ]
            ],
        },
        "by_hand": {
            "title": "On paper",
            "section": "paper",
            "hints": [],
            "implements": "",
            "forbidden": [],
            "visible": 1,
            "hidden": 0,
            "parts": [
                [
                    {
                        "title": "all",
                        "mistakes": [
                            {"says": "The √ is lost.", "target": "by_hand", "value": 4}
                        ],
                    }
                ]
            ],
        },
    },
}


@pytest.fixture(autouse=True)
def notebook(tmp_path, monkeypatch):
    """A fresh notebook world, in an empty folder, with the real lmcore afterwards."""
    world = Notebook(checks._NOTHING)
    monkeypatch.setattr(checks, "_world", world)
    monkeypatch.setattr(attention, "causal_mask", attention.causal_mask)
    monkeypatch.setattr(attention, "padding_mask", attention.padding_mask)
    monkeypatch.chdir(tmp_path)
    return world


@pytest.fixture
def facts(tmp_path):
    (tmp_path / "checks.json").write_text(json.dumps(FACTS))


def failure(*args, **kwargs):
    with pytest.raises(CheckFailed) as caught:
        check(*args, **kwargs)
    return str(caught.value)


def test_a_check_that_passes_prints_one_line_and_returns_nothing(capfd):
    assert check(torch.ones(2), expected=[1.0, 1.0], title="ones") is None
    assert capfd.readouterr() == ("✓ ones\n", "")


def test_without_facts_a_check_still_explains():
    question("causal_mask")
    check(1, expected=1)
    assert failure([1, 2], expected=[1, 3]) == (
        "✗ check 2\n  at [1]: yours is 2, expected 3\n"
    )


def test_a_failing_check_explains_in_this_order(facts):
    question("causal_mask")
    text = failure(torch.ones(2, 2).triu() > 0, expected=[[True, False], [True, True]])
    steps = [
        "(check 1 of 2)" if "(check 1 of 2)" in text else "✗ check 1",
        "at [0, 1]: yours is True, expected False",
        "Recognised: You turned the mask round.",
        "Hint 1: Read row 0 aloud.",
        "Hint 2: Where does query 0 stand?",
        'Book: chapter 08, section "masks"',
        "0 of 2 visible checks pass; 3 hidden checks run when graded.",
    ]
    places = [text.index(step) for step in steps]
    assert places == sorted(places)


def test_a_mistake_in_a_function_of_the_notebook_is_recognised(facts):
    question("by_hand")
    text = failure(4, expected=2)
    assert "Recognised: The √ is lost." in text
    assert "0 of 1 visible check passes; there are no hidden ones." in text


def test_an_unknown_mistake_is_not_guessed(facts):
    question("causal_mask")
    assert "Recognised" not in failure(torch.zeros(2, 2), expected=[[1.0]])


def test_no_traceback_is_shown():
    error = CheckFailed("two\nlines")
    assert error._render_traceback_() == ["two", "lines"]


def test_never_all_passed(facts, capsys):
    question("causal_mask")
    check(1, expected=1, title="one")
    check(2, expected=2, title="two")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "2 of 2 visible checks pass; 3 hidden checks run when graded."
    homework.progress()
    table = capsys.readouterr().out
    assert "Who may look at whom?  2 of 2 visible checks pass" in table
    assert "On paper               not checked yet" in table
    assert "2 of 3 visible checks pass; 3 hidden checks run when graded." in table


def test_a_question_run_again_counts_anew(facts):
    question("causal_mask")
    check(1, expected=1)
    question("causal_mask")
    assert "0 of 2 visible checks pass" in failure(1, expected=2)


def test_a_check_has_bounds_or_an_expected_value():
    check(0.5, at_most=1, title="a bound")
    assert "yours is 2, expected at most 1" in failure(2, at_most=1)
    with pytest.raises(TypeError, match="not both"):
        check(1, expected=1, at_least=0)


def test_a_hidden_check_in_the_notebook_is_not_judged(capsys):
    check(1, title="hidden")
    assert "judged when graded" in capsys.readouterr().out


def test_an_error_of_the_students_code_is_explained(notebook, facts):
    question("causal_mask")
    text = notebook.explain_error(IndexError("axis 3"), None)
    assert "your code stopped with IndexError: axis 3" in text
    assert "Recognised: (in split_heads) Too many heads." in text
    assert "Hint 1" in text


def test_what_is_not_written_yet_is_said_kindly(notebook, facts):
    question("causal_mask")
    stub = NotImplementedError("causal_mask is yours to write: see the book")
    text = notebook.explain_error(stub, None)
    assert text.startswith("○ not written yet: causal_mask is yours to write")
    assert "Hint" not in text
    assert "not written yet" in notebook.table()


def test_broken_facts_do_not_stop_a_check(tmp_path):
    (tmp_path / "checks.json").write_text("{broken")
    question("causal_mask")
    check(1, expected=1)


def test_implements_puts_a_function_into_its_module():
    @homework.implements(attention)
    def causal_mask(n_queries):
        return "mine"

    assert attention.causal_mask is causal_mask
    assert attention.causal_mask(3) == "mine"


def test_implements_puts_a_class_into_its_module(monkeypatch):
    monkeypatch.setattr(attention, "KeyValueCache", attention.KeyValueCache)

    @homework.implements(attention)
    class KeyValueCache:
        pass

    assert attention.KeyValueCache is KeyValueCache


def test_implements_refuses_a_name_that_the_module_lacks():
    def causal_masks(n):
        return n

    message = "attention has no causal_masks; did you mean causal_mask?"
    with pytest.raises(AttributeError, match=message.replace("?", r"\?")):
        homework.implements(attention)(causal_masks)
    with pytest.raises(TypeError, match="@implements"):
        homework.implements(causal_masks)


def test_refusal_names_what_happened():
    assert refusal(ValueError, attention.causal_mask, 3, 2) == "ValueError"
    assert refusal(LookupError, [].pop) == "LookupError"
    assert refusal(KeyError, int, "x").startswith("ValueError: invalid literal")
    assert "tensor of shape (2, 2)" in refusal(ValueError, attention.causal_mask, 2)


def test_a_stub_is_no_refusal():
    def stub():
        raise NotImplementedError("stub is yours to write: see the book")

    for error_type in (RuntimeError, ValueError):
        with pytest.raises(NotImplementedError):
            refusal(error_type, stub)


def test_the_generator_depends_on_seed_question_and_offset():
    def draw(seed, name, offset):
        checks._world = Recorder(seed, name)
        question(name)
        return torch.rand(3, generator=homework.generator(offset)).tolist()

    assert draw(1, "a", 0) == draw(1, "a", 0)
    others = [draw(1, "a", 0), draw(2, "a", 0), draw(1, "b", 0), draw(1, "a", 1)]
    assert len({tuple(numbers) for numbers in others}) == 4


def test_a_question_seeds_the_global_generators(notebook):
    question("a")
    first = torch.rand(2)
    question("a")
    assert torch.equal(torch.rand(2), first)


def test_a_recorder_writes_down_and_never_judges(monkeypatch, capsys):
    recorder = Recorder(7, "q")
    monkeypatch.setattr(checks, "_world", recorder)
    source = """
question("q")
check(1, expected=2, title="one")
for i in range(3):
    check([1][i], at_most=0)
check(lambda: 0, atol=1)
check(torch.zeros(9_000_000))
"""
    recorder.run(source, {"check": check, "question": question, "torch": torch})
    assert capsys.readouterr() == ("", "")
    places = [(r["check"], r["statement"], r["nth"]) for r in recorder.records]
    assert places == [(0, 1, 0), (1, 2, 0), (2, 2, 1), (3, 3, 0), (4, 4, 0)]
    first, second, third, fourth, last = recorder.records
    assert (first["value"], first["title"], first["has_expected"]) == (1, "one", True)
    assert (second["value"], second["at_most"]) == (1, 0)
    error = {"error": "IndexError", "message": "list index out of range"}
    assert third["value"] == error
    assert fourth["value"] == {"unsupported": "function"}
    assert last["value"]["error"] == "TooLarge"
    json.dumps(recorder.records)


def test_progress_and_earlier_work_are_the_notebooks_alone(monkeypatch, capsys):
    monkeypatch.setattr(checks, "_world", Recorder(0, ""))
    homework.progress()
    homework.load_my_work()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("source", "used"),
    [
        ("torch.tril(x)", ["torch.tril"]),
        ("x.tril()", ["torch.tril"]),
        ("torch.ones(2).tril()", ["torch.tril"]),
        ("from torch import tril as t\nt(x)", ["torch.tril"]),
        ("import torch as th\nth.tril(x)", ["torch.tril"]),
        ("F.softmax(x)", ["torch.nn.functional.softmax"]),
        ("nn.functional.softmax(x)", ["torch.nn.functional.softmax"]),
        ("attention.causal_mask(3)", ["attention.causal_mask"]),
        ("    causal_mask(3)", ["attention.causal_mask"]),
        ("tril = 3; triu(x); softmax(x)", []),
        ("'torch.tril'", []),
    ],
)
def test_forbidden_calls_are_found_however_they_are_imported(source, used):
    names = ["torch.tril", "torch.nn.functional.softmax", "attention.causal_mask"]
    assert forbidden.find(source, names) == used


def test_a_forbidden_call_fails_before_the_first_check(tmp_path, facts, monkeypatch):
    cell = "def causal_mask(n):\n    return torch.ones(n, n).tril() > 0\n"
    path = tmp_path / "cell.py"
    path.write_text(cell)
    namespace = {"torch": torch, "__name__": "__main__"}
    exec(compile(cell, str(path), "exec"), namespace)
    homework.implements(attention)(namespace["causal_mask"])
    with pytest.raises(CheckFailed, match=r"uses torch\.tril"):
        question("causal_mask")


def write_notebook(path, *cells):
    node = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    path.parent.mkdir(exist_ok=True)
    nbformat.write(node, path)


SETUP = (
    "from lmcore import attention\nfrom lmcore.homework import implements\nimport os"
)
GOOD = "@implements(attention)\ndef causal_mask(n):\n    return os.sep"


@pytest.mark.parametrize("flat", [True, False], ids=["one folder", "a folder each"])
def test_earlier_work_is_found_and_put_into_lmcore(tmp_path, monkeypatch, capsys, flat):
    here = tmp_path if flat else tmp_path / "08_attention"
    here.mkdir(exist_ok=True)
    monkeypatch.chdir(here)
    places = {
        unit: (here if flat else tmp_path / unit) / f"{unit}.ipynb"
        for unit in ("07_one", "08_attention", "09_later")
    }
    write_notebook(places["07_one"], SETUP, "raise SystemExit", "%magic", GOOD)
    write_notebook(places["08_attention"], SETUP, GOOD.replace("os.sep", "8"))
    write_notebook(places["09_later"], SETUP, GOOD.replace("os.sep", "9"))
    (here / "checks.json").write_text(json.dumps({"unit": "08_attention"}))
    homework.load_my_work()
    assert attention.causal_mask(1) in ("/", "\\")
    out = capsys.readouterr().out
    assert "1 of 1 run in lmcore now" in out
    assert "07_one  attention.causal_mask  yours" in out


def test_what_does_not_run_leaves_the_reference(tmp_path, capsys):
    original = attention.causal_mask
    cells = {
        "01_stub": f"@implements(attention)\ndef causal_mask(n):\n    {STUB}",
        "02_fails": GOOD + "\n1 / 0",
        "03_syntax": "@implements(attention)\ndef causal_mask(n:\n    pass",
        "04_lost": "@implements(attention)\ndef casual_mask(n):\n    pass",
    }
    for unit, cell in cells.items():
        write_notebook(tmp_path / f"{unit}.ipynb", SETUP, cell)
    (tmp_path / "05_broken.ipynb").write_text("{")
    states = {piece.unit: piece.state for piece in my_work.load(tmp_path)}
    assert attention.causal_mask is original
    assert states["01_stub"] == "unfinished"
    assert states["02_fails"] == "ZeroDivisionError: division by zero"
    assert states["03_syntax"].startswith("SyntaxError")
    assert "casual_mask" in states["04_lost"]
    assert "unreadable" in states["05_broken"]
    out = capsys.readouterr().out
    assert "not written yet, the reference stands in" in out
    assert len(out.splitlines()) == 6


def test_what_is_blank_in_the_kit_is_not_called_the_reference(monkeypatch):
    monkeypatch.setattr(my_work, "_blank_names", lambda: ["attention.causal_mask"])
    piece = my_work.Piece("07_one", "attention.causal_mask", "unfinished")
    assert "still blank" in my_work.table([piece])


def test_the_first_homework_says_so_in_one_line(capsys):
    homework.load_my_work()
    assert capsys.readouterr().out.startswith("No earlier homework")


@pytest.mark.parametrize(
    ("x", "written"),
    [
        (torch.tensor([[0.1, 2.0]]), "[[0.1, 2.0]]"),
        ("it's", '"it\'s"'),
        ((True, None), "(True, None)"),
        (float("-inf"), 'float("-inf")'),
        ({"a": 1}, '{"a": 1}'),
    ],
)
def test_values_are_written_as_python(x, written):
    text = repr(homework.value(x, title="t", atol=1))
    assert text.strip() == written
    assert text[0] == text[-1] == " "
    with pytest.raises(TypeError, match="cannot state"):
        homework.value(x, at_most=3)

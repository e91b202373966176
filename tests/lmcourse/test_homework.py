"""From ``solutions/`` and lmcore to what students get: a tiny unit, then all."""

import ast
import datetime
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest

import lmcore.homework
from lmcore import attention
from lmcourse import CourseError, course, homework, paths
from lmcourse.homework import (
    bodies,
    builder,
    notebooks,
    reference,
    release,
    source,
    text,
)
from lmcourse.homework.bodies import Graded

PROJECT = Path(__file__).parents[2]
TINY = '''\
---
jupytext:
  text_representation: {extension: .md, format_name: myst}
kernelspec: {name: python3, display_name: Python 3, language: python}
---

# A tiny unit

```{code-cell} ipython3
---
given: setup
---
import torch
from torch import Tensor

from lmcore import attention, homework
from lmcore.homework import check, generator, implements, question, refusal

homework.load_my_work()
```

## Who may look?

Only backwards.

```{code-cell} ipython3
---
exercise: prefix_mask
title: Who may look?
implements: attention.prefix_mask
section: masks
points: 3
minutes: 10
difficulty: 2
forbidden: [torch.tril]
hints: ["Read row 0 aloud.", "Then the last row."]
sketch: Compare positions.
---
```

```{code-cell} ipython3
---
checks: prefix_mask
---
### AUTOTEST attention.prefix_mask(2, 0)  # title: two "tokens"
n = 2
### AUTOTEST attention.prefix_mask(n, 3).float() / 3 if n > 2 else 0.5, atol=1e-4
### AUTOTEST refusal(ValueError, attention.prefix_mask, 2, 3)  # title: too long
check(n, at_most=2, title="a bound")
### BEGIN HIDDEN TESTS
for size in (3, 4):
    check(attention.prefix_mask(size, 1), title="longer")
### END HIDDEN TESTS
```

Without a heading.

```{code-cell} ipython3
---
exercise: double
title: Twice
section: twice
points: 1
minutes: 1
difficulty: 1
hints: ["Add."]
sketch: Add it to itself.
---
def double(x):
    """Twice x."""
    ### BEGIN SOLUTION
    return x + x
    ### END SOLUTION
```

```{code-cell} ipython3
---
checks: double
points: 0.5
---
### AUTOTEST double(torch.tensor([1.0, float("nan")]))  # title: two numbers
```

```{code-cell} ipython3
---
checks: double
points: 0.5
---
### AUTOTEST double(4)
```

## Why?

+++ {"written": "why", "title": "Why?", "points": 2, "minutes": 5}

The secret model answer.

+++

The end.
'''
MISTAKES = """\
from lmcourse.mistakes import mistake


@mistake("attention.prefix_mask", says="The prompt looks nowhere.")
def upside_down(n_tokens, prefix_length, device=None):
    if prefix_length > n_tokens:
        raise KeyError("no")
    return attention.causal_mask(n_tokens).T


@mistake("double", says="You squared it.")
def squared(x):
    return x * x


from lmcore import attention
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A project with one tiny unit, built once."""
    root = tmp_path_factory.mktemp("project")
    (root / "_config.yml").write_text("")
    for name in ("autotests.yml", "pyproject.toml"):
        shutil.copy(PROJECT / name, root)
    (root / "course.yml").write_text("units: {01_tiny: {due: 2020-01-31}}")
    for name, content in (
        ("solutions/01_tiny.md", TINY),
        ("tests/mistakes/01_tiny.py", MISTAKES),
    ):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text(content)
    before = Path.cwd()
    os.chdir(root)
    try:
        homework.build("01_tiny")
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def inside(tiny, monkeypatch):
    monkeypatch.chdir(tiny)
    return tiny


def released(root, folder="exercises"):
    path = root / folder / "01_tiny" / "01_tiny.ipynb"
    node = nbformat.read(path, as_version=4)
    return {cell.metadata.nbgrader.grade_id: cell for cell in node.cells}


def facts(root):
    return json.loads((root / "exercises/01_tiny/checks.json").read_text())


# What students get


def test_the_stub_keeps_signature_and_docstring_and_says_what_to_do(tiny):
    cell = released(tiny)["prefix_mask"]
    assert cell.source.startswith("@implements(attention)\ndef prefix_mask(\n")
    assert "sees the answer" in cell.source
    assert cell.source.endswith(
        "    # YOUR CODE HERE\n"
        "    raise NotImplementedError(\n"
        '        "prefix_mask is yours to write: "\n'
        "        \"see the book, chapter 01, section 'masks'\"\n"
        "    )"
    )
    assert not cell.metadata.nbgrader.locked


def test_a_function_written_in_the_notebook_gets_a_stub_too(tiny):
    stub = released(tiny)["double"].source
    assert stub.startswith('def double(x):\n    """Twice x."""\n    # YOUR CODE HERE\n')
    assert "double is yours to write" in stub


def test_visible_checks_carry_literals_and_titles(tiny):
    assert released(tiny)["prefix_mask_checks"].source == (
        'question("prefix_mask")\n'
        "# 3 points: 4 checks visible, 2 hidden, 0.5 points each\n"
        "check(\n"
        "    attention.prefix_mask(2, 0),\n"
        "    expected=[[True, False], [True, True]],\n"
        '    title="two \\"tokens\\"",\n'
        ")\n"
        "\n"
        "n = 2\n"
        "check(\n"
        "    attention.prefix_mask(n, 3).float() / 3 if n > 2 else 0.5, atol=1e-4,\n"
        "    expected=0.5,\n"
        ")\n"
        "\n"
        "check(\n"
        "    refusal(ValueError, attention.prefix_mask, 2, 3),\n"
        '    expected="ValueError",\n'
        '    title="too long",\n'
        ")\n"
        "\n"
        'check(n, at_most=2, title="a bound")'
    )


def test_several_test_cells_of_a_question_are_numbered(tiny):
    cells = released(tiny)
    assert 'expected=[2.0, float("nan")]' in cells["double_checks"].source
    second = cells["double_checks_2"]
    assert second.source.startswith(
        'question("double", part=2)\n# 0.5 points: 1 check visible'
    )
    assert "check(double(4), expected=8)" in second.source
    assert second.metadata.nbgrader.points == 0.5


def test_every_exercise_has_its_label(tiny):
    texts = [cell.source for cell in released(tiny).values()]
    label = (
        "## Who may look?\n\n**3 points** · about 10 minutes · difficulty 2 of 3 · "
        "the checks run in under "
    )
    (text_,) = (text_ for text_ in texts if text_.startswith(label))
    assert "Do it without `torch.tril`.\n\nOnly backwards." in text_
    assert any(t.startswith("## Twice\n\n**1 point** · about 1 minute ") for t in texts)
    assert "## Why?\n\n**2 points** · about 5 minutes · graded by hand\n" in texts


def test_the_first_cell_says_where_the_notebook_comes_from(tiny):
    first = next(iter(released(tiny).values())).source
    assert "`solutions/01_tiny.md`" in first
    assert "`lmcourse release 01_tiny`" in first


def test_nothing_secret_is_released(tiny):
    for path in (tiny / "exercises").rglob("*.*"):
        content = path.read_text()
        for secret in (
            *("SOLUTION", "HIDDEN", "AUTOTEST", "for size", "Compare positions"),
            *("x + x", "secret model answer", "in_prefix", "stubs", "range(size"),
        ):
            assert secret not in content, (path.name, secret)


def test_ids_and_kernel_are_the_same_every_time(tiny):
    path = tiny / "exercises/01_tiny/01_tiny.ipynb"
    node = nbformat.read(path, as_version=4)
    nbformat.validate(node)
    assert node.metadata.kernelspec.name == "python3"
    for cell in node.cells:
        assert cell.id == cell.metadata.nbgrader.grade_id
        assert cell.metadata.nbgrader.locked != cell.metadata.nbgrader.solution


def test_known_mistakes_travel_as_data(tiny):
    question = facts(tiny)["questions"]["prefix_mask"]
    assert (question["visible"], question["hidden"]) == (4, 2)
    first, second, third, bound = question["parts"][0]
    assert first["mistakes"] == [
        {
            "says": "The prompt looks nowhere.",
            "target": "attention.prefix_mask",
            "value": [[True, True], [False, True]],
        }
    ]
    assert second["mistakes"] == bound["mistakes"] == []
    assert third["mistakes"][0]["value"] == "KeyError: 'no'"
    double = facts(tiny)["questions"]["double"]["parts"]
    assert double[0][0]["mistakes"][0]["value"] == [1.0, {"float": "nan"}]
    assert double[1][0]["mistakes"][0]["value"] == 16


# What the grader gets


def test_the_manifest_has_everything_and_its_tests_run_as_they_are(inside):
    made = homework.load_manifest("01_tiny")
    cells = {cell["id"]: cell for cell in made.cells}
    assert [cell["id"] for cell in made.cells] == list(released(inside))
    test = cells["prefix_mask_checks"]
    assert test["points"] == 3
    assert "AUTOTEST" not in test["source"]
    assert (
        'check(attention.prefix_mask(2, 0), title="two \\"tokens\\"")' in test["source"]
    )
    assert 'title="longer"' in test["source"]
    assert "longer" not in test["released"]
    assert "in_prefix" in cells["prefix_mask"]["source"]
    assert "attention.causal_mask(n_tokens" in cells["prefix_mask"]["source"]
    assert cells["why"]["released"] == "YOUR ANSWER HERE"
    question = made.questions["prefix_mask"]
    assert (question["visible"], question["hidden"]) == (4, 2)
    assert question["limits"] == {"seconds": 10, "memory_mb": 1024, "device": "cpu"}
    assert question["measured"]["memory_mb"] > 50
    assert made.measured["gflops"] > 0
    assert made.questions["why"]["written"]


def test_a_unit_that_is_not_released_is_said_so(inside):
    with pytest.raises(CourseError, match="run lmcourse release 02_none"):
        homework.load_manifest("02_none")
    with pytest.raises(CourseError, match="there is no homework"):
        homework.build("../etc")


def test_a_second_build_does_nothing(inside, monkeypatch):
    known = homework.load_manifest("01_tiny").digest
    monkeypatch.setattr(builder, "digest_of", lambda unit: known)
    monkeypatch.setattr(release, "generate", None)
    built = homework.build("01_tiny")
    assert not built.changed
    assert str(built) == (
        "01_tiny: 3 exercises, 6 points, in exercises/01_tiny (unchanged)"
    )
    assert homework.units() == ["01_tiny"]


@pytest.mark.parametrize(
    "name", ["solutions/01_tiny.md", "tests/mistakes/01_tiny.py", "autotests.yml"]
)
def test_a_change_in_any_source_is_noticed(inside, monkeypatch, name):
    monkeypatch.setattr(builder, "library_files", list)
    path, before = inside / name, builder.digest_of("01_tiny")
    content = path.read_text()
    try:
        path.write_text(content + "\n")
        assert builder.digest_of("01_tiny") != before
    finally:
        path.write_text(content)
    assert builder.digest_of("01_tiny") == before


def test_a_change_in_lmcore_is_noticed(module, tmp_path):
    before = builder.digest_files(builder.library_files())
    (tmp_path / "lmcore/__pycache__").mkdir()
    (tmp_path / "lmcore/__pycache__/one.pyc").write_text("")
    assert builder.digest_files(builder.library_files()) == before
    (tmp_path / "lmcore/one.py").write_text(MODULE + "# more\n")
    assert builder.digest_files(builder.library_files()) != before


def test_what_differs_from_the_sources_is_named_with_what_to_do(inside, monkeypatch):
    def made_anew(plan, folder, digest):
        shutil.copytree(paths.release("01_tiny"), folder / "release/01_tiny")

    monkeypatch.setattr(builder, "_make", made_anew)
    assert homework.check_released("01_tiny") == []
    path = inside / "exercises/01_tiny/01_tiny.ipynb"
    content = path.read_text()
    try:
        path.write_text(content.replace("Read the text", "Skip the text"))
        (path.parent / "old.txt").write_text("")
        assert homework.check_released("01_tiny") == [
            "exercises/01_tiny/old.txt is not made any more; "
            "run: lmcourse release 01_tiny",
            "exercises/01_tiny/01_tiny.ipynb differs; run: lmcourse release 01_tiny",
        ]
    finally:
        path.write_text(content)
        (path.parent / "old.txt").unlink()


def test_only_the_last_digits_may_differ():
    same = release.same_up_to_rounding
    assert same("[0.12345678, 2]", "[0.12345679, 2]")
    assert same('under 1 s and "checksum": "ab1"', 'under 3 s and "checksum": "cd2"')
    assert not same("[0.1234, 2]", "[0.1235, 2]")
    assert not same("[0.5, 2]", "[0.5, 3]")
    assert not same("[1.0]", "[1.0, 1.0]")


# As a student


def execute(folder, lmcore_folder, name="01_tiny"):
    """Run a notebook with nbgrader's Validate, as its button does."""
    path = [str(lmcore_folder), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", "validate", f"{name}.ipynb"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def kit(tiny, tmp_path_factory):
    """The kit as a student unpacks it, with the wheel's lmcore beside it."""
    folder = tmp_path_factory.mktemp("student")
    before = Path.cwd()
    os.chdir(tiny)
    try:
        (tiny / "course.yml").write_text("solutions: never")
        path = homework.build_kit()
    finally:
        (tiny / "course.yml").write_text("units: {01_tiny: {due: 2020-01-31}}")
        os.chdir(before)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    (home,) = folder.iterdir()
    (wheel,) = home.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return home, folder / "installed"


def fill_in(folder, answers):
    path = folder / "01_tiny.ipynb"
    node = nbformat.read(path, as_version=4)
    for cell in node.cells:
        cell_id = cell.metadata.nbgrader.grade_id
        if cell_id in answers:
            kept = cell.source.partition("    # YOUR CODE HERE")[0]
            kept = kept.partition("YOUR ANSWER HERE")[0]
            cell.source = kept + answers[cell_id]
    nbformat.write(node, path)


def test_the_kit_has_three_commands_and_nothing_secret(kit):
    home, installed = kit
    names = sorted(p.relative_to(home).as_posix() for p in home.rglob("*.*"))
    assert names == [
        "01_tiny/01_tiny.ipynb",
        "01_tiny/checks.json",
        "01_tiny/work.json",
        "README.md",
        "lmcore-0.1.0-py3-none-any.whl",
    ]
    readme = (home / "README.md").read_text()
    commands = [line.strip() for line in readme.splitlines() if line.startswith("    ")]
    assert len(commands) == 3
    assert "./lmcore-0.1.0-py3-none-any.whl[notebook]" in commands[1]
    for path in installed.rglob("*"):
        assert path.suffix != ".pyc"
        if path.is_file():
            assert b"in_prefix" not in path.read_bytes(), path
    assert json.loads((installed / "lmcore/blank.json").read_text()) == [
        "attention.prefix_mask"
    ]


def test_validate_goes_from_red_to_green(kit, tmp_path):
    home, installed = kit
    folder = shutil.copytree(home / "01_tiny", tmp_path / "01_tiny")
    stub = 'raise NotImplementedError("double is yours to write: see the book")'
    answers = {
        "prefix_mask": "    return attention.causal_mask(n_tokens).T",
        "double": f"    if isinstance(x, int):\n        {stub}\n    return [x][1]",
    }
    fill_in(folder, answers)
    out = execute(folder, installed)
    assert "VALIDATION FAILED ON 4 CELL(S)" in out  # the written answer is one
    assert "at [0, 1]: yours is True, expected False" in out
    assert "Recognised: The prompt looks nowhere." in out
    assert "your code stopped with IndexError" in out
    assert "in double, line 5: return [x][1]" in out
    assert "0 of 4 visible checks pass; 2 hidden checks run when graded." in out
    assert "○ not written yet: double is yours to write: see the book" in out
    assert "Traceback" not in out

    shutil.rmtree(folder)
    shutil.copytree(home / "01_tiny", folder)
    (folder / "checks.json").unlink()
    position = "torch.arange(n_tokens)"
    mask = f"{position}[None] <= {position}[:, None].clamp(min=prefix_length - 1)"
    refuse = "    if prefix_length > n_tokens:\n        raise ValueError\n"
    answers = {
        "prefix_mask": f"{refuse}    return {mask}",
        "double": "    return 2 * x",
    }
    fill_in(folder, answers | {"why": "Because."})
    assert "Success! Your notebook passes all the tests." in execute(folder, installed)


# The library without its graded bodies


def test_blank_lmcore_leaves_in_what_is_over(inside, tmp_path):
    homework.blank_lmcore(tmp_path / "a", ["01_tiny"])
    homework.blank_lmcore(tmp_path / "b", ["01_tiny"], leave_in=["01_tiny"])
    blank, whole = (
        (tmp_path / name / "lmcore/attention.py").read_text() for name in "ab"
    )
    assert whole == (PROJECT / "lmcore/attention.py").read_text()
    assert "in_prefix" in whole
    assert "in_prefix" not in blank
    assert ast.get_docstring(ast.parse(blank)) == ast.get_docstring(ast.parse(whole))
    assert not list(tmp_path.rglob("*.pyc"))


MODULE = '''\
import math


def plain(x):
    # how it is done
    return x
    # and a word after it


def documented(x: "math") -> int:
    """Say."""

    return helper(x)


def helper(x):
    return math.sqrt(x)


class Pair:
    """Two."""

    size = 2

    def __init__(self):
        self.a = helper(1)

    def first(self, é="é", key: "int" = helper(4)):
        """One."""
        return é, helper(self.a)  # trailing

    # between

    def second(self):
        return Pair()


def only_docs():
    """Nothing."""


def one_line(x): return x
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A project whose own lmcore has one module, ``one``."""
    (tmp_path / "_config.yml").write_text("")
    (tmp_path / "lmcore").mkdir()
    (tmp_path / "lmcore/one.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return MODULE


def test_blanking_takes_bodies_and_nothing_else(module):
    graded = [
        Graded("one.plain"),
        Graded("one.documented"),
        Graded("one.Pair", ("__init__",)),
    ]
    blank = bodies.blank(module, graded)
    ast.parse(blank)
    for gone in (
        "how it is done",
        "a word after",
        "return helper",
        "trailing",
        "Pair()",
    ):
        assert gone not in blank
    for kept in (
        '"""Say."""',
        "size = 2",
        "helper(1)",
        '"""One."""',
        "# between",
        "math.sqrt",
    ):
        assert kept in blank
    assert blank.count("raise NotImplementedError") == 4
    assert "Pair.first is yours to write" in blank


def test_names_of_the_module_are_written_with_it(module):
    bound = {"one", "implements", "math"}
    cell = bodies.as_solution(Graded("one.Pair", ("__init__",)), bound)
    assert cell.startswith("@implements(one)\nclass Pair:")
    assert 'def first(self, é="é", key: "int" = one.helper(4)):' in cell
    assert "        ### BEGIN SOLUTION\n        return é, one.helper(self.a)" in cell
    assert cell.count(text.BEGIN_SOLUTION) == cell.count(text.END_SOLUTION) == 2
    assert "return Pair()" in cell
    assert "self.a = one.helper(1)" in cell


@pytest.mark.parametrize(
    ("graded", "bound", "message"),
    [
        (Graded("one.nothing"), {"one", "implements"}, "no function or class nothing"),
        (Graded("two.plain"), {"two", "implements"}, "no module two"),
        (Graded("one.plain"), {"implements"}, "must import one"),
        (Graded("one.plain"), {"one"}, "must import implements"),
        (Graded("one.helper"), {"one", "implements"}, "uses math: import it"),
        (Graded("one.only_docs"), {"one", "implements"}, "only a docstring"),
        (Graded("one.one_line"), {"one", "implements"}, "on one line"),
        (Graded("one.Pair", ("third",)), {"one", "implements"}, "no method third"),
        (
            Graded("one.Pair", ("__init__", "first", "second")),
            {"one", "implements"},
            "no method left",
        ),
    ],
)
def test_what_cannot_be_taken_from_lmcore_is_refused(module, graded, bound, message):
    with pytest.raises(homework.SourceError, match=message):
        bodies.as_solution(graded, bound)


# What authors get wrong


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("given: setup", "giver: setup", r"cell 2: a code cell must state one of"),
        ("given: setup", "given: Über", "letters, digits"),
        ("given: setup", "given: setup\nexercise: b", "must state one of"),
        ("points: 3\n", "", r"\(exercise prefix_mask\): points is missing"),
        ("points: 3", "points: -3", "points is -3, expected a positive number"),
        ("points: 3", "points: many", "points is 'many'"),
        ("difficulty: 2", "difficulty: 7", "difficulty is 1, 2 or 3"),
        ("minutes: 10", "minuets: 10", "unknown key 'minuets'"),
        ('hints: ["Add."]', "hints: Add.", "hints must be a list"),
        ('hints: ["Add."]', "hints: []", "hints is missing"),
        ("forbidden: [torch.tril]", "limits: {time: 3}", "limits may state seconds"),
        ("forbidden: [torch.tril]", "limits: {seconds: -3}", "seconds is -3, expected"),
        ("forbidden: [torch.tril]", "limits: {memory_mb: all}", "memory_mb is 'all'"),
        ("forbidden: [torch.tril]", "limits: {device: tpu}", "one of cpu, cuda"),
        ("exercise: double", "exercise: prefix_mask", "two exercises of this name"),
        ("checks: double", "checks: triple", "no exercise triple above these checks"),
        ("points: 0.5", "points: 0.25", "give 0.75 points, it states 1"),
        ("section: twice", "section: twice\nimplements: attention.f", "must be empty"),
        ("implements: attention.prefix_mask\n", "", "neither implements nor a body"),
        ("    ### END SOLUTION\n", "", "### BEGIN SOLUTION without ### END SOLUTION"),
        ("### END HIDDEN TESTS\n", "", "### BEGIN HIDDEN TESTS without"),
        ("### BEGIN HIDDEN TESTS\n", "", "do not come in pairs"),
        ("### BEGIN HIDDEN TESTS", "# BEGIN HIDDEN TEST", "do not come in pairs"),
        ("### BEGIN HIDDEN TESTS", "## BEGIN HIDDEN TESTS", "must read"),
        ("### END HIDDEN TESTS\n", "### END HIDDEN TESTS\ncheck(1)\n", "cell's end"),
        ("AUTOTEST double(4)", "AUTOTEST double(4); 3", "no semicolon"),
        ("AUTOTEST double(4)", "AUTOTEST double(4", "not an expression"),
        ("AUTOTEST double(4)", "AUTOTEST double(4), 3", "one expression"),
        ("AUTOTEST double(4)", "AUTOTEST double(4), points=3", "one expression"),
        ("### AUTOTEST double(4)", "  ### AUTOTEST double(4)", "must start with"),
        ("### AUTOTEST double(4)", "double(4)", "there is no check in it"),
        ("### AUTOTEST double(4)", "check(1\n", "not Python, line 1"),
        ('{"written": "why"', '{"written": "why", "section": "x"', "unknown key"),
        ('"points": 2, ', "", "points is missing"),
        ("## Who may look?\n\nOnly backwards.\n", "", "prefix_mask has no text"),
    ],
)
def test_a_bad_source_is_refused_with_file_and_cell(tmp_path, old, new, message):
    assert old in TINY
    path = tmp_path / "01_tiny.md"
    path.write_text(TINY.replace(old, new, 1))
    if old.startswith("## Who"):
        path.write_text(TINY.replace(old, "").replace("# A tiny unit\n", ""))
    with pytest.raises(homework.SourceError, match=message) as caught:
        source.read_file(path)
    assert str(caught.value).startswith("solutions/01_tiny.md")


def test_an_exercise_without_checks_is_refused(tmp_path):
    path = tmp_path / "01_tiny.md"
    head, _, tail = TINY.partition("```{code-cell} ipython3\n---\nchecks: prefix_mask")
    path.write_text(head + tail.partition("```\n")[2])
    with pytest.raises(homework.SourceError, match="prefix_mask has no checks"):
        source.read_file(path)


BAD_ON_THE_REFERENCE = [
    ("return x + x", "return unknown", "NameError: name 'unknown'"),
    ("import torch\n", "import torch\n1 / 0\n", "ZeroDivisionError"),
    ("at_most=2", "at_most=1", "fails its own check 'a bound'"),
    ("double(4)", "double", "type function"),
]


@pytest.mark.parametrize(("old", "new", "message"), BAD_ON_THE_REFERENCE)
def test_what_fails_on_the_reference_is_refused_with_its_cell(
    inside, tmp_path, monkeypatch, old, new, message
):
    monkeypatch.setattr(lmcore.homework.checks, "_world", None)
    monkeypatch.setattr(attention, "prefix_mask", attention.prefix_mask)
    path = tmp_path / "01_tiny.md"
    path.write_text(TINY.replace(old, new, 1))
    plan = source.read_file(path)
    work = reference.work_for(plan, notebooks.completed(plan))
    with pytest.raises(homework.SourceError, match=message) as caught:
        reference._Run(work).everything()
    assert str(caught.value).startswith("solutions/01_tiny.md, cell")


def test_the_reference_says_from_its_own_process_what_fails(inside, tmp_path):
    path = tmp_path / "01_tiny.md"
    path.write_text(TINY.replace("import torch\n", "import torch\n1 / 0\n"))
    plan = source.read_file(path)
    with pytest.raises(homework.SourceError, match=r"cell 2 .*ZeroDivisionError"):
        reference.run(plan, notebooks.completed(plan))


def test_a_function_that_lmcore_lacks_is_refused(inside, tmp_path):
    path = tmp_path / "01_tiny.md"
    path.write_text(TINY.replace("attention.prefix_mask\n", "attention.prefix\n", 1))
    with pytest.raises(homework.SourceError, match="no function or class prefix"):
        notebooks.completed(source.read_file(path))


# The book's answer ladder, and what a teacher decides


def test_the_ladder_shows_solutions_from_the_day_after(inside):
    before, after = (
        homework.ladder("01_tiny", today=datetime.date(2020, *day))
        for day in ((1, 31), (2, 1))
    )
    assert [step.solution for step in before] == [None, None, None]
    first, second, third = after
    assert first.solution.startswith("def prefix_mask(")
    assert "in_prefix" in first.solution
    assert second.solution == 'def double(x):\n    """Twice x."""\n    return x + x'
    assert third.solution == "The secret model answer."
    assert first.text == "Only backwards."
    assert second.text == "Without a heading."
    assert (first.hints, first.sketch) == (
        ["Read row 0 aloud.", "Then the last row."],
        "Compare positions.",
    )
    assert first.label.startswith("**3 points** · about 10 minutes")


@pytest.mark.parametrize(
    ("text_", "message"),
    [
        ("solutions: maybe", "solutions is 'maybe', expected after-due, never, always"),
        ("units: [a]", "units must be lines"),
        ("units: {a: {due: soon}}", "a is due 'soon', expected year-month-day"),
        ("units: {a: {dew: 2020-01-01}}", "may state only due"),
        ("solution: never", "unknown 'solution'"),
        ("{", "not readable"),
        ("- a", "keys and values"),
    ],
)
def test_a_bad_course_file_is_refused(tmp_path, monkeypatch, text_, message):
    (tmp_path / "_config.yml").write_text("")
    (tmp_path / "course.yml").write_text(text_)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CourseError, match=message):
        course.load()


def test_without_a_course_file_nothing_is_shown(tmp_path, monkeypatch):
    (tmp_path / "_config.yml").write_text("")
    monkeypatch.chdir(tmp_path)
    assert not course.load().shows_solutions("01_tiny")
    assert course.Course("always").shows_solutions("01_tiny")


def test_outside_a_project_one_is_told_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CourseError, match=r"no _config\.yml"):
        paths.root()
    with pytest.raises(AttributeError):
        paths.NOWHERE  # noqa: B018


# The real homework

UNITS = sorted(path.stem for path in (PROJECT / "solutions").glob("*.md"))


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS)
def test_what_is_committed_is_what_the_sources_give(unit, monkeypatch):
    monkeypatch.chdir(PROJECT)
    assert homework.check_released(unit) == []


@pytest.mark.parametrize("unit", UNITS)
def test_every_section_that_an_exercise_names_is_in_the_chapter(unit):
    chapter = (PROJECT / "book" / f"{unit}.md").read_text()
    for exercise in source.read_file(
        PROJECT / f"solutions/{unit}.md"
    ).exercises.values():
        if not exercise.written:
            label = f"({unit[:2]}-{exercise.section})="
            assert label in chapter, exercise.id


@pytest.mark.parametrize("unit", UNITS)
def test_no_graded_line_is_left_in_the_blank_library(unit, tmp_path, monkeypatch):
    monkeypatch.chdir(PROJECT)
    package = homework.blank_lmcore(tmp_path, [unit])
    blank = {p: p.read_text(encoding="utf-8") for p in package.rglob("*.py")}
    for graded in notebooks.all_graded(source.read(unit)):
        whole = bodies.read_module(graded.module)
        lines = whole.splitlines()
        node = bodies.definition(ast.parse(whole), graded)
        own = blank[package / f"{graded.module}.py"]
        for _, function in bodies.bodies(node, graded):
            first, last = bodies.body_lines(function, lines)
            body = "\n".join(lines[first - 1 : last])
            assert body not in own
            assert not any(body in content for content in blank.values())

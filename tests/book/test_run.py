"""What a page says about its own run: the hidden cell, work labels, freshness."""

import json
import re
from pathlib import Path

import pytest

from lmcourse import run_record
from lmcourse.sphinx_ext import run

HEAD = "---\nfile_format: mystnb\nkernelspec: {name: python3}\n---\n"
CELL = "```{code-cell} ipython3\n1 + 1\n```\n"


def test_the_record_says_when_on_what_and_for_how_much():
    record = run_record.measure()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", record["date"])
    assert record["torch"][0].isdigit()
    assert "+" not in record["torch"]  # 2.13.0, not 2.13.0+cpu
    assert record["device"]
    assert 0 < record["cpu_seconds"] < 36_000
    assert 50 < record["peak_mb"] < 100_000
    json.dumps(record)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose library has modules and a package with a front end."""
    files = {
        "lmcore/__init__.py": "",
        "lmcore/attention.py": "import math\n",
        "lmcore/model.py": "from . import attention\n",
        "lmcore/other.py": "",
        "lmcore/widgets/__init__.py": "from .explorer import Explorer\n",
        "lmcore/widgets/explorer.py": "from lmcore.attention import mask\n",
        "lmcore/widgets/explorer.js": "",
        "lmcore/lmbh.mplstyle": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "book").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("code", "used"),
    [
        ("import math", set()),
        ("import lmcore", {"__init__.py"}),
        ("from lmcore import attention", {"__init__.py", "attention.py"}),
        ("import lmcore.attention as a", {"__init__.py", "attention.py"}),
        ("from lmcore.attention import mask", {"__init__.py", "attention.py"}),
        ("from lmcore import model", {"__init__.py", "attention.py", "model.py"}),
        ("def f():\n    from lmcore import other", {"__init__.py", "other.py"}),
        ("%matplotlib inline\nimport lmcore.other", {"__init__.py", "other.py"}),
        (
            "from lmcore.widgets import Explorer",
            {
                "__init__.py",
                "attention.py",
                "widgets/__init__.py",
                "widgets/explorer.py",
                "widgets/explorer.js",
            },
        ),
    ],
)
def test_a_page_depends_on_the_parts_of_the_library_it_uses(project, code, used):
    found = run._used_files([code], project / "book")
    names = {path.relative_to(project / "lmcore").as_posix() for path in found}
    assert names == used | {"lmbh.mplstyle"}


def test_a_change_in_the_library_changes_the_hidden_cell(small_book, tmp_path):
    (tmp_path / "lmcore").mkdir()
    module = tmp_path / "lmcore" / "attention.py"
    text = (
        HEAD + "# Title\n\n```{code-cell} ipython3\nfrom lmcore import attention\n```\n"
    )

    def hidden_cell() -> str:
        seen = []

        def listen(app):
            app.connect(
                "source-read", lambda _a, _d, s: seen.append(s[0]), priority=900
            )

        small_book({"index.md": text}, listen=listen, nb_execution_mode="cache")
        return seen[-1].removeprefix(text)

    module.write_text("a = 1\n")
    first, again = hidden_cell(), hidden_cell()
    module.write_text("a = 2\n")
    changed = hidden_cell()
    assert first == again != changed
    assert "run_record.show()" in first
    assert ":tags: [remove-cell]" in first


def minutes(made) -> int:
    label = made.page().select_one(".lm-labels .lm-read").get_text()
    return int(re.fullmatch(r"(\d+) min to read", label)[1])


def page(*parts: str, difficulty: str = "2") -> dict[str, str]:
    label = f"```{{work}}\n:difficulty: {difficulty}\n```\n"
    return {"index.md": "\n\n".join([f"{HEAD}# Title", label, *parts])}


def test_minutes_to_read_grow_with_words_cells_formulas_and_quizzes(small_book):
    words = "word " * 199
    assert minutes(small_book(page(words))) == 1
    assert minutes(small_book(page(words, words, words))) == 3
    assert minutes(small_book(page(words, "字" * 600))) == 3
    assert minutes(small_book(page(words, *[CELL] * 4))) == 3
    assert minutes(small_book(page(words, *["$$ a $$"] * 10))) == 3
    listing = f"```python\n{words}\n```"  # code is not read word by word
    assert minutes(small_book(page(words, listing))) == 1


def test_labels_state_only_what_was_measured(small_book):
    made = small_book(page("Some words."))
    labels = made.page().select_one(".lm-labels").get_text(" ")
    assert "moderate" in labels
    assert "CPU" not in labels
    assert made.warnings == ""


@pytest.mark.parametrize("difficulty", ["0", "4"])
def test_an_unknown_difficulty_is_a_warning(small_book, difficulty):
    warnings = small_book(page("Words.", difficulty=difficulty)).warnings
    assert "index.md:" in warnings
    assert "difficulty" in warnings

"""The quiz directive: what it makes of a question, and what it refuses."""

import pytest

GOOD = """# Title

```{quiz} why-three
Why a **key** besides the value $v$?

Look at this:

$$ a = b $$

- [ ] To *save* memory.

  It costs memory.
- [x] It is matched, not passed on.

  The key is matched.

  The value is passed on.
```
"""


def test_every_choice_has_its_radio_button_label_and_reason(small_book):
    made = small_book({"index.md": GOOD})
    assert made.warnings == ""
    form = made.page().select_one("form.lm-quiz")
    assert form["data-quiz"] == "why-three"
    radios = form.select("fieldset input[type=radio]")
    assert [radio["value"] for radio in radios] == ["0", "1"]
    assert len({radio["name"] for radio in radios}) == 1
    choices = form.select(".lm-quiz-choice")
    assert [choice["data-right"] for choice in choices] == ["false", "true"]
    assert "To save memory." in choices[0].select_one("label").get_text()
    assert choices[0].select_one("label em").get_text() == "save"
    reasons = [choice.select_one("details").get_text(" ") for choice in choices]
    assert "Not this one" in reasons[0]
    assert "It costs memory." in reasons[0]
    assert "Right" in reasons[1]
    assert "The value is passed on." in reasons[1]


def test_the_question_is_the_legend_and_may_go_on(small_book):
    form = small_book({"index.md": GOOD}).page().select_one("form.lm-quiz")
    legend = form.select_one("fieldset > legend")
    assert "Why a key besides the value" in legend.get_text()
    assert legend.select_one("p, div") is None  # a legend holds phrases only
    more = form.select_one(".lm-quiz-question")
    assert "Look at this:" in more.get_text()
    assert more.select_one("div.math") is not None


def test_no_box_is_left_in_the_text(small_book):
    text = small_book({"index.md": GOOD}).page().select_one("form.lm-quiz").get_text()
    assert "[x]" not in text
    assert "[ ]" not in text


def test_its_prose_can_be_translated(small_book, tmp_path):
    small_book({"index.md": GOOD})
    locale = tmp_path / "locale" / "zh_CN" / "LC_MESSAGES"
    locale.mkdir(parents=True)
    (locale / "index.po").write_text(
        'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n\n'
        'msgid "To *save* memory."\nmsgstr "为了*省*内存。"\n\n'
        'msgid "It costs memory."\nmsgstr "它更费内存。"\n\n'
        'msgid "Why a **key** besides the value $v$?"\nmsgstr "为什么要**键**？"\n',
        "utf8",
    )
    where = {"language": "zh_CN", "locale_dirs": [str(tmp_path / "locale")]}
    form = small_book({"index.md": GOOD}, **where).page().select_one("form.lm-quiz")
    assert "为什么要键" in form.select_one("legend").get_text()
    choice = form.select_one(".lm-quiz-choice")
    assert "为了省内存。" in choice.select_one("label").get_text()
    assert "它更费内存。" in choice.select_one("details").get_text()


def quiz(body: str, name: str = "q") -> str:
    return f"# Title\n\nSome words.\n\n```{{quiz}} {name}\n{body}\n```\n"


TWO_RIGHT = "Which?\n\n- [x] one\n\n  yes\n- [x] two\n\n  yes"
NONE_RIGHT = "Which?\n\n- [ ] one\n\n  no\n- [ ] two\n\n  no"
NO_REASON = "Which?\n\n- [x] one\n\n  yes\n- [ ] two"
NO_BOX = "Which?\n\n- [x] one\n\n  yes\n- two\n\n  no"
NO_QUESTION = "- [x] one\n\n  yes\n- [ ] two\n\n  no"
NO_CHOICES = "Which?\n\nReally?"
FINE = "Which?\n\n- [x] one\n\n  yes\n- [ ] two\n\n  no"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (quiz(TWO_RIGHT), 5, "2 choices are marked right"),
        (quiz(NONE_RIGHT), 5, "0 choices are marked right"),
        (quiz(NO_REASON), 11, "choice 2 ('two') has no explanation"),
        (quiz(NO_BOX), 11, "choice 2 does not begin with [ ] or [x]"),
        (quiz(NO_QUESTION), 5, "the question is missing"),
        (quiz(NO_CHOICES), 5, "one list of choices"),
        (quiz(FINE, "Two_Words"), 5, "is no name"),
        (quiz(FINE) + quiz(FINE)[8:], 18, "two quizzes named 'q'"),
    ],
)
def test_a_mistake_is_a_warning_with_file_and_line(small_book, text, line, message):
    warnings = small_book({"index.md": text}).warnings
    assert message in warnings
    assert f"index.md:{line}:" in warnings
    assert warnings.count("WARNING") == 1

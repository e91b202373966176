"""Known wrong answers: how they are declared, read, and put in place."""

import pytest

from lmcore import attention
from lmcourse import mistakes

FILE = """
from lmcourse.mistakes import mistake, variant
from lmcore import attention


@mistake("attention.causal_mask", says="You turned it round.")
@mistake("mine", says="Not yours.")
def upside_down(n_queries, n_keys=None, device=None):
    return None


@variant("attention.causal_mask")
def with_tril(n_queries, n_keys=None, device=None):
    return None


@mistake("attention.MultiHeadAttention", says="No heads.")
class OneHead(attention.MultiHeadAttention):
    pass


class Child(OneHead):
    pass
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "08_attention.py"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_mistakes_and_variants_are_read_in_order(write):
    found = mistakes.load_file(write(FILE.replace('@mistake("mine", says="Not', "#")))
    assert [known.name for known in found.mistakes] == ["upside_down", "OneHead"]
    assert found.mistakes[0].target == "attention.causal_mask"
    assert found.mistakes[0].says == "You turned it round."
    assert [known.name for known in found.variants] == ["with_tril"]


def test_two_answers_of_one_name_are_refused(write):
    with pytest.raises(ValueError, match="two answers are called upside_down"):
        mistakes.load_file(write(FILE))


def test_a_unit_without_mistakes_has_none(tmp_path):
    assert mistakes.load_file(tmp_path / "nowhere.py") == mistakes.UnitMistakes()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("attention.causal_mask", "attention.casual_mask", "does not have"),
        ("attention.causal_mask", "magic.causal_mask", "does not have"),
        ("attention.MultiHeadAttention", "attention.causal_mask", "must be a function"),
        ("You turned it round.", " ", "must say"),
    ],
)
def test_what_cannot_be_is_refused(write, old, new, message):
    text = FILE.replace('@mistake("mine", says="Not yours.")\n', "")
    with pytest.raises(ValueError, match=message):
        mistakes.load_file(write(text.replace(f'"{old}"', f'"{new}"')))


def test_a_mistake_stands_in_everywhere_and_goes_again():
    original = attention.causal_mask
    known = mistakes.Known("wrong", "attention.causal_mask", "no", lambda n: n)
    namespace = {"causal_mask": original}
    with mistakes.in_place(known, namespace):
        assert attention.causal_mask is known.obj
        assert namespace["causal_mask"] is known.obj
    assert attention.causal_mask is original
    assert namespace == {"causal_mask": original}


def test_an_error_leaves_nothing_behind():
    original = attention.causal_mask
    known = mistakes.Known("wrong", "attention.causal_mask", "no", lambda n: n)

    def fail():
        with mistakes.in_place(known, {}):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert attention.causal_mask is original


def test_a_name_of_the_notebook_is_replaced_there_alone():
    known = mistakes.Known("wrong", "by_hand", "no", len)
    namespace = {"by_hand": print}
    with mistakes.in_place(known, namespace):
        assert namespace["by_hand"] is len
    with (
        pytest.raises(ValueError, match="neither"),
        mistakes.in_place(known, {}),
    ):
        pass

"""Tests of lmcore.prompt: by hand, as properties, at the edges."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore import prompt
from lmcore.prompt import Shot

# --- Prompts ------------------------------------------------------------------------


def test_prompt_by_hand():
    text = prompt.few_shot_prompt(
        " 5 + 6? ",
        [Shot("1 + 1?", "2"), ("2 + 3?", " 5 ")],
        instruction="Add the numbers.\n",
        question_label="Question:",
        answer_label="Answer: ",
    )
    assert text == (
        "Add the numbers.\n\n"
        "Question: 1 + 1?\nAnswer: 2\n\n"
        "Question: 2 + 3?\nAnswer: 5\n\n"
        "Question: 5 + 6?\nAnswer:"
    )


def test_zero_shots():
    assert prompt.few_shot_prompt("Why?") == "Q: Why?\nA:"
    assert prompt.few_shot_prompt("Why?", instruction="Say.") == "Say.\n\nQ: Why?\nA:"


def test_chain_of_thought_shows_the_way():
    shot = Shot("2 + 2 · 3?", "8", reasoning="2 · 3 = 6. ")
    text = prompt.few_shot_prompt("1 + 1?", [shot])
    assert "A: 2 · 3 = 6. The answer is 8.\n" in text
    assert prompt.final_answer(shot.reply) == "8"


@given(
    questions=st.lists(st.text("abc", min_size=1), min_size=1, max_size=5, unique=True)
)
def test_prompt_holds_all_in_order(questions):
    *asked, query = questions
    text = prompt.few_shot_prompt(query, [(q, f"<{q}>") for q in asked])
    blocks = [f"Q: {q}\nA: <{q}>" for q in asked] + [f"Q: {query}\nA:"]
    assert text == "\n\n".join(blocks)
    assert not text[-1].isspace()


# --- Answers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is 7.", "7"),
        ("the answer is: 3.5.", "3.5"),
        ("The answer is 4. No: the ANSWER IS 5", "5"),
        ("The answer is King Lear. He divides it.", "King Lear"),
        ("2 + 2 is 4.", "4"),
        ("so 1,250 euros", "1250"),
        ("The answer is 12,345,678.", "12345678"),
        ("it falls to -3.25 degrees", "-3.25"),
        ("7-3", "3"),
        ("1, 2, 3, and no more", "3"),
        ("The answer is\n9", "9"),
        ("I do not know", None),
        ("", None),
    ],
)
def test_final_answer_by_hand(text, answer):
    assert prompt.final_answer(text) == answer


@given(number=st.integers(-(10**9), 10**9))
def test_numbers_with_and_without_commas(number):
    assert prompt.final_answer(f"so {number:,}.") == str(number)
    assert prompt.final_answer(f"The answer is {number}.") == str(number)


# --- Votes --------------------------------------------------------------------------


def test_vote_is_on_answers_not_texts():
    vote = prompt.self_consistency(["5", "2 + 2 makes 4", "so 4.", "who knows"])
    assert vote == prompt.Vote("4", 0.5, {"5": 1, "4": 2})


def test_first_of_equals_wins():
    assert prompt.self_consistency(["5", "4"]).answer == "5"
    assert prompt.self_consistency(["4", "5"]).answer == "4"
    assert prompt.self_consistency(["4", "5", "5", "4"]).answer == "4"


def test_no_answer_at_all():
    assert prompt.self_consistency(["hm", "?"]) == prompt.Vote(None, 0.0, {})


def test_own_reader():
    vote = prompt.self_consistency(["yes, 3", "Yes, 4", "no"], lambda t: t[:2].lower())
    assert vote.answer == "ye"
    assert vote.share == pytest.approx(2 / 3)


@given(answers=st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_winner_has_most_votes(answers):
    vote = prompt.self_consistency([f"= {answer}" for answer in answers])
    assert vote.counts == {str(a): answers.count(a) for a in answers}
    assert vote.counts[vote.answer] == max(vote.counts.values())
    assert vote.share == max(vote.counts.values()) / len(answers)


# --- Refusals -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "values"),
    [
        (lambda: prompt.few_shot_prompt(" "), ["query"]),
        (lambda: prompt.few_shot_prompt("Why  me?", [("why me?", "x")]), ["shots[0]"]),
        (lambda: prompt.few_shot_prompt("a", [("b", "")]), ["answer=''"]),
        (lambda: Shot(" ", "x"), ["question=' '"]),
        (lambda: prompt.self_consistency([]), ["0 texts"]),
    ],
)
def test_refusal_names_the_values(call, values):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call()
    for value in values:
        assert re.search(re.escape(value), str(caught.value)), str(caught.value)

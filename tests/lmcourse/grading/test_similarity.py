"""Likeness of submissions: what is told, and what is not."""

import random

from lmcourse.grading import similarity

GIVEN = ["def average(x):\n    return x.sum(-1) / x.shape[-1]"]


def essay(seed: int, n: int = 12) -> str:
    chance = random.Random(seed)
    words = [f"word{i}" for i in range(400)]
    return "\n".join(" ".join(chance.choices(words, k=6)) for _ in range(n))


def test_a_copy_with_small_changes_is_found_and_others_are_not():
    answers = {name: [essay(i)] for i, name in enumerate("abcdefgh")}
    answers["copy"] = [essay(0).replace("word17", "another")]
    (group,) = similarity.find(answers)
    assert group.students == ["a", "copy"]
    assert 80 <= group.percent <= 100
    assert group.lines >= similarity.MIN_SHARED


def test_identical_work_is_one_group_whatever_its_size():
    answers = {f"student{i:02}": [essay(1)] for i in range(40)}
    answers["other"] = [essay(2)]
    (group,) = similarity.find(answers)
    assert len(group.students) == 40
    assert group.percent == 100


def test_what_was_given_or_is_common_says_nothing():
    answers = {f"s{i}": [GIVEN[0], essay(i, n=1)] for i in range(20)}
    assert similarity.find(answers, GIVEN) == []
    usual = essay(99)
    answers = {f"s{i}": [usual, essay(i, n=2)] for i in range(20)}
    assert similarity.find(answers) == []


def test_spaces_do_not_hide_a_copy():
    answers = {"a": [essay(3)], "b": ["  " + essay(3).replace(" ", "   ")]}
    (group,) = similarity.find(answers)
    assert (group.students, group.percent) == (["a", "b"], 100)


def test_empty_answers_are_not_alike():
    assert similarity.find({"a": [], "b": [], "c": [""], "d": ["x = 1"]}) == []


def test_a_large_class_needs_few_comparisons(monkeypatch):
    compared = []
    ratio = similarity.fuzz.ratio
    monkeypatch.setattr(
        similarity.fuzz, "ratio", lambda *texts: compared.append(1) or ratio(*texts)
    )
    answers = {f"s{i}": [essay(i)] for i in range(2000)}
    answers["copy"] = [essay(7) + "\nand one line more than before"]
    (group,) = similarity.find(answers)
    assert group.students == ["copy", "s7"]
    assert len(compared) < 10

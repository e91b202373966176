"""Tests of lmcore.evaluate: by hand, against sacrebleu and rouge_score, brute force."""

import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU

from lmcore import evaluate

texts = st.lists(st.sampled_from("abcd"), max_size=9)
filled = st.lists(st.sampled_from("abcd"), min_size=1, max_size=9)


# --- Right or wrong -----------------------------------------------------------------


def test_words_by_hand():
    assert evaluate.words("It's 5 o'clock—GO_on!") == [
        "it",
        "s",
        "5",
        "o",
        "clock",
        "go",
        "on",
    ]
    assert evaluate.words("Élan, naïve") == ["élan", "naïve"]
    assert evaluate.words(" ?! ") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Black.", "black"),
        ("The  old\tman and a sea", "old man and sea"),
        ("A", "a"),
        ("the An", "the an"),
        ("theatre", "theatre"),
        ("“Yes”，没错。", "yes没错"),
        ("$5", "5"),
        ("...", ""),
        ("cafe\u0301", "caf\u00e9"),
    ],
)
def test_normalize_by_hand(text, expected):
    assert evaluate.normalize_answer(text) == expected
    assert evaluate.normalize_answer(expected) == expected


@pytest.mark.parametrize(
    ("prediction", "accepted", "right"),
    [
        ("Black.", ["black"], 1),
        ("A", ["A"], 1),
        ("B", ["A"], 0),
        ("the prince", ["king", "Prince"], 1),
        ("prince hamlet", ["prince"], 0),
        ("", ["A"], 0),
        ("", [""], 1),
    ],
)
def test_exact_match_by_hand(prediction, accepted, right):
    assert evaluate.exact_match([prediction], [accepted]) == right


def test_exact_match_is_a_mean():
    share = evaluate.exact_match(["a b", "c", "d"], [["b"], ["x"], ["y", "D"]])
    assert share == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("prediction", "accepted", "f1"),
    [
        ("the old king Lear", ["King Lear"], 2 * (2 / 3) * 1 / (2 / 3 + 1)),
        ("x y", ["x x z z", "q"], 2 * (1 / 2) * (1 / 4) / (1 / 2 + 1 / 4)),
        ("x", ["y", "x"], 1.0),
        ("", [""], 1.0),
        ("", ["x"], 0.0),
        ("x", ["y"], 0.0),
    ],
)
def test_word_f1_by_hand(prediction, accepted, f1):
    assert evaluate.word_f1([prediction], [accepted]) == pytest.approx(f1)


@given(a=texts, b=texts)
def test_word_f1_is_symmetric_and_exact_match_its_peak(a, b):
    a, b = " ".join(a), " ".join(b)
    f1 = evaluate.word_f1([a], [[b]])
    assert f1 == evaluate.word_f1([b], [[a]])
    assert 0 <= evaluate.exact_match([a], [[b]]) <= f1 <= 1


# --- BLEU ---------------------------------------------------------------------------


def test_bleu_by_hand():
    """Clipped: "the" counts twice of three times, and no pair but "the cat" matches."""
    candidate, reference = (
        ["the", "the", "the", "cat"],
        ["the", "cat", "is", "on", "the", "mat"],
    )
    score = evaluate.bleu([candidate], [[reference]], max_order=2)
    assert score == pytest.approx(math.exp(1 - 6 / 4) * math.sqrt(3 / 4 * 1 / 3))


def test_brevity_penalty_by_hand():
    """Five words for seven: exp(1 - 7/5) = .6703; seven for five cost precision."""
    seven = list("abcdefg")
    assert evaluate.bleu([seven[:5]], [[seven]]) == pytest.approx(0.6703, abs=1e-4)
    long = evaluate.bleu([seven], [[seven[:5]]])
    assert long == pytest.approx((5 / 7 * 4 / 6 * 3 / 5 * 2 / 4) ** 0.25)


def test_length_is_the_nearest_references():
    """Candidate 4, references 1 and 5: r = 5; references 3 and 5: r = 3."""
    four = list("abcd")
    score = evaluate.bleu([four], [[["a"], list("abcde")]])
    assert score == pytest.approx(math.exp(1 - 5 / 4))
    assert evaluate.bleu([four], [[list("abc"), list("abcde")]]) == pytest.approx(1.0)


@pytest.mark.parametrize("n_words", [1, 3, 4, 6])
def test_perfect_translation_gets_one(n_words):
    text = list("abcdef")[:n_words]
    assert evaluate.bleu([text], [[text]]) == 1.0


@given(
    corpus=st.lists(
        st.tuples(texts, st.lists(filled, min_size=2, max_size=2)),
        min_size=1,
        max_size=3,
    ),
    smooth=st.booleans(),
    max_order=st.integers(1, 5),
)
def test_bleu_equals_sacrebleu(corpus, smooth, max_order):
    candidates = [candidate for candidate, _ in corpus]
    references = [reference for _, reference in corpus]
    oracle = BLEU(
        tokenize="none",
        smooth_method="exp" if smooth else "none",
        effective_order=True,
        max_ngram_order=max_order,
    )
    streams = [[" ".join(each[i]) for each in references] for i in range(2)]
    joined = [" ".join(candidate) for candidate in candidates]
    expected = oracle.corpus_score(joined, streams).score / 100
    ours = evaluate.bleu(candidates, references, max_order, smooth=smooth)
    assert ours == pytest.approx(expected, abs=1e-10)
    assert 0 <= ours <= 1 + 1e-12


def test_corpus_is_not_the_mean_of_sentences():
    candidates, references = [list("ab"), list("abcdefgh")], [[list("ax")], []]
    references[1] = [list("abcdefgh")]
    both = evaluate.bleu(candidates, references, max_order=1)
    assert both == pytest.approx(9 / 10)


# --- ROUGE-L ------------------------------------------------------------------------


def longest_by_brute_force(a, b):
    def subsequences(text):
        return {
            chosen
            for n in range(len(text) + 1)
            for chosen in itertools.combinations(text, n)
        }

    return max(map(len, subsequences(a) & subsequences(b)))


@given(a=texts, b=texts)
def test_longest_common_subsequence_equals_brute_force(a, b):
    length = evaluate.longest_common_subsequence(a, b)
    assert length == longest_by_brute_force(a, b)
    assert evaluate.longest_common_subsequence(a, a) == len(a)


def test_rouge_by_hand():
    """Threads may have gaps: 3 of 4 and 3 of 5; β = 1/2 leans on precision."""
    candidate, reference = list("abcx"), list("aybzc")
    score = evaluate.rouge_l(candidate, reference, beta=0.5)
    assert (score.precision, score.recall) == (0.75, 0.6)
    assert score.f == pytest.approx(0.7143, abs=1e-4)
    twice = evaluate.rouge_l(candidate, reference, beta=2.0)
    assert twice.f == pytest.approx(5 * 0.75 * 0.6 / (0.6 + 4 * 0.75))


@given(a=texts, b=texts)
def test_rouge_equals_rouge_score(a, b):
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    expected = scorer.score(" ".join(b), " ".join(a))["rougeL"]
    score = evaluate.rouge_l(a, b)
    assert score.precision == pytest.approx(expected.precision)
    assert score.recall == pytest.approx(expected.recall)
    assert score.f == pytest.approx(expected.fmeasure)


def test_rouge_of_nothing():
    nothing = evaluate.Overlap(0.0, 0.0, 0.0)
    assert evaluate.rouge_l([], []) == nothing
    assert evaluate.rouge_l(["a"], []) == nothing
    assert evaluate.rouge_l(["a"], ["b"]) == nothing


# --- pass@k -------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_equals_brute_force(n):
    """Every choice of k of the n samples, for all c and k."""
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        choices = list(itertools.combinations([True] * c + [False] * (n - c), k))
        expected = sum(map(any, choices)) / len(choices)
        assert evaluate.pass_at_k(n, c, k) == pytest.approx(expected)


def test_pass_at_k_at_the_ends():
    assert evaluate.pass_at_k(5, 0, 5) == 0
    assert evaluate.pass_at_k(5, 1, 5) == 1
    assert evaluate.pass_at_k(10_000, 1, 1) == pytest.approx(1e-4)
    assert 0 < evaluate.pass_at_k(200, 3, 100) < 1


# --- Refusals -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "values"),
    [
        (lambda: evaluate.exact_match(["a"], []), ValueError, ["1", "0"]),
        (lambda: evaluate.exact_match([], []), ValueError, ["0 answers"]),
        (lambda: evaluate.exact_match(["a"], [[]]), ValueError, ["references[0]"]),
        (lambda: evaluate.exact_match(["a"], ["right"]), TypeError, ["'right'"]),
        (lambda: evaluate.exact_match("a", [["a"]]), TypeError, ["string"]),
        (lambda: evaluate.word_f1(["a"], ["right"]), TypeError, ["'right'"]),
        (lambda: evaluate.bleu(["a b"], [[["a"]]]), TypeError, ["'a b'"]),
        (lambda: evaluate.bleu([["a"]], [["b c"]]), TypeError, ["'b c'"]),
        (lambda: evaluate.bleu([["a"]], [[]]), ValueError, ["references[0]"]),
        (lambda: evaluate.bleu([["a"]], [[["a"]]], 0), ValueError, ["max_order=0"]),
        (lambda: evaluate.rouge_l("a b", ["a"]), TypeError, ["'a b'"]),
        (lambda: evaluate.rouge_l(["a"], "b c"), TypeError, ["'b c'"]),
        (lambda: evaluate.rouge_l(["a"], ["a"], 0.0), ValueError, ["beta=0.0"]),
        (lambda: evaluate.pass_at_k(2, 0, 5), ValueError, ["k=5", "n_samples=2"]),
        (lambda: evaluate.pass_at_k(2, 1, 0), ValueError, ["k=0"]),
        (lambda: evaluate.pass_at_k(2, 3, 1), ValueError, ["n_correct=3"]),
        (lambda: evaluate.pass_at_k(2, -1, 1), ValueError, ["n_correct=-1"]),
    ],
)
def test_refusal_names_the_values(call, error, values):
    with pytest.raises(error) as caught:
        call()
    for value in values:
        assert re.search(re.escape(value), str(caught.value)), str(caught.value)

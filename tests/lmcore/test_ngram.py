"""Counts are right, probabilities sum to 1, measures agree with their formulas."""

import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lmcore import ngram
from lmcore.ngram import BEGIN, END, UNKNOWN, NGramModel

SMOOTHINGS = ["none", "add_k", "interpolated", "kneser_ney"]
ABBA = ["abba", "aba"]
SAN = [["San", "Francisco"]] * 3 + [["my", "glasses"], ["your", "glasses"]]

few = settings(max_examples=30)
texts = st.lists(st.text("abc", max_size=8), min_size=1, max_size=5)


def padded(text, order: int) -> tuple:
    return (BEGIN,) * (order - 1) + tuple(text) + (END,)


def every_context(order: int) -> list[tuple]:
    """All contexts of two more tokens than the model looks back, and some shorter."""
    return [
        context
        for length in range(order + 2)
        for context in itertools.product("abcz", repeat=length)
    ]


# --- count_ngrams -------------------------------------------------------------------


def test_counts_worked_by_hand():
    assert ngram.count_ngrams(["a", "b", "c"], 2) == {("a", "b"): 1, ("b", "c"): 1}
    assert ngram.count_ngrams(["a", "b"], 2) == {("a", "b"): 1}
    assert ngram.count_ngrams("aaa", 2) == {("a", "a"): 2}


def test_a_text_shorter_than_the_run_has_none():
    assert ngram.count_ngrams(["a", "b"], 3) == {}
    assert ngram.count_ngrams([], 1) == {}


@few
@given(st.lists(st.integers(0, 2), max_size=9), st.integers(1, 5))
def test_counts_equal_sliding_a_window(tokens, n):
    counts = ngram.count_ngrams(tokens, n)
    windows = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    assert counts == Counter(windows)
    assert counts == ngram.count_ngrams(iter(tokens), n)


def test_counts_equal_those_of_numpy():
    tokens = torch.randint(5, (997,), generator=torch.Generator().manual_seed(1))
    windows = np.lib.stride_tricks.sliding_window_view(tokens.numpy(), 3)
    runs, counts = np.unique(windows, axis=0, return_counts=True)
    expected = dict(zip(map(tuple, runs.tolist()), counts.tolist(), strict=True))
    assert ngram.count_ngrams(tokens, 3) == expected


def test_a_run_of_no_tokens_is_refused():
    with pytest.raises(ValueError, match="n=0"):
        ngram.count_ngrams("ab", 0)


# --- drop_first, group_by_context ---------------------------------------------------


def test_glasses_follow_more_different_words_than_francisco():
    runs = Counter(itertools.chain.from_iterable(ngram.count_ngrams(t, 2) for t in SAN))
    runs[("San", "Francisco")] = 3
    frequency = ngram.drop_first(runs, distinct=False)
    continuation = ngram.drop_first(runs, distinct=True)
    assert frequency == {("Francisco",): 3, ("glasses",): 2}
    assert continuation == {("Francisco",): 1, ("glasses",): 2}


@few
@given(st.text("abc", max_size=20), st.integers(2, 4))
def test_dropping_the_first_token_loses_only_the_run_at_the_beginning(text, n):
    shorter = ngram.drop_first(ngram.count_ngrams(text, n), distinct=False)
    expected = ngram.count_ngrams(text, n - 1)
    expected -= Counter([tuple(text[: n - 1])] if len(text) >= n - 1 else [])
    assert shorter == expected


def test_runs_are_grouped_by_all_but_their_last_token():
    groups = ngram.group_by_context({("a", "b"): 2, ("a", "c"): 1, ("b", "b"): 4})
    assert groups == {
        ("a",): ngram.Followers({"b": 2, "c": 1}),
        ("b",): ngram.Followers({"b": 4}),
    }
    assert groups["a",].total == 3


# --- The four formulas --------------------------------------------------------------


def test_the_formulas_worked_by_hand():
    seen = ngram.Followers({"b": 2, "c": 1})
    assert ngram.maximum_likelihood(seen, "b") == pytest.approx(2 / 3)
    assert ngram.maximum_likelihood(seen, "d") == 0
    assert ngram.add_k(seen, "b", 0.5, 3) == pytest.approx(2.5 / 4.5)
    assert ngram.add_k(seen, "d", 0.5, 3) == pytest.approx(0.5 / 4.5)
    assert ngram.interpolated(seen, "b", 0.75, 0.2) == pytest.approx(0.55)
    assert ngram.interpolated(seen, "d", 0.75, 0.2) == pytest.approx(0.05)
    # Half is taken off b and off c; the one that was taken is shared out by 0.2.
    assert ngram.kneser_ney(seen, "b", 0.5, 0.2) == pytest.approx((1.5 + 0.2) / 3)
    assert ngram.kneser_ney(seen, "d", 0.5, 0.2) == pytest.approx(0.2 / 3)


def test_after_an_unseen_context_the_shorter_one_answers():
    unseen = ngram.Followers({})
    assert ngram.maximum_likelihood(unseen, "a") == 0
    assert ngram.add_k(unseen, "a", 0.3, 7) == pytest.approx(1 / 7)
    assert ngram.interpolated(unseen, "a", 0.75, 0.2) == 0.2
    assert ngram.kneser_ney(unseen, "a", 0.75, 0.2) == 0.2


@few
@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(1, 9), min_size=1),
    st.floats(0.01, 1),
)
def test_every_formula_sums_to_one(counts, number):
    seen = ngram.Followers(counts)
    shorter = {"a": 0.5, "b": 0.25, "c": 0.125, "d": 0.125}
    sums = [
        sum(ngram.maximum_likelihood(seen, t) for t in shorter),
        sum(ngram.add_k(seen, t, number, len(shorter)) for t in shorter),
        sum(ngram.interpolated(seen, t, number, q) for t, q in shorter.items()),
        sum(ngram.kneser_ney(seen, t, number, q) for t, q in shorter.items()),
    ]
    assert sums == pytest.approx([1, 1, 1, 1], abs=1e-12)


# --- NGramModel: what it counts -----------------------------------------------------


def test_the_first_token_has_a_whole_context_and_the_end_is_predicted():
    model = NGramModel(order=3, smoothing="none").fit([["a"]])
    assert model.followers((BEGIN, BEGIN)).counts == {"a": 1}
    assert model.followers((BEGIN, "a")).counts == {END: 1}
    assert model.prob("a", []) == 1
    assert model.prob(END, ["a"]) == 1


@few
@given(texts, st.integers(1, 4))
def test_counts_of_all_orders_equal_those_of_the_padded_texts(texts, order):
    model = NGramModel(order, "interpolated").fit(texts)
    for n in range(1, order + 1):
        expected = Counter()
        for text in texts:
            tokens = padded(text, order)
            ends = range(order - 1, len(tokens))
            expected.update(tokens[end - n + 1 : end + 1] for end in ends)
        for run, count in expected.items():
            assert model.followers(run[:-1]).counts[run[-1]] == count
        contexts = {run[:-1] for run in expected}
        totals = sum(model.followers(context).total for context in contexts)
        assert totals == expected.total()


def test_every_occurrence_of_a_context_that_counts_was_followed():
    model = NGramModel(order=2, smoothing="none").fit(["aba"])
    assert model.followers("a").counts == {"b": 1, END: 1}
    assert model.prob("b", "a") + model.prob(END, "a") == 1


def test_fitting_again_forgets_the_first_texts():
    model = NGramModel(order=2).fit(["xyz"]).fit(ABBA)
    assert model.vocabulary == ["a", "b", END]
    assert model.distribution("a") == NGramModel(order=2).fit(ABBA).distribution("a")


def test_the_vocabulary_has_an_order_that_is_always_the_same():
    model = NGramModel(order=1).fit([[10, 9, "b", UNKNOWN], [2]])
    assert model.vocabulary == [2, 9, 10, UNKNOWN, "b", END]


def test_the_tokens_of_a_tensor_are_numbers():
    text = torch.tensor([0, 1, 1, 0])
    model = NGramModel(order=3).fit([text])
    same = NGramModel(order=3).fit([[0, 1, 1, 0]])
    assert model.vocabulary == [0, 1, END]
    assert model.score(text) == same.score([0, 1, 1, 0])
    assert model.distribution(text[:2]) == same.distribution([0, 1])


# --- NGramModel: its probabilities --------------------------------------------------


@pytest.mark.parametrize(
    ("smoothing", "expected"),
    [
        ("none", 2 / 4),
        ("add_k", (2 + 0.5) / (4 + 3 * 0.5)),
        ("interpolated", 0.75 * 2 / 4 + 0.25 * (0.75 * 3 / 9 + 0.25 / 3)),
        ("kneser_ney", (2 - 0.75 + 1.5 * ((2 - 0.75 + 2.25 / 3) / 5)) / 4),
    ],
)
def test_b_after_a_worked_by_hand(smoothing, expected):
    # <a> a b b a <e> and <b> a b a <e>: after a came b twice and the end twice; among
    # nine tokens are three b; b came after two different tokens, and so did a; the end
    # came after one.
    model = NGramModel(order=2, smoothing=smoothing, k=0.5, weight=0.75, discount=0.75)
    assert model.fit(ABBA).prob("b", "a") == pytest.approx(expected, abs=1e-12)


def test_glasses_are_more_to_be_expected_than_francisco():
    model = NGramModel(order=2, discount=0.5).fit(SAN)
    # After the unseen context, eight different pairs decide: two end in glasses, one in
    # Francisco. Six tokens share what was taken off.
    shared = 0.5 * 6 / 8 / 6
    assert model.prob("glasses", ["?"]) == pytest.approx((2 - 0.5) / 8 + shared)
    assert model.prob("Francisco", ["?"]) == pytest.approx((1 - 0.5) / 8 + shared)
    assert model.prob("Francisco", ["San"]) > 0.8


def test_add_k_counts_the_end_among_the_outcomes():
    model = NGramModel(order=2, smoothing="add_k", k=1).fit(["ab"])
    found = model.distribution("z")
    assert found == {token: pytest.approx(1 / 3) for token in ("a", "b", END)}


def test_kneser_ney_gives_back_all_it_takes():
    model = NGramModel(order=2, discount=0.5).fit(["abacab"])
    taken = 0.5 * 2 / 3  # half off b, half off c, of three followers
    unigram = model.distribution("z")
    assert model.prob(END, "a") == pytest.approx(taken * unigram[END], abs=1e-12)
    assert math.fsum(model.distribution("a").values()) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("smoothing", ["interpolated", "kneser_ney"])
def test_an_unseen_context_answers_like_the_next_shorter_one(smoothing):
    model = NGramModel(order=3, smoothing=smoothing).fit(["abbacab"])
    assert model.followers("zb").total == 0
    longer, shorter = model.distribution("cb"), model.distribution("zb")
    assert longer == shorter
    assert longer["a"] not in (0, 1 / 4)
    assert model.distribution("zz") == model.distribution("zzz")


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_sum_to_one_after_every_context(smoothing, order):
    model = NGramModel(order, smoothing, k=0.3, weight=0.6, discount=0.9)
    model.fit(["abbacab", "caab", "b", ""])
    for context in every_context(order):
        probs = model.distribution(context).values()
        unseen = smoothing == "none" and set(probs) == {0.0}
        assert unseen or math.fsum(probs) == pytest.approx(1, abs=1e-9)
        if smoothing != "none":
            assert min(probs) > 0


@few
@given(texts, st.integers(1, 4), st.sampled_from(SMOOTHINGS), st.floats(0.1, 0.9))
def test_probabilities_sum_to_one_whatever_was_counted(texts, order, smoothing, number):
    model = NGramModel(order, smoothing, k=number, weight=number, discount=number)
    model.fit(texts)
    for text in texts:
        for end in range(len(text) + 1):
            probs = model.distribution(text[:end])
            assert math.fsum(probs.values()) == pytest.approx(1, abs=1e-9)


def kneser_ney_by_the_book(texts, vocabulary, order, discount, token, context):
    """Chen and Goodman's recursion in fractions, reading all texts for every count."""
    runs = [
        tokens[end - order + 1 : end + 1]
        for tokens in (padded(text, order) for text in texts)
        for end in range(order - 1, len(tokens))
    ]

    def count(run):
        if len(run) == order:
            return runs.count(run)
        longer = {r[-len(run) - 1 :] for r in runs if r[-len(run) :] == run}
        return len(longer)

    def prob(token, context):
        if context is None:
            return Fraction(1, len(vocabulary))
        shorter = prob(token, context[1:] if context else None)
        counts = {w: count((*context, w)) for w in vocabulary}
        if not any(counts.values()):
            return shorter
        types = sum(c > 0 for c in counts.values())
        kept = max(counts[token] - discount, 0)
        return (kept + discount * types * shorter) / sum(counts.values())

    return prob(token, padded(context, order)[:-1][len(context) :])


@few
@given(texts, st.integers(1, 4), st.sampled_from([Fraction(1, 2), Fraction(9, 10)]))
def test_kneser_ney_equals_the_recursion_of_the_paper(texts, order, discount):
    model = NGramModel(order, discount=float(discount)).fit(texts)
    for context in ("", "a", "bca", *texts):
        for token in model.vocabulary:
            expected = kneser_ney_by_the_book(
                texts, model.vocabulary, order, discount, token, context
            )
            found = model.prob(token, context)
            assert found == pytest.approx(float(expected), abs=1e-12)


def test_only_the_last_tokens_of_the_context_matter():
    model = NGramModel(order=3).fit(ABBA)
    assert model.distribution("bbab") == model.distribution("aaab")
    assert model.distribution("ab") != model.distribution("bb")
    assert model.distribution("") == model.distribution((BEGIN, BEGIN))
    unigram = NGramModel(order=1).fit(ABBA)
    assert unigram.distribution("ab") == unigram.distribution("")


# --- NGramModel: texts it scores ----------------------------------------------------


def test_the_score_of_a_text_worked_by_hand():
    model = NGramModel(order=2, smoothing="none").fit(ABBA)
    # a begins both; a -> b 2/4; b -> a 2/3; a -> end 2/4.
    expected = [0.0, math.log(1 / 2), math.log(2 / 3), math.log(1 / 2)]
    assert model.score("aba") == pytest.approx(expected)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_the_score_is_the_log_probability_of_each_token_after_those_before(smoothing):
    model = NGramModel(order=3, smoothing=smoothing).fit(ABBA)
    text = "abbab"
    expected = [model.log_prob(token, text[:i]) for i, token in enumerate(text)]
    assert model.score(text) == [*expected, model.log_prob(END, text)]


def test_what_cannot_happen_has_a_log_probability_of_minus_infinity():
    model = NGramModel(order=2, smoothing="none").fit(["ab"])
    assert model.log_prob("b", "b") == -math.inf
    assert model.score("ba") == [-math.inf, -math.inf, -math.inf]
    assert ngram.perplexity(model.score("ba")) == math.inf


@few
@given(texts, st.integers(1, 3))
def test_counting_alone_fits_its_own_texts_best(texts, order):
    assume(any(texts))
    none = NGramModel(order, "none").fit(texts)
    best = sum(sum(none.score(text)) for text in texts)
    for smoothing in SMOOTHINGS[1:]:
        model = NGramModel(order, smoothing).fit(texts)
        assert sum(sum(model.score(text)) for text in texts) <= best + 1e-9


def test_the_probabilities_of_all_texts_sum_to_one():
    model = NGramModel(order=2, smoothing="add_k", k=0.5).fit(["a", "ba", ""])
    probs = [
        math.exp(sum(model.score(text)))
        for length in range(10)
        for text in itertools.product("ab", repeat=length)
    ]
    # Texts of ten and more are missing: ten tokens that are not the end, in a row.
    matrix = np.array([[model.prob(b, a) for b in "ab"] for a in "ab"])
    first = np.array([model.prob(token, "") for token in "ab"])
    missing = (first @ np.linalg.matrix_power(matrix, 9)).sum()
    assert 0 < missing < 0.05
    assert math.fsum(probs) + missing == pytest.approx(1, abs=1e-9)


# --- NGramModel: unknown tokens -----------------------------------------------------


def test_unknown_stands_for_all_tokens_outside_the_vocabulary():
    model = NGramModel(order=2).fit(["abza"], vocabulary={"a", "b", UNKNOWN})
    same = NGramModel(order=2).fit([["a", "b", UNKNOWN, "a"]])
    assert model.vocabulary == same.vocabulary == [UNKNOWN, "a", "b", END]
    assert model.prob("q", "ab") == same.prob(UNKNOWN, "ab") > same.prob("b", "ab")
    assert model.distribution("q") == same.distribution([UNKNOWN])
    assert model.score("aq") == same.score(["a", UNKNOWN])
    assert model.distribution("") == same.distribution([])


def test_a_token_that_is_not_in_the_vocabulary_names_itself():
    model = NGramModel(order=2).fit(ABBA)
    for call in (
        lambda: model.prob("z", "a"),
        lambda: model.score("az"),
        lambda: model.fit(["az"], vocabulary="a"),
    ):
        with pytest.raises(ValueError, match="'z' is not among the"):
            call()


# --- NGramModel: sampling -----------------------------------------------------------


def test_the_caller_rolls_the_dice():
    model = NGramModel(order=2).fit(["abbacab", "caab"])
    samples = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        generator = torch.Generator().manual_seed(7)
        samples.append([model.sample(generator) for _ in range(5)])
    assert samples[0] == samples[1]
    assert len(set(map(tuple, samples[0]))) > 1


def test_samples_are_as_frequent_as_they_are_probable():
    model = NGramModel(order=1, smoothing="none").fit(["a" * 9 + "b"])
    generator = torch.Generator().manual_seed(3)
    drawn = [model.sample(generator, max_tokens=1) for _ in range(10_000)]
    shares = Counter(map(tuple, drawn))
    expected = {("a",): 9 / 11, ("b",): 1 / 11, (): 1 / 11}
    for token, prob in expected.items():
        spread = math.sqrt(prob * (1 - prob) / 10_000)
        assert shares[token] / 10_000 == pytest.approx(prob, abs=5 * spread)
    assert shares.keys() == expected.keys()


def test_a_sample_goes_on_with_the_context_and_stops_at_the_end():
    generator = torch.Generator().manual_seed(1)
    model = NGramModel(order=3, smoothing="none").fit(["to be or"])
    assert "".join(model.sample(generator, context="to ")) == "be or"
    assert "".join(model.sample(generator, context="to ", max_tokens=2)) == "be"
    assert model.sample(generator, max_tokens=0) == []


def test_nothing_is_drawn_where_nothing_was_seen():
    model = NGramModel(order=2, smoothing="none").fit(["ab"])
    with pytest.raises(ValueError, match="never seen"):
        model.sample(torch.Generator(), context="z")
    with pytest.raises(ValueError, match="max_tokens=-1"):
        model.sample(torch.Generator(), max_tokens=-1)


# --- NGramModel: refusals -----------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"order": 0}, "order=0"),
        ({"order": 2, "smoothing": "laplace"}, "smoothing='laplace'"),
        ({"order": 2, "k": 0.0}, "k=0.0"),
        ({"order": 2, "k": math.inf}, "k=inf"),
        ({"order": 2, "weight": 1.0}, "weight=1.0"),
        ({"order": 2, "weight": -0.1}, "weight=-0.1"),
        ({"order": 2, "discount": 0.0}, "discount=0.0"),
        ({"order": 2, "discount": 1.5}, "discount=1.5"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        NGramModel(**wrong)


def test_texts_that_cannot_be_meant_are_refused():
    with pytest.raises(TypeError, match="one string"):
        NGramModel(order=2).fit("to be")
    with pytest.raises(ValueError, match="empty"):
        NGramModel(order=2).fit([])
    for mark in (BEGIN, END):
        with pytest.raises(ValueError, match=f"holds '{mark}'"):
            NGramModel(order=2).fit([["a", mark]])


def test_the_beginning_is_never_predicted():
    for model in (
        NGramModel(2).fit(ABBA),
        NGramModel(2).fit(ABBA, ["a", "b", UNKNOWN]),
    ):
        assert BEGIN not in model.vocabulary
        with pytest.raises(ValueError, match=f"'{BEGIN}' stands before"):
            model.prob(BEGIN, "")


def test_a_model_that_counted_nothing_says_so():
    for call in (
        lambda: NGramModel(order=2).prob("a", ""),
        lambda: NGramModel(order=2).distribution(""),
        lambda: NGramModel(order=2).score("a"),
        lambda: NGramModel(order=2).sample(torch.Generator()),
    ):
        with pytest.raises(RuntimeError, match="call fit first"):
            call()


# --- cross_entropy, perplexity, bits_per_character ----------------------------------

HALF_AND_EIGHTH = [math.log(1 / 2), math.log(1 / 8)]


def test_measures_worked_by_hand():
    # One bit of surprise and three: two on average, as much as one of four.
    assert ngram.cross_entropy(HALF_AND_EIGHTH, base=2) == pytest.approx(2.0)
    assert ngram.cross_entropy(HALF_AND_EIGHTH) == pytest.approx(2 * math.log(2))
    assert ngram.perplexity(HALF_AND_EIGHTH) == pytest.approx(4.0)
    assert ngram.bits_per_character(HALF_AND_EIGHTH, "ab") == pytest.approx(2.0)


def test_characters_are_not_bytes():
    assert ngram.bits_per_character([math.log(1 / 4)], "ą") == pytest.approx(2.0)


def test_measures_equal_those_of_torch():
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(11, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(5, (11,), generator=generator)
    log_probs = logits.log_softmax(-1)[torch.arange(11), targets].tolist()
    expected = torch.nn.functional.cross_entropy(logits, targets).item()
    assert ngram.cross_entropy(log_probs) == pytest.approx(expected, abs=1e-12)


@few
@given(st.integers(1, 500), st.integers(1, 30))
def test_as_many_equally_probable_tokens_are_the_perplexity(n_types, n_tokens):
    log_probs = [-math.log(n_types)] * n_tokens
    assert ngram.perplexity(log_probs) == pytest.approx(n_types, rel=1e-9)


def test_impossible_tokens_surprise_without_end():
    assert ngram.cross_entropy([0.0, -math.inf]) == math.inf
    assert ngram.perplexity([-1e4]) == math.inf
    assert ngram.perplexity([0.0]) == 1.0


@pytest.mark.parametrize("measure", [ngram.cross_entropy, ngram.perplexity])
def test_what_has_no_mean_surprise_is_refused(measure):
    with pytest.raises(ValueError, match="empty"):
        measure([])
    with pytest.raises(ValueError, match=r"0\.5 is not"):
        measure([-1.0, 0.5])
    with pytest.raises(ValueError, match="nan is not"):
        measure([math.nan])


def test_bits_per_character_refuses_bytes_and_empty_texts():
    with pytest.raises(TypeError, match="bytes"):
        ngram.bits_per_character([-1.0], "ą".encode())
    with pytest.raises(ValueError, match="text is empty"):
        ngram.bits_per_character([-1.0], "")
    with pytest.raises(ValueError, match="base=1"):
        ngram.cross_entropy([-1.0], base=1)

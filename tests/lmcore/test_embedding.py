"""Vectors are compared rightly and learned from the right pairs, not the wrong."""

import itertools
import math
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lmcore import embedding

close = partial(torch.testing.assert_close, atol=1e-5, rtol=0.0)
exactly = partial(torch.testing.assert_close, atol=0.0, rtol=0.0)
B, K, C, V = 5, 3, 4, 7
few = settings(max_examples=30)
token_lists = st.lists(st.integers(0, 3), max_size=9)


def seeded_generator(device="cpu", seed=1) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


# --- one_hot ------------------------------------------------------------------------


def test_one_hot_worked_by_hand(device):
    found = embedding.one_hot(torch.tensor([2, 0], device=device), 3)
    exactly(found, torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], device=device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_one_hot_equals_torch(device, dtype):
    ids = torch.randint(V, (2, B), device=device)
    exactly(embedding.one_hot(ids, V, dtype), F.one_hot(ids, V).to(dtype))


def test_one_hot_picks_a_row_of_a_matrix(device):
    ids = torch.randint(V, (B,), device=device)
    matrix = torch.randn(V, C, device=device)
    close(embedding.one_hot(ids, V) @ matrix, matrix[ids])


def test_no_ids_have_no_vectors(device):
    empty = torch.zeros(0, dtype=torch.long, device=device)
    assert embedding.one_hot(empty, V).shape == (0, V)


@pytest.mark.parametrize("wrong", [-1, 3])
def test_an_id_outside_the_vocabulary_is_refused(wrong):
    with pytest.raises(ValueError, match=f"{wrong}.*n_words - 1 = 2"):
        embedding.one_hot(torch.tensor([wrong, 0] if wrong < 0 else [0, wrong]), 3)
    with pytest.raises(TypeError, match=r"float32"):
        embedding.one_hot(torch.tensor([1.0]), 3)


# --- normalize, cosine_similarity ---------------------------------------------------


def test_cosines_worked_by_hand(device):
    a = torch.tensor([1.0, 0.0], device=device)
    b = torch.tensor([[10.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [3.0, 4.0]], device=device)
    expected = torch.tensor([1.0, 0.0, -1.0, 0.6], device=device)
    close(embedding.cosine_similarity(a, b), expected)
    close(embedding.cosine_similarity(b, a), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cosines_and_their_gradients_equal_those_of_torch(device, dtype):
    a = torch.randn(B, 1, C, device=device, dtype=dtype, requires_grad=True)
    b = torch.randn(K, C, device=device, dtype=dtype, requires_grad=True)
    found = embedding.cosine_similarity(a, b)
    expected = F.cosine_similarity(a, b, dim=-1)
    close(found, expected)
    upstream = torch.randn_like(found)
    gradients = torch.autograd.grad(found, [a, b], upstream)
    for ours, theirs in zip(
        gradients, torch.autograd.grad(expected, [a, b], upstream), strict=True
    ):
        close(ours, theirs)


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_the_length_of_a_vector_does_not_matter(first, second):
    a, b = torch.randn(2, C, dtype=torch.float64)
    cosine = embedding.cosine_similarity(a, b)
    assert -1 <= cosine <= 1
    close(embedding.cosine_similarity(first * a, second * b), cosine)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_the_zero_vector_is_like_nothing(device, dtype):
    zero = torch.zeros(2, device=device, dtype=dtype, requires_grad=True)
    other = torch.tensor([1.0, 0.0], device=device, dtype=dtype)
    for found in (
        embedding.cosine_similarity(zero, other),
        embedding.cosine_similarity(other, zero),
        embedding.cosine_similarity(zero, zero),
    ):
        assert found.item() == 0.0
    embedding.cosine_similarity(zero, other).backward()
    assert zero.grad.isfinite().all()


def test_vectors_of_different_width_are_not_compared():
    with pytest.raises(ValueError, match="widths 3 and 4"):
        embedding.cosine_similarity(torch.ones(3), torch.ones(4))


def test_normalized_vectors_have_length_one(device):
    x = torch.randn(B, C, device=device) * 100
    close(embedding.normalize(x).norm(dim=-1), torch.ones(B, device=device))
    close(embedding.normalize(x), F.normalize(x, dim=-1))


# --- nearest ------------------------------------------------------------------------

FIVE = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.2, 1.3], [-1.0, 0.0]])


def test_neighbours_worked_by_hand(device):
    ids, similarity = embedding.nearest(FIVE.to(device), word=2, k=4)
    assert ids.tolist() == [3, 1, 0, 4]
    expected = [1.3 / math.hypot(0.2, 1.3), 0.1 / math.hypot(1, 0.1), 0.0, 0.0]
    close(similarity, torch.tensor(expected, device=device))


def test_an_unused_row_of_zeros_is_no_neighbour():
    matrix = torch.tensor([[1.0, 0.0], [0.0, 0.0], [5.0, 5.0]])
    assert embedding.nearest(matrix, word=0, k=1)[0].tolist() == [2]


def test_neighbours_equal_a_search_by_numpy(device):
    matrix = torch.randn(V, C, device=device)
    unit = matrix.cpu().numpy() / np.linalg.norm(matrix.cpu(), axis=1, keepdims=True)
    for word in range(V):
        order = np.argsort(-unit @ unit[word])
        expected = [other for other in order.tolist() if other != word]
        assert embedding.nearest(matrix, word, k=V - 1)[0].tolist() == expected


def test_the_direction_of_a_vector_is_searched_without_what_is_excluded():
    vector = torch.tensor([0.0, 2.0])
    assert embedding.nearest_to_vector(FIVE, vector, 2)[0].tolist() == [2, 3]
    ids, _ = embedding.nearest_to_vector(FIVE, vector, 2, exclude=[3, 2, 3])
    assert ids.tolist() == [1, 0]


def test_of_equal_neighbours_the_first_comes_first():
    matrix = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.0, 3.0]])
    assert embedding.nearest(matrix, word=0, k=3)[0].tolist() == [1, 2, 3]


def test_searching_leaves_the_vectors_alone():
    matrix = FIVE.clone().requires_grad_()
    embedding.nearest(matrix, word=0, k=2)
    embedding.analogy(matrix, 0, 1, 2)
    exactly(matrix.detach(), FIVE)


def test_words_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="word 5 is not between 0 and 4"):
        embedding.nearest(FIVE, word=5, k=1)
    with pytest.raises(ValueError, match="word -1"):
        embedding.analogy(FIVE, 0, 1, -1)
    with pytest.raises(ValueError, match=r"k=5 .* 4 other"):
        embedding.nearest(FIVE, word=0, k=5)
    with pytest.raises(ValueError, match="k=0"):
        embedding.nearest(FIVE, word=0, k=0)


# --- analogy ------------------------------------------------------------------------


def test_an_analogy_worked_by_hand(device):
    ids, similarity = embedding.analogy(FIVE.to(device), a=0, b=1, c=2)
    # b - a + c, each of length 1, is (0.99504 - 1, 0.09950 + 1); d is (0.2, 1.3).
    x, y = 1 / math.hypot(1, 0.1) - 1, 0.1 / math.hypot(1, 0.1) + 1
    expected = (0.2 * x + 1.3 * y) / math.hypot(x, y) / math.hypot(0.2, 1.3)
    assert ids.tolist() == [3]
    close(similarity, torch.tensor([expected], device=device))


def test_the_words_of_the_question_are_no_answers():
    for a, b, c in itertools.permutations(range(5), 3):
        ids, _ = embedding.analogy(FIVE, a, b, c, k=2)
        assert set(ids.tolist()).isdisjoint({a, b, c})


@pytest.mark.parametrize("word", range(V))
def test_long_vectors_do_not_decide_an_analogy(word):
    matrix = torch.randn(V, C)
    ids, similarity = embedding.analogy(matrix, 1, 4, 2, k=V - 3)
    matrix[word] *= 100
    assert embedding.analogy(matrix, 1, 4, 2, k=V - 3)[0].tolist() == ids.tolist()
    close(embedding.analogy(matrix, 1, 4, 2, k=V - 3)[1], similarity)


def test_the_answer_to_an_analogy_is_on_the_side_of_b():
    # Two directions, what it is and of which kind: man, king, woman, queen, kitchen.
    man, king, woman = [1.0, 0, 1, 0], [1.0, 0, 0, 1], [0.0, 1, 1, 0]
    queen, maid = [0.0, 1, 0, 1], [0.2, 1, 1, 0]
    matrix = torch.tensor([man, king, woman, maid, queen])
    assert embedding.analogy(matrix, a=0, b=1, c=2)[0].item() == 4


# --- subsample ----------------------------------------------------------------------


def test_frequent_words_are_dropped_as_often_as_the_paper_says(device):
    tokens = torch.tensor([0] * 6400 + [1] * 3200 + [2] * 400, device=device)
    kept = embedding.subsample(tokens, 0.16, seeded_generator(device))
    counts = torch.bincount(kept, minlength=3).tolist()
    # √(0.16 / 0.64) = 0.5, √(0.16 / 0.32) = 0.7071, and 0.04 is below the threshold.
    assert counts[0] == pytest.approx(3200, abs=5 * math.sqrt(6400 / 4))
    assert counts[1] == pytest.approx(2263, abs=5 * math.sqrt(3200 * 0.7 * 0.3))
    assert counts[2] == 400
    assert kept.tolist() == sorted(kept.tolist())


def test_subsampling_rolls_only_the_dice_it_is_given():
    tokens = torch.randint(3, (200,))
    runs = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        runs.append(embedding.subsample(tokens, 0.05, seeded_generator()))
    exactly(*runs)
    assert 0 < len(runs[0]) < 200


def test_a_threshold_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"threshold=0\.0"):
        embedding.subsample(torch.tensor([0, 1]), 0.0, torch.Generator())


# --- skipgram_pairs -----------------------------------------------------------------


def test_pairs_worked_by_hand(device):
    pairs = embedding.skipgram_pairs(torch.tensor([0, 1, 2], device=device), window=1)
    assert pairs.tolist() == [[0, 1], [1, 0], [1, 2], [2, 1]]


def test_the_first_and_the_last_word_are_no_neighbours():
    pairs = embedding.skipgram_pairs(torch.tensor([0, 1, 2, 3]), window=1).tolist()
    assert len(pairs) == 6
    assert [0, 3] not in pairs
    assert [3, 0] not in pairs


def test_words_alone_and_no_words_have_no_pairs():
    for tokens in ([], [4]):
        text = torch.tensor(tokens, dtype=torch.long)
        assert embedding.skipgram_pairs(text, window=2).shape == (0, 2)


def brute_force_pairs(tokens: list[int], window: int) -> list[list[int]]:
    return [
        [tokens[i], tokens[j]]
        for i in range(len(tokens))
        for j in range(len(tokens))
        if i != j and abs(i - j) <= window
    ]


@given(token_lists, st.integers(1, 11))
def test_pairs_equal_comparing_all_places(tokens, window):
    text = torch.tensor(tokens, dtype=torch.long)
    pairs = embedding.skipgram_pairs(text, window)
    assert pairs.tolist() == brute_force_pairs(tokens, window)
    assert Counter(map(tuple, pairs.tolist())) == Counter(
        (b, a) for a, b in pairs.tolist()
    )


@pytest.mark.parametrize("function", ["skipgram_pairs", "cooccurrence"])
def test_what_is_no_text_has_no_pairs(function):
    arguments = {"skipgram_pairs": {}, "cooccurrence": {"n_words": 3}}[function]
    function = partial(getattr(embedding, function), **arguments)
    with pytest.raises(ValueError, match="window=0"):
        function(torch.tensor([0, 1]), window=0)
    with pytest.raises(ValueError, match=r"shape \(2, 1\)"):
        function(torch.tensor([[0], [1]]), window=1)
    with pytest.raises(ValueError, match=r"float32"):
        function(torch.tensor([0.0, 1.0]), window=1)


# --- negative_distribution, sample_negatives ----------------------------------------


def test_the_distribution_is_flattened_by_the_power(device):
    counts = torch.tensor([1, 16], device=device)
    found = embedding.negative_distribution(counts)
    close(found, torch.tensor([1 / 9, 8 / 9], device=device))
    plain = embedding.negative_distribution(counts, power=1)
    close(plain, torch.tensor([1 / 17, 16 / 17], device=device))


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=8).filter(any))
def test_the_distribution_sums_to_one_and_never_draws_what_is_not_there(counts):
    found = embedding.negative_distribution(torch.tensor(counts))
    assert found.sum().item() == pytest.approx(1, abs=1e-5)
    assert (found == 0).tolist() == [count == 0 for count in counts]


def test_a_word_that_never_occurs_is_never_drawn_whatever_the_power():
    found = embedding.negative_distribution(torch.tensor([0, 3, 1]), power=0)
    close(found, torch.tensor([0.0, 0.5, 0.5]))


@pytest.mark.parametrize("counts", [[0, 0], [-1, 2]])
def test_what_are_no_counts_is_refused(counts):
    with pytest.raises(ValueError, match=f"counts from {min(counts)} to {max(counts)}"):
        embedding.negative_distribution(torch.tensor(counts))


def test_the_true_neighbour_is_never_drawn(device):
    positive = torch.ones(1000, dtype=torch.long, device=device)
    distribution = torch.tensor([0.1, 0.8, 0.1], device=device)
    generator = seeded_generator(device)
    drawn = embedding.sample_negatives(positive, K, distribution, generator)
    assert drawn.shape == (1000, K)
    assert set(drawn.flatten().tolist()) == {0, 2}


def test_all_others_are_drawn_as_probable_as_they_are():
    distribution = torch.tensor([0.5, 0.25, 0.2, 0.05])
    positive = torch.tensor([1]).expand(2000)
    drawn = embedding.sample_negatives(positive, 10, distribution, seeded_generator())
    shares = torch.bincount(drawn.flatten(), minlength=4) / drawn.numel()
    expected = torch.tensor([0.5, 0.0, 0.2, 0.05]) / 0.75
    torch.testing.assert_close(shares, expected, atol=0.02, rtol=0.0)


def test_negatives_are_drawn_by_the_generator_given():
    positive, distribution = torch.arange(B), torch.full((V,), 1 / V)
    draws = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        generator = seeded_generator()
        draws += [
            embedding.sample_negatives(positive, K, distribution, generator)
            for _ in range(2)
        ]
    exactly(draws[0], draws[2])
    exactly(draws[1], draws[3])
    assert not draws[0].equal(draws[1])


def test_no_negatives_can_be_drawn_where_no_other_word_is():
    generator = torch.Generator()
    with pytest.raises(ValueError, match=r"1\.000000 of all probability"):
        embedding.sample_negatives(
            torch.tensor([0, 1]), K, torch.tensor([0.0, 1.0]), generator
        )
    with pytest.raises(ValueError, match="positive from 0 to 2"):
        embedding.sample_negatives(
            torch.tensor([0, 2]), K, torch.tensor([0.5, 0.5]), generator
        )
    with pytest.raises(ValueError, match="n_negatives=0"):
        embedding.sample_negatives(
            torch.tensor([0]), 0, torch.tensor([0.5, 0.5]), generator
        )


# --- negative_sampling_loss, SkipGram -----------------------------------------------


def test_the_loss_worked_by_hand(device):
    centre = torch.tensor([[1.0, 2.0]], device=device)
    context = torch.tensor([[0.0, math.log(3) / 2]], device=device)  # σ(ln 3) = 3 / 4
    negatives = torch.tensor([[[math.log(4), 0.0], [0.0, 0.0]]], device=device)
    found = embedding.negative_sampling_loss(centre, context, negatives)
    expected = -math.log(3 / 4) - math.log(1 / 5) - math.log(1 / 2)
    close(found, torch.tensor(expected, device=device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_is_that_of_one_plus_k_questions(device, dtype):
    sizes = [(B, C), (B, C), (B, K, C)]
    vectors = [
        torch.randn(size, device=device, dtype=dtype, requires_grad=True)
        for size in sizes
    ]
    centre, context, negatives = vectors
    found = embedding.negative_sampling_loss(*vectors)
    words = torch.cat([context[:, None], negatives], dim=1)  # (B, 1 + K, C)
    logits = torch.einsum("bc,bkc->bk", centre, words)
    answers = torch.zeros_like(logits)
    answers[:, 0] = 1
    bce = F.binary_cross_entropy_with_logits(logits, answers, reduction="sum")
    expected = bce / B
    close(found, expected)
    gradients = zip(
        torch.autograd.grad(found, vectors),
        torch.autograd.grad(expected, vectors),
        strict=True,
    )
    for ours, theirs in gradients:
        close(ours, theirs)


def test_certain_and_wrong_is_expensive_but_finite():
    big = torch.full((1, 2), 30.0)
    loss = embedding.negative_sampling_loss(big, -big, big[:, None])
    close(loss, torch.tensor(2 * 1800.0))


def test_vectors_that_do_not_fit_are_refused():
    fit = [torch.zeros(B, C), torch.zeros(B, C), torch.zeros(B, K, C)]
    for index, wrong in enumerate([(K, C), (B, K), (B, C)]):
        vectors = [*fit]
        vectors[index] = torch.zeros(wrong)
        with pytest.raises(ValueError, match=r"must be \(B, C\), \(B, C\)"):
            embedding.negative_sampling_loss(*vectors)


def test_skip_gram_starts_small_and_knows_nothing(device):
    model = embedding.SkipGram(V, C, device=device)
    assert model.centre.weight.shape == model.context.weight.shape == (V, C)
    assert 0 < model.centre.weight.abs().max() <= 0.5 / C
    assert not model.context.weight.any()
    pairs = torch.tensor([[0, 1], [2, 3]], device=device)
    negatives = torch.tensor([[4, 5, 6], [0, 1, 4]], device=device)
    expected = torch.tensor((1 + K) * math.log(2), device=device)
    close(model(pairs, negatives), expected)
    exactly(model.vectors, model.centre.weight.detach())


def test_skip_gram_looks_up_the_right_vectors(device):
    model = embedding.SkipGram(V, C, device=device, dtype=torch.float64)
    torch.nn.init.normal_(model.context.weight)
    pairs = torch.tensor([[0, 1], [2, 3]], device=device)
    negatives = torch.tensor([[4, 5, 6], [0, 1, 4]], device=device)
    expected = embedding.negative_sampling_loss(
        model.centre.weight[[0, 2]],
        model.context.weight[[1, 3]],
        model.context.weight[negatives],
    )
    close(model(pairs, negatives), expected)


def two_topics(n_words: int = 300) -> torch.Tensor:
    """Words 0 to 3 stand among themselves, and so do words 4 to 7."""
    draw = partial(torch.randint, generator=seeded_generator())
    topic = draw(2, (n_words // 10,)).repeat_interleave(10)
    return draw(4, (n_words,)) + 4 * topic


def assert_topics_are_apart(vectors):
    for word in range(8):
        neighbours = embedding.nearest(vectors, word, k=3)[0]
        assert {n // 4 for n in neighbours.tolist()} == {word // 4}


def test_skip_gram_finds_out_who_stands_with_whom():
    losses, vectors = [], []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        generator = seeded_generator()
        model = embedding.SkipGram(8, C, generator=generator)
        options = {"n_epochs": 4, "batch_size": 64, "learning_rate": 0.05}
        losses.append(model.fit(two_topics(), generator, window=2, **options))
        vectors.append(model.vectors)
    assert len(losses[0]) == 4 * math.ceil((4 * 300 - 6) / 64)
    assert sum(losses[0][-10:]) < 0.9 * sum(losses[0][:10])
    assert_topics_are_apart(vectors[0])
    assert losses[0] == losses[1]
    exactly(*vectors)


def test_skip_gram_refuses_what_it_cannot_learn_from():
    model, generator = embedding.SkipGram(3, C), torch.Generator()
    with pytest.raises(ValueError, match="tokens has 1 words"):
        model.fit(torch.tensor([0]), generator)
    with pytest.raises(ValueError, match="tokens from 0 to 3"):
        model.fit(torch.tensor([0, 3]), generator)
    with pytest.raises(ValueError, match="batch_size=0"):
        model.fit(torch.tensor([0, 1]), generator, batch_size=0)
    with pytest.raises(ValueError, match="d_model=0"):
        embedding.SkipGram(3, 0)


# --- cooccurrence -------------------------------------------------------------------


def test_far_words_count_less(device):
    counts = embedding.cooccurrence(torch.tensor([0, 2, 1], device=device), 3, window=2)
    expected = torch.tensor([[0.0, 0.5, 1.0], [0.5, 0.0, 1.0], [1.0, 1.0, 0.0]])
    exactly(counts, expected.to(device))


def test_words_that_meet_themselves_worked_by_hand():
    counts = embedding.cooccurrence(torch.tensor([0, 0, 1, 1]), 2, window=1)
    exactly(counts, torch.tensor([[2.0, 1.0], [1.0, 2.0]]))


@given(token_lists, st.integers(1, 11))
def test_cooccurrence_equals_comparing_all_places(tokens, window):
    counts = embedding.cooccurrence(torch.tensor(tokens).long(), 5, window)
    expected = torch.zeros(5, 5, dtype=torch.float64)
    for i, j in itertools.permutations(range(len(tokens)), 2):
        if abs(i - j) <= window:
            expected[tokens[i], tokens[j]] += 1 / abs(i - j)
    close(counts, expected.float())
    exactly(counts, counts.T)


def test_cooccurrence_refuses_unknown_words():
    with pytest.raises(ValueError, match="tokens from 0 to 3"):
        embedding.cooccurrence(torch.tensor([0, 3]), 3, window=1)


# --- GloVe --------------------------------------------------------------------------


def test_the_weight_of_evidence_worked_by_hand(device):
    counts = torch.tensor([0.0, 6.25, 100.0, 200.0], device=device)
    found = embedding.glove_weight(counts)
    close(found, torch.tensor([0.0, 0.125, 1.0, 1.0], device=device))


def test_the_weight_is_not_squared_with_the_error(device):
    # A weight of 1/2 and an error of 2.
    counts = torch.tensor([0.5 ** (4 / 3) * 100], device=device)
    loss = embedding.glove_loss(counts.log() + 2, counts)
    close(loss, torch.tensor(2.0, device=device))


def test_the_weight_of_many_meetings_is_one(device):
    counts = torch.tensor([200.0], device=device)
    loss = embedding.glove_loss(counts.log() - 3, counts)
    close(loss, torch.tensor(9.0, device=device))


def test_words_that_never_met_add_nothing(device):
    counts = torch.tensor([[0.0, 2.0], [2.0, 0.0]], device=device)
    predicted = torch.zeros(2, 2, device=device, requires_grad=True)
    loss = embedding.glove_loss(predicted, counts)
    close(loss, torch.tensor(2 * 0.02**0.75 * math.log(2) ** 2, device=device))
    loss.backward()
    assert predicted.grad.isfinite().all()
    exactly(predicted.grad.diagonal(), torch.zeros(2, device=device))


def test_where_no_words_met_the_loss_is_zero():
    assert embedding.glove_loss(torch.ones(3), torch.zeros(3)).item() == 0.0


@few
@given(st.floats(0.5, 200), st.floats(0.25, 1))
def test_glove_loss_equals_the_formula(x_max, alpha):
    counts = torch.randint(0, 9, (V, K), dtype=torch.float64)
    predicted = torch.randn(V, K, dtype=torch.float64)
    expected = 0.0
    for count, guess in zip(
        counts.flatten().tolist(), predicted.flatten().tolist(), strict=True
    ):
        if count > 0:
            weight = (count / x_max) ** alpha if count < x_max else 1.0
            expected += weight * (guess - math.log(count)) ** 2
    found = embedding.glove_loss(predicted, counts, x_max, alpha)
    assert found.item() == pytest.approx(expected, abs=1e-9)


def test_glove_loss_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"\(3,\) and counts \(4,\)"):
        embedding.glove_loss(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match=r"negative entry -1"):
        embedding.glove_loss(torch.zeros(2), torch.tensor([1.0, -1.0]))


def test_glove_predicts_products_and_biases(device):
    model = embedding.GloVe(V, C, device=device, dtype=torch.float64)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    full = model.word.weight @ model.context.weight.T
    full = full + model.word_bias.weight + model.context_bias.weight.T  # (V, V)
    word = torch.tensor([0, 6, 2], device=device)
    context = torch.tensor([1, 1, 5], device=device)
    close(model(word, context), full[word, context])
    close(model.vectors, (model.word.weight + model.context.weight).detach())


def test_glove_finds_out_who_stands_with_whom():
    counts = embedding.cooccurrence(two_topics(), 8, window=2)
    losses, vectors = [], []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        generator = seeded_generator()
        model = embedding.GloVe(8, C, generator=generator)
        options = {"n_epochs": 40, "batch_size": 16, "learning_rate": 0.3}
        losses.append(model.fit(counts, generator, **options))
        vectors.append(model.vectors)
    assert sum(losses[0][-4:]) < 0.05 * sum(losses[0][:4])
    assert_topics_are_apart(vectors[0])
    assert losses[0] == losses[1]
    exactly(*vectors)


def test_glove_refuses_what_it_cannot_learn_from():
    model, generator = embedding.GloVe(3, C), torch.Generator()
    with pytest.raises(ValueError, match=r"counts \(4, 4\) is not \(3, 3\)"):
        model.fit(torch.ones(4, 4), generator)
    with pytest.raises(ValueError, match="no words met"):
        model.fit(torch.zeros(3, 3), generator)
    with pytest.raises(ValueError, match="n_epochs=0"):
        model.fit(torch.ones(3, 3), generator, n_epochs=0)
    with pytest.raises(ValueError, match="n_words=0"):
        embedding.GloVe(0, C)


# --- association, weat_effect_size --------------------------------------------------


def test_associations_worked_by_hand(device):
    words = torch.tensor([[2.0, 0.0], [3.0, 3.0]], device=device)
    a = torch.tensor([[1.0, 0.0], [0.0, -1.0]], device=device)
    b = torch.tensor([[0.0, 5.0]], device=device)
    root = math.sqrt(0.5)
    expected = torch.tensor([0.5 - 0.0, 0.0 - root], device=device)
    close(embedding.association(words, a, b), expected)


def at_angles(*cosines: float) -> torch.Tensor:
    """Vectors with these cosines to (1, 0), and of different lengths."""
    vectors = [[c, math.sqrt(1 - c * c)] for c in cosines]
    length = torch.arange(1, len(cosines) + 1)[:, None]
    return torch.tensor(vectors, dtype=torch.float64) * length


# An association with these two is the cosine with the first, and there is no second.
RIGHT, NOWHERE = at_angles(1.0), torch.zeros(1, 2, dtype=torch.float64)


def test_the_spread_is_that_of_all_targets_together():
    # The associations are 0.1 and 0.3 of X and -0.1 of Y: mean 0.1, squares 0.08 / 2.
    found = embedding.weat_effect_size(
        at_angles(0.1, 0.3), at_angles(-0.1), RIGHT, NOWHERE
    )
    assert found.item() == pytest.approx(0.3 / math.sqrt(0.08 / 2), abs=1e-9)


def test_the_effect_size_equals_numpy(device):
    x, y, a, b = (torch.randn(n, C, dtype=torch.float64) for n in (3, 5, 2, 6))

    def mean_cosine(word, group):
        lengths = np.linalg.norm(word) * np.linalg.norm(group, axis=1)
        return np.mean(group @ word / lengths)

    of_x, of_y = (
        [mean_cosine(w, a.numpy()) - mean_cosine(w, b.numpy()) for w in group.numpy()]
        for group in (x, y)
    )
    expected = (np.mean(of_x) - np.mean(of_y)) / np.std(of_x + of_y, ddof=1)
    found = embedding.weat_effect_size(*(v.to(device) for v in (x, y, a, b)))
    assert found.item() == pytest.approx(expected, abs=1e-9)


def test_the_order_of_words_does_not_matter_and_that_of_groups_does():
    x, y, a, b = (torch.randn(n, C) for n in (3, 5, 2, 6))
    found = embedding.weat_effect_size(x, y, a, b)
    close(embedding.weat_effect_size(x.flip(0), y.roll(2, 0), a.flip(0), b), found)
    close(embedding.weat_effect_size(y, x, a, b), -found)
    close(embedding.weat_effect_size(x, y, b, a), -found)


def test_the_effect_of_equal_groups_has_a_largest_value():
    found = embedding.weat_effect_size(
        at_angles(1.0, 1.0, 1.0), at_angles(-1.0, -1.0, -1.0), RIGHT, NOWHERE
    )
    assert found.item() == pytest.approx(2 * math.sqrt(5 / 6), abs=1e-6)


def test_where_nothing_can_be_measured_that_is_said():
    one = torch.ones(1, 2)
    with pytest.raises(ValueError, match=r"association 0\.0000"):
        embedding.weat_effect_size(one, one, one, one)
    with pytest.raises(ValueError, match="b is empty"):
        embedding.association(one, one, torch.zeros(0, 2))
    with pytest.raises(ValueError, match="widths 2 and 3"):
        embedding.association(one, torch.ones(1, 3), one)

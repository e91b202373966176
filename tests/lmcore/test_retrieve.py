"""Tests of lmcore.retrieve: by hand, against rank_bm25 and PyTorch, as properties."""

import math
import re
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rank_bm25 import BM25Okapi

from lmcore import retrieve
from lmcore.retrieve import Hit, Passage

close = partial(torch.testing.assert_close, atol=1e-5, rtol=0.0)
letters = st.sampled_from("abcdef")
collections = st.lists(
    st.lists(letters, min_size=1, max_size=9), min_size=1, max_size=7
)


# --- Passages -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_words", "size", "overlap", "expected"),
    [
        (0, 3, 1, []),
        (1, 3, 2, ["a"]),
        (3, 3, 1, ["abc"]),
        (4, 3, 1, ["abc", "cd"]),
        (5, 3, 1, ["abc", "cde"]),
        (5, 2, 0, ["ab", "cd", "e"]),
    ],
)
def test_split_by_hand(n_words, size, overlap, expected):
    passages = retrieve.split_passages("abcdef"[:n_words], size, overlap)
    assert ["".join(passage) for passage in passages] == expected


@given(n_words=st.integers(0, 40), size=st.integers(1, 9), data=st.data())
def test_split_loses_nothing(n_words, size, data):
    overlap = data.draw(st.integers(0, size - 1))
    words = [str(n) for n in range(n_words)]
    passages = retrieve.split_passages(words, size, overlap)
    again = passages[0] if passages else []
    for passage in passages[1:]:
        assert passage[:overlap] == again[len(again) - overlap :]
        assert overlap < len(passage) <= size
        again = again + passage[overlap:]
    assert again == words


# --- BM25 ---------------------------------------------------------------------------


def test_bm25_by_hand():
    """Lengths 3 and 1, mean 2: two cats in a long text, one in a short one."""
    index = retrieve.BM25([["cat", "cat", "dog"], ["cat"]], k1=2.0, b=0.5)
    idf = math.log(1 + 0.5 / 2.5)
    assert index.idf("cat") == pytest.approx(idf) == pytest.approx(0.1823, abs=1e-4)
    first = idf * 2 * 3 / (2 + 2 * (0.5 + 0.5 * 3 / 2))
    second = idf * 1 * 3 / (1 + 2 * (0.5 + 0.5 * 1 / 2))
    assert index.scores(["cat"]) == pytest.approx([first, second])
    assert index.scores(["cat", "cat"]) == pytest.approx([2 * first, 2 * second])
    assert index.scores(["cow"]) == [0.0, 0.0]


def test_document_frequency_counts_documents():
    """Ten times "pink" in one of three documents: df = 1."""
    index = retrieve.BM25([["pink"] * 10, ["red"], ["blue"]])
    assert index.idf("pink") == index.idf("red") == pytest.approx(math.log(1 + 5 / 3))


@given(
    documents=collections,
    query=st.lists(letters, max_size=5),
    k1=st.floats(0.1, 3.0),
    b=st.floats(0.0, 1.0),
)
def test_bm25_equals_rank_bm25(documents, query, k1, b):
    """Theirs with our idf: they replace a negative one, we add 1 in the logarithm."""
    index = retrieve.BM25(documents, k1=k1, b=b)
    oracle = BM25Okapi(documents, k1=k1, b=b)
    for word, idf in oracle.idf.items():
        df = sum(word in document for document in documents)
        if df < len(documents) / 2:
            assert index.idf(word) == pytest.approx(math.log1p(math.exp(idf)))
    oracle.idf = {word: index.idf(word) for word in oracle.idf}
    assert index.scores(query) == pytest.approx(list(oracle.get_scores(query)))


@given(documents=collections, query=st.lists(letters, min_size=1, max_size=5))
def test_search_is_the_sorted_scores(documents, query):
    index = retrieve.BM25(documents)
    scores = index.scores(query)
    hits = index.search(query, k=3)
    assert all(score >= 0 for score in scores)
    order = sorted(range(len(scores)), key=lambda n: (-scores[n], n))
    expected = [Hit(n, scores[n]) for n in order if scores[n] > 0][:3]
    assert hits == expected


def test_rare_word_wins():
    documents = [["the", "the"], ["the", "ghost"], ["the", "king"], ["the", "queen"]]
    hits = retrieve.BM25(documents).search(["the", "ghost"], k=2)
    assert [hit.document for hit in hits] == [1, 0]


# --- Vectors ------------------------------------------------------------------------


def test_mean_vector_by_hand(device):
    features = torch.tensor([[[1.0, 0.0], [3.0, 4.0]], [[5.0, 6.0], [9.0, 9.0]]])
    features = features.to(device)
    mask = torch.tensor([[True, True], [True, False]], device=device)
    close(retrieve.mean_vector(features, mask).cpu(), torch.tensor([[2.0, 2], [5, 6]]))
    close(retrieve.mean_vector(features).cpu()[1], torch.tensor([7.0, 7.5]))
    features[1, 1] = math.nan
    close(retrieve.mean_vector(features, mask).cpu()[1], torch.tensor([5.0, 6.0]))
    nothing = retrieve.mean_vector(features, torch.zeros_like(mask))
    assert nothing.tolist() == [[0.0, 0.0]] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dense_scores_equal_torch(dtype, device):
    vectors = torch.randn(9, 5, device=device, dtype=dtype)
    queries = torch.randn(3, 5, device=device, dtype=dtype)
    scores = retrieve.DenseIndex(vectors).scores(queries)
    expected = torch.cosine_similarity(queries[:, None], vectors[None], dim=-1)
    assert scores.shape == (3, 9)
    close(scores, expected, atol=2e-2 if dtype == torch.bfloat16 else 1e-5)


def test_long_vectors_do_not_win(device):
    vectors = torch.randn(9, 5, device=device)
    query = torch.randn(5, device=device)
    hits = retrieve.DenseIndex(vectors).search(query, k=4)
    lengths = torch.arange(1.0, 10.0, device=device)[:, None]
    longer = retrieve.DenseIndex(lengths * vectors).search(10 * query, k=4)
    assert [hit.document for hit in longer] == [hit.document for hit in hits]
    cosines = torch.cosine_similarity(vectors, query[None], dim=-1)
    best = cosines.topk(4)
    assert [hit.document for hit in hits] == best.indices.tolist()
    close(torch.tensor([hit.score for hit in hits]), best.values.cpu())


def test_dense_edges(device):
    """More asked than there are, equals in order, a vector of zeros fits nothing."""
    vectors = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]], device=device)
    hits = retrieve.DenseIndex(vectors).search(torch.tensor([1.0, 0.0]).to(device), 9)
    assert [hit.document for hit in hits] == [1, 2, 0]
    assert hits[-1].score == 0.0


# --- Rankings -----------------------------------------------------------------------


def test_fuse_by_hand():
    rankings = [[Hit(5, 9.0), Hit(2, 1.0)], [Hit(2, 0.3)], []]
    fused = retrieve.fuse_rankings(rankings, constant=1)
    assert [hit.document for hit in fused] == [2, 5]
    assert [hit.score for hit in fused] == pytest.approx([1 / 3 + 1 / 2, 1 / 2])
    tied = retrieve.fuse_rankings([[Hit(7, 1.0)], [Hit(3, 9.0)]])
    assert [hit.document for hit in tied] == [3, 7]


def test_ranking_measures_by_hand():
    ranking = [Hit(4, 3.0), Hit(1, 2.0), Hit(7, 1.0)]
    recalls = [retrieve.recall_at_k(ranking, {1, 7, 9}, k) for k in (1, 2, 3, 9)]
    assert recalls == pytest.approx([0, 1 / 3, 2 / 3, 2 / 3])
    ranks = [retrieve.reciprocal_rank(ranking, {n}) for n in (4, 1, 7, 9)]
    assert ranks == pytest.approx([1, 1 / 2, 1 / 3, 0])


# --- Answers with citations ---------------------------------------------------------

PASSAGES = [
    Passage("Hamlet is prince of Denmark.", "Hamlet, act 1"),
    Passage("Macbeth becomes king of Scotland.", "Macbeth, act 2"),
    Passage("Lear divides his kingdom.", "King Lear, act 1"),
]


def words_of(text):
    return re.findall("[a-z]+", text.lower())


def answerer(write, k=2):
    index = retrieve.BM25([words_of(passage.text) for passage in PASSAGES])
    return retrieve.RetrievalAugmented(
        PASSAGES, lambda question, k: index.search(words_of(question), k), write, k
    )


def test_answer_cites_what_was_found():
    prompts = []

    def write(prompt):
        prompts.append(prompt)
        return " Scotland [1], see also [2, 1]. "

    answer = answerer(write).answer("Who becomes king of Scotland?")
    assert answer.text == "Scotland [1], see also [2, 1]."
    assert answer.passages == (PASSAGES[1], PASSAGES[0])
    assert answer.citations == (1, 2)
    assert answer.sources == ["Macbeth, act 2", "Hamlet, act 1"]
    assert answer.is_supported
    (prompt,) = prompts
    first = prompt.index("[1] Macbeth becomes king of Scotland. (Macbeth, act 2)")
    assert first < prompt.index("[2] Hamlet is prince")
    assert "Lear divides" not in prompt
    assert prompt.endswith("Question: Who becomes king of Scotland?\nAnswer:")


def test_invented_citations_are_told():
    answer = answerer(lambda _: "Denmark [1] [3] [0].").answer("prince of Denmark")
    assert answer.citations == (1,)
    assert answer.wrong_citations == (3, 0)
    assert not answer.is_supported
    uncited = answerer(lambda _: "Denmark").answer("prince of Denmark")
    assert not uncited.is_supported


def test_model_is_not_asked_about_nothing():
    def write(prompt):
        raise AssertionError("the model was asked")

    answer = answerer(write).answer("What about quarks?")
    assert answer.text == retrieve.RetrievalAugmented.NOTHING_FOUND
    assert answer.passages == ()
    assert not answer.is_supported


def test_dense_and_words_together(device):
    """One answerer over both rankings, joined."""
    vectors = torch.eye(3, device=device)
    dense = retrieve.DenseIndex(vectors)
    words = retrieve.BM25([words_of(passage.text) for passage in PASSAGES])

    def search(question, k):
        both = [words.search(words_of(question), k), dense.search(vectors[2], k)]
        return retrieve.fuse_rankings(both)[:k]

    asked = retrieve.RetrievalAugmented(PASSAGES, search, lambda _: "[1]", k=3)
    assert asked.answer("Lear").sources == ["King Lear, act 1"]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("a [1] b [12]", [1, 12]), ("[2,1] [1]", [2, 1]), ("[x] [] 1 (2)", [])],
)
def test_cited_numbers_by_hand(text, numbers):
    assert retrieve.cited_numbers(text) == numbers


# --- Refusals -----------------------------------------------------------------------

INDEX, DENSE = retrieve.BM25([["a"]]), retrieve.DenseIndex(torch.ones(2, 3))


@pytest.mark.parametrize(
    ("call", "error", "values"),
    [
        (lambda: retrieve.split_passages("ab", 0), ValueError, ["size=0"]),
        (lambda: retrieve.split_passages("ab", 2, 2), ValueError, ["overlap=2"]),
        (lambda: retrieve.BM25([]), ValueError, ["0 documents"]),
        (lambda: retrieve.BM25([[], []]), ValueError, ["2 documents"]),
        (lambda: retrieve.BM25(["a cat"]), TypeError, ["'a cat'"]),
        (lambda: retrieve.BM25([["a"]], k1=-1.0), ValueError, ["k1=-1.0"]),
        (lambda: retrieve.BM25([["a"]], b=2.0), ValueError, ["b=2.0"]),
        (lambda: INDEX.scores("a cat"), TypeError, ["'a cat'"]),
        (lambda: INDEX.search(["a"], 0), ValueError, ["k=0"]),
        (lambda: DENSE.search(torch.ones(3), 0), ValueError, ["k=0"]),
        (lambda: DENSE.search(torch.ones(1, 3)), ValueError, ["(1, 3)"]),
        (lambda: DENSE.scores(torch.ones(4)), ValueError, ["(4,)", "3"]),
        (lambda: retrieve.DenseIndex(torch.ones(3)), ValueError, ["(3,)"]),
        (lambda: retrieve.DenseIndex(torch.ones(0, 3)), ValueError, ["(0, 3)"]),
        (
            lambda: retrieve.mean_vector(torch.ones(2, 3, 4), torch.ones(2, 4).bool()),
            ValueError,
            ["(2, 4)", "(2, 3)"],
        ),
        (lambda: retrieve.fuse_rankings([], -1), ValueError, ["constant=-1"]),
        (lambda: retrieve.recall_at_k([], {1}, 0), ValueError, ["k=0"]),
        (lambda: retrieve.recall_at_k([], set(), 1), ValueError, ["relevant"]),
        (lambda: retrieve.reciprocal_rank([], []), ValueError, ["relevant"]),
        (lambda: answerer(str, k=0), ValueError, ["k=0"]),
        (lambda: answerer(str).answer(" "), ValueError, ["' '"]),
        (
            lambda: retrieve.RetrievalAugmented([], INDEX.search, str),
            ValueError,
            ["0 passages"],
        ),
    ],
)
def test_refusal_names_the_values(call, error, values):
    with pytest.raises(error) as caught:
        call()
    for value in values:
        assert re.search(re.escape(value), str(caught.value)), str(caught.value)

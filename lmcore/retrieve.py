"""Retrieval: look it up before answering, and say where it stands.

Chapter 16 of the book. The module builds, in this order: cutting long texts into
passages; finding passages by their words (BM25); finding them by their vectors; joining
two rankings; measuring a ranking; and an answerer that reads the passages found, writes
with a language model, and cites.

Left out: approximate search, which large collections need, and the language model,
which comes as a function from text to text.

Papers: Robertson et al., 1995, and Robertson and Zaragoza, 2009 (BM25); Karpukhin et
al., 2020 (dense retrieval); Cormack, Clarke and Buettcher, 2009 (joining rankings);
Lewis et al., 2020 (retrieval-augmented generation).

N is the number of documents, Q the number of queries.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import embedding, require


@dataclass(frozen=True)
class Hit:
    """A document that was found.

    >>> Hit(document=3, score=0.5).document
    3
    """

    document: int  # its number in the collection, from 0
    score: float  # how well it fits; comparable within one search only


def split_passages(words: Sequence[str], size: int, overlap: int = 0) -> list[list]:
    """Cut a long text into passages of equal length that overlap.

    With an overlap, what is cut apart at the end of one passage stands whole in the
    next.

    Args:
        words: the text
        size: words per passage; the last one may be shorter
        overlap: words that a passage shares with the next, less than ``size``

    Returns:
        The passages in order; none for an empty text.

    Raises:
        ValueError: if ``size`` is less than 1 or ``overlap`` is not below it.

    >>> split_passages("a b c d e".split(), size=3, overlap=1)
    [['a', 'b', 'c'], ['c', 'd', 'e']]
    """
    require.at_least_one(size=size)
    require.between(0, size - 1, overlap=overlap)
    # A passage that would only repeat the end of the last one is not begun.
    last_start = max(len(words) - overlap, min(len(words), 1))
    starts = range(0, last_start, size - overlap)
    return [list(words[start : start + size]) for start in starts]


# --- By words -----------------------------------------------------------------------


class BM25:
    """Ranks documents by the words that they share with a query.

    A word counts more if few documents have it, and each further occurrence counts
    less, the more so in long documents:

    ``Σ idf(w) · tf · (k1 + 1) / (tf + k1 · (1 - b + b · length / mean length))`` with
    ``idf(w) = ln(1 + (N - df + 1/2) / (df + 1/2))``, which is never negative. Here tf
    counts the word in the document, and df the documents that have the word. A word
    that the query repeats counts each time. Robertson and Zaragoza, 2009, § 3, with the
    1 in the logarithm that most search engines add.

    Args:
        documents: N documents, as words
        k1: how slowly further occurrences lose weight; 0 = they do not count at all
        b: how much the length counts, from 0 (not) to 1 (fully)

    Raises:
        ValueError: if there are no documents, all are empty, ``k1`` is negative or
            ``b`` is not between 0 and 1.
        TypeError: if a document is a string.

    >>> index = BM25([["the", "cat"], ["the", "dog"]])
    >>> index.search(["cat"], k=1)
    [Hit(document=0, score=0.6931471805599453)]
    """

    def __init__(
        self, documents: Sequence[Sequence[str]], k1: float = 1.5, b: float = 0.75
    ) -> None:
        require.not_negative(k1=k1)
        require.between(0, 1, b=b)
        for document in documents:
            require.words(document)
        n_words = sum(len(document) for document in documents)
        if n_words == 0:
            raise ValueError(f"there is no word in the {len(documents)} documents")
        self.k1, self.b = k1, b
        self.n_documents = len(documents)
        mean_length = n_words / self.n_documents
        # How many occurrences of a word count half, document by document.
        self.half = [k1 * (1 - b + b * len(d) / mean_length) for d in documents]
        # For each word, the documents that have it and how often.
        self.postings: dict[str, list[tuple[int, int]]] = {}
        for number, document in enumerate(documents):
            for word, count in Counter(document).items():
                self.postings.setdefault(word, []).append((number, count))

    def idf(self, word: str) -> float:
        """Say how rare a word is, in nats; a word in no document is the rarest.

        Args:
            word: any word

        Returns:
            The weight of the word, positive.
        """
        df = len(self.postings.get(word, []))
        return math.log1p((self.n_documents - df + 0.5) / (df + 0.5))

    def scores(self, query: Sequence[str]) -> list[float]:
        """Score all documents.

        Args:
            query: words

        Returns:
            N scores, 0 for a document that shares no word with the query.

        Raises:
            TypeError: if the query is a string.
        """
        require.words(query)
        scores = [0.0] * self.n_documents
        for word in query:
            idf = self.idf(word)
            for number, count in self.postings.get(word, []):
                saturated = count * (self.k1 + 1) / (count + self.half[number])
                scores[number] += idf * saturated
        return scores

    def search(self, query: Sequence[str], k: int = 10) -> list[Hit]:
        """Find the best documents.

        Args:
            query: words
            k: how many at most

        Returns:
            The best first, of equals the earlier; none that shares no word.

        Raises:
            ValueError: if ``k`` is less than 1.
            TypeError: if the query is a string.
        """
        require.at_least_one(k=k)
        found = [Hit(n, score) for n, score in enumerate(self.scores(query)) if score]
        return sorted(found, key=lambda hit: -hit.score)[:k]


# --- By vectors ---------------------------------------------------------------------


def mean_vector(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """Average the vectors of a text's tokens into one for the text.

    Args:
        features: (B, T, C), such as ``GPT.features``
        mask: boolean, (B, T), True = a real token. None = all are.

    Returns:
        (B, C); zeros for a text without tokens.

    Raises:
        ValueError: if the mask's shape is not (B, T).

    >>> features = torch.tensor([[[1.0], [3.0], [9.0]]])
    >>> mean_vector(features, torch.tensor([[True, True, False]]))
    tensor([[2.]])
    """
    if mask is None:
        return features.mean(dim=1)
    if mask.shape != features.shape[:2]:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, expected {tuple(features.shape[:2])}"
        )
    total = features.masked_fill(~mask[..., None], 0.0).sum(dim=1)  # (B, C)
    return total / mask.sum(dim=1, keepdim=True).clamp_min(1)


class DenseIndex:
    """Ranks documents by the angle between their vectors and the query's.

    Vectors are normalised, so that the length of a vector, which often grows with the
    length of a text, plays no part. Every search compares with all documents.

    Args:
        vectors: (N, C), one per document, such as `mean_vector`

    Raises:
        ValueError: if ``vectors`` is no matrix or has no rows.

    >>> index = DenseIndex(torch.tensor([[1.0, 0.0], [30.0, 30.0]]))
    >>> index.search(torch.tensor([0.0, 2.0]), k=1)
    [Hit(document=1, score=0.7071067690849304)]
    """

    def __init__(self, vectors: Tensor) -> None:
        if vectors.dim() != 2 or len(vectors) == 0:
            raise ValueError(
                f"vectors have shape {tuple(vectors.shape)}, expected (N, C) with N ≥ 1"
            )
        self.vectors = embedding.normalize(vectors)  # (N, C)

    def scores(self, queries: Tensor) -> Tensor:
        """Compare queries with all documents.

        Args:
            queries: (..., C)

        Returns:
            The cosines, (..., N).

        Raises:
            ValueError: if the widths differ.
        """
        require.width("queries", queries, self.vectors.shape[1])
        return embedding.normalize(queries) @ self.vectors.T

    def search(self, query: Tensor, k: int = 10) -> list[Hit]:
        """Find the documents that point the same way.

        Args:
            query: (C,)
            k: how many at most

        Returns:
            The best first, of equals the earlier.

        Raises:
            ValueError: if the query is not one vector of width C or ``k`` is less
                than 1.
        """
        require.at_least_one(k=k)
        if query.dim() != 1:
            raise ValueError(f"query has shape {tuple(query.shape)}, expected (C,)")
        scores = self.scores(query)
        order = torch.argsort(scores, descending=True, stable=True)[:k]
        return [Hit(n, scores[n].item()) for n in order.tolist()]


# --- Rankings -----------------------------------------------------------------------


def fuse_rankings(rankings: Sequence[Sequence[Hit]], constant: float = 60) -> list[Hit]:
    """Join several rankings whose scores cannot be compared.

    A document gets ``Σ 1 / (constant + rank)`` over the rankings that hold it, with the
    ranks from 1. Cormack, Clarke and Buettcher, 2009, § 2.

    Args:
        rankings: each with the best hit first
        constant: how little the first ranks stand out; not negative

    Returns:
        All documents found, the best first, of equals the one with the lower number.

    Raises:
        ValueError: if ``constant`` is negative.

    >>> by_words = [Hit(0, 9.0), Hit(1, 8.0)]
    >>> by_vectors = [Hit(1, 0.9), Hit(2, 0.8)]
    >>> [hit.document for hit in fuse_rankings([by_words, by_vectors])]
    [1, 0, 2]
    """
    require.not_negative(constant=constant)
    scores: Counter[int] = Counter()
    for ranking in rankings:
        for rank, hit in enumerate(ranking, start=1):
            scores[hit.document] += 1 / (constant + rank)
    fused = (Hit(document, score) for document, score in sorted(scores.items()))
    return sorted(fused, key=lambda hit: -hit.score)


def recall_at_k(ranking: Sequence[Hit], relevant: Collection[int], k: int) -> float:
    """Count how many of the documents wanted are among the first k.

    Args:
        ranking: the best hit first
        relevant: the numbers of the documents wanted, at least one
        k: how many hits are looked at

    Returns:
        The share of the documents wanted, between 0 and 1.

    Raises:
        ValueError: if ``k`` is less than 1 or nothing is wanted.

    >>> recall_at_k([Hit(4, 2.0), Hit(1, 1.0)], relevant={1, 7}, k=2)
    0.5
    """
    require.at_least_one(k=k)
    _check_relevant(relevant)
    found = {hit.document for hit in ranking[:k]} & set(relevant)
    return len(found) / len(set(relevant))


def reciprocal_rank(ranking: Sequence[Hit], relevant: Collection[int]) -> float:
    """One divided by the rank of the first document that was wanted.

    Args:
        ranking: the best hit first
        relevant: the numbers of the documents wanted, at least one

    Returns:
        Between 0 (none was found) and 1 (the first hit).

    Raises:
        ValueError: if nothing is wanted.

    >>> reciprocal_rank([Hit(4, 2.0), Hit(1, 1.0)], relevant={1, 7})
    0.5
    """
    _check_relevant(relevant)
    for rank, hit in enumerate(ranking, start=1):
        if hit.document in relevant:
            return 1 / rank
    return 0.0


# --- Answers with citations ---------------------------------------------------------


@dataclass(frozen=True)
class Passage:
    """A piece of text and where it stands.

    >>> Passage("To be, or not to be.", source="Hamlet, act 3").source
    'Hamlet, act 3'
    """

    text: str
    source: str  # what a reader needs to find it


@dataclass(frozen=True)
class CitedAnswer:
    """What the model wrote, and what it refers to.

    >>> CitedAnswer("Denmark [1].", (Passage("…", "Hamlet"),), (1,), ()).is_supported
    True
    """

    text: str
    passages: tuple[Passage, ...]  # those that the model was shown; [1] is the first
    citations: tuple[int, ...]  # the numbers cited that exist, in order, each once
    wrong_citations: tuple[int, ...]  # the numbers cited that do not exist

    @property
    def is_supported(self) -> bool:
        """Whether something is cited and all of it exists; not whether it is true."""
        return bool(self.citations) and not self.wrong_citations

    @property
    def sources(self) -> list[str]:
        """Where the passages cited stand."""
        return [self.passages[number - 1].source for number in self.citations]


class RetrievalAugmented:
    """Answers questions from passages that it looks up, and cites them.

    Args:
        passages: what can be looked up
        search: from a question and k to the best passages, such as
            ``lambda question, k: bm25.search(evaluate.words(question), k)``
        write: from a prompt to the model's text, such as a call of a language model
        k: how many passages the model is shown

    Raises:
        ValueError: if there are no passages or ``k`` is less than 1.

    >>> passages = [Passage("Hamlet is prince of Denmark.", "Hamlet, act 1")]
    >>> index = BM25([["hamlet", "prince", "denmark"]])
    >>> ask = RetrievalAugmented(
    ...     passages,
    ...     search=lambda question, k: index.search(question.lower().split(), k),
    ...     write=lambda prompt: "Denmark [1].",
    ... )
    >>> ask.answer("Where is Hamlet prince").sources
    ['Hamlet, act 1']
    """

    NOTHING_FOUND = "I found nothing about this."

    def __init__(
        self,
        passages: Sequence[Passage],
        search: Callable[[str, int], Sequence[Hit]],
        write: Callable[[str], str],
        k: int = 3,
    ) -> None:
        require.at_least_one(k=k)
        if not passages:
            raise ValueError("there are 0 passages: nothing can be looked up")
        self.passages, self.search, self.write, self.k = passages, search, write, k

    def prompt(self, question: str, passages: Sequence[Passage]) -> str:
        """Write what the model reads: the rules, the numbered passages, the question.

        Args:
            question: one question
            passages: the passages to cite, from 1

        Returns:
            A text that ends in ``Answer:``.
        """
        numbered = [
            f"[{number}] {passage.text} ({passage.source})"
            for number, passage in enumerate(passages, start=1)
        ]
        rules = (
            "Answer the question from the passages only, and cite them as [1]. If they "
            "do not hold the answer, say so."
        )
        return "\n\n".join([rules, *numbered, f"Question: {question}\nAnswer:"])

    def answer(self, question: str) -> CitedAnswer:
        """Look the question up, let the model write, and read its citations.

        Where nothing is found the model is not asked: it could only invent.

        Args:
            question: one question

        Returns:
            The answer with its citations.

        Raises:
            ValueError: if the question is empty.
        """
        if not question.strip():
            raise ValueError(f"question={question!r} must not be empty")
        hits = self.search(question, self.k)
        shown = tuple(self.passages[hit.document] for hit in hits)
        if not shown:
            return CitedAnswer(self.NOTHING_FOUND, (), (), ())
        text = self.write(self.prompt(question, shown)).strip()
        cited = cited_numbers(text)
        real = tuple(number for number in cited if 1 <= number <= len(shown))
        wrong = tuple(number for number in cited if number not in real)
        return CitedAnswer(text, shown, real, wrong)


def cited_numbers(text: str) -> list[int]:
    """Read the citations in a text: ``[2]``, or several in one, ``[1, 3]``.

    Args:
        text: what a model wrote

    Returns:
        The numbers in the order of their first citation, each once.

    >>> cited_numbers("Denmark [2], not Sweden [1, 2].")
    [2, 1]
    """
    brackets = re.findall(r"\[(\d+(?:\s*,\s*\d+)*)\]", text)
    numbers = [int(number) for each in brackets for number in each.split(",")]
    return list(dict.fromkeys(numbers))


def _check_relevant(relevant: Collection[int]) -> None:
    if not relevant:
        raise ValueError("relevant is empty: expected at least one document")

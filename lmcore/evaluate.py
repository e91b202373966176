"""Evaluation: how good is an answer, when many answers would do?

Chapter 16 of the book. The module builds, in this order: whether an answer is right
word for word; how many words it shares with the right one; how many short stretches of
a translation occur in others (BLEU); how long a common thread of words a summary keeps
(ROUGE-L); and how likely one of k programs passes its tests.

All measures lie between 0 and 1. BLEU and ROUGE-L take texts that are already cut into
words (`words`, or any tokenizer's): the same texts cut otherwise get another number, so
that numbers can be compared only if their cut is the same.

Left out: measures that use a model (BERTScore, a model as judge), and stemming.

Papers: Rajpurkar et al., 2016 (exact match, F1); Papineni et al., 2002, and Post, 2018
(BLEU); Lin, 2004 (ROUGE); Chen et al., 2021 (pass@k).
"""

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from . import require

Words = Sequence[str]

# --- Right or wrong -----------------------------------------------------------------


def words(text: str) -> list[str]:
    """Cut a text into lower-case words and numbers; all other signs are dropped.

    A text without spaces between words, such as Chinese, needs another cut.

    Args:
        text: any text

    Returns:
        The words in order.

    >>> words("To be, or not to be: that's Hamlet 3.1!")
    ['to', 'be', 'or', 'not', 'to', 'be', 'that', 's', 'hamlet', '3', '1']
    """
    return re.findall(r"[^\W_]+", text.lower())


def normalize_answer(text: str) -> str:
    """Drop what makes no difference between two answers.

    Case, punctuation, the articles a, an and the, and extra white space go. If nothing
    else is left, as of the answer "A", the articles stay. Rajpurkar et al., 2016, § 6.

    Args:
        text: an answer

    Returns:
        The words that count, with one space between.

    >>> normalize_answer("  The  Prince of Denmark. ")
    'prince of denmark'
    >>> normalize_answer("A")
    'a'
    """
    text = unicodedata.normalize("NFC", text).lower()
    kept = "".join(sign for sign in text if not _is_punctuation(sign)).split()
    without_articles = [word for word in kept if word not in ("a", "an", "the")]
    return " ".join(without_articles or kept)


def exact_match(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> float:
    """Count the answers that are one of the right ones, after `normalize_answer`.

    Args:
        predictions: one answer per question
        references: the right answers to each question, at least one

    Returns:
        The share of answers that are right, between 0 and 1.

    Raises:
        ValueError: if the numbers differ, there is no question or one without a right
            answer.
        TypeError: if the right answers to a question are one string.

    >>> exact_match(["Black.", "white"], [["black"], ["red", "green"]])
    0.5
    """
    _check_pairs(predictions, references)
    right = [
        normalize_answer(prediction) in [normalize_answer(text) for text in accepted]
        for prediction, accepted in zip(predictions, references, strict=True)
    ]
    return sum(right) / len(right)


def word_f1(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Share of common words, for answers that are partly right.

    The harmonic mean of precision (of the predicted words, those that are right) and
    recall (of the right words, those that are predicted); the best over the right
    answers, averaged over the questions. Rajpurkar et al., 2016, § 6.

    Args:
        predictions: one answer per question
        references: the right answers to each question, at least one

    Returns:
        The mean, between 0 and 1.

    Raises:
        ValueError: as `exact_match`.
        TypeError: as `exact_match`.

    >>> round(word_f1(["the old king Lear"], [["King Lear"]]), 4)
    0.8
    """
    _check_pairs(predictions, references)
    best = [
        max(_common_words_f1(prediction, text) for text in accepted)
        for prediction, accepted in zip(predictions, references, strict=True)
    ]
    return sum(best) / len(best)


# --- Translations -------------------------------------------------------------------


def bleu(
    candidates: Sequence[Words],
    references: Sequence[Sequence[Words]],
    max_order: int = 4,
    *,
    smooth: bool = False,
) -> float:
    """Compare translations with others by the runs of 1 to 4 words that they share.

    The geometric mean of the precisions p_1 … p_4 over the whole corpus, times a
    penalty for being short. A run counts at most as often as it occurs in one
    reference. With c words in all candidates and r in the references (of each
    sentence's references the one nearest in length, the shorter of two), the penalty is
    ``exp(1 - r / c)`` if c < r. Papineni et al., 2002, § 2.

    Two conventions, as in sacreBLEU's ``effective_order``: an order for which the
    candidates have no run at all is left out, so that a perfect sentence of three words
    gets 1; and if some order has no match, BLEU is 0, unless ``smooth``.

    Args:
        candidates: one text per sentence, as words
        references: for each sentence, at least one text as words
        max_order: the longest run
        smooth: count 1/2, 1/4, … matches for the first, second, … order without any
            (the smoothing "exp" of sacreBLEU). For single sentences.

    Returns:
        BLEU, between 0 and 1; often printed times 100.

    Raises:
        ValueError: if the numbers differ, there is no sentence or one without a
            reference, or ``max_order`` is less than 1.
        TypeError: if a text is a string.

    >>> text = "the cat is on the mat".split()
    >>> round(bleu(["the the the cat".split()], [[text]], max_order=2), 4)
    0.3033
    """
    _check_pairs(candidates, references, texts="words")
    require.at_least_one(max_order=max_order)
    pairs = list(zip(candidates, references, strict=True))
    n_words = sum(len(candidate) for candidate in candidates)
    n_wanted = sum(_nearest_length(len(c), texts) for c, texts in pairs)
    log_precisions, n_smoothed, any_match = [], 0, False
    for order in range(1, max_order + 1):
        matches = sum(_clipped_matches(c, texts, order) for c, texts in pairs)
        total = sum(max(len(c) - order + 1, 0) for c in candidates)
        any_match = any_match or matches > 0
        if total == 0:
            break
        if matches == 0:
            n_smoothed += 1
            matches = 0.5**n_smoothed if smooth else 0
        log_precisions.append(math.log(matches / total) if matches else -math.inf)
    if not any_match:
        return 0.0
    log_penalty = min(0.0, 1 - n_wanted / n_words)
    return math.exp(log_penalty + sum(log_precisions) / len(log_precisions))


# --- Summaries ----------------------------------------------------------------------


@dataclass(frozen=True)
class Overlap:
    """How much of two texts is common.

    >>> Overlap(precision=1.0, recall=0.5, f=2 / 3).recall
    0.5
    """

    precision: float  # the share of the candidate that is common
    recall: float  # the share of the reference that is common
    f: float  # both in one number


def longest_common_subsequence(a: Words, b: Words) -> int:
    """Count the words of the longest thread that runs through both texts, with gaps.

    Args:
        a: words
        b: words

    Returns:
        The length of the longest common subsequence.

    >>> longest_common_subsequence("A B C".split(), "A C B".split())
    2
    """
    row = [0] * (len(b) + 1)  # for the words of a so far and the first j words of b
    for word in a:
        above = row
        row = [0]
        for j, other in enumerate(b):
            longer = above[j] + 1 if word == other else max(above[j + 1], row[j])
            row.append(longer)
    return row[-1]


def rouge_l(candidate: Words, reference: Words, beta: float = 1.0) -> Overlap:
    """Compare a summary with another by their longest common thread of words.

    Precision is its share of the candidate, recall its share of the reference, and
    ``f = (1 + β²) P R / (R + β² P)``. Lin, 2004, § 3.1.

    Args:
        candidate: words
        reference: words
        beta: how much more recall counts than precision; positive

    Returns:
        The three numbers, all 0 if the texts share nothing.

    Raises:
        ValueError: if ``beta`` is not positive.
        TypeError: if a text is a string.

    >>> rouge_l("police kill the gunman".split(), "police killed the gunman".split())
    Overlap(precision=0.75, recall=0.75, f=0.75)
    """
    require.words(candidate)
    require.words(reference)
    require.positive(beta=beta)
    common = longest_common_subsequence(candidate, reference)
    if common == 0:
        return Overlap(0.0, 0.0, 0.0)
    precision, recall = common / len(candidate), common / len(reference)
    f = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    return Overlap(precision, recall, f)


# --- Programs -----------------------------------------------------------------------


def pass_at_k(n_samples: int, n_correct: int, k: int) -> float:
    """Estimate how likely at least one of k programs is right, from n ≥ k samples.

    ``1 - C(n - c, k) / C(n, k)``: the share of all choices of k samples that hold a
    right one. It is unbiased, while ``1 - (1 - c/n)^k`` is too low. Chen et al., 2021,
    eq. (1).

    Args:
        n_samples: n, the programs written for one task
        n_correct: c, those that pass all tests
        k: the programs one may hand in

    Returns:
        The probability, between 0 and 1.

    Raises:
        ValueError: if not 0 ≤ c ≤ n or not 1 ≤ k ≤ n.

    >>> pass_at_k(n_samples=4, n_correct=1, k=2)
    0.5
    """
    if not 0 <= n_correct <= n_samples:
        raise ValueError(
            f"n_correct={n_correct} must lie between 0 and n_samples={n_samples}"
        )
    if not 1 <= k <= n_samples:
        raise ValueError(f"k={k} must lie between 1 and n_samples={n_samples}")
    return 1 - math.comb(n_samples - n_correct, k) / math.comb(n_samples, k)


def _is_punctuation(sign: str) -> bool:
    return sign in string.punctuation or unicodedata.category(sign).startswith("P")


def _common_words_f1(prediction: str, reference: str) -> float:
    """2 · common / (both lengths); two empty answers are equal."""
    ours = normalize_answer(prediction).split()
    wanted = normalize_answer(reference).split()
    if not ours or not wanted:
        return float(ours == wanted)
    common = (Counter(ours) & Counter(wanted)).total()
    return 2 * common / (len(ours) + len(wanted))


def _runs(text: Words, order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(text[i : i + order]) for i in range(len(text) - order + 1))


def _clipped_matches(candidate: Words, references: Sequence[Words], order: int) -> int:
    """The candidate's runs, each at most as often as in the reference with most."""
    most: Counter[tuple[str, ...]] = Counter()
    for reference in references:
        most |= _runs(reference, order)
    return (_runs(candidate, order) & most).total()


def _nearest_length(length: int, references: Sequence[Words]) -> int:
    """The length nearest to the candidate's; of two equally near, the shorter."""
    return min((abs(len(text) - length), len(text)) for text in references)[1]


def _check_pairs(
    predictions: Sequence, references: Sequence, texts: str = "strings"
) -> None:
    if isinstance(predictions, str) or isinstance(references, str):
        raise TypeError("expected a list of texts and got one string")
    if len(predictions) != len(references):
        raise ValueError(
            f"there are {len(predictions)} answers and references for "
            f"{len(references)}: expected the same number"
        )
    if not predictions:
        raise ValueError("there are 0 answers: nothing can be measured")
    for number, accepted in enumerate(references):
        if isinstance(accepted, str):
            raise TypeError(
                f"references[{number}] is the string {accepted[:40]!r}, expected a "
                "list of references"
            )
        if not accepted:
            raise ValueError(f"references[{number}] is empty: expected at least one")
    if texts == "words":
        for text in [*predictions, *(text for each in references for text in each)]:
            require.words(text)

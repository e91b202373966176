"""Segmentation: where does one word end and the next begin?

Chapter 01 of the book. Chinese is written without spaces, so that already the first
step of reading is a decision. The module builds, in this order: all the ways to cut a
sentence into words of a dictionary, and how many there are; two greedy rules, from the
left and from the right; the most probable cut, found without trying them all; and a
score for how well a cut agrees with a person's.

Left out: words that are in no dictionary. A character that starts no known word becomes
a piece of its own, and names are cut into pieces. What a word means to its neighbours
is left out too: every word is as probable as it is in general.

Papers: Viterbi, 1967 (the best path); Sproat, Shih, Gale and Chang, 1996 (Chinese as a
path through weighted words); Sproat and Emerson, 2003 (scoring a segmentation).
"""

import importlib.resources
import importlib.util
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

# --- Every way to cut a sentence ----------------------------------------------------


def all_segmentations(text: str, vocabulary: Collection[str]) -> list[list[str]]:
    """List every way to cut a text into words of the vocabulary.

    The cuts of a text are each possible first word followed by each of the cuts of the
    rest; an empty text can be cut in one way, into no words. Their number can double
    with every character: `count_segmentations` counts them without making them.

    Args:
        text: the sentence
        vocabulary: the known words; a set or a dictionary is fast, a list is not

    Returns:
        The cuts, shorter first words first. None if a character of the text is in no
        word that fits.

    Raises:
        TypeError: if the vocabulary is a string.
        ValueError: if the empty word is in the vocabulary.

    >>> all_segmentations("研究生命", {"研究", "研究生", "生命", "命"})
    [['研究', '生命'], ['研究生', '命']]
    """
    _check_vocabulary(vocabulary)
    cuts: dict[int, list[list[str]]] = {len(text): [[]]}  # start -> cuts from there
    for start in reversed(range(len(text))):
        cuts[start] = [
            [text[start:end], *rest]
            for end in range(start + 1, len(text) + 1)
            if text[start:end] in vocabulary
            for rest in cuts[end]
        ]
    return cuts[0]


def count_segmentations(text: str, vocabulary: Collection[str]) -> int:
    """Count the ways to cut a text into words of the vocabulary, without listing them.

    Args:
        text: the sentence
        vocabulary: the known words

    Returns:
        How many cuts `all_segmentations` would list.

    Raises:
        TypeError: if the vocabulary is a string.
        ValueError: if the empty word is in the vocabulary.

    >>> count_segmentations("a" * 100, {"a", "aa"})
    573147844013817084101
    """
    _check_vocabulary(vocabulary)
    longest = _longest(vocabulary)
    n_cuts = [1] + [0] * len(text)  # n_cuts[end]: the ways to cut text[:end]
    for end in range(1, len(text) + 1):
        for start in range(max(0, end - longest), end):
            if text[start:end] in vocabulary:
                n_cuts[end] += n_cuts[start]
    return n_cuts[-1]


# --- Greedy rules -------------------------------------------------------------------


def longest_match(text: str, vocabulary: Collection[str]) -> list[str]:
    """Cut a text from the left, each time at the longest word that fits.

    A character that starts no known word becomes a piece of its own, so that the pieces
    always join to the text again.

    Args:
        text: the sentence
        vocabulary: the known words

    Returns:
        The words in the order of the text.

    Raises:
        TypeError: if the vocabulary is a string.
        ValueError: if the empty word is in the vocabulary.

    >>> longest_match("研究生命起源", {"研究", "研究生", "生命", "命", "起源"})
    ['研究生', '命', '起源']
    """
    _check_vocabulary(vocabulary)
    longest = _longest(vocabulary)
    words: list[str] = []
    start = 0
    while start < len(text):
        end = min(start + longest, len(text))
        while end > start + 1 and text[start:end] not in vocabulary:
            end -= 1
        words.append(text[start:end])
        start = end
    return words


def backward_longest_match(text: str, vocabulary: Collection[str]) -> list[str]:
    """Cut a text from the right, each time at the longest word that fits.

    A character that ends no known word becomes a piece of its own.

    Args:
        text: the sentence
        vocabulary: the known words

    Returns:
        The words in the order of the text.

    Raises:
        TypeError: if the vocabulary is a string.
        ValueError: if the empty word is in the vocabulary.

    >>> words = {"研究", "研究生", "生命", "命", "起源"}
    >>> backward_longest_match("研究生命起源", words)
    ['研究', '生命', '起源']
    """
    _check_vocabulary(vocabulary)
    longest = _longest(vocabulary)
    words: list[str] = []
    end = len(text)
    while end > 0:
        start = max(0, end - longest)
        while start < end - 1 and text[start:end] not in vocabulary:
            start += 1
        words.append(text[start:end])
        end = start
    return words[::-1]


# --- The most probable cut ----------------------------------------------------------


def load_word_counts(path: str | Path | None = None) -> dict[str, int]:
    """Read a dictionary that says how often each word was seen.

    Args:
        path: a UTF-8 file with a word and its count on every line, and perhaps more
            columns after them; the 349,045 words that the package ``jieba`` carries if
            not given (they are read as text, none of its code runs)

    Returns:
        The count of each word. Of a word that stands there twice, the last.

    Raises:
        ModuleNotFoundError: if no path is given and ``jieba`` is not installed.
        ValueError: if a line does not start with a word and a whole number.

    >>> load_word_counts()["语言"]
    7647
    """
    file = _jieba_dictionary() if path is None else Path(path)
    counts = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        columns = line.split()
        if len(columns) < 2 or not columns[1].isdecimal():
            raise ValueError(f"line {number}, {line!r}, is not a word and its count")
        counts[columns[0]] = int(columns[1])
    return counts


def unigram_log_prob(counts: Mapping[str, int]) -> dict[str, float]:
    """Turn counts of words into log-probabilities: each word's share, as a logarithm.

    Args:
        counts: how often each word was seen, at least once each

    Returns:
        The log-probability of each word, in nats.

    Raises:
        ValueError: if there is no word, or one was seen less than once.

    >>> unigram_log_prob({"the": 3, "cat": 1})
    {'the': -0.2876820724517808, 'cat': -1.3862943611198906}
    """
    for word, count in counts.items():
        if count <= 0:
            raise ValueError(f"the count of {word!r} is {count}, expected more than 0")
    if not counts:
        raise ValueError("counts is empty: there is no word to give a probability to")
    log_total = math.log(sum(counts.values()))
    return {word: math.log(count) - log_total for word, count in counts.items()}


def best_segmentation(
    text: str, log_prob: Mapping[str, float], unknown_log_prob: float = -20.0
) -> list[str]:
    """Find the most probable cut of a text, if words do not depend on each other.

    Every place between two characters is a node of a graph and every word that fits
    there an edge. The best way to a place is the best way to an earlier one and one
    more word, so that each place is decided once: the time grows with the length of the
    text, not with the number of its cuts. The algorithm is that of Viterbi, 1967.

    A character that is no word itself may always stand alone, as an unknown word. If
    several cuts are equally probable, which of them is returned is not promised.

    Args:
        text: the sentence
        log_prob: the log-probability of each known word, in nats (`unigram_log_prob`)
        unknown_log_prob: that of an unknown character, in nats; it must be finite, or
            all cuts of a text with such a character were equally bad

    Returns:
        The words in the order of the text.

    Raises:
        TypeError: if ``log_prob`` is not a mapping.
        ValueError: if the empty word is known, or a log-probability is above 0, NaN or
            minus infinity.

    >>> log_prob = unigram_log_prob({"研究": 20, "研究生": 10, "生命": 20, "命": 1})
    >>> best_segmentation("研究生命!", log_prob)
    ['研究', '生命', '!']
    """
    if not isinstance(log_prob, Mapping):
        raise TypeError(
            f"log_prob is a {type(log_prob).__name__}, "
            "expected a mapping from words to their log-probabilities"
        )
    _check_vocabulary(log_prob)
    _check_log_prob("unknown_log_prob", unknown_log_prob)
    longest = _longest(log_prob)
    best = [0.0] + [-math.inf] * len(text)  # best[end]: of all cuts of text[:end]
    last_start = [0] * (len(text) + 1)  # where the last word of that cut starts
    for end in range(1, len(text) + 1):
        for start in range(max(0, end - longest), end):
            word_log_prob = _log_prob_of(text[start:end], log_prob, unknown_log_prob)
            if best[start] + word_log_prob > best[end]:
                best[end] = best[start] + word_log_prob
                last_start[end] = start
    words = []
    end = len(text)
    while end > 0:
        words.append(text[last_start[end] : end])
        end = last_start[end]
    return words[::-1]


def _log_prob_of(
    word: str, log_prob: Mapping[str, float], unknown_log_prob: float
) -> float:
    if word in log_prob:
        _check_log_prob(f"log_prob[{word!r}]", log_prob[word])
        return log_prob[word]
    return unknown_log_prob if len(word) == 1 else -math.inf


# --- How good is a cut? -------------------------------------------------------------


def word_spans(words: Sequence[str]) -> list[tuple[int, int]]:
    """Say where each word starts and ends in the text that the words join to.

    Args:
        words: the pieces of a text, in its order

    Returns:
        For each word the position of its first character and that after its last.

    >>> word_spans(["研究", "生命"])
    [(0, 2), (2, 4)]
    """
    spans = []
    start = 0
    for word in words:
        spans.append((start, start + len(word)))
        start += len(word)
    return spans


def segmentation_f1(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """Measure how well a cut agrees with the right one.

    A word counts as found only if it stands at the same place in both cuts. Precision
    is the share of predicted words that are right, recall the share of right words that
    were predicted, F1 their harmonic mean. For many sentences, pass all their words one
    after the other: longer sentences then weigh more. Sproat and Emerson, 2003, § 3.

    Args:
        gold: the words of the right cut
        predicted: the words of the cut to measure

    Returns:
        F1 between 0 (no word is right) and 1 (all are, also if there are none).

    Raises:
        TypeError: if one of them is a string.
        ValueError: if the two do not join to the same text, or hold an empty word.

    >>> segmentation_f1(["研究", "生命", "起源"], ["研究生", "命", "起源"])
    0.3333333333333333
    """
    _check_same_text(gold, predicted)
    n_words = len(gold) + len(predicted)
    if n_words == 0:
        return 1.0
    n_found = len(set(word_spans(gold)) & set(word_spans(predicted)))
    # The harmonic mean of found / gold and found / predicted, without dividing by 0.
    return 2 * n_found / n_words


# --- Checks and files ---------------------------------------------------------------


def _jieba_dictionary() -> importlib.resources.abc.Traversable:
    spec = importlib.util.find_spec("jieba")
    if spec is None:
        raise ModuleNotFoundError(
            "the dictionary is in the package 'jieba', which is not installed: "
            "run `pip install jieba`, or pass the path of a dictionary of your own"
        )
    # A module made from its spec has files, but none of its code has run.
    module = importlib.util.module_from_spec(spec)
    return importlib.resources.files(module) / "dict.txt"


def _longest(vocabulary: Collection[str]) -> int:
    return max(map(len, vocabulary), default=1)


def _check_vocabulary(vocabulary: Collection[str]) -> None:
    if isinstance(vocabulary, str):
        raise TypeError(f"vocabulary={vocabulary!r} is one string, expected a set")
    if "" in vocabulary:
        raise ValueError("the vocabulary holds the empty word '', which fits anywhere")


def _check_log_prob(name: str, value: float) -> None:
    if not -math.inf < value <= 0:
        raise ValueError(f"{name}={value} is not a finite log-probability: at most 0")


def _check_same_text(gold: Sequence[str], predicted: Sequence[str]) -> None:
    for name, words in (("gold", gold), ("predicted", predicted)):
        if isinstance(words, str):
            raise TypeError(f"{name}={words!r} is one string, expected a list of words")
        if "" in words:
            raise ValueError(f"{name}={words!r} holds an empty word")
    if "".join(gold) != "".join(predicted):
        raise ValueError(
            f"gold joins to {''.join(gold)!r} and predicted to {''.join(predicted)!r}: "
            "two cuts of one text must hold the same characters"
        )

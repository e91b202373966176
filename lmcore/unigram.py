"""Unigram: the probabilities of pieces, learned without knowing where to cut.

Chapter 07 of the book. If we knew how every word is cut, the probability of a piece
would be its share of all pieces; if we knew the probabilities, the best cut could be
computed. Expectation maximization starts from a guess and does the one and the other in
turns. The module builds, in this order: the best cut (Viterbi), what all cuts together
expect (forward and backward sums), one step of learning, the pieces to start with, and
the dropping of those that are missed least. ``tokenizer.UnigramTokenizer`` uses it.

Left out: a prior that drives rare pieces out (sentencepiece has one), and cuts drawn at
random in training (Kudo, 2018, § 2). Log-probabilities are in nats.

Papers: Viterbi, 1967; Dempster, Laird and Rubin, 1977 (expectation maximization); Kudo,
2018 (the Unigram tokenizer).
"""

import math
from collections import Counter
from collections.abc import Mapping

from tqdm.auto import tqdm

# What a character counts at least, so that every word of the training text can be cut.
_LEAST_COUNT = 1e-6


def best_pieces(
    word: str,
    log_prob: Mapping[str, float],
    unknown_log_prob: float = -math.inf,
    longest: int | None = None,
) -> list[str]:
    """Find the most probable cut of a word. Viterbi, 1967.

    The best cut up to a place is the best cut up to an earlier place and one more
    piece. Of equally good cuts, the one with the longer last piece wins.

    Args:
        word: one word
        log_prob: the log-probability of each piece
        unknown_log_prob: that of a character that is no piece
        longest: the length of the longest piece; found out if not given

    Returns:
        The pieces, in the order of the word.

    Raises:
        ValueError: if the word cannot be cut.

    >>> best_pieces("abc", {"abc": -10.0, "ab": -1.0, "c": -1.0})
    ['ab', 'c']
    """
    longest = max(map(len, log_prob), default=1) if longest is None else longest
    best = [0.0] + [-math.inf] * len(word)  # best[end]: of all cuts of word[:end]
    last_start = [-1] * (len(word) + 1)  # where the last piece of that cut starts
    for end in range(1, len(word) + 1):
        for start in range(max(0, end - longest), end):
            default = unknown_log_prob if end - start == 1 else -math.inf
            score = best[start] + log_prob.get(word[start:end], default)
            if score > best[end]:
                best[end], last_start[end] = score, start
    if best[-1] == -math.inf:
        raise ValueError(f"{word!r} cannot be cut into pieces of the vocabulary")
    pieces = []
    end = len(word)
    while end > 0:
        pieces.append(word[last_start[end] : end])
        end = last_start[end]
    return pieces[::-1]


def expected_counts(
    words: Mapping[str, int], log_prob: Mapping[str, float]
) -> tuple[dict[str, float], float]:
    """Count how often each piece is used, over all cuts, weighted by their probability.

    The cuts in which a piece fills a certain place are as probable as all ways to get
    there (forward), times the piece, times all ways to go on (backward); divided by the
    probability of the word, that is the piece's share. No cut is ever written down.

    Args:
        words: the words of the text and how often each occurs
        log_prob: the log-probability of each piece

    Returns:
        The expected count of each piece, and the log-probability of all words.

    Raises:
        ValueError: if a word cannot be cut.

    >>> half = math.log(0.5)
    >>> counts, _ = expected_counts({"aa": 1}, {"a": half, "aa": half})
    >>> {piece: round(count, 3) for piece, count in counts.items()}
    {'a': 0.667, 'aa': 0.667}
    """
    longest = max(map(len, log_prob), default=1)
    counts = dict.fromkeys(log_prob, 0.0)
    total = 0.0
    for word, times in words.items():
        edges = [
            (start, end, word[start:end], log_prob[word[start:end]])
            for start in range(len(word))
            for end in range(start + 1, min(start + longest, len(word)) + 1)
            if word[start:end] in log_prob
        ]
        forward = [0.0] + [-math.inf] * len(word)
        for start, end, _, value in edges:  # by their start
            forward[end] = _log_add(forward[end], forward[start] + value)
        backward = [-math.inf] * len(word) + [0.0]
        for start, end, _, value in reversed(edges):
            backward[start] = _log_add(backward[start], backward[end] + value)
        if forward[-1] == -math.inf:
            raise ValueError(f"{word!r} cannot be cut into pieces of the vocabulary")
        total += times * forward[-1]
        for start, end, piece, value in edges:
            share = math.exp(forward[start] + value + backward[end] - forward[-1])
            counts[piece] += times * share
    return counts, total


def _log_add(one: float, other: float) -> float:
    """The logarithm of the sum of two numbers whose logarithms are given."""
    if one < other:
        one, other = other, one
    if other == -math.inf:
        return one
    return one + math.log1p(math.exp(other - one))


def most_probable(counts: Mapping[str, float]) -> dict[str, float]:
    """Give every piece the probability that makes the counts most probable: its share.

    With `expected_counts` before it, this is one step of expectation maximization,
    after which the words are never less probable (Dempster, Laird and Rubin, 1977). A
    character that is never used keeps a tiny share, so that every word can still be
    cut; any other piece without a share is dropped.

    Args:
        counts: how often each piece is used, at least one of them more than 0 times

    Returns:
        The log-probabilities.

    >>> most_probable({"a": 2.0, "ab": 2.0, "ba": 0.0})
    {'a': -0.6931471805599453, 'ab': -0.6931471805599453}
    """
    kept = {
        piece: max(count, _LEAST_COUNT)
        for piece, count in counts.items()
        if count > 0 or len(piece) == 1
    }
    log_sum = math.log(math.fsum(kept.values()))
    return {piece: math.log(count) - log_sum for piece, count in kept.items()}


def seed_pieces(
    words: Mapping[str, int], n_pieces: int, longest: int = 8
) -> dict[str, float]:
    """Choose pieces to start with: all characters, and what covers much of the text.

    A run of characters covers as much as it is frequent and long.

    Args:
        words: the words of the text and how often each occurs
        n_pieces: how many pieces, more if there are more characters
        longest: the most characters in a piece

    Returns:
        The log-probability of each piece, by its count.

    >>> list(seed_pieces({"abab": 2, "b": 1}, n_pieces=4))
    ['b', 'a', 'ab', 'abab']
    """
    counts: Counter[str] = Counter()
    for word, times in words.items():
        for start in range(len(word)):
            for end in range(start + 1, min(start + longest, len(word)) + 1):
                counts[word[start:end]] += times
    characters = {piece: n for piece, n in counts.most_common() if len(piece) == 1}
    runs = [piece for piece, n in counts.items() if len(piece) > 1 and n > 1]
    runs.sort(key=lambda piece: (-counts[piece] * len(piece), piece))
    chosen = [*characters, *runs[: max(0, n_pieces - len(characters))]]
    log_sum = math.log(sum(counts[piece] for piece in chosen))
    return {piece: math.log(counts[piece]) - log_sum for piece in chosen}


def drop_pieces(
    log_prob: Mapping[str, float], counts: Mapping[str, float], n_pieces: int
) -> dict[str, float]:
    """Keep the pieces whose loss would hurt most; characters always stay.

    Without a piece, its best cut into others takes its place. What that costs in
    log-probability, as often as the piece is used, is its worth. Kudo, 2018, § 3.2.

    Args:
        log_prob: the log-probability of each piece
        counts: how often each piece is expected to be used
        n_pieces: how many pieces to keep, more if there are more characters

    Returns:
        The log-probabilities of the pieces that are kept, which sum to less than 1.

    >>> log_prob = {"a": -2.0, "b": -2.0, "ab": -1.0, "ba": -3.0}
    >>> drop_pieces(log_prob, {"ab": 2.0, "ba": 2.0}, n_pieces=3)
    {'a': -2.0, 'b': -2.0, 'ab': -1.0}
    """
    others = dict(log_prob)
    worth = {}
    for piece, value in log_prob.items():
        if len(piece) > 1:
            del others[piece]
            cut = best_pieces(piece, others, longest=len(piece))
            worth[piece] = counts[piece] * (value - sum(map(log_prob.get, cut)))
            others[piece] = value
    n_runs = max(0, n_pieces - (len(log_prob) - len(worth)))
    kept = set(sorted(worth, key=lambda piece: (-worth[piece], piece))[:n_runs])
    return {
        piece: value
        for piece, value in log_prob.items()
        if len(piece) == 1 or piece in kept
    }


def train_pieces(
    words: Mapping[str, int], n_pieces: int, keep: float = 0.5
) -> dict[str, float]:
    """Learn pieces and their probabilities: start with too many, drop the least useful.

    If the text has more characters than there shall be pieces, only the most frequent
    characters become pieces, and words with others are left out.

    Args:
        words: the words of the text and how often each occurs
        n_pieces: how many pieces there shall be; fewer if the text holds fewer
        keep: the share of pieces that a round of dropping keeps

    Returns:
        The log-probability of each piece, the most probable first.

    Raises:
        ValueError: if there is no word, or all have rarer characters.

    >>> log_prob = train_pieces({"low": 4, "lower": 2, "lowest": 1}, n_pieces=9)
    >>> list(log_prob)[:2]
    ['low', 'lower']
    """
    characters = Counter[str]()
    for word, times in words.items():
        for character in word:
            characters[character] += times
    frequent = {character for character, _ in characters.most_common(n_pieces)}
    words = {word: times for word, times in words.items() if frequent >= set(word)}
    if not frequent or not words:
        raise ValueError(
            f"no word is made of the {len(frequent)} characters that fit in"
        )
    log_prob = seed_pieces(words, 4 * n_pieces)
    with tqdm(unit="round", delay=1) as progress:
        while True:
            for _ in range(2):
                counts, _ = expected_counts(words, log_prob)
                log_prob = most_probable(counts)
            progress.update()
            if len(log_prob) <= n_pieces:
                break
            n_kept = max(n_pieces, int(keep * len(log_prob)))
            log_prob = drop_pieces(log_prob, counts, n_kept)
    return dict(sorted(log_prob.items(), key=lambda item: (-item[1], item[0])))


def check_log_prob(log_prob: Mapping[str, float]) -> None:
    """Refuse what cannot be the log-probabilities of pieces.

    Raises:
        ValueError: if there is no piece, or a log-probability is above 0 or not finite.

    >>> check_log_prob({"a": 0.5})
    Traceback (most recent call last):
    ValueError: log_prob['a']=0.5 is not finite and at most 0
    """
    if not log_prob:
        raise ValueError("log_prob is empty: there is no piece")
    for piece, value in log_prob.items():
        if not -math.inf < value <= 0:
            raise ValueError(f"log_prob[{piece!r}]={value} is not finite and at most 0")

"""Fast byte-pair encoding: the same merges as ``tokenizer``, much sooner.

Chapter 07 of the book. Counting all pairs anew for every merge costs as much for the
last merge as for the first, although a merge changes only the words it occurs in. Here
the counts are kept and put right where a word changes, and a heap holds the pairs in
the order of their counts. Nothing else differs: the two are tested to be equal.
"""

import heapq
import operator
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

from tqdm.auto import tqdm

Piece = TypeVar("Piece", str, bytes)


def train_merges(words: Mapping[str, int], n_pieces: int) -> list[tuple[bytes, bytes]]:
    """Learn the merges of words in bytes: what ``tokenizer.train_merges`` learns.

    Args:
        words: the words of the text and how often each occurs
        n_pieces: how many pieces there shall be, the 256 bytes included

    Returns:
        The merges, in the order in which they were learned.

    Raises:
        ValueError: if ``n_pieces`` is smaller than 256.

    >>> train_merges({"low": 5, "lower": 2, "newest": 6}, n_pieces=259)
    [(b'w', b'e'), (b'l', b'o'), (b'e', b'we')]
    """
    alphabet = [bytes([value]) for value in range(256)]
    cut = {
        tuple(alphabet[value] for value in word.encode("utf-8")): count
        for word, count in words.items()
    }
    return learn(cut, alphabet, n_pieces, operator.add)


def learn(
    words: Mapping[tuple[Piece, ...], int],
    alphabet: Sequence[Piece],
    n_pieces: int,
    join: Callable[[Piece, Piece], Piece],
) -> list[tuple[Piece, Piece]]:
    """Learn merges of any pieces.

    Args:
        words: words that are cut into pieces, and how often each occurs; those with a
            piece that is not in the alphabet are left out
        alphabet: the pieces to start with, in the order that breaks ties
        n_pieces: how many pieces there shall be, those of the alphabet included
        join: makes one piece of two

    Returns:
        The merges, in the order in which they were learned.

    Raises:
        ValueError: if ``n_pieces`` is smaller than the alphabet.

    >>> learn({("a", "b", "b"): 1}, ["a", "b"], 4, operator.add)
    [('a', 'b'), ('ab', 'b')]
    """
    if n_pieces < len(alphabet):
        raise ValueError(
            f"n_pieces={n_pieces} is less than the {len(alphabet)} pieces to start with"
        )
    pieces = list(alphabet)
    numbers = {piece: number for number, piece in enumerate(pieces)}
    known = {word: n for word, n in words.items() if all(p in numbers for p in word)}
    counts = PairCounts([[numbers[p] for p in word] for word in known], known.values())
    merges = []
    with tqdm(total=n_pieces - len(pieces), unit="piece", delay=1) as progress:
        while len(pieces) < n_pieces and (pair := counts.most_frequent()):
            left, right = pieces[pair[0]], pieces[pair[1]]
            merges.append((left, right))
            made = join(left, right)
            if made not in numbers:
                numbers[made] = len(pieces)
                pieces.append(made)
                progress.update()
            counts.merge(pair, numbers[made])
    return merges


class PairCounts:
    """How often two pieces stand side by side, kept right while pairs are merged.

    Pieces are numbers here; of equally frequent pairs the smallest is the first.

    Args:
        words: the numbers of each word's pieces; changed by `merge`
        times: how often each word occurs

    >>> counts = PairCounts([[0, 1, 2], [1, 2]], times=[2, 1])
    >>> counts.most_frequent()
    (1, 2)
    >>> counts.merge((1, 2), made=3)
    >>> counts.words, counts.most_frequent()
    ([[0, 3], [3]], (0, 3))
    """

    def __init__(self, words: Sequence[list[int]], times: Sequence[int]) -> None:
        self.words = list(words)
        self.times = list(times)
        self.counts: dict[tuple[int, int], int] = defaultdict(int)
        self.found_in: dict[tuple[int, int], set[int]] = defaultdict(set)
        for index, word in enumerate(self.words):
            for pair in pairwise(word):
                self.counts[pair] += self.times[index]
                self.found_in[pair].add(index)
        self.heap = [(-count, pair) for pair, count in self.counts.items()]
        heapq.heapify(self.heap)

    def most_frequent(self) -> tuple[int, int] | None:
        """The most frequent pair, or None if there is no pair any more."""
        while self.heap:
            count, pair = heapq.heappop(self.heap)
            now = self.counts.get(pair, 0)
            if now == -count and now > 0:
                return pair
            # Merges around it have made the pair rarer since it was put here.
            if now > 0:
                heapq.heappush(self.heap, (-now, pair))
        return None

    def merge(self, pair: tuple[int, int], made: int) -> None:
        """Put the number ``made`` in the place of the pair, in all words."""
        changed: set[tuple[int, int]] = set()
        for index in self.found_in.pop(pair):
            changed |= self._merge_in_word(index, pair, made)
        self.counts.pop(pair)
        for new_pair in changed - {pair}:
            heapq.heappush(self.heap, (-self.counts[new_pair], new_pair))

    def _merge_in_word(
        self, index: int, pair: tuple[int, int], made: int
    ) -> set[tuple[int, int]]:
        left, right = pair
        old, times, counts = self.words[index], self.times[index], self.counts
        word: list[int] = []
        new_pairs = set()
        start = 0
        while start < len(old):
            if old[start] != left or old[start + 1 : start + 2] != [right]:
                word.append(old[start])
                start += 1
                continue
            if word:
                counts[word[-1], left] -= times
                counts[word[-1], made] += times
                new_pairs.add((word[-1], made))
            if start + 2 < len(old):
                counts[right, old[start + 2]] -= times
                counts[made, old[start + 2]] += times
                new_pairs.add((made, old[start + 2]))
            word.append(made)
            start += 2
        self.words[index] = word
        for new_pair in new_pairs:
            self.found_in[new_pair].add(index)
        return new_pairs

"""From a heap of texts to a corpus: cleaned, without copies, filtered and split.

Chapter 11 of the book, first part; all of it is also reachable as ``lmcore.data``. The
module builds, in this order: cleaning; copies, exact and near, the latter found by
MinHash without comparing every text with every other; a filter of simple rules; and the
split, with all copies of a text on the same side.

Left out: languages (the rules of the filter are for those that put spaces between
words), text inside web pages, personal data, and filters that are learned.

Papers: Broder, 1997 (MinHash); Leskovec, Rajaraman and Ullman, 2014, ch. 3 (bands); Lee
et al., 2022 (what copies do to language models); Rae et al., 2021, app. A (rules).
"""

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from . import require

# --- Cleaning -----------------------------------------------------------------------

_LINE_ENDS = re.compile(r"\r\n?|[\u0085\u2028\u2029]")
_BLANKS = re.compile(r"[\u00a0\u2000-\u200a\u202f\u205f]")
# Written characters have a place or a sound; these have neither. The joiners U+200C and
# U+200D are needed in Persian, in Indian scripts and in emoji, and stay.
_INVISIBLE = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f"
    r"\u202a-\u202e\u2060-\u2064\ufeff\ud800-\udfff]"
)


def clean(text: str) -> str:
    """Write a text as it looks: one way for every character, no invisible ones.

    Characters are composed (Unicode's NFC), lines end in ``\\n``, blanks of special
    width become spaces, control characters and halves of surrogate pairs go, and so do
    blanks at the end of a line, more than one empty line in a row, and those at either
    end of the text. Blanks that begin a line stay, and words are never changed.

    Args:
        text: any text

    Returns:
        The clean text; cleaning it again changes nothing.

    Raises:
        TypeError: if the text is no string.

    >>> clean("Cafe\\u0301\\u00a0noir \\r\\n\\n\\n\\n  two\\u200b")
    'Café noir\\n\\n  two'
    """
    if not isinstance(text, str):
        raise TypeError(f"expected a string, got {type(text).__name__}")
    text = _INVISIBLE.sub("", _BLANKS.sub(" ", _LINE_ENDS.sub("\n", text)))
    text = unicodedata.normalize("NFC", text)
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


# --- Copies -------------------------------------------------------------------------


def shingles(text: str, n_words: int = 5) -> set[str]:
    """Cut a text into its overlapping runs of words, without case and punctuation.

    Args:
        text: any text. Words are runs of letters and digits; a text without spaces
            between its words is better cut beforehand (``" ".join(text)``).
        n_words: how long a run is

    Returns:
        The runs. A shorter text is one run; a text without words has none.

    Raises:
        ValueError: if ``n_words`` is less than 1.

    >>> sorted(shingles("To be, or not to be", n_words=3))
    ['be or not', 'not to be', 'or not to', 'to be or']
    """
    require.at_least_one(n_words=n_words)
    words = re.findall(r"\w+", text.lower())
    last = max(len(words) - n_words, 0)
    runs = (" ".join(words[i : i + n_words]) for i in range(last + 1))
    return {run for run in runs if run}


def jaccard(first: set, second: set) -> float:
    """Measure how much two sets share: the part of all members that is in both.

    Args:
        first: any set
        second: any set

    Returns:
        0 … 1; 1 for two empty sets, which are equal.

    >>> jaccard({"a", "b", "c"}, {"b", "c", "d"})
    0.5
    """
    both = len(first | second)
    return len(first & second) / both if both else 1.0


PRIME = 2**31 - 1  # a prime: then a · x + b takes every value once


def minhash_signature(
    items: Iterable[str], n_hashes: int = 128, seed: int = 0
) -> Tensor:
    """Summarise a set so that two summaries tell how much the sets share.

    Every hash function puts all strings in an order of its own. Which member of two
    sets together comes first is as if drawn by lot; it lies in both with a probability
    of their `jaccard`, and then, and only then, both sets have the same minimum. So
    the share of equal numbers in two signatures estimates the similarity, with a
    standard deviation of at most ``1 / (2 √n_hashes)``. Broder, 1997.

    The functions are ``(a x + b) mod PRIME`` of a number x that is the same for the
    string in every process, today and tomorrow.

    Args:
        items: the set, for example the `shingles` of a text
        n_hashes: how many functions
        seed: draws a and b; only signatures of the same seed can be compared

    Returns:
        The least value of each function, (n_hashes,), int64; all ``PRIME`` for a set
        without members.

    Raises:
        TypeError: if the items are one string.
        ValueError: if ``n_hashes`` is less than 1.

    >>> one = minhash_signature(["a", "b", "c"], n_hashes=1000)
    >>> two = minhash_signature(["b", "c", "d"], n_hashes=1000)
    >>> round((one == two).float().mean().item(), 1)
    0.5
    """
    if isinstance(items, str):
        raise TypeError(f"items={items!r} is one string, expected a set of strings")
    require.at_least_one(n_hashes=n_hashes)
    numbers = torch.tensor([_number(item) for item in set(items)], dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    a = torch.randint(1, PRIME, (n_hashes, 1), generator=generator)
    b = torch.randint(PRIME, (n_hashes, 1), generator=generator)
    least = torch.full((n_hashes,), PRIME)
    # A long text is read in parts, so that it needs no large table.
    for part in numbers.split(10_000) if len(numbers) else ():
        hashes = (a * part + b) % PRIME  # below 2⁶², which int64 holds
        least = torch.minimum(least, hashes.amin(dim=1))
    return least


def near_duplicates(
    texts: Sequence[str],
    threshold: float = 0.8,
    n_words: int = 5,
    n_hashes: int = 128,
    n_bands: int = 32,
) -> list[tuple[int, int, float]]:
    """Find all pairs of texts that share most of their runs of words.

    Signatures are cut into bands; two texts with one equal band are a candidate, and
    only candidates are compared. Two texts of similarity s meet with a probability of
    ``1 - (1 - s ** rows) ** n_bands`` with ``rows = n_hashes / n_bands``: 0.9999999 for
    s = 0.8 here, 0.05 for s = 0.2. What is returned has been compared exactly, so that
    there are no false pairs, and missing ones are rare.

    Args:
        texts: any texts
        threshold: the similarity of the `shingles` (`jaccard`) from which on two texts
            are near duplicates
        n_words: how many words a shingle has
        n_hashes: how long a signature is
        n_bands: a divisor of ``n_hashes``. More bands find less similar pairs.

    Returns:
        Two indices in rising order and the similarity of each pair, in the order of the
        indices.

    Raises:
        TypeError: if the texts are one string.
        ValueError: if the threshold is not in (0, 1] or the bands do not divide the
            signature.

    >>> verse = "the quality of mercy is not strained it droppeth as the gentle rain"
    >>> near_duplicates([verse, "another text", verse + "!"])
    [(0, 2, 1.0)]
    """
    _refuse_string(texts)
    _check_threshold(threshold)
    require.at_least_one(n_bands=n_bands, n_hashes=n_hashes)
    require.divisible(n_hashes=n_hashes, n_bands=n_bands)
    runs = [shingles(text, n_words) for text in texts]
    pairs = sorted(_candidates(runs, n_hashes, n_bands))
    compared = ((i, j, jaccard(runs[i], runs[j])) for i, j in pairs)
    return [(i, j, shared) for i, j, shared in compared if shared >= threshold]


def deduplicate(texts: Iterable[str], threshold: float | None = None) -> list[str]:
    """Keep one of several equal texts, and, if asked, one of several similar ones.

    Args:
        texts: any texts, which may be read one after the other
        threshold: None keeps texts that differ after `clean`; a number also drops a
            text that shares at least this part of its shingles (`near_duplicates`) with
            an earlier one that is kept

    Returns:
        The texts that stay, unchanged and in order; the first of its kind stays.

    Raises:
        TypeError: if the texts are one string.
        ValueError: if the threshold is not in (0, 1].

    >>> deduplicate(["to be", "or not", "to be  "])
    ['to be', 'or not']
    """
    _refuse_string(texts)
    if threshold is not None:
        _check_threshold(threshold)
    first: dict[bytes, str] = {}
    for text in texts:
        first.setdefault(_digest(clean(text)), text)
    kept = list(first.values())
    if threshold is None:
        return kept
    dropped: set[int] = set()
    for earlier, later, _ in near_duplicates(kept, threshold):
        if earlier not in dropped:
            dropped.add(later)
    return [text for index, text in enumerate(kept) if index not in dropped]


def _candidates(
    runs: Sequence[set[str]], n_hashes: int, n_bands: int
) -> set[tuple[int, int]]:
    buckets: dict[tuple, list[int]] = defaultdict(list)
    for index, members in enumerate(runs):
        if members:
            bands = minhash_signature(members, n_hashes).view(n_bands, -1).tolist()
            for number, band in enumerate(bands):
                buckets[number, *band].append(index)
    return {pair for bucket in buckets.values() for pair in combinations(bucket, 2)}


def _number(item: str) -> int:
    # Python's own hash() of a string is another in every process.
    return int.from_bytes(_digest(item), "big") % PRIME


def _digest(text: str) -> bytes:
    return hashlib.blake2b(
        text.encode("utf-8", "surrogatepass"), digest_size=16
    ).digest()


# --- Quality ------------------------------------------------------------------------


@dataclass(frozen=True)
class QualityRules:
    """What a text must be like: the rules of Rae et al., 2021, app. A.1.

    >>> QualityRules(min_words=10).max_words
    100000
    """

    min_words: int = 50  # shorter texts are headings and menus
    max_words: int = 100_000
    min_word_length: float = 3.0  # the mean, in characters
    max_word_length: float = 10.0
    max_symbols: float = 0.1  # "#" and "…" per word
    max_bullets: float = 0.9  # the share of lines that begin with a bullet
    max_cut_lines: float = 0.3  # the share of lines that end in "…"
    min_alphabetic: float = 0.8  # the share of words with a letter in them
    min_stop_words: int = 2  # how many of `STOP_WORDS` must be there
    max_repeated_lines: float = 0.3  # the share of lines that stood there before


STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})


def quality_problems(text: str, rules: QualityRules | None = None) -> list[str]:
    """Say what speaks against a text.

    Args:
        text: any text in a language that puts spaces between words
        rules: what it must be like; English prose, if not given

    Returns:
        What was found and what is allowed, one string for every broken rule.

    >>> quality_problems("To be", QualityRules(min_words=1, min_word_length=2))
    []
    >>> quality_problems("To be", QualityRules(min_words=9, min_word_length=2))
    ['n_words=2 < 9']
    """
    rules = rules or QualityRules()
    found = _measures(text)
    limits = [
        ("n_words", rules.min_words, rules.max_words),
        ("word_length", rules.min_word_length, rules.max_word_length),
        ("symbols", 0, rules.max_symbols),
        ("bullets", 0, rules.max_bullets),
        ("cut_lines", 0, rules.max_cut_lines),
        ("alphabetic", rules.min_alphabetic, 1),
        ("stop_words", rules.min_stop_words, len(STOP_WORDS)),
        ("repeated_lines", 0, rules.max_repeated_lines),
    ]
    problems = []
    for name, least, most in limits:
        if found[name] < least:
            problems.append(f"{name}={found[name]:.3g} < {least:.3g}")
        if found[name] > most:
            problems.append(f"{name}={found[name]:.3g} > {most:.3g}")
    return problems


def quality_filter(
    texts: Iterable[str], rules: QualityRules | None = None
) -> Iterator[str]:
    """Let through the texts against which nothing speaks (`quality_problems`).

    Args:
        texts: any texts, which are read one after the other
        rules: what they must be like; English prose, if not given

    Returns:
        An iterator over those that pass.

    Raises:
        TypeError: if the texts are one string.

    >>> rules = QualityRules(min_words=3, min_stop_words=1)
    >>> list(quality_filter(["Click here", "One of these days"], rules))
    ['One of these days']
    """
    _refuse_string(texts)
    return (text for text in texts if not quality_problems(text, rules))


def _measures(text: str) -> dict[str, float]:
    words = text.split()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    symbols = text.count("#") + text.count("...") + text.count("…")
    bare = {word.lower().strip(".,;:!?\"'()") for word in words}
    n_words, n_lines = max(len(words), 1), max(len(lines), 1)
    return {
        "n_words": len(words),
        "word_length": sum(map(len, words)) / n_words,
        "symbols": symbols / n_words,
        "bullets": sum(line.startswith(("•", "-", "*")) for line in lines) / n_lines,
        "cut_lines": sum(line.endswith(("...", "…")) for line in lines) / n_lines,
        "alphabetic": sum(any(map(str.isalpha, word)) for word in words) / n_words,
        "stop_words": len(STOP_WORDS & bare),
        "repeated_lines": (len(lines) - len(set(lines))) / n_lines,
    }


# --- Two sides ----------------------------------------------------------------------


def split(
    texts: Sequence[str], held_out: float = 0.1, *, generator: torch.Generator
) -> tuple[list[str], list[str]]:
    """Put whole texts aside, to be asked about later, and none of them on both sides.

    Equal texts go to the same side. Similar ones may not: `deduplicate` first.

    Args:
        texts: any texts, whole: windows of one text would know each other
        held_out: the share of the different texts to put aside, rounded, but at least
            one text on either side
        generator: draws them

    Returns:
        The texts to learn from and those held out, both in the order given.

    Raises:
        TypeError: if the texts are one string.
        ValueError: if the share is not in (0, 1) or there are less than two texts.

    >>> dice = torch.Generator().manual_seed(1)
    >>> split(["a", "b", "c", "b"], 0.3, generator=dice)
    (['a', 'c'], ['b', 'b'])
    """
    _refuse_string(texts)
    if not 0 < held_out < 1:
        raise ValueError(f"held_out={held_out} must lie in (0, 1)")
    different = list(dict.fromkeys(texts))
    if len(different) < 2:
        raise ValueError(f"{len(different)} different texts cannot be split in two")
    n_held_out = min(max(round(held_out * len(different)), 1), len(different) - 1)
    order = torch.randperm(
        len(different), generator=generator, device=generator.device
    ).tolist()
    aside = {different[index] for index in order[:n_held_out]}
    return (
        [text for text in texts if text not in aside],
        [text for text in texts if text in aside],
    )


def _refuse_string(texts: Iterable[str]) -> None:
    if isinstance(texts, str):
        raise TypeError(f"{texts[:40]!r} is one string, expected several texts")


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold} must lie in (0, 1]")

"""Tokenization: what does a model really read?

Chapter 07 of the book. A model reads numbers, so text has to be cut into pieces and
every piece must have a number, its id. The module builds, in this order: what all
tokenizers share; the two oldest answers, characters and words; pieces between the two,
found by merging what often stands together (byte-pair encoding), its sister that
matches the longest piece (WordPiece), and one that weighs all cuts by their probability
(Unigram); and two measures of how many tokens a text costs.

Left out: changing the text before it is cut (lower case, accents, Unicode forms), and
cuts drawn at random in training. The fast learning of merges is in ``lmcore.fast_bpe``,
the probabilities behind the Unigram tokenizer are in ``lmcore.unigram``, and the
spelling of GPT-2's files is in ``lmcore.gpt2_files``.

Papers: Gage, 1994 (byte pairs); Sennrich, Haddow and Birch, 2016 (BPE for words);
Radford et al., 2019 (bytes, pre-splitting); Schuster and Nakajima, 2012, and Wu et al.,
2016 (WordPiece); Kudo, 2018 (Unigram); Rust et al., 2021 (fertility).
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import regex

from . import fast_bpe, gpt2_files, unigram

_SIGNS = r"\p{P}$+<=>^`|~"  # punctuation, and the ASCII signs that BERT counts to it
_CHINESE = r"\u3400-\u4DBF\u4E00-\u9FFF\uF900-\uFAFF\U00020000-\U000323AF"

# Signs and Chinese characters stand alone; all else ends at white space.
WORD_PATTERN = rf"[{_SIGNS}{_CHINESE}]|[^\s{_SIGNS}{_CHINESE}]+"
# Radford et al., 2019: a word takes the space before it along.
GPT2_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)
# The later rule of OpenAI's models: numbers end after three digits, lines with "\n".
GPT4_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
CHARACTER_PATTERN = r"(?s)."
# Every word takes one white space before it along.
SPACE_PATTERN = r"\s?\S+|\s"

# Words that were cut before are remembered, but not without end.
_REMEMBERED_WORDS = 2**18


# --- What all tokenizers share ------------------------------------------------------


class Tokenizer:
    """Pieces of text with their ids, and special tokens among them.

    A special token is a button, not a text: wherever its name stands in a text, it
    becomes one id and is never cut. The text before and after it is cut as if each
    stood alone.

    This class is what the five tokenizers below have in common. Each of them adds
    ``train``, how an ordinary text is cut, and how pieces are joined again.

    Args:
        pieces: the piece of each id, special tokens included
        special_tokens: which of the pieces are special

    Raises:
        TypeError: if the special tokens are one string.
        ValueError: if a piece is empty or stands there twice, or a special token is not
            among the pieces.

    >>> tokenizer = CharTokenizer("abc", special_tokens=["<end>"])
    >>> tokenizer.pieces
    ['<unknown>', '<end>', 'a', 'b', 'c']
    >>> tokenizer.special_tokens, tokenizer.vocab_size
    ({'<unknown>': 0, '<end>': 1}, 5)
    """

    def __init__(
        self, pieces: Iterable[str | bytes], special_tokens: Sequence[str]
    ) -> None:
        _check_special_names(special_tokens)
        self.pieces = list(pieces)
        self._ids = {piece: index for index, piece in enumerate(self.pieces)}
        for piece, count in Counter(self.pieces).items():
            if count > 1:
                raise ValueError(f"the piece {piece!r} stands {count} times, not once")
            if len(piece) == 0:
                raise ValueError(f"the piece {piece!r} is empty and fits everywhere")
        for name in special_tokens:
            if name not in self._ids:
                raise ValueError(f"special token {name!r} is not among the pieces")
        self.special_tokens = {name: self._ids[name] for name in special_tokens}
        # Of special tokens that start alike, the longest is meant.
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        self._special = regex.compile(f"({'|'.join(map(regex.escape, longest_first))})")
        self._remembered: dict[str, list[int]] = {}

    @property
    def vocab_size(self) -> int:
        """V, the number of ids, those of special tokens included."""
        return len(self.pieces)

    def encode(self, text: str, use_special: bool = True) -> list[int]:
        """Turn a text into ids.

        Args:
            text: any text
            use_special: whether the names of special tokens stand for them. False for
                text from strangers, who could otherwise press your buttons.

        Returns:
            The ids, in the order of the text.

        Raises:
            TypeError: if the text is not a string.
            ValueError: if it holds half of a surrogate pair, which is no character.

        >>> tokenizer = CharTokenizer("abc", special_tokens=["<end>"])
        >>> tokenizer.encode("ab<end>")
        [2, 3, 1]
        >>> tokenizer.encode("ab<end>", use_special=False)
        [2, 3, 0, 0, 0, 0, 0]
        """
        _check_text(text)
        if not use_special or not self.special_tokens:
            return self._encode_ordinary(text)
        ids: list[int] = []
        for part in self._special.split(text):
            if part in self.special_tokens:
                ids.append(self.special_tokens[part])
            else:
                ids += self._encode_ordinary(part)
        return ids

    def encode_iterable(self, texts: Iterable[str]) -> Iterator[int]:
        """Give the ids of many texts one by one, holding one text at a time.

        Every text is cut alone. For a file too large for the memory, give its lines
        (``open(path, newline="")``): only white space that runs over the end of a line
        is then cut otherwise than in the whole text.

        Raises:
            TypeError: if the texts are one string.

        >>> list(CharTokenizer("abc").encode_iterable(["ab", "ca"]))
        [1, 2, 3, 1]
        """
        _check_texts(texts)
        return (index for text in texts for index in self.encode(text))

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Turn ids, which may stand in a tensor of one dimension, back into a text.

        Args:
            ids: ids of this tokenizer
            skip_special: whether special tokens are left out

        Returns:
            The text.

        Raises:
            ValueError: if an id is not between 0 and V - 1.

        >>> CharTokenizer("abc").decode([3, 1, 2])
        'cab'
        """
        pieces = []
        for index in map(int, ids):
            if not 0 <= index < self.vocab_size:
                raise ValueError(f"id {index} is not in 0 … {self.vocab_size - 1}")
            piece = self.pieces[index]
            if not (skip_special and piece in self.special_tokens):
                pieces.append(piece)
        return self._join(pieces)

    def save(self, path: str | Path) -> None:
        """Write the tokenizer to a JSON file that `load` reads.

        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "abc.json"
        >>> CharTokenizer("abc").save(path)
        >>> CharTokenizer.load(path).encode("cab")
        [3, 1, 2]
        """
        content = {"type": type(self).__name__, **self._settings()}
        text = json.dumps(content, ensure_ascii=False, indent=0)
        Path(path).write_text(text + "\n", encoding="utf-8", newline="\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a tokenizer that `save` wrote; ``Tokenizer.load`` reads any kind.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file holds no tokenizer, or one of another kind.
        """
        kinds = {kind.__name__: kind for kind in Tokenizer.__subclasses__()}
        text = Path(path).read_text(encoding="utf-8")
        try:
            content = json.loads(text)
            kind = kinds[content.pop("type")]
            loaded = kind._from_settings(content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{str(path)!r} holds no tokenizer: {error!r}") from error
        if not isinstance(loaded, cls):
            raise ValueError(
                f"{str(path)!r} holds a {kind.__name__}, expected a {cls.__name__}"
            )
        return loaded

    def _encode_ordinary(self, text: str) -> list[int]:
        """Cut a text in which nothing is special: word by word."""
        ids: list[int] = []
        remembered = self._remembered
        for word in self._words(text):
            if word not in remembered:
                if len(remembered) >= _REMEMBERED_WORDS:
                    remembered.clear()
                remembered[word] = self._encode_word(word)
            ids += remembered[word]
        return ids

    def _words(self, text: str) -> list[str]:
        """Cut a text into the words that no piece may reach across."""
        raise NotImplementedError

    def _encode_word(self, word: str) -> list[int]:
        raise NotImplementedError

    def _join(self, pieces: list) -> str:
        return "".join(pieces)

    def _settings(self) -> dict[str, Any]:
        """What `save` writes: the arguments that make this tokenizer again."""
        special = list(self.special_tokens)
        ordinary = [piece for piece in self.pieces if piece not in self.special_tokens]
        return {"pieces": ordinary, "special_tokens": special}

    @classmethod
    def _from_settings(cls, settings: dict[str, Any]) -> Self:
        return cls(**settings)


def pre_split(text: str, pattern: str = GPT2_PATTERN) -> list[str]:
    """Cut a text into words before any piece is looked for.

    No piece reaches across two words, so that no merge wastes an id on "of the" or
    "dog.". The patterns of this module know the letters and digits of all alphabets;
    GPT-2's leaves a space with the word after it, so that nothing is lost.

    Args:
        text: any text
        pattern: what a word looks like, in the language of the package ``regex``

    Returns:
        The words, in the order of the text.

    >>> pre_split("Who's there?  Nay.")
    ['Who', "'s", ' there', '?', ' ', ' Nay', '.']
    >>> pre_split("Who's there?", WORD_PATTERN)
    ['Who', "'", 's', 'there', '?']
    """
    return regex.findall(pattern, text)


def count_words(
    texts: Iterable[str], pattern: str, special_tokens: Iterable[str] = ()
) -> Counter[str]:
    """Count the words of all texts, text by text and without the special tokens.

    Training needs no more than this: that "the" occurs in ten thousand places tells no
    more than that it occurs ten thousand times.

    Raises:
        TypeError: if the texts are one string.

    >>> count_words(["to be", "or not to be<end>"], WORD_PATTERN, ["<end>"])
    Counter({'to': 2, 'be': 2, 'or': 1, 'not': 1})
    """
    _check_texts(texts)
    # The empty alternative, which never matches, stands for "no special tokens".
    names = sorted(special_tokens, key=len, reverse=True)
    special = regex.compile("|".join(map(regex.escape, names)) or r"(?!)")
    counts: Counter[str] = Counter()
    for text in texts:
        _check_text(text)
        for part in special.split(text):
            counts.update(pre_split(part, pattern))
    return counts


# --- Characters and words -----------------------------------------------------------


class CharTokenizer(Tokenizer):
    """Every character is a token: no token is hard to learn, and every text is long.

    Args:
        pieces: the characters; ``<unknown>``, which stands for all others, and the
            special tokens come before them
        special_tokens: the names of special tokens

    >>> tokenizer = CharTokenizer.train(["to be or not to be"])
    >>> tokenizer.encode("bet")
    [4, 5, 3]
    >>> tokenizer.decode(tokenizer.encode("bat"))
    'b<unknown>t'
    """

    UNKNOWN = "<unknown>"

    def __init__(
        self, pieces: Iterable[str], special_tokens: Sequence[str] = ()
    ) -> None:
        special = _special_names(self.UNKNOWN, special_tokens)
        super().__init__([*special, *pieces], special)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int | None = None,
        special_tokens: Sequence[str] = (),
    ) -> Self:
        """Keep the most frequent characters; of equally frequent ones, the first seen.

        Args:
            texts: the texts to learn from
            vocab_size: V at most, special tokens included; all characters if not given
            special_tokens: the names of special tokens

        Raises:
            TypeError: if the texts are one string.
            ValueError: if V leaves no room for a character.

        >>> CharTokenizer.train(["to be or not to be"], vocab_size=4).pieces
        ['<unknown>', ' ', 'o', 't']
        """
        special = _special_names(cls.UNKNOWN, special_tokens)
        counts = count_words(texts, CHARACTER_PATTERN, special)
        return cls(_most_frequent(counts, vocab_size, special), special)

    def _words(self, text: str) -> list[str]:
        return list(text)

    def _encode_word(self, word: str) -> list[int]:
        return [self._ids.get(word, self._ids[self.UNKNOWN])]


class WordTokenizer(Tokenizer):
    """Every word is a token, and so is every sign of punctuation.

    A word that was not seen in training is ``<unknown>``. White space is not kept:
    decoding puts one space between any two words. A Chinese character counts as a word,
    since nothing shows where a Chinese word ends (chapter 01).

    Args:
        pieces: the words; ``<unknown>`` and the special tokens come before them
        special_tokens: the names of special tokens

    >>> tokenizer = WordTokenizer.train(["to be or not to be"])
    >>> tokenizer.encode("not to see")
    [4, 1, 0]
    >>> tokenizer.decode([4, 1, 0])
    'not to <unknown>'
    """

    UNKNOWN = "<unknown>"

    def __init__(
        self, pieces: Iterable[str], special_tokens: Sequence[str] = ()
    ) -> None:
        special = _special_names(self.UNKNOWN, special_tokens)
        super().__init__([*special, *pieces], special)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int | None = None,
        special_tokens: Sequence[str] = (),
    ) -> Self:
        """Keep the most frequent words; of equally frequent ones, the first seen.

        Args:
            texts: the texts to learn from
            vocab_size: V at most, special tokens included; all words if not given
            special_tokens: the names of special tokens

        Raises:
            TypeError: if the texts are one string.
            ValueError: if V leaves no room for a word.

        >>> WordTokenizer.train(["Well? Well!"]).pieces
        ['<unknown>', 'Well', '?', '!']
        """
        special = _special_names(cls.UNKNOWN, special_tokens)
        counts = count_words(texts, WORD_PATTERN, special)
        return cls(_most_frequent(counts, vocab_size, special), special)

    def _words(self, text: str) -> list[str]:
        return pre_split(text, WORD_PATTERN)

    def _encode_word(self, word: str) -> list[int]:
        return [self._ids.get(word, self._ids[self.UNKNOWN])]

    def _join(self, pieces: list[str]) -> str:
        return " ".join(pieces)


# --- Byte-pair encoding -------------------------------------------------------------

Pair = tuple[bytes, bytes]

BYTES = [bytes([value]) for value in range(256)]


def split_bytes(word: str) -> tuple[bytes, ...]:
    """Cut a word into single bytes, the pieces that every text is made of.

    >>> split_bytes("né")
    (b'n', b'\\xc3', b'\\xa9')
    """
    return tuple(BYTES[value] for value in word.encode("utf-8"))


def count_pairs(words: Mapping[tuple[bytes, ...], int]) -> Counter[Pair]:
    """Count which two pieces stand side by side in words, and how often.

    Pairs may overlap: the word a·a·a holds (a, a) twice, although only one of the two
    can be merged.

    Args:
        words: words that are cut into pieces, each with its number of occurrences

    Returns:
        How often each pair was seen.

    >>> count_pairs({(b"a", b"b", b"c"): 2, (b"b", b"c"): 1})
    Counter({(b'b', b'c'): 3, (b'a', b'b'): 2})
    """
    counts: Counter[Pair] = Counter()
    for pieces, count in words.items():
        for pair in pairwise(pieces):
            counts[pair] += count
    return counts


def merge_pair(pieces: Sequence[bytes], pair: Pair) -> list[bytes]:
    """Join two pieces wherever they stand side by side, going from left to right.

    Args:
        pieces: the pieces of a word
        pair: the left and the right piece to be joined

    Returns:
        The pieces of the word afterwards.

    >>> merge_pair([b"a", b"a", b"a", b"b"], (b"a", b"a"))
    [b'aa', b'a', b'b']
    """
    merged = []
    start = 0
    while start < len(pieces):
        if tuple(pieces[start : start + 2]) == pair:
            merged.append(pair[0] + pair[1])
            start += 2
        else:
            merged.append(pieces[start])
            start += 1
    return merged


def train_merges(words: Mapping[str, int], n_pieces: int) -> list[Pair]:
    """Learn which pairs to merge: the most frequent one, again and again.

    The pieces are numbered as they come: the 256 bytes by their value, then what each
    merge makes. Of pairs that are equally frequent, the one whose left piece has the
    smaller number wins, then the one whose right piece has. Two different merges may
    make the same piece; it keeps its first number. Learning stops early when every word
    is one piece. Sennrich, Haddow and Birch, 2016, algorithm 1, on bytes.

    Every merge counts all words anew; ``fast_bpe.train_merges`` learns the same merges
    without that.

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
    if n_pieces < len(BYTES):
        raise ValueError(f"n_pieces={n_pieces} is less than the 256 bytes")
    number = {piece: value for value, piece in enumerate(BYTES)}
    cut = {split_bytes(word): count for word, count in words.items()}
    merges: list[Pair] = []
    while len(number) < n_pieces and (counts := count_pairs(cut)):
        best = min(counts, key=lambda p: (-counts[p], number[p[0]], number[p[1]]))
        merges.append(best)
        number.setdefault(best[0] + best[1], len(number))
        cut = {tuple(merge_pair(word, best)): count for word, count in cut.items()}
    return merges


def apply_merges(pieces: Sequence[bytes], ranks: Mapping[Pair, int]) -> list[bytes]:
    """Merge the pieces of a word as training would have merged them.

    What was learned first is merged first, wherever it stands in the word. The time
    grows with the square of the word's length, which pre-splitting keeps short.

    Args:
        pieces: the pieces of a word
        ranks: for each merge, its place in the order of learning

    Returns:
        The pieces of the word when no merge fits any more.

    >>> ranks = {(b"b", b"c"): 0, (b"a", b"b"): 1}
    >>> apply_merges([b"a", b"b", b"c"], ranks)
    [b'a', b'bc']
    """
    pieces = list(pieces)
    while len(pieces) > 1:
        pairs = pairwise(pieces)
        first_learned = min(pairs, key=lambda pair: ranks.get(pair, math.inf))
        if first_learned not in ranks:
            break
        pieces = merge_pair(pieces, first_learned)
    return pieces


class BPETokenizer(Tokenizer):
    """Byte-pair encoding of bytes, as in GPT-2: no text is unknown, nothing is lost.

    The ids are those of the 256 bytes (the id of a byte is its value), then of what
    each merge makes, then of the special tokens. Radford et al., 2019, § 2.2.

    Args:
        merges: pairs of pieces in the order in which they were learned. A pair that
            stands there twice keeps its first place.
        special_tokens: the names of special tokens
        pattern: what a word looks like (`pre_split`); it must lose no character
        pieces: the piece of each id, special tokens included, where they have other
            ids than said above

    Raises:
        ValueError: if a byte has no id, a merge joins or makes a piece that has none,
            or the pattern cannot be read.

    >>> merges = [(b"b", b"c"), (b"a", b"b")]
    >>> tokenizer = BPETokenizer(merges, special_tokens=["<end>"])
    >>> tokenizer.encode("abc<end>")
    [97, 256, 258]
    >>> tokenizer.decode([97, 256])
    'abc'
    """

    def __init__(
        self,
        merges: Iterable[Pair],
        special_tokens: Sequence[str] = (),
        pattern: str = GPT2_PATTERN,
        pieces: Iterable[bytes | str] | None = None,
    ) -> None:
        self.merges = [(left, right) for left, right in merges]
        self.pattern = pattern
        if pieces is None:
            made = dict.fromkeys(left + right for left, right in self.merges)
            pieces = [*BYTES, *made, *special_tokens]
        super().__init__(pieces, special_tokens)
        self._ranks: dict[Pair, int] = {}
        for rank, pair in enumerate(self.merges):
            self._ranks.setdefault(pair, rank)
        self._check()

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        special_tokens: Sequence[str] = (),
        pattern: str = GPT2_PATTERN,
    ) -> Self:
        """Learn merges from texts (`train_merges`, with running counts of the pairs).

        Args:
            texts: the texts to learn from, which may be read one after the other;
                special tokens in them are left out
            vocab_size: V; less if the texts hold too few pairs
            special_tokens: the names of special tokens
            pattern: what a word looks like (`pre_split`)

        Raises:
            TypeError: if the texts are one string.
            ValueError: if V is smaller than 256 and the number of special tokens.

        >>> tokenizer = BPETokenizer.train(["low lower lowest"], vocab_size=259)
        >>> [tokenizer.pieces[index] for index in tokenizer.encode("slow")]
        [b's', b'low']
        """
        _check_special_names(special_tokens)
        needed = len(BYTES) + len(special_tokens)
        _check_vocab_size(vocab_size, needed, "the 256 bytes and the special tokens")
        words = count_words(texts, pattern, special_tokens)
        merges = fast_bpe.train_merges(words, vocab_size - len(special_tokens))
        return cls(merges, special_tokens, pattern)

    @classmethod
    def from_gpt2_files(
        cls,
        vocabulary: str | Path,
        merges: str | Path,
        special_tokens: Sequence[str] = ("<|endoftext|>",),
        pattern: str = GPT2_PATTERN,
    ) -> Self:
        """Read a tokenizer in the two files in which GPT-2's was published.

        Args:
            vocabulary: ``vocab.json``, the id of each piece
            merges: ``merges.txt``, one merge on a line, the two pieces and a space
            special_tokens: the names of special tokens; those that are not in the
                vocabulary get the next free ids
            pattern: what a word looks like (`pre_split`)

        Raises:
            ValueError: if the ids are not 0, 1, 2, … without a gap, or a line holds no
                merge.
        """
        _check_special_names(special_tokens)
        ids = json.loads(Path(vocabulary).read_text(encoding="utf-8"))
        names = sorted(ids, key=ids.get)
        for expected, name in enumerate(names):
            if ids[name] != expected:
                raise ValueError(f"{name!r} has id {ids[name]}, expected {expected}")
        names += [name for name in special_tokens if name not in ids]
        pieces = [
            name if name in special_tokens else gpt2_files.unspell(name)
            for name in names
        ]
        pairs = gpt2_files.read_merges(Path(merges))
        return cls(pairs, special_tokens, pattern, pieces)

    def save_gpt2_files(self, vocabulary: str | Path, merges: str | Path) -> None:
        """Write ``vocab.json`` and ``merges.txt``, which other libraries read.

        Raises:
            ValueError: if a special token is spelled like another piece.

        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> files = folder / "vocab.json", folder / "merges.txt"
        >>> BPETokenizer([(b" ", b"a")]).save_gpt2_files(*files)
        >>> print(files[1].read_text(encoding="utf-8"))
        #version: 0.2
        Ġ a
        <BLANKLINE>
        >>> BPETokenizer.from_gpt2_files(*files).encode("b a")
        [98, 256]
        """
        names = [_spelled(piece) for piece in self.pieces]
        ids = {name: index for index, name in enumerate(names)}
        for name in self.special_tokens:
            if names.count(name) > 1:
                raise ValueError(f"a piece is spelled like the special token {name!r}")
        text = json.dumps(ids, ensure_ascii=False)
        Path(vocabulary).write_text(text, encoding="utf-8")
        lines = ["#version: 0.2", *map(" ".join, self._spelled_merges())]
        Path(merges).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")

    def _words(self, text: str) -> list[str]:
        words = pre_split(text, self.pattern)
        if sum(map(len, words)) != len(text):
            raise ValueError(f"pattern={self.pattern!r} loses characters of the text")
        return words

    def _encode_word(self, word: str) -> list[int]:
        pieces = apply_merges(split_bytes(word), self._ranks)
        return [self._ids[piece] for piece in pieces]

    def _join(self, pieces: list[bytes | str]) -> str:
        # A character may be spread over several tokens, so bytes are joined first.
        encoded = (
            piece.encode("utf-8") if isinstance(piece, str) else piece
            for piece in pieces
        )
        return b"".join(encoded).decode("utf-8", errors="replace")

    def _spelled_merges(self) -> list[list[str]]:
        return [[gpt2_files.spell(piece) for piece in pair] for pair in self.merges]

    def _settings(self) -> dict[str, Any]:
        return {
            "pattern": self.pattern,
            "special_tokens": self.special_tokens,
            "pieces": [_spelled(piece) for piece in self.pieces],
            "merges": self._spelled_merges(),
        }

    @classmethod
    def _from_settings(cls, settings: dict[str, Any]) -> Self:
        special = settings["special_tokens"]
        pieces = [
            name if special.get(name) == index else gpt2_files.unspell(name)
            for index, name in enumerate(settings["pieces"])
        ]
        merges = [map(gpt2_files.unspell, pair) for pair in settings["merges"]]
        return cls(merges, list(special), settings["pattern"], pieces)

    def _check(self) -> None:
        for piece in BYTES:
            if piece not in self._ids:
                raise ValueError(f"the byte {piece!r} has no id")
        for left, right in self.merges:
            for piece in (left, right, left + right):
                if piece not in self._ids:
                    raise ValueError(
                        f"the merge of {left!r} and {right!r} needs the piece {piece!r}"
                        ", which is neither a byte nor made by a merge"
                    )
        try:
            n_groups = regex.compile(self.pattern).groups
        except regex.error as error:
            raise ValueError(
                f"pattern={self.pattern!r} cannot be read: {error}"
            ) from error
        if n_groups > 0:
            raise ValueError(
                f"pattern={self.pattern!r} has {n_groups} capturing groups; "
                "write (?:…) instead of (…)"
            )


def _spelled(piece: bytes | str) -> str:
    """A special token is its name; all others are spelled in visible letters."""
    return piece if isinstance(piece, str) else gpt2_files.spell(piece)


# --- WordPiece ----------------------------------------------------------------------

CONTINUATION = "##"


def longest_match(word: str, pieces: Mapping[str, int] | set[str]) -> list[str] | None:
    """Cut a word by taking the longest piece that fits, from left to right.

    A piece that goes on within a word is spelled with ``##`` before it. Wu et al.,
    2016, § 4.1; in this greedy form Devlin et al., 2019 (BERT).

    Args:
        word: one word
        pieces: the pieces there are

    Returns:
        The pieces of the word, or None if at some place no piece fits.

    >>> longest_match("unable", {"un", "unab", "able", "##able", "##e"})
    >>> longest_match("unable", {"un", "able", "##able"})
    ['un', '##able']
    """
    found = []
    start = 0
    while start < len(word):
        prefix = CONTINUATION if start > 0 else ""
        for end in range(len(word), start, -1):
            piece = prefix + word[start:end]
            if piece in pieces:
                break
        else:
            return None
        found.append(piece)
        start = end
    return found


class WordPieceTokenizer(Tokenizer):
    """Longest match first, as in BERT: ids for words and for parts that begin with ##.

    A word that cannot be cut is ``[UNK]`` as a whole. White space is not kept: decoding
    puts one space between any two words.

    Args:
        pieces: the pieces; ``[UNK]`` and the special tokens come before them, unless
            they are among the pieces
        special_tokens: the names of special tokens
        max_characters: longer words are ``[UNK]``

    >>> tokenizer = WordPieceTokenizer(["un", "able", "##able"])
    >>> tokenizer.encode("unable able")
    [1, 3, 2]
    >>> tokenizer.decode([1, 3, 2])
    'unable able'
    """

    UNKNOWN = "[UNK]"

    def __init__(
        self,
        pieces: Iterable[str],
        special_tokens: Sequence[str] = (),
        max_characters: int = 100,
    ) -> None:
        pieces = list(pieces)
        special = _special_names(self.UNKNOWN, special_tokens)
        new = [name for name in special if name not in pieces]
        super().__init__([*new, *pieces], special)
        self.max_characters = max_characters

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        special_tokens: Sequence[str] = (),
    ) -> Self:
        """Learn pieces by merging the most frequent pair, starting from characters.

        Schuster and Nakajima, 2012, merge the pair that makes the text most probable;
        like the trainers in use, this one merges by count, as BPE does. What sets
        WordPiece apart is how it cuts words. The first pieces are the characters, at
        the beginning of a word and, with ``##``, within; the most frequent ones if not
        all of them have room. Ties are broken as in `train_merges`.

        Args:
            texts: the texts to learn from; special tokens in them are left out
            vocab_size: V; less if the texts hold too few pairs
            special_tokens: the names of special tokens

        Raises:
            TypeError: if the texts are one string.
            ValueError: if V leaves no room for a character.

        >>> tokenizer = WordPieceTokenizer.train(["low lower lowest"], vocab_size=11)
        >>> tokenizer.pieces[1:]
        ['##e', '##o', '##r', '##s', '##t', '##w', 'l', '##ow', 'low', 'lowe']
        """
        special = _special_names(cls.UNKNOWN, special_tokens)
        counts = count_words(texts, WORD_PATTERN, special)
        words = {_split_characters(word): count for word, count in counts.items()}
        characters: Counter[str] = Counter()
        for pieces, count in words.items():
            for piece in pieces:
                characters[piece] += count
        alphabet = sorted(_most_frequent(characters, vocab_size, special))
        n_pieces = vocab_size - len(special)
        merges = fast_bpe.learn(words, alphabet, n_pieces, _join_pieces)
        made = (_join_pieces(left, right) for left, right in merges)
        return cls(dict.fromkeys([*alphabet, *made]), special)

    def _words(self, text: str) -> list[str]:
        return pre_split(text, WORD_PATTERN)

    def _encode_word(self, word: str) -> list[int]:
        found = None
        if len(word) <= self.max_characters:
            found = longest_match(word, self._ids)
        return [self._ids[piece] for piece in found or [self.UNKNOWN]]

    def _join(self, pieces: list[str]) -> str:
        return " ".join(pieces).replace(" " + CONTINUATION, "")

    def _settings(self) -> dict[str, Any]:
        return {
            "pieces": self.pieces,
            "special_tokens": list(self.special_tokens),
            "max_characters": self.max_characters,
        }


def _split_characters(word: str) -> tuple[str, ...]:
    return (word[0], *(CONTINUATION + character for character in word[1:]))


def _join_pieces(left: str, right: str) -> str:
    return left + right.removeprefix(CONTINUATION)


# --- Unigram ------------------------------------------------------------------------


class UnigramTokenizer(Tokenizer):
    """The most probable cut, if pieces do not depend on each other.

    White space is part of the pieces, so nothing is lost but characters that are no
    piece: a run of them is one ``<unk>``. Kudo, 2018, § 3.

    Args:
        log_prob: the log-probability of each piece, in nats. ``<unk>`` and the special
            tokens come before them.
        special_tokens: the names of special tokens

    Raises:
        ValueError: if there is no piece, or a log-probability is above 0 or not finite.

    >>> log_prob = {"abc": -10.0, "ab": -1.0, "c": -1.0}
    >>> tokenizer = UnigramTokenizer(log_prob)
    >>> [tokenizer.pieces[index] for index in tokenizer.encode("abc??")]
    ['ab', 'c', '<unk>']
    """

    UNKNOWN = "<unk>"

    def __init__(
        self, log_prob: Mapping[str, float], special_tokens: Sequence[str] = ()
    ) -> None:
        unigram.check_log_prob(log_prob)
        special = _special_names(self.UNKNOWN, special_tokens)
        super().__init__([*special, *log_prob], special)
        self.log_prob = dict(log_prob)
        # Worse than any piece, so that it is taken only where nothing else fits.
        self._unknown_log_prob = min(log_prob.values()) - 10
        self._longest = max(map(len, log_prob))

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        special_tokens: Sequence[str] = (),
    ) -> Self:
        """Start from many pieces and drop those that are missed least (`unigram`).

        Args:
            texts: the texts to learn from; special tokens in them are left out
            vocab_size: V; less if the texts hold too few pieces
            special_tokens: the names of special tokens

        Raises:
            TypeError: if the texts are one string.
            ValueError: if V leaves no room for a character, or the texts are empty.

        >>> texts = ["she sells sea shells by the sea shore"]
        >>> tokenizer = UnigramTokenizer.train(texts, vocab_size=16)
        >>> [tokenizer.pieces[index] for index in tokenizer.encode("by sea shells")]
        ['b', 'y', ' sea', ' sh', 'ells']
        """
        special = _special_names(cls.UNKNOWN, special_tokens)
        _check_vocab_size(
            vocab_size, len(special) + 1, "the special tokens and a piece"
        )
        words = count_words(texts, SPACE_PATTERN, special)
        return cls(unigram.train_pieces(words, vocab_size - len(special)), special)

    def _words(self, text: str) -> list[str]:
        return pre_split(text, SPACE_PATTERN)

    def _encode_word(self, word: str) -> list[int]:
        pieces = unigram.best_pieces(
            word, self.log_prob, self._unknown_log_prob, self._longest
        )
        ids: list[int] = []
        unknown = self._ids[self.UNKNOWN]
        for piece in pieces:
            index = self._ids[piece] if piece in self.log_prob else unknown
            if index != unknown or ids[-1:] != [unknown]:
                ids.append(index)
        return ids

    def _settings(self) -> dict[str, Any]:
        return {"log_prob": self.log_prob, "special_tokens": list(self.special_tokens)}


# --- How many tokens does a text cost? ----------------------------------------------


def fertility(tokenizer: Tokenizer, text: str, n_words: int | None = None) -> float:
    """Count the tokens that a word is cut into, on average. Rust et al., 2021, § 3.

    Args:
        tokenizer: any tokenizer
        text: a text of at least one word
        n_words: how many words it has; if not given, signs of punctuation and Chinese
            characters count as words (``WORD_PATTERN``)

    Returns:
        Tokens per word: 1 if every word is a token.

    Raises:
        ValueError: if there is no word.

    >>> fertility(CharTokenizer.train(["to be"]), "to be")
    2.5
    """
    n_words = len(pre_split(text, WORD_PATTERN)) if n_words is None else n_words
    if n_words < 1:
        raise ValueError(f"n_words={n_words}: the text {text[:20]!r} must hold a word")
    return len(tokenizer.encode(text)) / n_words


def compression_ratio(tokenizer: Tokenizer, text: str) -> float:
    """Count the bytes of a text that a token stands for, on average.

    Bytes and not characters, so that languages can be compared: a Chinese character is
    three bytes in UTF-8 and says more than a letter.

    Args:
        tokenizer: any tokenizer
        text: a text of at least one token

    Returns:
        Bytes per token: 1 if every byte is a token.

    Raises:
        ValueError: if the text has no token.

    >>> compression_ratio(BPETokenizer([(b"t", b"o")]), "to be")
    1.25
    """
    n_tokens = len(tokenizer.encode(text))
    if n_tokens == 0:
        raise ValueError(f"text={text!r} has no token")
    return len(text.encode("utf-8")) / n_tokens


# --- Checks -------------------------------------------------------------------------


def _most_frequent(
    counts: Counter[str], vocab_size: int | None, special: Sequence[str]
) -> list[str]:
    """The pieces that fit into a vocabulary beside the special tokens."""
    if vocab_size is not None:
        _check_vocab_size(
            vocab_size, len(special) + 1, "the special tokens and a piece"
        )
        vocab_size -= len(special)
    return [piece for piece, _ in counts.most_common(vocab_size)]


def _special_names(unknown: str, names: Sequence[str]) -> list[str]:
    _check_special_names(names)
    return list(names) if unknown in names else [unknown, *names]


def _check_special_names(names: Sequence[str]) -> None:
    if isinstance(names, str):
        raise TypeError(f"special_tokens={names!r} is one string, expected a list")


def _check_vocab_size(vocab_size: int, needed: int, what: str) -> None:
    if vocab_size < needed:
        raise ValueError(f"vocab_size={vocab_size} is less than {needed}: {what}")


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"text is a {type(text).__name__}, expected a string")


def _check_texts(texts: Iterable[str]) -> None:
    if isinstance(texts, str):
        raise TypeError(f"texts={texts[:20]!r} is one string, expected several: [text]")

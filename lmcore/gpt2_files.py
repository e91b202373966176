"""GPT-2's files: how a vocabulary of bytes is written down as text.

Chapter 07 of the book. A piece of BPE may be half a character, which no text file can
hold. GPT-2's files therefore spell every byte by a letter of its own: visible ones by
themselves, the others (a space, a line feed, …) by the letters from code point 256 on.
``tokenizer.BPETokenizer`` reads and writes them.
"""

from pathlib import Path


def spell(piece: bytes) -> str:
    """Spell a piece in visible letters, one for each byte.

    >>> spell(b" the")
    'Ġthe'
    """
    return "".join(_LETTERS[value] for value in piece)


def unspell(letters: str) -> bytes:
    """Read a piece that `spell` has spelled.

    Raises:
        ValueError: if one of the letters stands for no byte.

    >>> unspell("Ġthe")
    b' the'
    """
    for letter in letters:
        if letter not in _VALUES:
            raise ValueError(f"{letter!r} in {letters!r} stands for no byte")
    return bytes(_VALUES[letter] for letter in letters)


def read_merges(path: Path) -> list[tuple[bytes, bytes]]:
    """Read ``merges.txt``: on each line two pieces with a space between them.

    Raises:
        ValueError: if a line holds something else.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "merges.txt"
    >>> _ = path.write_text("#version: 0.2\\nĠ t\\nĠt he\\n", encoding="utf-8")
    >>> read_merges(path)
    [(b' ', b't'), (b' t', b'he')]
    """
    merges = []
    # A first line may name the version; later lines may merge the sign "#".
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line == "" or (number == 1 and line.startswith("#version")):
            continue
        left, space, right = line.partition(" ")
        if not (left and space and right):
            raise ValueError(f"line {number} of {str(path)!r} is no merge: {line!r}")
        merges.append((unspell(left), unspell(right)))
    return merges


def _letters() -> list[str]:
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [value for value in range(256) if value not in visible]
    return [
        chr(value) if value in visible else chr(256 + hidden.index(value))
        for value in range(256)
    ]


_LETTERS = _letters()
_VALUES = {letter: value for value, letter in enumerate(_LETTERS)}

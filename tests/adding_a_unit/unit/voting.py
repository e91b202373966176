"""Chapter 90: guess the next word by a vote of the words seen before."""

from collections.abc import Sequence


def most_common(words: Sequence[str]) -> str:
    """The word that stands in a text most often; of equals, the one seen first.

    Raises:
        ValueError: if there is no word.

    >>> most_common(["to", "be", "or", "not", "to", "be"])
    'to'
    """
    if not words:
        raise ValueError("no words to choose from")
    return max(words, key=words.count)

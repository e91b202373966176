"""What a graded body says until a student writes it."""

PHRASE = "is yours to write"


def message(name: str, where: str) -> str:
    """Name what is missing and the place to read about it.

    >>> message("causal_mask", "chapter 08, section 'masks'")
    "causal_mask is yours to write: see the book, chapter 08, section 'masks'"
    """
    return f"{name} {PHRASE}: see the book, {where}"


def is_reason(error: BaseException) -> bool:
    """Whether an error was raised by a body that is not written yet.

    >>> is_reason(NotImplementedError(message("causal_mask", "chapter 08")))
    True
    >>> is_reason(NotImplementedError("not on this device"))
    False
    """
    return isinstance(error, NotImplementedError) and PHRASE in str(error)

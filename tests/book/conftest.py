"""The built site, made once for all tests, and small books of a page or two."""

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import sphinx.locale
from bs4 import BeautifulSoup
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

from lmcourse import book

sys.path.insert(0, str(Path(__file__).parent))  # for built_pages.py and browser.py


@pytest.fixture(scope="session")
def built() -> book.Site:
    """The site, built if anything has changed since the last time."""
    return book.build()


@pytest.fixture(scope="session")
def site(built: book.Site) -> Path:
    """The folder of the built site."""
    return built.folder


@dataclass
class SmallBook:
    """A book built from a few texts."""

    folder: Path
    warnings: str

    def page(self, name: str = "index") -> BeautifulSoup:
        """The HTML of one page."""
        text = (self.folder / f"{name}.html").read_text("utf8")
        return BeautifulSoup(text, "html.parser")


@pytest.fixture
def small_book(tmp_path: Path) -> Callable[..., SmallBook]:
    """Build a book from texts by file name, without running their code."""

    def build(
        pages: dict[str, str],
        listen: Callable[[Sphinx], None] = lambda app: None,
        **config: object,
    ) -> SmallBook:
        source = tmp_path / "book"
        source.mkdir(exist_ok=True)
        for name, text in pages.items():
            (source / name).write_text(text, "utf8")
        warnings = io.StringIO()
        sphinx.locale.translators.clear()  # an earlier book's language stays otherwise
        with docutils_namespace():
            app = Sphinx(
                srcdir=source,
                confdir=None,
                outdir=tmp_path / "build" / "html",
                doctreedir=tmp_path / "build" / "doctrees",
                buildername="html",
                confoverrides={
                    "extensions": ["myst_nb", "lmcourse.sphinx_ext"],
                    "html_theme": "basic",
                    "myst_enable_extensions": ["colon_fence", "dollarmath"],
                    "nb_execution_mode": "off",
                    "language": "en",
                    "numfig": True,
                    **config,
                },
                status=None,
                warning=warnings,
            )
            listen(app)
            app.build()
        return SmallBook(tmp_path / "build" / "html", warnings.getvalue())

    return build

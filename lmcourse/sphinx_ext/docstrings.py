"""Google-style docstrings whose results and attributes are described in prose.

napoleon takes the words before the first colon of such a description for a type. In
lmcore types stand in the signature, so a description is read as it stands.
"""

from sphinx.application import Sphinx
from sphinx.ext.napoleon import GoogleDocstring


class ProseDocstring(GoogleDocstring):
    """A docstring without types."""

    def _consume_returns_section(
        self, preprocess_types: bool = False
    ) -> list[tuple[str, str, list[str]]]:
        lines = self._dedent(self._consume_to_next_section())
        return [("", "", self.__class__(lines, self._config).lines())] if lines else []

    def _consume_inline_attribute(self) -> tuple[str, list[str]]:
        lines = self._consume_to_end()
        return "", self.__class__(lines, self._config).lines()


def read_docstring(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Turn the sections of a docstring into fields, in place."""
    lines[:] = ProseDocstring(lines, app.config, app, what, name, obj, options).lines()


def setup(app: Sphinx) -> None:
    """Read docstrings in the place of napoleon, whose own reading is switched off."""
    app.setup_extension("sphinx.ext.napoleon")
    app.connect("autodoc-process-docstring", read_docstring)

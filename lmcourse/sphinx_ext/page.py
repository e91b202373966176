"""What every page tells search engines about itself."""

from docutils import nodes
from sphinx.application import Sphinx

LENGTH = 160


def describe(
    app: Sphinx,
    pagename: str,
    templatename: str,
    context: dict,
    doctree: nodes.document,
) -> None:
    """Describe a page by its first sentences, unless it brings its own description."""
    has_own = 'name="description"' in context.get("metatags", "")
    context["lm_description"] = "" if has_own or not doctree else first_words(doctree)


def first_words(doctree: nodes.document) -> str:
    """The beginning of a page's first paragraph, cut between words."""
    for paragraph in doctree.findall(nodes.paragraph):
        text = " ".join(paragraph.astext().split())
        if len(text) <= LENGTH:
            return text
        return text[:LENGTH].rpartition(" ")[0] + " …"
    return ""


def setup(app: Sphinx) -> None:
    """Register the hook."""
    app.connect("html-page-context", describe)

"""What the directives share: complaints, and nodes for every kind of output."""

from collections.abc import Callable

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

Visitors = tuple[Callable, Callable]

logger = logging.getLogger(__name__)


def complain(subtype: str, what: str, location: object) -> None:
    """Warn, which fails the build, with the file and the line of the mistake."""
    logger.warning(
        f"{subtype} {what}", location=location, type="lmcourse", subtype=subtype
    )


def _through(self, node: nodes.Element) -> None:
    """Write nothing of its own: the children speak."""


def _new_paragraph(self, node: nodes.Element) -> None:
    self.body.append("\n\n")


def close_div(self, node: nodes.Element) -> None:
    """Close the ``<div>`` that a node's HTML began with."""
    self.body.append("</div>\n")


def add_nodes(app: Sphinx, html: dict[type[nodes.Element], Visitors]) -> None:
    """Register nodes with their HTML; in print and plain text the children remain."""
    for node, visitors in html.items():
        in_print = (_new_paragraph, _new_paragraph)
        plain = (_through, _through)
        app.add_node(node, html=visitors, latex=in_print, text=plain, man=plain)

"""What the reader has done, kept in the reader's own browser.

``{progress}`` shows a table of all chapters and quizzes with buttons to export, import
and clear. Every chapter (a page with ``{work}``) ends in a box to tick, and the sidebar
marks what is ticked. ``book/static/lmbh.js`` does all of it inside the browser.
"""

import json
from html import escape

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.locale import get_translation
from sphinx.util.docutils import SphinxDirective

from .nodes import add_nodes

_ = get_translation("lmcourse")


class ProgressNode(nodes.Element):
    """The table of everything there is to read and to answer."""


class Progress(SphinxDirective):
    """The reader's progress, with export, import and clear."""

    def run(self) -> list[nodes.Node]:
        self.env.metadata[self.env.docname]["progress"] = "yes"
        return [ProgressNode()]


def chapters(env: BuildEnvironment) -> list[dict]:
    """Every chapter in the order of the table of contents, with its quizzes."""
    order = [name for name in _in_order(env, env.config.root_doc) if name in env.titles]
    return [
        {
            "page": name,
            "title": env.titles[name].astext(),
            "quizzes": env.metadata[name].get("quizzes", []),
        }
        for name in order
        if env.metadata[name].get("chapter")
    ]


def _in_order(env: BuildEnvironment, start: str) -> list[str]:
    below = env.toctree_includes.get(start, [])
    return [start, *(name for child in below for name in _in_order(env, child))]


def visit_progress(self, node: ProgressNode) -> None:
    builder, here = self.builder, self.builder.current_docname
    rows = []
    for chapter in chapters(builder.env):
        link = escape(builder.get_relative_uri(here, chapter["page"]))
        rows.append(
            f'<tr data-page="{escape(chapter["page"])}"><td><a href="{link}">'
            f'{escape(chapter["title"])}</a></td><td class="lm-read">–</td>'
            f'<td class="lm-quizzes">0 / {len(chapter["quizzes"])}</td></tr>'
        )
    heads = "".join(
        f'<th scope="col">{escape(head)}</th>'
        for head in (_("Chapter"), _("Read"), _("Quizzes answered"))
    )
    texts = {
        "imported": _("Imported."),
        "refused": _("This is not a progress file of this book; nothing was changed."),
        "cleared": _("Cleared."),
        "exported": _("Exported to your downloads."),
        "sure": _("Really clear everything? Press again."),
        "yes": _("read"),
        "no": _("not yet"),
    }
    texts = escape(json.dumps(texts, default=str))
    self.body.append(
        f'<div class="lm-progress" data-texts="{texts}">'
        f'<table class="table"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
        '<p class="lm-buttons">'
        f'<button type="button" data-do="export">{escape(_("Export"))}</button> '
        f'<button type="button" data-do="import">{escape(_("Import"))}</button> '
        f'<button type="button" data-do="clear">{escape(_("Clear"))}</button>'
        '<input type="file" accept="application/json,.json" hidden '
        f'aria-label="{escape(_("Progress file"))}"></p>'
        '<p role="status" class="lm-said"></p>'
        f"<noscript><p>{escape(_('It takes JavaScript to keep progress.'))}</p>"
        "</noscript></div>\n"
    )


def depart_progress(self, node: ProgressNode) -> None:
    pass


def tell_page(
    app: Sphinx,
    pagename: str,
    templatename: str,
    context: dict,
    doctree: nodes.document,
) -> None:
    """Tell the template which page this is, and which quizzes each chapter has."""
    known = {chapter["page"]: chapter["quizzes"] for chapter in chapters(app.env)}
    context["lm_chapters"] = json.dumps(known, separators=(",", ":"))
    context["lm_is_chapter"] = pagename in known


def find_outdated(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """The table names every chapter, so it is written again with each of them."""
    return [name for name, about in env.metadata.items() if about.get("progress")]


def setup(app: Sphinx) -> None:
    """Register the directive and the hooks."""
    app.add_directive("progress", Progress)
    add_nodes(app, {ProgressNode: (visit_progress, depart_progress)})
    app.connect("env-updated", find_outdated)
    app.connect("html-page-context", tell_page)

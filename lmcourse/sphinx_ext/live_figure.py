"""The ``live-figure`` directive: what every figure that moves owes its readers.

    ```{code-cell} ipython3
    :tags: [remove-input]
    AttentionSteps(...)
    ```

    ```{live-figure} attention-steps
    :height: 520
    :narrow-height: 900

    The caption, one paragraph: what to try and what to look for.

    The long description: what is seen, in words, with a table of the numbers.
    ```

It takes the output of the code cell right above it. The first paragraph is the caption,
the rest is the long description, folded under the figure. Pictures that the same cell
shows beside the widget stand in its place on paper and where no script runs.
"""

from html import escape
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.locale import get_translation
from sphinx.util.docutils import SphinxDirective

from .nodes import add_nodes, close_div, complain

_ = get_translation("lmcourse")

WIDGET = "application/vnd.jupyter.widget-view+json"


class LiveFigureNode(nodes.Element):
    """The figure; ``height``, or ``narrow`` on a phone, is kept free for the widget."""


class LiveStage(nodes.Element):
    """Where the widget lives."""


class LiveStatic(nodes.Element):
    """What stands there on paper and without scripts."""


class LiveCaption(nodes.caption):
    """The number and the caption."""


class LiveWords(nodes.Element):
    """The long description."""


class LiveFigure(SphinxDirective):
    """Wrap the output of the cell above with caption, description and print form."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar = {
        "height": directives.positive_int,
        "narrow-height": directives.positive_int,
    }

    def run(self) -> list[nodes.Node]:
        body = nodes.container()
        self.state.nested_parse(self.content, self.content_offset, body)
        if not body.children or not isinstance(body[0], nodes.paragraph):
            self._complain("the caption is missing: the first paragraph is the caption")
            return []
        if len(body) < 2:
            self._complain(
                "the long description is missing: write what the figure shows, in "
                "words or as a table, after the caption"
            )
            return []
        if "height" not in self.options:
            self._complain("no :height: is given, so the page would jump as it loads")
            return []
        height = self.options["height"]
        narrow = self.options.get("narrow-height", height)
        figure = LiveFigureNode(name=self.arguments[0], height=height, narrow=narrow)
        self.set_source_info(figure)
        caption = LiveCaption(body[0].rawsource, "", *body[0].children)
        caption.source, caption.line = body[0].source, body[0].line
        figure += caption
        figure += LiveWords("", *body.children[1:])
        figure["names"].append(nodes.fully_normalize_name(self.arguments[0]))
        self.state.document.note_explicit_target(figure, figure)
        return [figure]

    def _complain(self, what: str) -> None:
        place = (self.env.docname, self.lineno)
        complain("live-figure", f"{self.arguments[0]!r}: {what}", place)


def move_outputs(app: Sphinx, doctree: nodes.document) -> None:
    """Move the output of the cell above each live figure into it."""
    for figure in list(doctree.findall(LiveFigureNode)):
        place = figure.parent.index(figure)
        cell = figure.parent[place - 1] if place else None
        output = _output_of(cell)
        stage, static = LiveStage(), LiveStatic()
        for part in list(output.children) if output is not None else []:
            widget, pictures = _sort_out(part)
            if widget is not None:
                stage += widget
            static.extend(pictures)
        if not stage.children:
            what = "the code cell right above it shows no widget"
            complain("live-figure", f"{figure['name']!r}: {what}", figure)
            continue
        in_words = next(figure.findall(LiveWords))
        if not static.children and not list(in_words.findall(nodes.table)):
            what = (
                "nothing stands in its place on paper: let its cell show a picture, "
                "too, or put a table of the numbers into the long description"
            )
            complain("live-figure", f"{figure['name']!r}: {what}", figure)
        for image in static.findall(nodes.image):
            image["alt"] = image.get("alt") or _caption_of(figure)
        figure.insert(0, stage)
        if static.children:
            figure.insert(1, static)
        cell.remove(output)
        if not cell.children:
            cell.parent.remove(cell)


def _output_of(cell: nodes.Node | None) -> nodes.Element | None:
    if not isinstance(cell, nodes.container) or cell.get("nb_element") != "cell_code":
        return None
    for child in cell:
        if child.get("nb_element") == "cell_code_output":
            return child
    return None


def _sort_out(part: nodes.Node) -> tuple[nodes.Node | None, list[nodes.Node]]:
    """Split one output into its widget and the pictures that can stand in for it."""
    if not isinstance(part, nodes.Element) or part.get("nb_element") != "mime_bundle":
        return None, []
    kinds = [form.get("mime_type", "") for form in part]
    pictures = [form for form in part if form.get("mime_type", "").startswith("image/")]
    if WIDGET not in kinds:
        return None, [part] if pictures else []
    found = []
    for form in pictures[:1]:
        part.remove(form)
        found.extend(form.children)
    return part, found


def _caption_of(figure: LiveFigureNode) -> str:
    return next(figure.findall(LiveCaption)).astext()


def visit_live_figure(self, node: LiveFigureNode) -> None:
    self.body.append(
        f'<figure class="lm-live" id="{node["ids"][0]}" '
        f'aria-labelledby="{node["ids"][0]}-caption">\n'
    )


def depart_live_figure(self, node: LiveFigureNode) -> None:
    self.body.append("</figure>\n")


def visit_live_stage(self, node: LiveStage) -> None:
    wait = escape(_("The figure is being loaded."), quote=True)
    figure = node.parent
    style = f"--lm-wide: {figure['height']}px; --lm-narrow: {figure['narrow']}px"
    self.body.append(f'<div class="lm-stage" data-wait="{wait}" style="{style}">')


def visit_live_static(self, node: LiveStatic) -> None:
    self.body.append('<div class="lm-static">')


def visit_live_caption(self, node: LiveCaption) -> None:
    figure = node.parent
    self.body.append(
        f'<figcaption id="{figure["ids"][0]}-caption">'
        f'<span class="lm-kicker">{escape(_("Live"))}</span> <span class="lm-number">'
    )
    self.add_fignumber(figure)
    self.body.append("</span>")


def depart_live_caption(self, node: LiveCaption) -> None:
    self.body.append("</figcaption>\n")


def visit_live_words(self, node: LiveWords) -> None:
    self.body.append(
        f'<details class="lm-words"><summary>{escape(_("The figure in words"))}'
        '</summary><div class="lm-words-body">'
    )


def depart_live_words(self, node: LiveWords) -> None:
    self.body.append("</div></details>\n")


def setup(app: Sphinx) -> None:
    """Register the directive and its nodes."""
    app.add_directive("live-figure", LiveFigure)
    add_nodes(
        app,
        {
            LiveFigureNode: (visit_live_figure, depart_live_figure),
            LiveStage: (visit_live_stage, close_div),
            LiveStatic: (visit_live_static, close_div),
            LiveCaption: (visit_live_caption, depart_live_caption),
            LiveWords: (visit_live_words, depart_live_words),
        },
    )
    app.add_enumerable_node(LiveFigureNode, "figure", _caption_of, override=True)
    app.connect("doctree-read", move_outputs)

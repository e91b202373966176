"""The ``homework`` directive: a unit's exercises, and the answer ladder of each.

    ```{homework} 08_attention
    ```

First a table of all exercises with their labels; then, exercise by exercise, its text
and, each folded, hints, a sketch and the solution. The solution is there only if
``course.yml`` shows it by now; otherwise it is in no file of the site. Everything comes
from ``solutions/NN_name.md``; the build writes a page around this directive per unit.
"""

import hashlib
from html import escape

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.locale import get_translation
from sphinx.util.docutils import SphinxDirective

from lmcourse import CourseError, homework, paths
from lmcourse.homework.ladder import Step

from .nodes import add_nodes, close_div, complain
from .run import difficulty_label, label_list

_ = get_translation("lmcourse")


class Labels(nodes.Element):
    """The labels of one exercise."""


class Ladder(nodes.Element):
    """The folded answers of one exercise."""


class Fold(nodes.Element):
    """One step of the ladder, under its ``title``."""


class Homework(SphinxDirective):
    """Show a unit's exercises with their answer ladders."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        unit = self.arguments[0]
        known = homework.units()
        if unit not in known:
            listed = ", ".join(known) or "none"
            self._complain(f"there is no unit {unit!r}; there are: {listed}")
            return []
        try:
            ladder = homework.ladder(unit)
        except CourseError as error:
            self._complain(f"{unit!r}: {error}")
            return []
        self.env.note_dependency(str(paths.solutions(unit)))
        about = self.env.metadata[self.env.docname]
        about["homework"] = unit
        about["homework_digest"] = digest(unit)
        sections = [self._section(n, step) for n, step in enumerate(ladder, 1)]
        return [self._downloads(), _table(ladder, sections), *sections]

    def _complain(self, what: str) -> None:
        complain("homework", what, (self.env.docname, self.lineno))

    def _section(self, number: int, step: Step) -> nodes.section:
        title = f"{number} · {step.title}"
        section = nodes.section(ids=[f"exercise-{step.id.replace('_', '-')}"])
        self.set_source_info(section)
        section += nodes.title(title, title)
        section += Labels(labels=_labels(step))
        self._parse(step.text, section)
        if step.section:
            label = f"{self.arguments[0][:2]}-{step.section}"
            words = step.section.replace("-", " ")
            link = f"{{ref}}`{words} <{label}>`"
            self._parse(f"{_('In the chapter')}: {link}.", section)
        ladder = Ladder()
        for nth, hint in enumerate(step.hints, 1):
            ladder += self._fold(f"{_('Hint')} {nth}", hint)
        if step.sketch:
            ladder += self._fold(_("Sketch"), step.sketch)
        if step.solution:
            code = f"````python\n{step.solution}\n````"
            text = step.solution if step.written else code
            ladder += self._fold(_("Solution"), text)
        if ladder.children:
            section += ladder
        return section

    def _downloads(self) -> nodes.paragraph:
        """Links to what `lmcourse.book.publish_downloads` puts beside the pages."""
        unit = self.arguments[0]
        top = "../" * self.env.docname.count("/") + "downloads"
        links = (
            (_("The notebook"), f"{top}/{unit}/{unit}.ipynb"),
            (_("All notebooks, with the library"), f"{top}/{paths.kit().name}"),
        )
        result = nodes.paragraph(classes=["lm-downloads"])
        for text, uri in links:
            result += nodes.reference("", str(text), refuri=uri, internal=False)
            result += nodes.Text(" ")
        return result

    def _fold(self, title: str, text: str) -> Fold:
        fold = Fold(title=str(title))
        self._parse(text, fold)
        return fold

    def _parse(self, text: str, parent: nodes.Element) -> None:
        source = str(paths.solutions(self.arguments[0]))
        lines = StringList(text.splitlines(), source=source)
        self.state.nested_parse(lines, self.content_offset, parent)


def _table(ladder: list[Step], sections: list[nodes.section]) -> nodes.table:
    """All exercises in one table, each linked to its section."""
    heads = [_("Exercise"), _("Minutes"), _("Points"), _("Level")]
    rows = [_row([nodes.Text(str(head)) for head in heads])]
    for step, section in zip(ladder, sections, strict=True):
        title = section[0].astext()
        link = nodes.reference("", title, refid=section["ids"][0], internal=True)
        level = difficulty_label(step.difficulty)[1]
        texts = [f"{step.minutes}", f"{step.points:g}", str(level)]
        rows.append(_row([link, *map(nodes.Text, texts)]))
    minutes = sum(step.minutes for step in ladder)
    points = sum(step.points for step in ladder)
    total = [str(_("Together")), f"{minutes}", f"{points:g}", ""]
    rows.append(_row([nodes.Text(text) for text in total]))
    group = nodes.tgroup(cols=len(heads))
    group += [nodes.colspec(colwidth=width) for width in (58, 14, 14, 14)]
    group += nodes.thead("", rows[0])
    group += nodes.tbody("", *rows[1:])
    return nodes.table("", group, classes=["lm-exercises"])


def _row(cells: list[nodes.Node]) -> nodes.row:
    entries = [nodes.entry("", nodes.paragraph("", "", cell)) for cell in cells]
    return nodes.row("", *entries)


def _labels(step: Step) -> list[tuple[str, str]]:
    return [
        ("do", _("{} min to do").format(step.minutes)),
        ("points", _("{:g} points").format(step.points)),
        difficulty_label(step.difficulty),
        ("cpu", step.seconds),
        ("memory", step.memory),
    ]


def digest(unit: str) -> str:
    """A digest of what the ladder shows now."""
    return hashlib.sha256(repr(homework.ladder(unit)).encode()).hexdigest()


def find_outdated(
    _app: Sphinx, env: BuildEnvironment, _added: object, _changed: object, _gone: object
) -> list[str]:
    """Find pages whose ladder has changed since: a date has passed, say."""
    known = homework.units()
    return [
        page
        for page, about in env.metadata.items()
        if "homework" in about
        and about["homework"] in known
        and about["homework_digest"] != digest(about["homework"])
    ]


def visit_labels(self, node: Labels) -> None:
    self.body.append(label_list(node["labels"]))


def depart_labels(self, node: Labels) -> None:
    pass


def visit_ladder(self, node: Ladder) -> None:
    self.body.append('<div class="lm-ladder">\n')


def visit_fold(self, node: Fold) -> None:
    self.body.append(f"<details><summary>{escape(node['title'])}</summary><div>")


def depart_fold(self, node: Fold) -> None:
    self.body.append("</div></details>\n")


def setup(app: Sphinx) -> None:
    """Register the directive, its nodes and the hook."""
    app.add_directive("homework", Homework)
    add_nodes(
        app,
        {
            Labels: (visit_labels, depart_labels),
            Ladder: (visit_ladder, close_div),
            Fold: (visit_fold, depart_fold),
        },
    )
    app.connect("env-get-outdated", find_outdated)

"""The ``quiz`` directive: one question, choices, and a reason for each of them.

    ```{quiz} why-three
    Why does a token need a key besides its value?

    - [ ] To save memory.

      It costs memory.
    - [x] What makes it worth looking at is not what it has to say.

      The key is matched, the value is passed on.
    ```

The page holds an ordinary radio group. Without JavaScript every reason stands folded
under its choice; ``book/static/lmbh.js`` moves the reasons into a live region and shows
the one that belongs to the choice.
"""

import re
from html import escape

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.locale import get_translation
from sphinx.util.docutils import SphinxDirective

from .nodes import add_nodes, close_div, complain

_ = get_translation("lmcourse")

BOX = re.compile(r"^\s*\[([ xX])\]\s*")


class QuizNode(nodes.Element):
    """The whole question; ``name`` is its name in the reader's progress."""


class QuizText(nodes.paragraph):
    """A paragraph of phrasing content, for a legend or a label."""


class QuizQuestion(nodes.Element):
    """What follows the first paragraph of the question: code, formulas, pictures."""


class QuizChoice(nodes.Element):
    """A choice, ``right`` or not: its label and its reason."""


class QuizReason(nodes.Element):
    """Why the choice is right or wrong."""


class Quiz(SphinxDirective):
    """Parse the question and its choices into nodes that can be translated."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        if not re.fullmatch(r"[a-z0-9]+([-_][a-z0-9]+)*", name):
            self._complain(f"{name!r} is no name: use letters, digits and hyphens")
            return []
        if name in self._names():
            self._complain(f"there are two quizzes named {name!r} on this page")
            return []
        self._names().append(name)
        body = nodes.container()
        self.state.nested_parse(self.content, self.content_offset, body)
        lists = [child for child in body if isinstance(child, nodes.bullet_list)]
        if len(lists) != 1 or body[-1] is not lists[0]:
            self._complain(
                "it must be a question, then one list of choices, - [ ] or - [x]"
            )
            return []
        question = body.children[:-1]
        if not question or not isinstance(question[0], nodes.paragraph):
            self._complain("the question is missing: it stands before the choices")
            return []
        result = QuizNode(name=name, ids=[f"quiz-{name}"])
        self.set_source_info(result)
        result += _as_text(question[0])
        if question[1:]:
            result += QuizQuestion("", *question[1:])
        for number, item in enumerate(lists[0]):
            choice = self._choice(item, number)
            if choice is None:
                return []
            result += choice
        right = sum(node["right"] for node in result.findall(QuizChoice))
        if right != 1:
            self._complain(
                f"{right} choices are marked right, - [x], exactly 1 should be"
            )
            return []
        return [result]

    def _names(self) -> list[str]:
        return self.env.metadata[self.env.docname].setdefault("quizzes", [])

    def _choice(self, item: nodes.list_item, number: int) -> QuizChoice | None:
        right = _take_box(item)
        line = item.line or self.lineno
        if right is None:
            self._complain(f"choice {number + 1} does not begin with [ ] or [x]", line)
            return None
        if len(item) < 2:
            self._complain(
                f"choice {number + 1} ({item.astext()!r}) has no explanation: "
                "write it as a paragraph of its own under the choice, indented",
                line,
            )
            return None
        choice = QuizChoice(right=right, number=number)
        choice += _as_text(item[0])
        choice += QuizReason("", *item.children[1:])
        return choice

    def _complain(self, what: str, line: int | None = None) -> None:
        place = (self.env.docname, line or self.lineno)
        complain("quiz", f"{self.arguments[0]!r}: {what}", place)


def _take_box(item: nodes.list_item) -> bool | None:
    """Remove the box from the item's first paragraph and say whether it was ticked."""
    if (
        not len(item)
        or not isinstance(item[0], nodes.paragraph)
        or not item[0].children
    ):
        return None
    paragraph = item[0]
    paragraph.rawsource = BOX.sub("", paragraph.rawsource)
    first = paragraph[0]
    found = BOX.match(first.astext()) if isinstance(first, nodes.Text) else None
    if found is None:
        return None
    paragraph[0] = nodes.Text(BOX.sub("", first.astext()))
    return found[1] != " "


def _as_text(paragraph: nodes.paragraph) -> QuizText:
    text = QuizText(paragraph.rawsource, "", *paragraph.children)
    text.source, text.line = paragraph.source, paragraph.line
    return text


def visit_quiz(self, node: QuizNode) -> None:
    name = escape(node["name"], quote=True)
    self.body.append(
        f'<form class="lm-quiz" id="{node["ids"][0]}" data-quiz="{name}" '
        f'data-right="{escape(_("Right"))}" data-wrong="{escape(_("Not this one"))}" '
        'autocomplete="off"><fieldset>'
        f'<legend><span class="lm-kicker">{escape(_("Check yourself"))}</span> '
    )


def depart_quiz(self, node: QuizNode) -> None:
    self.body.append(
        '<div class="lm-quiz-answer" role="status"></div></fieldset></form>\n'
    )


def visit_quiz_text(self, node: QuizText) -> None:
    self.body.append('<span class="lm-quiz-text">')


def depart_quiz_text(self, node: QuizText) -> None:
    self.body.append("</span>")
    in_quiz = isinstance(node.parent, QuizNode)
    self.body.append("</legend>\n" if in_quiz else "</label>\n")


def visit_quiz_question(self, node: QuizQuestion) -> None:
    self.body.append('<div class="lm-quiz-question">')


def visit_quiz_choice(self, node: QuizChoice) -> None:
    name, number = node.parent["name"], node["number"]
    letter = chr(ord("A") + number)
    self.body.append(
        f'<div class="lm-quiz-choice" data-right="{str(node["right"]).lower()}">'
        f'<label><input type="radio" name="quiz-{name}" value="{number}">'
        f'<span class="lm-quiz-letter" aria-hidden="true">{letter}</span>'
    )


def visit_quiz_reason(self, node: QuizReason) -> None:
    choice = node.parent
    letter = chr(ord("A") + choice["number"])
    verdict = _("Right") if choice["right"] else _("Not this one")
    mark = "✓" if choice["right"] else "✗"
    kind = "right" if choice["right"] else "wrong"
    self.body.append(
        '<details class="lm-quiz-reason">'
        f"<summary>{escape(_('About'))} {letter}</summary>"
        f'<div class="lm-quiz-verdict lm-{kind}"><p class="lm-quiz-said">'
        f'<span class="lm-mark" aria-hidden="true">{mark}</span> '
        f"<strong>{letter}. {escape(verdict)}</strong></p>"
    )


def depart_quiz_reason(self, node: QuizReason) -> None:
    self.body.append("</div></details>")


def setup(app: Sphinx) -> None:
    """Register the directive and its nodes."""
    app.add_directive("quiz", Quiz)
    add_nodes(
        app,
        {
            QuizNode: (visit_quiz, depart_quiz),
            QuizText: (visit_quiz_text, depart_quiz_text),
            QuizQuestion: (visit_quiz_question, close_div),
            QuizChoice: (visit_quiz_choice, close_div),
            QuizReason: (visit_quiz_reason, depart_quiz_reason),
        },
    )

"""The page that a student gets back: what was understood, and what was not.

It is made of our own words, the student's own text and what a person wrote. Of a hidden
check it has the title and a message without values. It loads nothing and runs nothing:
all text is escaped, a written answer's Markdown is cleaned by nh3, pictures are left
out, and a content security policy forbids the rest. Formulas stand as TeX.
"""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup

from lmcourse import homework

from . import notebooks
from .unit import load_result

if TYPE_CHECKING:
    from nbformat import NotebookNode

    from .gradebook import Marks

TAGS = {
    *("a", "blockquote", "br", "code", "em", "h1", "h2", "h3", "h4", "hr", "li", "ol"),
    *("p", "pre", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"),
}
SCHEMES = {"http", "https", "mailto"}
MAX_SHOWN = 20_000  # characters of an answer or of its output


def of_notebook(unit: str, student: str, node: "NotebookNode", marks: "Marks") -> str:
    """The page of a student whose result is kept and whose notebook is graded."""
    result = load_result(unit, student)["result"]
    return page(unit, student, result, notebooks.texts(node), marks)


def page(
    unit: str,
    student: str,
    result: dict[str, Any],
    texts: dict[str, str],
    marks: "Marks",
) -> str:
    """Make the page.

    Args:
        unit: the unit
        student: the student's id
        result: what the grader found
        texts: by cell, what the student wrote
        marks: what the gradebook holds, points given by hand included
    """
    manifest = _manifest(unit)
    questions = [
        _question(name, manifest, result, texts, marks) for name in manifest.questions
    ]
    return _template().render(
        unit=unit,
        student=student,
        refusal=(result["refusal"] or {}).get("message", ""),
        questions=questions,
        total=marks.total,
        points=sum(question["points"] for question in questions),
        waiting=sum(question["score"] is None for question in questions),
        penalty=marks.penalty,
    )


@functools.lru_cache(maxsize=4)
def _manifest_of(unit: str, path: Path, changed: int) -> homework.Manifest:
    return homework.load_manifest(unit)


def _manifest(unit: str) -> homework.Manifest:
    path = homework.manifest_path(unit)
    return _manifest_of(unit, path, path.stat().st_mtime_ns)


def _question(
    name: str,
    manifest: homework.Manifest,
    result: dict[str, Any],
    texts: dict[str, str],
    marks: "Marks",
) -> dict[str, Any]:
    """What the page says about one question."""
    facts, found = manifest.questions[name], result["questions"][name]
    own = {cell["id"]: cell for cell in manifest.cells if cell["question"] == name}
    scores = [marks.cells[cell].score for cell in own if cell in marks.cells]
    score = None if None in scores or not scores else sum(scores)
    verdicts = [result["tests"][cell] for cell in own if cell in result["tests"]]
    comments = [marks.comments[cell] for cell in own if cell in marks.comments]
    full = score is not None and score >= facts["points"]
    return {
        "title": facts["title"],
        "points": facts["points"],
        "score": score,
        "state": "open" if score is None else "full" if full else "part",
        "message": "" if result["refusal"] else found["message"],
        "says": list(dict.fromkeys(v["says"] for v in verdicts if v["says"])),
        "notes": list(dict.fromkeys(v["note"] for v in verdicts if v["note"])),
        "checks": [check for verdict in verdicts for check in verdict["checks"]],
        "comments": comments,
        "hints": [] if full or score is None else facts["hints"],
        "section": facts["section"],
        "link": _link(manifest, facts["section"]),
        "answers": [
            _answer(cell, result, texts)
            for cell in own.values()
            if cell["kind"] in ("solution", "written")
        ],
    }


def _link(manifest: homework.Manifest, section: str) -> str:
    if not (section and manifest.book_url):
        return ""
    return f"{manifest.book_url}/{manifest.unit}.html#{section}"


def _answer(
    cell: dict[str, Any], result: dict[str, Any], texts: dict[str, str]
) -> dict[str, Any]:
    """A cell that the student wrote, and what happened when it ran."""
    text = texts.get(cell["id"], "")
    written = cell["kind"] == "written"
    ran = result["cells"].get(cell["id"], {})
    return {
        "missing": cell["id"] in result["missing"],
        "written": as_html(text[:MAX_SHOWN]) if written else "",
        "code": "" if written else text[:MAX_SHOWN],
        "output": ran.get("output", "")[:MAX_SHOWN],
        "message": ran.get("message", ""),
    }


def as_html(markdown: str) -> Markup:
    """A student's Markdown as HTML that can do nothing.

    >>> str(as_html("*so* <b onclick=x>bold</b>")).strip()
    '<p><em>so</em> &lt;b onclick=x&gt;bold&lt;/b&gt;</p>'
    """
    html = _markdown().render(markdown)
    return Markup(
        nh3.clean(
            html,
            tags=TAGS,
            attributes={"a": {"href"}},
            url_schemes=SCHEMES,
            attribute_filter=_absolute,
        )
    )


def _absolute(tag: str, name: str, value: str) -> str | None:
    """Drop a link to a file beside the page."""
    return value if name != "href" or value.partition(":")[0] in SCHEMES else None


@functools.cache
def _markdown() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment.get_template("feedback.html")


def number(x: float | None) -> str:
    """A number as people write it; empty if there is none yet.

    >>> number(2.50), number(3.0), number(None)
    ('2.5', '3', '')
    """
    return "" if x is None else f"{x:.2f}".rstrip("0").rstrip(".")

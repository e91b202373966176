"""What every page says about its run: work labels at its top, freshness at its foot.

A hidden last cell, added as the source is read, measures the run from inside (see
`lmcourse.run_record`). It also carries a digest of the parts of lmcore that the page
uses, so that the execution cache, whose key is the code of the cells, notices when they
change. A page taken from the cache keeps the record of the run it shows.
"""

import ast
import datetime
import hashlib
import importlib.metadata
import json
import os
import re
from html import escape
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from myst_nb.core.read import is_myst_markdown_notebook
from sphinx.application import Sphinx
from sphinx.locale import get_translation
from sphinx.util.docutils import SphinxDirective

from lmcourse import run_record

from .live_figure import LiveFigureNode
from .nodes import add_nodes, complain
from .quiz import QuizNode

_ = get_translation("lmcourse")

CELL = re.compile(
    r"^(?P<fence>`{3,})\{code-cell\}[^\n]*\n(?P<body>.*?)^(?P=fence)`*\s*$", re.M | re.S
)
OPTIONS = re.compile(r"\A(?:---\n.*?^---\n|(?:^:[^\n]*\n)+)", re.M | re.S)

WORDS_PER_MINUTE = 200
HAN_PER_MINUTE = 300
SECONDS = {"cell": 30, "formula": 12, "picture": 12, "quiz": 40, "live": 90}


def add_last_cell(app: Sphinx, docname: str, source: list[str]) -> None:
    """Append the cell that measures the run to every page with code."""
    if app.config.nb_execution_mode == "off" or not is_myst_markdown_notebook(
        source[0]
    ):
        return
    cells = [OPTIONS.sub("", found["body"]) for found in CELL.finditer(source[0])]
    if not cells:
        return
    digest = hashlib.sha256(importlib.metadata.version("torch").encode())
    for path in [Path(run_record.__file__), *_used_files(cells, Path(app.srcdir))]:
        digest.update(path.read_bytes())
        app.env.note_dependency(str(path))
    source[0] += (
        "\n\n```{code-cell} ipython3\n:tags: [remove-cell]\n"
        f"# what the page ran on: {digest.hexdigest()[:16]}\n"
        "from lmcourse import run_record\n\nrun_record.show()\n```\n"
    )


def _used_files(cells: list[str], book: Path) -> list[Path]:
    """The files of lmcore that these cells use, and its plot style."""
    found: set[Path] = set()
    for cell in cells:
        _follow("\n".join(_python_lines(cell)), "lmcore", book.parent, found)
    return sorted(found) + sorted((book.parent / "lmcore").glob("*.mplstyle"))


def _python_lines(cell: str) -> list[str]:
    return [
        line for line in cell.splitlines() if not line.lstrip().startswith(("%", "!"))
    ]


def _follow(code: str, package: str, root: Path, found: set[Path]) -> None:
    for path in _imported(code, package, root):
        if path in found:
            continue
        found.add(path)
        if path.suffix == ".py":
            inside = path.parent.relative_to(root).as_posix().replace("/", ".")
            _follow(path.read_text("utf8"), inside, root, found)


def _imported(code: str, package: str, root: Path) -> set[Path]:
    """Files of lmcore that this code imports; ``package`` is what it belongs to."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            start = ".".join(above if node.level else [])
            module = ".".join(part for part in (start, node.module) if part)
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return {
        path
        for name in names
        if name.split(".")[0] == "lmcore"
        for path in _files_of(name.split("."), root)
    }


def _files_of(parts: list[str], root: Path) -> list[Path]:
    """The module that a dotted name leads to, its packages, and their other files."""
    files: list[Path] = []
    for end in range(1, len(parts) + 1):
        place = root.joinpath(*parts[:end])
        if place.is_dir():
            files += [place / "__init__.py"]
            if end > 1:
                files += [p for p in place.iterdir() if p.suffix in {".js", ".css"}]
        elif place.with_suffix(".py").is_file():
            files.append(place.with_suffix(".py"))
    return [path for path in files if path.is_file()]


def keep_record(app: Sphinx, doctree: nodes.document) -> None:
    """Keep the record of the page's run with the page, and fill its work labels."""
    docname = app.env.docname
    record = _read_record(app, docname)
    if record:
        app.env.metadata[docname]["run"] = json.dumps(record)
    for label in doctree.findall(WorkNode):
        label["minutes"] = reading_minutes(doctree)
        label["record"] = record


def _read_record(app: Sphinx, docname: str) -> dict | None:
    if run_record.NAME not in app.env.nb_metadata[docname].get("glue", []):
        return None
    glued = Path(app.env.mystnb_config.output_folder, f"{docname}.glue.json")
    output = json.loads(glued.read_text("utf8"))[run_record.NAME]
    return output["data"][run_record.MIME_TYPE]


def reading_minutes(doctree: nodes.document) -> int:
    """Minutes to read a page: its words, and a while for each thing to look at."""
    prose = " ".join(
        text.astext()
        for text in doctree.findall(nodes.Text)
        if not _is_code(text) and not isinstance(text.parent, nodes.math_block)
    )
    han = len(re.findall(r"[㐀-鿿]", prose))
    words = len(re.findall(r"[^\W㐀-鿿]+(?:[-'’][^\W㐀-鿿]+)*", prose))
    things = {
        "cell": sum(
            node.get("nb_element") == "cell_code_source"
            for node in doctree.findall(nodes.container)
        ),
        "formula": len(list(doctree.findall(nodes.math_block))),
        "picture": len(list(doctree.findall(nodes.image))),
        "quiz": len(list(doctree.findall(QuizNode))),
        "live": len(list(doctree.findall(LiveFigureNode))),
    }
    looking = sum(SECONDS[kind] * count for kind, count in things.items()) / 60
    return round(words / WORDS_PER_MINUTE + han / HAN_PER_MINUTE + looking)


def _is_code(text: nodes.Text) -> bool:
    node = text.parent
    while node is not None:
        if isinstance(node, (nodes.literal_block, nodes.comment, nodes.raw)):
            return True
        node = node.parent
    return False


class WorkNode(nodes.Element):
    """The work labels of a page."""


class Work(SphinxDirective):
    """What a page asks of its reader and of the machine."""

    option_spec: ClassVar = {"difficulty": directives.positive_int}

    def run(self) -> list[nodes.Node]:
        difficulty = self.options.get("difficulty")
        if difficulty not in (1, 2, 3):
            place = (self.env.docname, self.lineno)
            complain("work", f":difficulty: is {difficulty}, expected 1, 2 or 3", place)
            return []
        self.env.metadata[self.env.docname]["chapter"] = "yes"
        label = WorkNode(difficulty=difficulty, minutes=0, record=None)
        self.set_source_info(label)
        return [label]


def label_list(labels: list[tuple[str, str]]) -> str:
    """Render labels, each an icon's name and a text, as one list."""
    items = "".join(
        f'<li class="lm-label lm-{icon}">{escape(text)}</li>' for icon, text in labels
    )
    return f'<ul class="lm-labels" aria-label="{escape(_("Work"))}">{items}</ul>\n'


def difficulty_label(difficulty: int) -> tuple[str, str]:
    """The label of a difficulty from 1 to 3."""
    names = {1: _("gentle"), 2: _("moderate"), 3: _("demanding")}
    return f"level-{difficulty}", names[difficulty]


def visit_work(self, node: WorkNode) -> None:
    labels = [("read", _("{} min to read").format(node["minutes"]))]
    record = node["record"]
    if record:
        labels += [
            ("cpu", _("{:.0f} s of CPU to run").format(record["cpu_seconds"])),
            ("memory", _("{} MB of memory").format(record["peak_mb"])),
        ]
    labels.append(difficulty_label(node["difficulty"]))
    self.body.append(label_list(labels))


def depart_work(self, node: WorkNode) -> None:
    pass


def visit_work_latex(self, node: WorkNode) -> None:
    self.body.append(_("{} min to read").format(node["minutes"]) + "\n\n")


def _today() -> datetime.date:
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch:
        return datetime.datetime.fromtimestamp(int(epoch), datetime.UTC).date()
    return datetime.datetime.now(datetime.UTC).date()


def add_freshness(
    app: Sphinx,
    pagename: str,
    templatename: str,
    context: dict,
    doctree: nodes.document,
) -> None:
    """Tell the page's template when the page last ran, or was built."""
    record = app.env.metadata.get(pagename, {}).get("run")
    context["run"] = json.loads(record) if record else None
    context["built"] = _today().isoformat()


def setup(app: Sphinx) -> None:
    """Register the directive and the hooks."""
    app.add_directive("work", Work)
    add_nodes(app, {WorkNode: (visit_work, depart_work)})
    app.connect("source-read", add_last_cell)
    app.connect("doctree-read", keep_record)
    app.connect("html-page-context", add_freshness)

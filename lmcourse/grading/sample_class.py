"""A class to try the grader on: made from the release, the same bytes every time.

One student has everything right, one writes it differently, one did half, one nothing,
one crashes, one loops forever, and for every exercise one makes its first known
mistake.
What each must earn follows from how it is made; the tests compare.
"""

import ast
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lmcore import files
from lmcourse import CourseError, homework, mistakes, paths
from lmcourse.homework.text import BEGIN_SOLUTION, END_SOLUTION
from lmcourse.mistakes import Known

from . import gradebook, intake
from .inside import world
from .messages import in_words

ANSWER = "In my own words: see the sketch that I handed in on paper."
CRASH = "    import ctypes\n\n    return ctypes.string_at(0)  # reads where nothing is"
LOOP = "    while True:\n        pass"


@dataclass(frozen=True)
class Student:
    """One made-up submission.

    ``earns`` says for every autograded question what it must earn: ``all``,
    ``nothing``, ``less`` (not all, perhaps something), or ``any`` where the mistake in
    another exercise may spoil it.
    """

    name: str
    notebook: bytes
    earns: dict[str, str]
    mistake: str = ""  # the name of the known mistake that must be recognised


def students(unit: str) -> list[Student]:
    """Make the sample class of a unit.

    Raises:
        CourseError: if the unit is not released.
    """
    return list(_Class(unit).students())


def submissions(unit: str) -> dict[str, bytes]:
    """The notebooks of the sample class by student."""
    return {student.name: student.notebook for student in students(unit)}


def write_sample_class(unit: str) -> list[str]:
    """Hand in the sample class, into the course's ``submitted`` folder.

    Students that an earlier call made up and that are no more, since their mistake has
    another name now or none, are taken away with all that became of their work.
    """
    made = submissions(unit)
    before = _written(unit)
    now = {name: hashlib.sha256(content).hexdigest() for name, content in made.items()}
    _keep_written(unit, before | now)  # if this call is cut off, the next one knows
    for name, content in made.items():
        path = paths.submitted(unit, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_bytes() != content:
            path.write_bytes(content)
    for name in sorted(before.keys() - now.keys()):
        _take_away(unit, name, before[name])
    _keep_written(unit, now)
    return list(made)


def _list_path(unit: str) -> Path:
    """Where it stands who was made up, each with a digest of the notebook."""
    return paths.course() / "sample-class" / f"{unit}.json"


def _written(unit: str) -> dict[str, str]:
    path = _list_path(unit)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _keep_written(unit: str, names: dict[str, str]) -> None:
    path = _list_path(unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(names, indent=1) + "\n"
    files.write_whole(path, lambda file: file.write(text.encode()))


def _take_away(unit: str, name: str, digest: str) -> None:
    """Remove a made-up student, unless somebody else hands in under that name now."""
    submitted = paths.submitted(unit, name)
    content = intake.read_file(submitted)
    if isinstance(content, bytes):
        if hashlib.sha256(content).hexdigest() != digest:
            return
    elif content.kind != "missing":
        return
    gradebook.remove(unit, name)
    for where in (paths.result, paths.handed_back):
        where(unit, name).unlink(missing_ok=True)
    of_the_work = (paths.autograded, paths.feedback)
    for path in (*(where(unit, name) for where in of_the_work), submitted):
        shutil.rmtree(path.parent, ignore_errors=True)
        if path.parents[1].is_dir() and not any(path.parents[1].iterdir()):
            path.parents[1].rmdir()


class _Class:
    def __init__(self, unit: str) -> None:
        self.unit = unit
        made = homework.load_manifest(unit)
        released = paths.release(unit) / f"{unit}.ipynb"
        if not released.is_file():
            raise CourseError(f"{unit} is not released: run lmcourse release {unit}")
        self.released = json.loads(released.read_text(encoding="utf-8"))
        self.known = mistakes.load(unit)
        self.solutions = {
            cell["id"]: _without_markers(cell["source"])
            for cell in made.cells
            if cell["kind"] == "solution"
        }
        self.question_of = {
            cell["id"]: cell["question"]
            for cell in made.cells
            if cell["kind"] == "solution"
        }
        given = [cell["source"] for cell in made.cells if cell["kind"] == "given"]
        self.imported = set(_imports(world.parse_cell("\n".join(given))))
        self.text_of: dict[str, str] = {}  # all code of a question, checks included
        for cell in made.cells:
            if cell["kind"] in ("solution", "test"):
                known = self.text_of.get(cell["question"], "")
                self.text_of[cell["question"]] = f"{known}\n{cell['source']}"
        self.written = [c["id"] for c in made.cells if c["kind"] == "written"]
        self.target_of = {
            question: made.questions[question]["implements"] or question
            for question in self.question_of.values()
        }
        self.cell_of = {
            self.target_of[question]: cell
            for cell, question in self.question_of.items()
        }

    def students(self) -> Iterator[Student]:
        right = dict(self.solutions)
        everything = dict.fromkeys(self.target_of, "all")
        nothing = dict.fromkeys(self.target_of, "nothing")
        yield Student("all-right", self.notebook(right), everything)
        different = right | self.first_of_each(self.known.variants)
        yield Student("written-differently", self.notebook(different), everything)
        half = dict(list(right.items())[: len(right) // 2])
        done = {self.question_of[cell] for cell in half}
        earns = nothing | dict.fromkeys(done, "all")
        yield Student("half-done", self.notebook(half), earns)
        yield Student("blank", self.notebook({}, answers=False), nothing)
        lonely = [cell for cell in right if not self.users(self.question_of[cell])]
        for name, body, cell in (
            ("crash", CRASH, lonely[0]),
            ("endless-loop", LOOP, lonely[-1]),
        ):
            broken = right | {cell: _with_body(right[cell], body)}
            earns = everything | {self.question_of[cell]: "nothing"}
            yield Student(name, self.notebook(broken), earns)
        seen: set[str] = set()
        for known in self.known.mistakes:
            if known.target in seen or known.target not in self.cell_of:
                continue
            seen.add(known.target)
            yield self.with_mistake(known, everything)

    def with_mistake(self, known: Known, everything: dict[str, str]) -> Student:
        cell = self.cell_of[known.target]
        wrong = self.solutions | {cell: self.as_cell(known)}
        question = self.question_of[cell]
        spoilt = dict.fromkeys(self.users(question), "any")
        earns = everything | spoilt | {question: "less"}
        name = "mistake-" + in_words(known.name).replace(" ", "-")
        return Student(name, self.notebook(wrong), earns, known.name)

    def first_of_each(self, answers: list[Known]) -> dict[str, str]:
        """For every exercise that has one, the first of these answers as its cell."""
        found: dict[str, str] = {}
        for known in answers:
            cell = self.cell_of.get(known.target)
            if cell is not None and cell not in found:
                found[cell] = self.as_cell(known)
        return found

    def users(self, question: str) -> set[str]:
        """The questions whose solutions or checks use this one's function.

        Directly, or through another's.
        """
        name = self.target_of[question].rpartition(".")[2]
        direct = {
            other
            for other, text in self.text_of.items()
            if other != question and name in _names(ast.parse(text))
        }
        return direct.union(*map(self.users, direct))

    def as_cell(self, known: Known) -> str:
        """Write a known answer as a student would: under the exercise's own name."""
        path = paths.root() / "tests" / "mistakes" / f"{self.unit}.py"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        needed = _needed(tree, known.name, self.imported)
        definition = needed.pop()
        target_module, _, definition.name = known.target.rpartition(".")
        definition.decorator_list = []
        parts = [ast.unparse(node) for node in needed]
        text = ast.unparse(definition)
        if target_module:
            text = f"@implements({target_module})\n{text}"
        if isinstance(definition, ast.ClassDef):  # it changes the right class
            parts.insert(0, self.solutions[self.cell_of[known.target]])
        return "\n\n\n".join([*parts, text])

    def notebook(self, sources: dict[str, str], answers: bool = True) -> bytes:
        """The released notebook with these sources in place of the stubs."""
        made = json.loads(json.dumps(self.released))
        for cell in made["cells"]:
            name = cell.get("metadata", {}).get("nbgrader", {}).get("grade_id")
            text = sources.get(name)
            if answers and name in self.written:
                text = ANSWER
            if text is not None:
                cell["source"] = text.splitlines(keepends=True)
        return (json.dumps(made, indent=1, ensure_ascii=False) + "\n").encode()


def _without_markers(source: str) -> str:
    markers = (BEGIN_SOLUTION, END_SOLUTION)
    lines = [line for line in source.splitlines() if line.strip() not in markers]
    return "\n".join(lines)


def _with_body(source: str, body: str) -> str:
    """A cell whose last function has another body."""
    tree = ast.parse(source)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    functions[-1].body = ast.parse(f"def f():\n{body}").body[0].body
    return ast.unparse(tree)


def _names(tree: ast.AST) -> set[str]:
    """All names and attributes that a piece of code reads."""
    return {
        node.id if isinstance(node, ast.Name) else node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Name | ast.Attribute)
    }


def _imports(tree: ast.Module) -> dict[str, ast.stmt]:
    """The names that a file imports, each with its line."""
    return {
        (alias.asname or alias.name).partition(".")[0]: node
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }


def _needed(tree: ast.Module, name: str, known: set[str]) -> list[ast.stmt]:
    """A definition of a file, after what it needs: imports, helpers, constants.

    Args:
        tree: the file
        name: what is defined
        known: names that need no import
    """
    imports = _imports(tree)
    defined = {used: imports[used] for used in imports.keys() - known}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined[node.name] = node
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    defined[target.id] = node
    wanted, waiting = set(), [name]
    while waiting:
        node = defined[waiting.pop()]
        if node in wanted:
            continue
        wanted.add(node)
        parts = [node] if not hasattr(node, "decorator_list") else _inner(node)
        waiting += [
            found for part in parts for found in _names(part) if found in defined
        ]
    helpers = [
        node for node in tree.body if node in wanted and node is not defined[name]
    ]
    return [*helpers, defined[name]]


def _inner(node: ast.stmt) -> list[ast.AST]:
    return [n for n in ast.iter_child_nodes(node) if n not in node.decorator_list]

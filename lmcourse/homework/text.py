"""The text of code cells: their marked regions, and the lines that are checks."""

import ast
import re

from .. import CourseError

BEGIN_SOLUTION, END_SOLUTION = "### BEGIN SOLUTION", "### END SOLUTION"
BEGIN_HIDDEN, END_HIDDEN = "### BEGIN HIDDEN TESTS", "### END HIDDEN TESTS"
AUTOTEST = "### AUTOTEST"
_OPTIONS = {"title", "atol", "rtol"}


class SourceError(CourseError):
    """Something in a homework's source must be mended by its author."""


def parse(source: str, place: str) -> ast.Module:
    """Parse a cell.

    Raises:
        SourceError: if it is not Python.
    """
    try:
        return ast.parse(source)
    except SyntaxError as error:
        message = f"not Python, line {error.lineno}: {error.msg}"
        raise SourceError(f"{place}: {message}") from None


def count_regions(source: str, begin: str, end: str, place: str) -> int:
    """Count the regions between two kinds of marker lines.

    Raises:
        SourceError: if the markers do not come in pairs, or are misspelt.
    """
    inside, n_regions = False, 0
    for line in map(str.strip, source.splitlines()):
        if line in (begin, end):
            if (line == begin) == inside:
                raise SourceError(f"{place}: {begin} and {end} do not come in pairs")
            inside = line == begin
            n_regions += inside
        elif begin[4:] in line or end[4:] in line:
            raise SourceError(f"{place}: {line!r} must read {begin} or {end}")
    if inside:
        raise SourceError(f"{place}: {begin} without {end}")
    return n_regions


def tidy_checks(source: str, place: str) -> str:
    """Bring a test cell to one form: no ``question`` line, options inside AUTOTEST.

    Raises:
        SourceError: if it holds no check, or one that nbgrader could not expand.
    """
    n_regions = count_regions(source, BEGIN_HIDDEN, END_HIDDEN, place)
    if n_regions > 1 or (n_regions and not source.rstrip().endswith(END_HIDDEN)):
        raise SourceError(
            f"{place}: the hidden checks must be one region at the cell's end, so that "
            "the visible ones draw the same numbers without them"
        )
    lines = [line for line in source.splitlines() if not line.startswith("question(")]
    source = "\n".join(_autotest(line, place) for line in lines).strip("\n")
    if "check(" not in executable(source):
        raise SourceError(f"{place}: there is no check in it")
    parse(executable(source), place)
    return source


def _autotest(line: str, place: str) -> str:
    if "AUTOTEST" not in line:
        return line
    if not line.startswith(AUTOTEST):
        raise SourceError(f"{place}: an AUTOTEST line must start with {AUTOTEST!r}")
    if ";" in line:
        raise SourceError(
            f"{place}: no semicolon in an AUTOTEST line; one check a line"
        )
    expression, *title = re.split(r"\s+#\s*title:\s*", line[len(AUTOTEST) :].strip())
    if title:
        quoted = title[0].strip().replace("\\", "\\\\").replace('"', '\\"')
        expression += f', title="{quoted}"'
    try:
        call = ast.parse(f"check({expression})", mode="eval").body
    except SyntaxError:
        raise SourceError(f"{place}: not an expression: {expression}") from None
    if len(call.args) != 1 or {k.arg for k in call.keywords} - _OPTIONS:
        raise SourceError(
            f"{place}: an AUTOTEST line has one expression, and if needed title, atol "
            f"and rtol: {expression}"
        )
    return f"{AUTOTEST} {expression}"


def executable(checks: str) -> str:
    """A test cell in which the AUTOTEST lines are checks that run.

    >>> executable('### AUTOTEST f(3), title="three"')
    'check(f(3), title="three")'
    """
    return "\n".join(
        f"check({line[len(AUTOTEST) :].strip()})" if line.startswith(AUTOTEST) else line
        for line in checks.splitlines()
    )


def visible(checks: str) -> str:
    """A test cell without its hidden region."""
    return checks.partition(BEGIN_HIDDEN)[0].rstrip()


def without_markers(source: str) -> str:
    """A solution without the markers round its regions."""
    markers = (BEGIN_SOLUTION, END_SOLUTION)
    lines = [line for line in source.splitlines() if line.strip() not in markers]
    return "\n".join(lines)

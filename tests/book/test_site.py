"""The built site: links, assets, pictures, figures, runs, and what it must not say."""

import datetime
import json
import pkgutil
import re
from pathlib import Path

import pytest
from bs4 import Tag
from built_pages import anchors, links, loads, pages, soup

import lmcore
from lmcourse import book, course, homework, paths

WITH_CODE = re.compile(r"^`{3,}\{code-cell\}", re.M)


def test_every_text_of_the_book_is_a_page(site):
    texts = (paths.root() / "book").rglob("*.md")
    wanted = {p.relative_to(paths.root() / "book").with_suffix(".html") for p in texts}
    made = {page.relative_to(site) for page in pages(site)}
    assert wanted <= made


def test_every_link_inside_the_site_resolves(site):
    broken = []
    for page in pages(site):
        for link in [*links(page), *loads(page)]:
            if not link.is_inside:
                continue
            file, anchor = link.file(), link.anchor()
            found = file.is_file() and site in file.parents
            if found and anchor and file.suffix == ".html":
                found = anchor in anchors(file)
            if not found:
                broken.append(f"{page.relative_to(site)}: {link.target}")
    assert broken == []


def test_no_page_loads_anything_from_elsewhere(site):
    foreign = [
        f"{page.relative_to(site)}: {link.target}"
        for page in pages(site)
        for link in loads(page)
        if not link.is_inside
    ]
    assert foreign == []


def test_no_stylesheet_loads_anything_from_elsewhere(site):
    remote = re.compile(r"(?:url\(\s*|@import\s+)[\"']?(?:https?:)?//[^)\"']+")
    foreign = [
        f"{sheet.relative_to(site)}: {found[0]}"
        for sheet in site.rglob("*.css")
        for found in remote.finditer(sheet.read_text("utf8"))
    ]
    assert foreign == []


def test_every_picture_has_an_alternative_text(site):
    silent = [
        f"{page.relative_to(site)}: {image.get('src', '')[:80]}"
        for page in pages(site)
        for image in soup(page).select("img")
        if not image.get("alt", "").strip() and not is_beside_its_name(image)
    ]
    assert silent == []


def is_beside_its_name(image: Tag) -> bool:
    """Whether a picture only decorates a link that has words."""
    link = image.find_parent("a")
    return (
        image.has_attr("alt") and link is not None and bool(link.get_text(strip=True))
    )


def test_every_live_figure_has_caption_description_and_paper_form(site):
    figures = [(p, f) for p in pages(site) for f in soup(p).select("figure.lm-live")]
    assert len(figures) >= 2
    for page, figure in figures:
        where = f"{page.relative_to(site)}: {figure['id']}"
        assert len(figure.select_one("figcaption").get_text()) > 40, where
        assert len(figure.select_one(".lm-words").get_text()) > 40, where
        assert figure.select_one(".lm-static img, .lm-words table"), where
        assert figure.select_one('.lm-stage script[type*="widget-view"]'), where


def test_every_module_of_the_library_has_its_page(site):
    index = soup(site / "api/index.html")
    linked = {a["href"] for a in index.select("article table a")}
    for module in pkgutil.iter_modules(lmcore.__path__):
        if module.name.startswith("__"):
            continue
        assert f"{module.name}.html" in linked, module.name
        page = soup(site / "api" / f"{module.name}.html")
        assert page.select("dl.py"), module.name


def test_every_widget_stands_in_a_live_figure(site):
    for page in pages(site):
        for view in soup(page).select('script[type*="widget-view"]'):
            assert view.find_parent("figure", class_="lm-live"), page.relative_to(site)


def test_every_page_with_code_ran_without_error_and_says_when(site):
    texts = paths.root() / "book"
    for text in texts.rglob("*.md"):
        page = soup(site / text.relative_to(texts).with_suffix(".html"))
        foot = page.select_one(".lm-fresh").get_text(" ")
        assert re.search(r"20\d\d-\d\d-\d\d", foot), text
        assert ("last ran" in foot) == bool(WITH_CODE.search(text.read_text("utf8")))
        assert page.select(".output.traceback, .output.stderr") == [], text


def test_every_chapter_states_the_work_it_asks_for(site):
    chapters = json.loads(soup(site / "index.html").select_one("#lm-page").string)
    assert chapters["chapters"]
    for name in chapters["chapters"]:
        labels = soup(site / f"{name}.html").select_one(".lm-labels").get_text(" ")
        assert re.search(r"\d+ min to read", labels), name
        assert re.search(r"\d+ s of CPU", labels), name
        assert re.search(r"\d+ MB of memory", labels), name


def test_every_page_has_a_language_a_title_a_heading_and_a_description(site):
    descriptions = {}
    for page in pages(site):
        html = soup(page)
        where = page.relative_to(site).as_posix()
        assert html.html["lang"] == "en", where
        assert html.title.get_text(strip=True), where
        if where in {"genindex.html", "py-modindex.html", "search.html"}:
            continue
        assert len(html.select("article h1")) == 1, where
        description = html.select_one('meta[name="description"]')["content"]
        assert len(description) > 20, where
        descriptions.setdefault(description, []).append(where)
    assert [same for same in descriptions.values() if len(same) > 1] == []


@pytest.mark.parametrize("unit", homework.units())
def test_every_exercise_has_its_ladder(site, unit):
    page = soup(site / "homework" / f"{unit}.html")
    steps = homework.ladder(unit)
    assert len(page.select("table.lm-exercises tbody tr")) == len(steps) + 1
    for step in steps:
        section = page.select_one(f"#exercise-{step.id.replace('_', '-')}")
        assert step.title in section.get_text(), step.id
        folds = section.select(".lm-ladder > details")
        rungs = len(step.hints) + bool(step.sketch) + (step.solution is not None)
        assert len(folds) == rungs, step.id
        assert not any(fold.has_attr("open") for fold in folds)


@pytest.mark.parametrize("unit", homework.units())
def test_solutions_are_in_no_file_before_the_course_shows_them(site, unit):
    """Line by line: what only a solution says must not be in any file of the site."""
    if course.load().shows_solutions(unit):
        pytest.skip(f"course.yml shows the solutions of {unit}")
    cells = homework.load_manifest(unit).cells
    public = set().union(*(strip(cell["released"]) for cell in cells))
    secret = {
        line
        for cell in cells
        if cell["kind"] in ("solution", "written")
        for line in strip(cell["source"]) - public
        if len(line) > 34 and not line.startswith("#")
    }
    assert len(secret) > 20
    leaks = [
        f"{file.relative_to(site)}: {line}"
        for file in readable_files(site)
        for line in sorted(secret & lines_of(file))
    ]
    assert leaks == []


def readable_files(site: Path) -> list[Path]:
    kinds = {".html", ".md", ".ipynb", ".json", ".txt"}
    aside = site / "report"
    found = (path for path in site.rglob("*") if path.suffix in kinds)
    return [path for path in found if aside not in path.parents]


def lines_of(file: Path) -> set[str]:
    if file.suffix == ".html":
        text = soup(file).get_text()
    elif file.suffix == ".ipynb":
        cells = json.loads(file.read_text("utf8"))["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
    else:
        text = file.read_text("utf8")
    return strip(text)


def strip(text: str) -> set[str]:
    """The lines of a text, without what stands before and after them."""
    return {line.strip() for line in text.splitlines()}


def test_nothing_is_built_twice(built):
    start = datetime.datetime.now()
    again = book.build()
    assert again.pages == built.pages
    assert again.executed == 0
    stamp = paths.build() / "book.json"
    assert datetime.datetime.fromtimestamp(stamp.stat().st_mtime) < start


def test_the_server_serves_files_with_the_types_browsers_insist_on(built):
    types = book._Handler.extensions_map
    assert types[".js"] == "text/javascript"
    assert types[".woff2"] == "font/woff2"
    assert types[".svg"] == "image/svg+xml"

"""Building the book: what is fetched, generated and complained about."""

import json

import pytest

from lmcourse import CourseError, book, paths


def test_the_lock_names_exact_versions_and_no_registry():
    lock = (paths.root() / "package-lock.json").read_text("utf8")
    assert "resolved" not in lock
    wanted = json.loads((paths.root() / "package.json").read_text("utf8"))
    everything = wanted["dependencies"] | wanted["devDependencies"]
    installed = json.loads(lock)["packages"]
    for name, version in everything.items():
        assert installed[f"node_modules/{name}"]["version"] == version
        assert installed[f"node_modules/{name}"]["integrity"]


def test_everything_fetched_is_there_and_fetched_once(built, monkeypatch):
    vendor = book.assets() / "site" / "vendor"
    for name in (
        "mathjax/tex-chtml.js",
        "widgets/require.js",
        "widgets/embed-amd.js",
        "widgets/anywidget.js",
    ):
        assert (vendor / name).stat().st_size > 10_000, name
    assert len(list(vendor.glob("fonts/*/*.woff2"))) == 4
    assert len(list(vendor.glob("fonts/*/LICENSE"))) == 3
    monkeypatch.setattr(book, "_npm", lambda *_: pytest.fail("npm was asked again"))
    assert book.fetch_assets() == book.assets()


def test_npm_that_fails_is_told_in_a_sentence(tmp_path):
    with pytest.raises(CourseError, match="npm could not fetch"):
        book._npm(tmp_path, "ci")


def test_warnings_and_failed_pages_are_told_and_nothing_else(tmp_path):
    log = tmp_path / "08_attention.err.log"
    log.write_text("Traceback\nValueError: too wide\n")
    lines = [
        "reading sources... [100%] index",
        "[IPKernelApp] WARNING | Kernel is running over TCP",
        "book/a.md:7: WARNING: term not in glossary: 'key'",
        f"book/b.md: WARNING: Notebook exception traceback saved in: {log} [mystnb]",
    ]
    told = book._complaints(lines)
    assert "term not in glossary" in told
    assert "ValueError: too wide" in told
    assert "reading sources" not in told
    assert "IPKernelApp" not in told


def test_a_crash_is_told_with_its_first_lines():
    lines = ["loading", "Extension error (x.y):", "Handler <f> failed", "Traceback"]
    assert book._complaints(lines).strip().startswith("Extension error (x.y):")


def test_there_is_a_homework_page_for_each_unit_and_no_other(tmp_path, monkeypatch):
    (tmp_path / "_config.yml").touch()
    (tmp_path / "book" / "homework").mkdir(parents=True)
    (tmp_path / "book" / "homework" / "07_gone.md").write_text("old")
    (tmp_path / "solutions").mkdir()
    (tmp_path / "solutions" / "08_attention.md").touch()
    monkeypatch.chdir(tmp_path)
    book.write_homework_pages()
    made = list((tmp_path / "book" / "homework").iterdir())
    assert [path.name for path in made] == ["08_attention.md"]
    assert "```{homework} 08_attention" in made[0].read_text("utf8")
    before = made[0].stat().st_mtime_ns
    book.write_homework_pages()
    assert made[0].stat().st_mtime_ns == before  # so that Sphinx sees no change


def test_without_a_site_or_with_a_taken_port_serving_says_so(
    built, tmp_path, monkeypatch
):
    with (
        book.make_server(0) as server,
        pytest.raises(CourseError, match="cannot be used"),
    ):
        book.make_server(server.server_address[1])
    (tmp_path / "_config.yml").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CourseError, match="lmcourse book"):
        book.make_server(0)


def test_an_unknown_unit_is_a_warning_with_file_and_line(small_book):
    text = "# Title\n\nWords.\n\n```{homework} 99_nothing\n```\n"
    warnings = small_book({"index.md": text}).warnings
    assert "index.md:5: WARNING: homework there is no unit '99_nothing'" in warnings
    assert "08_attention" in warnings


def test_progress_lists_chapters_in_order_with_their_quizzes(small_book):
    chapter = (
        "# {title}\n\n```{{work}}\n:difficulty: 1\n```\n\n"
        "```{{quiz}} one\nWhich?\n\n- [x] a\n\n  yes\n- [ ] b\n\n  no\n```\n"
    )
    made = small_book(
        {
            "index.md": "# Book\n\n```{progress}\n```\n\n```{toctree}\nb\na\n```\n",
            "a.md": chapter.format(title="First by name"),
            "b.md": chapter.format(title="First in the book"),
        }
    )
    rows = made.page().select(".lm-progress tbody tr")
    assert [row["data-page"] for row in rows] == ["b", "a"]
    assert "First in the book" in rows[0].get_text()
    assert "0 / 1" in rows[0].get_text()
    assert rows[0].select_one("a")["href"] == "b.html"
    assert made.warnings == ""

"""The live-figure directive: caption, description, paper form, and what it refuses."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

WIDGET = {
    "application/vnd.jupyter.widget-view+json": {"model_id": "abc", "version_major": 2}
}
PICTURE = {
    "image/svg+xml": "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
}
TABLE = "| press | count |\n| --- | --- |\n| 1 | 1 |\n"


def cell(*bundles: dict) -> nbformat.NotebookNode:
    """A code cell that has shown these."""
    outputs = [new_output("display_data", data=bundle) for bundle in bundles]
    hidden = {"tags": ["remove-input"]}
    return new_code_cell("show()", outputs=outputs, metadata=hidden)


def figure(body: str, height: str = ":height: 240\n") -> str:
    return f":::{{live-figure}} steps\n{height}\n{body}\n:::\n"


@pytest.fixture
def page(small_book):
    """Build a page from cells, and return it with the build's warnings."""

    def build(*cells: nbformat.NotebookNode | str):
        made = [new_markdown_cell(c) if isinstance(c, str) else c for c in cells]
        notebook = new_notebook(cells=[new_markdown_cell("# Title"), *made])
        small = small_book({"index.ipynb": nbformat.writes(notebook)})
        return small.page(), small.warnings

    return build


def test_the_output_moves_into_the_figure_with_caption_and_description(page):
    words = f"The *caption*.\n\nWhat is seen.\n\n{TABLE}"
    html, warnings = page("See {numref}`steps`.", cell(WIDGET), figure(words))
    assert warnings == ""
    found = html.select_one("figure.lm-live")
    assert found["id"] == "steps"
    style = found.select_one(".lm-stage")["style"]
    assert style == "--lm-wide: 240px; --lm-narrow: 240px"
    view = 'script[type="application/vnd.jupyter.widget-view+json"]'
    assert found.select_one(f".lm-stage {view}") is not None
    assert len(html.select(view)) == 1
    caption = found.select_one("figcaption")
    assert found["aria-labelledby"] == caption["id"]
    assert "Fig. 1" in caption.get_text()
    assert caption.select_one("em").get_text() == "caption"
    words = found.select_one("details.lm-words")
    assert "What is seen." in words.get_text()
    assert words.select_one("table") is not None
    assert html.select_one("a[href='#steps'] .std-numref").get_text() == "Fig. 1"


def test_a_picture_of_the_same_cell_stands_in_on_paper(page):
    html, warnings = page(cell(PICTURE, WIDGET), figure("Caption.\n\nWords."))
    assert warnings == ""
    image = html.select_one("figure.lm-live .lm-static img")
    assert image["alt"] == "Caption."
    assert html.select_one(".lm-stage img") is None


def test_a_picture_inside_the_widgets_own_bundle_stands_in_too(page):
    html, warnings = page(cell(WIDGET | PICTURE), figure("Caption.\n\nWords."))
    assert warnings == ""
    assert html.select_one(".lm-static img") is not None


@pytest.mark.parametrize(
    ("shown", "text", "message"),
    [
        (WIDGET, figure(""), "the caption is missing"),
        (WIDGET, figure("Caption."), "the long description is missing"),
        (WIDGET, figure("Caption.\n\nWords.", ""), "no :height: is given"),
        (WIDGET, figure("Caption.\n\nWords."), "nothing stands in its place"),
        (PICTURE, figure("Caption.\n\nWords."), "shows no widget"),
        (WIDGET, "Words.\n\n" + figure(f"Caption.\n\n{TABLE}"), "shows no widget"),
    ],
)
def test_what_a_figure_lacks_is_a_warning_with_file_and_line(
    page, shown, text, message
):
    _, warnings = page(cell(shown), text)
    third_cell = 30_001  # how notebooks number the lines of their third cell
    line = third_cell + text.splitlines().index(":::{live-figure} steps") + 1
    assert f"index.ipynb:{line}: WARNING: live-figure 'steps': " in warnings
    assert message in warnings
    assert warnings.count("WARNING") == 1

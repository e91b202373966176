"""The page a student gets back: it helps, it tells nothing hidden, it does nothing."""

import pytest
from bs4 import BeautifulSoup

from lmcourse.grading import feedback, gradebook, intake
from lmcourse.grading.unit import Unit

UNIT = "07_tiny"
MISTAKEN = "def average(x):\n    return x.sum(-1) / (x.shape[-1] - 1)"
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![pixel](https://tracker.example/x.png)",
    "[press](javascript:alert(1))",
    "[press](data:text/html;base64,PHNjcmlwdD4=)",
    "<svg onload=alert(1)><iframe src=//evil.example></iframe>",
    "<style>@import url(//evil.example)</style>",
    "<details ontoggle=alert(1) open>x</details><form action=//evil.example>",
    "&lt;script&gt; `<b onclick=1>` <https://evil.example/onerror=1>",
    "[x]: https://evil.example\n\n![a][x] ![](x)",
    "| a |\n| --- |\n| <meta http-equiv=refresh content='0;url=//evil.example'> |",
]


@pytest.fixture
def page(worker, handed_in, here):
    """Make the page of a notebook, as if the gradebook held the automatic points."""

    def make(marks: gradebook.Marks | None = None, **cells: str) -> str:
        content = handed_in(**cells)
        result = worker.grade(content)
        work = intake.read(content, Unit(UNIT).manifest)
        if marks is None:
            scores = {
                name: gradebook.Mark(test["score"], test["max_score"])
                for name, test in result["tests"].items()
            }
            scores["why"] = gradebook.Mark(None, 2)
            marks = gradebook.Marks(scores, {}, 0)
        return feedback.page(UNIT, "ada", result, work.cells, marks)

    return make


def text_of(page: str) -> str:
    return " ".join(BeautifulSoup(page, "html.parser").get_text(" ").split())


def test_it_says_what_was_misunderstood_and_where_to_read(page):
    text = text_of(page(average=MISTAKEN))
    assert "What was probably misunderstood: You divided by one too few." in text
    assert "How many numbers are there?" in text  # the hint
    assert "section “averages” of the chapter" in text
    assert "0 of 4" in text
    assert "Read a row aloud." not in text  # the hint of an exercise that is right
    assert "3 of 9 points" in text
    assert "1 question is still to be graded by a person" in text


def test_it_holds_no_hidden_check_and_no_solution(page):
    for made in (page(), page(average=MISTAKEN)):
        for word in ("randn", "generator(1)", "BEGIN HIDDEN", "Add, then divide"):
            assert word not in made
        assert "a table" in made  # the title of a hidden check
    assert "x.sum(-1) / x.shape[-1]" not in page(average=MISTAKEN)


def test_points_comments_and_lateness_given_by_hand_are_shown(page):
    cells = {
        "average_checks": gradebook.Mark(3.5, 4),
        "causal_mask_checks": gradebook.Mark(3, 3),
        "why": gradebook.Mark(1, 2),
    }
    marks = gradebook.Marks(cells, {"why": "Say <more>."}, 2)
    text = text_of(page(marks))
    assert "3.5 of 4" in text
    assert "Say <more>." in text
    assert "5.5 of 9 points" in text
    assert "2 points were taken off" in text
    assert "to be graded by a person" not in text


@pytest.mark.parametrize("hostile", HOSTILE)
def test_nothing_of_a_student_s_text_can_act(page, hostile):
    code = f'def average(x):\n    """{hostile}"""\n    return x\nprint({hostile!r})'
    made = page(average=code, why=hostile)
    soup = BeautifulSoup(made, "html.parser")
    for tag in soup.main.find_all(True):
        allowed = feedback.TAGS | {"section", "details", "summary", "div", "span", "b"}
        assert tag.name in allowed, tag
        for name, value in tag.attrs.items():
            known = ("class", "tabindex", "aria-hidden", "open", "href", "rel")
            assert name in known, tag
            if name == "href":
                assert value.startswith(("http://", "https://", "mailto:")), tag
    assert [tag.name for tag in soup.head.find_all(True)] == (
        ["meta"] * 4 + ["title", "style"]
    )


def test_it_loads_nothing_and_forbids_the_rest(page):
    soup = BeautifulSoup(page(), "html.parser")
    policy = soup.find("meta", {"http-equiv": "Content-Security-Policy"})["content"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert soup.find_all(["script", "link", "img", "iframe", "object", "base"]) == []
    assert "url(" not in soup.style.string
    assert soup.html["lang"] == "en"


def test_markdown_and_formulas_of_an_answer_are_readable():
    html = str(feedback.as_html("It *is* $x^2$.\n\n| a | b |\n| - | - |\n| 1 | 2 |"))
    assert "<em>is</em> $x^2$" in html
    assert "<td>2</td>" in html


def test_an_endless_answer_is_cut(page):
    assert len(page(why="word " * 19_000)) < 60_000

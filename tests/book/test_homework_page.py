"""The homework directive: the table, and the ladder of each exercise."""

import dataclasses

import pytest

from lmcourse import course, homework

STEP = homework.Step(
    id="causal_mask",
    title="Who may look at whom?",
    text="Write `causal_mask`.\n\n$$ a = b $$",
    hints=["Think of *time*.", "Compare positions."],
    sketch="A comparison of two rows of numbers.",
    solution=None,
    written=False,
    points=3,
    minutes=10,
    difficulty=2,
    section="",
    seconds="under 1 s",
    memory="under 1 GB",
    label="",
)
PAGE = {"index.md": "# Homework\n\n```{homework} 08_attention\n```\n"}


@pytest.fixture
def page(small_book, monkeypatch):
    """Build the page of a homework with these steps."""

    def build(*steps: homework.Step):
        monkeypatch.setattr(homework, "units", lambda: ["08_attention"])
        monkeypatch.setattr(homework, "ladder", lambda unit, today=None: list(steps))
        made = small_book(PAGE)
        assert made.warnings == ""
        return made.page()

    return build


def test_the_table_links_to_each_exercise_and_adds_up(page):
    other = dataclasses.replace(STEP, id="by_hand", title="On paper", points=2)
    html = page(STEP, other)
    rows = html.select("table.lm-exercises tbody tr")
    link = rows[1].select_one("a")
    assert link.get_text() == "2 · On paper"
    section = html.select_one(link["href"])
    assert "On paper" in section.select_one("h2").get_text()
    assert rows[-1].get_text(" ", strip=True) == "Together 20 5"


def test_hints_and_sketch_are_folded_in_order(page):
    html = page(STEP)
    folds = html.select("#exercise-causal-mask .lm-ladder > details")
    titles = [fold.select_one("summary").get_text() for fold in folds]
    assert titles == ["Hint 1", "Hint 2", "Sketch"]
    assert folds[0].select_one("em").get_text() == "time"
    assert not any(fold.has_attr("open") for fold in folds)
    labels = html.select_one("#exercise-causal-mask .lm-labels").get_text(" ")
    for label in ("10 min to do", "3 points", "moderate", "under 1 s", "under 1 GB"):
        assert label in labels


def test_the_solution_is_there_only_when_it_is_shown(page):
    shown = dataclasses.replace(STEP, solution="return rows >= columns")
    assert "rows >= columns" not in page(STEP).get_text()
    last = page(shown).select(".lm-ladder > details")[-1]
    assert last.select_one("summary").get_text() == "Solution"
    assert "return rows >= columns" in last.select_one("pre").get_text()


def test_the_answer_to_a_written_question_is_text(page):
    written = dataclasses.replace(STEP, solution="Because of *time*.", written=True)
    last = page(written).select(".lm-ladder > details")[-1]
    assert last.select_one("em").get_text() == "time"
    assert last.select_one("pre") is None


def test_a_ladder_that_has_changed_is_built_again(page):
    """As on the day after the last day to hand in, when no file has changed."""
    assert "rows >= columns" not in page(STEP).get_text()
    shown = dataclasses.replace(STEP, solution="return rows >= columns")
    assert "rows >= columns" in page(shown).get_text()
    assert "rows >= columns" not in page(STEP).get_text()


@pytest.mark.parametrize("unit", homework.units())
def test_no_solution_reaches_the_book_before_its_day(unit, monkeypatch):
    homework.build(unit)
    never = course.Course(solutions="never")
    monkeypatch.setattr(course, "load", lambda: never)
    assert all(step.solution is None for step in homework.ladder(unit))

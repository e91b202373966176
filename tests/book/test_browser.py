"""The built site in a real browser: every page, quizzes, progress, live figures."""

import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import browser
import pytest
from built_pages import pages, soup
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from lmcourse import book

pytestmark = pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())

CHAPTER = "08_attention.html"
PHONE = 360


@pytest.fixture(scope="module")
def downloads(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def driver(downloads):
    with browser.chromium(downloads) as driver:
        browser.set_width(driver, 1280)
        driver.set_script_timeout(120)
        yield driver


@pytest.fixture(scope="module")
def http(built):
    with book.make_server(0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.fixture(scope="module")
def from_disk(site):
    return f"{site.as_uri()}/"


@pytest.fixture(params=["http", "from_disk"])
def base(request):
    """The site's address: served, and opened from disk."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def chapter(driver, http):
    """The chapter in the browser, as someone who has done nothing yet."""
    driver.get(http + CHAPTER)
    driver.execute_script("localStorage.clear()")
    driver.get(http + CHAPTER)
    return driver


ALL_ALIVE = """
const stages = [...document.querySelectorAll(".lm-stage")];
const waiting = stages.filter((one) => !one.querySelector(".jupyter-widgets, .lmbh"));
waiting[0]?.scrollIntoView();
return waiting.length === 0;
"""
MATHS_IS_SET = """
return !window.MathJax?.startup || MathJax.startup.promise.then(() => true);
"""


def open_page(driver: Chrome, url: str) -> None:
    """Open a page and wait until its formulas are set and its figures are alive."""
    driver.get(url)
    wait_for(driver, MATHS_IS_SET)
    wait_for(driver, ALL_ALIVE)


def wait_for(driver: Chrome, script: str, seconds: float = 30) -> object:
    """Wait until a script gives something true, and return it."""
    return WebDriverWait(driver, seconds, poll_frequency=0.05).until(
        lambda driver: driver.execute_script(script)
    )


@dataclass(frozen=True)
class Visit:
    """What was seen on a page.

    Attributes:
        complaints: errors in the console, requests that failed or went elsewhere
        phone_width: how wide the page is on a phone, in CSS pixels
    """

    complaints: list[str]
    phone_width: int


def unlike_pages(site: Path) -> list[Path]:
    """All pages; of those that are made of docstrings alone, two."""
    made = ("api/attention.html", "api/homework.html", "api/index.html")
    names = {page: page.relative_to(site).as_posix() for page in pages(site)}
    return [p for p, name in names.items() if name[:4] != "api/" or name in made]


@pytest.fixture(scope="module")
def visits(driver, site, http) -> dict[str, Visit]:
    """One visit to each page of the served site, and to some of the alike ones."""
    found = {}
    for page in unlike_pages(site):
        name = page.relative_to(site).as_posix()
        browser.forget(driver)
        open_page(driver, http + name)
        complaints = browser.complaints(driver, http)
        browser.set_width(driver, PHONE, 740)
        width = driver.execute_script("return document.documentElement.scrollWidth")
        browser.set_width(driver, 1280)
        found[name] = Visit(complaints, width)
    return found


STAND_STILL = """
const style = document.createElement("style");
style.textContent = "* { transition: none !important; animation: none !important; }";
document.head.append(style);
"""
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]


AXE = """
const [runOnly, done] = arguments;
// Formulas are read out from the MathML beside them: for axe that is no name.
// docutils gives the entries of a bibliography a role that ARIA has since dropped.
const isExcused = (rule, node) => {
  const place = document.querySelector(node.target[0]);
  const old = "[role=doc-biblioentry], .citation-list";
  if (place?.matches(old)) return rule.id.startsWith("aria-");
  if (rule.id !== "label" && rule.id !== "empty-table-header") return false;
  return place.closest("label, th")?.querySelector("mjx-assistive-mml") != null;
};
axe.run(document, { runOnly }).then((result) => done(
  result.violations.flatMap((rule) => rule.nodes
    .filter((node) => !isExcused(rule, node))
    .map((node) => `${rule.id}: ${node.html.slice(0, 200)}`))));
"""


def ask_axe(driver: Chrome, what: list[str], kind: str = "tag") -> list[str]:
    """What stands in the way of readers, by these rules."""
    return driver.execute_async_script(AXE, {"type": kind, "values": what})


def test_every_page_loads_whole_and_alone(visits):
    complaints = {name: visit.complaints for name, visit in visits.items()}
    assert {name: found for name, found in complaints.items() if found} == {}


def test_no_page_is_wider_than_a_phone(visits):
    widths = {name: visit.phone_width for name, visit in visits.items()}
    assert {name: width for name, width in widths.items() if width > PHONE} == {}


@pytest.mark.slow
def test_every_page_is_accessible_as_far_as_axe_can_tell(driver, site, http):
    axe = (book.assets() / "axe.min.js").read_text("utf8")
    barriers = {}
    for page in unlike_pages(site):
        name = page.relative_to(site).as_posix()
        open_page(driver, http + name)
        driver.execute_script(axe)
        driver.execute_script(STAND_STILL)
        found = ask_axe(driver, RULES)
        driver.execute_script("document.documentElement.dataset.theme = 'dark'")
        found += ask_axe(driver, ["color-contrast"], "rule")
        if found:
            barriers[name] = found
    assert barriers == {}


def test_every_page_works_from_disk(driver, site, from_disk):
    troubles = {}
    for page in unlike_pages(site):
        name = page.relative_to(site).as_posix()
        browser.forget(driver)
        open_page(driver, from_disk + name)
        found = browser.complaints(driver, from_disk)
        if found:
            troubles[name] = found
    assert troubles == {}


def test_search_finds_the_chapter(driver, base):
    browser.forget(driver)
    driver.get(f"{base}search.html?q=softmax")
    wait_for(driver, "return document.querySelector('#search-results li a')")
    time.sleep(0.5)  # summaries are fetched after the titles
    found = driver.find_elements(By.CSS_SELECTOR, "#search-results li a")
    assert any(CHAPTER in link.get_attribute("href") for link in found)
    assert browser.complaints(driver, base) == []


# ---- quizzes -----------------------------------------------------------------------
def first_quiz(driver: Chrome) -> WebElement:
    form = driver.find_element(By.CSS_SELECTOR, "form.lm-quiz")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", form)
    return form


def answer_of(form: WebElement) -> str:
    return form.find_element(By.CSS_SELECTOR, "[role=status]").text


def choice(form: WebElement, right: bool) -> WebElement:
    which = f".lm-quiz-choice[data-right={str(right).lower()}]"
    return form.find_element(By.CSS_SELECTOR, which)


@pytest.mark.parametrize(
    ("right", "verdict"), [(True, "Right"), (False, "Not this one")]
)
def test_a_click_on_a_choice_tells_why(chapter, right, verdict):
    form = first_quiz(chapter)
    assert answer_of(form) == ""
    chosen = choice(form, right)
    chosen.find_element(By.TAG_NAME, "label").click()
    assert verdict in answer_of(form)
    number = int(chosen.find_element(By.TAG_NAME, "input").get_attribute("value"))
    quiz = soup(book.site() / CHAPTER).select_one("form.lm-quiz")
    reason = quiz.select(".lm-quiz-verdict")[number].select("p")[-1].get_text()
    words = " ".join(reason.split()[:3])
    assert words in answer_of(form)


def test_only_the_reason_of_the_last_choice_is_shown(chapter):
    form = first_quiz(chapter)
    for right in (False, True):
        choice(form, right).find_element(By.TAG_NAME, "label").click()
    assert "Right" in answer_of(form)
    assert "Not this one" not in answer_of(form)


def test_the_keyboard_moves_without_answering_and_answers_on_enter(chapter):
    form = first_quiz(chapter)
    first = form.find_element(By.CSS_SELECTOR, "input[type=radio]")
    first.send_keys(Keys.SPACE)
    assert answer_of(form) != ""
    chapter.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert answer_of(form) == ""
    second = chapter.switch_to.active_element
    assert second.get_attribute("value") == "1"
    second.send_keys(Keys.ENTER)
    assert answer_of(form).removeprefix("✓").removeprefix("✗").strip().startswith("B.")


def test_quizzes_can_be_read_without_scripts(driver, http):
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        driver.get(http + CHAPTER)
        reasons = driver.find_elements(By.CSS_SELECTOR, ".lm-quiz-reason")
        choices = driver.find_elements(By.CSS_SELECTOR, ".lm-quiz-choice")
        assert len(reasons) == len(choices) > 0
        first = reasons[0]
        first.find_element(By.TAG_NAME, "summary").click()
        assert len(first.find_element(By.CLASS_NAME, "lm-quiz-verdict").text) > 20
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


# ---- progress ----------------------------------------------------------------------
def progress_page(site: Path) -> str:
    for page in pages(site):
        if soup(page).select_one(".lm-progress"):
            return page.relative_to(site).as_posix()
    raise AssertionError("no page shows the reader's progress")


def row_of(driver: Chrome) -> str:
    page = CHAPTER.removesuffix(".html")
    return driver.find_element(By.CSS_SELECTOR, f"tr[data-page='{page}']").text


def press(driver: Chrome, what: str) -> None:
    driver.find_element(By.CSS_SELECTOR, f".lm-progress [data-do={what}]").click()


def test_progress_is_ticked_exported_cleared_and_imported(
    chapter, http, site, downloads
):
    driver = chapter
    choice(first_quiz(driver), True).find_element(By.TAG_NAME, "label").click()
    driver.find_element(By.CSS_SELECTOR, ".lm-chapter-end label").click()
    assert driver.find_element(By.CSS_SELECTOR, ".bd-links .lm-tick").text == "✓"
    assert driver.find_element(By.ID, "lm-quizzes-done").text.startswith("1 of ")

    driver.get(http + progress_page(site))
    assert "✓ read" in row_of(driver)
    assert "1 / " in row_of(driver)
    press(driver, "export")
    file = downloads / "language-models-by-hand-progress.json"
    WebDriverWait(driver, 10).until(lambda _: file.exists())
    exported = json.loads(file.read_text("utf8"))
    assert "08_attention" in exported["read"]
    assert len(exported["quizzes"]) == 1

    press(driver, "clear")
    assert "✓ read" in row_of(driver)  # asks before it clears
    press(driver, "clear")
    assert "not yet" in row_of(driver)
    assert "0 / " in row_of(driver)

    upload = driver.find_element(By.CSS_SELECTOR, ".lm-progress input[type=file]")
    upload.send_keys(str(file))
    wait_for(driver, "return document.querySelector('.lm-said').textContent")
    assert "✓ read" in row_of(driver)
    assert "1 / " in row_of(driver)
    driver.get(http + CHAPTER)
    assert driver.find_element(By.ID, "lm-read-box").is_selected()


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "[]",
        '{"format": 2, "read": {}, "quizzes": {}}',
        '{"format": 1, "read": {"a": 3}, "quizzes": {}}',
        '{"format": 1, "read": {}, "quizzes": {"a": {"choice": "x", "right": true}}}',
    ],
)
def test_a_file_that_is_no_progress_changes_nothing(driver, http, site, tmp_path, text):
    driver.get(http + progress_page(site))
    driver.execute_script("localStorage.clear()")
    file = tmp_path / "other.json"
    file.write_text(text, "utf8")
    upload = driver.find_element(By.CSS_SELECTOR, ".lm-progress input[type=file]")
    upload.send_keys(str(file))
    wait_for(driver, "return document.querySelector('.lm-said').textContent")
    assert "nothing was changed" in driver.find_element(By.CLASS_NAME, "lm-said").text
    assert driver.execute_script("return localStorage.length") in (0, 2)
    assert (
        driver.execute_script("return localStorage.getItem('language-models-by-hand')")
        is None
    )


# ---- live figures ------------------------------------------------------------------
def live(driver: Chrome, kind: str) -> WebElement:
    """A live figure of the chapter, alive."""
    wait_for(driver, ALL_ALIVE)
    figure = driver.find_element(By.CSS_SELECTOR, f".lm-live .lmbh-{kind}")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", figure)
    return figure


def texts(figure: WebElement, selector: str) -> list[str]:
    found = figure.find_elements(By.CSS_SELECTOR, selector)
    return [one.get_attribute("textContent").strip() for one in found]


def values(figure: WebElement, selector: str) -> list[str]:
    found = figure.find_elements(By.CSS_SELECTOR, selector)
    return [
        one.get_property("value") or one.get_property("textContent") for one in found
    ]


def click(driver: Chrome, element: WebElement) -> None:
    """Move the mouse there and press it."""
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    ActionChains(driver).move_to_element(element).click().perform()


@pytest.mark.parametrize(
    ("width", "name"),
    [(PHONE, "--lm-narrow"), (1280, "--lm-narrow"), (1400, "--lm-wide")],
)
def test_the_room_kept_for_a_figure_is_the_room_it_takes(driver, http, width, name):
    """Or else the text under it would jump when it arrives."""
    browser.set_width(driver, width)
    try:
        driver.get(http + CHAPTER)
        wait_for(driver, ALL_ALIVE)
        stages = driver.execute_script(ROOM, name)
    finally:
        browser.set_width(driver, 1280)
    for kept, taken in stages:
        assert taken == pytest.approx(kept, rel=0.12)


ROOM = """
return [...document.querySelectorAll(".lm-stage")].map(
  (one) => [parseInt(one.style.getPropertyValue(arguments[0])), one.offsetHeight]);
"""


def retype(driver: Chrome, text: str) -> None:
    """Mark everything in the focused field and type this instead."""
    hands = ActionChains(driver).key_down(Keys.CONTROL).send_keys("a")
    hands.key_up(Keys.CONTROL).send_keys(text).perform()


def test_the_explorer_answers_to_mouse_and_keyboard(driver, base):
    driver.get(base + CHAPTER)
    figure = live(driver, "explorer")
    sentence = figure.find_element(By.CLASS_NAME, "lmbh-sentence")
    click(driver, sentence)
    retype(driver, "the bird was cheap")
    words = ["the", "bird", "was", "cheap"]
    assert texts(figure, ".lmbh-offers li span:first-child") == words
    before = texts(figure, ".lmbh-number")
    assert sum(map(float, before)) == pytest.approx(1, abs=0.03)

    heads = figure.find_elements(By.CSS_SELECTOR, "[role=radiogroup]")[0]
    click(driver, heads.find_elements(By.TAG_NAME, "label")[-1])
    after = texts(figure, ".lmbh-number")
    assert after != before
    ActionChains(driver).send_keys(Keys.TAB, Keys.ARROW_RIGHT).perform()
    labels = [
        cell.get_attribute("aria-label")
        for cell in figure.find_elements(By.CSS_SELECTOR, ".lmbh-map td")
    ]
    assert sum("may not look" in (label or "") for label in labels) == 4 * 3 / 2


def test_the_steps_answer_to_mouse_and_keyboard(driver, base):
    driver.get(base + CHAPTER)
    figure = live(driver, "steps")
    count = texts(figure, ".lmbh-count")
    following = figure.find_elements(By.CSS_SELECTOR, ".lmbh-walk button")[-1]
    click(driver, following)
    assert texts(figure, ".lmbh-count") != count
    output = values(figure, ".lmbh-output td > *")
    number = figure.find_element(By.CSS_SELECTOR, ".lmbh-query input")
    click(driver, number)
    retype(driver, "-3" + Keys.ENTER)
    assert values(figure, ".lmbh-output td > *") != output

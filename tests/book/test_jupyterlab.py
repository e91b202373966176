"""The chapter that a reader downloads, run in JupyterLab: its cells and its figures."""

import shutil
import time
from pathlib import Path

import browser
import pytest
from built_pages import soup
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

pytestmark = pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())

CHAPTER = "08_attention"
SENTENCE = "the black bell woke the bird because it was hungry"
RUN_SECONDS = 900  # a chapter takes a minute where nothing else runs
LINE = 20  # pixels, in a figure
WAIT_SECONDS = 60
STATE = """
const cells = [...document.querySelectorAll(".jp-Notebook .jp-Cell")];
const notebook = document.querySelector(".jp-Notebook");
return [cells.length, cells.findIndex((x) => x.classList.contains("jp-mod-active")),
        notebook.classList.contains("jp-mod-commandMode")];
"""
PROMPTS = """
return [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")]
  .map((prompt) => prompt.textContent);
"""
COMPLAINTS = """
const kinds = ["error", "stderr"].map((x) => `application/vnd.jupyter.${x}`);
const all = kinds.map((x) => document.querySelectorAll(`[data-mime-type="${x}"]`));
return all.flatMap((found) => [...found]).map((output) => output.textContent);
"""


HEIGHT = """
const cells = document.querySelectorAll(".jp-Notebook .jp-Cell");
return [...cells].reduce((sum, cell) => sum + cell.offsetHeight, 0);
"""
NEWS = "@jupyterlab/apputils-extension/notification.jupyterlab-settings"


class Lab:
    """JupyterLab in a browser, and hands."""

    def __init__(self, driver: Chrome, address: str) -> None:
        self.driver = driver
        # JupyterLab draws some of its page anew just after it is there.
        gone = [StaleElementReferenceException]
        self.wait = WebDriverWait(driver, WAIT_SECONDS, ignored_exceptions=gone)
        driver.get(address)

    def actions(self) -> ActionChains:
        return ActionChains(self.driver)

    def one(self, selector: str) -> WebElement:
        """An element, as soon as it is there, in the middle of the window."""

        def found(page: Chrome) -> WebElement:
            element = page.find_element("css selector", selector)
            script = "arguments[0].scrollIntoView({block: 'center'})"
            page.execute_script(script, element)
            return element

        return self.wait.until(found)

    def texts(self, selector: str) -> list[str]:
        return [x.text for x in self.driver.find_elements("css selector", selector)]

    def click(self, selector: str) -> None:
        self.actions().click(self.one(selector)).perform()

    def press(self, *keys: str) -> None:
        self.actions().send_keys(*keys).perform()

    def seen(self, path: str) -> WebElement:
        """The one element of these that can be seen, as soon as there is one."""

        def found(page: Chrome) -> WebElement | None:
            all_of_them = page.find_elements(By.XPATH, path)
            return next((x for x in all_of_them if x.is_displayed()), None)

        return self.wait.until(found)

    def choose(self, *labels: str) -> None:
        """Choose from the menu that is open, and from those that open from it."""
        for label in labels:
            path = f"//*[contains(@class, 'lm-Menu-itemLabel')][.='{label}']"
            self.actions().click(self.seen(path)).perform()

    def open_as_notebook(self, name: str) -> None:
        path = f"//*[contains(@class, 'jp-DirListing-itemText')][.='{name}']"
        self.actions().context_click(self.seen(path)).perform()
        self.choose("Open With", "Notebook")
        self.one(".jp-Notebook .jp-CodeCell")

    def run_all(self) -> None:
        self.wait.until(self._started)
        deadline = time.monotonic() + RUN_SECONDS
        while waiting := [x for x in self._prompts() if not x.isdigit()]:
            if time.monotonic() > deadline:
                shown = "\n".join(self.texts(".jp-Dialog, .jp-OutputArea-output"))
                raise AssertionError(f"cells that did not run: {waiting}\n{shown}")
            time.sleep(1)
        self.wait.until(self._stands_still)

    def _started(self, page: Chrome) -> bool:
        """Choose to run all; whether a cell runs then.

        A notebook that has just been opened takes no orders for a moment.
        """
        path = "//*[contains(@class, 'lm-MenuBar-itemLabel')][.='Run']"
        self.actions().click(self.seen(path)).perform()
        self.choose("Run All Cells")
        time.sleep(3)
        return any(self._prompts())

    def _prompts(self) -> list[str]:
        """Of each cell of code: its number, a star while it waits, else nothing."""
        return [x.strip("[]: ") for x in self.driver.execute_script(PROMPTS)]

    def _stands_still(self, page: Chrome) -> bool:
        """Whether all formulas and pictures have the room that they take."""
        before = page.execute_script(HEIGHT)
        time.sleep(2)
        return page.execute_script(HEIGHT) == before

    def ask(self, code: str, answer: str) -> None:
        """Run a line in a new cell below the first one; wait for what it shows."""
        self.click(".jp-Notebook .jp-CodeCell .cm-content")
        self.press(Keys.ESCAPE, "b", Keys.ENTER, code)
        self.actions().key_down(Keys.SHIFT).send_keys(Keys.ENTER).perform()
        self.actions().key_up(Keys.SHIFT).perform()
        self.wait.until(lambda _: answer in self.texts(".jp-OutputArea-output pre"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_downloaded_chapter_runs_and_lives_in_jupyterlab(site, tmp_path):
    (link,) = soup(site / f"{CHAPTER}.html").select("a[href^='_sources/']")
    work = tmp_path / "work"
    work.mkdir()
    shutil.copy(site / link["href"], work)
    # A first start asks about news, in a window above the notebook.
    news = tmp_path / "settings" / NEWS
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    with (
        browser.jupyter(work, tmp_path, "lab", "jupyterlab") as address,
        browser.chromium(tmp_path) as driver,
    ):
        browser.set_width(driver, 1300, 1000)
        lab = Lab(driver, address)
        lab.open_as_notebook(Path(link["href"]).name)
        lab.run_all()
        assert driver.execute_script(COMPLAINTS) == []
        assert len(lab.texts(".lmbh")) == 2
        _the_steps_answer(lab)
        _the_explorer_answers(lab)
        _the_kernel_sees_what_was_set(lab)


def _the_steps_answer(lab: Lab) -> None:
    """To the mouse and to the keys, which here are no shortcuts of JupyterLab."""
    figure = ".lmbh-steps"

    def count() -> str:
        return lab.one(f"{figure} .lmbh-count").text

    def formula() -> str:
        return lab.one(f"{figure} .lmbh-formula").text

    assert count() == "Step 0 of 5: inputs"
    (forward,) = [
        button
        for button in lab.driver.find_elements(By.CSS_SELECTOR, f"{figure} button")
        if button.text.startswith("Next")
    ]
    lab.actions().click(forward).perform()
    assert count() == "Step 1 of 5: scores"
    before = lab.driver.execute_script(STATE)
    lab.press(Keys.ENTER)
    assert count() == "Step 2 of 5: scaled"
    lab.press(Keys.SPACE)
    assert count().startswith("Step 3 of 5")
    lab.click(f'{figure} [aria-label="query, melted, 1"]')
    lab.press("3")
    assert formula() == "query[melted, 1] = 3"
    lab.press(Keys.ARROW_UP, "4")
    assert formula() == "query[and, 1] = 4"
    assert lab.driver.execute_script(STATE) == before
    # JupyterLab's own style for lists of terms breaks no word of the figure.
    for term in lab.driver.find_elements(By.CSS_SELECTOR, f"{figure} dt"):
        assert term.size["height"] < 2 * LINE, term.text


def _the_explorer_answers(lab: Lab) -> None:
    figure = ".lmbh-explorer"

    def summary() -> str:
        return lab.one(f"{figure} .lmbh-summary").text

    lab.click(f"{figure} .lmbh-sentence")
    lab.actions().key_down(Keys.CONTROL).send_keys("a").key_up(Keys.CONTROL).perform()
    lab.press(SENTENCE)
    before = lab.driver.execute_script(STATE)
    words = lab.driver.find_elements(By.CSS_SELECTOR, f"{figure} .lmbh-lines button")
    lab.actions().click(words[SENTENCE.split().index("hungry")]).perform()
    assert summary().startswith("“hungry” looks most at “bird”")
    lab.press(Keys.ARROW_UP)
    assert summary().startswith("“was” looks most at")
    for key in "abxddmyjk":  # in a notebook: insert, cut, delete, turn into, move
        lab.press(key)
    lab.press(Keys.ENTER)
    assert summary().startswith("“was” looks most at")
    assert lab.driver.execute_script(STATE) == before


def _the_kernel_sees_what_was_set(lab: Lab) -> None:
    shown = "print(*[x.{} for x in Out.values() if isinstance(x, {})])"
    lab.ask(shown.format("text", "AttentionExplorer"), SENTENCE)
    query = "[[0.0, 4.0, 0.0, 0.0], [2.0, 3.0, 0.0, 0.0]]"
    lab.ask(shown.format("query[2:]", "AttentionSteps"), query)

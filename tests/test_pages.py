"""Notebooks as pages of a browser: rendered to static HTML, opened, played. Skipped where there is no Chromium."""

import subprocess
import sys

import pytest
from conftest import ROOT, chromium

sys.path.insert(0, str(ROOT / "notebooks"))

pytestmark = pytest.mark.slow


@pytest.fixture
def browser(tmp_path):
    """Chromium without a window and without a net."""
    found = chromium(tmp_path / "profile", page_load_strategy="eager")  # the fonts for formulas are out of reach
    yield found
    found.quit()


def page_of(stem, folder):
    """The notebook as it is committed, as a static page -> its address."""
    pytest.importorskip("nbconvert")
    notebook = ROOT / "notebooks" / f"{stem}.ipynb"
    command = [sys.executable, "-m", "nbconvert", "--to", "html", notebook, "--output-dir", folder]
    subprocess.run(command, check=True, capture_output=True)
    return (folder / f"{stem}.html").as_uri()


def shown(browser):
    """The number of the part that the player shows, and the line of text about it."""
    number = browser.execute_script("return document.querySelector('#nine-parts input[type=range]').value")
    return int(number) + 1, browser.find_element("css selector", "#nine-parts [role=status]").text


def wait(browser, condition, seconds=60):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, seconds).until(lambda _: condition())


def test_the_player_of_notebook_02_plays_and_shows_the_right_value(browser, tmp_path):
    scene = pytest.importorskip("scene")
    browser.get(page_of("02_pilot_update", tmp_path))
    step = scene.one_step()
    wait(browser, lambda: shown(browser) == (1, scene.line(step, 1)))
    first = browser.find_element("css selector", "#nine-parts img").get_attribute("src")
    browser.find_element("css selector", "#nine-parts button[title=Play]").click()
    wait(browser, lambda: shown(browser)[0] >= 3)  # it plays by itself
    browser.find_element("css selector", "#nine-parts button[title=Pause]").click()
    slider = browser.find_element("css selector", "#nine-parts input[type=range]")
    browser.execute_script("arguments[0].value = 6; arguments[0].dispatchEvent(new Event('input'))", slider)
    wait(browser, lambda: shown(browser) == (7, scene.line(step, 7)))
    assert scene.written(step.parts[6]) in shown(browser)[1]
    picture = browser.find_element("css selector", "#nine-parts img")
    assert picture.get_attribute("src") != first and picture.size["width"] > 900
    lit = browser.find_elements("css selector", "#nine-parts tr[style*=bold]")
    assert len(lit) == 1 and lit[0].text.startswith("7 ")


@pytest.mark.parametrize("stem", [path.stem for path in sorted((ROOT / "notebooks").glob("0*.ipynb"))])
def test_every_figure_of_a_page_can_be_seen(browser, tmp_path, stem):
    browser.get(page_of(stem, tmp_path))
    widths = browser.execute_script("return [...document.images].map(image => image.naturalWidth)")
    assert len(widths) >= 6 and min(widths) >= 600
    captions = [one.text for one in browser.find_elements("css selector", "strong") if one.text.startswith("Figure")]
    assert captions == [f"Figure {int(stem[1])}.{k}." for k in range(1, len(captions) + 1)] and len(captions) >= 6
    assert not browser.find_elements("css selector", ".jp-RenderedText[data-mime-type*=stderr]")
    if stem.startswith("02"):
        assert browser.find_elements("css selector", "#nine-parts table")
    assert len(browser.find_elements("css selector", ".jp-RenderedMarkdown table")) >= 3  # tables are rendered

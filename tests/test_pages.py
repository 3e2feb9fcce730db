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


def wait(browser, condition, seconds=60):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, seconds).until(lambda _: condition())


def test_notebook_02_holds_the_page_of_its_scene(browser, tmp_path):
    scene = pytest.importorskip("scene")
    browser.get(page_of("02_pilot_update", tmp_path))
    frame, still = (browser.find_element("css selector", selector) for selector in (".scene iframe", ".scene .still"))
    browser.switch_to.frame(frame)
    wait(browser, lambda: browser.execute_script("return 'scene' in window && size > 1"))
    browser.execute_script("scene.set({alpha: 0.5})")
    found, wanted = browser.execute_script("return scene.values()"), scene.one_step(alpha=0.5).parts
    assert found["meta_gradient"] == pytest.approx(wanted[7].value.item(), abs=1e-12)
    height = browser.execute_script("return document.documentElement.scrollHeight")
    browser.switch_to.default_content()
    assert frame.size["height"] >= height and not still.is_displayed()
    browser.execute_script("arguments[0].remove()", frame)  # as places do that allow no frames
    assert still.is_displayed() and still.find_element("css selector", "a").get_attribute("href").endswith("scene.html")


@pytest.mark.parametrize("stem", [path.stem for path in sorted((ROOT / "notebooks").glob("0*.ipynb"))])
def test_every_figure_of_a_page_can_be_seen(browser, tmp_path, stem):
    browser.get(page_of(stem, tmp_path))
    widths = browser.execute_script("return [...document.images].map(image => image.naturalWidth)")
    assert len(widths) >= 6 and min(widths) >= 600
    captions = [one.text for one in browser.find_elements("css selector", "strong") if one.text.startswith("Figure")]
    assert captions == [f"Figure {int(stem[1])}.{k}." for k in range(1, len(captions) + 1)] and len(captions) >= 6
    assert not browser.find_elements("css selector", ".jp-RenderedText[data-mime-type*=stderr]")
    assert len(browser.find_elements("css selector", ".jp-RenderedMarkdown table")) >= 3  # tables are rendered

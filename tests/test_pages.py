"""Notebooks as pages of a browser: rendered to static HTML, opened, played. Skipped where there is no Chromium."""

import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "notebooks"))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page_of(tmp_path_factory):
    """A function: the stem of a notebook -> its address as a static page, rendered once."""
    nbconvert, folder = pytest.importorskip("nbconvert"), tmp_path_factory.mktemp("pages")

    def address(stem):
        page = folder / f"{stem}.html"
        if not page.exists():
            content, _ = nbconvert.HTMLExporter().from_filename(ROOT / "notebooks" / f"{stem}.ipynb")
            page.write_text(content, encoding="utf-8")
        return page.as_uri()

    return address


def test_notebook_02_holds_the_page_of_its_scene(browser, page_of):
    from selenium.webdriver.support.ui import WebDriverWait

    scene = pytest.importorskip("scene")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.get(page_of("02_pilot_update"))
    frame, still = (browser.find_element("css selector", selector) for selector in (".scene iframe", ".scene .still"))
    browser.switch_to.frame(frame)
    is_drawn = "return 'scene' in window && size > 1"
    WebDriverWait(browser, 60).until(lambda _: browser.execute_script(is_drawn))
    browser.execute_script("scene.set({alpha: 0.5})")
    found, wanted = browser.execute_script("return scene.values()"), scene.one_step(alpha=0.5).parts
    assert found["meta_gradient"] == pytest.approx(wanted[7].value.item(), abs=1e-12)
    height = browser.execute_script("return document.documentElement.scrollHeight")
    browser.switch_to.default_content()
    assert frame.size["height"] >= height and not still.is_displayed()
    browser.execute_script("arguments[0].remove()", frame)  # as places do that allow no frames
    assert still.is_displayed() and still.find_element("css selector", "a").get_attribute("href").endswith("scene.html")


@pytest.mark.parametrize("stem", [path.stem for path in sorted((ROOT / "notebooks").glob("0*.ipynb"))])
def test_every_figure_of_a_page_can_be_seen(browser, page_of, stem):
    browser.get(page_of(stem))
    widths = browser.execute_script("return [...document.images].map(image => image.naturalWidth)")
    assert len(widths) >= 6 and min(widths) >= 600
    captions = [one.text for one in browser.find_elements("css selector", "strong") if one.text.startswith("Figure")]
    assert captions == [f"Figure {int(stem[1])}.{k}." for k in range(1, len(captions) + 1)] and len(captions) >= 6
    assert not browser.find_elements("css selector", ".jp-RenderedText[data-mime-type*=stderr]")
    assert len(browser.find_elements("css selector", ".jp-RenderedMarkdown table")) >= 3  # tables are rendered

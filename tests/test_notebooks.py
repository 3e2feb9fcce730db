"""Each notebook runs from its first cell to its last, and its assertions are the test. Its exercises are tried in the
same kernel: a blank gives its hint, the answer of solutions.md is found right, and neither stops the cells below."""

import json
import re

import pytest
from checks import HINTS
from conftest import ROOT

import metadistil
import models

NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))
SOLUTIONS = (ROOT / "notebooks" / "solutions.md").read_text(encoding="utf-8")
ANSWERS = dict(re.findall(r"^## (\d\.\d)\n.*?```python\n(.*?)```", SOLUTIONS, re.MULTILINE | re.DOTALL))  # by exercise
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def exercise_in(source):
    """The exercise that a cell checks, such as "2.1"; None for other cells."""
    found = re.search(r'^exercise\("(\d\.\d)"', source, re.MULTILINE)
    return found and found[1]


def printed(cell):
    return "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


def code_of(path):
    """The code cells as they are committed, each with its source as one string."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.slow
@each_notebook
def test_a_notebook_runs_and_finds_its_solutions_right(path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("matplotlib")
    notebook = nbformat.read(path, as_version=4)
    cells, tries = [], []
    for cell in notebook.cells:
        cells.append(cell)
        name = exercise_in(cell.source)
        if name and cell.cell_type == "code":
            other_answers = (ANSWERS[name], 'answer = "a word"\n')
            sources = [cell.source.replace("answer = ...\n", answer, 1) for answer in other_answers]
            solved, wrong = map(nbformat.v4.new_code_cell, sources)
            cells += [solved, wrong]
            tries.append((cell, solved, wrong))
    notebook.cells = cells
    folder = path.parent if NOTEBOOKS.index(path) % 2 else ROOT  # a notebook opens from either place
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    for blank, solved, wrong in tries:
        assert "blank" in printed(blank) and "Hint:" in printed(blank)
        assert ": right." in printed(solved), solved.source + printed(solved)
        assert "right." not in printed(wrong)


@each_notebook
def test_a_notebook_is_committed_with_its_figures_and_hints_and_without_solutions(path):
    cells = code_of(path)
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert all(cell["execution_count"] for cell in cells)
    assert not any(output["output_type"] == "error" for output in outputs)
    own = {name for module in (metadistil, models) for name, value in vars(module).items()
           if getattr(value, "__module__", None) == module.__name__}  # fmt: skip
    defined = re.findall(r"^(?:def|class) (\w+)", "\n".join(cell["source"] for cell in cells), re.MULTILINE)
    assert not own & {*defined}  # imported, never written again
    exercises = {exercise_in(cell["source"]): cell for cell in cells if exercise_in(cell["source"])}
    for known in (HINTS, ANSWERS):
        assert list(exercises) == sorted(name for name in known if name[0] == path.name[1])
    for name, cell in exercises.items():
        assert cell["source"].startswith("answer = ...\n")
        assert HINTS[name] in printed(cell) and "blank" in printed(cell)
    written = re.sub(r"#.*|\s", "", "\n".join(cell["source"] for cell in cells))
    for answer in ANSWERS.values():
        answer = re.sub(r"#.*|\s", "", answer).rpartition("answer=")[2]
        assert len(answer) < 8 or answer not in written  # shorter ones occur by chance


# ---- As pages of a browser


def page_of(path, folder):
    """The notebook as it is committed, as a static page -> its address."""
    page = folder / f"{path.stem}.html"
    content, _ = pytest.importorskip("nbconvert").HTMLExporter().from_filename(path)
    page.write_text(content, encoding="utf-8")
    return page.as_uri()


@pytest.mark.slow
def test_notebook_02_holds_the_page_of_its_scene(browser, tmp_path):
    from selenium.webdriver.support.ui import WebDriverWait

    scene = pytest.importorskip("scene")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.get(page_of(NOTEBOOKS[1], tmp_path))
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


@pytest.mark.slow
@each_notebook
def test_every_figure_of_a_page_can_be_seen(browser, tmp_path, path):
    browser.get(page_of(path, tmp_path))
    widths = browser.execute_script("return [...document.images].map(image => image.naturalWidth)")
    assert len(widths) >= 6 and min(widths) >= 600
    captions = [one.text for one in browser.find_elements("css selector", "strong") if one.text.startswith("Figure")]
    assert captions == [f"Figure {int(path.stem[1])}.{k}." for k in range(1, len(captions) + 1)] and len(captions) >= 6
    assert not browser.find_elements("css selector", ".jp-RenderedText[data-mime-type*=stderr]")
    assert len(browser.find_elements("css selector", ".jp-RenderedMarkdown table")) >= 3  # tables are rendered

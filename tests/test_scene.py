"""Notebook 02's scene: what it shows of a step is what metadistil.py computes, in Python and on its page."""

import json
import math
import re
import sys
from functools import partial

import pytest
import torch
from conftest import ROOT
from test_draw import FAR, apart

import metadistil

sys.path.insert(0, str(ROOT / "notebooks"))
pytest.importorskip("IPython")
import scene  # noqa: E402

KEYS = [part.key for part in scene.PARTS]


def expected(theta_S, phi, pilot_lr, temperature, alpha, teacher_lr, **_):
    """{key: value} of the nine parts, from a trace of our own. Only the velocity is not in a trace: here by forward
    mode through the gradient step."""
    theta_S, phi = (torch.as_tensor(number, dtype=torch.float64) for number in (theta_S, phi))
    loss = partial(metadistil.kd_loss, alpha=alpha, temperature=temperature)
    trace = {}
    metadistil.meta_gradient(
        scene.Student(theta_S), scene.Teacher(phi), *scene.WORLD[:2], pilot_lr=pilot_lr, loss=loss, trace=trace
    )

    def tip(phi):
        return theta_S - pilot_lr * torch.func.grad(scene.inner_loss)(theta_S, phi, temperature, alpha)

    values = {key: trace[key] for key in KEYS if key in trace}
    values = {key: next(iter(value.values())) if isinstance(value, dict) else value for key, value in values.items()}
    values["velocity"] = torch.func.jacfwd(tip)(phi)
    return values | {"new_angle": (phi - teacher_lr * values["meta_gradient"]).rad2deg()}


def largest_difference(found, wanted):
    """Over all nine values; relative where they are large."""
    assert sorted(found) == sorted(wanted) == sorted(KEYS)
    pairs = [(torch.as_tensor(found[key], dtype=torch.float64), wanted[key].detach()) for key in KEYS]
    return max(((one - other).abs() / other.abs().clamp(min=1)).max().item() for one, other in pairs)


SETTINGS = [(160.0, 2.0, 2.0, 0.8), (35.0, 0.5, 1.0, 0.3), (250.0, 5.0, 4.5, 1.0), (90.0, 3.0, 2.0, 0.0)]


@pytest.mark.parametrize("settings", SETTINGS)
def test_one_step_is_what_metadistil_computes(settings):
    theta_S, teacher_lr = torch.tensor([-1.5, 0.25], dtype=torch.float64), 0.7
    found = {part.key: part.value for part in scene.one_step(*settings, theta_S, teacher_lr).parts}
    degrees, pilot_lr, temperature, alpha = settings
    wanted = expected(theta_S, math.radians(degrees), pilot_lr, temperature, alpha, teacher_lr)
    assert largest_difference(found, wanted) < 1e-9


def test_the_page_holds_the_words_and_the_world_of_scene_py():
    text = scene.PAGE.read_text(encoding="utf-8")
    assert scene.written_into(text) == text, "run python notebooks/scene.py"
    assert not re.search(r"""(src|href)=|@import|url\(|fetch\(|\w://""", text)  # it stands alone
    frame = scene.page().data
    assert "data:image/png" in frame and 'href="scene.html"' in frame
    notebook = json.loads((ROOT / "notebooks" / "02_pilot_update.ipynb").read_text(encoding="utf-8"))
    outputs = [output.get("data", {}) for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert frame in ["".join(output.get("text/html", "")) for output in outputs]  # the notebook shows it as it is now


def test_the_colours_of_the_page_can_be_told_apart():
    themes = re.findall(r":root {.*?}", scene.PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(themes) == 2  # light and dark
    for theme in themes:
        colours = dict(re.findall(r"--(\w+): (#\w{6})", theme))
        seen = {name: colours[name] for name in ("page", "ink", "lit", "teacher", "quiz")}
        assert min(apart(seen, without_green=True).values()) > 0.75 * FAR


# ---- The film of the README


def test_in_the_film_the_teacher_turns_and_the_quiz_loss_falls():
    pytest.importorskip("matplotlib").use("agg")
    film, image = pytest.importorskip("film"), pytest.importorskip("PIL.Image")
    losses, angles = zip(*((step.parts[4].value, step.parts[8].value) for step in film.steps()))
    assert losses[0] == scene.one_step().parts[4].value
    assert all(later < before for before, later in zip(losses, losses[1:]))
    assert all(later < before for before, later in zip(angles, angles[1:])) and angles[-1] < 90 < angles[0]
    whole = film.FOLDER / "film.gif"
    with image.open(whole) as frames:
        assert frames.n_frames == film.STEPS and whole.stat().st_size < 1_000_000
    assert all((film.FOLDER / name).stat().st_size < 100_000 for name in ("step.png", "scene.png"))


# ---- In a browser


@pytest.fixture
def page(browser):
    """The page as it is when opened, on a screen as wide as the window."""
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.get_log("browser")  # of pages before
    browser.get(scene.PAGE.as_uri())
    yield browser
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]


def values_and_state(page):
    """What the page says of a step, and the settings that it says it of."""
    return page.execute_script("return [scene.values(), state]")


def differences(page):
    values, state = values_and_state(page)
    return largest_difference(values, expected(**state))


def drag(page, selector, number):
    """Take a handle somewhere else, at random."""
    from selenium.webdriver import ActionChains

    page.execute_script("scrollTo(0, 0)")
    handle = page.find_elements("css selector", selector)[number]
    right, down = (int(step) for step in torch.randint(-60, 60, (2,)))
    ActionChains(page).click_and_hold(handle).move_by_offset(right, down).move_by_offset(5, 3).release().perform()


def random_settings():
    a, b, angle, pilot_lr, temperature, alpha, teacher_lr = torch.rand(7, dtype=torch.float64).tolist()
    return {
        "theta_S": [6 * a - 3, 6 * b - 3], "phi": 12 * angle - 3, "pilot_lr": 0.1 + 39 * pilot_lr**3,
        "temperature": 0.3 + 8 * temperature, "alpha": alpha, "teacher_lr": 10 * teacher_lr,
    }  # fmt: skip


@pytest.mark.slow
def test_every_number_of_the_page_is_metadistils(page):
    from selenium.webdriver import Keys

    seen = set()
    for turn in range(4):
        page.execute_script(f"scene.set({json.dumps(random_settings())})")
        handles = page.find_elements("css selector", ".handle")
        slider = page.find_elements("css selector", "[type=range]")[turn]
        for act in (
            lambda: None,
            lambda: drag(page, ".handle.teacher", turn % 3),
            lambda: drag(page, ".handle.student", turn % 2),
            lambda: handles[turn].send_keys(Keys.ARROW_UP, Keys.SHIFT + Keys.ARROW_LEFT),
            lambda: slider.send_keys(Keys.ARROW_LEFT * 7),
        ):
            act()
            assert differences(page) < 1e-9
            seen.add(json.dumps(values_and_state(page)))
    assert len(seen) == 20  # each act has changed something


def shown(page):
    """The value of each part, as the page writes it."""
    return [cell.text for cell in page.find_elements("css selector", "tbody td:last-child")]


@pytest.mark.slow
def test_what_rows_and_sentence_say_are_the_values(page):
    values, state = values_and_state(page)
    numbers = [re.findall(r"-?\d+\.\d+", text.replace("−", "-")) for text in shown(page)]
    for key, found in zip(KEYS, numbers):
        wanted = values[key][0] if key == "teacher_logits" else values[key]
        wanted = wanted if isinstance(wanted, list) else [wanted]
        assert [float(number) for number in found] == pytest.approx(wanted, abs=5e-5)
    before = scene.quiz_loss(torch.tensor(state["theta_S"], dtype=torch.float64)).item()
    here, there = math.degrees(state["phi"]), values["new_angle"]
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", page.find_element("id", "says").text)]
    assert numbers[:2] == pytest.approx([before, values["quiz_loss_after"]], abs=5e-4)
    assert numbers[2:] == pytest.approx([here, abs(there - here), there], abs=0.5)


@pytest.mark.slow
def test_a_whole_step_is_metadistil_step_and_back_undoes_it(page):
    from selenium.webdriver.support.ui import WebDriverWait

    student, teacher = scene.Student(scene.THETA_S), scene.Teacher(scene.WRONG)
    optimizers = (
        torch.optim.SGD(student.parameters(), scene.STUDENT_LR),
        torch.optim.SGD(teacher.parameters(), scene.TEACHER_LR),
    )
    loss = partial(metadistil.kd_loss, alpha=scene.ALPHA, temperature=scene.TEMPERATURE)
    metadistil.metadistil_step(student, teacher, *scene.WORLD[:2], *optimizers, pilot_lr=scene.PILOT_LR, loss=loss)
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    )
    buttons = {button.text: button for button in page.find_elements("css selector", ".buttons button")}
    buttons["one whole step"].click()
    WebDriverWait(page, 20).until(lambda _: len(values_and_state(page)[1]["trail"]) > 1)
    _, state = values_and_state(page)
    assert state["phi"] == pytest.approx(teacher.phi.item(), abs=1e-12)
    assert state["theta_S"] == pytest.approx(student.theta.tolist(), abs=1e-12)
    buttons["back"].click()
    _, state = values_and_state(page)
    assert (state["theta_S"], state["phi"]) == (scene.THETA_S.tolist(), scene.WRONG)


@pytest.mark.slow
def test_without_create_graph_the_copy_moves_and_the_teacher_hears_nothing(page):
    before, _ = values_and_state(page)
    page.find_element("css selector", "[role=switch]").click()
    drag(page, ".handle.teacher", 0)
    after, state = values_and_state(page)
    assert after["theta_S_prime"] != before["theta_S_prime"]
    assert after["velocity"] is None and after["meta_gradient"] is None
    assert after["new_angle"] == pytest.approx(math.degrees(state["phi"]))
    assert "create_graph" in page.find_element("id", "says").text and shown(page)[7].startswith("unknown")

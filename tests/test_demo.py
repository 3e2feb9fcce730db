"""The page: what it shows is what the networks say, in a real browser, too; text stays text; what it refuses."""

import base64
import functools
import hashlib
import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "notebooks"))

import demo
import pictures
from conftest import ROOT, chromium
from reviews import ASPECTS, BLAME, PRAISE

import data
import models
import train

SMALL = {
    "teacher": "micro", "student": "micro", "quiz_size": 20, "batch_size": 16, "quiz_batch_size": 8,
    "teacher_epochs": 2, "warmup_epochs": 1, "epochs": 2,
}  # fmt: skip
ATTACK = """<img src=x onerror="document.title = 'it ran'"><script>document.title = 'it ran'</script>"""


def trained(tmp_path_factory, **settings):
    out = tmp_path_factory.mktemp("runs") / "<i>small"
    return train.run(train.Config(**SMALL | settings, out=str(out))).out


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """A run on the built-in reviews."""
    return trained(tmp_path_factory, data="builtin", train_size=60, teacher="tiny")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A run on pairs with scores from 0 to 5."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "STS-B").mkdir()
    for split, rows in (("train", range(90)), ("dev", range(90, 120))):
        lines = [f"the first is {n}\tthe second is {n % 6}\t{n % 6}" for n in rows]
        (folder / "STS-B" / f"{split}.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *lines]))
    return trained(tmp_path_factory, task="stsb", data=str(folder))


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    """A run on drawn pictures."""
    folder = tmp_path_factory.mktemp("flowers")
    pictures.write(folder / "cifar-100-binary")
    for name, records in (("train", 300), ("test", 60)):  # the first ones alone, to be quick
        file = folder / "cifar-100-binary" / f"{name}.bin"
        file.write_bytes(file.read_bytes()[: 3074 * records])
    networks = {"teacher": "resnet8", "student": "resnet8", "methods": "metadistil"}
    return trained(tmp_path_factory, task="cifar100", data=str(folder), train_size=60, **networks)


class Served:
    """A page that is served, and how to ask it."""

    def __init__(self, run):
        self.server = demo.Server(demo.Demo(str(run)), 0)
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.address = f"http://{self.host}/"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def request(self, method, path, body=None, **headers):
        """(status, headers, content)."""
        connection = http.client.HTTPConnection(self.host, timeout=20)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, response.headers, content

    def ask(self, *texts, picture=None):
        """The answer to texts, or to a picture's number."""
        status, _, content = self.request("POST", "/predict", json.dumps(texts or picture))
        assert status == 200
        return json.loads(content)


@pytest.fixture
def serve():
    """A function that serves a run until the test ends."""
    found = []

    def start(run):
        found.append(Served(run))
        return found[-1]

    yield start
    for served in found:
        served.server.shutdown()
        served.server.server_close()


def files_of(run):
    """{title: the trained network in its file}."""
    return {one.title: one for one in map(models.load, Path(run, "seed0").glob("*.pt"))}


def size_of(trained):
    return sum(weights.numel() for weights in trained.network.parameters())


# ---- What the models say


def test_an_answer_holds_what_each_model_predicts(reviews, serve):
    text, networks = "the plot is fun and the cast is never dull", files_of(reviews)
    rows = {row["title"]: row for row in serve(reviews).ask(text)["models"]}
    assert list(rows)[:2] == ["teacher before", "teacher after metadistil"] and rows.keys() == networks.keys()
    for title, row in rows.items():
        label, probabilities = networks[title].predict([text])[0]
        assert row["prediction"] == label
        assert {one["name"]: one["probability"] for one in row["classes"]} == pytest.approx(probabilities, abs=1e-6)
        assert row["parameters"] == size_of(networks[title]) and row["milliseconds"] > 0
        assert row["times_smaller"] == size_of(networks["teacher before"]) / size_of(networks[title])
    assert rows["student kd"]["times_smaller"] > 2


def test_a_teacher_shows_how_far_its_lessons_moved_it(reviews, serve):
    text, networks = "the music is splendid", files_of(reviews)
    before, after = (networks[f"teacher {when}"].predict([text])[0] for when in ("before", "after metadistil"))
    rows = {row["title"]: row for row in serve(reviews).ask(text)["models"]}
    assert [title for title, row in rows.items() if row["is_after"]] == ["teacher after metadistil"]
    for title, row in rows.items():
        for one in row["classes"]:
            moved = after[1][one["name"]] - before[1][one["name"]] if row["is_after"] else None
            assert one["change"] == pytest.approx(moved, abs=1e-6) and one["change"] != 0
    turned = demo.compared("yes", {"no": 0.25, "yes": 0.75}, ("no", {"no": 0.75, "yes": 0.25}), None)
    assert turned["notes"] == ["before: no"] and [one["change"] for one in turned["classes"]] == [-0.5, 0.5]


def test_each_teacher_stands_beside_itself():
    titles = ["student kd", "teacher 2 after metadistil", "teacher after metadistil-pkd", "student finetune",
              "teacher before", "teacher 2 before", "teacher after metadistil"]  # fmt: skip
    assert sorted(titles, key=demo.place_in_table) == [
        "teacher before", "teacher after metadistil", "teacher after metadistil-pkd",
        "teacher 2 before", "teacher 2 after metadistil", "student finetune", "student kd",
    ]  # fmt: skip


def test_the_tokens_are_those_that_the_networks_read(reviews, serve):
    text = "The plot is fun, 漢 is not"
    [line] = serve(reviews).ask(text)["tokens"]  # all models have one tokeniser
    network = files_of(reviews)["student kd"]
    assert line["models"].count(",") == 4 and not line["is_cut"]
    ids = network.inputs([text])["input_ids"][0].tolist()
    expected = [network.tokenizer.id_to_token(one) for one in ids]
    assert "[UNK]" in expected and expected[0] == "[CLS]"
    place = expected.index("[UNK]")
    expected[place] = "漢"
    assert line["tokens"] == [[token, n == place] for n, token in enumerate(expected)]


@pytest.mark.slow
def test_models_of_another_tokeniser_have_a_line_of_their_own(reviews, tmp_path_factory, serve):
    teacher = str(reviews / "seed0" / "teacher-before.pt")
    run = trained(tmp_path_factory, data="builtin", train_size=4, quiz_size=4, teacher=teacher, methods="metadistil")
    of_teachers, of_student = serve(run).ask("the splendid dialogue")["tokens"]
    assert of_teachers["models"] == "teacher before, teacher after metadistil"
    assert of_student["models"] == "student metadistil" and of_student["tokens"] != of_teachers["tokens"]


def test_a_long_text_is_cut_as_in_predict(reviews, serve):
    text = "the plot is fun " * 100
    answer = serve(reviews).ask(text)
    assert answer["tokens"][0]["is_cut"] and len(answer["tokens"][0]["tokens"]) == models.MAX_TOKENS
    label, probabilities = files_of(reviews)["student kd"].predict([text])[0]
    row = next(row for row in answer["models"] if row["title"] == "student kd")
    assert [one["probability"] for one in row["classes"]] == pytest.approx([*probabilities.values()], abs=1e-6)


def test_a_pair_with_a_score(pairs, serve):
    pair, served = ("the first is 3", "the second is 4"), serve(pairs)
    answer, networks = served.ask(*pair), files_of(pairs)
    for row in answer["models"]:
        score, _ = networks[row["title"]].predict([pair])[0]
        assert row["prediction"] == f"{score:.2f}" and row["classes"] == []
    before, after = (networks[f"teacher {when}"].predict([pair])[0][0] for when in ("before", "after metadistil"))
    assert before != after and answer["models"][1]["notes"] == [f"before: {before:.2f}"]
    scores = sorted((row["prediction"] for row in answer["models"]), key=float)
    assert answer["summary"] == f"scores from {scores[0]} to {scores[-1]}"
    assert [token for token, _ in answer["tokens"][0]["tokens"]].count("[SEP]") == 2
    assert "Probability" not in served.request("GET", "/")[2].decode()


def test_pictures(flowers, serve):
    served = serve(flowers)
    config, _ = train.read_run(flowers)
    test = data.load_task("cifar100", config.data).test
    names = Path(config.data, "cifar-100-binary", "fine_label_names.txt").read_text().replace("_", " ").splitlines()
    picture, label = served.server.demo.pictures.examples[3], served.server.demo.pictures.labels[3]
    [row] = np.flatnonzero((test.examples == picture).all(axis=(1, 2, 3)))
    assert test.labels[row] == label
    mean, deviation = torch.tensor(models.PIXELS)[:, :, None, None]
    image = (torch.from_numpy(picture) / 255 - mean) / deviation
    for model in served.ask(picture=3)["models"]:
        network = models.load(flowers / "seed0" / f"{model['title'].replace(' ', '-')}.pt").network
        with torch.no_grad():
            p = network(images=image[None])[0].softmax(dim=-1).numpy()
        likeliest = [names[n] for n in np.argsort(-p)[:5]]
        assert model["prediction"] == likeliest[0]
        assert model["notes"][0] == ("right" if likeliest[0] == names[label] else "wrong")
        shown = likeliest if names[label] in likeliest else [*likeliest, names[label]]
        assert [one["name"] for one in model["classes"]] == shown
        found = [one["probability"] for one in model["classes"]]
        assert found == pytest.approx([p[names.index(name)] for name in shown], abs=1e-5)


def test_the_names_of_classes_are_escaped(flowers):
    shown = demo.Demo(str(flowers))
    shown.labels = ["<b>"] * 100
    assert "<b>" not in demo.gallery(shown) and demo.gallery(shown).count("&lt;b&gt;") == len(shown.pictures)


def test_a_bitmap_is_a_bmp_file():
    picture = np.zeros((3, 32, 32), np.uint8)
    picture[:, 0, 1] = 10, 20, 30  # red, green, blue of the second pixel of the first row
    file = demo.bitmap(picture)
    assert file[:2] == b"BM" and int.from_bytes(file[2:6], "little") == len(file) == 54 + 3 * 32 * 32
    assert int.from_bytes(file[10:14], "little") == 54  # where the pixels begin
    assert file[54 + 31 * 96 + 3 : 54 + 31 * 96 + 6] == bytes([30, 20, 10]) and sum(file[54:]) == 60


# ---- The server


def test_what_is_refused(reviews, serve):
    served = serve(reviews)
    good = json.dumps(["the plot is fun"])
    port = served.server.server_port
    hosts = {f"127.0.0.1:{port}": 200, f"localhost:{port}": 200, f"evil.example:{port}": 403, "evil.example": 403,
             "127.0.0.1": 403, "127.0.0.1:1": 403, f"127.0.0.1:{port}.evil.example": 403, "": 403}  # fmt: skip
    for host, status in hosts.items():
        assert served.request("GET", "/", Host=host)[0] == status, host
        assert served.request("POST", "/predict", good, Host=host)[0] == status, host
    for method, path in (("GET", "/predict"), ("GET", "/../train.py"), ("GET", "/x"), ("POST", "/"), ("GET", "/?")):
        assert served.request(method, path, good if method == "POST" else None)[0] == 404, path
    for size, status in ((demo.LONGEST_BODY, 200), (demo.LONGEST_BODY + 1, 413)):
        found = served.request("POST", "/predict", good + " " * (size - len(good)))
        assert found[0] == status and (status == 200 or "65,536 bytes" in json.loads(found[2])["error"])


@pytest.mark.parametrize("body", [
    b"", b"[", b"\xff", b"[" * 60_000, b"0", b"null", b"NaN", b"{}", b'"fun"', b"[]", b'["a", "b"]', b"[3]", b"[null]",
    b'[["fun"]]', b'[" "]',
])  # fmt: skip
def test_what_is_no_question(reviews, serve, body):
    status, _, content = serve(reviews).request("POST", "/predict", body)
    assert status == 400 and json.loads(content)["error"].startswith("expected ")


@pytest.mark.parametrize("picture", [-1, 12, 0.0, True, "0", None])
def test_what_is_no_picture(flowers, serve, picture):
    status, _, content = serve(flowers).request("POST", "/predict", json.dumps(picture))
    assert status == 400 and json.loads(content) == {"error": "expected a picture's number from 0 to 11"}


@pytest.mark.parametrize("length", ["X: 1", "Content-Length: -1", "Content-Length: x", "Content-Length: " + "9" * 5000])
def test_a_body_of_unknown_length_is_refused_at_once(reviews, serve, length):
    served = serve(reviews)
    with socket.create_connection(("127.0.0.1", served.server.server_port), timeout=5) as connection:
        connection.sendall(f"POST /predict HTTP/1.1\r\nHost: {served.host}\r\n{length}\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.0 400 ")


def test_half_a_character_is_read_as_a_question_mark(reviews, serve):
    served = serve(reviews)
    status, _, content = served.request("POST", "/predict", b'["fun \\ud83d"]')
    assert status == 200
    rows, expected = json.loads(content)["models"], served.ask("fun ?")["models"]
    assert [row["classes"] for row in rows] == [row["classes"] for row in expected]


def test_the_page_escapes_what_comes_from_the_run_and_allows_no_other_script(reviews, serve):
    status, headers, content = serve(reviews).request("GET", "/")
    page, policy = content.decode(), headers["Content-Security-Policy"]
    assert status == 200 and "<i>" not in page and "&lt;i&gt;small" in page
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy and "http" not in policy
    for tag in ("script", "style"):
        text = page.split(f"<{tag}>")[1].split(f"</{tag}>")[0]
        assert f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    assert not [part for part in ("http:", "https:", "url(", "@import", "innerHTML") if part in page]


def test_requests_at_the_same_time_do_not_mix(reviews, serve, monkeypatch):
    served = serve(reviews)
    texts = [f"the {aspect} is {word}" for word, aspect in zip([*PRAISE, *BLAME], ASPECTS * 4)]
    alone = [[row["classes"] for row in served.ask(text)["models"]] for text in texts]
    assert len({str(classes) for classes in alone}) == len(texts)  # each text has an answer of its own
    model, at_work, most_at_work = served.server.demo.models[0], [], []

    def predict(examples):
        at_work.append(1)
        most_at_work.append(len(at_work))
        time.sleep(0.002)
        found = type(model).predict(model, examples)
        at_work.pop()
        return found

    monkeypatch.setattr(model, "predict", predict)
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(served.ask, texts))
    for answer, expected in zip(answers, alone):  # computed together they round otherwise
        for row, classes in zip(answer["models"], expected):
            assert [one["name"] for one in row["classes"]] == [one["name"] for one in classes]
            assert [one["probability"] for one in row["classes"]] == pytest.approx([one["probability"] for one in classes], abs=1e-6)
    assert set(most_at_work) == {1} and len(most_at_work) < len(texts)  # one computes at a time, for several who wait


def test_an_error_reaches_all_who_waited_and_the_next_question_is_answered(reviews, serve, monkeypatch, capfd):
    served = serve(reviews)
    with monkeypatch.context() as patch:
        patch.setattr(served.server.demo, "answers", lambda asked: 1 / 0)
        with ThreadPoolExecutor(3) as pool:
            found = [pool.submit(served.ask, "the plot is fun") for _ in range(3)]
        assert all(one.exception() for one in found)
    assert served.ask("the plot is fun")["models"]
    capfd.readouterr()


def test_a_browser_that_goes_away_leaves_no_traceback(reviews, serve, capfd):
    served = serve(reviews)
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", served.server.server_port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset at the end
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {served.host}\r\n\r\n".encode())
    served.ask("the plot is fun")
    assert "Traceback" not in capfd.readouterr().err


# ---- The command line


def test_what_a_user_can_mend_ends_in_one_line(reviews, flowers, tmp_path, capfd):
    for run in (reviews, flowers):
        shutil.copytree(run, tmp_path / run.parent.name, ignore=shutil.ignore_patterns("seed*"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for arguments, expected in (
            ([tmp_path / "nothing"], "nothing: expected a run"),
            ([tmp_path], f"{tmp_path}: expected a run"),
            ([tmp_path / reviews.parent.name], "expected a run with a trained network, found none"),
            ([tmp_path / flowers.parent.name], "expected a run with a trained network, found none"),
            ([reviews, "--port", taken.getsockname()[1]], "expected a free port"),
            ([reviews, "--port", 65536], "expected a free port"),
            ([reviews, "--port", "x"], "invalid int value"),
            ([], "required: RUN"),
        ):
            with pytest.raises(SystemExit) as end:
                demo.main(["--no-browser", *map(str, arguments)])
            printed, said = capfd.readouterr()
            assert end.value.code == 2 and printed == "" and said.startswith("demo.py: ") and said.count("\n") == 1
            assert expected in said


@pytest.mark.slow
def test_ctrl_c_ends_it_quietly(reviews):
    command = [sys.executable, ROOT / "notebooks" / "demo.py", reviews, "--port", "0", "--no-browser"]
    # Whoever is started in the background is started deaf to Ctrl-C: it is told to hear.
    hear = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear)
    address = process.stdout.readline().split()[0]
    assert address.startswith("http://127.0.0.1:")
    connection = http.client.HTTPConnection(address.split("/")[2])
    connection.request("POST", "/predict", json.dumps(["the plot is fun"]))
    assert connection.getresponse().status == 200
    process.send_signal(signal.SIGINT)
    assert (process.wait(timeout=20), process.stderr.read()) == (130, "")


# ---- In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Debian's Chromium without a window."""
    found = chromium(tmp_path_factory.mktemp("profile"))
    yield found
    found.quit()


def visit(browser, served, width=1100):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(served.address)
    browser.get_log("browser")  # what was there before is forgotten


def all_of(browser, selector):
    return browser.find_elements("css selector", selector)


def one_of(browser, selector):
    [found] = all_of(browser, selector)
    return found


def wait_for(condition):
    for _ in range(500):
        if condition():
            return
        time.sleep(0.02)
    pytest.fail("waited for ten seconds")


def wait_for_answer(browser, caption):
    wait_for(lambda: one_of(browser, "caption").text == caption)


def table_of(browser):
    """The rows of the table, as lists of the lines of each cell."""
    return [
        [cell.text.splitlines() for cell in row.find_elements("css selector", "th, td")]
        for row in all_of(browser, "tbody tr")
    ]


def shares(browser, selector, side):
    """The widths, or right ends, of parts of bars, as shares of the bar."""
    script = """return [...document.querySelectorAll(arguments[0])].map(part => {
        const [own, bar] = [part, part.parentElement].map(one => one.getBoundingClientRect());
        return (arguments[1] === "width" ? own.width : own.right - bar.left) / bar.width; })"""
    return browser.execute_script(script, selector, side)


@pytest.mark.slow
def test_what_is_typed_is_answered_in_the_table(reviews, serve, browser):
    visit(browser, serve(reviews))
    text = "the plot is fun"
    assert browser.switch_to.active_element.tag_name == "input"  # one can type at once
    for end in ("\n", ""):  # by Enter, or by the button
        text += " and the cast is dull"
        field = one_of(browser, "input")
        assert field.accessible_name == "Text"
        field.clear()
        field.send_keys(text + end)
        if not end:
            one_of(browser, "form button").click()
        wait_for_answer(browser, f"“{text}”")
        rows, networks = table_of(browser), files_of(reviews)
        assert [row[0] for row in rows[:2]] == [["teacher before"], ["teacher after metadistil"]] and len(rows) == 5
        for title, prediction, classes, size, smaller, _ in rows:
            network = networks[title[0]]
            label, probabilities = network.predict([text])[0]
            assert prediction[0] == label and size == [f"{size_of(network):,}"]
            assert smaller == [f"{size_of(networks['teacher before']) / size_of(network):.1f}"]
            for name, p in probabilities.items():
                assert float(classes[classes.index(name) + 1].strip("%")) == pytest.approx(100 * p, abs=0.051)
        probabilities = [[*networks[row[0][0]].predict([text])[0][1].values()] for row in rows]
        assert shares(browser, ".fill", "width") == pytest.approx(sum(probabilities, []), abs=0.01)
        assert shares(browser, ".mark", "right") == pytest.approx(probabilities[0], abs=0.02)  # the teacher before
        assert len(all_of(browser, "tr.after .mark")) == 2
    tokens = [one.text for one in all_of(browser, "#tokens li")]
    assert tokens[:3] == ["[CLS]", "the", "plot"] and not all_of(browser, ".unknown")
    assert not browser.get_log("browser")


@pytest.mark.slow
def test_in_a_browser_text_stays_text(reviews, serve, browser):
    served = serve(reviews)
    served.server.demo.models[4].title = ATTACK  # what a saved file holds is not HTML, either
    visit(browser, served)
    title = browser.title
    one_of(browser, "input").send_keys(f"{ATTACK} 漢\n")
    wait_for_answer(browser, f"“{ATTACK} 漢”")
    assert not all_of(browser, "#results img, #results script") and browser.title == title
    assert table_of(browser)[4][0] == [ATTACK]
    assert [one.text for one in all_of(browser, ".unknown")][-1] == "漢 unknown"
    assert all_of(browser, "main > p")[0].text.startswith(f"The models of the run {reviews}, trained on sst2")
    assert not browser.get_log("browser")  # nothing was fetched, nothing was stopped by the policy


@pytest.mark.slow
def test_in_a_browser_an_error_is_said_and_the_next_answer_takes_its_place(reviews, serve, browser):
    served = serve(reviews)
    visit(browser, served)
    field, status = one_of(browser, "input"), one_of(browser, "#status")
    assert status.aria_role == "status"
    browser.execute_script("arguments[0].value = 'a '.repeat(40000)", field)
    field.submit()
    wait_for(lambda: "expected at most 65,536 bytes" in status.text)
    assert not one_of(browser, "#results").is_displayed()
    field.clear()
    field.send_keys("the plot is fun\n")
    wait_for_answer(browser, "“the plot is fun”")
    assert "of 5 models" in status.text and one_of(browser, "#results").is_displayed()
    browser.get_log("browser")
    served.server.shutdown()
    served.server.server_close()
    field.send_keys("\n")
    wait_for(lambda: status.text == "No answer. Does demo.py still run?")


@pytest.mark.slow
def test_in_a_browser_a_late_answer_gives_way(reviews, serve, browser, monkeypatch):
    served = serve(reviews)
    answer, asked, may_end = served.server.answer, threading.Event(), threading.Event()

    def answer_late(example, truth):
        if example == ("the plot is slow",):
            asked.set()
            may_end.wait(10)
        return answer(example, truth)

    monkeypatch.setattr(served.server, "answer", answer_late)  # the second question overtakes the first
    visit(browser, served)
    field = one_of(browser, "input")
    field.send_keys("the plot is slow\n")
    assert asked.wait(10)
    field.clear()
    field.send_keys("the plot is fast\n")
    wait_for_answer(browser, "“the plot is fast”")
    may_end.set()
    time.sleep(0.3)
    assert one_of(browser, "caption").text == "“the plot is fast”"


@pytest.mark.slow
def test_in_a_browser_a_pair(pairs, serve, browser):
    visit(browser, serve(pairs))
    first, second = all_of(browser, "input")
    assert (first.accessible_name, second.accessible_name) == ("First text", "Second text")
    assert browser.switch_to.active_element == first
    first.send_keys("the first is 3\n")  # Enter alone asks for the second
    assert one_of(browser, "#status").text == ""
    second.send_keys("the second is 4\n")
    wait_for_answer(browser, "“the first is 3” and “the second is 4”")
    headers, networks = [one.text for one in all_of(browser, "thead th")], files_of(pairs)
    assert headers == ["Model", "Prediction", "Parameters", "Times smaller", "Milliseconds"]
    for title, prediction, *_ in table_of(browser):
        score, _ = networks[title[0]].predict([("the first is 3", "the second is 4")])[0]
        assert prediction[0] == f"{score:.2f}"


@pytest.mark.slow
def test_in_a_browser_pictures_by_the_keyboard(flowers, serve, browser):
    served = serve(flowers)
    visit(browser, served)
    buttons = all_of(browser, "#gallery button")
    assert len(buttons) == 12
    script = """const canvas = document.createElement("canvas").getContext("2d");
        canvas.drawImage(document.images[2], 0, 0);
        return [...canvas.getImageData(0, 0, 32, 32).data]"""
    pixels = np.reshape(browser.execute_script(script), (32, 32, 4))  # red, green, blue, opacity
    assert (pixels[:, :, :3].transpose(2, 0, 1) == served.server.demo.pictures.examples[2]).all()
    names, labels = served.server.demo.labels, served.server.demo.pictures.labels
    assert [button.accessible_name for button in buttons] == [names[label] for label in labels]
    one_of(browser, "body").send_keys("\t\t\t")
    browser.switch_to.active_element.send_keys(" ")
    wait_for_answer(browser, f"Picture 3; its true class: {names[labels[2]]}")
    assert [button.get_attribute("aria-pressed") for button in buttons].index("true") == 2
    expected = [row["prediction"] for row in served.ask(picture=2)["models"]]
    assert [prediction[0] for _, prediction, *_ in table_of(browser)] == expected
    assert not browser.get_log("browser")


@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 970])
def test_in_a_browser_nothing_is_wider_than_the_screen(reviews, pairs, flowers, serve, browser, width):
    for run in (reviews, pairs, flowers):
        visit(browser, serve(run), width)
        for field in all_of(browser, "input"):
            field.send_keys("x" * 300)
        all_of(browser, "button")[0].click()
        wait_for(lambda: all_of(browser, "tbody tr"))
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        roles = [one.aria_role for one in all_of(browser, "tbody tr:first-child > *")]
        assert roles[0] == "rowheader" and {*roles[1:]} == {"cell"}  # however it is laid out, it is a table

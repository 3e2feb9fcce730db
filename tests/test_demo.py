"""The page: what it shows is what the models say, in a real browser, too; text stays text; what it refuses."""

import contextlib
import http.client
import json
import os
import pty
import signal
import socket
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import demo
import pytest
from conftest import small, small_pictures
from test_data import write_cifar, write_task

import data
import train

GOOD = '["the plot is fun"]'
PAIR = ["one 0 3 yes", "two 0 4 so"]
ODD = """the plot is 漢 <img src=x onerror="document.title = 'it ran'"><script>document.title = 'it ran'</script>"""
CATS = [f"big cat {n}" for n in range(100)]


@pytest.fixture(scope="module")
def pages(finished, tmp_path_factory):
    """The page of a run on texts, of one on pairs with scores from 0 to 5, and of one on pictures."""
    folder = write_cifar(write_task(tmp_path_factory.mktemp("files"), "stsb", rows=90))
    names = "\n".join(CATS).replace(" ", "_")
    (folder / "cifar-100-binary" / "fine_label_names.txt").write_text(names)
    pairs = small(folder / "pairs", task="stsb", data=str(folder), methods="finetune")
    pictures = small_pictures(folder, folder / "cats", methods="finetune")
    found = [demo.Demo(str(run.out), 0) for run in (finished, train.run(pairs), train.run(pictures))]
    for page in found:
        threading.Thread(target=page.serve_forever, args=(0.01,), daemon=True).start()
    yield found
    for page in found:
        page.shutdown()
        page.server_close()


def request(page, method, path, body=None, **headers):
    """(status, headers, content)."""
    connection = http.client.HTTPConnection("127.0.0.1", page.server_port, timeout=20)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    return response.status, response.headers, response.read().decode()


def ask(page, question):
    """What each model says."""
    status, _, content = request(page, "POST", "/predict", json.dumps(question))
    assert status == 200
    return json.loads(content)


def connect(page, *lines):
    """A connection that has sent these lines."""
    connection = socket.create_connection(("127.0.0.1", page.server_port), timeout=5)
    connection.sendall("\r\n".join([*lines, "Host: localhost", "", ""]).encode())
    return connection


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_answer_is_what_each_model_reads_and_predicts(pages):
    text = "The plot is fun, 漢 is not"
    picture = data.read_pictures(Path(pages[2].about["data"], "cifar-100-binary", "test.bin"))[3]
    assert pages[2].pictures[3][1] == CATS[picture.labels]
    for page, question, example, read in (
        (pages[0], [text], text, "[CLS] the plot is fun , 漢? is not [SEP]"),
        (pages[1], PAIR, tuple(PAIR), "[CLS] one 0 3 yes [SEP] two 0 4 so [SEP]"),
        (pages[2], 3, picture.examples, ""),
    ):
        rows, trained = ask(page, question), train.load_all(page.about["name"])
        assert [row["title"] for row in rows] == [*trained]
        for row, model in zip(rows, trained.values()):
            model.labels = CATS if page.pictures else model.labels
            [(label, probabilities)] = model.predict([example])
            assert row["label"] == (label if probabilities else pytest.approx(label, abs=1e-5))
            assert dict(row["classes"]) == pytest.approx(probabilities, abs=1e-6)
            assert row["parameters"] == sum(weights.numel() for weights in model.parameters())
            assert row["milliseconds"] > 0 and not row["is_cut"]
            assert " ".join(token + "?" * is_unknown for token, is_unknown in row["tokens"]) == read
    assert ask(pages[0], ["the plot is fun " * 100])[0]["is_cut"]


def test_it_answers_to_its_own_names_at_its_own_paths(pages):
    own = ["127.0.0.1", "localhost", "localhost:80", "127.0.0.1:9"]
    foreign = ["evil.example", f"evil.example:{pages[0].server_port}", "127.0.0.1.evil.example", "localhost:80.x", ""]
    for host in [*own, *foreign]:
        for asked in (("GET", "/"), ("GET", "/run"), ("POST", "/predict", GOOD)):
            status, headers, _ = request(pages[0], *asked, Host=host)
            assert status == (200 if host in own else 403), host
            policy = headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none';") and "unsafe" not in policy and "http" not in policy
    for asked in (("GET", "/predict"), ("GET", "/../train.py"), ("GET", "/<b>"), ("POST", "/", GOOD)):
        status, headers, _ = request(pages[0], *asked)
        assert status == 404 and headers["Content-Type"] == "application/json"
    assert pages[0].server_address[0] == "127.0.0.1"


def test_what_is_no_question_is_refused(pages):
    no_texts = [b"", b"\xff", b"[" * 60_000, b"0", b'"fun"', b"[]", b'["a", "b"]', b"[3]", b'[" "]']
    for page, bodies in ((pages[0], no_texts), (pages[2], [b"-1", b"12", b"0.0", b"true", b'["fun"]'])):
        for body in bodies:
            status, _, content = request(page, "POST", "/predict", body)
            assert status == 400 and json.loads(content)["error"].startswith("expected "), body
    assert ask(pages[0], ["fun \ud83d"])  # half a character is replaced
    for size, status in ((demo.LONGEST_BODY, 200), (demo.LONGEST_BODY + 1, 413)):
        assert request(pages[0], "POST", "/predict", GOOD.ljust(size))[0] == status
    for length in ("X: 1", "Content-Length: -1", f"Content-Length: {'9' * 5000}"):  # refused without reading
        with connect(pages[0], "POST /predict HTTP/1.1", length) as connection:
            assert connection.recv(100).startswith(b"HTTP/1.0 400 ")


def test_one_question_at_a_time_and_none_waits_for_a_slow_body(pages, monkeypatch):
    at_work = []

    def answer(question):
        at_work.append(question)
        time.sleep(0.01)
        found = question, len(at_work)
        at_work.remove(question)
        return found

    monkeypatch.setattr(pages[0], "answer", answer)
    with connect(pages[0], "POST /predict HTTP/1.1", "Content-Length: 9"), ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda n: ask(pages[0], n), range(16))) == [[n, 1] for n in range(16)]


def test_a_failure_leaves_the_server_at_work(pages, monkeypatch, capfd):
    for _ in range(5):  # a browser goes away: no traceback
        with connect(pages[0], "GET / HTTP/1.1") as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset at the end
    assert ask(pages[0], PAIR[:1]) and capfd.readouterr().err == ""
    monkeypatch.setattr(pages[0], "answer", lambda question: 1 // question)
    with pytest.raises(http.client.RemoteDisconnected):
        ask(pages[0], 0)
    assert ask(pages[0], 1) == 1


def test_user_errors_print_one_line(pages, tmp_path, capfd):
    for arguments, expected in (
        ([tmp_path / "nothing"], "nothing: expected a run"),
        ([pages[0].about["name"], "--port", pages[0].server_port], "expected a free port"),
        ([], "required: RUN"),
    ):
        with pytest.raises(SystemExit) as end:
            demo.main(["--no-browser", *map(str, arguments)])
        said = capfd.readouterr().err
        assert end.value.code == 2 and said.startswith("demo.py: ") and said.count("\n") == 1 and expected in said


@pytest.mark.parametrize("name, settings", [("xdg-open", {"DISPLAY": ":7"}), ("lynx", {"BROWSER": "lynx -x %s"})])
def test_a_browser_is_opened_without_the_terminal_and_no_text_browser(name, settings, tmp_path):
    browser, log = tmp_path / name, tmp_path / "log"
    browser.write_text(f"#!/bin/sh\nif true < /dev/tty; then echo with the terminal >> {log}; fi; echo $1 >> {log}")
    browser.chmod(0o755)
    process, _ = pty.fork()
    if process == 0:  # here, in a terminal of its own
        os.environ.clear()
        os.environ.update(settings, TERM="xterm", PATH=str(tmp_path))
        demo.open_browser("address")
        os._exit(0)
    assert os.waitpid(process, 0)[1] == 0
    if name == "lynx":
        assert not log.exists()
    else:
        wait_for(lambda: log.exists() and log.read_text() == "address\n")


def test_the_page_is_served_when_the_browser_opens_and_ctrl_c_ends_it_quietly(finished, monkeypatch, capfd):
    found = []

    def browse(address):
        found.append(capfd.readouterr().out.startswith(address) and urllib.request.urlopen(address).read().decode())
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(demo, "open_browser", browse)
    monkeypatch.setattr(os, "_exit", found.append)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
    with contextlib.suppress(KeyboardInterrupt):
        demo.main([str(finished.out), "--port", "0"])
    signal.signal(signal.SIGINT, before)
    assert found == [demo.PAGE, 130] and capfd.readouterr() == ("", "")


# ---------------------------------------------------------------- in a browser


def visit(browser, page):
    """Open the page on a narrow screen. Returns what can be filled in or pressed, by its name for a screen reader."""
    size = {"width": 320, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get_log("browser")  # of pages before
    browser.get(f"http://127.0.0.1:{page.server_port}/")
    wait_for(lambda: shown(browser, "#about") != [""])
    return {found.accessible_name: found for found in browser.find_elements("css selector", "input, #gallery button")}


def shown(browser, selector):
    """The visible text of each such element, its white space evened."""
    return [" ".join(element.text.split()) for element in browser.find_elements("css selector", selector)]


def enter(browser, field, text, caption):
    """Type a text, and wait for the answer. It fits the screen, nothing was fetched, or stopped by the policy."""
    field.send_keys(text)
    wait_for(lambda: shown(browser, "caption") == [caption])
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 320
    assert not browser.get_log("browser")


def says(monkeypatch, page, *rows):
    """Let the page's models say this: (title, label, parameters, probabilities). Returns the list of questions."""
    asked, always = [], {"milliseconds": 2, "tokens": [["[CLS]", False], [ODD, True]], "is_cut": False}
    names = ("title", "label", "parameters", "classes")
    answer = [always | dict(zip(names, row)) for row in rows]
    monkeypatch.setattr(page, "answer", lambda question: asked.append(question) or answer)
    return asked


@pytest.mark.slow
def test_in_a_browser_what_the_models_say_of_a_text_is_shown_as_text(pages, browser, monkeypatch):
    """What the question, the run's name, and a model's title hold is not HTML."""
    before, after = [["bad", 0.25], ["good", 0.75]], [["bad", 0.9], ["good", 0.1]]
    teachers = ("teacher before", "good", 4000, before), ("teacher after x", "bad", 4000, after)
    asked = says(monkeypatch, pages[0], *teachers, (ODD, "bad", 1600, [["bad", 1], ["good", 0]]))
    monkeypatch.setitem(pages[0].about, "name", ODD)
    [(name, field)] = visit(browser, pages[0]).items()
    enter(browser, field, f"{ODD}\n", f"“{ODD}”")
    assert name == "Text" and asked == [[ODD]]
    assert shown(browser, "tbody tr") == [
        "teacher before good bad 25.0% good 75.0% 4,000 1.0 2.0",
        "teacher after x bad before: good bad 90.0% ▲ +65.0 good 10.0% ▼ −65.0 4,000 1.0 2.0",
        f"{ODD} bad bad 100.0% good 0.0% 1,600 2.5 2.0",
    ]
    assert shown(browser, "#status") == ["bad: 2 of 3 models, good: 1 of 3 models"]
    assert shown(browser, "#tokens p") == [f"teacher before, teacher after x, {ODD}: 2 tokens"]
    assert shown(browser, "#tokens li") == ["[CLS]", f"{ODD} unknown"]
    bars = {".fill": ("clientWidth", [0.25, 0.75, 0.9, 0.1, 1, 0]), ".mark": ("offsetLeft", [0.25, 0.75])}
    for part, (measure, expected) in bars.items():
        script = f"return arguments[0].map(e => e.{measure} / e.parentElement.clientWidth)"
        found = browser.execute_script(script, browser.find_elements("css selector", part))
        assert found == pytest.approx(expected, abs=0.03)
    assert browser.title.startswith(ODD) and ODD in shown(browser, "#about")[0]


@pytest.mark.slow
def test_in_a_browser_pairs_have_scores_and_pictures_a_gallery(pages, browser, monkeypatch):
    asked = says(monkeypatch, pages[1], ("teacher before", 2.5, 20, []), ("teacher after x", 1.25, 20, []))
    fields = visit(browser, pages[1])
    fields["First text"].send_keys(PAIR[0])
    enter(browser, fields["Second text"], f"{PAIR[1]}\n", "“one 0 3 yes” and “two 0 4 so”")
    assert asked == [PAIR] and shown(browser, "#status, #probability") == ["scores from 1.25 to 2.50", ""]
    assert shown(browser, "tbody tr") == [
        "teacher before 2.50 20 1.0 2.0",
        "teacher after x 1.25 before: 2.50 20 1.0 2.0",
    ]
    many = {"big cat 9": 0.6, "big cat 2": 0.001, "a": 0.09, "b": 0.08, "c": 0.07, "d": 0.06, "e": 0.05}
    asked = says(monkeypatch, pages[2], ("s", "big cat 9", 20, [*many.items()]), ("t", "big cat 2", 20, []))
    buttons = visit(browser, pages[2])
    enter(browser, buttons["big cat 2"], " ", "Picture 3; its true class: big cat 2")
    assert asked == [2] and [*buttons] == [name for _, name in pages[2].pictures]
    assert shown(browser, "tbody tr") == [  # the five likeliest classes and the true one
        "s big cat 9 wrong big cat 9 60.0% a 9.0% b 8.0% c 7.0% d 6.0% big cat 2 0.1% 20 1.0 2.0",
        "t big cat 2 right 20 1.0 2.0",
    ]
    script = "return [...arguments[0].querySelector('canvas').getContext('2d').getImageData(9, 5, 1, 1).data]"
    assert browser.execute_script(script, buttons["big cat 2"]) == [*pages[2].pictures[2][0][:, 5, 9], 255]
    assert len(browser.find_elements("css selector", "[aria-pressed=true]")) == 1


@pytest.mark.slow
def test_in_a_browser_an_error_is_said_and_a_late_answer_gives_way(pages, browser, monkeypatch):
    field = visit(browser, pages[0])["Text"]
    browser.execute_script("""const now = fetch, later = (...asked) =>
        new Promise(done => setTimeout(done, 300)).then(() => now(...asked));
        window.fetch = (...asked) => (asked[1].body.includes("slow") ? later : now)(...asked)""")
    browser.switch_to.active_element.send_keys("slow\n")  # one can type at once
    field.clear()
    enter(browser, field, "fast\n", "“fast”")
    time.sleep(0.6)
    assert shown(browser, "caption") == ["“fast”"] and "of 5 models" in shown(browser, "#status")[0]
    browser.execute_script("arguments[0].value = 'a '.repeat(40000); arguments[0].form.requestSubmit()", field)
    wait_for(lambda: "expected at most 65,536 bytes" in shown(browser, "#status")[0])
    assert shown(browser, "#results") == [""]
    monkeypatch.setattr(pages[0], "answer", lambda question: 1 / 0)
    field.clear()
    field.send_keys("again\n")
    wait_for(lambda: shown(browser, "#status") == ["No answer. Does demo.py still run?"])

"""The four modules stand beside this directory; runs as small as can be, and a few words that serve every test."""

import atexit
import contextlib
import http.server
import itertools
import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path

# Before torch is imported, and for the processes that tests start. Two threads save a sixth of the time on idle cores;
# beside other work they wait for each other, and a step of 0.3 s took 30 s.
os.environ.setdefault("OMP_NUM_THREADS", "1")

os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1,localhost"  # the tests' own servers

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
sys.path.append(str(ROOT / "notebooks"))

import data
import models
import train


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random numbers."""
    torch.manual_seed(0)


# ---------------------------------------------------------------- small runs


def builtin_reviews(split):
    """A Split of the built-in reviews, rightly labelled."""
    return data.read_files("sst2", data.BUILTIN)[split]


def write_reviews(folder):
    """SST-2's files with few of the reviews, so that scores take no time."""
    (folder / "SST-2").mkdir(parents=True)
    for name, rows in (("train", 90), ("dev", 30), ("test", 40)):
        split = builtin_reviews(name)[:rows]
        lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in zip(split.examples, split.labels))]
        (folder / "SST-2" / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return folder


FEW = Path(tempfile.mkdtemp())
atexit.register(shutil.rmtree, FEW, ignore_errors=True)
SMALL = {
    "data": str(write_reviews(FEW)), "teacher": "micro", "student": "micro", "train_size": 60, "quiz_size": 20,
    "batch_size": 16, "quiz_batch_size": 8, "teacher_epochs": 2, "warmup_epochs": 1, "epochs": 2,
}  # fmt: skip


def small(out, **other):
    """The configuration of a small run. If no method sits a quiz, its size is not given: it would be refused."""
    settings = SMALL | {"out": str(out)} | other
    if "metadistil" not in settings.get("methods", "metadistil"):
        del settings["quiz_batch_size"]
    return train.Config(**settings)


def small_pictures(folder, out, **other):
    """The same on the pictures in the folder."""
    pictures = {"task": "cifar100", "data": str(folder), "teacher": "resnet8", "student": "resnet8"}
    return small(out, **pictures | {"train_size": 28, "batch_size": 24, "epochs": 1} | other)


def flags(**values):
    return [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def refused(capsys, arguments) -> str:
    """Run the command line, which must refuse: its one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train.main([str(argument) for argument in arguments])
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("seed ")]  # progress
    assert stop.value.code == 2 and len(said) == 1 and said[0].startswith("train.py: ")
    return said[0]


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A small finished run of two seeds. Leave it as it is."""
    return train.run(small(tmp_path_factory.mktemp("runs") / "finished", seeds=2))


@contextlib.contextmanager
def stopped_after(writes):
    """Inside it a run is stopped, as by Ctrl-C, right after so many files."""
    write, count = train.write, itertools.count(1)

    def write_then_stop(path, content):
        write(path, content)
        if next(count) == writes and path.name != "table.md":
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "write", write_then_stop)
        yield


def run_with_stops(config, writes):
    """A run that is stopped after so many files, over and over, and resumed; at least twice."""
    with stopped_after(writes), pytest.raises(KeyboardInterrupt):
        train.run(config)
    return resume_with_stops(config.out, writes)


def resume_with_stops(out, writes):
    for stops in range(100):
        with stopped_after(writes), contextlib.suppress(KeyboardInterrupt):
            ended = train.resume(out)
            assert stops, "it was stopped but once"
            return ended


def numbers_of(out):
    """All that a run computed: its log, byte for byte, and its final weights."""
    out = Path(out)
    saved = {str(path.relative_to(out)): torch.load(path, weights_only=True) for path in out.glob("seed*/*.pt")}
    return (out / "metrics.jsonl").read_bytes(), {name: content["weights"] for name, content in saved.items()}


def same_weights(one, other):
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def assert_same_numbers(one, other):
    (log, weights), (other_log, other_weights) = numbers_of(one), numbers_of(other)
    assert log == other_log and weights.keys() == other_weights.keys()
    for name, state in weights.items():
        assert same_weights(state, other_weights[name]), name


TEXTS = builtin_reviews("train").keys


def checkpoint(folder, texts, layers=2, seed=0, labels=None, **shape):
    """A random Encoder as notebooks/fetch.py leaves a published one, with a tokeniser learnt from the texts."""
    torch.manual_seed(seed)
    tokenizer = data.train_tokenizer(texts, 150)
    shape = {"hidden": 16, "heads": 2, "intermediate": 32, "max_positions": 40} | shape
    shape["num_labels"] = len(labels) if labels else 2
    config = models.EncoderConfig(vocab_size=tokenizer.get_vocab_size(), layers=layers, **shape)
    models.Model(shaken(models.Encoder(config)), tokenizer, labels).save(Path(folder, "metadistil.pt"))
    return str(folder)


# ---------------------------------------------------------------- the rest


@pytest.fixture
def web():
    """A local server: `web.content` is its answer to every request, `web.asked` the paths that were asked for.
    It can promise more than it sends (`missing` bytes), send half and then stall, or redirect once, to `elsewhere`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found, first = self.server, not self.server.asked
            found.asked.append(self.path)
            if found.elsewhere and first:
                self.send_response(302)
                self.send_header("Location", found.elsewhere)
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(found.content) + found.missing))
            self.end_headers()
            self.wfile.write(found.content[: len(found.content) // 2] if found.stalls else found.content)
            self.wfile.flush()
            if found.stalls:
                found.done.wait(5)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.asked, server.missing, server.stalls, server.elsewhere = b"", [], 0, False, None
    server.address, server.done = f"http://127.0.0.1:{server.server_port}/", threading.Event()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.done.set()
    server.shutdown()
    server.server_close()


def chromium(profile, **preferences):
    """Debian's Chromium without a window, driven by selenium; skips where there is none. profile: a new directory."""
    webdriver = pytest.importorskip("selenium.webdriver")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("no chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    quiet = "no-first-run disable-quic disable-background-networking disable-component-update disable-sync"
    for flag in f"headless no-sandbox disable-gpu disable-dev-shm-usage window-size=1400,1000 {quiet}".split():
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={profile}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost")  # no net
    for name, value in preferences.items():
        setattr(options, name, value)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(driver))


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """One such Chromium for all tests that use it."""
    found = chromium(tmp_path_factory.mktemp("profile"))
    yield found
    found.quit()


def shaken(module, scale=0.1):
    """The module with random, non-zero, non-symmetric parameters: on tidy ones a wrong gradient can hide."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run the slow tests, too")


def pytest_configure(config):
    """torch's own forward-mode rules use a function that torch itself calls deprecated."""
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit.script` is deprecated:DeprecationWarning")
    config.addinivalue_line("markers", "slow: left out unless --all is given")


def everything(config):
    """With --all; and when a reader's own file is checked, as notebooks/exercise.md says."""
    return config.getoption("--all") or "MINE" in os.environ


@pytest.hookimpl(trylast=True)  # after -k
def pytest_collection_modifyitems(config, items):
    if everything(config):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.left_out = len(slow)
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if not item.get_closest_marker("slow")]


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    """How to run what was left out. With -n other processes know how many."""
    left_out = getattr(config, "left_out", "")
    if left_out != 0 and not everything(config):
        terminalreporter.write_line(f"{left_out} slow tests were left out; pytest --all runs them, too".strip())

"""The four modules stand beside this directory; a few words serve every test."""

import http.server
import os
import shutil
import sys
import threading
from pathlib import Path

# Two threads save a sixth of the time on two idle cores. Beside other work they wait for each other: a step of 0.3 s took 30 s.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # in the processes that tests start, too; so before torch is imported

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
sys.path.append(str(ROOT / "notebooks"))

import data


def builtin_reviews(split):
    """A Split of the built-in reviews, rightly labelled."""
    return data.read_files(data.TASKS["sst2"], data.REVIEWS, "sst2")[split]


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random numbers."""
    torch.manual_seed(0)


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

"""Try the models of a run in a browser: `python notebooks/demo.py runs/NAME`.

Enter a text, or a pair of texts, or choose a picture. The page, demo.html, shows what each model says, how sure it is,
how large it is and how long it took. It is served to this computer alone. Ctrl-C ends it.
"""

import argparse
import base64
import contextlib
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import time
import webbrowser
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data  # noqa: E402
import models  # noqa: E402
import train  # noqa: E402

LONGEST_BODY = 64 * 1024  # bytes of a question
GALLERY_SIZE = 12  # pictures to choose from
TEXT_BROWSERS = ("elinks", "links", "links2", "lynx", "w3m", "www-browser")
PAGE = Path(__file__).with_name("demo.html").read_text(encoding="utf-8")


def digest(tag):
    """The page's script or style, as the policy names it: by its hash."""
    text = PAGE.split(f"<{tag}>")[1].split(f"</{tag}>")[0]
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# Nothing is loaded from elsewhere, and no script runs but the page's own.
POLICY = f"default-src 'none'; script-src {digest('script')}; style-src {digest('style')}; img-src data:; "
POLICY += "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class Demo(http.server.ThreadingHTTPServer):
    """Serves the page, on 127.0.0.1 alone, and asks the models of a run. Raises InputError, CheckpointError."""

    def __init__(self, run, port):
        config, _ = train.read_run(run)
        self.models = sorted(train.load_all(run).values(), key=place_in_table)
        self.fields = len(self.models[0].columns)  # texts that make an example; of pictures none
        self.pictures = [] if self.fields else some_pictures(config, self.models)
        # colours: the red of all pixels, row by row; the green; the blue
        gallery = [{"label": label, "colours": picture.reshape(3, -1).tolist()} for picture, label in self.pictures]
        self.about = {"name": run, "task": config.task, "data": config.data, "fields": self.fields, "pictures": gallery}
        self.answer(["a"] * self.fields if self.fields else 0)  # the first answer is slow: the user gets the second
        self.lock = threading.Lock()  # each request has a thread, but one at a time asks the models
        with models.expecting(f"--port {port}: expected a free port, or 0", data.InputError):
            super().__init__(("127.0.0.1", port), Handler)

    def answer(self, question):
        """What each model says to a list of texts, or to a picture's number: a list of dicts. Raises InputError."""
        example, rows = self.example(question), []
        for model in self.models:
            started = time.perf_counter()
            [(label, probabilities)] = model.predict([example])
            row = {"title": model.title, "label": label, "classes": list(probabilities.items())}
            row["milliseconds"] = 1000 * (time.perf_counter() - started)
            row["parameters"] = sum(theta.numel() for theta in model.parameters())
            row["tokens"], row["is_cut"] = cut_up(model.tokenizer, example) if self.fields else ([], False)
            rows.append(row)
        return rows

    def example(self, question):
        """What `predict` takes. Raises InputError."""
        if self.pictures:
            fits = type(question) is int and 0 <= question < len(self.pictures)
            data.expect(fits, f"expected a picture's number from 0 to {len(self.pictures) - 1}")
            return self.pictures[question][0]
        fits = isinstance(question, list) and len(question) == self.fields
        fits = fits and all(isinstance(text, str) and text.strip() for text in question)
        data.expect(fits, f"expected texts that are not empty, one for each field: {self.fields}")
        # JSON can hold half a surrogate pair, which is no character: it becomes a question mark.
        texts = [text.encode("utf-8", "replace").decode() for text in question]
        return texts[0] if self.fields == 1 else tuple(texts)


def place_in_table(model):
    """The key to sort models by: teachers first, each before its lessons and right below after them."""
    role = re.split(" before| after", model.title)[0]  # such as "teacher 2"
    return model.title.startswith("student"), role, "after" in model.title


def some_pictures(config, trained):
    """The first pictures of the test set, [(picture, label)]. The models take over the names of classes in the data."""
    folder = Path(config.data, data.TASKS[config.task].folder)
    file = folder / "fine_label_names.txt"
    names = file.read_text(encoding="utf-8").replace("_", " ").splitlines() if file.is_file() else []
    for model in trained:
        if len(names) == len(model.labels):
            model.labels = names
    test = data.read_pictures(folder / "test.bin")[:GALLERY_SIZE]
    return [(picture, trained[0].labels[label]) for picture, label in zip(test.examples, test.labels)]


def cut_up(tokenizer, example):
    """([(token, is it unknown?)], is the end cut off?). In place of an unknown token stands its word."""
    texts = [example] if isinstance(example, str) else example
    encoding, tokens = tokenizer.encode(*texts), []
    unknown = getattr(tokenizer.model, "unk_token", None)
    for token, number, (start, end) in zip(encoding.tokens, encoding.sequence_ids, encoding.offsets):
        is_unknown = token == unknown and number is not None  # None: a token such as [SEP], in neither text
        tokens.append((texts[number][start:end] if is_unknown else token, is_unknown))
    return tokens, bool(encoding.overflowing)


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    timeout = 10  # seconds that it may stand still

    def handle(self):
        """A browser that goes away before its answer comes is no error."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_GET(self):
        """Send what was asked for, or {"error": why not}."""
        try:
            status, content = self.content()
        except data.InputError as error:
            status, content = 400, {"error": str(error)}
        is_page = content is PAGE
        body = (PAGE if is_page else json.dumps(content)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8" if is_page else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def content(self):
        """(HTTP status, the page or what becomes JSON). Raises InputError."""
        # A foreign site can give its own name this computer's address: refuse that name. A tunnel may change the port.
        if not re.fullmatch(r"(localhost|127\.0\.0\.1)(:[0-9]+)?", self.headers.get("Host", "")):
            return 403, {"error": "expected the host localhost or 127.0.0.1"}
        asked = f"{self.command} {self.path}"
        fixed = {"GET /": PAGE, "GET /run": self.server.about}
        if asked in fixed:
            return 200, fixed[asked]
        if asked != "POST /predict":
            return 404, {"error": 'expected "/", "/run" or "/predict"'}
        length = self.headers.get("Content-Length", "")
        data.expect(re.fullmatch("[0-9]{1,15}", length), "expected a Content-Length")
        if int(length) > LONGEST_BODY:
            return 413, {"error": f"expected at most {LONGEST_BODY:,} bytes, found {int(length):,}"}
        with models.expecting("expected JSON", data.InputError):
            question = json.loads(self.rfile.read(int(length)))
        with self.server.lock:  # only now, since the body may be slow to come
            return 200, self.server.answer(question)

    def log_message(self, *_):
        """Print nothing."""


def open_browser(address):
    """Open the user's browser, unless it is a text browser, which would take over the terminal."""
    with contextlib.suppress(webbrowser.Error):  # there is no browser
        if Path(webbrowser.get().name).name not in TEXT_BROWSERS:
            # xdg-open may still choose a text browser: it gets no terminal.
            command, none = [sys.executable, "-m", "webbrowser", address], subprocess.DEVNULL
            subprocess.run(command, stdin=none, stdout=none, stderr=none, start_new_session=True)


def main(arguments=None):
    """The command line. User errors print one line and exit with status 2."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("run", metavar="RUN", help="the directory of a run of train.py")
    flags.add_argument("--port", type=int, default=8000, metavar="N", help="0 takes a free one [8000]")
    flags.add_argument("--no-browser", action="store_true", help="open no browser")
    flags.error = lambda message: data.expect(False, message)  # raises InputError with argparse's message
    try:
        given = flags.parse_args(arguments)
        server = Demo(given.run, given.port)
        address = f"http://127.0.0.1:{server.server_port}/"
        print(f"{address}  (Ctrl-C ends it)", flush=True)
        if not given.no_browser:  # in a thread: some browsers return only when they are closed
            threading.Thread(target=open_browser, args=[address], daemon=True).start()
        server.serve_forever()
    except (data.InputError, models.CheckpointError, OSError) as error:
        print(f"demo.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        os._exit(130)  # at once: in an orderly end, a thread that still answers can make the process abort


if __name__ == "__main__":
    main()

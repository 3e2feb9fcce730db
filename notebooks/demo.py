"""Try the networks of a run in a browser: `python notebooks/demo.py runs/NAME`.

Enter a text (or two, or choose a picture), and read what each model of the run says, how sure it is, how large it is
and how long it took. A teacher after its lessons stands below the same teacher before, with the change.

The page is served to this computer alone. Ctrl-C ends it.
"""

import argparse
import base64
import collections
import concurrent.futures
import hashlib
import html
import http.server
import json
import os
import queue
import re
import struct
import sys
import threading
import time
import webbrowser
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data  # noqa: E402
import models  # noqa: E402
import train  # noqa: E402

LONGEST_BODY = 64 * 1024  # bytes of a question
GALLERY_SIZE = 12  # pictures to choose from
MOST_TOGETHER = 32  # questions in one batch
MOST_CLASSES = 5  # where a task has more, the likeliest are shown

# ---- The page

STYLE = """
:root { color-scheme: light dark; --bar: light-dark(#0072b2, #4ea3de); --soft: light-dark(#57606a, #a8b1bd);
  --line: light-dark(#d0d7de, #444c56); --more: light-dark(#17692f, #7ddc95); --less: light-dark(#a52730, #ff9a9a); }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 68rem; font: 1rem/1.5 system-ui, sans-serif; }
p, caption, li { overflow-wrap: anywhere; }
h1, h2 { font-size: 1.4rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.1rem; }
input, button { font: inherit; padding: 0.4rem 0.75rem; }
input { display: block; width: 100%; margin-bottom: 0.75rem; }
:focus-visible { outline: 3px solid var(--bar); outline-offset: 2px; }
ul { list-style: none; margin: 0; padding: 0; }
#gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(9rem, 30%), 1fr)); gap: 0.5rem; }
#gallery button { width: 100%; height: 100%; font-size: 0.8rem; line-height: 1.2; border: 3px solid transparent; }
#gallery [aria-pressed=true] { border-color: var(--bar); }
#gallery img { display: block; width: 64px; height: 64px; margin: 0 auto 0.25rem; image-rendering: pixelated; }
#status { min-height: 1.5em; font-weight: 600; }
#status.error, .less { color: var(--less); }
.more { color: var(--more); }
caption, small { text-align: left; color: var(--soft); }
table { width: 100%; border-collapse: collapse; }
th, td { text-align: left; vertical-align: top; padding: 0.4rem 0.75rem 0.4rem 0; border-top: 1px solid var(--line); }
.number, thead th:nth-last-child(-n + 3) { text-align: right; }
.number { white-space: nowrap; }
.after th, .after td { border: 0; padding-top: 0; }
td:has(ul) { width: 42%; }
td small { display: block; }
td li { display: grid; grid-template-columns: 25% minmax(2rem, 1fr) 3.5rem 4.5rem; gap: 0.5rem; align-items: center; }
.track { position: relative; height: 0.8rem; background: var(--line); }
.fill, .mark { position: absolute; inset: 0 auto 0 0; background: var(--bar); }
.mark { width: 3px; margin: -3px -1px; background: CanvasText; }
.tokens li { display: inline-block; max-width: 18rem; margin: 0 0.3rem 0.3rem 0; padding: 0 0.4rem; white-space: nowrap;
  overflow: hidden; text-overflow: ellipsis; border: 1px solid var(--line); font-family: ui-monospace, monospace; }
.tokens .unknown { border: 2px dashed var(--less); }
@media (max-width: 60rem) {
  table, caption, tbody, tr, tbody th, td { display: block; }
  thead { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; }
  tr { border-top: 1px solid var(--line); padding: 0.5rem 0; }
  tr.after { border: 0; border-left: 3px solid var(--line); padding-left: 0.75rem; }
  tbody th, tbody td, td:has(ul), td.number { border: 0; padding: 0; width: auto; text-align: left; }
  td.number::before { content: attr(data-column) ": " / ""; color: var(--soft); }
  td li { font-size: 0.9rem; }
}
"""

SCRIPT = """
"use strict";
const summary = document.querySelector("#status"), results = document.querySelector("#results");
const columns = [...document.querySelectorAll("thead th")].map(header => header.textContent);
const percent = p => (100 * p).toFixed(1) + "%";
let latest = 0;  // the number of the latest question

function add(parent, tag, text = "", attributes = {}) {
  const element = document.createElement(tag);
  element.textContent = text;  // whatever it holds, it stays text: nothing on this page is set as HTML
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  parent.append(element);
  return element;
}

async function ask(question, caption) {  // the texts, or a picture's number
  const number = ++latest;
  summary.textContent = "";
  let answer;
  try {
    answer = await (await fetch("/predict", {method: "POST", body: JSON.stringify(question)})).json();
  } catch {
    answer = {error: "No answer. Does demo.py still run?"};
  }
  if (number !== latest) return;  // a later question has been asked meanwhile
  summary.textContent = answer.error || answer.summary;
  summary.className = answer.error ? "error" : "";
  results.hidden = Boolean(answer.error);
  if (answer.error) return;
  results.querySelector("caption").textContent = caption;
  results.querySelector("tbody").replaceChildren();
  results.querySelector("#tokens").replaceChildren();
  answer.models.forEach(showModel);
  answer.tokens.forEach(showTokens);
}

function showModel(model) {
  const row = add(results.querySelector("tbody"), "tr", "", {role: "row", class: model.is_after ? "after" : ""});
  const cell = (text, kind) =>
    add(row, "td", text, {role: "cell", class: kind, "data-column": columns[row.children.length]});
  add(row, "th", model.title, {role: "rowheader", scope: "row"});
  const prediction = cell(model.prediction, "");
  model.notes.forEach(note => add(prediction, "small", note));
  if (model.classes.length) {
    const list = add(cell("", ""), "ul", "", {role: "list"});
    model.classes.forEach(one => showClass(list, one));
  }
  cell(model.parameters.toLocaleString("en"), "number");
  cell(model.times_smaller.toFixed(1), "number");
  cell(model.milliseconds.toFixed(1), "number");
}

function showClass(list, {name, probability, change}) {
  const item = add(list, "li");
  add(item, "span", name);
  const track = add(item, "span", "", {class: "track", "aria-hidden": "true"});
  add(track, "span", "", {class: "fill"}).style.width = percent(probability);
  add(item, "span", percent(probability), {class: "number"});
  if (change === null) return;
  add(track, "span", "", {class: "mark"}).style.left = percent(probability - change);
  const points = (100 * Math.abs(change)).toFixed(1);
  const [sign, kind] = points === "0.0" ? ["±", ""] : change < 0 ? ["▼ −", "less"] : ["▲ +", "more"];
  add(item, "span", sign + points, {class: "number " + kind});
}

function showTokens({models, tokens, is_cut}) {
  const end = is_cut ? "; the rest of the text is not read" : "";
  add(results.querySelector("#tokens"), "p", `${models}: ${tokens.length} tokens${end}`);
  const list = add(results.querySelector("#tokens"), "ul", "", {role: "list", class: "tokens"});
  for (const [text, is_unknown] of tokens) {
    const item = add(list, "li", text, {class: is_unknown ? "unknown" : ""});
    if (is_unknown) add(item, "small", " unknown");
  }
}

document.querySelector("form")?.addEventListener("submit", event => {
  event.preventDefault();
  const texts = [...document.querySelectorAll("input")].map(input => input.value);
  ask(texts, texts.map(text => `“${text}”`).join(" and "));
});

const buttons = document.querySelectorAll("#gallery button");
buttons.forEach((button, picture) => button.addEventListener("click", () => {
  buttons.forEach(other => other.setAttribute("aria-pressed", other === button));
  ask(picture, `Picture ${picture + 1}; its true class: ${button.textContent}`);
}));
"""


def page(demo):
    """The page as HTML. What comes from the run is escaped here; what comes later is set as text by SCRIPT."""
    columns = ["Model", "Prediction", "Probability", "Parameters", "Times smaller", "Milliseconds"]
    if not demo.labels:  # a regression
        columns.remove("Probability")
    header = "".join(f'<th role="columnheader" scope="col">{column}</th>' for column in columns)
    run, task, source = map(html.escape, (demo.run, demo.config.task, demo.config.data))
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{run}: what does each model say?</title>
<style>{STYLE}</style>
<main>
<h1>What does each model say?</h1>
<p>The models of the run {run}, trained on {task} ({source})</p>
{form(demo.fields) if demo.fields else gallery(demo)}
<p id="status" role="status"></p>
<section id="results" aria-label="Results" hidden>
<table role="table"><caption></caption>
<thead role="rowgroup"><tr role="row">{header}</tr></thead><tbody role="rowgroup"></tbody></table>
<p><small>▲ ▼: the change against the same teacher before, in percentage points; the thin line marks where it was.
Times smaller: than the first teacher. Milliseconds: of this answer, on this computer.</small></p>
{"<h2>Tokens</h2>" if demo.fields else ""}
<div id="tokens"></div>
</section>
</main>
<script>{SCRIPT}</script>
</html>
"""


def form(fields):
    """One field, or two for pairs of texts, and a button, as HTML."""
    names = ["Text"] if fields == 1 else ["First text", "Second text"]
    about = 'required autofocus maxlength="10000" autocomplete="off" spellcheck="false"'  # two fit in LONGEST_BODY
    inputs = [f"<label><b>{name}</b><input {about}></label>" for name in names]
    return "\n".join(["<form>", *inputs, "<button>Predict</button>", "</form>"])


def gallery(demo):
    """The pictures as buttons, as HTML, each file within the page."""
    items = []
    for picture, label in zip(demo.pictures.examples, demo.pictures.labels):
        file, name = base64.b64encode(bitmap(picture)).decode(), html.escape(demo.labels[label])
        image = f'<img alt="" src="data:image/bmp;base64,{file}">'
        items.append(f'<li><button type="button" aria-pressed="false">{image}{name}</button></li>')
    return '<h2>Choose a test picture</h2>\n<ul id="gallery" role="list">' + "\n".join(items) + "</ul>"


def bitmap(picture):
    """A picture (3, 32, 32), bytes, as a BMP file: rows from the last to the first, of each pixel blue, green, red."""
    pixels = picture[::-1, ::-1].transpose(1, 2, 0).tobytes()
    _, height, width = picture.shape
    shape = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(pixels), 0, 0, 0, 0)
    return struct.pack("<2sIII", b"BM", 54 + len(pixels), 0, 54) + shape + pixels


# ---- What the models say


class Refused(Exception):
    """A question that gets no answer: (HTTP status, one line that says what was expected)."""


class Demo:
    """The trained networks of a run, and what they say. Raises InputError, CheckpointError."""

    def __init__(self, run):
        self.run = run
        self.config, _ = train.read_run(run)
        data.expect(self.config.task in data.TASKS, f"{run}: expected a run on one of {', '.join(data.TASKS)}")
        files = data.TASKS[self.config.task]
        self.fields, folder = len(files.texts), Path(self.config.data, files.folder)
        trained = train.load_all(run)
        self.pictures = None if self.fields else some_pictures(folder)  # a task of pictures has no field of text
        self.models = [trained[title] for title in sorted(trained, key=place_in_table)]
        if self.pictures:
            for model in self.models:
                model.labels = class_names(folder, len(model.labels)) or model.labels
        self.labels = self.models[0].labels
        self.sizes = [sum(theta.numel() for theta in model.network.parameters()) for model in self.models]
        self.by_tokenizer = collections.defaultdict(list)
        for model in self.models if self.fields else []:
            self.by_tokenizer[model.tokenizer.to_str()].append(model)
        self.answer(("a",) * self.fields if self.fields else self.pictures.examples[0])  # the first time is slow

    def example(self, question):
        """(texts or a picture, its true label or None) of a list of texts, or of a picture's number. Raises Refused."""
        if self.pictures:
            most = len(self.pictures) - 1
            if type(question) is not int or not 0 <= question <= most:
                raise Refused(400, f"expected a picture's number from 0 to {most}")
            return self.pictures.examples[question], self.labels[self.pictures.labels[question]]
        fits = isinstance(question, list) and len(question) == self.fields
        if not fits or not all(isinstance(text, str) and text.strip() for text in question):
            raise Refused(400, f"expected texts that are not empty, one for each field: {self.fields}")
        # JSON can hold half a surrogate pair, which is no character: it becomes a question mark.
        return tuple(text.encode("utf-8", "replace").decode() for text in question), None

    def answer(self, example, truth=None):
        """What the page shows: {"models": a row for each, "tokens": a line for each way to cut, "summary": a line}."""
        return self.answers([(example, truth)])[0]

    def answers(self, asked):
        """`answer` to each (example, truth), computed together."""
        examples = [example[0] if self.fields == 1 else example for example, _ in asked]
        predictions, milliseconds = [], []
        for model in self.models:
            started = time.perf_counter()
            predictions.append(model.predict(examples))
            milliseconds.append(1000 * (time.perf_counter() - started) / len(asked))
        found = []
        for (example, truth), of_models in zip(asked, zip(*predictions)):
            rows = self.rows(of_models, milliseconds, truth)
            tokens = self.tokens(example) if self.fields else []
            found.append({"models": rows, "tokens": tokens, "summary": self.summary(rows)})
        return found

    def rows(self, of_models, milliseconds, truth):
        """A row for each model, of its (label, probabilities)."""
        rows, before = [], {}
        for model, size, (label, probabilities), took in zip(self.models, self.sizes, of_models, milliseconds):
            row = {
                "title": model.title,
                "parameters": size,
                "times_smaller": self.sizes[0] / size,
                "milliseconds": took,
            }
            teacher = teacher_of(model.title)
            row["is_after"] = teacher in before
            rows.append(row | compared(label, probabilities, before.get(teacher), truth))
            before.setdefault(teacher, (label, probabilities))
        return rows

    def summary(self, rows):
        """The predictions in one line."""
        predictions = [row["prediction"] for row in rows]
        if not self.labels:
            return f"scores from {min(predictions, key=float)} to {max(predictions, key=float)}"
        counts = collections.Counter(predictions).most_common()
        return ", ".join(f"{label}: {count} of {len(rows)} models" for label, count in counts)

    def tokens(self, texts):
        """How the texts are cut up, [{"models": titles, "tokens": [(token, is it unknown?)], "is_cut": bool}]; models of
        one tokeniser share a line."""
        cuts = []
        for those in self.by_tokenizer.values():
            tokens, is_cut = cut_up(those[0], texts)
            titles = ", ".join(model.title for model in those)
            cuts.append({"models": titles, "tokens": tokens, "is_cut": is_cut})
        return cuts


def teacher_of(title):
    """Of "teacher 2 before" and of "teacher 2 after metadistil" it is "teacher 2"; of a student its whole title."""
    return re.split(" before| after", title)[0]


def place_in_table(title):
    """The key to sort titles by: teachers first, each before its lessons and right below after them."""
    return title.startswith("student"), teacher_of(title), "after" in title, title


def compared(label, probabilities, before, truth):
    """A row's prediction, notes and bars. `before`: what the teacher's row before said, (label, probabilities), or
    None."""
    notes = ["right" if label == truth else "wrong"] if truth else []
    if before and before[0] != label:
        notes.append(f"before: {before[0] if probabilities else f'{before[0]:.2f}'}")
    names = list(probabilities)
    if len(names) > MOST_CLASSES:
        likeliest = sorted(names, key=probabilities.get, reverse=True)[:MOST_CLASSES]
        names = [*likeliest, truth] if truth and truth not in likeliest else likeliest
    classes = []
    for name in names:
        change = probabilities[name] - before[1][name] if before else None
        classes.append({"name": name, "probability": probabilities[name], "change": change})
    return {"prediction": label if probabilities else f"{label:.2f}", "notes": notes, "classes": classes}


def cut_up(model, texts):
    """([(token, is it unknown?)], whether the end is cut off). In place of an unknown token stands its word."""
    encoding = model.tokenizer.encode(*texts)
    unknown, tokens = getattr(model.tokenizer.model, "unk_token", None), []
    for token, which, (start, end) in zip(encoding.tokens, encoding.sequence_ids, encoding.offsets):
        is_unknown = token == unknown and which is not None  # which text, or None of a token between them
        tokens.append((texts[which][start:end] if is_unknown else token, is_unknown))
    return tokens, bool(encoding.overflowing)


def class_names(folder, count):
    """The names of CIFAR-100's classes where its folder has them, as many as expected; else none."""
    file = folder / "fine_label_names.txt"
    names = file.read_text(encoding="utf-8").replace("_", " ").splitlines() if file.is_file() else []
    return names if len(names) == count else []


def some_pictures(folder):
    """A random GALLERY_SIZE of the test set, the same each time. Raises InputError."""
    data.expect((folder / "test.bin").is_file(), f"{folder / 'test.bin'}: expected the pictures of the run there")
    test = data.read_pictures(folder / "test.bin")
    return test[np.random.default_rng(0).permutation(len(test))[:GALLERY_SIZE]]


# ---- The server


def digest(text):
    """A script or a style, as the policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# Nothing is loaded from elsewhere, and no script but SCRIPT runs.
POLICY = (
    f"default-src 'none'; script-src {digest(SCRIPT)}; style-src {digest(STYLE)}; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Server(http.server.ThreadingHTTPServer):
    """The page at "/" and answers at "/predict", on 127.0.0.1 alone. Raises OSError where the port is in use."""

    request_queue_size = 128  # connections that may wait; beyond the usual 5 a browser tries again a second later

    def __init__(self, demo, port):
        super().__init__(("127.0.0.1", port), Handler)
        self.demo, self.page = demo, page(demo).encode()
        self.hosts = [f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")]
        self.waiting = queue.SimpleQueue()  # of (example, truth) and the Future of its answer
        threading.Thread(target=self.compute, daemon=True).start()

    def compute(self):
        """Each request has a thread, but this one alone computes. What waits, it answers together: twenty texts in one
        batch take little longer than one."""
        while True:
            together = [self.waiting.get()]
            while not self.waiting.empty() and len(together) < MOST_TOGETHER:
                together.append(self.waiting.get())
            asked, futures = zip(*together)
            try:
                for future, answer in zip(futures, self.demo.answers(asked)):
                    future.set_result(answer)
            except Exception as error:
                for future in futures:
                    future.set_exception(error)

    def answer(self, example, truth):
        """Wait for the answer of `compute`."""
        future = concurrent.futures.Future()
        self.waiting.put(((example, truth), future))
        return future.result()

    def handle_error(self, request, client_address):
        """A browser that goes away before its answer comes is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    timeout = 10  # seconds that it may stand still

    def do_GET(self):
        """The page."""
        self.reply("/", "text/html", lambda: self.server.page)

    def do_POST(self):
        """An answer."""
        self.reply("/predict", "application/json", self.answer)

    def answer(self):
        """The answer to the question in the body, as JSON. Raises Refused."""
        example = self.server.demo.example(self.question())
        return json.dumps(self.server.answer(*example)).encode()

    def question(self):
        """The body, read as JSON. Raises Refused."""
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,15}", length):
            raise Refused(400, "expected a Content-Length")
        if int(length) > LONGEST_BODY:
            raise Refused(413, f"expected at most {LONGEST_BODY:,} bytes, found {int(length):,}")
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise Refused(400, "expected JSON") from None

    def reply(self, path, kind, content):
        """Send what `content` returns; or {"error": ...} if it refuses, or if another path or host was asked."""
        try:
            # A site may give its own name this computer's address (DNS rebinding). Then the browser sends that name.
            if self.headers.get("Host") not in self.server.hosts:
                raise Refused(403, f"expected the host {' or '.join(self.server.hosts)}")
            if self.path != path:
                raise Refused(404, 'expected "/" or "/predict"')
            status, body = 200, content()
        except Refused as refused:
            status, message = refused.args
            kind, body = "application/json", json.dumps({"error": message}).encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Print nothing."""


def main(arguments=None):
    """The command line. What a user can mend ends in one line and exit status 2."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("run", metavar="RUN", help="the directory of a run of train.py")
    flags.add_argument("--port", type=int, default=8000, metavar="N", help="0 takes a free one [8000]")
    flags.add_argument("--no-browser", action="store_true", help="open no browser")
    flags.error = lambda message: flags.exit(2, f"demo.py: {message}\n")  # without the usage, one line
    given = flags.parse_args(arguments)
    torch.set_num_threads(1)  # a few sentences are too little work to share
    try:
        demo = Demo(given.run)
        try:
            server = Server(demo, given.port)
        except (OSError, OverflowError) as error:
            raise data.InputError(f"--port {given.port}: expected a free port, or 0; {error}") from None
        address = f"http://127.0.0.1:{server.server_port}/"
        print(f"{address}  (Ctrl-C ends it)", flush=True)
        if not given.no_browser:
            webbrowser.open(address)
        server.serve_forever()
    except (data.InputError, models.CheckpointError, OSError) as error:
        print(f"demo.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        os._exit(130)  # at once: in an orderly end, a thread that still answers can make the process abort


if __name__ == "__main__":
    main()

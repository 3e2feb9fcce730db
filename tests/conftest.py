"""The four modules stand beside this directory; a few words serve every test."""

import http.server
import json
import sys
import threading
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


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


def shaken(module, scale=0.1):
    """The module with random, non-zero, non-symmetric parameters: on tidy ones a wrong gradient can hide."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


def pytest_configure(config):
    """torch's own forward-mode rules use a function that torch itself calls deprecated."""
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit.script` is deprecated:DeprecationWarning")


BERT_NAMES = {
    "words": "embeddings.word_embeddings", "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings", "norm": "embeddings.LayerNorm", "pooler": "pooler.dense",
    "query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value",
    "output": "attention.output.dense", "attention_norm": "attention.output.LayerNorm",
    "feed_in": "intermediate.dense", "feed_out": "output.dense", "feed_norm": "output.LayerNorm",
    "blocks": "encoder.layer",
}  # fmt: skip


def save_checkpoint(directory, model, tokenizer=None):
    """An Encoder in the published format of BERT, as pytorch_model.bin; with the tokeniser's own file, if there is one."""
    directory.mkdir(exist_ok=True)
    shape = model.config
    config = {"model_type": "bert", "hidden_act": "gelu", "vocab_size": shape.vocab_size, "hidden_size": shape.hidden,
              "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
              "intermediate_size": shape.intermediate, "max_position_embeddings": shape.max_positions}  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    published = {}
    for name, tensor in model.state_dict().items():
        name = ".".join(BERT_NAMES.get(part, part) for part in name.split("."))
        published[name if name.startswith("classifier") else "bert." + name] = tensor
    torch.save(published, directory / "pytorch_model.bin")
    if tokenizer:
        tokenizer.save(str(directory / "tokenizer.json"))
    return directory

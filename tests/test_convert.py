"""weights/convert.py as its users run it, what a pickle may not do,
and the download by name from a hub of our own.
"""

import hashlib
import http.server
import json
import os
import pickle
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import minibert
from minibert.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from minibert.hub.load_save import load, save
from minibert.model.config import Config
from minibert.model.init import init_weights
from minibert.model.heads import MaskedLM, PreTraining
from scripts import convert

ROOT = Path(__file__).resolve().parents[1]
CONFIG = Config(vocab_size=40, hidden_size=16, layers=2, heads=2, intermediate_size=24, max_positions=20)
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def model():
    """A language model of 40 words."""
    return init_weights(MaskedLM(CONFIG), torch.Generator().manual_seed(0)).eval()


def tokenizer():
    """Its tokenizer."""
    pieces = [*SPECIAL_TOKENS, *"abcdefghijklmnopq", *(f"##{c}" for c in "abcdefghijklmnopqr")]
    return Tokenizer({piece: i for i, piece in enumerate(pieces)})


def as_bin(folder, content=None):
    """Turns a saved folder into one of old: pytorch_model.bin and no safetensors."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors if content is None else content, folder / "pytorch_model.bin")
    return tensors


def same(a, b):
    """Whether two models have the same tensors to the bit."""
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


def test_from_anywhere(tmp_path, model):
    save(model, tmp_path / "source", tokenizer())
    as_bin(tmp_path / "source")
    command = [sys.executable, str(ROOT / "weights/convert.py")]
    environment = {key: value for key, value in ENVIRONMENT.items() if key != "PYTHONPATH"}
    run = dict(cwd=tmp_path, env=environment, capture_output=True, text=True)
    done = subprocess.run([*command, "source", "target", "--dtype", "bf16"], **run)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("target: bert, mlm, ") and done.stderr == ""
    assert same(load(tmp_path / "target"), model.to(torch.bfloat16).float())
    assert minibert.load_tokenizer(tmp_path / "target").sha256 == tokenizer().sha256


def test_help_and_errors(tmp_path, monkeypatch, capsys):
    assert convert(monkeypatch, "--help") == 0
    assert capsys.readouterr().out.count("python weights/convert.py ") >= 3
    assert convert(monkeypatch, "anything", tmp_path.parent) == 2
    assert capsys.readouterr().err == (f"error: {tmp_path.parent} exists already; name another folder, "
                                       "or remove it first\n")
    assert convert(monkeypatch, tmp_path / "nothing", tmp_path / "target") == 2
    assert convert(monkeypatch, "someone/nothing", tmp_path / "target") == 2  # no network in tests
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: ") and "is neither a folder" in first
    assert second.startswith("error: ") and "could not be downloaded" in second


def test_heads(tmp_path, model, monkeypatch, capsys):
    save(model, tmp_path / "source")
    assert convert(monkeypatch, tmp_path / "source", tmp_path / "target") == 0
    assert "no tokenizer" in capsys.readouterr().out
    assert same(load(tmp_path / "target"), model)
    assert convert(monkeypatch, tmp_path / "target", tmp_path / "encoder", "--head", "encoder") == 0
    assert same(load(tmp_path / "encoder"), model.encoder)


@pytest.mark.parametrize("options", [(), ("--layers", "1", "--feed-forward", "20")])
def test_a_pooler_and_nsp_are_kept(options, tmp_path, monkeypatch):
    """Where config.json says BertForMaskedLM, as that of bert-base-uncased does; also in what is cut out."""
    model = init_weights(PreTraining(CONFIG), torch.Generator().manual_seed(0))
    save(model, tmp_path / "source", tokenizer())
    raw = json.loads((tmp_path / "source/config.json").read_text())
    (tmp_path / "source/config.json").write_text(json.dumps(raw | {"architectures": ["BertForMaskedLM"]}))
    as_bin(tmp_path / "source")
    assert convert(monkeypatch, tmp_path / "source", tmp_path / "target", *options) == 0
    raw = json.loads((tmp_path / "target/config.json").read_text())
    assert raw["architectures"] == ["BertForMaskedLM"]
    found = load(tmp_path / "target", "pretraining")
    assert torch.equal(found.encoder.pooler.weight, model.encoder.pooler.weight)
    assert torch.equal(found.nsp.weight, model.nsp.weight)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        load(tmp_path / "target", "classification", labels=("a", "b"))
    assert [str(w.message).rpartition("weights: ")[2] for w in told] == ["classifier.weight, classifier.bias"]


def test_sharded_pickles(tmp_path, model, monkeypatch):
    save(model, tmp_path / "source")
    tensors = as_bin(tmp_path / "source")
    (tmp_path / "source/pytorch_model.bin").unlink()
    names = list(tensors)
    shards = {"pytorch_model-00001-of-00002.bin": names[:9], "pytorch_model-00002-of-00002.bin": names[9:]}
    for file, held in shards.items():
        torch.save({name: tensors[name] for name in held}, tmp_path / "source" / file)
    weight_map = {name: file for file, held in shards.items() for name in held}
    (tmp_path / "source/pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert convert(monkeypatch, tmp_path / "source", tmp_path / "target") == 0
    assert same(load(tmp_path / "target"), model)


class Code:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_does_not_run(zipped, tmp_path, model, monkeypatch, capsys):
    save(model, tmp_path / "source")
    as_bin(tmp_path / "source", content={"bert.embeddings.LayerNorm.weight": Code(tmp_path / "ran")})
    if not zipped:
        (tmp_path / "source/pytorch_model.bin").write_bytes(pickle.dumps({"a": Code(tmp_path / "ran")}, 2))
    assert convert(monkeypatch, tmp_path / "source", tmp_path / "target") == 2
    said = capsys.readouterr().err
    assert "holds more than tensors: reading it would run" in said
    assert "pytorch_model.bin" in said and "weights_only" not in said
    assert not (tmp_path / "ran").exists() and not (tmp_path / "target").exists()


@pytest.mark.parametrize("content", [b"", b"not a pickle", [torch.zeros(2)], {"a": "text"}])
def test_pickles_that_are_no_weights(content, tmp_path, model, monkeypatch, capsys):
    save(model, tmp_path / "source")
    as_bin(tmp_path / "source", content)
    if isinstance(content, bytes):
        (tmp_path / "source/pytorch_model.bin").write_bytes(content)
    assert convert(monkeypatch, tmp_path / "source", tmp_path / "target") == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("odd", [
    lambda t: torch.zeros(1).expand(2**20, 2**20),  # four bytes in the file, four terabytes once copied
    lambda t: torch.empty(t.shape, device="meta"),
    lambda t: t.to_sparse(),
])
def test_tensors_whose_values_are_not_in_the_file(odd, tmp_path, model, monkeypatch, capsys):
    save(model, tmp_path / "source")
    tensors = load_file(tmp_path / "source" / "model.safetensors")
    name = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    as_bin(tmp_path / "source", tensors | {name: odd(tensors[name])})
    assert convert(monkeypatch, tmp_path / "source", tmp_path / "target") == 2
    assert "not a plain tensor" in capsys.readouterr().err


class Hub(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks for when it downloads a snapshot:
    the repository's files, and each of them.
    """

    root = None  # owner/name/files
    sha = "0123456789abcdef0123456789abcdef01234567"
    asked = []

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0].strip("/")
        self.asked.append(path)
        api, resolve = path.removeprefix("api/models/"), path.split("/resolve/")
        repository = resolve[0] if len(resolve) == 2 else "/".join(api.split("/")[:2])
        folder = self.root / repository
        if not folder.is_dir():
            return self.answer(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        if len(resolve) == 2:
            content = (folder / resolve[1].split("/", 1)[1]).read_bytes()
            digest = hashlib.sha1(content).hexdigest()
            return self.answer(200, content, {"X-Repo-Commit": self.sha, "ETag": f'"{digest}"'})
        files = sorted(file for file in folder.iterdir())
        if "/tree/" in path:
            listing = [{"type": "file", "path": f.name, "size": f.stat().st_size,
                        "oid": hashlib.sha1(f.read_bytes()).hexdigest()} for f in files]
        else:
            listing = {"id": repository, "sha": self.sha, "siblings": [{"rfilename": f.name} for f in files]}
        return self.answer(200, json.dumps(listing).encode(), {"Content-Type": "application/json"})

    def answer(self, status, content, headers):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    """A server that plays the hub: its address, and the list of what it was asked for."""
    Hub.root, Hub.asked = tmp_path / "hub", []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", Hub.asked
    server.shutdown()
    server.server_close()


def test_download_by_name(hub, tmp_path, model):
    """In a process of its own, since huggingface_hub reads its environment when it is imported."""
    save(model, tmp_path / "hub/someone/tiny", tokenizer())
    save_file({"a": torch.zeros(1)}, tmp_path / "hub/someone/tiny/other.safetensors")
    (tmp_path / "hub/someone/tiny/added_tokens.json").write_text("{}")
    save(model, tmp_path / "hub/someone/old")
    as_bin(tmp_path / "hub/someone/old")
    code = """
import torch, minibert
from minibert.hub.load_save import load
assert minibert.load_tokenizer("someone/tiny").vocab_size == 40
model = minibert.load("someone/tiny")
print(sum(p.double().sum().item() for p in model.parameters()))
for name in "someone/old", "someone/nothing", "no such name!":
    try:
        minibert.load(name)
    except minibert.UserError as error:
        print(str(error).replace("\\n", " // "))
print(type(load("someone/old", legacy_bin=True)).__name__)
"""
    address, asked = hub
    environment = ENVIRONMENT | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"),
                                 "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                                 "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
                                 "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    total, old, nothing, odd, kind = done.stdout.splitlines()
    assert float(total) == pytest.approx(sum(p.double().sum().item() for p in model.parameters()), abs=1e-12)
    assert "holds only pickled weights" in old and kind == "MaskedLM"
    assert nothing == ("there is no folder someone/nothing here, and no model of this name on the hub "
                       "that you may read")
    assert odd == "no such name! is neither a folder nor the name of a model on the hub"
    assert not [path for path in asked if "other.safetensors" in path], (
        "a file that is not the model's was fetched")
    assert [path for path in asked if "added_tokens.json" in path]

    offline = """
from minibert.common.hub_download import local_folder
print(len(list(local_folder("someone/tiny").glob("model.safetensors"))))
try:
    local_folder("someone/else")
except Exception as error:
    print(error)
"""
    environment |= {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", offline], env=environment, cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cached, absent = done.stdout.splitlines()
    assert cached == "1"
    assert absent.startswith("there is no folder someone/else here, "
                             "and it could not be downloaded from the hub (")


def test_what_is_not_needed_is_not_imported():
    """The package's names come on first use, so that the processes of data/prepare.py start without torch;
    a model is loaded without torch's compiler, which takes longer than the weights.
    """
    folder = str(ROOT / "weights/teacher")
    code = f"import sys, minibert; minibert.load_tokenizer({folder!r}); print('torch' in sys.modules); " \
           f"minibert.load({folder!r}); print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stdout == "False\nFalse\n", done.stderr

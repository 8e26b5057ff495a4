"""Tests of the ONNX export: padded and packed outputs are equal, also in ONNX Runtime; errors are one
sentence.
"""

import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import minibert
from minibert.common.errors import UserError
from minibert.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from minibert.hub import onnx_export
from minibert.hub.load_save import load_config, save
from minibert.hub.onnx_export import Padded, on_tokens, packed_outputs, pad, samples, save_onnx
from minibert.model.config import Config
from minibert.model.encoder import Encoder
from minibert.model.heads import Classifier, MaskedLM, PreTraining, Span
from minibert.tasks import onnx_scores
from scripts import convert

ROOT = Path(__file__).parents[2]
HEADS = [Encoder, MaskedLM, Classifier, Span]
FAMILIES = ["bert", "distilbert"]


def small(head, family, layers=2):
    """A model with random weights, biases and norms. With zeros and ones, a missing term would not be
    noticed.
    """
    config = Config(architecture=family, segments=2 if family == "bert" else 0, vocab_size=60, hidden_size=24,
                    layers=layers, heads=3, intermediate_size=40, max_positions=32, pad_id=3)
    model = head(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


def tokenizer():
    """A tokenizer with 60 pieces."""
    pieces = [*SPECIAL_TOKENS, *(chr(97 + i) for i in range(26)), *(f"##{chr(97 + i)}" for i in range(26))]
    return Tokenizer({piece: i for i, piece in enumerate(pieces[:60])})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", HEADS)
def test_padded_equals_packed(head, family):
    model = small(head, family)
    for batch, length in samples(model):
        ids, mask, segments = pad(batch, 3, length)
        for other in (0, 59):  # what stands at padding must not matter
            ids[mask == 0] = other
            with torch.no_grad():
                found = on_tokens(model, Padded(model)(ids, mask, segments), mask)
            expected = packed_outputs(model, batch)
            assert len(found) == len(expected) == (2 if head is Span else 1)
            for ours, theirs in zip(expected, found):
                torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


def test_samples_have_several_shapes_and_padding():
    shapes = [(len(batch.lengths), length, int(batch.lengths.min()))
              for batch, length in samples(small(Span, "bert"))]
    assert {number for number, _, _ in shapes} == {1, 2, 3}
    assert {1, 20} <= {length for _, length, _ in shapes}
    assert any(shortest < length - 1 for _, length, shortest in shapes)


def test_a_row_of_padding_alone_is_no_nan():
    model = small(Classifier, "bert")
    ids, mask = torch.ones(2, 4, dtype=torch.int64), torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]])
    with torch.no_grad():
        assert Padded(model)(ids, mask, torch.zeros_like(ids))[0].isfinite().all()


def check_folder(model, folder):
    """Checks the file of a folder with more inputs than the export itself uses."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    bert = model.config.architecture == "bert"
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if bert else [])]
    assert [i.name for i in session.get_inputs()] == names
    assert all(i.shape == ["batch", "length"] for i in session.get_inputs())
    head = {Encoder: ["last_hidden_state"], Span: ["start_logits", "end_logits"]}.get(type(model), ["logits"])
    assert [o.name for o in session.get_outputs()] == head
    for lengths in ((1,), (32,), (5, 11), (20, 1, 9)):
        sequences = [np.random.randint(60, size=n).tolist() for n in lengths]
        batch = minibert.pack(sequences, [[int(bert and i > 2) for i in range(n)] for n in lengths])
        inputs = pad(batch, model.config.pad_id, max(lengths))
        out = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs)})
        for ours, theirs in zip(packed_outputs(model, batch), on_tokens(model, out, inputs[1])):
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


def test_converted_folder(tmp_path, monkeypatch, capsys):
    """Only the head with the tied table is exported here, because each export takes long."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    pytest.importorskip("torch", "2.13")
    model, target = small(MaskedLM, "bert", layers=1), tmp_path / "target"
    save(model, tmp_path / "source", tokenizer())
    assert convert(monkeypatch, tmp_path / "source", target, "--to", "onnx") == 0
    said = capsys.readouterr()
    assert "bert, mlm, " in said.out and "in ONNX Runtime differ by at most" in said.out and said.err == ""
    assert {path.name for path in target.iterdir()} == {"config.json", "model.onnx", "tokenizer.json",
                                                        "tokenizer_config.json", "vocab.txt"}
    assert load_config(target) == model.config
    assert json.loads((target / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]
    assert minibert.load_tokenizer(target).sha256 == tokenizer().sha256
    check_folder(model, target)

    page = (ROOT / "docs" / "inference.md").read_text(encoding="utf-8")
    lines, = re.findall(r"^```python\n(import numpy.*?)^```", page, re.DOTALL | re.MULTILINE)
    names: dict = {}
    exec(lines.replace("runs/reviews/onnx", str(target)), names)  # the page's way to use such a folder
    ids, _ = tokenizer().encode(["What a film.", "Never again."])
    for row, sequence in zip(names["logits"], ids, strict=True):
        torch.testing.assert_close(torch.from_numpy(row[:len(sequence)]), model(minibert.pack([sequence])),
                                   rtol=1e-4, atol=1e-5)

    content = (target / "model.onnx").read_bytes()
    assert str(ROOT).encode() not in content and b"onnx_export.py" not in content, "a path of this machine"
    proto = onnx.load(target / "model.onnx")
    onnx.checker.check_model(proto, full_check=True)
    tables = {tensor.name for tensor in proto.graph.initializer if 60 in tensor.dims and 24 in tensor.dims}
    turned = [node for node in proto.graph.node if node.op_type == "Transpose" and node.input[0] not in tables
              and node.input[0] in {tensor.name for tensor in proto.graph.initializer}]
    assert not turned, "a weight is transposed at every call"


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", HEADS)
def test_every_head_in_onnx_runtime(head, family, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    pytest.importorskip("torch", "2.13")
    model = small(head, family)
    assert save_onnx(model, tmp_path) <= 1e-5
    check_folder(model, tmp_path)


def test_a_file_that_differs_gets_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "packages", lambda: None)
    monkeypatch.setattr(onnx_export, "write_onnx", lambda model, path: path.write_bytes(b"something"))
    for apart in (1e-3, float("nan")):
        monkeypatch.setattr(onnx_export, "deviation", lambda model, path: apart)
        with pytest.raises(UserError, match="differs"):
            save_onnx(small(Span, "bert"), tmp_path)
        assert not list(tmp_path.iterdir())


def test_errors_are_one_sentence(tmp_path, monkeypatch, capsys):
    save(small(Span, "bert"), tmp_path / "source")
    command = (tmp_path / "source", tmp_path / "target", "--to", "onnx")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnx", None)
        assert convert(monkeypatch, *command) == 2
    assert "the package onnx," in capsys.readouterr().err
    monkeypatch.setattr(onnx_export, "packages", lambda: None)
    assert convert(monkeypatch, *command, "--dtype", "fp16") == 2
    assert "--dtype fp16" in capsys.readouterr().err
    with pytest.raises(UserError, match="pretraining"):
        save_onnx(small(PreTraining, "bert"), tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_int8_is_judged_before_it_gets_its_name(tmp_path, monkeypatch, capsys):
    """The first export is kept. The second one has a limit that no file can meet."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    pytest.importorskip("torch", "2.13")
    source, target = tmp_path / "source", tmp_path / "target"
    model = small(Classifier, "bert", layers=1)
    model.config = dataclasses.replace(model.config, labels=("b", "a"))
    save(model, source, tokenizer())
    rows = "".join(f"{'abcd'[i % 4:]} {'hello'[i % 5:]},{'ab'[i % 2]}\n" for i in range(30))
    (tmp_path / "rows.csv").write_text("text,label\n" + rows)
    command = ("--to", "onnx", "--int8", "--task", tmp_path / "rows.csv", "--most-loss")
    assert convert(monkeypatch, source, target, *command, "100", "--reduce-range") == 0
    said = capsys.readouterr().out
    pattern = r"rows.csv, 30 examples: accuracy [\d.]+ in fp32 and [\d.]+ in int8, .*answers changed\n"
    assert re.search(pattern, said)
    assert "weights of 7 bits" in said
    assert {"config.json", "model_quantized.onnx"} < {path.name for path in target.iterdir()}
    assert not (target / "model.onnx").exists()
    weights = [onnx.numpy_helper.to_array(tensor)
               for tensor in onnx.load(target / "model_quantized.onnx").graph.initializer
               if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2]
    products = [weight for weight in weights if 60 not in weight.shape]
    assert len(products) >= 6 and max(int(abs(weight.astype(int)).max()) for weight in products) == 64

    file = (target / "model_quantized.onnx").read_bytes()
    monkeypatch.setattr(onnx_export, "write_onnx", lambda model, path: path.write_bytes(b""))
    monkeypatch.setattr(onnx_export, "quantize_file",
                        lambda source, path, reduce_range: path.write_bytes(file))
    monkeypatch.setattr(onnx_export, "deviation", lambda model, path: 0.0)
    assert convert(monkeypatch, source, tmp_path / "other", *command, "-200") == 2
    assert "points of accuracy, more than --most-loss -200; nothing was saved" in capsys.readouterr().err
    assert not list((tmp_path / "other").iterdir())

    longest, judge = [], onnx_scores.judge
    monkeypatch.setattr(onnx_scores, "judge", lambda model, task, split, runtime: (
        longest.append(split.examples.lengths.max()), judge(model, task, split, runtime))[1])
    for words in ((), ("--max-length", "4")):
        convert(monkeypatch, source, tmp_path / f"cut{len(words)}", *command, "100", *words)
    assert longest[0] > 4 == longest[1]


def test_options_of_int8_alone(tmp_path, monkeypatch, capsys):
    save(small(Classifier, "bert"), tmp_path / "source")
    for words in (("--int8",), ("--to", "onnx", "--task", "mrpc"), ("--to", "onnx", "--reduce-range")):
        assert convert(monkeypatch, tmp_path / "source", tmp_path / "target", *words) == 2
        assert "--int8" in capsys.readouterr().err
    for words in (("--data", "data"), ("--max-length", "0")):
        assert convert(monkeypatch, tmp_path / "source", tmp_path / "target", "--to", "onnx", "--int8",
                       *words) == 2
        assert f"{words[0]} has no effect without --task" in capsys.readouterr().err
    monkeypatch.setattr(onnx_export, "packages", lambda: None)
    command = ("--to", "onnx", "--int8", "--task", "mrpc", "--data", tmp_path)
    assert convert(monkeypatch, tmp_path / "source", tmp_path / "target", *command) == 2
    assert "has no tokenizer, so it cannot be evaluated on --task" in capsys.readouterr().err

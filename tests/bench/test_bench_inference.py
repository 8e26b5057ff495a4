"""bench.py inference at its smallest: the table, one JSON document as the last line, quality, bad options."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import minibert
from minibert.bench import inference, engines
from minibert.bench.engines import ENGINES, in_padded_batches, why_not, write_files
from minibert.bench.inference import InferenceBench, figures, material, quality
from minibert.common.errors import UserError
from minibert.common.runtime import start
from minibert.model.config import preset
from minibert.model.init import init_weights
from minibert.model.heads import Classifier
from scripts import run_bench

ROOT = Path(__file__).parents[2]
TEACHER = str(ROOT / "weights" / "teacher")
CPU = torch.device("cpu")


run = partial(run_bench, "inference")


@pytest.fixture
def mrpc(tmp_path):
    rows = "\n".join(f"{k % 2}\t1\t2\tthe text number {k} is here\ta text is " + "long " * k
                     for k in range(6))
    (tmp_path / "dev.tsv").write_text("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n" + rows + "\n")
    return tmp_path


@pytest.fixture
def tuned(tmp_path):
    config = replace(preset("bert-L2-H128"), vocab_size=8192, labels=("not_equivalent", "equivalent"))
    model = init_weights(Classifier(config)).eval()
    with torch.no_grad():
        model.classifier.weight.mul_(50)
    minibert.save(model, tmp_path / "tuned", minibert.load_tokenizer(TEACHER))
    return tmp_path / "tuned", model


@pytest.mark.slow
def test_a_preset_ends_with_json(monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys, "--models", "bert-L2-H128", "--examples", 3, "--batch", 2,
                         "--turns", 1, "--threads", 1, "--engines", "minibert fp32")
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])["results"][0]
    fast = result["engines"]["minibert fp32"]
    assert result["threads"] == 1 and "3 examples" in out
    assert 0 < fast["latency"]["median"] <= fast["latency"]["p99"] and fast["sentences_per_second"] > 0
    assert fast["logit_change"] == 0 and fast["times_as_fast"] == 1


def test_quality_of_a_tuned_model(mrpc, tuned, capsys):
    folder, model = tuned
    found = quality(str(folder), "mrpc", str(mrpc), 128, None, start("cpu", "fp32", 1))
    assert found["minibert"]["largest_logit_change"] == 0 and "largest logit" in capsys.readouterr().out
    assert found["minibert fp32"]["accuracy"] == found["minibert"]["accuracy"]
    if why_not("minibert int8", CPU) is None:
        texts = [line.split("\t")[3:] for line in (mrpc / "dev.tsv").read_text().splitlines()[1:]]
        exact, rough = (minibert.predict(one, minibert.load_tokenizer(TEACHER), *map(list, zip(*texts)))
                        for one in (model, minibert.fast(model, "int8")))
        assert found["minibert int8"]["largest_logit_change"] == pytest.approx(
            float(abs(exact - rough).max()), rel=1e-3)
        assert found["minibert int8"]["largest_logit_change"] > 1e-3


@pytest.mark.parametrize("name", ["bert-L2-H128", "distilbert"])
@pytest.mark.parametrize("engine", [  # those that need an ONNX export or a conversion take seconds
    name if name.startswith("minibert") else pytest.param(name, marks=pytest.mark.slow)
    for name in ENGINES if "compiled" not in name])
def test_every_engine_here_computes_the_same(tmp_path, monkeypatch, engine, name):
    if why_not(engine, CPU):
        pytest.skip(why_not(engine, CPU))
    config = replace(preset(name), vocab_size=8192, hidden_size=64, layers=2, heads=2, intermediate_size=96)
    model = init_weights(Classifier(config)).eval()
    with torch.no_grad():
        model.classifier.weight.mul_(20)
    ids = [torch.randint(5, 8192, (n,)).tolist() for n in (9, 3, 14, 3, 8, 20, 4, 4, 11, 7)]  # two batches
    segments = [[0] * (len(one) // 2) + [1] * (len(one) - len(one) // 2) for one in ids]
    write_files(model, minibert.load_tokenizer(TEACHER), tmp_path, [engine], (ids, segments))
    with torch.no_grad():
        expected = model(minibert.pack(ids, segments)).numpy()
    found = ENGINES[engine](tmp_path, CPU)(ids, segments)
    tolerance = {"int8": 3e-2, "bf16": 4e-3, "fp16": 2e-3}.get(engine.split()[-1], 1e-5)
    if engine == "openvino int8":  # one scale for all tokens, and scales from ten sentences
        tolerance = 0.2
    if engine == "transformers bf16":  # its hidden states and logits are bf16, too: 8 bits through every sum
        tolerance = 2e-2
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(1, abs(expected).max()))


def test_padded_batches_come_back_in_order():
    seen = []

    def run(ids, segments):
        seen.append([len(one) for one in ids])
        return np.array([[one[0]] for one in ids])
    ids = [[i] * n for i, n in enumerate([9, 1, 5, 4, 8, 2, 7, 3, 6, 10])]
    assert in_padded_batches(run, ids, ids)[:, 0].tolist() == list(range(10))
    assert seen == [[1, 2, 3, 4, 5, 6, 7, 8], [9, 10]]


def test_the_figures_by_hand():
    turns = [{"alone": [1.0, 3.0], "together": 0.5}, {"alone": [2.0, 4.0], "together": 0.25}]
    found = figures(turns, 7, 10.0, 5.0, 4.0, batch=2)
    assert found["latency"]["median"] == 2.5 and found["pass"] == 5 and found["pass_spread"] == [4, 6]
    assert found["sentences_per_second"] == 2 / 0.375 and found["spread"] == [4, 8]
    assert found["share_of_peak"] == [10 / 5 / 4, 5 / 0.375 / 4] and found["peak_memory_bytes"] == 7


def test_lengths_without_data_are_like_those_of_stsb():
    ids, _ = material(InferenceBench(examples=2000), minibert.load_tokenizer(TEACHER))
    assert 27 < np.median([len(one) for one in ids]) < 31 and max(map(len, ids)) <= 128


@pytest.mark.parametrize("words, says", [
    ("--turns 0", "--turns"),
    ("--models nothing/here --data x", "nothing/here"),
    ("--models nothing/here", "--data"),
])
def test_bad_options_are_one_sentence(monkeypatch, capsys, words, says):
    code, _, err = run(monkeypatch, capsys, *words.split())
    assert code == 2 and says in err and err.count("\n") == 1


def test_wrong_data_is_said_before_files_are_made(monkeypatch):
    monkeypatch.setattr(inference, "write_files", lambda *_: pytest.fail("files were made"))
    with pytest.raises(UserError, match="stsb --out data"):
        inference.bench_inference(InferenceBench(models=("bert-L2-H128",), data="nothing",
                                                       engines=("minibert fp32",), tokenizer=TEACHER))


def test_who_cannot_take_part(monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: name)
    assert why_not("onnxruntime fp32", torch.device("cuda")) == "this engine is measured on CPUs only"
    assert why_not("onnxruntime fp32", CPU) is None
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    assert why_not("ctranslate2 int8", CPU) == "ctranslate2 is not installed"
    assert why_not("minibert fp32", CPU) is None
    monkeypatch.setattr(inference, "why_not", lambda *_: "no")
    with pytest.raises(UserError, match="none of the engines"):
        inference.bench_inference(InferenceBench(models=("bert-L2-H128",)))

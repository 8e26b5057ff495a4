"""bench.py size: counts held to the reference's and to torch's, published figures, folders, bad options."""

import json
from functools import partial

import pytest

from minibert.bench.flops import encoder_flops
from minibert.bench.size import PUBLISHED, count, size_of
from minibert.hub.load_save import save
from minibert.model.config import PRESETS, Config, preset
from minibert.model.heads import Classifier, MaskedLM, PreTraining
from minibert.model.init import init_weights, on_meta
from scripts import run_bench

run = partial(run_bench, "size")


def test_parameters_are_those_of_the_reference():
    # BertModel with pooler, BertForPreTraining, DistilBertForMaskedLM, TinyBERT's BertModel
    row = size_of("bert-base", 128)
    assert row["parameters"] == 109_482_240
    assert row["parameters"] - row["without_embeddings"] == (30522 + 512 + 2) * 768
    assert count(on_meta(PreTraining, preset("bert-base"))) == 110_106_428
    assert count(on_meta(MaskedLM, preset("distilbert"))) == 66_985_530
    assert size_of("tinybert-4", 128)["parameters"] == 14_350_248


def test_every_preset_on_the_command_line(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys)
    rows = {row["model"]: row for row in json.loads(out.splitlines()[-1])["models"]}
    assert code == 0 and [*rows] == list(PRESETS) and "FLOPs = 2 T L" in out
    apart = {name: rows[name]["parameters"] / rows[name]["published_parameters"] - 1 for name in PUBLISHED}
    assert 0.02 < apart.pop("mobilebert-tiny") < 0.03  # why is not known
    assert max(map(abs, apart.values())) < 0.02
    for name, (_, billions) in PUBLISHED.items():
        if billions:  # TinyBERT's own figure is that of the formula alone
            flops = rows[name]["flops" if name == "tinybert-4" else "flops_with_d_x_d"]
            assert round(flops / 1e9, 1) == billions, name


def test_a_folder_is_counted_with_its_head(monkeypatch, capsys, tmp_path):
    config = Config(vocab_size=60, hidden_size=24, layers=2, heads=3, intermediate_size=40, max_positions=32)
    model = init_weights(Classifier(config))
    save(model, tmp_path / "model")
    code, out, _ = run(monkeypatch, capsys, tmp_path / "model", "minibert-teacher", "--length", "33")
    folder, teacher = json.loads(out.splitlines()[-1])["models"]
    assert code == 0 and folder["head"] == "classification" and "(classification)" in out
    assert folder["parameters"] == sum(p.numel() for p in model.parameters())
    assert folder["flops"] is None and teacher["flops"] == encoder_flops(preset("minibert-teacher"), 33)


@pytest.mark.parametrize("words, says", [
    ("bert-huge", "bert-huge"),
    ("--length 0", "--length"),
    ("{empty}", "config.json"),
])
def test_bad_options_are_one_sentence(monkeypatch, capsys, tmp_path, words, says):
    code, _, err = run(monkeypatch, capsys, *words.format(empty=tmp_path).split())
    assert code == 2 and says in err and err.count("\n") == 1

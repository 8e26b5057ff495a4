"""Cutting a smaller model out of a larger one: what is kept is kept exactly."""

from dataclasses import replace

import pytest
import torch

import minibert
from minibert.common.errors import UserError
from minibert.data.tokenizer import Tokenizer, train_tokenizer
from minibert.hub.prune import change_vocabulary, keep_layers, keep_positions, keep_units
from minibert.model.config import MobileConfig
from minibert.model.init import init_weights
from minibert.model.encoder import Encoder
from minibert.model.heads import Classifier, MaskedLM, PreTraining, Span, build_encoder
from scripts import convert

OLD = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", "##s", "the", "p", "##l"]
MOBILE = MobileConfig(hidden_size=20, layers=1, heads=3, intermediate_size=16, max_positions=32,
                      embedding_size=7, bottleneck_size=12)
NEW = ["[PAD]", "[UNK]", "[CLS]", "[MASK]", "[SEP]", "playing", "the", "##ing", "zzz"]


def random_model(config, kind=MaskedLM):
    model = init_weights(build_encoder(config, pooler=config.architecture != "distilbert") if kind is Encoder
                         else kind(config)).eval()
    for p in model.parameters():
        p.data += 0.3 * torch.randn_like(p)
    return model


def test_layers_are_kept_in_order(tiny_config, random_batch):
    model, batch = random_model(tiny_config), random_batch([5, 3])
    with torch.no_grad():
        assert torch.equal(keep_layers(model, [0, 1])(batch), model(batch))
        first = keep_layers(model, [0])
        assert torch.equal(first.encoder(batch), model.encoder.trace(batch).hiddens[1])
        assert torch.equal(first.mlm.dense.weight, model.mlm.dense.weight)
    with pytest.raises(UserError, match="0 to 1"):
        keep_layers(model, [2])


KINDS = {"bert": (Encoder, MaskedLM, PreTraining, Classifier, Span),
         "distilbert": (Encoder, Classifier, Span), "mobilebert": (Encoder, Classifier, Span)}


@pytest.mark.parametrize("architecture, kind", [(name, kind) for name in KINDS for kind in KINDS[name]])
def test_the_command_keeps_any_head(tiny_config, tmp_path, monkeypatch, architecture, kind):
    """Every tensor is the large model's, of these layers; what is outside the layers stays."""
    tokenizer = train_tokenizer(["the small model reads words and the large one writes them"] * 4, 60)
    changed = {"bert": {}, "distilbert": {"architecture": "distilbert", "segments": 0}}
    config = replace(MOBILE, vocab_size=60, layers=4) if architecture == "mobilebert" else \
        replace(tiny_config, vocab_size=60, layers=4, **changed[architecture])
    large = random_model(replace(config, labels=("a", "b", "c"), vocab_size=tokenizer.vocab_size), kind)
    minibert.save(large, tmp_path / "large", tokenizer)
    assert convert(monkeypatch, tmp_path / "large", tmp_path / "small", "--layers", "1,3") == 0
    small = minibert.load(tmp_path / "small")
    assert type(small) is type(large) and small.config == replace(large.config, layers=2)
    found, whole = small.state_dict(), large.state_dict()
    assert len(found) == len([n for n in whole if "layers." not in n or "layers.0." in n or "layers.1." in n])
    for name, tensor in found.items():
        origin = name.replace("layers.1.", "layers.3.").replace("layers.0.", "layers.1.")
        assert torch.equal(tensor, whole[origin]), name


def test_a_classifier_loses_units_positions_and_pieces(tiny_config, random_batch):
    model, batch = random_model(tiny_config, Classifier), random_batch([5, 3])
    for layer in model.encoder.layers:
        layer.down.weight.data[:, ::2] = 0
    with torch.no_grad():
        assert (keep_units(keep_positions(model, 5), 20)(batch) - model(batch)).abs().max() < 1e-5
    old, new = (Tokenizer({piece: i for i, piece in enumerate(pieces)}) for pieces in (OLD, NEW))
    model = random_model(replace(tiny_config, vocab_size=len(OLD)), Classifier)
    changed = change_vocabulary(model, old, new)
    assert torch.equal(changed.encoder.word.weight[NEW.index("the")],
                       model.encoder.word.weight[OLD.index("the")])
    assert torch.equal(changed.classifier.weight, model.classifier.weight)


def test_units_that_do_nothing_go_first(tiny_config, random_batch):
    model, batch = random_model(tiny_config), random_batch([5, 3])
    for layer in model.encoder.layers:
        layer.down.weight.data[:, ::2] = 0  # every other unit writes nothing
    cut = keep_units(model, 20)
    assert cut.config.intermediate_size == 20
    with torch.no_grad():
        assert (cut(batch) - model(batch)).abs().max() < 1e-5
    with pytest.raises(UserError, match="41 feed-forward units"):
        keep_units(model, 41)


def test_units_of_a_mobilebert_are_not_kept():
    with pytest.raises(UserError, match="MobileBERT: keep fewer layers"):
        keep_units(MaskedLM(replace(MOBILE, vocab_size=9)), 8)


@pytest.mark.parametrize("mobile", [False, True])
def test_rows_follow_their_pieces(tiny_config, mobile):
    old, new = (Tokenizer({piece: i for i, piece in enumerate(pieces)}) for pieces in (OLD, NEW))
    model = random_model(replace(MOBILE if mobile else tiny_config, vocab_size=len(OLD)))
    changed = change_vocabulary(model, old, new)
    rows, before = (one.mlm.table(one.encoder.word.weight) for one in (changed, model))  # all D columns
    for piece in ("[MASK]", "the", "##ing"):
        assert torch.equal(rows[NEW.index(piece)], before[OLD.index(piece)])
        assert changed.mlm.bias[NEW.index(piece)] == model.mlm.bias[OLD.index(piece)]
    parts = [OLD.index("play"), OLD.index("##ing")]  # how the old vocabulary cuts "playing"
    assert torch.allclose(rows[NEW.index("playing")], before[parts].mean(0))
    assert changed.mlm.bias[NEW.index("playing")] == model.mlm.bias[parts].min()
    assert torch.equal(rows[NEW.index("zzz")], before[OLD.index("[UNK]")])
    assert changed.config.vocab_size == len(NEW)


def test_positions_are_the_first(tiny_config, random_batch):
    model, batch = random_model(tiny_config), random_batch([5, 3])
    with torch.no_grad():
        assert torch.equal(keep_positions(model, 5)(batch), model(batch))
    with pytest.raises(UserError, match="33 positions"):
        keep_positions(model, 33)


def test_the_command_cuts_all_at_once(tiny_config, tmp_path, monkeypatch, capsys):
    text = ["the small model reads words and the large one writes them"] * 4
    old, new = train_tokenizer(text, 60), train_tokenizer(text, 45)
    minibert.save(random_model(replace(tiny_config, vocab_size=old.vocab_size)), tmp_path / "large", old)
    new.save(tmp_path / "words")
    assert convert(monkeypatch, tmp_path / "large", tmp_path / "small", "--layers", 1, "--feed-forward", 8,
                   "--positions", 16, "--tokenizer", tmp_path / "words") == 0
    shape = minibert.load(tmp_path / "small").config
    assert (shape.layers, shape.intermediate_size, shape.max_positions, shape.vocab_size) == \
        (1, 8, 16, new.vocab_size)
    assert minibert.load_tokenizer(tmp_path / "small").sha256 == new.sha256
    assert convert(monkeypatch, tmp_path / "large", tmp_path / "no", "--layers", "one") == 2
    assert "--layers one" in capsys.readouterr().err and not (tmp_path / "no").exists()

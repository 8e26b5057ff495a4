"""MobileBERT and IB-BERT against their formulas, one sequence and one layer at a time in fp64, for every kind
of block, also those that transformers cannot run; what crosses no border; what is saved how.
"""

import json
from dataclasses import replace

import pytest
import torch

from minibert.common.errors import UserError
from minibert.distill.distilbert import vocab_side
from minibert.hub.load_save import load, load_config, save
from minibert.hub.onnx_export import save_onnx
from minibert.model.attention import attend_one
from minibert.model.batch import pack
from minibert.model.config import PRESETS, MobileConfig
from minibert.model.encoder import Trace
from minibert.model.init import init_weights
from minibert.model.heads import Classifier, MaskedLM, PreTraining, Span, build_encoder
from minibert.model.mobilebert import NoNorm
from minibert.training.optim import adamw
from steps import MOBILE_KINDS as KINDS
from steps import TINY_MOBILE as TINY

def randomized(model):
    """Every parameter random: one that is forgotten shows. In fp64."""
    model.double()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    return model.eval()


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def norm_by_hand(c, x, norm):
    if c.norm == "layer_norm":
        variance = (x - x.mean(-1, keepdim=True)).square().mean(-1, keepdim=True)
        x = (x - x.mean(-1, keepdim=True)) / (variance + c.norm_eps).sqrt()
    return x * norm.weight + norm.bias


def linear(x, module):
    return x @ module.weight.T + module.bias


def act(c, x):
    if c.activation == "relu":
        return x.clamp(min=0)
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


def encode_by_hand(encoder, ids, segments):
    """All hidden states of one sequence, the embedding output first: a list of L + 1 (T, D)."""
    c, T = encoder.config, len(ids)
    rows = []
    for i in range(T):
        vectors = [encoder.word.weight[ids[j]] if 0 <= j < T else torch.zeros(c.embedding_size).double()
                   for j in (i + 1, i, i - 1)]
        rows.append(linear(torch.cat(vectors), encoder.trigram)
                    + encoder.segment.weight[segments[i]] + encoder.position.weight[i])
    hiddens = [norm_by_hand(c, torch.stack(rows), encoder.norm)]
    for layer in encoder.layers:
        h = hiddens[-1]
        x = norm_by_hand(c, linear(h, layer.bottleneck), layer.bottleneck_norm)
        if c.attention_input == "shared":
            shared = norm_by_hand(c, linear(h, layer.shared), layer.shared_norm)
            inputs = shared, shared, h
        else:
            inputs = (x, x, x) if c.attention_input == "bottleneck" else (h, h, h)
        q, k, v = (linear(y, m).view(T, c.heads, -1)
                   for y, m in zip(inputs, (layer.query, layer.key, layer.value)))
        attended = linear(attend_one(q, k, v).reshape(T, -1), layer.out)
        x = norm_by_hand(c, attended + x, layer.attention_norm)
        for ffn in (*layer.stacked, layer.feed_forward):
            x = norm_by_hand(c, linear(act(c, linear(x, ffn.up)), ffn.down) + x, ffn.norm)
        hiddens.append(norm_by_hand(c, linear(x, layer.expand) + h, layer.expand_norm))
    return hiddens


def states_by_hand(encoder, batch):
    """The hidden states of a packed batch, L + 1 (N, D)."""
    sizes = batch.lengths.tolist()
    each = [encode_by_hand(encoder, ids, segments)
            for ids, segments in zip(batch.ids.split(sizes), batch.segments.split(sizes))]
    return [torch.cat(parts) for parts in zip(*each)]


@pytest.mark.parametrize("config", KINDS)
def test_encoder_by_hand_forward_and_backward(config, random_batch):
    encoder, batch = randomized(build_encoder(config)), random_batch([5, 5, 1, 3, 9])
    expected = states_by_hand(encoder, batch)
    for ours, theirs in zip(encoder.trace(batch).hiddens, expected):
        close(ours, theirs, 1e-11)
    assert torch.equal(encoder(batch), encoder.trace(batch).hiddens[-1])
    weights = torch.randn_like(expected[-1])
    leaves = list(encoder.parameters())
    for ours, theirs in zip(torch.autograd.grad((encoder(batch) * weights).sum(), leaves),
                            torch.autograd.grad((expected[-1] * weights).sum(), leaves)):
        assert (ours - theirs).abs().max() <= 1e-9 * max(1.0, theirs.abs().max())


@pytest.mark.parametrize("config", KINDS)
def test_trace(config, random_batch):
    encoder, batch = randomized(build_encoder(config)), random_batch([4, 6])
    trace = encoder.trace(batch)
    assert isinstance(trace, Trace) and [len(part) for part in trace] == [3, 2, 2, 2]
    assert {x.shape for part in trace[1:] for x in part} == {(10, 3, 4)}
    first = encoder.trace(batch, layers=1)
    assert [len(part) for part in first] == [2, 1, 1, 1]
    for some, every in zip(first, trace):
        assert all(torch.equal(a, b) for a, b in zip(some, every))


@pytest.mark.parametrize("config", KINDS)
def test_neither_attention_nor_trigrams_cross_a_border(config, random_batch):
    encoder, lengths = randomized(build_encoder(config)), [4, 1, 9, 9, 2]
    batch = random_batch(lengths)
    packed = encoder(batch).split(lengths)
    ids, segments = ([x.tolist() for x in t.split(lengths)] for t in (batch.ids, batch.segments))
    for i in range(len(lengths)):
        close(encoder(pack([ids[i]], [segments[i]])), packed[i])
    ids[2] = [(token + 1) % 60 for token in ids[2]]
    for i, (before, after) in enumerate(zip(packed, encoder(pack(ids, segments)).split(lengths))):
        assert torch.equal(before, after) == (i != 2)


def test_a_token_is_embedded_with_its_neighbours():
    encoder = randomized(build_encoder(TINY))

    def embed(*ids):
        return encoder.embed(pack([list(ids)]))

    before, after = embed(5, 6, 7, 8, 9), embed(5, 6, 17, 8, 9)
    assert [bool(x) for x in (before != after).any(1)] == [False, True, True, True, False]


@pytest.mark.parametrize("config", KINDS)
def test_mlm_reads_the_word_table_and_columns_of_its_own(config, random_batch):
    model, batch = randomized(MaskedLM(config)), random_batch([4, 6])
    x = act(config, linear(states_by_hand(model.encoder, batch)[-1], model.mlm.dense))
    states = norm_by_hand(replace(config, norm="layer_norm"), x, model.mlm.norm)  # whatever the blocks have
    expected = (states[:, :7] @ model.encoder.word.weight.T + states[:, 7:] @ model.mlm.extra.weight
                + model.mlm.bias)
    close(model(batch), expected, 1e-11)
    side = vocab_side(model, model.encoder(batch))
    close(side.states @ side.table.T + side.bias, expected, 1e-11)


@pytest.mark.parametrize("pools", [True, False])
def test_heads_read_what_is_pooled(pools, random_batch):
    config = replace(TINY, tanh_pooler=pools, labels=("a", "b", "c"))
    batch = random_batch([4, 6])
    for kind in (Classifier, PreTraining):
        model = randomized(kind(config))
        first = states_by_hand(model.encoder, batch)[-1][[0, 4]]
        assert (model.encoder.pooler is not None) == pools
        pooled = torch.tanh(linear(first, model.encoder.pooler)) if pools else first
        close(model.encoder.pool(model.encoder(batch), batch), pooled)
        logits = model(batch) if kind is Classifier else model(batch)[1]
        close(logits, linear(pooled, model.classifier if kind is Classifier else model.nsp))
    model = randomized(Span(config))
    close(model(batch), linear(states_by_hand(model.encoder, batch)[-1], model.span))


def test_dropout_of_embeddings_and_of_what_leaves_a_block(random_batch):
    encoder = randomized(build_encoder(replace(TINY, dropout=0.5, layers=1))).train()
    layer, batch = encoder.layers[0], random_batch([5, 9])
    assert not torch.equal(encoder.embed(batch), encoder.embed(batch))
    h = torch.randn(14, 20, dtype=torch.float64)
    assert not torch.equal(layer(h, batch)[0], layer(h, batch)[0])
    layer.expand.weight.data.zero_()
    layer.expand.bias.data.zero_()
    close(layer(h, batch)[0], h * layer.expand_norm.weight + layer.expand_norm.bias)
    assert all(not hasattr(module, "dropout") for module in layer.modules())


def test_attention_dropout_in_training_only(random_batch):
    encoder = randomized(build_encoder(replace(TINY, attention_dropout=0.5)))
    batch = random_batch([5, 9])
    assert torch.equal(encoder(batch), encoder(batch))
    encoder.train()
    assert not torch.equal(encoder(batch), encoder(batch))


def test_a_no_norm_starts_as_the_identity_and_does_not_decay():
    model = init_weights(MaskedLM(TINY))
    norms = [module for module in model.modules() if isinstance(module, NoNorm)]
    assert len(norms) == 1 + 2 * (2 + 1 + 3 + 1)
    x = torch.randn(5, 12)
    assert torch.equal(model.encoder.layers[0].bottleneck_norm(x), x)
    decay, plain = (set(group["params"]) for group in adamw(model, (0.9, 0.98), 1e-6, 0.01).param_groups)
    assert all({norm.weight, norm.bias} <= plain for norm in norms)
    assert {model.mlm.extra.weight, model.encoder.trigram.weight, model.encoder.word.weight} <= decay
    assert model.mlm.extra.weight.std() > 0.01 and model.encoder.word.weight[0].count_nonzero() == 0


def test_a_sequence_beyond_the_positions_is_named(random_batch):
    with pytest.raises(UserError, match="33 tokens .* 32 positions"):
        build_encoder(TINY)(random_batch([5, 33]))


# --- folders ---

@pytest.mark.parametrize("change, why", [
    (dict(attention_input="hidden"), "hidden_size is not bottleneck_size"),
    (dict(norm="layer_norm"), "MobileBERT with layer_norm and norm_eps 1e-12"),
    (dict(segments=0), "token types"),
])
def test_shapes_without_counterpart_say_why_and_load(change, why, tmp_path):
    model = init_weights(MaskedLM(replace(TINY, **change)))
    with pytest.warns(UserWarning, match=f"does not support this model.*{why}"):
        save(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "minibert-mobilebert"
    loaded = load(tmp_path)
    assert loaded.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters()))


def test_every_field_survives(tmp_path):
    config = replace(TINY, attention_input="bottleneck", norm="layer_norm", norm_eps=1e-5, tanh_pooler=False,
                     dropout=0.2, classifier_dropout=0.3, feed_forwards=2, activation="gelu")
    save(init_weights(Classifier(config)), tmp_path)
    assert load(tmp_path).config == config


@pytest.mark.parametrize("change, says", [
    (dict(use_bottleneck=False), "use_bottleneck is false"),
    (dict(trigram_input=False), "trigram_input is false"),
    (dict(use_bottleneck_attention=True), "are both true"),
    (dict(normalization_type="layer_norm"), "layer_norm_eps is 1e-12"),
    (dict(normalization_type="batch_norm"), "norm 'batch_norm' is not known"),
    (dict(trigram_input="yes"), "trigram_input is 'yes', where bool"),
    (dict(num_feedforward_networks=10**6), "num_feedforward_networks is 1000000"),
    (dict(intra_bottleneck_size=24),
     "are not those of a MobileBertForMaskedLM.*misshapen.*attention.output.dense.weight .*and 63 more"),
])
def test_folders_of_other_kinds_are_refused(change, says, tmp_path):
    save(init_weights(MaskedLM(TINY)), tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | change))
    with pytest.raises(UserError, match=says):
        load(tmp_path)


def test_the_released_config_is_the_preset(tmp_path):
    """What google/mobilebert-uncased says of itself; a field that it leaves out has transformers' default."""
    raw = {"attention_probs_dropout_prob": 0.1, "classifier_activation": False, "embedding_size": 128,
           "hidden_act": "relu", "hidden_dropout_prob": 0.0, "hidden_size": 512, "initializer_range": 0.02,
           "intermediate_size": 512, "intra_bottleneck_size": 128, "key_query_shared_bottleneck": True,
           "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "mobilebert",
           "normalization_type": "no_norm", "num_attention_heads": 4, "num_feedforward_networks": 4,
           "num_hidden_layers": 24, "pad_token_id": 0, "trigram_input": True, "true_hidden_size": 128,
           "type_vocab_size": 2, "use_bottleneck": True, "use_bottleneck_attention": False,
           "vocab_size": 30522}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert load_config(tmp_path) == PRESETS["mobilebert"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mobilebert"}))
    assert load_config(tmp_path) == MobileConfig()


def test_the_card_says_what_padding_does(tmp_path):
    save(init_weights(build_encoder(TINY)), tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "| architecture | MobileBERT |" in card and "| bottleneck size | 12 |" in card
    assert "MobileBertModel" in card and "add_pooling_layer=False" in card and "padded" in card


def test_no_onnx_form(tmp_path):
    with pytest.raises(UserError, match="cannot export a MobileBERT to ONNX"):
        save_onnx(init_weights(MaskedLM(TINY)), tmp_path)

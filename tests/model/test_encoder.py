"""The encoder and its heads against their formulas,
written out once more in fp64 for one sequence at a time.
"""

import math
from dataclasses import replace

import pytest
import torch

from minibert.common.errors import UserError
from minibert.model.attention import attend_one
from minibert.model.batch import pack
from minibert.model.config import Config
from minibert.model.encoder import Encoder, Trace, activation
from minibert.model.init import init_weights
from minibert.model.heads import Classifier, MaskedLM, PreTraining, Span, encoder_of

ACTIVATIONS = {
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: x.clamp(min=0),
}
KINDS = {"bert": {}, "distilbert": dict(architecture="distilbert", segments=0)}


def randomized(model):
    """Every parameter random, biases and LayerNorms too: one that is forgotten shows. In fp64."""
    model.double()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    return model.eval()


def layer_norm(x, norm):
    variance = (x - x.mean(-1, keepdim=True)).square().mean(-1, keepdim=True)  # biased
    return (x - x.mean(-1, keepdim=True)) / (variance + 1e-12).sqrt() * norm.weight + norm.bias


def linear(x, module):
    return x @ module.weight.T + module.bias


def encode_by_hand(encoder, ids, segments):
    """All hidden states of one sequence, the embedding output first: a list of L + 1 (T, D)."""
    c = encoder.config
    x = encoder.word.weight[ids] + encoder.position.weight[: len(ids)]
    if c.segments:
        x = x + encoder.segment.weight[segments]
    hiddens = [layer_norm(x, encoder.norm)]
    for layer in encoder.layers:
        x = hiddens[-1]
        q, k, v = (linear(x, m).view(len(ids), c.heads, -1) for m in (layer.query, layer.key, layer.value))
        x = layer_norm(x + linear(attend_one(q, k, v).reshape(len(ids), -1), layer.out), layer.attention_norm)
        hidden = ACTIVATIONS[c.activation](linear(x, layer.up))
        hiddens.append(layer_norm(x + linear(hidden, layer.down), layer.output_norm))
    return hiddens


def last_by_hand(model, batch):
    """The last hidden states of a packed batch (N, D), by hand."""
    encoder, sizes = encoder_of(model), batch.lengths.tolist()
    return torch.cat([encode_by_hand(encoder, ids, segments)[-1]
                      for ids, segments in zip(batch.ids.split(sizes), batch.segments.split(sizes))])


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_encoder_by_hand(tiny_config, random_batch, kind, name):
    model = randomized(Encoder(replace(tiny_config, activation=name, **KINDS[kind])))
    batch = random_batch([5, 5, 3, 9])
    close(model(batch), last_by_hand(model, batch))


def test_activations_differ_as_documented():
    x = torch.linspace(-6, 6, 2001, dtype=torch.float64)
    for name, expected in ACTIVATIONS.items():
        close(activation(name, x), expected(x))
    gap = (activation("gelu", x) - activation("gelu_tanh", x)).abs().max()
    assert 4e-4 < gap < 5e-4


def test_embedding_output_is_the_normalised_sum_of_three_tables(tiny_config):
    model = randomized(Encoder(tiny_config))
    batch = pack([[7, 8], [9]], segments=[[0, 1], [1]], positions=[[4, 2], [0]])
    rows = [(7, 0, 4), (8, 1, 2), (9, 1, 0)]  # word, token type, position
    x = torch.stack([model.word.weight[w] + model.segment.weight[s] + model.position.weight[p]
                     for w, s, p in rows])
    close(model.embed(batch), layer_norm(x, model.norm))


@pytest.mark.parametrize("kind", KINDS)
def test_trace_is_what_forward_went_through(tiny_config, random_batch, kind):
    c = replace(tiny_config, **KINDS[kind])
    model, batch = randomized(Encoder(c)), random_batch([4, 6])
    trace = model.trace(batch)
    assert isinstance(trace, Trace)
    assert [len(part) for part in trace] == [c.layers + 1, c.layers, c.layers, c.layers]
    assert torch.equal(trace.hiddens[0], model.embed(batch))
    assert torch.equal(trace.hiddens[-1], model(batch))
    for i, layer in enumerate(model.layers):
        for mine, project in zip((trace.queries[i], trace.keys[i], trace.values[i]),
                                 (layer.query, layer.key, layer.value)):
            assert mine.shape == (10, c.heads, c.head_size)
            # of the state that enters the layer, unscaled
            close(mine.flatten(1), linear(trace.hiddens[i], project))


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_do_not_see_each_other(tiny_config, random_batch, kind):
    model = randomized(Encoder(replace(tiny_config, **KINDS[kind])))
    lengths = [4, 4, 1, 9, 9, 2]
    batch = random_batch(lengths)
    packed = model(batch).split(lengths)
    ids, segments = ([x.tolist() for x in t.split(lengths)] for t in (batch.ids, batch.segments))
    for i in range(len(lengths)):
        close(model(pack([ids[i]], [segments[i]])), packed[i])  # alone and among others

    ids[3] = [(token + 1) % 60 for token in ids[3]]
    for i, (before, after) in enumerate(zip(packed, model(pack(ids, segments)).split(lengths))):
        assert torch.equal(before, after) == (i != 3)


def test_order_of_sequences_does_not_matter(tiny_config):
    model = randomized(Classifier(tiny_config))
    ids = [[5, 6, 7], [8], [9, 10, 11, 12]]
    close(model(pack(ids[::-1])), model(pack(ids)).flip(0))


# Heads ------------------------------------------------------------------------------------------------------


def pooled_by_hand(model, batch):
    """For lengths 4 and 6: the first tokens are rows 0 and 4."""
    return torch.tanh(linear(last_by_hand(model, batch)[[0, 4]], model.encoder.pooler))


def mlm_by_hand(model, last):
    hidden = ACTIVATIONS[model.config.activation](linear(last, model.mlm.dense))
    return layer_norm(hidden, model.mlm.norm) @ model.encoder.word.weight.T + model.mlm.bias


@pytest.mark.parametrize("kind", KINDS)
def test_masked_lm(tiny_config, random_batch, kind):
    model, batch = randomized(MaskedLM(replace(tiny_config, **KINDS[kind]))), random_batch([4, 6])
    logits = model(batch)
    assert logits.shape == (10, 60)
    close(logits, mlm_by_hand(model, last_by_hand(model, batch)))


def test_word_table_is_tied(tiny_config):
    model = MaskedLM(tiny_config)
    assert not any("decoder" in name for name, _ in model.named_parameters())
    # one table learns from both ends: a gradient even in the rows of words that the batch does not hold
    model(pack([[5, 6, 7]])).logsumexp(-1).sum().backward()
    assert model.encoder.word.weight.grad.count_nonzero(dim=1).all()


def test_pretraining(tiny_config, random_batch):
    model, batch = randomized(PreTraining(tiny_config)), random_batch([4, 6])
    mlm, nsp = model(batch)
    assert mlm.shape == (10, 60) and nsp.shape == (2, 2)
    close(mlm, mlm_by_hand(model, last_by_hand(model, batch)))
    close(nsp, linear(pooled_by_hand(model, batch), model.nsp))


def test_bert_classifier_reads_the_pooler(tiny_config, random_batch):
    model, batch = randomized(Classifier(replace(tiny_config, labels=("a", "b", "c")))), random_batch([4, 6])
    logits = model(batch)
    assert logits.shape == (2, 3)
    close(logits, linear(pooled_by_hand(model, batch), model.classifier))


def test_distilbert_classifier_has_its_own_relu_layer(tiny_config, random_batch):
    model = randomized(Classifier(replace(tiny_config, labels=("a", "b", "c"), **KINDS["distilbert"])))
    batch = random_batch([4, 6])
    pooled = linear(last_by_hand(model, batch)[[0, 4]], model.pre_classifier).clamp(min=0)
    close(model(batch), linear(pooled, model.classifier))
    assert model.encoder.pooler is None


def test_regression_has_one_score(tiny_config, random_batch):
    model = randomized(Classifier(replace(tiny_config, labels=("score",))))
    assert model(random_batch([4, 6, 2])).shape == (3, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_span(tiny_config, random_batch, kind):
    model, batch = randomized(Span(replace(tiny_config, **KINDS[kind]))), random_batch([4, 6])
    logits = model(batch)
    assert logits.shape == (10, 2)
    close(logits, linear(last_by_hand(model, batch), model.span))


def test_encoder_of(tiny_config):
    encoder = Encoder(tiny_config)
    assert encoder_of(encoder) is encoder
    for head in (MaskedLM, PreTraining, Classifier, Span):
        model = head(tiny_config)
        assert encoder_of(model) is model.encoder


# Initialisation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [Encoder, MaskedLM, PreTraining, Classifier, Span])
def test_initial_weights(head):
    config = Config(vocab_size=500, hidden_size=64, layers=2, heads=4, intermediate_size=128,
                    initializer_range=0.03, pad_id=7)
    model = head(config)
    for parameter in model.parameters():
        parameter.data.fill_(9)  # what is not initialised is seen
    assert init_weights(model) is model
    word = encoder_of(model).word.weight
    assert word[7].count_nonzero() == 0 and word[0].count_nonzero() > 0
    for name, parameter in model.named_parameters():
        p = parameter.detach()
        if name.endswith("bias"):
            assert p.count_nonzero() == 0, name
        elif "norm" in name:
            assert (p == 1).all(), name
        else:
            p = p[p != 0]  # without the row of [PAD]
            assert p.abs().max() <= 2 * 0.03, name
            # a normal distribution cut at two sigma has 0.8796 of its deviation
            sampling = 0.03 / math.sqrt(p.numel())
            assert abs(p.mean()) < 5 * sampling and abs(p.std() - 0.8796 * 0.03) < 5 * sampling, name


def test_initial_weights_are_a_function_of_the_generator(tiny_config):
    def draw(seed):
        torch.rand(seed)  # the global state must not matter
        model = init_weights(MaskedLM(tiny_config), torch.Generator().manual_seed(seed))
        return torch.cat([p.flatten() for p in model.parameters()])

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


# Dropout ----------------------------------------------------------------------------------------------------


def assert_dropped(dropped, whole, p):
    """Each element is 0 or divided by 1 - p, and about the share p of them is 0."""
    ratio = dropped / whole
    drawn = (ratio * (1 - p)).round()
    close(ratio * (1 - p), drawn, 1e-9)
    assert abs(drawn.mean() - (1 - p)) < 5 * math.sqrt(p * (1 - p) / drawn.numel())


@pytest.mark.parametrize("head", [Encoder, MaskedLM, Classifier, Span])
def test_dropout_only_in_training(tiny_config, random_batch, head):
    model, batch = randomized(head(tiny_config)), random_batch([5, 9])
    assert torch.equal(model(batch), model(batch))
    model.train()
    assert not torch.equal(model(batch), model(batch))
    without = randomized(head(replace(tiny_config, dropout=0.0, classifier_dropout=0.0)))
    assert torch.equal(without.train()(batch), without.eval()(batch))


def test_dropout_of_embeddings(tiny_config, random_batch):
    model, batch = randomized(Encoder(replace(tiny_config, dropout=0.25))), random_batch([30] * 10)
    whole = model.embed(batch)
    assert_dropped(model.train().embed(batch), whole, 0.25)  # a multiple of 2^-16, see dropout.py


@pytest.mark.parametrize("kind, drops", [("bert", True), ("distilbert", False)])
def test_dropout_after_attention_is_berts_alone(tiny_config, random_batch, kind, drops):
    model = randomized(Encoder(replace(tiny_config, dropout=0.5, **KINDS[kind])))
    layer, batch = model.layers[0], random_batch([5, 9])
    x = torch.randn(14, 24, dtype=torch.float64)
    layer.down.weight.data.zero_()  # no feed-forward output: what is left to drop is the attention's
    layer.down.bias.data.zero_()
    whole = layer(x, batch)[0]
    assert torch.equal(layer.train()(x, batch)[0], whole) != drops


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_after_feed_forward(tiny_config, random_batch, kind):
    model = randomized(Encoder(replace(tiny_config, dropout=0.5, **KINDS[kind])))
    layer, batch = model.layers[0], random_batch([5, 9])
    x = torch.randn(14, 24, dtype=torch.float64)
    layer.out.weight.data.zero_()
    layer.out.bias.data.zero_()
    whole = layer(x, batch)[0]
    assert not torch.equal(layer.train()(x, batch)[0], whole)


def test_attention_dropout_is_passed_on_in_training_only(tiny_config, random_batch):
    model, batch = (randomized(Encoder(replace(tiny_config, dropout=0.0, attention_dropout=0.5))),
                    random_batch([5, 9]))
    assert torch.equal(model(batch), model(batch))
    model.train()
    assert not torch.equal(model(batch), model(batch))


@pytest.mark.parametrize("kind", KINDS)
def test_classifier_dropout(tiny_config, random_batch, kind):
    # as many labels as hidden units and the identity as classifier: the logits are what the dropout left
    labels = tuple(f"label {i}" for i in range(24))
    model = randomized(Classifier(replace(tiny_config, dropout=0.0, classifier_dropout=0.375, labels=labels,
                                          **KINDS[kind])))
    model.classifier.weight.data = torch.eye(24, dtype=torch.float64)
    model.classifier.bias.data.zero_()
    batch = random_batch([3] * 200)
    whole = model(batch)
    dropped = model.train()(batch)
    nonzero = whole.abs() > 1e-6  # DistilBERT's ReLU leaves zeros
    assert_dropped(dropped[nonzero], whole[nonzero], 0.375)


@pytest.mark.parametrize("kind, drops", [("bert", False), ("distilbert", True)])
def test_dropout_before_spans_is_distilberts_alone(tiny_config, random_batch, kind, drops):
    model, batch = randomized(Span(replace(tiny_config, **KINDS[kind]))), random_batch([5, 9])
    whole = model(batch)
    model.train()
    model.encoder.eval()  # what is left to drop is the head's
    assert torch.equal(model(batch), whole) != drops


def test_a_sequence_beyond_the_positions_is_named(tiny_config, random_batch):
    with pytest.raises(UserError, match="33 tokens .* 32 positions"):
        Encoder(tiny_config)(random_batch([5, 33]))

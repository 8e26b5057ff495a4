"""Fine-tuning losses against formulas written out, against transformers,
and over micro-batches; examples and inference.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from parity import difference, hf_model, random_batch

import minibert
from minibert.common.errors import UserError
from minibert.common.runtime import Runtime
from minibert.data.examples import draw, make_examples
from minibert.data.tokenizer import train_tokenizer
from minibert.distill.task_kd import TaskWeights, patience_layers, patience_sum, soft_sum, task_loss
from minibert.hub.hf_names import to_hf
from minibert.inference.predict import embed, fill_masks, outputs, predict
from minibert.model.config import Config
from minibert.model.init import init_weights
from minibert.model.heads import Classifier, MaskedLM, Span
from minibert.tasks.models import teacher_outputs

LENGTHS = [3, 11, 4, 9, 3, 12, 2, 7]
CPU = Runtime(torch.device("cpu"), "fp32")


def examples(labels, vocab=60, segments=2, lengths=LENGTHS):
    return make_examples(*random_batch(vocab, segments, lengths), np.asarray(labels))


def classifier(tiny_config, kind=Classifier, dtype=torch.float64, **changed):
    """A random model with dropout off, far from its initial weights."""
    config = Config(**{**tiny_config.__dict__, "dropout": 0.0, "classifier_dropout": 0.0, **changed})
    model = init_weights(kind(config))
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)
    return model.to(dtype).train()


def step_gradient(model, data, targets, weights, layers, micro_tokens, ranks=1):
    """Loss and gradient of one step of all examples, in micro-batches and ranks."""
    model.zero_grad()
    total = 0.0
    for rank in range(ranks):
        drawn = draw(data, targets, 0, len(data.lengths), 7, micro_tokens, rank, ranks)
        counts = {"hard": drawn.labelled, "soft": len(data.lengths), "patience": len(data.lengths)}
        for micro in drawn.micro_batches:
            loss, _ = task_loss(model, weights, layers, counts, micro)
            loss.backward()
            total += loss.item()
    return total, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


# ---- against transformers

@pytest.mark.parametrize("architecture", ["bert", "distilbert"])
@pytest.mark.parametrize("kind", ["classes", "scores", "spans"])
def test_one_step_equals_transformers(architecture, kind, tmp_path):
    """The same loss and gradients to 1e-5.

    Spans at equal lengths: in a padded batch transformers' softmax sees the padding.
    """
    pytest.importorskip("transformers")
    head, labels = {"classes": ("classification", 3), "scores": ("classification", 1),
                    "spans": ("span", 2)}[kind]
    theirs = hf_model(architecture, head, seed=4, labels=labels)
    for module in theirs.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    theirs.save_pretrained(tmp_path)
    ours = minibert.load(tmp_path, dropout=0.0, classifier_dropout=0.0).train()
    lengths = [8] * 5 if kind == "spans" else [7, 3, 12, 7, 5]
    ids, segments = random_batch(ours.config.vocab_size, ours.config.segments, lengths)
    answers = {"classes": [2, 0, 1, 1, 2], "scores": np.float32([0.5, -1, 3, 2, 0]),
               "spans": [[1, 2], [3, 3], [0, 0], [2, 7], [5, 6]]}[kind]
    data = make_examples(ids, segments, np.asarray(answers))
    assert ours.config.regression == (kind == "scores")
    loss, _ = step_gradient(ours, data, {}, TaskWeights(), [], 1000)

    longest = max(lengths)
    padded = lambda rows: torch.tensor([row + [0] * (longest - len(row)) for row in rows])  # noqa: E731
    inputs = {"input_ids": padded(ids), "attention_mask": padded([[1] * n for n in lengths])}
    if architecture == "bert":
        inputs["token_type_ids"] = padded(segments)
    given = {"start_positions": torch.tensor(answers)[:, 0], "end_positions": torch.tensor(answers)[:, 1]} \
        if kind == "spans" else {"labels": torch.from_numpy(np.asarray(answers))}
    expected = theirs.train()(**inputs, **given).loss
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    grads = {to_hf(name, architecture): p.grad for name, p in ours.named_parameters()}
    expected = {name: p.grad for name, p in theirs.named_parameters() if name in grads}
    # what adds the same to all logits of a sequence has no gradient in theory, and noise in practice
    if kind == "spans":
        for name in [name for name in expected if expected[name].abs().max() < 1e-6]:
            assert name.endswith("bias") and grads.pop(name).abs().max() < 1e-6
            del expected[name]
        assert len(expected) > 15
    found = difference(grads, expected)
    assert max(found.values()) < 1e-5, max(found, key=found.get)


# ---- against formulas

def test_soft_labels_are_hintons(tiny_config):
    model = classifier(tiny_config, labels=("a", "b", "c"))
    ours, theirs = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    T, expected = 3.0, 0.0
    for s, t in zip(ours, theirs):
        p, q = (t / T).softmax(0), (s / T).softmax(0)
        expected += T * T * float((p * (p / q).log()).sum())
    assert float(soft_sum(model, ours, theirs, None, T)) == pytest.approx(expected, rel=1e-12)
    assert float(soft_sum(model, ours, ours, None, T)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("kind", ["classes", "scores", "spans"])
def test_tinyberts_prediction_stage_is_the_papers(kind, tiny_config):
    """At alpha 1 and T 1 the gradient of L_pred = CE(z_T / t, z_S / t) (Jiao et al. 2019, section 3.1), which
    differs from the KL by the teacher's entropy; of scores the squared error to the teacher's.
    """
    head = {"classes": dict(labels=("a", "b", "c")), "scores": dict(labels=("score",)), "spans": {}}[kind]
    model = classifier(tiny_config, Span if kind == "spans" else Classifier, **head)
    data = examples(np.full((8, 2), -1) if kind == "spans" else np.full(8, np.nan) if kind == "scores"
                    else np.full(8, -1))
    shape = {"classes": (8, 3), "scores": (8, 1), "spans": (sum(LENGTHS), 2)}[kind]
    theirs = torch.randn(shape, dtype=torch.float64)
    loss, gradient = step_gradient(model, data, {"logits": theirs.numpy()}, TaskWeights(1.0, 1.0), [], 30)
    model.zero_grad()
    ours, expected, entropy = model(data.batch(np.arange(8))), 0.0, 0.0
    if kind == "scores":
        expected = (ours - theirs).square().mean()
    else:
        # a distribution over the classes of an example, or over the tokens of a window, twice
        pairs = list(zip(ours, theirs)) if kind == "classes" else [
            (s[:, i], t[:, i]) for s, t in zip(ours.split(LENGTHS), theirs.split(LENGTHS)) for i in (0, 1)]
        for s, t in pairs:
            p = t.softmax(0)
            expected = expected - (p * s.softmax(0).log()).sum() / len(pairs)
            entropy -= float((p * p.log()).sum()) / len(pairs)
    expected.backward()
    assert loss == pytest.approx(expected.item() - entropy, rel=1e-9)
    theirs_gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert (gradient - theirs_gradient).abs().max() < 1e-9 * theirs_gradient.abs().max()


def test_patience_is_the_distance_of_directions():
    ours, theirs = torch.randn(4, 2, 6, dtype=torch.float64), torch.randn(4, 2, 6, dtype=torch.float64)
    expected = 0.0
    for i in range(4):
        for j in range(2):
            expected += float(((ours[i, j] / ours[i, j].norm()
                                - theirs[i, j] / theirs[i, j].norm()) ** 2).sum()) / (2 * 6)
    assert float(patience_sum(ours, theirs)) == pytest.approx(expected, rel=1e-12)
    assert float(patience_sum(3 * theirs, theirs)) == pytest.approx(0, abs=1e-12)


def test_patience_layers_are_the_papers():
    assert patience_layers(6, 12, "skip") == [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10)]
    assert patience_layers(6, 12, "last") == [(1, 7), (2, 8), (3, 9), (4, 10), (5, 11)]
    assert patience_layers(3, 4, "skip") == [(1, 1), (2, 3)]  # 4/3 and 8/3 rounded
    for student, teacher in ((1, 12), (6, 4)):
        with pytest.raises(UserError, match="PKD compares"):
            patience_layers(student, teacher, "last")


@pytest.mark.parametrize("kind", ["classes", "scores", "spans"])
def test_micro_batches_and_ranks_give_the_gradient_of_the_whole(kind, tiny_config):
    """Some examples without a label, soft labels and patience on: float64, 1e-10."""
    draws = np.random.default_rng(0)
    n, tokens = len(LENGTHS), sum(LENGTHS)
    if kind == "spans":
        model, labels, logits = classifier(tiny_config, Span), [[0, 1]] * n, draws.normal(size=(tokens, 2))
    elif kind == "scores":
        model, labels = (classifier(tiny_config, labels=("score",), problem_type="regression"),
                         np.float32([1, math.nan, 2, 0, 1, 5, 3, 2]))
        logits = draws.normal(size=(n, 1))
    else:
        model, labels = classifier(tiny_config, labels=("a", "b", "c")), [0, 1, -1, 2, 0, -1, 1, 1]
        logits = draws.normal(size=(n, 3))
    targets, layers = {"logits": logits}, []
    if kind != "spans":
        targets["cls"], layers = draws.normal(size=(n, 1, tiny_config.hidden_size)), [1]
    weights = TaskWeights(alpha=0.3, temperature=2.0, beta=10.0)
    whole_loss, whole = step_gradient(model, examples(labels), targets, weights, layers, 1000)
    for micro_tokens, ranks in ((13, 1), (20, 1), (1000, 2), (13, 3)):
        loss, parts = step_gradient(model, examples(labels), targets, weights, layers, micro_tokens, ranks)
        assert (parts - whole).norm() <= 1e-10 * whole.norm()
        assert loss == pytest.approx(whole_loss, rel=1e-6)  # added up in Python from what is logged


@pytest.mark.parametrize("labels, known", [([0, 1, -1, 2, 0, -1, 1, 1], 6), ([[0, 1]] * 8, 8),
                                           (np.float32([1, math.nan, 2, 0, 1, 5, 3, 2]), 7)])
def test_the_hard_loss_is_a_mean_over_examples_with_a_label(labels, known):
    assert draw(examples(labels), {}, 0, 8, 7, 1000).labelled == known


def test_dropout_seeds_differ_between_micro_batches_and_steps():
    seeds = [[micro.seed for micro in draw(examples([0] * 8), {}, step, 8, 7, 15).micro_batches]
             for step in (0, 1, 1)]
    assert len({*seeds[0], *seeds[1]}) == len(seeds[0] + seeds[1]) > 4 and seeds[1] == seeds[2]


def test_the_terms_add_up_with_their_weights(tiny_config):
    model = classifier(tiny_config, labels=("a", "b", "c"))
    data, logits = examples([0, 1, 2, 2, 0, 1, 1, 0]), np.random.default_rng(0).normal(size=(8, 3))
    drawn = draw(data, {"logits": logits}, 0, 8, 7, 1000)
    (micro,) = drawn.micro_batches
    counts = {"hard": 8, "soft": 8, "patience": 8}
    loss, sums = task_loss(model, TaskWeights(alpha=0.25, temperature=2.0), [], counts, micro)
    z = model(micro.batch)
    hard = F.cross_entropy(z, micro.labels)
    soft = 4 * F.kl_div((z / 2).log_softmax(-1), (micro.targets["logits"] / 2).softmax(-1),
                        reduction="batchmean")
    assert loss.item() == pytest.approx((0.75 * hard + 0.25 * soft).item(), rel=1e-6)
    assert sums.keys() == {"hard", "soft"}


# ---- the teacher, inference

@pytest.mark.parametrize("kind", [Classifier, Span])
def test_the_teacher_is_asked_about_each_example_as_it_is(kind, tiny_config):
    model = classifier(tiny_config, kind, torch.float32).eval()
    data = examples([0] * 8)
    asked = teacher_outputs(model, data, CPU, [1, 2] if kind is Classifier else [], micro_tokens=14)
    rows = np.cumsum(data.lengths) - data.lengths
    for i in range(8):
        batch = data.batch(np.array([i]))
        expected = model(batch).detach().numpy()
        said = (asked["logits"][i:i + 1] if kind is Classifier
                else asked["logits"][rows[i]:rows[i] + LENGTHS[i]])
        np.testing.assert_allclose(said, expected, atol=1e-5)
        if kind is Classifier:
            hiddens = model.encoder.trace(batch).hiddens
            np.testing.assert_allclose(asked["cls"][i],
                                       torch.stack([hiddens[1][0], hiddens[2][0]]).detach(), atol=1e-5)


def test_targets_follow_their_examples(tiny_config):
    """The rows that come with a batch are those of its own sequences,
    for one row an example and one a token.
    """
    data = examples(np.arange(8))
    token_targets = np.repeat(np.arange(8), LENGTHS)[:, None].astype(np.float32)
    for step in range(3):
        for targets in ({"logits": np.arange(8, dtype=np.float32)[:, None]}, {"logits": token_targets}):
            for micro in draw(data, targets, step, 5, 1, 15).micro_batches:
                got = micro.targets["logits"][:, 0]
                wanted = micro.labels if len(got) == len(micro.labels) else \
                    micro.labels.repeat_interleave(micro.batch.lengths)
                assert torch.equal(got.long(), wanted)


def test_a_part_of_the_examples_is_those_examples():
    data = examples(np.arange(8))
    part = data.part(np.array([1, 5]))
    assert part.lengths.tolist() == [LENGTHS[1], LENGTHS[5]] and part.labels.tolist() == [1, 5]
    assert torch.equal(part.batch(np.array([0, 1])).ids, data.batch(np.array([1, 5])).ids)


def test_the_lengths_of_all_are_summed_once(tiny_config, monkeypatch):
    """Not again for every micro-batch: the cost of training would grow with the square of its examples."""
    data, summed, cumsum = examples([0] * 8), [], np.cumsum
    monkeypatch.setattr(np, "cumsum", lambda x: summed.append(len(x)) or cumsum(x))
    for step in range(3):
        draw(data, {}, step, 3, 1, 15)
    outputs(classifier(tiny_config), data, CPU, 17)
    assert summed.count(8) == 1 and data.starts.tolist() == [sum(LENGTHS[:i]) for i in range(8)]


def test_predict_and_embed_keep_the_order_of_the_texts(tiny_config):
    texts = ["a small model reads", "the", "a large model writes many words and a small one reads them",
             "words"]
    tokenizer = train_tokenizer(texts * 3, 60)
    model = classifier(tiny_config, vocab_size=tokenizer.vocab_size, dtype=torch.float32).eval()
    together = predict(model, tokenizer, texts)
    np.testing.assert_allclose(together, np.concatenate([predict(model, tokenizer, [t]) for t in texts]),
                               atol=1e-5)
    pairs = predict(model, tokenizer, texts, texts[::-1])
    assert pairs.shape == together.shape and not np.allclose(pairs, together)
    with torch.no_grad():
        cut = model(minibert.pack(*tokenizer.encode([texts[2]], max_length=5)))
    np.testing.assert_allclose(predict(model, tokenizer, [texts[2]], max_length=5), cut, atol=1e-5)
    assert not np.allclose(cut, together[2:3], atol=1e-4)
    vectors = embed(model, tokenizer, texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    batch = minibert.pack(*tokenizer.encode([texts[2]])[:1])
    with torch.no_grad():
        mean = model.encoder(batch).mean(0)
    np.testing.assert_allclose(vectors[2], F.normalize(mean, dim=0), atol=1e-5)


@pytest.mark.parametrize("ask, kind", [(predict, Classifier), (embed, Classifier), (fill_masks, MaskedLM)])
def test_a_model_in_training_is_asked_without_dropout_and_stays_in_training(tiny_config, ask, kind):
    tokenizer = train_tokenizer(["a small model reads"] * 3, 40)
    model = init_weights(kind(replace(tiny_config, vocab_size=tokenizer.vocab_size, dropout=0.5))).train()
    asked = "a [MASK] model reads" if ask is fill_masks else ["a small model reads"]
    found = ask(model, tokenizer, asked)
    assert model.training and model.encoder.training
    expected = ask(model.eval(), tokenizer, asked)
    assert found == expected if ask is fill_masks else np.array_equal(found, expected)


def test_span_outputs_are_rows_of_tokens_in_order(tiny_config):
    model, data = classifier(tiny_config, Span, torch.float32).eval(), examples([[0, 0]] * 8)
    whole = outputs(model, data, CPU, 17)
    with torch.no_grad():
        np.testing.assert_allclose(whole, model(data.batch(np.arange(8))), atol=1e-5)


def test_one_text_is_not_read_as_its_characters(tiny_config):
    tokenizer = train_tokenizer(["what a film"] * 3, 30)
    config = replace(tiny_config, vocab_size=tokenizer.vocab_size)
    model = Classifier(config)
    assert predict(model, tokenizer, ["a film"]).shape[0] == embed(model, tokenizer, ["a film"]).shape[0] == 1
    for run in (predict, embed):
        with pytest.raises(UserError, match="list"):
            run(model, tokenizer, "a film")
    with pytest.raises(UserError, match="predict needs a classifier, and this model is a Span"):
        predict(Span(config), tokenizer, ["a film"])

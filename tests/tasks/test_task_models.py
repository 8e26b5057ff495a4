"""The models of a fine-tuning: whose head is kept, in which order and under which names its classes are, and
how exact its last product is.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from parity import random_batch

import minibert
from minibert.common.errors import UserError
from minibert.common.runtime import Runtime
from minibert.data.examples import make_examples
from minibert.data.tokenizer import train_tokenizer
from minibert.inference.predict import embed, outputs, predict
from minibert.model.init import init_weights
from minibert.model.heads import Classifier, MaskedLM, Span
from minibert.tasks.models import keeps_head, label_order, load_for_task, load_tuned
from minibert.tasks.official_files import class_of
from minibert.tasks.specs import TASKS, Task


def task_of(*labels):
    return Task("mood.csv", labels, labels, ("accuracy",))


@pytest.mark.parametrize("task, labels, order", [
    (TASKS["mnli"], ("neutral", "entailment", "contradiction"), [1, 0, 2]),
    (TASKS["mnli"], ("CONTRADICTION", "Neutral", "entailment"), [2, 1, 0]),
    (TASKS["mnli"], ("LABEL_0", "LABEL_1", "LABEL_2"), None),  # which is which is not said
    (TASKS["mnli"], ("entailment", "neutral"), None),
    (TASKS["rte"], ("not-entailment", "Entailment"), [1, 0]),
    (TASKS["mrpc"], ("LABEL_0", "LABEL_1"), [0, 1]),  # the official files say 0 and 1
    (TASKS["mrpc"], ("1", "0"), [1, 0]), (TASKS["imdb"], ("POS", "NEG"), [1, 0]),
    (TASKS["sst2"], ("NEGATIVE", "POSITIVE"), [0, 1]), (TASKS["sst2"], ("POSITIVE", "negative"), [1, 0]),
    (task_of("0", "1", "2"), ("LABEL_2", "LABEL_0", "LABEL_1"), [1, 2, 0]),
    (task_of("LABEL_0", "LABEL_1"), ("1", "0"), [1, 0]),
    (task_of("bad", "good"), ("LABEL_0", "LABEL_1"), None),
    (task_of("bad", "good"), ("bad", "bad"), None), (task_of("bad", "good"), ("bad", "BAD"), None),
    (task_of("a", "A"), ("A", "a"), [1, 0]), (task_of("a", "A", "b"), ("a", "A", "B"), [0, 1, 2]),
    (task_of("New York", "Rome"), ("rome", "new_york"), [1, 0])])
def test_classes_are_matched_by_name(task, labels, order):
    assert label_order(labels, task) == order


def test_what_could_be_two_classes_is_none():
    assert class_of("yes", task_of("YES", "Yes", "no")) is None
    assert class_of("Yes", task_of("YES", "Yes", "no")) == 1 and class_of(" No ", task_of("YES", "no")) == 1


@pytest.fixture
def saved(tiny_config, tmp_path):
    """A function that saves a random model of a kind, and its tokenizer, and returns the folder."""
    tokenizer = train_tokenizer(["a small film was read"] * 3, 40)

    def save(kind=Classifier, **changed):
        config = replace(tiny_config, vocab_size=tokenizer.vocab_size, **changed)
        minibert.save(init_weights(kind(config)), tmp_path / "model", tokenizer)
        return str(tmp_path / "model")
    return save


@pytest.mark.parametrize("load", [load_tuned, lambda name, task: load_for_task(name, task, 1)])
def test_rows_of_the_head_follow_the_classes(saved, load):
    """If the classes have another order or spelling, the rows of the head are moved. Nothing else changes."""
    path = saved(labels=("NEUTRAL", "contradiction", "Entailment"))
    found, before = load(path, TASKS["mnli"]), minibert.load(path)
    for own, kept in zip(found.classifier.parameters(), before.classifier.parameters()):
        assert torch.equal(own, kept[[2, 0, 1]])
    assert found.config.labels == TASKS["mnli"].labels
    assert torch.equal(found.encoder.word.weight, before.encoder.word.weight)


def test_a_head_of_other_labels_is_not_kept(saved):
    path = saved(labels=("no", "yes"))
    assert keeps_head(path, task_of("yes", "no")) and not keeps_head(path, task_of("bad", "good"))
    old = minibert.load(path).classifier.weight
    for task in (task_of("bad", "good"), TASKS["stsb"]):
        one, same, other = (load_for_task(path, task, seed).classifier.weight for seed in (1, 1, 2))
        assert torch.equal(one, same) and not torch.equal(one, other)
        assert not torch.equal(one, old[:len(one)])
    assert isinstance(load_for_task(path, TASKS["squad"], 1), Span)


@pytest.mark.parametrize("kind, changed, task, kept", [
    (MaskedLM, {}, TASKS["rte"], False), (Span, {}, TASKS["squad"], True), (Span, {}, TASKS["rte"], False),
    (Classifier, {"labels": ("score",), "problem_type": "regression"}, TASKS["stsb"], True),
    (Classifier, {"labels": ("score",), "problem_type": "regression"}, TASKS["rte"], False)])
def test_which_heads_fit_a_task(saved, kind, changed, task, kept):
    path = saved(kind, **changed)
    assert keeps_head(path, task) == kept
    if kept:
        load_tuned(path, task)
    else:
        with pytest.raises(UserError, match="fine-tune the model first|predicts scores, but rte has classes"):
            load_tuned(path, task)


def test_a_multi_label_model_is_refused(saved):
    """It is refused as a teacher and with --evaluate. As a student, it gets a new head for one class."""
    path = saved(labels=("no", "yes"), problem_type="multi_label_classification")
    task, says = task_of("no", "yes"), "model is a multi-label classifier .*neither be evaluated nor"
    with pytest.raises(UserError, match=says):
        load_tuned(path, task)
    model = load_for_task(path, task, 1)
    assert not keeps_head(path, task) and model.config.problem_type is None
    assert not torch.equal(model.classifier.weight, minibert.load(path).classifier.weight)


def test_a_teacher_of_other_labels_is_refused_with_the_remedy(saved):
    with pytest.raises(UserError, match="model has the labels LABEL_0, LABEL_1, and mood.csv has bad, good: "
                                        ".*write the names of mood.csv into id2label in its config.json"):
        load_tuned(saved(), task_of("bad", "good"))


@pytest.mark.parametrize("kind, changed", [(Classifier, {"labels": ("score",), "problem_type": "regression"}),
                                           (Span, {})])
def test_the_last_product_is_not_rounded_to_16_bits(tiny_config, kind, changed):
    """With bf16, scores near 3 would be multiples of 1/64, and most of the 300 scores would not be unique."""
    model = init_weights(kind(replace(tiny_config, **changed))).eval()
    layer = model.span if kind is Span else model.classifier
    layer.bias.data += 3.0
    data = make_examples(*random_batch(60, 2, [5] * 300), np.zeros(300))
    scores = outputs(model, data, Runtime(torch.device("cpu"), "bf16"))[:, 0]
    assert len(np.unique(scores)) > 0.9 * len(scores)
    assert np.abs(scores - outputs(model, data, Runtime(torch.device("cpu"), "fp32"))[:, 0]).max() < 0.02


def test_what_predict_and_embed_read(saved):
    path = saved()
    model, tokenizer = minibert.load(path), minibert.load_tokenizer(path)
    assert len(predict(model, tokenizer, np.array(["a", "film"]))) == 2
    for bad in (None, float("nan"), b"a film", 3, {"text": "a"}, ["a"]):
        with pytest.raises(UserError, match=r"texts\[1\] is "):
            predict(model, tokenizer, ["a film", bad])
        with pytest.raises(UserError, match=r"pairs\[0\] is "):
            predict(model, tokenizer, ["a film"], [bad])
    with pytest.raises(UserError, match=r"texts\[0\] is \('a', 'b'\), a tuple, and must be a text"):
        predict(model, tokenizer, [("a", "b")])
    for bad in ("a film", b"a film", {"a": 1}, 3, None):
        with pytest.raises(UserError, match="must be a list of texts"):
            predict(model, tokenizer, bad)
    for bad in (None, float("nan"), b"a film", 3, {"text": "a"}):
        with pytest.raises(UserError, match=r"texts\[1\] is "):
            embed(model, tokenizer, ["a film", bad])
    with pytest.raises(UserError, match="the tokenizer of these texts has .* pieces, the model only 20"):
        predict(Classifier(replace(model.config, vocab_size=20)), tokenizer, ["a film"])
    with pytest.raises(UserError, match="the tokenizer of these texts has .* pieces, the model only 20"):
        embed(Classifier(replace(model.config, vocab_size=20)), tokenizer, ["a film"])

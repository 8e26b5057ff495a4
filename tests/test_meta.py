"""Steps, fine-tuning losses and inference on torch's meta device, which stands for a GPU.

Its tensors have shapes and no values. An operation of one of them and a CPU tensor fails, and so does asking
for a value, which on a GPU would mean waiting for it. The only waits that are meant are replaced here, and
counted: the figures at the end of a step, and the outputs of inference.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

import minibert
from minibert.common.runtime import Runtime
from minibert.data.examples import draw, make_examples
from minibert.distill.methods import METHODS, terms_of, weights_of
from minibert.distill.task_kd import TaskWeights, task_loss
from minibert.distill.theseus import theseus_loss, train_layers_only
from minibert.distill.tinybert import TinyBERTWeights, tinybert, tinybert_counts
from minibert.model.encoder import Encoder
from minibert.model.heads import Classifier, MaskedLM, Span, build_encoder
from minibert.model.init import on_meta
from minibert.training.models import hold_frozen
from minibert.training.optim import OPTIMIZERS, set_learning_rate
from minibert.training.step import accumulate, freeze_unread, update
from steps import MOBILE_KINDS, V, counts_of, data, loss_of

META = torch.device("meta")


class Autocast(TorchFunctionMode):
    """torch.autocast for the meta device, which torch does not have: linear layers in 16 bits."""

    stack = [None]  # the precision of each that is open; None: as it comes

    def __init__(self, kind, dtype=None, enabled=True):
        super().__init__()
        self.dtype = dtype if enabled else None

    def __enter__(self):
        self.stack.append(self.dtype)
        return super().__enter__()

    def __exit__(self, *error):
        self.stack.pop()
        return super().__exit__(*error)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.linear and self.stack[-1]:
            args = [x if x is None else x.to(self.stack[-1]) for x in args]
        return function(*args, **(kwargs or {}))


@pytest.fixture(params=["fp32", "bf16"])
def runtime(request, monkeypatch):
    """One on the meta device."""
    monkeypatch.setattr(torch, "autocast", Autocast)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: Autocast.stack[-1] is not None)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: Autocast.stack[-1])
    return Runtime(META, request.param)


@pytest.fixture
def waits(monkeypatch):
    """How often a value was waited for, by `tolist` and `cpu`; both give ones."""
    counts = {"tolist": 0, "cpu": 0}
    real = {name: getattr(torch.Tensor, name) for name in counts}

    def replaced(name, tensor):
        if tensor.device != META:
            return real[name](tensor)
        counts[name] += 1
        return real[name](torch.ones(tensor.shape, dtype=tensor.dtype))

    for name in counts:
        monkeypatch.setattr(torch.Tensor, name, lambda tensor, name=name: replaced(name, tensor))
    return counts


def whole_step(model, loss_of, micro_batches, counts, runtime, optimizer="adamw"):
    """What train.py and finetune.py do for a step; its figures."""
    freeze_unread(model, loss_of, micro_batches[0], runtime)
    made, scaler = OPTIMIZERS[optimizer](model, (0.9, 0.98), 1e-6, 0.01), runtime.scaler()
    for group in made.param_groups:
        group["fused"] = None  # torch has that kernel for devices it knows; this is the plain one
    set_learning_rate(made, 1e-4)
    sums = accumulate(model, loss_of, micro_batches, scaler, runtime)
    figures, _ = update(model, made, sums, counts, scaler, runtime, 1.0)
    assert all(p.grad.device == META for p in model.parameters() if p.requires_grad)
    assert any(p.requires_grad for p in model.parameters())
    return figures


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_every_method(tiny_config, runtime, waits, method):
    wanted, step = METHODS[method], data(40)[0]
    build = MaskedLM if wanted.head == "mlm" else build_encoder
    configs = [replace(tiny_config, vocab_size=V, layers=layers) for layers in (4, 2)]
    if method == "mobilebert":
        configs = MOBILE_KINDS[0], MOBILE_KINDS[3]
    teacher, student = (on_meta(build, config) for config in configs)
    if wanted.module:
        student = on_meta(wanted.module, student, teacher)
    hold_frozen(teacher, runtime)
    figures = whole_step(student.train(), loss_of(method, student, teacher, step), step.micro_batches,
                         counts_of(method, step), runtime, wanted.defaults["optimizer"])
    asked = {name for name in terms_of(method) if getattr(weights_of(method), name)}
    assert len(step.micro_batches) > 1 and asked <= set(figures)
    assert waits == {"tolist": 1, "cpu": 0}


def examples(kind, teacher_width):
    """Eight labelled examples, two of them without a label, with what a teacher says about them."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(5, V, n).tolist() for n in (3, 9, 5, 5, 12, 4, 7, 9)]
    labels = {"classes": np.array([0, 1, 1, 0, -1, 1, 0, -1]),
              "score": np.array([0, 1, 2, 3, np.nan, 1, np.nan, 2], np.float32),
              "span": np.array([[0, 1]] * 6 + [[0, 0]] * 2)}[kind]
    made = make_examples(ids, [[0] * len(one) for one in ids], labels)
    logits = (made.lengths.sum(), 2) if kind == "span" else (8, 2 if kind == "classes" else 1)
    return made, {"logits": rng.random(logits, np.float32),
                  "cls": rng.random((8, 1, teacher_width), np.float32)}


@pytest.mark.parametrize("kind, alpha, beta", [("classes", 0.0, 0.0), ("classes", 0.5, 0.0),
                                               ("classes", 0.5, 10.0), ("score", 0.0, 0.0),
                                               ("score", 0.5, 0.0), ("span", 0.0, 0.0), ("span", 0.5, 0.0)])
def test_a_step_of_every_fine_tuning_loss(tiny_config, runtime, waits, kind, alpha, beta):
    head = Span if kind == "span" else Classifier
    config = replace(tiny_config, vocab_size=V,
                     labels=("score",) if kind == "score" else ("a", "b"))
    model = on_meta(head, config).train()
    made, targets = examples(kind, config.hidden_size)
    if not alpha:
        targets = {}
    elif not beta:
        del targets["cls"]
    step = draw(made, targets, 0, 8, 0, 24)
    counts = {"hard": 6, "soft": 8, "patience": 8}
    figures = whole_step(model, partial(task_loss, model, TaskWeights(alpha, 2.0, beta), [1] if beta else [],
                                        counts), step.micro_batches, counts, runtime)
    assert [name in figures for name in counts] == [True, alpha > 0, beta > 0]
    assert len(step.micro_batches) > 1 and waits == {"tolist": 1, "cpu": 0}


@pytest.mark.parametrize("kind", ["classes", "score", "span"])
@pytest.mark.parametrize("method", ["theseus", "tinybert"])
def test_a_fine_tuning_step_that_runs_the_teacher(tiny_config, runtime, waits, kind, method):
    head = Span if kind == "span" else Classifier
    config = replace(tiny_config, vocab_size=V, labels=("score",) if kind == "score" else ("a", "b"))
    teacher, student = (on_meta(head, replace(config, layers=layers)) for layers in (4, 2))
    hold_frozen(teacher, runtime)
    made, targets = examples(kind, config.hidden_size)
    step = draw(made, {"logits": targets["logits"]}, 0, 8, 0, 24)
    if method == "theseus":
        train_layers_only(student)
        teacher.train()
        counts = {"hard": 6, "soft": 8}
        # the gradient reaches the student's first layer through the teacher's second group
        loss = partial(theseus_loss, student, teacher, [True, False], TaskWeights(0.5, 2.0, 0.0), counts)
    else:
        counts = tinybert_counts(step, TinyBERTWeights())
        loss = partial(tinybert, student, teacher, weights=TinyBERTWeights(), counts=counts)
    figures = whole_step(student.train(), loss, step.micro_batches, counts, runtime)
    assert set(counts) <= set(figures)
    assert len(step.micro_batches) > 1 and waits == {"tolist": 1, "cpu": 0}


def test_inference_waits_for_the_outputs_alone(runtime, waits):
    tokenizer = minibert.load_tokenizer("weights/teacher")
    shape = replace(minibert.preset("bert-L2-H128"), vocab_size=tokenizer.vocab_size)
    texts = ["a short text", "another one", "and one that is a good deal longer than the others"]
    model = on_meta(Classifier, shape).eval()
    assert minibert.predict(model, tokenizer, texts, runtime=runtime).shape == (3, 2)
    assert minibert.predict(minibert.fast(model), tokenizer, texts).shape == (3, 2)
    assert minibert.embed(on_meta(Encoder, shape), tokenizer, texts, runtime=runtime).shape == (3, 128)
    assert waits == {"tolist": 0, "cpu": 3}

"""The ends of every scale: finite losses and gradients, or the guard's skipped step and clear stop."""

import math

import numpy as np
import pytest
import torch

import test_train
import train
from minibert.common.errors import UserError
from minibert.data.loader import cut
from minibert.model.batch import Step
from minibert.distill.distilbert import DistilBERTWeights
from minibert.distill.methods import METHODS
from minibert.training.optim import adamw
from minibert.model.heads import MaskedLM
from steps import counts_of, loss_of, student_and_teacher, take_step
from test_train import handlers  # noqa: F401  (an autouse fixture)

folder = test_train.folder  # a fixture: corpus and teacher of train.py
METHOD_WEIGHTS = [("distilbert", {}), ("distilbert", {"kl_masked_only": True}), ("mlm", {})]


def step_with(share):
    """Nine sequences of 1 to 30 tokens of which a share is masked."""
    draw, lengths = np.random.default_rng(1), np.array([3, 30, 4, 17, 3, 25, 1, 9, 30])
    ids = draw.integers(5, 60, lengths.sum())
    selected = draw.random(len(ids)) < share
    inputs = np.where(selected, 4, ids)
    return Step(cut(ids, lengths, inputs, selected, 40, (0,)), len(ids), int(selected.sum()),
                len(lengths))


def gradient(method, student, teacher, step, weights):
    """Loss and gradient of a step; both finite."""
    student.zero_grad()
    total = 0.0
    for micro in step.micro_batches:
        loss, sums = loss_of(method, student, teacher, step, weights)(micro)
        assert all(torch.isfinite(value).all() for value in sums.values()), sums
        if loss.requires_grad:
            loss.backward()
        total += loss.item()
    grads = [p.grad for p in student.parameters() if p.grad is not None]
    assert math.isfinite(total) and all(torch.isfinite(grad).all() for grad in grads)
    return total, grads


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("method, weights", METHOD_WEIGHTS)
def test_all_and_nothing_masked(method, weights, share, tiny_config):
    student, teacher = student_and_teacher(tiny_config, torch.float32)
    step = step_with(share)
    assert step.masked == (step.tokens if share else 0)
    loss, grads = gradient(method, student, teacher, step, METHODS[method].weights(**weights))
    if not share and (method == "mlm" or weights):
        assert loss == 0 if method == "mlm" else 0 < loss <= 2  # nothing but the cosine is left
    assert share == 0.0 or loss > 0


@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("kind", ["as it is", "constant", "sure", "equal to the student"])
def test_temperatures_and_teachers(temperature, kind, tiny_config):
    student, teacher = student_and_teacher(tiny_config, torch.float32)
    teacher.requires_grad_(False)
    if kind == "constant":  # the same probability for every piece
        teacher.encoder.word.weight.zero_()
        teacher.mlm.bias.zero_()
    elif kind == "sure":
        teacher.encoder.word.weight *= 1e4
    elif kind == "equal to the student":
        teacher = MaskedLM(student.config).eval().requires_grad_(False)
        teacher.load_state_dict(student.state_dict())
    loss, grads = gradient("distilbert", student, teacher, step_with(0.15),
                           DistilBERTWeights(temperature=temperature))
    assert any(grad.abs().max() > 0 for grad in grads)
    assert loss >= -1e-3 or temperature > 100  # T^2 times the rounding of a divergence that is nearly zero


@pytest.mark.parametrize("scale", [2.0 ** -100, 1.0, 2.0 ** 100, 3e38])
def test_loss_scales_settle_and_never_reach_the_weights(scale, tiny_config):
    """Gradients that overflow are skipped, the scale is halved, and the run goes on with finite weights."""
    student, teacher = student_and_teacher(tiny_config, torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, backoff_factor=2.0 ** -20)
    optimizer, step = adamw(student, (0.9, 0.98), 1e-6, 0.0), step_with(0.15)
    loss, counts = loss_of("distilbert", student, teacher, step), counts_of("distilbert", step)
    rows = [take_step(student, loss, step, counts, optimizer, 1e-4, 1.0, scaler) for _ in range(12)]
    assert all(torch.isfinite(p).all() for p in student.parameters())
    assert not rows[-1]["skipped"] and rows[-1]["loss"] < rows[0]["loss"]
    assert any(row["skipped"] for row in rows) == (scale > 1e38)


@pytest.mark.parametrize("changed", [{"weights": "kl=1e39"}, {"weights": "mlm=1e39"}])
def test_a_run_that_is_not_finite_ends_with_the_guard(folder, tmp_path, changed):  # noqa: F811
    with pytest.raises(UserError, match="not finite in 5 consecutive steps"):
        train.main(test_train.options(folder, tmp_path / "run", steps=20, **changed))
    assert all(row["skipped"] for row in test_train.rows(tmp_path / "run"))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(folder, tmp_path):  # noqa: F811
    """To the bit; with another number of threads the first steps are the same to rounding."""
    runs = {}
    for name, threads in (("a", 1), ("b", 1), ("c", 2)):
        train.main(test_train.options(folder, tmp_path / name, steps=4, threads=threads,
                                      precision="fp32"))
        runs[name] = [row["loss"] for row in test_train.rows(tmp_path / name)]
    torch.set_num_threads(1)
    assert runs["a"] == runs["b"]
    assert runs["c"] == pytest.approx(runs["a"], rel=1e-5)
    a, b = test_train.weights(tmp_path / "a"), test_train.weights(tmp_path / "b")
    assert all(torch.equal(a[name], b[name]) for name in a)

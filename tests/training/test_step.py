"""Tests of the optimiser step: counts over micro-batches, terms equal to the papers' formulas, limits of
skips.
"""

import pytest
import torch
import torch.nn.functional as F

from minibert.common.runtime import Runtime
from minibert.distill.distilbert import DistilBERTWeights
from minibert.distill.losses import cosine_sum
from minibert.model.batch import IGNORE
from minibert.training.optim import adamw, parameter_groups, set_learning_rate
from minibert.training.step import accumulate, update
from steps import CPU, counts_of, data, gradients, loss_of, student_and_teacher, take_step


@pytest.mark.parametrize("method", ["distilbert", "mlm"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-6)])
def test_micro_batches_and_ranks_give_the_gradient_of_the_whole(method, dtype, tolerance, tiny_config):
    student, teacher = student_and_teacher(tiny_config, dtype)

    def loss_in(step, micro):
        return loss_of(method, student, teacher, step)(micro)

    totals, whole = gradients(loss_in, student, data(1000))
    assert sum(len(s.micro_batches) for s in data(32)) > 4
    for steps in (data(32), data(50), data(1000, ranks=2), data(32, ranks=3)):
        others, parts = gradients(loss_in, student, steps)
        assert (parts - whole).norm() <= tolerance * whole.norm()
        for name in totals:
            assert abs(float(others[name] - totals[name])) <= tolerance * abs(float(totals[name])) + 1e-12


def test_the_triple_loss_is_the_papers(tiny_config):
    student, teacher = student_and_teacher(tiny_config)
    (step,) = data(1000)
    (micro,) = step.micro_batches
    loss, sums = loss_of("distilbert", student, teacher, step)(micro)
    z_s, z_t = student(micro.batch), teacher(micro.batch)
    kl = F.kl_div((z_s / 2).log_softmax(-1), (z_t / 2).softmax(-1), reduction="sum") * 4 / step.tokens
    mlm = F.cross_entropy(z_s, micro.labels, ignore_index=IGNORE)
    h_s, h_t = student.encoder(micro.batch), teacher.encoder(micro.batch)
    cosine = F.cosine_embedding_loss(h_s, h_t, torch.ones(len(h_s)))
    expected = 5 * kl + 2 * mlm + 1 * cosine
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert (sums["kl"] / step.tokens).item() == pytest.approx(kl.item(), rel=1e-10)
    assert (sums["mlm"] / step.masked).item() == pytest.approx(mlm.item(), rel=1e-12)
    leaves = list(student.parameters())
    for ours, theirs in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves)):
        assert (ours - theirs).abs().max() <= 1e-10 * max(theirs.abs().max(), 1e-3)


def test_kl_of_masked_tokens_only(tiny_config):
    student, teacher = student_and_teacher(tiny_config)
    (step,) = data(1000)
    (micro,) = step.micro_batches
    read = []  # how many rows each head reads: nothing is computed that is thrown away
    for model in (student, teacher):
        model.mlm.register_forward_pre_hook(lambda _, inputs: read.append(len(inputs[0])))
    loss, sums = loss_of("distilbert", student, teacher, step, DistilBERTWeights(kl_masked_only=True))(micro)
    assert read == [step.masked, step.masked] and step.masked < step.tokens
    rows = micro.labels != IGNORE
    h_s, h_t = student.encoder(micro.batch), teacher.encoder(micro.batch)
    z_s, z_t = student(micro.batch)[rows], teacher(micro.batch)[rows]
    kl = F.kl_div((z_s / 2).log_softmax(-1), (z_t / 2).softmax(-1), reduction="batchmean") * 4
    mlm = F.cross_entropy(z_s, micro.labels[rows])
    cosine = F.cosine_embedding_loss(h_s, h_t, torch.ones(len(h_s)))  # over all tokens
    expected = 5 * kl + 2 * mlm + cosine
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert (sums["kl"] / step.masked).item() == pytest.approx(kl.item(), rel=1e-10)
    leaves = list(student.parameters())
    for ours, theirs in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves)):
        assert (ours - theirs).abs().max() <= 1e-10 * max(theirs.abs().max(), 1e-3)


def test_cosine_is_zero_for_equals_and_two_for_opposites():
    h = torch.randn(7, 5)
    assert cosine_sum(h, 3 * h).item() == pytest.approx(0, abs=1e-5)
    assert cosine_sum(h, -h).item() == pytest.approx(14, rel=1e-6)


def take(student, teacher, step, lr=1e-3, clip=5.0, method="distilbert", optimizer=None):
    optimizer = optimizer or adamw(student, (0.9, 0.98), 1e-6, 0.0)
    loss = loss_of(method, student, teacher, step)
    return take_step(student, loss, step, counts_of(method, step), optimizer, lr, clip)


def test_a_step_reports_means_and_moves_only_the_student(tiny_config):
    student, teacher = student_and_teacher(tiny_config, torch.float32)
    before = [p.clone() for p in teacher.parameters()]
    (step,) = data(32)
    row = take(student, teacher, step)
    assert row["loss"] == pytest.approx(5 * row["kl"] + 2 * row["mlm"] + row["cosine"], rel=1e-5)
    assert 0 <= row["accuracy"] <= 1 and not row["skipped"]
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, teacher.parameters()))


def test_clipping_scales_the_whole_gradient(tiny_config):
    student, teacher = student_and_teacher(tiny_config, torch.float32)
    (step,) = data(1000)
    row = take(student, teacher, step, clip=0.1)
    norm = torch.nn.utils.get_total_norm([p.grad for p in student.parameters()])
    assert row["grad_norm"] > 0.1 and norm.item() == pytest.approx(0.1, rel=1e-3)


def test_a_non_finite_gradient_skips_the_step(tiny_config):
    student, teacher = student_and_teacher(tiny_config, torch.float32)
    student.encoder.norm.weight.data[0] = float("nan")
    before = {name: t.clone() for name, t in student.state_dict().items()}
    (step,) = data(1000)
    assert take(student, teacher, step)["skipped"]
    assert all(torch.equal(t, before[name]) or name == "encoder.norm.weight"
               for name, t in student.state_dict().items())


class OneOfTwo(Runtime):
    """A rank of two. The other rank has the gradient 1 for every parameter."""

    def sum_over_ranks(self, tensors):
        torch._foreach_add_(tensors, 1.0)


def test_a_rank_without_a_sequence_takes_the_step_of_the_others(tiny_config):
    student, teacher = student_and_teacher(tiny_config, torch.float32)
    before = [p.clone() for p in student.parameters()]
    runtime = OneOfTwo(torch.device("cpu"), "fp32")
    optimizer = torch.optim.SGD(parameter_groups(student, 0.0))
    set_learning_rate(optimizer, 0.5)
    sums = accumulate(student, None, [], CPU.scaler(), runtime)
    update(student, optimizer, sums, {"kl": 1}, CPU.scaler(), runtime, 1e9)
    assert all(torch.equal(p, b - 0.5) for p, b in zip(student.parameters(), before))


@pytest.mark.parametrize("method", ["distilbert", "mlm"])
def test_one_batch_can_be_learned(method, tiny_config):
    student, teacher = student_and_teacher(tiny_config, torch.float32)
    for p in teacher.parameters():  # a teacher that is far from its student and sure of what it says
        p.data += 0.3 * torch.randn_like(p)
    (step,) = data(1000)
    # labels that do not contradict it
    step.micro_batches[0].labels.copy_(teacher(step.micro_batches[0].batch).argmax(-1))
    optimizer = adamw(student, (0.9, 0.98), 1e-6, 0.0)
    first, *_, last = [take(student, teacher, step, 3e-3, method=method, optimizer=optimizer)
                       for _ in range(100)]
    assert last["loss"] < 0.3 * first["loss"]


def test_parts_learn_at_their_own_rates(tiny_config):
    """With plain gradient descent, the steps of a part are proportional to the rate of the part."""
    moves = {}
    for rates in (None, [1.0, 1.0], [0.0, 0.5]):
        torch.manual_seed(0)
        student, teacher = student_and_teacher(tiny_config, torch.float32)
        (step,) = data(1000)
        groups = parameter_groups(student, 0.0, lambda name: int(".layers." in name))
        before = {name: p.detach().clone() for name, p in student.named_parameters()}
        take_step(student, loss_of("distilbert", student, teacher, step), step, counts_of("distilbert", step),
                  torch.optim.SGD(groups), 0.1, factors=rates)
        moves[str(rates)] = {name: p.detach() - before[name] for name, p in student.named_parameters()}
    plain, ones, halves = moves.values()
    for name, move in plain.items():
        assert torch.equal(move, ones[name])
        expected = move / 2 if ".layers." in name else torch.zeros_like(move)
        assert (halves[name] - expected).abs().max() <= 1e-6
    assert any(move.abs().max() > 1e-3 for name, move in halves.items())

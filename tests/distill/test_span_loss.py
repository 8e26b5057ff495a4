"""Span losses over packed rows against F.cross_entropy and F.kl_div of one sequence at a time."""

import pytest
import torch
import torch.nn.functional as F

from minibert.distill.losses import segment_log_softmax, span_distillation, span_loss

LENGTHS = [5, 1, 9, 2, 5]
N, S = sum(LENGTHS), len(LENGTHS)
OFFSETS = torch.tensor([0, 5, 6, 15, 17, 22], dtype=torch.int32)


def gold():
    """A start and an end for each sequence; one at [CLS], one at the last row."""
    starts = torch.tensor([0, 0, 3, 1, 2])
    return starts, torch.tensor([0, 0, 8, 1, 4])


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_log_softmax_equals_one_sequence_at_a_time(scale):
    x = (torch.randn(N, 3) * scale).requires_grad_()
    weights = torch.randn(N, 3)
    expected = torch.cat([F.log_softmax(part, 0) for part in x.split(LENGTHS)])
    ours = segment_log_softmax(x, OFFSETS)
    assert (ours - expected).abs().max() <= 1e-6 * scale
    a, b = (torch.autograd.grad((y * weights).sum(), x)[0] for y in (ours, expected))
    assert (a - b).abs().max() <= 2e-6


def test_rows_of_a_sequence_do_not_see_the_others():
    x = torch.randn(N, 2)
    far = x.clone()
    far[:5] += 1000 * torch.rand(5, 2)
    assert torch.equal(segment_log_softmax(x, OFFSETS)[5:], segment_log_softmax(far, OFFSETS)[5:])


def test_gradcheck():
    x, teacher = (torch.randn(N, 2, dtype=torch.float64) for _ in range(2))
    for f in (lambda x: segment_log_softmax(x, OFFSETS), lambda x: span_loss(x, OFFSETS, *gold()),
              lambda x: span_distillation(x, teacher, OFFSETS, 2.0)):
        assert torch.autograd.gradcheck(f, [x.requires_grad_()])


def test_span_loss_is_the_sum_of_the_cross_entropies():
    logits = torch.randn(N, 2, dtype=torch.float64)
    starts, ends = gold()
    expected = sum((F.cross_entropy(part[:, 0], start) + F.cross_entropy(part[:, 1], end)) / 2
                   for part, start, end in zip(logits.split(LENGTHS), starts, ends))
    assert span_loss(logits, OFFSETS, starts, ends).item() == pytest.approx(expected.item(), rel=1e-12)


def test_distillation_is_the_sum_of_the_divergences():
    student, teacher = (torch.randn(N, 2, dtype=torch.float64) for _ in range(2))
    # run_squad_w_distillation.py, one example at a time: "batchmean" over a batch of one
    expected = sum(F.kl_div((s / 3).log_softmax(1), (t / 3).softmax(1), reduction="batchmean") * 3**2 / 2
                   for a, b in zip(student.split(LENGTHS), teacher.split(LENGTHS))
                   for s, t in zip(a.T[:, None], b.T[:, None]))
    ours = span_distillation(student, teacher, OFFSETS, 3.0)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-12)


def test_no_divergence_and_no_gradient_when_student_equals_teacher():
    student = torch.randn(N, 2, requires_grad=True)
    teacher = student.detach().clone().requires_grad_()
    loss = span_distillation(student, teacher, OFFSETS, 2.0)
    loss.backward()
    assert abs(loss.item()) < 1e-6 and student.grad.abs().max() < 1e-6 and teacher.grad is None


def test_a_batch_is_the_sum_of_its_micro_batches():
    logits, teacher = torch.randn(N, 2, dtype=torch.float64), torch.randn(N, 2, dtype=torch.float64)
    starts, ends = gold()
    parts = [slice(0, 6), slice(6, 22)]
    offsets = [OFFSETS[:3], OFFSETS[2:] - 6]
    golds = [slice(0, 2), slice(2, 5)]
    whole = span_loss(logits, OFFSETS, starts, ends), span_distillation(logits, teacher, OFFSETS, 2.0)
    sums = (sum(span_loss(logits[p], o, starts[g], ends[g]) for p, o, g in zip(parts, offsets, golds)),
            sum(span_distillation(logits[p], teacher[p], o, 2.0) for p, o in zip(parts, offsets)))
    assert torch.stack(whole).tolist() == pytest.approx(torch.stack(sums).tolist(), rel=1e-12)


def test_sixteen_bit_logits_are_summed_in_fp32():
    logits = torch.randn(N, 2).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = span_loss(logits, OFFSETS, *gold()) + span_distillation(logits, -logits, OFFSETS, 2.0)
    exact = logits.detach().float()
    expected = span_loss(exact, OFFSETS, *gold()) + span_distillation(exact, -exact, OFFSETS, 2.0)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert logits.grad.dtype == torch.bfloat16

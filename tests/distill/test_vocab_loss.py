"""The fused vocabulary losses against the same written out with whole logits, forward and backward."""

import pytest
import torch
import torch.nn.functional as F

from minibert.distill import vocab_loss as module
from minibert.distill.vocab_loss import Vocab, vocab_loss, vocab_loss_plain
from minibert.model.batch import IGNORE
from steps import LargestTensor

N, D, V = 23, 8, 37


def sides(dtype, width=D):
    make = lambda: Vocab(*(torch.randn(*s, dtype=dtype)  # noqa: E731
                           for s in ((N, width), (V, width), (V,))))
    labels = torch.where(torch.rand(N) < 0.4, torch.randint(V, (N,)), IGNORE)
    return make(), make(), labels


@pytest.mark.parametrize("chunk", [1, 5, 23, 100, None])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.float64, 1e-13)])
def test_equals_the_plain_losses_forward_and_backward(chunk, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(module, "TILE_ELEMENTS", 3 * V)  # tiles inside chunks, dividing them or not
    student, teacher, labels = sides(dtype)
    leaves = [t.requires_grad_() for t in student]
    kl = vocab_loss_plain(student, labels, teacher, kl_weight=1.0, temperature=2.0)
    mlm = vocab_loss_plain(student, labels, mlm_weight=1.0)
    expected = vocab_loss_plain(student, labels, teacher, mlm_weight=0.3, kl_weight=0.7, temperature=2.0)
    assert expected.item() == pytest.approx(0.3 * mlm.item() + 0.7 * kl.item(), rel=1e-6)
    gradients = torch.autograd.grad(5 * expected, leaves)
    loss, sums = vocab_loss(student, labels, teacher, mlm_weight=0.3, kl_weight=0.7, temperature=2.0,
                            chunk=chunk)
    for ours, theirs in zip((loss, sums.kl, sums.mlm, *torch.autograd.grad(5 * loss, leaves)),
                            (expected, kl, mlm, *gradients)):
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_gradcheck():
    student, teacher, labels = sides(torch.float64)
    f = lambda *leaves: vocab_loss(Vocab(*leaves), labels, teacher, mlm_weight=2.0,  # noqa: E731
                                   kl_weight=5.0, temperature=2.0, chunk=4)[0]
    assert torch.autograd.gradcheck(f, [t.requires_grad_() for t in student])


def test_mlm_alone_and_the_count_of_right_ones():
    student, _, labels = sides(torch.float64)
    loss, sums = vocab_loss(student, labels, mlm_weight=1.0)
    z = student.states @ student.table.T + student.bias
    keep = labels != IGNORE
    assert loss.item() == pytest.approx(F.cross_entropy(z[keep], labels[keep], reduction="sum").item())
    assert sums.correct == (z.argmax(-1) == labels)[keep].sum() and sums.kl == 0


def test_no_divergence_and_no_gradient_when_student_equals_teacher():
    student, _, labels = sides(torch.float32)
    teacher = Vocab(*(t.clone() for t in student))
    leaves = [t.requires_grad_() for t in student]
    loss, sums = vocab_loss(student, torch.full_like(labels, IGNORE), teacher, kl_weight=1.0, temperature=2.0)
    assert abs(sums.kl.item()) < 1e-6
    assert all(g.abs().max() < 1e-6 for g in torch.autograd.grad(loss, leaves))


def test_the_teacher_gets_no_gradient_and_may_have_another_width():
    student, _, labels = sides(torch.float32)
    _, teacher, _ = sides(torch.float32, width=2 * D)
    for t in (*student, *teacher):
        t.requires_grad_()
    vocab_loss(student, labels, teacher, kl_weight=1.0)[0].backward()
    assert all(t.grad is None for t in teacher) and all(t.grad is not None for t in student)


def test_frozen_table_gets_no_gradient():
    student, teacher, labels = sides(torch.float32)
    student.states.requires_grad_()
    vocab_loss(student, labels, teacher, mlm_weight=1.0, kl_weight=1.0)[0].backward()
    assert student.table.grad is None and student.states.grad.abs().sum() > 0


def test_without_grad_no_gradient_is_computed(monkeypatch):
    student, teacher, labels = sides(torch.float32)
    leaves = Vocab(*(t.requires_grad_() for t in student))
    monkeypatch.setattr(torch.Tensor, "addmm_", None)  # the table's gradient would call it
    with torch.no_grad():
        vocab_loss(leaves, labels, teacher, mlm_weight=1.0, kl_weight=1.0)
    with pytest.raises(TypeError):
        vocab_loss(leaves, labels, teacher, mlm_weight=1.0, kl_weight=1.0)


def test_autocast_is_close_and_keeps_fp32_sums():
    student, teacher, labels = sides(torch.float32)
    leaves = [t.requires_grad_() for t in student]
    exact, _ = vocab_loss(student, labels, teacher, mlm_weight=1.0, kl_weight=1.0)
    gradients = torch.autograd.grad(exact, leaves)
    with torch.autocast("cpu", torch.bfloat16):
        loss, sums = vocab_loss(student, labels, teacher, mlm_weight=1.0, kl_weight=1.0)
    assert loss.dtype == sums.kl.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    for ours, theirs in zip(torch.autograd.grad(loss, leaves), gradients):
        assert (ours.dtype == torch.float32
                and F.cosine_similarity(ours.flatten(), theirs.flatten(), 0) > 0.999)


def test_no_rows_at_all():
    student = Vocab(torch.zeros(0, D, requires_grad=True), torch.randn(V, D, requires_grad=True),
                    torch.randn(V))
    loss, sums = vocab_loss(student, torch.zeros(0, dtype=torch.int64), mlm_weight=1.0)
    loss.backward()
    assert loss == 0 and sums.correct == 0 and student.table.grad.abs().sum() == 0


def test_memory_does_not_grow_with_tokens_times_vocabulary(monkeypatch):
    # every tensor that autograd keeps, and the largest that any operation makes
    monkeypatch.setattr(module, "TILE_ELEMENTS", 4 * V)
    student, teacher, labels = sides(torch.float32)
    leaves = [t.requires_grad_() for t in student]
    with LargestTensor() as largest:
        vocab_loss(Vocab(*leaves), labels, teacher, mlm_weight=1.0, kl_weight=1.0, chunk=4)[0].backward()
    assert largest.elements == max(V * D, 4 * V, N * D) < N * V


def test_fp16_keeps_the_gradient_of_a_large_step():
    """Divided by the tokens of a large step, most gradients by logits are below what fp16 can hold."""
    torch.manual_seed(0)
    h, h_t = torch.randn(40, 16), torch.randn(40, 16)
    table, bias = torch.randn(3000, 16) * 0.3, torch.zeros(3000)
    labels = torch.full((40,), IGNORE)
    labels[::7] = 5
    grads = []
    for enabled in (False, True):
        states, words = h.clone().requires_grad_(), table.clone().requires_grad_()
        with torch.autocast("cpu", torch.float16, enabled=enabled):
            loss, _ = vocab_loss(Vocab(states, words, bias), labels, Vocab(h_t, table, bias), temperature=2.0,
                                 kl_weight=5 / 400_000, mlm_weight=2 / 60_000)
        (loss * 65536.0).backward()  # as a loss scaler does: too late for what has become zero before
        grads.append((states.grad, words.grad))
    for full, half in zip(*grads):
        assert (half - full).norm() < 0.01 * full.norm()

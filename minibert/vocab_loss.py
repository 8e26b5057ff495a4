"""Cross-entropy and distillation KL over the vocabulary, without ever holding the logits of all rows.

With z = h E' + b the logits of a row (E the word table, tied; b the bias), and a teacher's likewise:

    MLM:  -log softmax(z_s)[label]                                     rows that have a label
    KL:   T^2 * KL( softmax(z_t / T) || softmax(z_s / T) )             every row (Hinton et al. 2015; DistilBERT)

The logits of N rows are N x V numbers, 250 MB in fp32 for 2,048 tokens of BERT. Rows are walked in chunks instead, and each
chunk's gradients are computed at once: d KL / d z_s = T (softmax(z_s / T) - softmax(z_t / T)), d MLM / d z_s =
softmax(z_s) - onehot(label). What remains after a chunk are sums and the gradients of h, E and b.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from minibert.batch import IGNORE

CHUNK_ELEMENTS = 1 << 22  # rows are taken so many logits at a time: 16 MB in fp32, 137 rows of BERT's vocabulary


class Vocab(NamedTuple):
    """One model's side of the comparison: the MLM head's states (N, D), the word table (V, D), the bias (V,)."""

    states: Tensor
    table: Tensor
    bias: Tensor


class Sums(NamedTuple):
    """Detached sums over rows: KL times T^2, MLM cross-entropy (nats), rows whose likeliest token is the label."""

    kl: Tensor
    mlm: Tensor
    correct: Tensor


def vocab_loss(student: Vocab, labels: Tensor, teacher: Vocab | None = None, *, mlm_weight: float = 0.0,
               kl_weight: float = 0.0, temperature: float = 1.0, kl_rows: Tensor | None = None,
               chunk: int | None = None) -> tuple[Tensor, Sums]:
    """`mlm_weight` * MLM sum + `kl_weight` * KL sum as one differentiable scalar, and the two sums by themselves.

    The weights carry the division by the whole step's counts. labels (N,), `IGNORE` where there is none; `kl_rows` (N,)
    bool restricts the KL to some rows; `chunk` rows at a time. Gradients reach the student's states, table and bias; the
    teacher gets none. Under autocast the products are in its dtype, everything else in fp32.
    """
    if teacher is None:
        teacher, kl_weight = Vocab(*(None,) * 3), 0.0
    loss, *sums = _VocabLoss.apply(*student, *teacher, labels, mlm_weight, kl_weight, temperature, kl_rows,
                                   chunk or max(1, CHUNK_ELEMENTS // len(student.table)))
    return loss, Sums(*sums)


class _VocabLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, table, bias, t_states, t_table, t_bias, labels, mlm_weight, kl_weight, temperature, kl_rows,
                chunk):
        need_states, need_table, need_bias = ctx.needs_input_grad[:3]
        kind = states.device.type
        low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
        full = torch.float64 if states.dtype == torch.float64 else torch.float32
        with torch.autocast(kind, enabled=False):
            states, table = states.to(low), table.to(low)  # once, not once a chunk
            if t_states is not None:
                t_states, t_table, t_bias = t_states.to(low), t_table.to(low), t_bias.to(full)
            grad_states = torch.empty_like(states, dtype=full) if need_states else None
            grad_table = torch.zeros_like(table, dtype=full) if need_table else None
            grad_bias = torch.zeros_like(bias, dtype=full) if need_bias else None
            kl, mlm, correct = (torch.zeros((), dtype=full, device=states.device) for _ in range(3))
            bias = bias.to(full)
            for start in range(0, len(states), chunk):
                rows = slice(start, start + chunk)
                h = states[rows]
                z = _logits(h, table, bias, full)  # (C, V)
                grad = None
                if t_states is not None:
                    z_t = _logits(t_states[rows], t_table, t_bias, full)
                    sums, grad = _kl(z, z_t, temperature, None if kl_rows is None else kl_rows[rows])
                    kl += sums
                    grad *= kl_weight
                labelled = (labels[rows] != IGNORE).nonzero().squeeze(1)
                if len(labelled):
                    target = labels[rows][labelled]
                    every = len(labelled) == len(h)
                    log_p = (z if every else z[labelled]).log_softmax(-1)  # (M, V)
                    mlm -= log_p.gather(1, target[:, None]).sum()
                    correct += (log_p.argmax(-1) == target).sum()
                    p = log_p.exp_()
                    p[torch.arange(len(target), device=p.device), target] -= 1
                    p *= mlm_weight
                    if grad is None:
                        grad = p if every else torch.zeros_like(z).index_copy_(0, labelled, p)
                    else:
                        grad.index_add_(0, labelled, p)
                if grad is None:
                    if need_states:
                        grad_states[rows] = 0
                    continue
                if need_bias:
                    grad_bias += grad.sum(0)
                g = grad.to(low)
                if need_states:
                    grad_states[rows] = g @ table
                if need_table:
                    if low == full:
                        grad_table.addmm_(g.t(), h)
                    else:
                        grad_table += g.t() @ h
        ctx.save_for_backward(grad_states, grad_table, grad_bias)
        ctx.mark_non_differentiable(kl, mlm, correct)
        return mlm_weight * mlm + kl_weight * kl, kl, mlm, correct

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss, *_):
        scaled = (None if g is None else g * grad_loss for g in ctx.saved_tensors)
        return *scaled, *(None,) * 9


def _logits(h: Tensor, table: Tensor, bias: Tensor, full: torch.dtype) -> Tensor:
    if h.dtype == full:
        return torch.addmm(bias, h, table.t())
    return (h @ table.t()).to(full).add_(bias)


def _kl(z_s: Tensor, z_t: Tensor, temperature: float, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """T^2 KL summed over rows, and its gradient (C, V) by z_s. z_t is overwritten.

    sum p_t (log p_t - log p_s) = sum p_t (z_t - z_s) / T - lse(z_t / T) + lse(z_s / T): no logarithm per entry.
    """
    z_t = z_t.div_(temperature)
    scaled = z_s / temperature
    lse_t, lse_s = z_t.logsumexp(-1, keepdim=True), scaled.logsumexp(-1, keepdim=True)
    p_t = (z_t - lse_t).exp_()
    difference = z_t.sub_(scaled)
    kl = torch.linalg.vecdot(p_t, difference) + (lse_s - lse_t).squeeze(1)  # (C,)
    grad = scaled.sub_(lse_s).exp_().sub_(p_t).mul_(temperature)
    if rows is not None:
        kl, grad = kl * rows, grad.mul_(rows[:, None])
    return kl.sum() * temperature**2, grad

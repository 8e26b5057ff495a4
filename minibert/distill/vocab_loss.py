"""Cross-entropy and distillation KL over the vocabulary, without ever holding the logits of all rows.

With z = h W' + b the logits of a row (W the word table, tied; b the bias), a teacher's likewise, and T here
the temperature:

    MLM:  -log softmax(z_s)[label]                               rows that have a label
    KL:   T^2 * KL( softmax(z_t / T) || softmax(z_s / T) )       every row (Hinton et al. 2015; DistilBERT)

The logits of N rows are N x V numbers, 250 MB in fp32 for 2,048 tokens of BERT. Rows are walked in chunks
of C instead, and each chunk's gradients are computed at once: d KL / d z_s = T (softmax(z_s / T) -
softmax(z_t / T)), d MLM / d z_s = softmax(z_s) - onehot(label). What remains after a chunk are sums and
the gradients of h, W and b.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from minibert.model.batch import IGNORE

# Matrix products want many rows, the passes over their logits want to stay in the cache: a chunk
# is the rows of one product (16 M logits, 549 rows of BERT's vocabulary), a tile the rows of one
# pass (2 M logits, 8 MB in fp32).
CHUNK_ELEMENTS, TILE_ELEMENTS = 1 << 24, 1 << 21


class Vocab(NamedTuple):
    """One model's side of the comparison:
    the MLM head's states (N, D), the word table (V, D), the bias (V,).
    """

    states: Tensor
    table: Tensor
    bias: Tensor


class Sums(NamedTuple):
    """Detached sums over rows:
    KL times T^2, MLM cross-entropy (nats), rows whose likeliest token is the label.
    """

    kl: Tensor
    mlm: Tensor
    correct: Tensor


def vocab_loss(student: Vocab, labels: Tensor, teacher: Vocab | None = None, *, mlm_weight: float = 0.0,
               kl_weight: float = 0.0, temperature: float = 1.0, labelled: Tensor | None = None,
               chunk: int | None = None) -> tuple[Tensor, Sums]:
    """`mlm_weight` * MLM sum + `kl_weight` * KL sum as one differentiable scalar,
    and the `Sums` by themselves.

    The weights carry the division by the whole step's counts. labels (N,), `IGNORE` where there is
    none; `chunk` rows at a time. `labelled` (M,), on the CPU: the rows with a label, in order, if they are
    known; to find them a GPU has to be waited for.
    Gradients reach the student's states, table and bias; the teacher gets none. Under autocast logits
    and their gradients are stored and multiplied in its dtype, softmaxes, sums and results are in fp32.
    """
    if not torch.is_grad_enabled():  # a Function is told that a parameter needs a gradient also under no_grad
        student = Vocab(*(t.detach() for t in student))
    if teacher is None:
        teacher, kl_weight = Vocab(*(None,) * 3), 0.0
    if labelled is None:
        labelled = (labels != IGNORE).nonzero().squeeze(1).cpu()
    loss, *sums = _VocabLoss.apply(*student, *teacher, labels, labelled, mlm_weight, kl_weight, temperature,
                                   chunk or max(1, CHUNK_ELEMENTS // len(student.table)))
    return loss, Sums(*sums)


class _VocabLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, table, bias, t_states, t_table, t_bias, labels, labelled, mlm_weight, kl_weight,
                temperature, chunk):
        need_states, need_table, need_bias = ctx.needs_input_grad[:3]
        kind = states.device.type
        low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
        full = torch.float64 if states.dtype == torch.float64 else torch.float32
        with torch.autocast(kind, enabled=False):
            states, table, bias = states.to(low), table.to(low), bias.to(full)  # once, not once a chunk
            if t_states is not None:
                t_states, t_table, t_bias = t_states.to(low), t_table.to(low), t_bias.to(full)
            grad_states = torch.empty_like(states, dtype=full) if need_states else None
            grad_table = torch.zeros_like(table, dtype=full) if need_table else None
            grad_bias = torch.zeros_like(bias) if need_bias else None
            kl, mlm, correct = (torch.zeros((), dtype=full, device=states.device) for _ in range(3))
            chunk = max(1, min(chunk, len(states)))
            tile = max(1, TILE_ELEMENTS // len(table)) if kind == "cpu" else chunk  # for a CPU's cache
            marked = labelled.to(states.device, non_blocking=True)
            # The weights hold the division by the step's counts, so gradients by logits are tiny: in fp16,
            # most would become 0 before any loss scaling. They are kept near 1 here, and divided at the end.
            up = 1.0
            if low == torch.float16:
                up = 2.0 ** -math.ceil(math.log2(max(mlm_weight, temperature * kl_weight, 1e-30)))
            # allocated once: fresh pages for every chunk cost as much as a pass over them
            z = states.new_empty(chunk, len(table))  # (C, V) logits, then their gradient
            z_t = None if t_states is None else torch.empty_like(z)
            for start in range(0, len(states), chunk):
                h = states[start:start + chunk]
                _logits(h, table, z[:len(h)])
                if t_states is not None:
                    _logits(t_states[start:start + chunk], t_table, z_t[:len(h)])
                for first in range(0, len(h), tile):
                    inside = slice(first, min(first + tile, len(h)))
                    rows = slice(start + first, start + inside.stop)
                    logits, grad = z[inside].to(full) + bias, None
                    if t_states is not None:
                        row_kl, grad = kl_and_gradient(logits, z_t[inside].to(full) + t_bias, temperature)
                        kl += row_kl.sum()
                        grad *= up * kl_weight
                    a, b = torch.searchsorted(labelled, torch.tensor([rows.start, rows.stop])).tolist()
                    here = marked[a:b] - rows.start  # (M,) the labelled rows of this tile
                    grad_mlm, nll, hits = _mlm(logits, labels[rows], here)
                    mlm += nll.sum()
                    correct += hits.sum()
                    if grad is None:
                        grad = (grad_mlm if len(here) == len(logits)
                                else torch.zeros_like(logits).index_copy_(0, here, grad_mlm))
                        grad *= up * mlm_weight
                    else:
                        grad.index_add_(0, here, grad_mlm, alpha=up * mlm_weight)
                    z[inside] = grad
                g = z[:len(h)]
                if need_bias:
                    grad_bias += g.sum(0, dtype=full)
                if need_states:
                    grad_states[start:start + chunk] = g @ table
                if need_table and low == full:
                    grad_table.addmm_(g.t(), h)
                elif need_table:
                    grad_table += g.t() @ h
        if up != 1:
            for g in (grad_states, grad_table, grad_bias):
                if g is not None:
                    g /= up
        ctx.save_for_backward(grad_states, grad_table, grad_bias)
        ctx.mark_non_differentiable(kl, mlm, correct)
        return mlm_weight * mlm + kl_weight * kl, kl, mlm, correct

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss, *_):
        if grad_loss.is_cpu and grad_loss == 1:  # the usual case; on a GPU asking would mean waiting for it
            return *ctx.saved_tensors, *(None,) * 9
        scaled = (None if g is None else g * grad_loss for g in ctx.saved_tensors)
        return *scaled, *(None,) * 9


def kl_and_gradient(z_s: Tensor, z_t: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """T^2 KL of each row (...,) and its gradient (..., V) by z_s, at temperature T; z_t is overwritten."""
    log_s, log_t = (z_s / temperature).log_softmax(-1), z_t.div_(temperature).log_softmax(-1)
    p_t = log_t.exp()
    kl = torch.linalg.vecdot(p_t, log_t.sub_(log_s)) * temperature**2
    return kl, log_s.exp_().sub_(p_t).mul_(temperature)


def _mlm(z: Tensor, labels: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the M rows `labelled`: the gradient (M, V) of their cross-entropy by z, the cross-entropies (M, 1),
    and whether the likeliest token is the label (M, 1).
    """
    target = labels[labelled, None]
    log_p = (z if len(labelled) == len(z) else z[labelled]).log_softmax(-1)  # (M, V)
    nll, hits = -log_p.gather(1, target), log_p.argmax(-1, keepdim=True) == target
    return log_p.exp_().scatter_add_(1, target, torch.full_like(nll, -1.0)), nll, hits


def _logits(h: Tensor, table: Tensor, out: Tensor) -> None:
    """Writes the logits h W' (C, V), without the bias, into `out`.

    A CPU is faster by a third on slices of the vocabulary, whose repacked rows stay in its cache.
    """
    width = 1024 if h.device.type == "cpu" else len(table)
    for first in range(0, len(table), width):
        torch.mm(h, table[first:first + width].t(), out=out[:, first:first + width])

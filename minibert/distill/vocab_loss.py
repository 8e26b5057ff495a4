"""Cross-entropy and distillation KL over the vocabulary. The logits of all rows are never in memory at once.

`vocab_loss_plain` is the definition, in ten lines. `vocab_loss` computes the same numbers in less memory.

With z = h W' + b the logits of a row (W the word table, tied; b the bias), a teacher's likewise, and T here
the temperature:

    MLM:  -log softmax(z_s)[label]                               rows that have a label
    KL:   T^2 * KL( softmax(z_t / T) || softmax(z_s / T) )       every row (Hinton et al. 2015; DistilBERT)

The logits of N rows are N x V numbers, 250 MB in fp32 for 2,048 tokens of BERT. So rows are computed in
chunks of C, and the gradients of each chunk are computed at once: d KL / d z_s = T (softmax(z_s / T) -
softmax(z_t / T)), d MLM / d z_s = softmax(z_s) - onehot(label). After a chunk only sums and the gradients of
h, W and b are kept.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minibert.model.batch import IGNORE

# Matrix products are fast with many rows, and passes over logits are fast in the cache. A chunk is the rows
# of one product (16 M logits, 549 rows of BERT's vocabulary). A tile is the rows of one pass (2 M logits, 8
# MB in fp32).
CHUNK_ELEMENTS, TILE_ELEMENTS = 1 << 24, 1 << 21


class Vocab(NamedTuple):
    """One model's side of the comparison:
    the MLM head's states (N, D), the word table (V, D), the bias (V,).
    """

    states: Tensor
    table: Tensor
    bias: Tensor


class VocabSums(NamedTuple):
    """Detached sums over rows:
    KL times T^2, MLM cross-entropy (nats), and the number of rows whose most likely token is the label.
    """

    kl: Tensor
    mlm: Tensor
    correct: Tensor


def vocab_loss(student: Vocab, labels: Tensor, teacher: Vocab | None = None, *, mlm_weight: float = 0.0,
               kl_weight: float = 0.0, temperature: float = 1.0, labelled: Tensor | None = None,
               chunk: int | None = None) -> tuple[Tensor, VocabSums]:
    """`mlm_weight` * MLM sum + `kl_weight` * KL sum as one differentiable scalar, and the `VocabSums`
    by themselves.

    The weights carry the division by the counts of the whole step. labels (N,), `IGNORE` where there is none;
    `chunk` rows at a time. `labelled` (M,), on the CPU: the rows with a label, in order, if they are known.
    Finding them would wait for the GPU. Gradients reach the student's states, table and bias; the teacher
    gets none. Under autocast logits and their gradients are stored and multiplied in its dtype; softmaxes,
    sums and results are in fp32.
    """
    # under no_grad a Function is still told that a parameter needs a gradient
    if not torch.is_grad_enabled():
        student = Vocab(*(t.detach() for t in student))
    if teacher is None:
        kl_weight = 0.0
    if labelled is None:
        labelled = (labels != IGNORE).nonzero().squeeze(1).cpu()
    terms = _Terms(teacher, labels, labelled, mlm_weight, kl_weight, temperature,
                   chunk or max(1, CHUNK_ELEMENTS // len(student.table)))
    loss, *sums = _VocabLoss.apply(*student, terms)
    return loss, VocabSums(*sums)


def vocab_loss_plain(student: Vocab, labels: Tensor, teacher: Vocab | None = None, *, mlm_weight: float = 0.0,
                     kl_weight: float = 0.0, temperature: float = 1.0) -> Tensor:
    """The definition, with the logits of all rows at once. A test compares `vocab_loss` and its gradients
    with it.
    """
    z_s = student.states @ student.table.t() + student.bias  # (N, V)
    loss = mlm_weight * F.cross_entropy(z_s, labels, ignore_index=IGNORE, reduction="sum")
    if teacher is not None:
        z_t = (teacher.states @ teacher.table.t() + teacher.bias).detach()  # (N, V)
        log_s, log_t = ((z / temperature).log_softmax(-1) for z in (z_s, z_t))
        loss = loss + kl_weight * temperature**2 * F.kl_div(log_s, log_t, reduction="sum", log_target=True)
    return loss


class _Terms(NamedTuple):
    """The arguments of `vocab_loss` except the student."""

    teacher: Vocab | None
    labels: Tensor
    labelled: Tensor
    mlm_weight: float
    kl_weight: float
    temperature: float
    chunk: int


class _VocabLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, table, bias, terms):
        need_states, need_table, need_bias = ctx.needs_input_grad[:3]
        kind = states.device.type
        low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
        full = torch.float64 if states.dtype == torch.float64 else torch.float32
        with torch.autocast(kind, enabled=False):
            states, table, bias = states.to(low), table.to(low), bias.to(full)  # once, not once a chunk
            if terms.teacher is not None:
                t_states, t_table, t_bias = terms.teacher
                terms = terms._replace(teacher=Vocab(t_states.to(low), t_table.to(low), t_bias.to(full)))
            grad_states = torch.empty_like(states, dtype=full) if need_states else None
            grad_table = torch.zeros_like(table, dtype=full) if need_table else None
            grad_bias = torch.zeros_like(bias) if need_bias else None
            sums = VocabSums(*(torch.zeros((), dtype=full, device=states.device) for _ in range(3)))
            # The weights contain the division by the step's counts, so gradients of logits are tiny. In fp16
            # most would become 0 before any loss scaling. Here they are kept near 1 and divided at the end.
            up = 1.0
            if low == torch.float16:
                largest = max(terms.mlm_weight, terms.temperature * terms.kl_weight, 1e-30)
                up = 2.0 ** -math.ceil(math.log2(largest))
            marked = terms.labelled.to(states.device, non_blocking=True)
            chunk = max(1, min(terms.chunk, len(states)))
            # allocated once: new pages for every chunk cost as much as a pass over them
            z = states.new_empty(chunk, len(table))  # (C, V) logits, then their gradient
            z_t = None if terms.teacher is None else torch.empty_like(z)  # (C, V)
            for start in range(0, len(states), chunk):
                h = states[start:start + chunk]  # (C, D)
                _logits(h, table, z[:len(h)])
                if z_t is not None:
                    _logits(terms.teacher.states[start:start + chunk], terms.teacher.table, z_t[:len(h)])
                g = z[:len(h)]
                _logits_to_gradients(g, z_t, start, bias, terms, marked, up, sums)
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
        ctx.mark_non_differentiable(*sums)
        return terms.mlm_weight * sums.mlm + terms.kl_weight * sums.kl, *sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss, *_):
        # the usual case; on a GPU the comparison would wait for the device
        if grad_loss.is_cpu and grad_loss == 1:
            return *ctx.saved_tensors, None
        return *(None if g is None else g * grad_loss for g in ctx.saved_tensors), None


def _logits_to_gradients(z: Tensor, z_t: Tensor | None, start: int, bias: Tensor, terms: _Terms,
                         marked: Tensor, up: float, sums: VocabSums) -> None:
    """Overwrites a chunk of logits (C, V), without the bias, with `up` times their gradient, and adds to the
    `sums`. Its rows begin at `start`; `marked` are the rows with a label, on the device of z.
    """
    # a tile at a time, which a CPU's cache holds
    tile = max(1, TILE_ELEMENTS // z.shape[1]) if z.device.type == "cpu" else len(z)
    for first in range(0, len(z), tile):
        inside = slice(first, min(first + tile, len(z)))
        rows = slice(start + first, start + inside.stop)
        logits, grad = z[inside].to(bias.dtype) + bias, None
        if z_t is not None:
            teacher_logits = z_t[inside].to(bias.dtype) + terms.teacher.bias
            row_kl, grad = kl_and_gradient(logits, teacher_logits, terms.temperature)
            sums.kl.add_(row_kl.sum())
            grad *= up * terms.kl_weight
        a, b = torch.searchsorted(terms.labelled, torch.tensor([rows.start, rows.stop])).tolist()
        here = marked[a:b] - rows.start  # (M,) the labelled rows of this tile
        grad_mlm, nll, hits = _mlm(logits, terms.labels[rows], here)
        sums.mlm.add_(nll.sum())
        sums.correct.add_(hits.sum())
        if grad is None:
            grad = (grad_mlm if len(here) == len(logits)
                    else torch.zeros_like(logits).index_copy_(0, here, grad_mlm))
            grad *= up * terms.mlm_weight
        else:
            grad.index_add_(0, here, grad_mlm, alpha=up * terms.mlm_weight)
        z[inside] = grad


def kl_and_gradient(z_s: Tensor, z_t: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """T^2 KL of each row (...,) and its gradient (..., V) with respect to z_s, at temperature T. Overwrites
    z_t.
    """
    log_s, log_t = (z_s / temperature).log_softmax(-1), z_t.div_(temperature).log_softmax(-1)
    p_t = log_t.exp()
    kl = torch.linalg.vecdot(p_t, log_t.sub_(log_s)) * temperature**2
    return kl, log_s.exp_().sub_(p_t).mul_(temperature)


def _mlm(z: Tensor, labels: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For the M rows `labelled`: the gradient (M, V) of their cross-entropy, the cross-entropies (M, 1), and
    whether the most likely token is the label (M, 1).
    """
    target = labels[labelled, None]
    log_p = (z if len(labelled) == len(z) else z[labelled]).log_softmax(-1)  # (M, V)
    nll, hits = -log_p.gather(1, target), log_p.argmax(-1, keepdim=True) == target
    return log_p.exp_().scatter_add_(1, target, torch.full_like(nll, -1.0)), nll, hits


def _logits(h: Tensor, table: Tensor, out: Tensor) -> None:
    """Writes the logits h W' (C, V), without the bias, into `out`.

    On a CPU slices of the vocabulary are faster by a third, because their repacked rows stay in the cache.
    """
    width = 1024 if h.device.type == "cpu" else len(table)
    for first in range(0, len(table), width):
        torch.mm(h, table[first:first + width].t(), out=out[:, first:first + width])

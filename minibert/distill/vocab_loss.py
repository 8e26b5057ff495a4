"""Computes the MLM cross-entropy and the distillation KL over the vocabulary. `vocab_loss_plain` defines the
loss. `vocab_loss` computes the same loss with less memory.

A row is a token of the batch. Its logits z = h W' + b are V numbers, one for each token of the vocabulary. h
(D,) is the state of the MLM head, W (V, D) are the token vectors (in BERT the word embeddings, tied), and b
(V,) is the bias. W' is W transposed. z_s are the student's logits, and z_t are the teacher's. In this file, T
is the temperature, not the sequence length.

    MLM:  -log softmax(z_s)[label]                               rows that have a label
    KL:   T^2 * KL( softmax(z_t / T) || softmax(z_s / T) )       every row (Hinton et al. 2015; DistilBERT)

For 2,048 tokens and BERT's vocabulary, the logits take 250 MB in fp32. To save memory, the logits are
computed in chunks of C rows, together with the gradients of the loss:

    d KL / d z_s = T (softmax(z_s / T) - softmax(z_t / T))
    d MLM / d z_s = softmax(z_s) - onehot(label)

After each chunk, only the sums of the losses and the gradients of h, W and b stay in memory.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minibert.model.batch import IGNORE

# A chunk has at most 64 MB of logits, because matrix products are fast with many rows. On a CPU, elementwise
# operations read tiles of 0.5 million logits, because a tile fits in the cache.
CHUNK_BYTES, TILE_ELEMENTS = 1 << 26, 1 << 19


class Vocab(NamedTuple):
    """The tensors from which the logits of one model are computed: the states of its MLM head at N tokens
    (N, D), the token vectors (V, D) and the bias (V,).
    """

    states: Tensor
    table: Tensor
    bias: Tensor


class VocabSums(NamedTuple):
    """Detached sums over all rows: the KL multiplied by T^2, the MLM cross-entropy in nats, and the number of
    rows whose most likely token is the label.
    """

    kl: Tensor
    mlm: Tensor
    correct: Tensor


def vocab_loss(student: Vocab, labels: Tensor, teacher: Vocab | None = None, *, mlm_weight: float = 0.0,
               kl_weight: float = 0.0, temperature: float = 1.0, labelled: Tensor | None = None,
               chunk: int | None = None) -> tuple[Tensor, VocabSums]:
    """Returns the loss `mlm_weight` * (MLM sum) + `kl_weight` * (KL sum), and the sums without weights
    (`VocabSums`). For means instead of sums, the caller divides the weights by the numbers of tokens in the
    whole step.

    `labels` (N,) is `IGNORE` for a row without a label. `labelled` (M,), on the CPU, has the numbers of the M
    rows with a label, in ascending order. If `labelled` is None, this function searches for these rows, and
    the CPU must wait for the GPU. `chunk` is the number of rows in one chunk (None: computed from
    `CHUNK_BYTES`). The teacher gets no gradients. Under autocast, logits and their gradients have the dtype
    of autocast. Softmaxes, sums and results are in fp32 (in fp64 for fp64 states).
    """
    # Under no_grad, `ctx.needs_input_grad` is still True for a parameter. `detach` prevents the computation
    # of unused gradients.
    if not torch.is_grad_enabled():
        student = Vocab(*(t.detach() for t in student))
    if teacher is None:
        kl_weight = 0.0
    if labelled is None:
        labelled = (labels != IGNORE).nonzero().squeeze(1).cpu()
    terms = _Terms(teacher, labels, labelled, mlm_weight, kl_weight, temperature, chunk)
    # The student's tensors are separate arguments, because autograd does not look into tuples.
    loss, *sums = _VocabLoss.apply(*student, terms)
    return loss, VocabSums(*sums)


def vocab_loss_plain(student: Vocab, labels: Tensor, teacher: Vocab | None = None, *, mlm_weight: float = 0.0,
                     kl_weight: float = 0.0, temperature: float = 1.0) -> Tensor:
    """Returns the loss of `vocab_loss` without the `VocabSums`. Needs the logits of all rows in memory."""
    z_s = student.states @ student.table.t() + student.bias  # (N, V)
    loss = mlm_weight * F.cross_entropy(z_s, labels, ignore_index=IGNORE, reduction="sum")
    if teacher is not None:
        z_t = (teacher.states @ teacher.table.t() + teacher.bias).detach()  # (N, V)
        log_s, log_t = ((z / temperature).log_softmax(-1) for z in (z_s, z_t))
        # Without the factor T^2, the gradient would be smaller for a larger T (Hinton et al. 2015).
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
    chunk: int | None


class _VocabLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, table, bias, terms):
        need_states, need_table, need_bias = ctx.needs_input_grad[:3]
        kind = states.device.type
        low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
        full = torch.float64 if states.dtype == torch.float64 else torch.float32
        with torch.autocast(kind, enabled=False):
            states, table, bias = states.to(low), table.to(low), bias.to(full)
            if terms.teacher is not None:
                t_states, t_table, t_bias = terms.teacher
                terms = terms._replace(teacher=Vocab(t_states.to(low), t_table.to(low), t_bias.to(full)))
            grad_states = torch.empty_like(states, dtype=full) if need_states else None
            grad_table = torch.zeros_like(table, dtype=full) if need_table else None
            grad_bias = torch.zeros_like(bias) if need_bias else None
            sums = VocabSums(*(torch.zeros((), dtype=full, device=states.device) for _ in range(3)))
            # The caller has divided `mlm_weight` and `kl_weight` by numbers of tokens, so in fp16, most
            # gradients of the logits would become 0. So both weights are multiplied by `up`, and at the end
            # the gradients are divided by `up`.
            up = 1.0
            if low == torch.float16:
                largest = max(terms.mlm_weight, terms.temperature * terms.kl_weight, 1e-30)
                up = 2.0 ** -math.ceil(math.log2(largest))
            scaled = terms._replace(mlm_weight=up * terms.mlm_weight, kl_weight=up * terms.kl_weight)
            marked = terms.labelled.to(states.device, non_blocking=True)
            chunk = terms.chunk or CHUNK_BYTES // (len(table) * table.element_size())
            chunk = max(1, min(chunk, len(states)))
            # All chunks share two buffers, because a new buffer takes as long as one operation on the chunk.
            z = states.new_empty(chunk, len(table))  # (C, V) logits, then their gradient
            z_t = None if terms.teacher is None else torch.empty_like(z)  # (C, V)
            for start in range(0, len(states), chunk):
                h = states[start:start + chunk]  # (C, D)
                _logits(h, table, z[:len(h)])
                if z_t is not None:
                    _logits(terms.teacher.states[start:start + chunk], terms.teacher.table, z_t[:len(h)])
                g = z[:len(h)]
                _logits_to_gradients(g, z_t, start, bias, scaled, marked, sums, grad_bias)
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
        # If `grad_loss` is 1 (no loss scale), the multiplication is skipped on a CPU. On a GPU, it is not
        # skipped, because the comparison with 1 would wait for the GPU.
        if grad_loss.is_cpu and grad_loss == 1:
            return *ctx.saved_tensors, None
        return *(None if g is None else g * grad_loss for g in ctx.saved_tensors), None


def _logits_to_gradients(z: Tensor, z_t: Tensor | None, start: int, bias: Tensor, terms: _Terms,
                         marked: Tensor, sums: VocabSums, grad_bias: Tensor | None) -> None:
    """`z` (C, V) has a chunk of the student's logits without the bias. Replaces these logits by the gradients
    of the loss. Adds the losses to `sums`, and the gradient of the bias to `grad_bias`. `z_t` has the
    teacher's logits without the bias (None: no teacher). `start` is the number of the chunk's first row.
    `marked` is `terms.labelled` on the device of `z`.
    """
    tile = max(1, TILE_ELEMENTS // z.shape[1]) if z.device.type == "cpu" else len(z)
    for first in range(0, len(z), tile):
        inside = slice(first, min(first + tile, len(z)))
        rows = slice(start + first, start + inside.stop)
        logits = z[inside].to(bias.dtype).add_(bias)
        a, b = torch.searchsorted(terms.labelled, torch.tensor([rows.start, rows.stop])).tolist()
        here = marked[a:b] - rows.start  # the labelled rows of this tile, counted from its first row
        grad_mlm, nll, hits = _mlm(logits, terms.labels[rows], here)
        sums.mlm.add_(nll.sum())
        sums.correct.add_(hits.sum())
        if z_t is not None:
            teacher_logits = z_t[inside].to(bias.dtype).add_(terms.teacher.bias)
            row_kl, grad = kl_and_gradient(logits, teacher_logits, terms.temperature)
            sums.kl.add_(row_kl.sum())
            grad *= terms.kl_weight
            grad.index_add_(0, here, grad_mlm, alpha=terms.mlm_weight)
        else:
            grad = (grad_mlm if len(here) == len(logits)
                    else torch.zeros_like(logits).index_copy_(0, here, grad_mlm))
            grad *= terms.mlm_weight
        if grad_bias is not None:
            grad_bias += grad.sum(0)
        z[inside] = grad


def kl_and_gradient(z_s: Tensor, z_t: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Returns two tensors for logits z_s and z_t (..., V): T^2 KL(softmax(z_t / T) || softmax(z_s / T)) for
    each row, and the gradient (..., V) of this KL with respect to z_s. T is `temperature`. Overwrites z_s and
    z_t.
    """
    p_s, log_sum_s = _softmax(z_s.div_(temperature))
    p_t, log_sum_t = _softmax(z_t.div_(temperature))
    # the KL is the sum of p_t (log p_t - log p_s), with log p = z - log sum exp(z)
    kl = z_t.sub_(z_s).mul_(p_t).sum(-1) + log_sum_s - log_sum_t
    return kl * temperature**2, p_s.sub_(p_t).mul_(temperature)


def _mlm(z: Tensor, labels: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns three tensors for the M rows `labelled`: the gradient (M, V) of the cross-entropy, the
    cross-entropy (M, 1), and a bool (M, 1) that is True if the most likely token is the label.
    """
    target = labels[labelled, None]
    z = z if len(labelled) == len(z) else z[labelled]  # (M, V)
    p, log_sum = _softmax(z)
    nll = log_sum[:, None] - z.gather(1, target)
    hits = z.argmax(-1, keepdim=True) == target
    return p.scatter_add_(1, target, torch.full_like(nll, -1.0)), nll, hits


def _softmax(z: Tensor) -> tuple[Tensor, Tensor]:
    """Returns softmax(z) (..., V) and log sum exp(z) (...,)."""
    p = z.softmax(-1)
    # log sum exp(z) = z_v - log p_v for each vocabulary token v. The code takes the token with the largest
    # p_v, because this p_v is never 0.
    return p, z.amax(-1) - p.amax(-1).log()


def _logits(h: Tensor, table: Tensor, out: Tensor) -> None:
    """Writes the products h W' (C, V), the logits without the bias, into `out`. W is `table`. On a CPU, h is
    multiplied with 1,024 token vectors at a time, because these vectors stay in the cache. These products
    together are a third faster than one product with all token vectors.
    """
    width = 1024 if h.device.type == "cpu" else len(table)
    for first in range(0, len(table), width):
        torch.mm(h, table[first:first + width].t(), out=out[:, first:first + width])

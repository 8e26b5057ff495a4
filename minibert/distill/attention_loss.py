"""Losses that compare attention inside student and teacher, as sums over packed batches.

A step divides the sums by the count of the whole step (all micro-batches, all ranks).

With z = a b' / sqrt(E) the (T, T) scores of one head of one sequence, a and b its queries and keys, or one of
queries, keys and values with itself:

    squares:  mean over j of (z_s - z_t)_ij^2                          row i of TinyBERT's attention loss
    KL:       KL( softmax(z_t)_i || softmax(z_s)_i )                   row i of MiniLM's relations

Both are averaged over rows and heads of each sequence and summed over sequences. All scores of a layer are S
x H x T^2 numbers, 400 MB in fp32 for 32 sequences of 512 tokens and 12 heads, for each model. They are
computed in chunks of some sequences, or of some heads of one sequence. The gradients of each chunk are
computed at once: with respect to z_s, G = 2 (z_s - z_t) / T or softmax(z_s) - softmax(z_t); with respect to a
and b, G b / sqrt(E) and G' a / sqrt(E). Only the sum and the gradients of a and b are kept.
torch.utils.checkpoint would keep even less, but it would compute the forward products twice and hold the
scores of a whole call at once in backward.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from minibert.common.errors import UserError
from minibert.distill.vocab_loss import kl_and_gradient
from minibert.model.attention import runs_of_equal_length
from minibert.model.batch import Batch

# The number of scores of one model in memory at once, at least one (T, T): 8 MB in fp32. On a CPU a thirtieth
# of it and twice as much took the same time. A GPU, where each kernel launch costs time, was not measured.
CHUNK_ELEMENTS = 1 << 21


def attention_sum(q: Tensor, k: Tensor, t_q: Tensor, t_k: Tensor, batch: Batch,
                  chunk: int | None = None) -> Tensor:
    """Sum over sequences of the mean over heads and T^2 cells of the squared difference of q k' / sqrt(E),
    the scores before the softmax: L_attn of TinyBERT (Jiao et al. 2019, section 3.1).

    q, k (N, H, E_s) are the student's, t_q, t_k (N, H, E_t) the teacher's; `chunk` scores at a time. note:
    the original code averages over the padded (T, T) matrix of the longest sequence. There the rows of
    padding count, its columns are 0, and a short sequence has less weight than a long one. Here all sequences
    have the same weight, as in the formula.
    """
    return _sequence_sum(_squares, q, k, t_q, t_k, batch, chunk)


def relation_sum(a: Tensor, b: Tensor, t_a: Tensor, t_b: Tensor, batch: Batch,
                 chunk: int | None = None) -> Tensor:
    """Sum over sequences of the mean over heads and rows of
    KL(softmax(t_a t_b' / sqrt(E_t)) || softmax(a b' / sqrt(E_s))).

    a, b (N, H, E_s) are the student's, t_a, t_b (N, H, E_t) the teacher's; `chunk` scores at a time. Of
    queries and keys it is MiniLM's L_AT, of values and values its L_VR (Wang et al. 2020, sections 3.1 and
    3.2); of queries, keys or values with themselves, after `split_heads`, the relations of MiniLMv2 (Wang et
    al. 2021, section 3.1).
    """
    return _sequence_sum(_divergences, a, b, t_a, t_b, batch, chunk)


def split_heads(x: Tensor, relation_heads: int) -> Tensor:
    """(N, H, E) -> (N, R, D / R): concatenates the heads and divides them into R relation heads (MiniLMv2).
    """
    width = x.shape[1] * x.shape[2]
    if width % relation_heads:
        raise UserError(f"{relation_heads} relation heads do not divide the width {width}")
    return x.flatten(1).unflatten(1, (relation_heads, width // relation_heads))


def _sequence_sum(row_loss: Callable, a, b, t_a, t_b, batch: Batch, chunk: int | None) -> Tensor:
    if a.shape[:2] != t_a.shape[:2]:
        raise UserError(f"the student has {a.shape[1]} heads and the teacher {t_a.shape[1]}: attention can "
                        "only be compared head by head; minilmv2 cuts heads anew and fits any")
    return _RowLoss.apply(a, b, t_a, t_b, row_loss, batch.lengths.tolist(), chunk or CHUNK_ELEMENTS)


# Both take scores (..., T, T) and return the sum over their rows and its gradient with respect to z_s.

def _squares(z_s: Tensor, z_t: Tensor) -> tuple[Tensor, Tensor]:
    difference = z_s.sub_(z_t)
    T = difference.shape[-1]
    return torch.linalg.vecdot(difference, difference).sum() / T, difference.mul_(2 / T)


def _divergences(z_s: Tensor, z_t: Tensor) -> tuple[Tensor, Tensor]:
    rows, grad = kl_and_gradient(z_s, z_t, 1.0)
    return rows.sum(), grad


class _RowLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, t_a, t_b, row_loss, lengths, chunk):
        need_a, need_b = ctx.needs_input_grad[:2]
        kind = a.device.type
        low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else a.dtype
        full = torch.float64 if a.dtype == torch.float64 else torch.float32
        # neighbours of equal length are one dense block, as in attention
        runs = runs_of_equal_length(lengths)
        sizes = [count * length for count, length in runs]
        H, scale, t_scale = a.shape[1], 1 / math.sqrt(a.shape[-1]), 1 / math.sqrt(t_a.shape[-1])
        total = torch.zeros((), dtype=full, device=a.device)
        with torch.autocast(kind, enabled=False):
            # gradients are as large as a and b; the scores of a chunk are gone after it
            grad_a = torch.empty_like(a, dtype=full) if need_a else None
            grad_b = torch.empty_like(b, dtype=full) if need_b else None
            pieces = [[None] * len(runs) if x is None else x.split(sizes)
                      for x in (a, b, t_a, t_b, grad_a, grad_b)]
            for (count, T), *piece in zip(runs, *pieces):
                dense = [x if x is None else x.unflatten(0, (count, T)).transpose(1, 2)  # (count, H, T, E)
                         for x in piece]
                heads = max(1, min(H, chunk // T**2))
                some = max(1, chunk // (H * T**2))  # sequences at a time; 1 if the heads of one do not fit
                for i in range(0, count, some):
                    for h in range(0, H, heads):
                        x, y, t_x, t_y, g_x, g_y = (  # (some, heads, T, E)
                            d if d is None else d[i:i + some, h:h + heads] for d in dense)
                        x, y, t_x, t_y = (d.to(low) for d in (x, y, t_x, t_y))
                        rows, grad = row_loss((x @ y.mT).to(full).mul_(scale),  # (some, heads, T, T)
                                              (t_x @ t_y.mT).to(full).mul_(t_scale))
                        total += rows / (H * T)
                        # the mean and the scale after the product: before it, fp16 would lose them
                        grad = grad.to(low)
                        if need_a:
                            torch.mul((grad @ y).to(full), scale / (H * T), out=g_x)
                        if need_b:
                            torch.mul((grad.mT @ x).to(full), scale / (H * T), out=g_y)
        ctx.save_for_backward(grad_a, grad_b)  # the gradient of the sum; backward only scales it
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss):
        return *(None if g is None else g * grad_loss for g in ctx.saved_tensors), *(None,) * 5

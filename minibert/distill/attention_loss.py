"""Computes losses that compare the attention of student and teacher.

In a sequence of T tokens, one head of size E has queries, keys and values, each a (T, E) matrix. The scores
of two such matrices a and b are the (T, T) matrix z = a b' / sqrt(E), where b' is b transposed. In attention,
a are the queries and b the keys. In MiniLM, a and b can also be one matrix, for example the values.

z_s are the student's scores, and z_t are the teacher's. The table has the loss of row i of the scores. G is
the gradient of the sum of all row losses with respect to z_s.

    squares:  mean over j of (z_s - z_t)_ij^2                G = 2 (z_s - z_t) / T                TinyBERT
    KL:       KL( softmax(z_t)_i || softmax(z_s)_i )         G = softmax(z_s) - softmax(z_t)      MiniLM

The row losses are averaged over the rows and heads of each sequence. These averages are summed over the
sequences.

For 32 sequences of 512 tokens and 12 heads, the scores of one layer take 400 MB in fp32. To save memory, the
forward pass computes the scores in chunks, together with the gradients of the averaged loss with respect to
the student's a and b. These two gradients are G b / sqrt(E) and G' a / sqrt(E), divided by H T, the number of
rows of all H heads. G' is G transposed. After a chunk, only the summed loss and the two gradients stay in
memory.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from minibert.common.errors import UserError
from minibert.distill.vocab_loss import kl_and_gradient
from minibert.model.attention import runs_of_equal_length
from minibert.model.batch import Batch

# The largest number of the student's scores in a chunk (8 MB in fp32). If a single head of a long sequence
# has more scores, the chunk has only this head. On a CPU, chunks of 70,000 to 4 million scores were equally
# fast.
CHUNK_ELEMENTS = 1 << 21


def attention_sum(q: Tensor, k: Tensor, t_q: Tensor, t_k: Tensor, batch: Batch,
                  chunk: int | None = None) -> Tensor:
    """Returns TinyBERT's attention loss L_attn (Jiao et al. 2019, section 3.1), summed over the sequences.
    The loss of a sequence of T tokens is the mean squared difference between the scores q k' / sqrt(E) of
    student and teacher. The mean is over the heads and over the T^2 scores of each head.

    `q` and `k` (N, H, E_s) are the student's queries and keys, for N tokens and H heads of size E_s. `t_q`
    and `t_k` (N, H, E_t) are the teacher's queries and keys. `chunk` is the largest number of scores in a
    chunk (None: `CHUNK_ELEMENTS`). Raises `UserError` if student and teacher have different numbers of heads.
    """
    return _sequence_sum(_squares, q, k, t_q, t_k, batch, chunk)


def relation_sum(a: Tensor, b: Tensor, t_a: Tensor, t_b: Tensor, batch: Batch,
                 chunk: int | None = None) -> Tensor:
    """Returns MiniLM's relation loss, summed over the sequences. The loss of a sequence of T tokens is the
    mean of KL(softmax(t_a t_b' / sqrt(E_t)) || softmax(a b' / sqrt(E_s))) over the H T rows of all heads.

    `a` and `b` (N, H, E_s) are queries, keys or values of the student, for N tokens and H heads of size E_s.
    `t_a` and `t_b` (N, H, E_t) are queries, keys or values of the teacher. With the queries as `a` and the
    keys as `b`, the result is MiniLM's loss L_AT. With the values as `a` and `b`, the result is L_VR (Wang et
    al. 2020, sections 3.1 and 3.2). `minilmv2` gives one tensor as `a` and `b`: the queries, the keys or the
    values. `chunk` and the raised `UserError` are as in `attention_sum`.
    """
    return _sequence_sum(_divergences, a, b, t_a, t_b, batch, chunk)


def split_heads(x: Tensor, relation_heads: int) -> Tensor:
    """Divides the D = H * E numbers of each token in `x` (N, H, E) into R = `relation_heads` relation heads,
    as in MiniLMv2. Returns (N, R, D / R). Raises `UserError` if D is not a multiple of R.
    """
    width = x.shape[1] * x.shape[2]
    if width % relation_heads:
        raise UserError(f"{relation_heads} relation heads do not divide the width {width}")
    return x.flatten(1).unflatten(1, (relation_heads, width // relation_heads))


def _sequence_sum(row_loss: Callable, a, b, t_a, t_b, batch: Batch, chunk: int | None) -> Tensor:
    if a.shape[:2] != t_a.shape[:2]:
        raise UserError(f"the student has {a.shape[1]} heads and the teacher {t_a.shape[1]}: attention can "
                        "only be compared head by head; minilmv2 allows different numbers of heads")
    return _RowLoss.apply(a, b, t_a, t_b, row_loss, batch.lengths.tolist(), chunk or CHUNK_ELEMENTS)


# `_squares` and `_divergences` take the scores z_s and z_t (..., T, T), and may overwrite them. They return
# the sum of the row losses, and the gradient of this sum with respect to z_s.

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
        # `low` is the dtype of the matrix products, and `full` is the dtype of all other operations
        low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else a.dtype
        full = torch.float64 if a.dtype == torch.float64 else torch.float32
        runs = runs_of_equal_length(lengths)
        sizes = [count * length for count, length in runs]
        H, scale, t_scale = a.shape[1], 1 / math.sqrt(a.shape[-1]), 1 / math.sqrt(t_a.shape[-1])
        total = torch.zeros((), dtype=full, device=a.device)
        with torch.autocast(kind, enabled=False):
            grad_a = torch.empty_like(a, dtype=full) if need_a else None
            grad_b = torch.empty_like(b, dtype=full) if need_b else None
            pieces = [[None] * len(runs) if x is None else x.split(sizes)
                      for x in (a, b, t_a, t_b, grad_a, grad_b)]
            for (count, T), *piece in zip(runs, *pieces):
                dense = [x if x is None else x.unflatten(0, (count, T)).transpose(1, 2)  # (count, H, T, E)
                         for x in piece]
                heads = max(1, min(H, chunk // T**2))
                several = max(1, chunk // (H * T**2))  # sequences in a chunk
                for i in range(0, count, several):
                    for h in range(0, H, heads):
                        x, y, t_x, t_y, g_x, g_y = (  # (several, heads, T, E)
                            d if d is None else d[i:i + several, h:h + heads] for d in dense)
                        x, y, t_x, t_y = (d.to(low) for d in (x, y, t_x, t_y))
                        rows, grad = row_loss((x @ y.mT).to(full).mul_(scale),  # (several, heads, T, T)
                                              (t_x @ t_y.mT).to(full).mul_(t_scale))
                        total += rows / (H * T)
                        # In fp16, small values of `grad` / (H T) would become 0. So the division by H T comes
                        # after the products with `grad`, in fp32.
                        grad = grad.to(low)
                        if need_a:
                            torch.mul((grad @ y).to(full), scale / (H * T), out=g_x)
                        if need_b:
                            torch.mul((grad.mT @ x).to(full), scale / (H * T), out=g_y)
        ctx.save_for_backward(grad_a, grad_b)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss):
        return *(None if g is None else g * grad_loss for g in ctx.saved_tensors), *(None,) * 5

"""Computes losses that compare hidden states, and losses of answer spans. Each loss is a sum over tokens or
sequences. The caller divides this sum by the number of tokens, or of sequences, in the whole step.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minibert.common.errors import UserError


def at_least_fp32(x: Tensor) -> Tensor:
    """Converts a 16-bit tensor to fp32, because a sum in 16 bits loses small terms."""
    return x if x.dtype == torch.float64 else x.float()


def weighted_terms(sums: dict[str, Tensor], weights, counts: dict[str, int]
                   ) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns a tuple: the loss, and `sums` as detached tensors. The loss is the sum over all terms of weight
    * (sum of the term) / count. Each key of `sums` is also a key of `counts` and an attribute of `weights`.
    """
    loss = sum(getattr(weights, name) / counts[name] * term for name, term in sums.items())
    return loss, {name: term.detach() for name, term in sums.items()}


def cosine_sum(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns the sum over all rows of 1 - cos(h_s, h_t), where h_s and h_t are the rows of `student` and
    `teacher` (N, D). For hidden states, the result is DistilBERT's L_cos (Sanh et al. 2019, section 3).
    """
    # The cosine is computed in fp32, because 16 bits are too few for values near 1.
    return (1 - F.cosine_similarity(at_least_fp32(student), at_least_fp32(teacher), dim=-1)).sum()


def hidden_sum(student: Tensor, teacher: Tensor, projection: Tensor | None = None) -> Tensor:
    """Returns the mean squared difference between `student` (N, D_s) and `teacher` (N, D_t), summed over the
    rows. For rows h_s and h_t, the difference is W h_s - h_t, and the mean is over its D_t elements. W (D_t,
    D_s) is `projection` (None: the identity). In TinyBERT (Jiao et al. 2019, section 3.1) the result is
    L_hidn for hidden states, and L_embd for embeddings. Raises `UserError` if W h_s and h_t have different
    widths.
    """
    if projection is not None:
        student = F.linear(student, projection)  # (N, D_t)
    if student.shape != teacher.shape:
        raise UserError(f"hidden states {student.shape[-1]} wide cannot be compared with "
                        f"{teacher.shape[-1]} without a projection")
    return (at_least_fp32(student) - at_least_fp32(teacher.detach())).square().mean(-1).sum()


def segment_log_softmax(x: Tensor, offsets: Tensor) -> Tensor:
    """Returns the log-softmax of `x` (N, K) over the tokens of each sequence, separately in each of the K
    columns. The result (N, K) is in fp32 (in fp64 if `x` is in fp64). `offsets` (S + 1,) are the offsets of
    the `Batch` with these N tokens in S sequences.
    """
    x = at_least_fp32(x)
    rows, columns = x.shape
    sequences = len(offsets) - 1
    lengths = torch.diff(offsets).long()
    # (N,), for each row the number of its sequence. Without `output_size`, torch would wait for the GPU.
    sequence = torch.repeat_interleave(torch.arange(sequences, device=x.device), lengths, output_size=rows)
    # The maximum is subtracted to prevent an overflow of exp. The result does not depend on the subtracted
    # number, so the maximum needs no gradient.
    largest = x.new_full((sequences, columns), -torch.inf).scatter_reduce(
        0, sequence[:, None].expand(rows, columns), x.detach(), "amax")
    shifted = x - largest[sequence]
    sums = x.new_zeros(sequences, columns).index_add(0, sequence, shifted.exp())  # (S, K)
    return shifted - sums.log()[sequence]


def span_loss(logits: Tensor, offsets: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """Returns the sum over sequences of the mean of two cross-entropies: one for the start of the answer, and
    one for the end (Devlin et al. 2018, section 4.2). The softmax is over the tokens of one sequence.

    `logits` (N, 2) has the start and end logits of N tokens. `starts` and `ends` (S,), int64, are the first
    and the last token of the answer, counted from 0 in each of S sequences. Token 0 is [CLS], which means "no
    answer". Each value must be smaller than the length of its sequence. The values are not checked, because a
    check would wait for the GPU.
    """
    log_p = segment_log_softmax(logits, offsets)
    first = offsets[:-1].long()
    return -(log_p[first + starts, 0] + log_p[first + ends, 1]).sum() / 2


def span_distillation(student: Tensor, teacher: Tensor, offsets: Tensor, temperature: float) -> Tensor:
    """Returns the sum over sequences of T^2 (KL_start + KL_end) / 2. KL_start and KL_end are the KL(teacher
    || student) for the start and the end of the answer, at the temperature T = `temperature`.

    `student` and `teacher` are logits (N, 2), as in `span_loss`. The teacher gets no gradient. This loss is
    one term of the loss of "DistilBERT (D)" on SQuAD (Sanh et al. 2019, section 4.1).
    """
    log_s = segment_log_softmax(at_least_fp32(student) / temperature, offsets)
    log_t = segment_log_softmax(at_least_fp32(teacher.detach()) / temperature, offsets)
    return F.kl_div(log_s, log_t, reduction="sum", log_target=True) * (temperature**2 / 2)

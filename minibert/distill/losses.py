"""Losses over hidden states and over spans, as sums.

A step divides them by the count of the whole step, over all micro-batches and ranks.

Losses over the vocabulary are in vocab_loss.py, those over attention in attention_loss.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minibert.common.errors import UserError


def at_least_fp32(x: Tensor) -> Tensor:
    """Casts 16-bit tensors to fp32 and returns others unchanged. Losses are never summed in 16 bits."""
    return x if x.dtype == torch.float64 else x.float()


def weighted_terms(sums: dict[str, Tensor], weights, counts: dict[str, int]
                   ) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum over terms of weight / count * sum, and the sums detached."""
    loss = sum(getattr(weights, name) / counts[name] * term for name, term in sums.items())
    return loss, {name: term.detach() for name, term in sums.items()}


def cosine_sum(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum over tokens of 1 - cos(h_s, h_t), both (N, D).

    This is L_cos of DistilBERT (Sanh et al. 2019, section 3).
    """
    return (1 - F.cosine_similarity(at_least_fp32(student), at_least_fp32(teacher), dim=-1)).sum()


def hidden_sum(student: Tensor, teacher: Tensor, projection: Tensor | None = None) -> Tensor:
    """Sum over tokens of the mean over D_t of (W h_s - h_t)^2.

    This is L_hidn and L_embd of TinyBERT (Jiao et al. 2019, section 3.1).
    student (N, D_s), teacher (N, D_t); `projection` is W (D_t, D_s), None the identity.
    note: the original code also counts padding.
    """
    if projection is not None:
        student = F.linear(student, projection)  # (N, D_t)
    if student.shape != teacher.shape:
        raise UserError(f"hidden states {student.shape[-1]} wide cannot be compared with "
                        f"{teacher.shape[-1]} without a projection")
    return (at_least_fp32(student) - at_least_fp32(teacher.detach())).square().mean(-1).sum()


# A start, or an end, of a span is one choice among the rows of its own sequence. The logits of a packed batch
# are one stream of N rows, so the softmax is taken inside each sequence.

def segment_log_softmax(x: Tensor, offsets: Tensor) -> Tensor:
    """log_softmax of each column of `x` (N, K) over the rows of each sequence, (N, K), in fp32 or better.

    `offsets` (S + 1,) are those of `Batch`. The number of operations does not depend on the number of
    sequences, and nothing here waits for the device.
    """
    x = at_least_fp32(x)
    rows, columns = x.shape
    sequences = len(offsets) - 1
    lengths = torch.diff(offsets).long()
    # (N,) the sequence of each row; output_size avoids a wait for the GPU
    sequence = torch.repeat_interleave(torch.arange(sequences, device=x.device), lengths, output_size=rows)
    # the maximum only keeps exp in range and cancels from the result, so no gradient goes through it
    largest = x.new_full((sequences, columns), -torch.inf).scatter_reduce(
        0, sequence[:, None].expand(rows, columns), x.detach(), "amax")
    shifted = x - largest[sequence]
    sums = x.new_zeros(sequences, columns).index_add(0, sequence, shifted.exp())  # (S, K)
    return shifted - sums.log()[sequence]


def span_loss(logits: Tensor, offsets: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """Sum over sequences of the mean cross-entropy of start and end (Devlin et al. 2018, section 4.2).

    `logits` (N, 2); `starts` and `ends` (S,) int64 count from the first row of their sequence, where [CLS]
    stands for no answer. They are not checked against the lengths, because that would wait for the device.
    note: run_squad.py of BERT pads, and its softmax runs over the padding, too.
    """
    log_p = segment_log_softmax(logits, offsets)
    first = offsets[:-1].long()
    return -(log_p[first + starts, 0] + log_p[first + ends, 1]).sum() / 2


def span_distillation(student: Tensor, teacher: Tensor, offsets: Tensor, temperature: float) -> Tensor:
    """Sum over sequences of the mean KL(teacher || student) of start and end, times the squared temperature.

    Both logits are (N, 2); the teacher gets no gradient. It is the second distillation of DistilBERT (D)
    (Sanh et al. 2019, section 4.1; run_squad_w_distillation.py, which divides by the number of sequences).
    """
    log_s = segment_log_softmax(at_least_fp32(student) / temperature, offsets)
    log_t = segment_log_softmax(at_least_fp32(teacher.detach()) / temperature, offsets)
    return F.kl_div(log_s, log_t, reduction="sum", log_target=True) * (temperature**2 / 2)

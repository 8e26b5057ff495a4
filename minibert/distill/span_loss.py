"""Losses of a span head, as sums over packed sequences: a step divides by the count of the whole step.

A start, or an end, is one choice among the rows of its own sequence. The logits of a packed batch are one
stream of N rows, so the softmax is taken inside each sequence, in a fixed number of operations however many
sequences there are. note: run_squad.py of BERT and its distillation counterpart pad, and their softmax runs
over the padding too.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from minibert.distill.losses import at_least_fp32


def segment_log_softmax(x: Tensor, offsets: Tensor) -> Tensor:
    """log_softmax of each column of `x` (N, K) over the rows of each sequence, (N, K), in float32 or better.

    `offsets` (S + 1,) are those of `Batch`. Nothing here waits for the device.
    """
    x = at_least_fp32(x)
    rows, columns = x.shape
    sequences = len(offsets) - 1
    lengths = torch.diff(offsets).long()
    # (N,) which sequence each row is in; without output_size a GPU would be waited for
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
    stands for no answer. They are not checked against the lengths: that would wait for the device.
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

"""The loss of fine-tuning, with or without a teacher: hard labels, soft labels, and patience (PKD, Sun et al.
2019).

    L = (1 - alpha) L_hard + alpha L_soft + beta L_patience

Each term is a sum over examples divided by the count of the whole step. The teacher is asked once for each
example, before training; its outputs come with the batch.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibert.common.errors import UserError
from minibert.data.examples import LabelledBatch
from minibert.distill.losses import at_least_fp32, span_distillation, span_loss
from minibert.model.heads import Span


@dataclass(frozen=True)
class TaskWeights:
    """alpha: share of the soft labels; beta: weight of patience; the temperature of the soft labels."""

    alpha: float = 0.0
    temperature: float = 2.0
    beta: float = 0.0


def patience_layers(student_layers: int, teacher_layers: int, which: str) -> list[tuple[int, int]]:
    """Pairs (student layer, teacher layer), from 1,
    whose [CLS] states PKD compares (Sun et al. 2019, section 3.3).

    The student's last layer is left to the soft labels. "skip" spreads over the teacher: 2, 4, 6, 8, 10 for 6
    of 12; "last" takes its last ones before the top: 7 to 11.
    """
    if not 1 < student_layers <= teacher_layers:
        raise UserError("PKD compares the layers below the last: "
                        f"a student of {student_layers} cannot learn so from a teacher of {teacher_layers}")
    ours = range(1, student_layers)
    if which == "last":
        return [(i, teacher_layers - student_layers + i) for i in ours]
    return [(i, round(i * teacher_layers / student_layers)) for i in ours]


def hard_sum(model: nn.Module, logits: Tensor, labels: Tensor, offsets: Tensor) -> Tensor:
    """Sum over labelled examples: cross-entropy of classes or spans, squared error of scores.

    `labels`: (S,) classes, -1 for none, or scores, NaN for none; spans (S, 2).
    """
    logits = at_least_fp32(logits)
    if isinstance(model, Span):
        return span_loss(logits, offsets, labels[:, 0], labels[:, 1])
    if model.config.regression:
        # not logits[known]: how many are known would have to be read from a GPU first
        return (logits[:, 0] - labels).masked_fill(~labels.isfinite(), 0).square().sum()
    return F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")


def soft_sum(model: nn.Module, logits: Tensor, theirs: Tensor, offsets: Tensor, temperature: float) -> Tensor:
    """Sum over examples of T^2 KL(teacher || student) at temperature T (Hinton et al. 2015);
    squared error of scores.

    note: PKD's code takes the mean over examples and classes, so its KL is smaller by the number of classes.
    """
    logits, theirs = at_least_fp32(logits), at_least_fp32(theirs)
    if isinstance(model, Span):
        return span_distillation(logits, theirs, offsets, temperature)
    if model.config.regression:
        return (logits - theirs).square().sum()
    log_s, log_t = ((z / temperature).log_softmax(-1) for z in (logits, theirs))
    return temperature**2 * F.kl_div(log_s, log_t, reduction="sum", log_target=True)


def patience_sum(ours: Tensor, theirs: Tensor) -> Tensor:
    """Sum over examples of the mean squared difference of normalised [CLS] states; both (S, pairs, D).

    note: the paper (eq. 7) sums over layers and widths; its code takes the mean, and the published beta of 10
    to 1000 are for that. This is the code's scale, with the paper's normalisation.
    """
    difference = F.normalize(at_least_fp32(ours), dim=-1) - F.normalize(at_least_fp32(theirs), dim=-1)
    return difference.square().mean((1, 2)).sum()


def output_loss(model: nn.Module, logits: Tensor, weights: TaskWeights, counts: dict[str, int],
                micro: LabelledBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Hard and soft labels: a micro-batch's share of the step's loss, and its terms as detached sums.

    `logits` are outputs on it, of the kind that `model` gives.
    """
    batch, loss, sums = micro.batch, logits.new_zeros((), dtype=torch.float32), {}
    if weights.alpha < 1:
        sums["hard"] = hard_sum(model, logits, micro.labels, batch.offsets)
        loss = loss + (1 - weights.alpha) / counts["hard"] * sums["hard"]
    if weights.alpha > 0:
        sums["soft"] = soft_sum(model, logits, micro.targets["logits"], batch.offsets, weights.temperature)
        loss = loss + weights.alpha / counts["soft"] * sums["soft"]
    return loss, {name: value.detach() for name, value in sums.items()}


def task_loss(model: nn.Module, weights: TaskWeights, layers: list[int], counts: dict[str, int],
              micro: LabelledBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """A micro-batch's share of the step's loss, and its terms as detached sums.

    `layers`: the student's layers, from 1, whose [CLS] states are compared; none without patience.
    """
    if not layers:
        return output_loss(model, model(micro.batch), weights, counts, micro)
    hiddens = model.encoder.trace(micro.batch).hiddens
    loss, sums = output_loss(model, model.classify(hiddens[-1], micro.batch), weights, counts, micro)
    ours = torch.stack([hiddens[i][micro.batch.first_tokens] for i in layers], 1)  # (S, pairs, D)
    patience = patience_sum(ours, micro.targets["cls"])
    return loss + weights.beta / counts["patience"] * patience, sums | {"patience": patience.detach()}

"""Computes the loss of fine-tuning, with or without a teacher. L_hard compares the student's outputs with the
labels, and L_soft compares the student's outputs with the teacher's outputs. L_patience compares the [CLS]
states of student and teacher (PKD, Sun et al. 2019).

    L = (1 - alpha) L_hard + alpha L_soft + beta L_patience

Each term is a sum over examples. The sums of L_soft and L_patience are divided by the number of examples of
the whole step. The sum of L_hard is divided by the number of these examples that have a label. The teacher's
outputs and [CLS] states are computed once, before training. `LabelledBatch.targets` has the outputs and
states for the examples of a batch.
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
    """The weights `alpha` of L_soft and `beta` of L_patience, and the temperature of L_soft."""

    alpha: float = 0.0
    temperature: float = 2.0
    beta: float = 0.0


def patience_layers(student_layers: int, teacher_layers: int, which: str) -> list[tuple[int, int]]:
    """Returns a list of the pairs (student layer, teacher layer) of PKD, as in the authors' code. Layers are
    counted from 1. PKD compares the [CLS] states of the two layers of a pair. The student's last layer is in
    no pair, because it learns from the teacher's outputs.

    For example, a student has 6 layers and its teacher 12. If `which` is "skip", the teacher layers are 2, 4,
    6, 8 and 10. If `which` is "last", the teacher layers are 7 to 11.
    """
    if not 1 < student_layers <= teacher_layers:
        raise UserError("PKD compares the layers below the last layer, so a student needs 2 layers or more, "
                        f"and at most those of the teacher, {teacher_layers}: it has {student_layers}")
    below_last = range(1, student_layers)
    if which == "last":
        return [(i, teacher_layers - student_layers + i) for i in below_last]
    return [(i, round(i * teacher_layers / student_layers)) for i in below_last]


def hard_sum(model: nn.Module, logits: Tensor, labels: Tensor, offsets: Tensor) -> Tensor:
    """Returns the loss on the labels, summed over the examples that have a label. The loss is the
    cross-entropy for classes and spans, and the squared error for scores (regression). `labels` (S,) are the
    classes or scores of S examples; -1 (class) and NaN (score) mean "no label". For spans, `labels` (S, 2)
    has the start and the end of each answer, and `offsets` are the offsets of the `Batch`.
    """
    logits = at_least_fp32(logits)
    if isinstance(model, Span):
        return span_loss(logits, offsets, labels[:, 0], labels[:, 1])
    if model.config.regression:
        # The loss of an example without a label is set to 0. Removing the example, by indexing with a mask,
        # would wait for the GPU to count the labels.
        return (logits[:, 0] - labels).masked_fill(~labels.isfinite(), 0).square().sum()
    return F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")


def soft_sum(model: nn.Module, logits: Tensor, teacher_logits: Tensor, offsets: Tensor, temperature: float
             ) -> Tensor:
    """Returns the sum over examples of T^2 KL(teacher || student) at the temperature T = `temperature`
    (Hinton et al. 2015). For spans, the KL of an example is the mean of two: the KL for the start and the KL
    for the end. For regression, returns the sum of the squared differences between the scores of student and
    teacher.
    """
    logits, teacher_logits = at_least_fp32(logits), at_least_fp32(teacher_logits)
    if isinstance(model, Span):
        return span_distillation(logits, teacher_logits, offsets, temperature)
    if model.config.regression:
        return (logits - teacher_logits).square().sum()
    log_s, log_t = ((z / temperature).log_softmax(-1) for z in (logits, teacher_logits))
    return temperature**2 * F.kl_div(log_s, log_t, reduction="sum", log_target=True)


def patience_sum(student_cls: Tensor, teacher_cls: Tensor) -> Tensor:
    """Scales the [CLS] states of student and teacher to length 1, and returns their mean squared difference,
    summed over the examples. `student_cls` and `teacher_cls` (S, P, D) have the [CLS] states of P layers, of
    width D, for S examples.

    The mean is over the P layers and D elements, as in the authors' code. According to summaries, the paper
    has a sum instead of the mean, but the published values of beta (10 to 1000) are for the mean.
    """
    difference = (F.normalize(at_least_fp32(student_cls), dim=-1)
                  - F.normalize(at_least_fp32(teacher_cls), dim=-1))
    return difference.square().mean((1, 2)).sum()


def output_loss(model: nn.Module, logits: Tensor, weights: TaskWeights, counts: dict[str, int],
                micro: LabelledBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns a tuple: the micro-batch's part of the step's loss (1 - alpha) L_hard + alpha L_soft, and a
    dict with the detached sums "hard" and "soft" over the micro-batch's examples, without weights. A term
    with weight 0 is left out.
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
    """Returns a tuple: the micro-batch's part of the step's loss, and a dict with the detached sum of each
    term over the micro-batch. `layers` are the numbers (from 1) of the student layers in the pairs that
    `patience_layers` returns. If `layers` is empty, there is no L_patience.
    """
    if not layers:
        return output_loss(model, model(micro.batch), weights, counts, micro)
    hiddens = model.encoder.trace(micro.batch).hiddens
    loss, sums = output_loss(model, model.classify(hiddens[-1], micro.batch), weights, counts, micro)
    # P is the number of `layers`
    student_cls = torch.stack([hiddens[i][micro.batch.first_tokens] for i in layers], 1)  # (S, P, D)
    patience = patience_sum(student_cls, micro.targets["cls"])
    return loss + weights.beta / counts["patience"] * patience, sums | {"patience": patience.detach()}

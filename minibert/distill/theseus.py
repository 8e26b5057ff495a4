"""BERT-of-Theseus (Xu et al. 2020): the student's layers are trained inside the teacher.

The teacher's layers are divided into groups, one for each layer of the student. In every step each group is
replaced by its layer of the student, or not, at random. Embeddings, pooler and head are the teacher's. They
and the teacher's layers stay as they are. There is no loss of its own: it is that of the task (task_kd.py).

    p(t) = min(1, k t + b)        the probability that a group is replaced in step t

When p is 1 the student is alone, and its layers are trained on. So one run is both stages of the paper.
"""

import math

import numpy as np
from torch import Tensor, nn

from minibert.common.errors import UserError
from minibert.common.randomness import uniform
from minibert.data.examples import LabelledBatch
from minibert.distill.students import imitated_layers
from minibert.distill.task_kd import TaskWeights, output_loss

DRAW = 0x7E5E05  # so that these numbers are others than those of order and dropout


def layer_groups(student_layers: int, teacher_layers: int) -> list[range]:
    """The teacher's layers (from 0) that each layer of the student replaces.

    Layer m, from 1, replaces the layers g(m - 1) to g(m) - 1, with the uniform map g of TinyBERT (see
    `imitated_layers`): 12 to 6 gives pairs. Where 6 become 4 it gives 0 and 1, 2, 3, 4 and 5.
    note: the original code only divides evenly.
    """
    if student_layers > teacher_layers:
        raise UserError(f"theseus replaces groups of the teacher's layers, and a student of {student_layers} "
                        f"has more than its teacher of {teacher_layers}")
    g = imitated_layers(student_layers, teacher_layers)
    return [range(g[m - 1], g[m]) for m in range(1, len(g))]


def replace_rate(step: int, steps: int, base: float, until: float) -> float:
    """p(t) = min(1, k t + b) at step t (from 0) of `steps`: b is `base`, and k such that p is 1 after the
    share `until` of the steps.
    """
    rising = math.ceil(until * steps)
    if step >= rising:
        return 1.0
    k = (1 - base) / rising
    return min(1.0, k * step + base)


def replaced_groups(groups: int, rate: float, seed: int, step: int) -> list[bool]:
    """Whether each group is replaced: a function of `seed` and `step` alone, so all micro-batches and ranks
    of a step are alike, and a resumed run goes on as the whole one.
    note: the original code draws anew for each micro-batch.
    """
    return (uniform(DRAW, seed, step, np.arange(groups)) < rate).tolist()


def mixed_logits(student: nn.Module, teacher: nn.Module, replaced: list[bool], micro: LabelledBatch
                 ) -> Tensor:
    """The outputs of the student, with the teacher's layers in place of each layer that is not `replaced`.

    Gradients go through the teacher's layers, which are frozen; all layers are in the modes they are in.
    note: in the original code the teacher's layers have dropout, as here when the teacher is in train mode.
    """
    groups = layer_groups(len(student.encoder.layers), len(teacher.encoder.layers))
    x = student.encoder.embed(micro.batch)
    for layer, group, by_student in zip(student.encoder.layers, groups, replaced):
        for block in [layer] if by_student else teacher.encoder.layers[group.start:group.stop]:
            x = block(x, micro.batch)[0]
    return student.classify(x, micro.batch)


def theseus_loss(student: nn.Module, teacher: nn.Module, replaced: list[bool], weights: TaskWeights,
                 counts: dict[str, int], micro: LabelledBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """A micro-batch's share of the step's loss, and its terms as detached sums: `output_loss` of the mixed
    model.
    """
    return output_loss(student, mixed_logits(student, teacher, replaced, micro), weights, counts, micro)


def train_layers_only(student: nn.Module) -> nn.Module:
    """Freezes all but the student's layers, for both stages, as the original code does. Returns the student.
    """
    student.requires_grad_(False)
    student.encoder.layers.requires_grad_(True)
    return student

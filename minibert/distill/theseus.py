"""Computes the loss of BERT-of-Theseus (Xu et al. 2020), which trains the student's layers inside the
teacher.

The teacher's layers are divided into groups, one group for each student layer. In each step, each student
layer replaces its group with a probability that rises during the training (`replace_rate`). The resulting
mixed model has the student's embeddings, pooler and head, which are copies of the teacher's. Only the
student's layers are trained. The loss is (1 - alpha) L_hard + alpha L_soft, as in task_kd.py, with the
outputs of the mixed model (by default, alpha is 0).

When the probability has become 1, the mixed model is the student, and the training continues without teacher
layers. In the paper, this part of the run is a second stage.
"""

import math

import numpy as np
from torch import Tensor, nn

from minibert.common.errors import UserError
from minibert.common.randomness import uniform
from minibert.data.examples import LabelledBatch
from minibert.distill.students import imitated_layers
from minibert.distill.task_kd import TaskWeights, output_loss

# Because of `DRAW`, the random numbers of `replaced_groups` are independent of all other random numbers with
# the same seed and step.
DRAW = 0x7E5E05


def layer_groups(student_layers: int, teacher_layers: int) -> list[range]:
    """Returns a list with a range for each student layer: the numbers (from 0) of the teacher layers that it
    replaces. With 6 teacher layers and 4 student layers, the groups are (0, 1), (2), (3) and (4, 5).
    """
    if student_layers > teacher_layers:
        raise UserError("theseus replaces each group of teacher layers with one student layer, and a student "
                        f"of {student_layers} has more than its teacher of {teacher_layers}")
    g = imitated_layers(student_layers, teacher_layers)
    return [range(g[m - 1], g[m]) for m in range(1, len(g))]


def replace_rate(step: int, steps: int, base: float, until: float) -> float:
    """Returns the probability p(t) = min(1, k t + b) that a group is replaced in step t (from 0). b is
    `base`. k is chosen so that p becomes 1 after the share `until` of all `steps`.
    """
    rising = math.ceil(until * steps)
    if step >= rising:
        return 1.0
    k = (1 - base) / rising
    return min(1.0, k * step + base)


def replaced_groups(groups: int, rate: float, seed: int, step: int) -> list[bool]:
    """Returns a list with one bool for each group of teacher layers: True if the student layer replaces the
    group in this step. The bool is True with the probability `rate`. The result depends only on the
    arguments, so all micro-batches and ranks of a step replace the same groups. A resumed run replaces the
    same groups as an uninterrupted run.
    """
    return (uniform(DRAW, seed, step, np.arange(groups)) < rate).tolist()


def mixed_logits(student: nn.Module, teacher: nn.Module, replaced: list[bool], micro: LabelledBatch
                 ) -> Tensor:
    """Returns the outputs (logits) of the mixed model: it has a student layer where `replaced` is True, and
    otherwise a group of teacher layers. Gradients pass through the teacher's layers to the student's layers
    below them, but the teacher's weights are not trained. As in the original code, the teacher's layers have
    dropout: finetune.py sets the teacher to train mode.
    """
    groups = layer_groups(len(student.encoder.layers), len(teacher.encoder.layers))
    x = student.encoder.embed(micro.batch)
    for layer, group, by_student in zip(student.encoder.layers, groups, replaced):
        for block in [layer] if by_student else teacher.encoder.layers[group.start:group.stop]:
            x = block(x, micro.batch)[0]
    return student.classify(x, micro.batch)


def theseus_loss(student: nn.Module, teacher: nn.Module, replaced: list[bool], weights: TaskWeights,
                 counts: dict[str, int], micro: LabelledBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the result of `output_loss` for the mixed model: the loss of one micro-batch, and a dict with
    the sum of each term.
    """
    return output_loss(student, mixed_logits(student, teacher, replaced, micro), weights, counts, micro)


def train_layers_only(student: nn.Module) -> nn.Module:
    """Freezes all parameters of the student outside its layers, as in the original code. Returns the student.
    """
    student.requires_grad_(False)
    student.encoder.layers.requires_grad_(True)
    return student

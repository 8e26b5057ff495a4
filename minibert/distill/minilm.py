"""The losses of MiniLM and MiniLMv2. They compare the attention of the student's last layer with one teacher
layer.

The form of the loss is that of distilbert.py. There is no term on words. Labels are not read, and the tokens
may be masked or not. Student and teacher may have any widths.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minibert.common.errors import UserError
from minibert.distill.attention_loss import relation_sum, split_heads
from minibert.distill.losses import weighted_terms
from minibert.distill.students import check_vocabulary
from minibert.model.batch import MicroBatch, Step
from minibert.model.config import Config
from minibert.model.heads import encoder_of


@dataclass(frozen=True)
class MiniLMWeights:
    """The weight of each term, 1 as published. A term of weight 0 is not computed."""

    attention_relation: float = 1.0
    value_relation: float = 1.0
    teacher_layer: int | None = None  # from 1; None: the last


@dataclass(frozen=True)
class MiniLMv2Weights:
    """The weight of each term, 1 as published. A term of weight 0 is not computed."""

    q_relation: float = 1.0
    k_relation: float = 1.0
    v_relation: float = 1.0
    relation_heads: int | None = None  # R; None: see `default_relation_heads`
    teacher_layer: int | None = None  # from 1; None: the last


def minilm(student: nn.Module, teacher: nn.Module, micro: MicroBatch, weights: MiniLMWeights,
           counts: dict[str, int]) -> tuple[Tensor, dict[str, Tensor]]:
    """MiniLM (Wang et al. 2020, section 3): the student's last layer learns the attention distributions and
    the value relations of the teacher's layer.
    """
    (q, k, v), (t_q, t_k, t_v) = compared_states(student, teacher, micro, weights.teacher_layer)
    sums = {}
    # L_AT: the KL of the attention distributions, row by row. L_VR: the same for softmax(v v' / sqrt(E)),
    # which fits any head size, too.
    if weights.attention_relation:
        sums["attention_relation"] = relation_sum(q, k, t_q, t_k, micro.batch)
    if weights.value_relation:
        sums["value_relation"] = relation_sum(v, v, t_v, t_v, micro.batch)
    return weighted_terms(sums, weights, counts)


def minilmv2(student: nn.Module, teacher: nn.Module, micro: MicroBatch, weights: MiniLMv2Weights,
             counts: dict[str, int]) -> tuple[Tensor, dict[str, Tensor]]:
    """MiniLMv2 (Wang et al. 2021, section 3): relations among queries, among keys and among values, in R
    relation heads, however many heads the two models have.

    note: the scale of the softmax is 1 / sqrt(D / R), as in MiniLM; not checked against the paper.
    """
    sums = {}
    for name, x, t_x in zip("qkv", *compared_states(student, teacher, micro, weights.teacher_layer)):
        if getattr(weights, f"{name}_relation"):
            R = weights.relation_heads or default_relation_heads(x[0].numel(), t_x[0].numel())
            x, t_x = split_heads(x, R), split_heads(t_x, R)  # (N, R, D / R)
            sums[f"{name}_relation"] = relation_sum(x, x, t_x, t_x, micro.batch)
    return weighted_terms(sums, weights, counts)


def compared_states(student: nn.Module, teacher: nn.Module, micro: MicroBatch, teacher_layer: int | None
                    ) -> tuple[list[Tensor], list[Tensor]]:
    """q, k, v (N, H, E) of the student's last layer, and of the teacher's layer `teacher_layer`."""
    with torch.no_grad():  # the teacher is never trained: no graph of it is kept
        theirs = encoder_of(teacher).trace(micro.batch)
    ours = encoder_of(student).trace(micro.batch)
    # the list of q, k, v begins with layer 1: there are none of the embeddings
    layer = -1 if teacher_layer is None else teacher_layer - 1
    return ([ours.queries[-1], ours.keys[-1], ours.values[-1]],
            [theirs.queries[layer], theirs.keys[layer], theirs.values[layer]])


def default_relation_heads(*widths: int) -> int:
    """R of MiniLMv2 for a student and a teacher of these widths: the published 48 or, where that does not
    divide both, the largest number below that does (24 for 312 and 768).
    """
    return next(r for r in range(48, 0, -1) if math.gcd(*widths) % r == 0)


def minilm_counts(step: Step, weights: MiniLMWeights) -> dict[str, int]:
    """The divisor of each term's sum: the sequences of the whole step."""
    return {"attention_relation": step.sequences, "value_relation": step.sequences}


def minilmv2_counts(step: Step, weights: MiniLMv2Weights) -> dict[str, int]:
    """The divisor of each term's sum: the sequences of the whole step."""
    return {"q_relation": step.sequences, "k_relation": step.sequences, "v_relation": step.sequences}


def fit_minilm(student: Config, teacher: Config, weights: MiniLMWeights) -> str:
    """Raises `UserError` where the two cannot be compared."""
    check_vocabulary(student, teacher)
    check_teacher_layer(teacher, weights.teacher_layer)
    if student.heads != teacher.heads:
        raise UserError(f"the student has {student.heads} heads and the teacher {teacher.heads}: minilm "
                        "compares head by head; minilmv2 fits any")
    return ""


def fit_minilmv2(student: Config, teacher: Config, weights: MiniLMv2Weights) -> str:
    """How many relation heads there are, in words; `UserError` where the two cannot be compared."""
    check_vocabulary(student, teacher)
    check_teacher_layer(teacher, weights.teacher_layer)
    widest, R = math.gcd(student.attention_size, teacher.attention_size), weights.relation_heads
    if R is not None and (R < 1 or widest % R):
        raise UserError(f"{R} relation heads do not divide the widths {student.attention_size} and "
                        f"{teacher.attention_size}; these do: "
                        f"{', '.join(str(r) for r in range(1, widest + 1) if widest % r == 0)}")
    return f"relations in {R or default_relation_heads(student.attention_size, teacher.attention_size)} heads"


def check_teacher_layer(teacher: Config, layer: int | None) -> None:
    """Raises `UserError` where the teacher has no such layer."""
    if layer is not None and not 1 <= layer <= teacher.layers:
        raise UserError(f"the teacher has layers 1 to {teacher.layers}, and none {layer}")

"""Computes the losses of MiniLM and MiniLMv2. These losses compare the student's last layer with one teacher
layer. A relation is softmax(a b' / sqrt(E)), where b' is b transposed. a and b (T, E) are the queries, keys
or values of one head of size E, for a sequence of T tokens. The student learns the teacher's relations. The
losses use no labels. distilbert.py describes the arguments and results of a loss.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minibert.common.errors import UserError
from minibert.distill.attention_loss import relation_sum, split_heads
from minibert.distill.losses import weighted_terms
from minibert.distill.students import check_heads, check_vocabulary
from minibert.model.batch import MicroBatch, Step
from minibert.model.config import Config
from minibert.model.heads import encoder_of


@dataclass(frozen=True)
class MiniLMWeights:
    """The weights of MiniLM's loss terms (published: 1)."""

    attention_relation: float = 1.0
    value_relation: float = 1.0
    # the number (from 1) of the teacher layer that the student's last layer learns from; None: the last layer
    teacher_layer: int | None = None


@dataclass(frozen=True)
class MiniLMv2Weights:
    """The weights of MiniLMv2's loss terms."""

    q_relation: float = 1.0
    k_relation: float = 1.0
    v_relation: float = 1.0
    relation_heads: int | None = None  # the number R of relation heads; None: see `default_relation_heads`
    # the number (from 1) of the teacher layer that the student's last layer learns from; None: the last layer
    teacher_layer: int | None = None


def minilm(student: nn.Module, teacher: nn.Module, micro: MicroBatch, weights: MiniLMWeights,
           counts: dict[str, int]) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns MiniLM's loss for a micro-batch (Wang et al. 2020, section 3), and a dict with the sum of each
    term. The student's last layer learns two relations of one teacher layer:

        attention_relation  the attention softmax(q k' / sqrt(E)), with the paper's loss L_AT
        value_relation      softmax(v v' / sqrt(E)), with the paper's loss L_VR

    Student and teacher need the same number of heads, but not the same head size E.
    """
    (q, k, v), (t_q, t_k, t_v) = compared_states(student, teacher, micro, weights.teacher_layer)
    sums = {}
    if weights.attention_relation:
        sums["attention_relation"] = relation_sum(q, k, t_q, t_k, micro.batch)
    if weights.value_relation:
        sums["value_relation"] = relation_sum(v, v, t_v, t_v, micro.batch)
    return weighted_terms(sums, weights, counts)


def minilmv2(student: nn.Module, teacher: nn.Module, micro: MicroBatch, weights: MiniLMv2Weights,
             counts: dict[str, int]) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns MiniLMv2's loss for a micro-batch, and a dict with the sum of each term. The loss follows
    summaries of the paper (Wang et al. 2021). The paper was not read.

    The student learns the relations among queries, among keys and among values. The relations are computed in
    R relation heads (`split_heads`), so student and teacher may have different numbers of attention heads.
    For queries, keys and values of width D, a relation head has the size D / R, so the scores are divided by
    sqrt(D / R).
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
    """Returns two lists of three tensors: queries, keys and values. The first list is for the student's last
    layer. The second list is for the teacher layer with the number `teacher_layer` (None: the last layer).
    Each tensor is (N, H, E), for N tokens and H heads of size E.
    """
    with torch.no_grad():
        teacher_trace = encoder_of(teacher).trace(micro.batch)
    student_trace = encoder_of(student).trace(micro.batch)
    # layer 1 has the index 0 in `queries`, because the embeddings have no queries
    layer = -1 if teacher_layer is None else teacher_layer - 1
    return ([student_trace.queries[-1], student_trace.keys[-1], student_trace.values[-1]],
            [teacher_trace.queries[layer], teacher_trace.keys[layer], teacher_trace.values[layer]])


def default_relation_heads(*widths: int) -> int:
    """Returns the largest number up to 48 that divides all `widths`. According to summaries of its paper,
    MiniLMv2 has 48 relation heads (64 for a large teacher).
    """
    return next(r for r in range(48, 0, -1) if math.gcd(*widths) % r == 0)


def minilm_counts(step: Step, weights: MiniLMWeights) -> dict[str, int]:
    """Returns a dict from each loss term to the divisor of its sum: the number of sequences in the step."""
    return {"attention_relation": step.sequences, "value_relation": step.sequences}


def minilmv2_counts(step: Step, weights: MiniLMv2Weights) -> dict[str, int]:
    """Returns a dict from each loss term to the divisor of its sum: the number of sequences in the step."""
    return {"q_relation": step.sequences, "k_relation": step.sequences, "v_relation": step.sequences}


def fit_minilm(student: Config, teacher: Config, weights: MiniLMWeights) -> str:
    """Raises `UserError` if student and teacher have vocabularies of different sizes or different numbers of
    heads, or if the teacher has no layer `teacher_layer`. Otherwise returns an empty text.
    """
    check_vocabulary(student, teacher)
    check_teacher_layer(teacher, weights.teacher_layer)
    check_heads(student, teacher)
    return ""


def fit_minilmv2(student: Config, teacher: Config, weights: MiniLMv2Weights) -> str:
    """Returns a sentence for the user with the number of relation heads. Raises `UserError` if the
    vocabularies differ in size, if the teacher has no layer `teacher_layer`, or if `relation_heads` does not
    divide the widths of both models.
    """
    check_vocabulary(student, teacher)
    check_teacher_layer(teacher, weights.teacher_layer)
    widest, R = math.gcd(student.attention_size, teacher.attention_size), weights.relation_heads
    if R is not None and (R < 1 or widest % R):
        raise UserError(f"{R} relation heads do not divide the widths {student.attention_size} and "
                        f"{teacher.attention_size}; these numbers do: "
                        f"{', '.join(str(r) for r in range(1, widest + 1) if widest % r == 0)}")
    return f"relations in {R or default_relation_heads(student.attention_size, teacher.attention_size)} heads"


def check_teacher_layer(teacher: Config, layer: int | None) -> None:
    """Raises `UserError` if the teacher has no layer with the number `layer`, counted from 1."""
    if layer is not None and not 1 <= layer <= teacher.layers:
        raise UserError(f"the teacher has layers 1 to {teacher.layers}, and no layer {layer}")

"""What the methods minimise that imitate what happens inside the teacher: TinyBERT, MiniLM, MiniLMv2.

The form is that of methods.py: (student, teacher, step, weights, micro-batch) to the micro-batch's share of
the step's loss and detached sums by name; `term_counts` says what each sum is divided by. They ask the
encoders for their trace, which no other method does.

None has a loss of its own on words: labels are not read, and micro.batch is taken as it comes, masked or not.
note: TinyBERT's paper pre-trains "as BERT", with masks; its first code masked, its second one piece a
sequence. Both models read the same tokens either way.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minibert.common.errors import UserError
from minibert.data.loader import MicroBatch, Step
from minibert.distill.attention_loss import (attention_sum, hidden_sum, imitated_layers, relation_sum,
                                             split_heads)
from minibert.model.config import Config
from minibert.model.encoder import Encoder, Trace, truncated_normal_
from minibert.model.heads import encoder_of


@dataclass(frozen=True)
class InnerWeights:
    """The weight of each term, all 1 as published, and which layers are compared;
    a term of weight 0 is not computed.
    """

    embedding: float = 1.0  # tinybert
    hidden: float = 1.0  # tinybert: the sum over layers
    attention: float = 1.0  # tinybert: the sum over layers
    layers: tuple[int, ...] | None = None  # tinybert: g(1) ... g(L_s), from 1; None: uniform
    attention_relation: float = 1.0  # minilm
    value_relation: float = 1.0  # minilm
    q_relation: float = 1.0  # minilmv2
    k_relation: float = 1.0  # minilmv2
    v_relation: float = 1.0  # minilmv2
    relation_heads: int | None = None  # minilmv2: R; None: see `relation_heads`
    teacher_layer: int | None = None  # minilm, minilmv2: from 1; None: the last


class Learner(nn.Module):
    """What these methods train: an encoder without a head, and TinyBERT's projections where it has some."""

    def __init__(self, encoder: Encoder, projections: "Projections | None" = None):
        super().__init__()
        self.encoder, self.projections = encoder, projections


class Projections(nn.Module):
    """TinyBERT's learned W_e and W_h: matrices from the student's width to the teacher's, the first for the
    embeddings, then one for each layer.

    They are trained with the student, are saved in its checkpoints, and are no part of it.
    note: the original code shares one matrix, with a bias, between the embeddings and all layers; the paper
    writes W_e and W_h, without, and not whether W_h is one for all layers.
    """

    def __init__(self, student: Config, teacher: Config, generator: torch.Generator | None = None):
        super().__init__()
        self.matrices = nn.ModuleList(nn.Linear(student.hidden_size, teacher.hidden_size, bias=False)
                                      for _ in range(student.layers + 1))
        for matrix in self.matrices:
            truncated_normal_(matrix.weight, student.initializer_range, generator)


def tinybert(student: Learner, teacher: nn.Module, step: Step, weights: InnerWeights,
             micro: MicroBatch) -> tuple[Tensor, dict]:
    """TinyBERT's Transformer distillation (Jiao et al. 2019, section 3.1): embeddings, hidden states, scores
    of attention; without projections widths must be equal, and states are compared as they are.

    note: the original code never puts the teacher in eval mode, so its dropout is on; train.py does.
    """
    g = imitated_layers(len(student.encoder.layers), len(encoder_of(teacher).layers), weights.layers)
    ours, theirs = _traces(student, teacher, micro)
    matrices = [None] * len(g)
    if student.projections is not None:
        matrices = [projection.weight for projection in student.projections.matrices]
    sums = {}
    if weights.embedding:
        sums["embedding"] = hidden_sum(ours.hiddens[0], theirs.hiddens[0], matrices[0])
    if weights.hidden:
        sums["hidden"] = sum(hidden_sum(ours.hiddens[m], theirs.hiddens[g[m]], matrices[m])
                             for m in range(1, len(g)))
    if weights.attention:  # hidden states count from the embeddings, queries and keys from the first layer
        sums["attention"] = sum(
            attention_sum(ours.queries[m - 1], ours.keys[m - 1],
                          theirs.queries[g[m] - 1], theirs.keys[g[m] - 1], micro.batch)
            for m in range(1, len(g)))
    return _share(sums, weights, step)


def minilm(student: nn.Module, teacher: nn.Module, step: Step, weights: InnerWeights,
           micro: MicroBatch) -> tuple[Tensor, dict]:
    """MiniLM (Wang et al. 2020): the student's last layer learns the attention distributions and the value
    relations of the teacher's last, or of `weights.teacher_layer`.
    """
    (q, k, v), (t_q, t_k, t_v) = _compared(student, teacher, weights, micro)
    sums = {}
    if weights.attention_relation:
        sums["attention_relation"] = relation_sum(q, k, t_q, t_k, micro.batch)
    if weights.value_relation:
        sums["value_relation"] = relation_sum(v, v, t_v, t_v, micro.batch)
    return _share(sums, weights, step)


def relation_heads(weights: InnerWeights, *widths: int) -> int:
    """R of MiniLMv2 for a student and a teacher of these widths: the number given, or the published 48, or
    where that does not divide both widths the largest number below that does (24 for 312 and 768).
    """
    fit = (r for r in range(48, 0, -1) if math.gcd(*widths) % r == 0)
    return weights.relation_heads or next(fit)


def minilmv2(student: nn.Module, teacher: nn.Module, step: Step, weights: InnerWeights,
             micro: MicroBatch) -> tuple[Tensor, dict]:
    """MiniLMv2 (Wang et al. 2021): relations among queries, among keys and among values of the same two
    layers, in `relation_heads` heads, whatever the models' own.

    note: the scale of the softmax is 1 / sqrt(D / R), as in MiniLM; not checked against the paper.
    """
    sums = {}
    for name, x, t_x in zip("qkv", *_compared(student, teacher, weights, micro)):
        if getattr(weights, f"{name}_relation"):
            heads = relation_heads(weights, x.flatten(1).shape[1], t_x.flatten(1).shape[1])
            x, t_x = split_heads(x, heads), split_heads(t_x, heads)
            sums[f"{name}_relation"] = relation_sum(x, x, t_x, t_x, micro.batch)
    return _share(sums, weights, step)


METHODS = {"tinybert": tinybert, "minilm": minilm, "minilmv2": minilmv2}
TERMS = {"tinybert": ("embedding", "hidden", "attention"), "minilm": ("attention_relation", "value_relation"),
         "minilmv2": ("q_relation", "k_relation", "v_relation")}


def term_counts(step: Step, weights: InnerWeights) -> dict[str, int]:
    """What the sum of each term is divided by:
    the whole step's tokens for hidden states, its sequences for scores and relations.
    """
    return {name: step.tokens if name in ("embedding", "hidden") else step.sequences
            for terms in TERMS.values() for name in terms}


def check_fit(method: str, student: Config, teacher: Config, weights: InnerWeights) -> None:
    """Raises `UserError` where the method cannot compare the two, before anything is trained."""
    if not any(getattr(weights, name) for name in TERMS[method]):
        raise UserError(f"every term of {method} has weight 0: nothing would be learned")
    if student.vocab_size != teacher.vocab_size:
        raise UserError(f"student and teacher do not fit: vocabulary {student.vocab_size} against "
                        f"{teacher.vocab_size}; both read the same ids")
    if method == "tinybert":
        imitated_layers(student.layers, teacher.layers, weights.layers)
    elif weights.teacher_layer is not None and not 1 <= weights.teacher_layer <= teacher.layers:
        raise UserError(f"the teacher has layers 1 to {teacher.layers}, and none {weights.teacher_layer}")
    if method == "minilmv2":
        widest = math.gcd(student.attention_size, teacher.attention_size)
        if weights.relation_heads is not None and (weights.relation_heads < 1
                                                   or widest % weights.relation_heads):
            fit = [r for r in range(1, widest + 1) if widest % r == 0]
            raise UserError(f"{weights.relation_heads} relation heads do not divide the widths "
                            f"{student.attention_size} and {teacher.attention_size}; "
                            f"these do: {', '.join(map(str, fit))}")
    elif student.heads != teacher.heads and (method == "minilm" or weights.attention):
        raise UserError(f"the student has {student.heads} heads and the teacher {teacher.heads}: {method} "
                        "compares head by head; minilmv2 fits any")


def _traces(student: nn.Module, teacher: nn.Module, micro: MicroBatch) -> tuple[Trace, Trace]:
    with torch.no_grad():
        theirs = encoder_of(teacher).trace(micro.batch)
    return student.encoder.trace(micro.batch), theirs


def _compared(student, teacher, weights: InnerWeights, micro: MicroBatch) -> tuple[list, list]:
    """q, k, v of the student's last layer and of the teacher's compared one, (N, H, E) each."""
    layer = -1 if weights.teacher_layer is None else weights.teacher_layer - 1
    ours, theirs = _traces(student, teacher, micro)
    return [x[-1] for x in ours[1:]], [x[layer] for x in theirs[1:]]


def _share(sums: dict[str, Tensor], weights: InnerWeights, step: Step) -> tuple[Tensor, dict]:
    counts = term_counts(step, weights)
    loss = sum(getattr(weights, name) / counts[name] * term for name, term in sums.items())
    return loss, {name: term.detach() for name, term in sums.items()}

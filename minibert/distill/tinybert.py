"""Computes the loss of TinyBERT (Jiao et al. 2019, section 3.1), which compares the embeddings, hidden states
and attention scores of student and teacher. The loss uses no labels. distilbert.py describes the arguments
and results of a loss.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minibert.distill.attention_loss import attention_sum
from minibert.distill.losses import hidden_sum, weighted_terms
from minibert.distill.students import check_heads, check_vocabulary, imitated_layers
from minibert.model.batch import MicroBatch, Step
from minibert.model.config import Config
from minibert.model.encoder import Encoder
from minibert.model.heads import encoder_of
from minibert.model.init import truncated_normal_


@dataclass(frozen=True)
class TinyBERTWeights:
    """The weights of TinyBERT's loss terms (published: 1)."""

    embedding: float = 1.0
    hidden: float = 1.0  # weight of the sum (not the mean) over the student's layers
    attention: float = 1.0  # weight of the sum (not the mean) over the student's layers
    # For each student layer, the number (counted from 1) of the teacher layer that it imitates. None: the
    # uniform map of `imitated_layers`.
    layers: tuple[int, ...] | None = None


class TinyBERTStudent(nn.Module):
    """The module that is trained: the student's encoder, and TinyBERT's projection matrices W_e (for the
    embeddings) and W_h (for the hidden states). The projections map the student's states to the teacher's
    width. They are saved in checkpoints, but not with the final student.

    Each student layer has a matrix W_h of its own; the paper does not say if all layers share W_h.
    """

    def __init__(self, encoder: Encoder, teacher: Config, generator: torch.Generator | None = None):
        super().__init__()
        self.encoder = encoder
        self.config = encoder.config
        self.projections = nn.ModuleList(
            nn.Linear(encoder.config.hidden_size, teacher.hidden_size, bias=False)
            for _ in range(encoder.config.layers + 1))
        for matrix in self.projections:
            truncated_normal_(matrix.weight, encoder.config.initializer_range, generator)


def tinybert(student: nn.Module, teacher: nn.Module, micro: MicroBatch, weights: TinyBERTWeights,
             counts: dict[str, int]) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the loss of TinyBERT's Transformer distillation for a micro-batch, and a dict with the sum of
    each term. A student that is not a `TinyBERTStudent` has no projections, so with the terms `embedding` and
    `hidden` it must have the teacher's width. The caller sets the teacher to eval mode.
    """
    with torch.no_grad():
        teacher_trace = encoder_of(teacher).trace(micro.batch)
    student_trace = encoder_of(student).trace(micro.batch)
    # student layer m learns from teacher layer g[m]; layer 0 is the embedding output
    g = imitated_layers(len(student_trace.queries), len(teacher_trace.queries), weights.layers)
    matrices = [None] * len(g)  # None: no projection
    if isinstance(student, TinyBERTStudent):
        matrices = [projection.weight for projection in student.projections]
    sums = {}
    # L_embd of the paper; `matrices[0]` is W_e
    if weights.embedding:
        sums["embedding"] = hidden_sum(student_trace.hiddens[0], teacher_trace.hiddens[0], matrices[0])
    # L_hidn of the paper, summed over the student's layers; `matrices[m]` is W_h of layer m
    if weights.hidden:
        sums["hidden"] = sum(
            hidden_sum(student_trace.hiddens[m], teacher_trace.hiddens[g[m]], matrices[m])
            for m in range(1, len(g)))
    # L_attn compares the attention scores before the softmax. According to the paper, training converges
    # faster with the scores than with the probabilities. In the lists of queries and keys, layer m has the
    # index m - 1, because the embeddings have no queries.
    if weights.attention:
        sums["attention"] = sum(
            attention_sum(student_trace.queries[m - 1], student_trace.keys[m - 1],
                          teacher_trace.queries[g[m] - 1], teacher_trace.keys[g[m] - 1], micro.batch)
            for m in range(1, len(g)))
    return weighted_terms(sums, weights, counts)


def tinybert_counts(step: Step, weights: TinyBERTWeights) -> dict[str, int]:
    """Returns a dict from each loss term to the divisor of its sum: the number of tokens or of sequences in
    the whole step.
    """
    return {"embedding": step.tokens, "hidden": step.tokens, "attention": step.sequences}


def fit_tinybert(student: Config, teacher: Config, weights: TinyBERTWeights) -> str:
    """Returns a sentence for the user: which teacher layer each student layer imitates. Raises `UserError` if
    the vocabularies differ in size, or if the layer map is not valid (see `imitated_layers`). If the weight
    of the attention term is not 0, different numbers of heads also raise `UserError`.
    """
    check_vocabulary(student, teacher)
    g = imitated_layers(student.layers, teacher.layers, weights.layers)
    if weights.attention:
        check_heads(student, teacher)
    return "student layer imitates teacher layer: " + ", ".join(f"{m} {g[m]}" for m in range(1, len(g)))

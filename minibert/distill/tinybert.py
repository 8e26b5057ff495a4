"""The loss of TinyBERT (Jiao et al. 2019, section 3.1). It compares embeddings, hidden states and attention
scores of student and teacher, layer by layer.

The form of the loss is that of distilbert.py. There is no term on words. Labels are not read, and the tokens
may be masked or not. note: TinyBERT's paper pre-trains "as BERT", with masks. Its first code has masks. Its
second code masks one piece of each sequence.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minibert.common.errors import UserError
from minibert.distill.attention_loss import attention_sum
from minibert.distill.losses import hidden_sum, weighted_terms
from minibert.distill.students import check_vocabulary, imitated_layers
from minibert.model.batch import MicroBatch, Step
from minibert.model.config import Config
from minibert.model.encoder import Encoder
from minibert.model.heads import encoder_of
from minibert.model.init import truncated_normal_


@dataclass(frozen=True)
class TinyBERTWeights:
    """The weight of each term, all 1 as published. A term of weight 0 is not computed."""

    embedding: float = 1.0
    hidden: float = 1.0  # of the sum over layers
    attention: float = 1.0  # of the sum over layers
    layers: tuple[int, ...] | None = None  # g(1) ... g(L_s), from 1; None: uniform, see `imitated_layers`


class TinyBERTStudent(nn.Module):
    """The trained module: the student's encoder, and TinyBERT's learned W_e and W_h, which project its
    states.

    The W are matrices from the student's width to the teacher's, the first for the embeddings, then one for
    each layer. They are saved in checkpoints. They are not part of the student.
    note: the original code shares one matrix, with a bias, between the embeddings and all layers; the paper
    writes W_e and W_h, without a bias, and does not say whether W_h is one for all layers.
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
    """TinyBERT's Transformer distillation. A student that is no `TinyBERTStudent` has the teacher's width,
    and its states are compared as they are.

    note: the original code never puts the teacher in eval mode, so its dropout is on; here it is off.
    """
    with torch.no_grad():  # the teacher is never trained: no graph of it is kept
        theirs = encoder_of(teacher).trace(micro.batch)
    ours = encoder_of(student).trace(micro.batch)
    # student layer m learns from teacher layer g[m]; 0 is the embedding output
    g = imitated_layers(len(ours.queries), len(theirs.queries), weights.layers)
    matrices = [None] * len(g)  # equal widths need none
    if isinstance(student, TinyBERTStudent):
        matrices = [projection.weight for projection in student.projections]
    sums = {}
    # L_embd: the squared error of E^S W_e to E^T
    if weights.embedding:
        sums["embedding"] = hidden_sum(ours.hiddens[0], theirs.hiddens[0], matrices[0])
    # L_hidn: the squared error of H^S W_h to H^T, summed over the layers
    if weights.hidden:
        sums["hidden"] = sum(hidden_sum(ours.hiddens[m], theirs.hiddens[g[m]], matrices[m])
                             for m in range(1, len(g)))
    # L_attn: of the scores before the softmax, which the authors found to converge faster.
    # Hidden states count from the embeddings, queries and keys from the first layer: hence m - 1.
    if weights.attention:
        sums["attention"] = sum(
            attention_sum(ours.queries[m - 1], ours.keys[m - 1],
                          theirs.queries[g[m] - 1], theirs.keys[g[m] - 1], micro.batch)
            for m in range(1, len(g)))
    return weighted_terms(sums, weights, counts)


def tinybert_counts(step: Step, weights: TinyBERTWeights) -> dict[str, int]:
    """The divisor of each term's sum: the tokens of the whole step, or its sequences."""
    return {"embedding": step.tokens, "hidden": step.tokens, "attention": step.sequences}


def fit_tinybert(student: Config, teacher: Config, weights: TinyBERTWeights) -> str:
    """Returns a sentence about which layer imitates which. Raises `UserError` if the two cannot be compared.
    """
    check_vocabulary(student, teacher)
    g = imitated_layers(student.layers, teacher.layers, weights.layers)
    if weights.attention and student.heads != teacher.heads:
        raise UserError(f"the student has {student.heads} heads and the teacher {teacher.heads}: tinybert "
                        "compares head by head; minilmv2 fits any")
    return "student layer imitates teacher layer: " + ", ".join(f"{m} {g[m]}" for m in range(1, len(g)))

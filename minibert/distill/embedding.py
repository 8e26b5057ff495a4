"""What a sentence encoder minimises: how far its vector of a text is from its teacher's (Reimers and Gurevych
2020, "Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation", section 2, with one
language).

The form of the loss is that of distilbert.py. No labels and no masks are read.
"""

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from minibert.common.errors import UserError
from minibert.distill.losses import cosine_sum, hidden_sum, weighted_terms
from minibert.distill.students import check_vocabulary
from minibert.model.batch import MicroBatch, Step
from minibert.model.config import Config
from minibert.model.encoder import Encoder
from minibert.model.heads import encoder_of
from minibert.model.init import truncated_normal_
from minibert.model.sentences import pooling_of


@dataclass(frozen=True)
class EmbeddingWeights:
    """The weight of each term. note: Reimers and Gurevych minimise the mean square, `mse`."""

    cosine: float = 1.0
    mse: float = 0.0
    hidden: float = 0.0  # of equal widths only; a term of the tokens, not of the text


class SentenceStudent(nn.Module):
    """What is trained: the student's encoder, and the layers between its pooling and its vector.

    These layers are the teacher's, copied. Where the pooled vectors differ in width, a new linear layer comes
    before them, from the student's width to the teacher's. So both models' vectors can be compared, and the
    layer is part of the student. A student that is a sentence encoder already keeps its own layers.
    """

    def __init__(self, encoder: Encoder, teacher: nn.Module):
        super().__init__()
        self.encoder, self.config = encoder, encoder.config
        theirs = pooling_of(teacher)
        if getattr(encoder, "sentences", None) is not None:
            self.sentences = pooling_of(encoder)
        else:
            layers = list(copy.deepcopy(theirs.layers))
            pooled = [len(theirs.modes) * config.hidden_size for config in (self.config, teacher.config)]
            if pooled[0] != pooled[1]:
                linear = nn.Linear(*pooled)
                truncated_normal_(linear.weight, self.config.initializer_range)
                nn.init.zeros_(linear.bias)
                layers = [linear, nn.Identity(), *layers]  # a Dense module has an activation
            self.sentences = replace(theirs, layers=nn.Sequential(*layers))
        self.layers = self.sentences.layers  # registers its parameters: they are trained and in checkpoints
        widths = (self.sentences.vector_width(self.config), theirs.vector_width(teacher.config))
        if widths[0] != widths[1]:
            raise UserError(f"the student's vectors have {widths[0]} numbers and the teacher's {widths[1]}: "
                            "they cannot be compared")


def embedding(student: nn.Module, teacher: nn.Module, micro: MicroBatch, weights: EmbeddingWeights,
              counts: dict[str, int]) -> tuple[Tensor, dict[str, Tensor]]:
    """The cosine distance, or the mean square, between the two models' vectors u_s and u_t (D) of each text:

        cosine  1 - cos(u_s, u_t)
        mse     mean over D of (u_s - u_t)^2
        hidden  mean over D of (h_s - h_t)^2 at each token, h the last hidden states

    Where vectors have length 1, mse is 2 / D times cosine. A student that is no `SentenceStudent` pools as
    its teacher does.
    """
    with torch.no_grad():  # the teacher is never trained: no graph of it is kept
        teacher_last = encoder_of(teacher)(micro.batch)  # (N, D)
        theirs = pooling_of(teacher)(teacher_last, micro.batch)  # (S, D)
    last = encoder_of(student)(micro.batch)
    pooling = student.sentences if isinstance(student, SentenceStudent) else pooling_of(teacher)
    ours = pooling(last, micro.batch)  # (S, D)
    sums = {"cosine": cosine_sum(ours, theirs), "mse": hidden_sum(ours, theirs)}
    if weights.hidden:
        sums["hidden"] = hidden_sum(last, teacher_last)
    return weighted_terms(sums, weights, counts)


def embedding_counts(step: Step, weights: EmbeddingWeights) -> dict[str, int]:
    """What the sum of each term is divided by: the sequences of the whole step, or its tokens."""
    return {"cosine": step.sequences, "mse": step.sequences, "hidden": step.tokens}


def fit_embedding(student: Config, teacher: Config, weights: EmbeddingWeights) -> str:
    """What is put between different widths, in words; `UserError` where the vocabulary differs."""
    check_vocabulary(student, teacher)
    if student.hidden_size == teacher.hidden_size:
        return ""
    if weights.hidden:
        raise UserError(f"hidden states {student.hidden_size} wide cannot be compared with "
                        f"{teacher.hidden_size}: leave the term hidden away")
    return (f"a linear layer takes the student's pooled states, {student.hidden_size} wide, to the teacher's "
            f"{teacher.hidden_size}")

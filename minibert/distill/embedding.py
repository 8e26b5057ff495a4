"""Computes the loss that trains a sentence encoder: the distance between the student's vector and the
teacher's vector of a text. The loss needs no labels and no masked tokens.

The source is Reimers and Gurevych 2020, "Making Monolingual Sentence Embeddings Multilingual using Knowledge
Distillation", section 2. distilbert.py describes the arguments and results of a loss.
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
    """The weights of the loss terms. By default, the loss has only the term `cosine`. Reimers and Gurevych
    minimise `mse`, the mean squared error between the vectors of student and teacher.
    """

    cosine: float = 1.0
    mse: float = 0.0
    hidden: float = 0.0  # must be 0 if student and teacher have different widths


class SentenceStudent(nn.Module):
    """The module that is trained: the student's encoder, and the layers that map the encoder's pooled vector
    to the sentence vector.

    A student that is already a sentence encoder keeps its own layers. Any other student gets copies of the
    teacher's layers. If the pooled vectors of such a student and the teacher differ in width, a new linear
    layer comes before the copies. The new layer maps the student's pooled vector to the width of the
    teacher's pooled vector, and is saved with the student.
    """

    def __init__(self, encoder: Encoder, teacher: nn.Module):
        super().__init__()
        self.encoder, self.config = encoder, encoder.config
        teacher_pooling = pooling_of(teacher)
        if getattr(encoder, "sentences", None) is not None:
            self.sentences = pooling_of(encoder)
        else:
            layers = list(copy.deepcopy(teacher_pooling.layers))
            pooled = [len(teacher_pooling.modes) * config.hidden_size
                      for config in (self.config, teacher.config)]
            if pooled[0] != pooled[1]:
                linear = nn.Linear(*pooled)
                truncated_normal_(linear.weight, self.config.initializer_range)
                nn.init.zeros_(linear.bias)
                # `Identity`, because `sentence_files` expects an activation after each linear layer
                layers = [linear, nn.Identity(), *layers]
            self.sentences = replace(teacher_pooling, layers=nn.Sequential(*layers))
        # `self.sentences` is not an nn.Module, so without `self.layers` the layers in it would not be trained
        self.layers = self.sentences.layers
        widths = (self.sentences.vector_width(self.config), teacher_pooling.vector_width(teacher.config))
        if widths[0] != widths[1]:
            raise UserError(f"the student's vectors have {widths[0]} numbers and the teacher's {widths[1]}: "
                            "they cannot be compared")


def embedding(student: nn.Module, teacher: nn.Module, micro: MicroBatch, weights: EmbeddingWeights,
              counts: dict[str, int]) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the loss of a micro-batch, and a dict with the sum of each term. u_s and u_t (D,) are the
    vectors of student and teacher for a text. h_s and h_t are the last hidden states of student and teacher
    at a token. The terms are:

        cosine  1 - cos(u_s, u_t)
        mse     mean over D of (u_s - u_t)^2
        hidden  mean over the hidden size of (h_s - h_t)^2, at each token

    If the student is not a `SentenceStudent`, its vectors are computed with the teacher's pooling. Raises
    `UserError` if the vectors of student and teacher have different widths.
    """
    with torch.no_grad():
        teacher_last = encoder_of(teacher)(micro.batch)  # (N, hidden size)
        teacher_vectors = pooling_of(teacher)(teacher_last, micro.batch)  # (S, D)
    last = encoder_of(student)(micro.batch)
    pooling = student.sentences if isinstance(student, SentenceStudent) else pooling_of(teacher)
    student_vectors = pooling(last, micro.batch)  # (S, D)
    if student_vectors.shape != teacher_vectors.shape:
        raise UserError(f"the student's vectors have {student_vectors.shape[-1]} numbers and the teacher's "
                        f"{teacher_vectors.shape[-1]}: train a SentenceStudent(student, teacher), which maps "
                        "the vectors to one width (minibert/distill/embedding.py)")
    sums = {"cosine": cosine_sum(student_vectors, teacher_vectors),
            "mse": hidden_sum(student_vectors, teacher_vectors)}
    if weights.hidden:
        sums["hidden"] = hidden_sum(last, teacher_last)
    return weighted_terms(sums, weights, counts)


def embedding_counts(step: Step, weights: EmbeddingWeights) -> dict[str, int]:
    """Returns a dict from each loss term to the divisor of its sum: the number of sequences or of tokens in
    the whole step.
    """
    return {"cosine": step.sequences, "mse": step.sequences, "hidden": step.tokens}


def fit_embedding(student: Config, teacher: Config, weights: EmbeddingWeights) -> str:
    """Returns a sentence about the new linear layer if student and teacher have different widths, and
    otherwise an empty text. Raises `UserError` if the vocabularies differ in size, or if the widths differ
    and the weight of `hidden` is not 0.
    """
    check_vocabulary(student, teacher)
    if student.hidden_size == teacher.hidden_size:
        return ""
    if weights.hidden:
        raise UserError(f"hidden states {student.hidden_size} wide cannot be compared with "
                        f"{teacher.hidden_size}: set the weight of the term hidden to 0")
    return (f"a new linear layer maps the student's pooled states, {student.hidden_size} wide, to the "
            f"teacher's width {teacher.hidden_size} (a student with pooling layers of its own keeps them)")

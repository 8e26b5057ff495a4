"""The table of all methods of pre-training: the loss, the requirements and the default options of each.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from minibert.common.errors import UserError
from minibert.distill.distilbert import (DistilBERTWeights, MLMWeights, distilbert, distilbert_counts,
                                         fit_distilbert, fit_mlm, mlm, mlm_counts)
from minibert.distill.embedding import (EmbeddingWeights, SentenceStudent, embedding, embedding_counts,
                                        fit_embedding)
from minibert.distill.minilm import (MiniLMv2Weights, MiniLMWeights, fit_minilm, fit_minilmv2, minilm,
                                     minilm_counts, minilmv2, minilmv2_counts)
from minibert.distill.mobilebert import MobileBERTWeights, fit_mobilebert, mobilebert, mobilebert_counts
from minibert.distill.students import distilbert_of, halved, mobilebert_of, tinybert_of
from minibert.distill.tinybert import (TinyBERTStudent, TinyBERTWeights, fit_tinybert, tinybert,
                                       tinybert_counts)
from minibert.model.batch import MicroBatch, Step


class Method(NamedTuple):
    """Everything that train.py needs to know about a method. distilbert.py has the form of the functions."""

    loss: Callable  # (student, teacher, micro-batch, weights, counts) -> the loss and the sums of its terms
    weights: type  # the published weights of the terms, and other settings of the loss
    counts: Callable  # (step, weights) -> the divisor of each sum
    # (student's config, teacher's, weights) -> a sentence on what is compared, or a `UserError`
    fit: Callable
    shape: Callable  # (teacher's config, layers) -> the student's config, if none is given
    head: str  # the parts it reads: the outputs of the models ("mlm"), or only their inside ("encoder")
    defaults: dict  # defaults of options of train.py
    module: Callable | None = None  # (student, teacher) -> what is trained instead of the student


# BERT's own pre-training, which TinyBERT and MiniLM follow (TinyBERT's code has lr 5e-5 and 10 % warm-up).
BERT = dict(init="teacher", masking="bert", mask_share=0.15, optimizer="adamw", lr=1e-4, warmup=0.01,
            beta2=0.999, weight_decay=0.01, clip=1.0, min_length=12)

METHODS = {
    "distilbert": Method(  # the command with which it was released
        distilbert, DistilBERTWeights, distilbert_counts, fit_distilbert, distilbert_of, "mlm",
        BERT | dict(masking="smoothed", lr=5e-4, warmup=0.05, beta2=0.98, weight_decay=0.0, clip=5.0)),
    "mlm": Method(mlm, MLMWeights, mlm_counts, fit_mlm, distilbert_of, "mlm", BERT),
    "tinybert": Method(
        tinybert, TinyBERTWeights, tinybert_counts, fit_tinybert, tinybert_of, "encoder",
        BERT | dict(init="random", mask_share=0.0),
        lambda student, teacher: TinyBERTStudent(student, teacher.config)),
    "minilm": Method(
        minilm, MiniLMWeights, minilm_counts, fit_minilm, tinybert_of, "encoder",
        BERT | dict(init="random", mask_share=0.0, lr=5e-4)),
    "minilmv2": Method(
        minilmv2, MiniLMv2Weights, minilmv2_counts, fit_minilmv2, tinybert_of, "encoder",
        BERT | dict(init="random", mask_share=0.0, lr=5e-4)),
    "mobilebert": Method(
        mobilebert, MobileBERTWeights, mobilebert_counts, fit_mobilebert, mobilebert_of, "mlm",
        BERT | dict(init="embeddings", optimizer="lamb", lr=1.5e-3, warmup=0.02)),  # lr for batches of 2,048
    "embedding": Method(
        embedding, EmbeddingWeights, embedding_counts, fit_embedding, halved, "encoder",
        # A teacher without masks and dropout is imitated without them, on texts of any length. In batches of
        # 32, 2e-4 was better than 5e-4, and that better than 1e-3 (docs/sentence-encoders.md).
        BERT | dict(mask_share=0.0, dropout=0.0, lr=2e-4, warmup=0.05, min_length=3), SentenceStudent),
}


def terms_of(method: str) -> tuple[str, ...]:
    """The names of the terms that have a weight."""
    weights = METHODS[method].weights()
    counted = METHODS[method].counts(Step([], 1, 1, 1), weights)
    return tuple(field.name for field in dataclasses.fields(weights) if field.name in counted)


def weights_of(method: str, **changed) -> object:
    """The published weights of a method, with the fields in `changed` replaced. Raises `UserError` if all
    terms are 0.
    """
    weights = METHODS[method].weights(**changed)
    if not any(getattr(weights, name) for name in terms_of(method)):
        raise UserError(f"every term of {method} has weight 0: nothing would be learned")
    return weights


def distillation_loss(method: str, student: nn.Module, teacher: nn.Module | None, batch: MicroBatch, **changed
                      ) -> tuple[Tensor, dict[str, float]]:
    """The loss of a method on one batch, to be differentiated, and the mean of each of its terms by name.

    `changed` are fields of the method's weights other than published: `distillation_loss("distilbert", ...,
    cosine=0)`. The modes of the models are not changed: set the student to train mode and the teacher to eval
    mode.
    """
    if method not in METHODS:
        raise UserError(f"the method {method!r} is not known; there are: {', '.join(METHODS)}")
    weights = weights_of(method, **changed)
    step = Step([batch], len(batch.labels), len(batch.masked), len(batch.batch.lengths))
    counts = METHODS[method].counts(step, weights)
    loss, sums = METHODS[method].loss(student, teacher, batch, weights, counts)
    return loss, {name: total.item() / counts[name] for name, total in sums.items()}

"""Lists all methods of pre-training in the table `METHODS`, with the loss and the default options of each
method.
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
    """The functions and settings of one method."""

    loss: Callable  # distilbert.py describes the arguments and results of a loss
    weights: type  # a dataclass with the weights of the loss terms and other settings
    counts: Callable  # takes (step, weights); returns a dict from each term to the divisor of its sum
    # Takes (student's config, teacher's config, weights). Raises `UserError` if the two models cannot be
    # compared. Returns a sentence for the user, for example the layer map, or an empty text.
    fit: Callable
    shape: Callable  # takes (teacher's config, number of layers); returns the student's default config
    head: str  # "mlm": the loss needs the MLM heads; "encoder": the loss needs only the encoders
    defaults: dict  # default values of those options of train.py that depend on the method
    module: Callable | None = None  # takes (student, teacher); returns the module to train. None: the student


# Default options. All values except `init` and `min_length` are those of BERT's pre-training.
BERT = dict(init="teacher", masking="bert", mask_share=0.15, optimizer="adamw", lr=1e-4, warmup=0.01,
            beta2=0.999, weight_decay=0.01, clip=1.0, min_length=12)

METHODS = {
    "distilbert": Method(  # its defaults are the options of the first training command in DistilBERT's README
        distilbert, DistilBERTWeights, distilbert_counts, fit_distilbert, distilbert_of, "mlm",
        BERT | dict(masking="smoothed", lr=5e-4, warmup=0.05, beta2=0.98, weight_decay=0.0, clip=5.0)),
    "mlm": Method(mlm, MLMWeights, mlm_counts, fit_mlm, distilbert_of, "mlm", BERT),
    # TinyBERT, MiniLM and MiniLMv2 have no MLM loss, so no token is masked (`mask_share` 0).
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
        # The learning rate 1.5e-3 is that of MobileBERT's authors, for batches of 2,048 sequences.
        BERT | dict(init="embeddings", optimizer="lamb", lr=1.5e-3, warmup=0.02)),
    "embedding": Method(
        embedding, EmbeddingWeights, embedding_counts, fit_embedding, halved, "encoder",
        # `min_length` is 3, because a text may be [CLS], a single token and [SEP]. With batches of 32 texts,
        # the learning rate 2e-4 was better than 5e-4 and 1e-3 (docs/sentence-encoders.md).
        BERT | dict(mask_share=0.0, dropout=0.0, lr=2e-4, warmup=0.05, min_length=3), SentenceStudent),
}


def terms_of(method: str) -> tuple[str, ...]:
    """Returns a tuple with the names of a method's loss terms. The accuracy has no weight, so it is no loss
    term.
    """
    weights = METHODS[method].weights()
    # the `Step` may have any numbers, because only the names of the counts are used
    counted = METHODS[method].counts(Step([], 1, 1, 1), weights)
    return tuple(field.name for field in dataclasses.fields(weights) if field.name in counted)


def weights_of(method: str, **changed) -> object:
    """Returns the weights of a method: an object of the class `Method.weights` with the default values,
    except for the fields in `changed`. Raises `UserError` if all loss terms have weight 0.
    """
    weights = METHODS[method].weights(**changed)
    if not any(getattr(weights, name) for name in terms_of(method)):
        raise UserError(f"every term of {method} has weight 0: nothing would be learned")
    return weights


def check_models(method: str, student: nn.Module, teacher: nn.Module | None, weights) -> None:
    """Raises `UserError` if the method needs a teacher or an MLM head that is missing, or if the two models
    do not fit the method (see `Method.fit`). The method `mlm` does not use its teacher, so its teacher is not
    checked.
    """
    models = {"student": student} if method == "mlm" else {"student": student, "teacher": teacher}
    for whose, model in models.items():
        if model is None:
            raise UserError(f"the method {method} needs a {whose}")
        if METHODS[method].head == "mlm" and not hasattr(model, "mlm"):
            raise UserError(f"the method {method} needs a {whose} with an MLM head, and this {whose} is of "
                            f"the class {type(model).__name__}; minibert.load(..., head=\"mlm\") loads the "
                            "head of a pre-trained model")
    if method != "mlm":
        METHODS[method].fit(student.config, teacher.config, weights)


def distillation_loss(method: str, student: nn.Module, teacher: nn.Module | None, batch: MicroBatch, **changed
                      ) -> tuple[Tensor, dict[str, float]]:
    """Returns a method's loss on one batch, and a dict with the mean of each loss term. If the method has an
    MLM term, the dict also has the accuracy. `changed` replaces default weights, for example `cosine=0`. Call
    `student.train()` and `teacher.eval()` before this function.

    If the student is narrower or wider than the teacher, the method `tinybert` needs a `TinyBERTStudent` as
    the student, and the method `embedding` needs a `SentenceStudent`. Raises `UserError` if the method is not
    known, if all loss terms have weight 0, or if the two models do not fit the method.
    """
    if method not in METHODS:
        raise UserError(f"the method {method!r} is not known; there are: {', '.join(METHODS)}")
    weights = weights_of(method, **changed)
    check_models(method, student, teacher, weights)
    step = Step([batch], len(batch.labels), len(batch.masked), len(batch.batch.lengths))
    counts = METHODS[method].counts(step, weights)
    loss, sums = METHODS[method].loss(student, teacher, batch, weights, counts)
    return loss, {name: total.item() / counts[name] for name, total in sums.items()}

"""Computes the loss of DistilBERT, and the loss of masked language modelling (MLM) alone.

Each pre-training method (methods.py) has a loss: a function of (student, teacher, micro-batch, weights,
counts). The function returns a tuple: the micro-batch's part of the step's loss, and a dict with the detached
sum of each loss term over the micro-batch. In the dict, a term with weight 0 may be missing. If the loss has
the MLM term, the dict also has the key "accuracy": the number of correct predictions at masked tokens.

In the loss, the sum of each term is multiplied by its weight and divided by a count, for example the number
of masked tokens. The count is that of the *whole* step: all micro-batches of all ranks. So the gradients of
all micro-batches add up to the gradient of one large batch with all sequences of the step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minibert.distill.losses import cosine_sum
from minibert.distill.students import OUTER_SIZES, check_equal
from minibert.distill.vocab_loss import Vocab, vocab_loss
from minibert.model.batch import MicroBatch, Step
from minibert.model.config import Config


@dataclass(frozen=True)
class DistilBERTWeights:
    """The weights of the three terms of DistilBERT's loss, and the temperature of the KL. The defaults are
    the published values.
    """

    kl: float = 5.0
    mlm: float = 2.0
    cosine: float = 1.0
    temperature: float = 2.0
    kl_masked_only: bool = False  # True: KL only at masked tokens (--restrict_ce_to_mask of DistilBERT)


@dataclass(frozen=True)
class MLMWeights:
    """The weight of the MLM loss, the only loss term of the method `mlm`."""

    mlm: float = 1.0


def distilbert(student: nn.Module, teacher: nn.Module, micro: MicroBatch, weights: DistilBERTWeights,
               counts: dict[str, int]) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns DistilBERT's loss for a micro-batch (Sanh et al. 2019, section 3), and a dict with the sum of
    each term. The three terms are:

        kl      KL(teacher || student) at all tokens (with `kl_masked_only`: at masked tokens)
        mlm     cross-entropy with the original tokens, at masked tokens
        cosine  cosine distance between the last hidden states of student and teacher (L_cos), at all tokens,
                as in the authors' code
    """
    with torch.no_grad():
        teacher_last = teacher.encoder(micro.batch)  # (N, D)
    last = student.encoder(micro.batch)  # (N, D)
    rows, labelled = slice(None), micro.masked
    if weights.kl_masked_only:
        rows, labelled = micro.masked.to(last.device, non_blocking=True), torch.arange(len(micro.masked))
    with torch.no_grad():
        teacher_side = vocab_side(teacher, teacher_last[rows])
    loss, sums = vocab_loss(
        vocab_side(student, last[rows]), micro.labels[rows], teacher_side, labelled=labelled,
        temperature=weights.temperature,
        mlm_weight=weights.mlm / counts["mlm"], kl_weight=weights.kl / counts["kl"])
    cosine = cosine_sum(last, teacher_last)
    loss = loss + weights.cosine / counts["cosine"] * cosine
    return loss, {"kl": sums.kl, "mlm": sums.mlm, "cosine": cosine.detach(), "accuracy": sums.correct}


def mlm(student: nn.Module, teacher: nn.Module | None, micro: MicroBatch, weights: MLMWeights,
        counts: dict[str, int]) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the MLM loss for a micro-batch (Devlin et al. 2018, section 3.1, task 1), and a dict with the
    sum of the cross-entropies at masked tokens and the number of correct predictions. `teacher` is not used.
    """
    last = student.encoder(micro.batch)  # (N, D)
    rows = micro.masked.to(last.device, non_blocking=True)  # (M,) for M masked tokens
    loss, sums = vocab_loss(vocab_side(student, last[rows]), micro.labels[rows],
                            labelled=torch.arange(len(rows)), mlm_weight=weights.mlm / counts["mlm"])
    return loss, {"mlm": sums.mlm, "accuracy": sums.correct}


def distilbert_counts(step: Step, weights: DistilBERTWeights) -> dict[str, int]:
    """Returns a dict from each loss term and "accuracy" to the divisor of its sum: the number of tokens or of
    masked tokens in the whole step.
    """
    masked = max(1, step.masked)  # not 0 in a step without masked tokens, because sums are divided by it
    return {"kl": masked if weights.kl_masked_only else step.tokens, "mlm": masked, "cosine": step.tokens,
            "accuracy": masked}


def mlm_counts(step: Step, weights: MLMWeights) -> dict[str, int]:
    """Returns a dict from "mlm" and "accuracy" to the divisor of their sums: the number of masked tokens in
    the whole step.
    """
    return {"mlm": max(1, step.masked), "accuracy": max(1, step.masked)}


def vocab_side(model: nn.Module, last: Tensor) -> Vocab:
    """Returns a `Vocab`: the tensors from which `vocab_loss` computes the logits of `model`. `last` (N, D)
    are the last hidden states of N tokens.
    """
    return Vocab(model.mlm(last), model.mlm.table(model.encoder.word.weight), model.mlm.bias)


def fit_distilbert(student: Config, teacher: Config, weights: DistilBERTWeights) -> str:
    """Raises `UserError` if student and teacher differ in vocabulary size, width or number of positions.
    Otherwise returns an empty text.
    """
    check_equal(student, teacher, OUTER_SIZES,
                "--method distilbert needs equal values (tinybert and minilm allow any width)")
    return ""


def fit_mlm(student: Config, teacher: Config, weights: MLMWeights) -> str:
    """Raises `UserError` if student and teacher have vocabularies of different sizes, because the evaluation
    on held-out text computes the KL between their predictions. Otherwise returns an empty text.
    """
    check_equal(student, teacher, {"vocab_size": "vocabulary"},
                "leave out --teacher to train this student alone")
    return ""

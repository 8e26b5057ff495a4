"""The loss of DistilBERT, and that of BERT's own pre-training: masked language modelling alone.

A loss is a function from (student, teacher, micro-batch, weights, counts) to two results: the micro-batch's
share of the loss of the whole step, and the sums of its terms by name, detached. Every sum is divided by the
count of the *whole* step, over all micro-batches and ranks, so the gradients of micro-batches add up to the
gradient of one batch. The counts of a step are computed once, by the function beside the loss. All other
methods have the same form.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minibert.common.errors import UserError
from minibert.distill.losses import cosine_sum
from minibert.distill.vocab_loss import Vocab, vocab_loss
from minibert.model.batch import MicroBatch, Step
from minibert.model.config import Config


@dataclass(frozen=True)
class DistilBERTWeights:
    """The triple loss of DistilBERT as released: 5 KL + 2 MLM + 1 cosine at T = 2."""

    kl: float = 5.0
    mlm: float = 2.0
    cosine: float = 1.0
    temperature: float = 2.0
    kl_masked_only: bool = False  # the distiller's --restrict_ce_to_mask


@dataclass(frozen=True)
class MLMWeights:
    """One term, so that its weight only scales the loss."""

    mlm: float = 1.0


def distilbert(student: nn.Module, teacher: nn.Module, micro: MicroBatch, weights: DistilBERTWeights,
               counts: dict[str, int]) -> tuple[Tensor, dict[str, Tensor]]:
    """The triple loss (Sanh et al. 2019, section 3): KL to the teacher at all tokens, MLM at masked ones, and
    the cosine distance of the last hidden states at all tokens.
    """
    with torch.no_grad():  # the teacher is never trained: no graph of it is kept
        teacher_last = teacher.encoder(micro.batch)  # (N, D)
    last = student.encoder(micro.batch)  # (N, D), both models read the masked text
    rows, labelled = slice(None), micro.masked
    if weights.kl_masked_only:
        # The heads read masked tokens only, because the other logits would not be used.
        rows, labelled = micro.masked.to(last.device, non_blocking=True), torch.arange(len(micro.masked))
    with torch.no_grad():
        teacher_side = vocab_side(teacher, teacher_last[rows])
    # KL and MLM are computed together, because both need the student's logits.
    loss, sums = vocab_loss(
        vocab_side(student, last[rows]), micro.labels[rows], teacher_side, labelled=labelled,
        temperature=weights.temperature,
        mlm_weight=weights.mlm / counts["mlm"], kl_weight=weights.kl / counts["kl"])
    cosine = cosine_sum(last, teacher_last)
    loss = loss + weights.cosine / counts["cosine"] * cosine
    return loss, {"kl": sums.kl, "mlm": sums.mlm, "cosine": cosine.detach(), "accuracy": sums.correct}


def mlm(student: nn.Module, teacher: nn.Module | None, micro: MicroBatch, weights: MLMWeights,
        counts: dict[str, int]) -> tuple[Tensor, dict[str, Tensor]]:
    """Masked language modelling: the mean cross-entropy at the masked tokens of the step (Devlin et al. 2018,
    section 3.1, task 1). The teacher is not used.
    """
    last = student.encoder(micro.batch)  # (N, D)
    rows = micro.masked.to(last.device, non_blocking=True)  # (M,) the head reads masked tokens only
    loss, sums = vocab_loss(vocab_side(student, last[rows]), micro.labels[rows],
                            labelled=torch.arange(len(rows)), mlm_weight=weights.mlm / counts["mlm"])
    return loss, {"mlm": sums.mlm, "accuracy": sums.correct}


def distilbert_counts(step: Step, weights: DistilBERTWeights) -> dict[str, int]:
    """The divisor of each term's sum: the tokens of the whole step, or its masked tokens."""
    masked = max(1, step.masked)  # a step may have no masked token, and then its sum is 0
    return {"kl": masked if weights.kl_masked_only else step.tokens, "mlm": masked, "cosine": step.tokens,
            "accuracy": masked}


def mlm_counts(step: Step, weights: MLMWeights) -> dict[str, int]:
    """The divisor of each term's sum: the masked tokens of the whole step."""
    return {"mlm": max(1, step.masked), "accuracy": max(1, step.masked)}


def vocab_side(model: nn.Module, last: Tensor) -> Vocab:
    """The part of a model that `vocab_loss` needs, for the rows `last` (N, D) of its last hidden states."""
    return Vocab(model.mlm(last), model.mlm.table(model.encoder.word.weight), model.mlm.bias)


def fit_distilbert(student: Config, teacher: Config, weights: DistilBERTWeights) -> str:
    """Raises `UserError` if vocabulary, width or positions differ, because the outputs cannot be compared
    then.
    """
    for name, meaning in (("vocab_size", "vocabulary"), ("hidden_size", "width"),
                          ("max_positions", "positions")):
        ours, theirs = getattr(student, name), getattr(teacher, name)
        if ours != theirs:
            raise UserError(f"student and teacher do not fit: {meaning} {ours} against {theirs}; the "
                            "distilbert method needs both alike (tinybert and minilm fit any width)")
    return ""


def fit_mlm(student: Config, teacher: Config, weights: MLMWeights) -> str:
    """Raises `UserError` if the vocabulary differs, because the KL to the teacher is reported on held-out
    text.
    """
    if student.vocab_size != teacher.vocab_size:
        raise UserError(f"student and teacher do not fit: vocabulary {student.vocab_size} against "
                        f"{teacher.vocab_size}; leave out --teacher to train this student alone")
    return ""

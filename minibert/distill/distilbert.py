"""What each method minimises:
a function from (student, teacher, step, weights, micro-batch) to one loss and its named terms.

Every method has the same form: it returns the micro-batch's share of the step's loss, each
term divided by the count of the *whole* step, and detached sums by name, which the caller adds up
over micro-batches and ranks. `term_counts` says what each sum is divided by. Weights are in
`Weights`; nothing else decides what is learned.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minibert.data.loader import MicroBatch, Step
from minibert.distill.losses import cosine_sum
from minibert.distill.vocab_loss import Vocab, vocab_loss


@dataclass(frozen=True)
class Weights:
    """The triple loss of DistilBERT as released: 5 KL + 2 MLM + 1 cosine at T = 2."""

    kl: float = 5.0
    mlm: float = 2.0
    cosine: float = 1.0
    temperature: float = 2.0
    kl_masked_only: bool = False  # the distiller's --restrict_ce_to_mask


def vocab_side(model: nn.Module, last: Tensor) -> Vocab:
    """What vocab_loss needs of a model for the rows `last` (N, D) of its last hidden states."""
    return Vocab(model.mlm(last), model.mlm.table(model.encoder.word.weight), model.mlm.bias)


def mlm(student: nn.Module, teacher: nn.Module | None, step: Step, weights: Weights,
        micro: MicroBatch) -> tuple[Tensor, dict]:
    """Masked language modelling alone, a teacher is not asked:
    mean cross-entropy over the masked tokens of the step (Devlin et al. 2018, section 3.1, task 1).
    """
    last = student.encoder(micro.batch)
    rows = micro.masked.to(last.device, non_blocking=True)  # the head reads masked tokens only
    loss, sums = vocab_loss(vocab_side(student, last[rows]), micro.labels[rows],
                            labelled=torch.arange(len(rows)), mlm_weight=1 / max(1, step.masked))
    return loss, {"mlm": sums.mlm, "accuracy": sums.correct}


def distilbert(student: nn.Module, teacher: nn.Module, step: Step, weights: Weights,
               micro: MicroBatch) -> tuple[Tensor, dict]:
    """DistilBERT's triple loss (Sanh et al. 2019, section 3):
    KL to the teacher over all tokens, MLM, cosine.
    """
    with torch.no_grad():
        teacher_last = teacher.encoder(micro.batch)
    last = student.encoder(micro.batch)
    rows, labelled = slice(None), micro.masked
    if weights.kl_masked_only:  # the heads read masked tokens only
        rows, labelled = micro.masked.to(last.device, non_blocking=True), torch.arange(len(micro.masked))
    with torch.no_grad():
        teacher_side = vocab_side(teacher, teacher_last[rows])
    counts = term_counts(step, weights)
    loss, sums = vocab_loss(
        vocab_side(student, last[rows]), micro.labels[rows], teacher_side, labelled=labelled,
        temperature=weights.temperature,
        mlm_weight=weights.mlm / counts["mlm"], kl_weight=weights.kl / counts["kl"])
    cosine = cosine_sum(last, teacher_last)
    loss = loss + weights.cosine / counts["cosine"] * cosine
    return loss, {"kl": sums.kl, "mlm": sums.mlm, "cosine": cosine.detach(), "accuracy": sums.correct}


METHODS = {"mlm": mlm, "distilbert": distilbert}
TERMS = {"mlm": (), "distilbert": ("kl", "mlm", "cosine")}  # those with a weight in `Weights`


def term_counts(step: Step, weights: Weights) -> dict[str, int]:
    """What the sum of each term is divided by: tokens of the whole step, or its masked ones."""
    masked = max(1, step.masked)
    return {"kl": masked if weights.kl_masked_only else step.tokens, "mlm": masked, "accuracy": masked,
            "cosine": step.tokens}

"""What MobileBERT minimises (Sun et al. 2020, section 3.5): how far it is from its teacher's feature maps and
attention, layer by layer, and from what the teacher says about masked words.

The form is that of methods.py: (student, teacher, step, weights, micro-batch) to the micro-batch's share of
the step's loss and detached sums by name; `term_counts` says what each sum is divided by. Which of it is
minimised when is in schedules.py.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibert.common.errors import UserError
from minibert.data.loader import MicroBatch, Step
from minibert.distill.attention_loss import relation_sum
from minibert.distill.distilbert import vocab_side
from minibert.distill.losses import at_least_fp32
from minibert.distill.vocab_loss import vocab_loss
from minibert.model.config import Config, MobileConfig
from minibert.model.encoder import Encoder, Trace


@dataclass(frozen=True)
class TransferWeights:
    """The weight of each term, as in the authors' code, and the layers that are transferred.

    The first four weigh the mean over all L layers: a layer that is transferred alone has 1 / L of them.
    """

    feature_map: float = 100.0
    mean: float = 5000.0
    variance: float = 5.0
    attention: float = 1.0
    mlm: float = 0.5  # alpha
    kd: float = 0.5  # 1 - alpha
    temperature: float = 1.0  # of the KD; not in the paper
    layers: tuple[int, ...] | None = None  # from 1; None: all of them


def feature_map_sums(student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    """The feature-map transfer of one layer, h_s and h_t (N, D), in its three parts, as sums over tokens:

        feature_map  mean over D of (LN(h_s) - LN(h_t))^2, LN without weights
        mean         (mean_s - mean_t)^2, means over D
        variance     |var_s - var_t|, variances over D

    The paper's L_FMT is the mean square of h_s - h_t; its code minimises these three in its place.
    note: the code takes the teacher's mean and variance over the list of all its layers instead of this one.
    """
    h_s, h_t = at_least_fp32(student), at_least_fp32(teacher.detach())
    normal_s, normal_t = (F.layer_norm(h, h.shape[-1:], eps=1e-12) for h in (h_s, h_t))
    var_s, var_t = (h.var(-1, correction=0) for h in (h_s, h_t))
    return {"feature_map": (normal_s - normal_t).square().mean(-1).sum(),
            "mean": (h_s.mean(-1) - h_t.mean(-1)).square().sum(), "variance": (var_s - var_t).abs().sum()}


def mobilebert(student: nn.Module, teacher: nn.Module, step: Step, weights: TransferWeights,
               micro: MicroBatch) -> tuple[Tensor, dict]:
    """MobileBERT's knowledge transfer of `weights.layers`, and pre-training distillation where `mlm` or `kd`
    has a weight.

    The sums of the four transfer terms are over these layers too, divided by L. Attention is KL(a_t || a_s),
    the mean over heads and rows of each sequence and then over sequences. Distillation is alpha MLM +
    (1 - alpha) KD at masked tokens; there is no next sentence prediction.
    note: the authors' code means attention over all rows of a batch, the same where lengths are equal; and it
    minimises cross-entropies for KLs, which have the same gradient.
    """
    layers = range(1, student.config.layers + 1) if weights.layers is None else weights.layers
    deepest = student.config.layers if weights.mlm or weights.kd else max(layers)

    def trace(encoder: Encoder) -> Trace:
        if not layers:  # only the last hidden states: the others need not be kept
            return Trace((encoder(micro.batch),), (), (), ())
        return encoder.trace(micro.batch, deepest)

    with torch.no_grad():
        theirs = trace(teacher.encoder)
    ours = trace(student.encoder)
    sums: dict[str, Tensor] = {}
    for layer in layers:
        terms = feature_map_sums(ours.hiddens[layer], theirs.hiddens[layer])
        if weights.attention:  # hidden states count from the embeddings, queries from the first layer
            terms["attention"] = relation_sum(ours.queries[layer - 1], ours.keys[layer - 1],
                                              theirs.queries[layer - 1], theirs.keys[layer - 1], micro.batch)
        for name, term in terms.items():
            if getattr(weights, name):
                sums[name] = sums.get(name, 0) + term / student.config.layers
    counts = term_counts(step, weights)
    loss = sum(getattr(weights, name) / counts[name] * term for name, term in sums.items())
    if weights.mlm or weights.kd:
        share, figures = _distillation(student, teacher, ours.hiddens[-1], theirs.hiddens[-1], step, weights,
                                       micro)
        loss, sums = loss + share, sums | figures
    return loss, {name: term.detach() for name, term in sums.items()}


def _distillation(student, teacher, last: Tensor, teacher_last: Tensor, step: Step, weights: TransferWeights,
                  micro: MicroBatch) -> tuple[Tensor, dict]:
    rows = micro.masked.to(last.device, non_blocking=True)
    with torch.no_grad():
        theirs = vocab_side(teacher, teacher_last[rows]) if weights.kd else None
    counts = term_counts(step, weights)
    loss, sums = vocab_loss(vocab_side(student, last[rows]), micro.labels[rows], theirs,
                            labelled=torch.arange(len(rows)), temperature=weights.temperature,
                            mlm_weight=weights.mlm / counts["mlm"], kl_weight=weights.kd / counts["kd"])
    return loss, {"mlm": sums.mlm, "accuracy": sums.correct} | ({"kd": sums.kl} if weights.kd else {})


METHODS = {"mobilebert": mobilebert}
TERMS = {"mobilebert": ("feature_map", "mean", "variance", "attention", "mlm", "kd")}


def term_counts(step: Step, weights: TransferWeights) -> dict[str, int]:
    """What the sum of each term is divided by: tokens, sequences or masked tokens of the whole step."""
    masked = max(1, step.masked)
    return {"feature_map": step.tokens, "mean": step.tokens, "variance": step.tokens,
            "attention": step.sequences, "mlm": masked, "kd": masked, "accuracy": masked}


def check_fit(student: Config, teacher: Config, weights: TransferWeights) -> None:
    """Raises `UserError` where the student's layers cannot be laid beside the teacher's, its embeddings and
    head cannot be copied from it, or a stage would minimise nothing.
    """
    for config, whose in ((student, "student"), (teacher, "teacher")):
        if not isinstance(config, MobileConfig):
            raise UserError(f"the {whose} of --method mobilebert is a MobileBERT or an IB-BERT, and this one "
                            f"is a {config.architecture}; minilmv2 teaches a MobileBERT from any teacher")
    for name, meaning in (("layers", "layers"), ("hidden_size", "width between blocks"), ("heads", "heads"),
                          ("vocab_size", "vocabulary"), ("embedding_size", "width of the word table"),
                          ("max_positions", "positions"), ("segments", "token types")):
        ours, theirs = getattr(student, name), getattr(teacher, name)
        if ours != theirs:
            raise UserError(f"student and teacher do not fit: {meaning} {ours} against {theirs}; --method "
                            "mobilebert compares them layer by layer and copies the rest")
    for terms in (TERMS["mobilebert"][:4], TERMS["mobilebert"][4:]):  # of the transfer, of the distillation
        if not any(getattr(weights, name) for name in terms):
            raise UserError(f"{', '.join(terms)} all have weight 0: in some steps, nothing would be learned")

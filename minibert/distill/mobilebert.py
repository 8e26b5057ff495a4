"""What MobileBERT minimises (Sun et al. 2020, section 3.5): how far it is from its teacher's feature maps and
attention, layer by layer, and from the teacher's outputs at masked words.

The form of the loss is that of distilbert.py. training/mobilebert_stages.py decides which terms are used at
which step.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibert.common.errors import UserError
from minibert.distill.attention_loss import relation_sum
from minibert.distill.distilbert import vocab_side
from minibert.distill.losses import at_least_fp32, weighted_terms
from minibert.distill.vocab_loss import vocab_loss
from minibert.model.batch import MicroBatch, Step
from minibert.model.config import Config, MobileConfig
from minibert.model.encoder import Encoder, Trace


@dataclass(frozen=True)
class MobileBERTWeights:
    """The weight of each term, as in the authors' code, and the layers that are transferred.

    The first four are weights of the mean over all L layers. A layer that is transferred alone has 1 / L of
    them.
    """

    feature_map: float = 100.0
    mean: float = 5000.0
    variance: float = 5.0
    attention: float = 1.0
    mlm: float = 0.5  # alpha
    kd: float = 0.5  # 1 - alpha
    temperature: float = 1.0  # of the KD; not in the paper
    layers: tuple[int, ...] | None = None  # from 1; None: all of them


def mobilebert(student: nn.Module, teacher: nn.Module, micro: MicroBatch, weights: MobileBERTWeights,
               counts: dict[str, int]) -> tuple[Tensor, dict[str, Tensor]]:
    """MobileBERT's knowledge transfer of `weights.layers`, and pre-training distillation if `mlm` or `kd` has
    a weight.

    The sums of the four transfer terms are over these layers, too, divided by L. Attention is KL(a_t || a_s),
    averaged over heads and rows of each sequence. Distillation is alpha MLM + (1 - alpha) KD at masked
    tokens; there is no next sentence prediction. note: the authors' code averages attention over all rows of
    a batch, which is the same for equal lengths. It minimises cross-entropies instead of KLs, which have the
    same gradient.
    """
    L = student.config.layers
    layers = range(1, L + 1) if weights.layers is None else weights.layers
    distils = bool(weights.mlm or weights.kd)
    deepest = L if distils else max(layers)  # what lies above is not computed
    with torch.no_grad():
        theirs = trace(teacher.encoder, micro, bool(layers), deepest)
    ours = trace(student.encoder, micro, bool(layers), deepest)
    sums: dict[str, Tensor] = {}
    for layer in layers:
        terms = feature_map_sums(ours.hiddens[layer], theirs.hiddens[layer])
        if weights.attention:  # hidden states count from the embeddings, queries from the first layer
            terms["attention"] = relation_sum(ours.queries[layer - 1], ours.keys[layer - 1],
                                              theirs.queries[layer - 1], theirs.keys[layer - 1], micro.batch)
        # a term without a weight is left out of the log, too
        for name, term in terms.items():
            if getattr(weights, name):
                sums[name] = sums.get(name, 0) + term / L
    loss, sums = weighted_terms(sums, weights, counts)
    if distils:
        last = ours.hiddens[-1], theirs.hiddens[-1]
        distillation, more = distillation_at_masks(student, teacher, last, micro, weights, counts)
        loss, sums = loss + distillation, sums | more
    return loss, sums


def feature_map_sums(student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    """The feature-map transfer of one layer, h_s and h_t (N, D), in its three parts, as sums over tokens:

        feature_map  mean over D of (LN(h_s) - LN(h_t))^2, LN without weights
        mean         (mean_s - mean_t)^2, means over D
        variance     |var_s - var_t|, variances over D

    The paper's L_FMT is the mean square of h_s - h_t; the authors' code minimises these three instead.
    note: that code takes the teacher's mean and variance over the list of all its layers instead of this one.
    """
    # section 3.5, "feature map transfer"; the split into mean and variance is that of the code
    h_s, h_t = at_least_fp32(student), at_least_fp32(teacher.detach())
    normal_s, normal_t = (F.layer_norm(h, h.shape[-1:], eps=1e-12) for h in (h_s, h_t))
    var_s, var_t = (h.var(-1, correction=0) for h in (h_s, h_t))
    return {"feature_map": (normal_s - normal_t).square().mean(-1).sum(),
            "mean": (h_s.mean(-1) - h_t.mean(-1)).square().sum(), "variance": (var_s - var_t).abs().sum()}


def distillation_at_masks(student: nn.Module, teacher: nn.Module, last: tuple[Tensor, Tensor],
                          micro: MicroBatch, weights: MobileBERTWeights, counts: dict[str, int]
                          ) -> tuple[Tensor, dict[str, Tensor]]:
    """alpha MLM + (1 - alpha) KD at masked tokens; `last`: the last states (N, D) of student and teacher."""
    last, teacher_last = last
    rows = micro.masked.to(last.device, non_blocking=True)  # (M,)
    with torch.no_grad():
        teacher_side = vocab_side(teacher, teacher_last[rows]) if weights.kd else None
    # at masked tokens, where both terms need the student's logits: one walk over the rows
    loss, sums = vocab_loss(vocab_side(student, last[rows]), micro.labels[rows], teacher_side,
                            labelled=torch.arange(len(rows)), temperature=weights.temperature,
                            mlm_weight=weights.mlm / counts["mlm"], kl_weight=weights.kd / counts["kd"])
    return loss, {"mlm": sums.mlm, "accuracy": sums.correct} | ({"kd": sums.kl} if weights.kd else {})


def trace(encoder: Encoder, micro: MicroBatch, every_layer: bool, deepest: int) -> Trace:
    """The trace of the layers up to `deepest`, or of the last hidden states alone."""
    if every_layer:
        return encoder.trace(micro.batch, deepest)
    return Trace((encoder(micro.batch),), (), (), ())


def mobilebert_counts(step: Step, weights: MobileBERTWeights) -> dict[str, int]:
    """The divisor of each term's sum: tokens, sequences or masked tokens of the whole step."""
    masked = max(1, step.masked)
    return {"feature_map": step.tokens, "mean": step.tokens, "variance": step.tokens,
            "attention": step.sequences, "mlm": masked, "kd": masked, "accuracy": masked}


def fit_mobilebert(student: Config, teacher: Config, weights: MobileBERTWeights) -> str:
    """Raises `UserError` if the layers of student and teacher cannot be compared one by one, if the teacher's
    embeddings and head cannot be copied, or if a stage has no term.
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
    transfer, distillation = ("feature_map", "mean", "variance", "attention"), ("mlm", "kd")
    for terms in (transfer, distillation):
        if not any(getattr(weights, name) for name in terms):
            raise UserError(f"{', '.join(terms)} all have weight 0: in some steps, nothing would be learned")
    return ""

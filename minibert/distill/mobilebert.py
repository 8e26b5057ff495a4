"""Computes the loss of MobileBERT (Sun et al. 2020), which compares the feature maps (hidden states), the
attention and the outputs of student and teacher. The sources are the authors' code and summaries of the
paper; the paper was not read. distilbert.py describes the arguments and results of a loss.
training/mobilebert_stages.py decides which terms a step uses.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibert.common.errors import UserError
from minibert.distill.attention_loss import relation_sum
from minibert.distill.distilbert import vocab_side
from minibert.distill.losses import at_least_fp32, weighted_terms
from minibert.distill.students import OUTER_SIZES, check_equal
from minibert.distill.vocab_loss import vocab_loss
from minibert.model.batch import MicroBatch, Step
from minibert.model.config import Config, MobileConfig
from minibert.model.encoder import Encoder, Trace


@dataclass(frozen=True)
class MobileBERTWeights:
    """The weights of MobileBERT's loss terms, as in the authors' code."""

    feature_map: float = 100.0
    mean: float = 5000.0
    variance: float = 5.0
    attention: float = 1.0
    mlm: float = 0.5  # alpha in the paper
    kd: float = 0.5  # 1 - alpha in the paper
    temperature: float = 1.0  # temperature of KD; the paper has none
    layers: tuple[int, ...] | None = None  # the numbers (from 1) of the layers to compare; None: all layers


def mobilebert(student: nn.Module, teacher: nn.Module, micro: MicroBatch, weights: MobileBERTWeights,
               counts: dict[str, int]) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the loss of knowledge transfer for the layers in `weights.layers`, and a dict with the sum of
    each term. If the weight of `mlm` or `kd` is not 0, the loss of pre-training distillation is added.

    The terms of the transfer are `feature_map`, `mean`, `variance` and `attention`. Each of these terms is
    summed over `weights.layers` and divided by L, the number of all student layers. The attention term is
    KL(a_t || a_s), averaged over the heads and tokens of each sequence. a_t and a_s are the attention
    distributions of a token in teacher and student.

    The distillation adds two terms at masked tokens: `mlm` is the cross-entropy with the original tokens, and
    `kd` is the KL to the teacher. The paper's term for next-sentence prediction is left out.
    """
    L = student.config.layers
    layers = range(1, L + 1) if weights.layers is None else weights.layers
    distils = bool(weights.mlm or weights.kd)
    deepest = L if distils else max(layers)
    with torch.no_grad():
        teacher_trace = trace(teacher.encoder, micro, bool(layers), deepest)
    student_trace = trace(student.encoder, micro, bool(layers), deepest)
    sums: dict[str, Tensor] = {}
    for layer in layers:
        terms = feature_map_sums(student_trace.hiddens[layer], teacher_trace.hiddens[layer])
        if weights.attention:  # layer 1 has the index 0 in `queries`, because the embeddings have no queries
            terms["attention"] = relation_sum(
                student_trace.queries[layer - 1], student_trace.keys[layer - 1],
                teacher_trace.queries[layer - 1], teacher_trace.keys[layer - 1], micro.batch)
        for name, term in terms.items():
            if getattr(weights, name):
                sums[name] = sums.get(name, 0) + term / L
    loss, sums = weighted_terms(sums, weights, counts)
    if distils:
        last = student_trace.hiddens[-1], teacher_trace.hiddens[-1]
        distillation, more = distillation_at_masks(student, teacher, last, micro, weights, counts)
        loss, sums = loss + distillation, sums | more
    return loss, sums


def feature_map_sums(student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    """Returns a dict with the three terms of the feature-map transfer of one layer, as sums over tokens. h_s
    and h_t (D,) are the hidden states of student and teacher at a token:

        feature_map  mean over D of (LN(h_s) - LN(h_t))^2, LN without weights
        mean         (mean_s - mean_t)^2, means over D
        variance     |var_s - var_t|, variances over D

    As in the authors' code, the three terms replace the paper's L_FMT, the mean square of h_s - h_t. But the
    authors' code computes mean_t and var_t from the states of all teacher layers. This function computes
    mean_t and var_t from the states of one layer.
    """
    h_s, h_t = at_least_fp32(student), at_least_fp32(teacher.detach())
    normal_s, normal_t = (F.layer_norm(h, h.shape[-1:], eps=1e-12) for h in (h_s, h_t))
    var_s, var_t = (h.var(-1, correction=0) for h in (h_s, h_t))
    return {"feature_map": (normal_s - normal_t).square().mean(-1).sum(),
            "mean": (h_s.mean(-1) - h_t.mean(-1)).square().sum(), "variance": (var_s - var_t).abs().sum()}


def distillation_at_masks(student: nn.Module, teacher: nn.Module, last: tuple[Tensor, Tensor],
                          micro: MicroBatch, weights: MobileBERTWeights, counts: dict[str, int]
                          ) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the weighted sum of the MLM and KD losses at masked tokens, and a dict with the sum of each
    loss (without weights) and the number of correct predictions. `last` has two tensors: the last hidden
    states (N, D) of the student and of the teacher at N tokens.
    """
    last, teacher_last = last
    rows = micro.masked.to(last.device, non_blocking=True)  # (M,) for M masked tokens
    with torch.no_grad():
        teacher_side = vocab_side(teacher, teacher_last[rows]) if weights.kd else None
    loss, sums = vocab_loss(vocab_side(student, last[rows]), micro.labels[rows], teacher_side,
                            labelled=torch.arange(len(rows)), temperature=weights.temperature,
                            mlm_weight=weights.mlm / counts["mlm"], kl_weight=weights.kd / counts["kd"])
    return loss, {"mlm": sums.mlm, "accuracy": sums.correct} | ({"kd": sums.kl} if weights.kd else {})


def trace(encoder: Encoder, micro: MicroBatch, every_layer: bool, deepest: int) -> Trace:
    """Returns a `Trace` with the hidden states, queries, keys and values of the layers up to layer `deepest`.
    If `every_layer` is false, the `Trace` has only the last hidden states.
    """
    if every_layer:
        return encoder.trace(micro.batch, deepest)
    return Trace((encoder(micro.batch),), (), (), ())


def mobilebert_counts(step: Step, weights: MobileBERTWeights) -> dict[str, int]:
    """Returns a dict from each loss term and "accuracy" to the divisor of its sum: the number of tokens,
    sequences or masked tokens in the whole step.
    """
    masked = max(1, step.masked)
    return {"feature_map": step.tokens, "mean": step.tokens, "variance": step.tokens,
            "attention": step.sequences, "mlm": masked, "kd": masked, "accuracy": masked}


def fit_mobilebert(student: Config, teacher: Config, weights: MobileBERTWeights) -> str:
    """Raises `UserError` if student or teacher is neither a MobileBERT nor an IB-BERT, or if the two models
    differ in the sizes of vocabulary, hidden states or word embeddings, or in the numbers of positions,
    layers, heads or token types. Also raises `UserError` if all terms of the transfer, or both terms of the
    distillation, have weight 0. Otherwise returns an empty text.
    """
    for config, whose in ((student, "student"), (teacher, "teacher")):
        if not isinstance(config, MobileConfig):
            raise UserError(f"the {whose} of --method mobilebert is a MobileBERT or an IB-BERT, and this one "
                            f"is a {config.architecture}; minilmv2 teaches a MobileBERT from any teacher")
    check_equal(student, teacher, OUTER_SIZES | {
        "layers": "layers", "hidden_size": "width between blocks", "heads": "heads",
        "embedding_size": "width of the word embeddings", "segments": "token types"},
        "--method mobilebert needs equal values, because it compares the models layer by layer and copies "
        "the embeddings and the head")
    transfer, distillation = ("feature_map", "mean", "variance", "attention"), ("mlm", "kd")
    for terms in (transfer, distillation):
        if not any(getattr(weights, name) for name in terms):
            raise UserError(f"{', '.join(terms)} all have weight 0: some steps would have no loss")
    return ""

"""The options of train.py, what each method makes of those that are not given, and the loss they describe."""

import dataclasses
import math
from dataclasses import dataclass

from minibert.common.errors import UserError
from minibert.common.options import at_least_one, numbers, only_for, option, term_weights, within
from minibert.common.runtime import PRECISIONS
from minibert.data.masking import SELECTIONS
from minibert.distill import tinybert, distilbert, mobilebert
from minibert.distill.distilbert import Weights
from minibert.distill.mobilebert import TransferWeights
from minibert.distill.students import check_read
from minibert.distill.tinybert import InnerWeights
from minibert.training.mobilebert_stages import SCHEDULES

FAMILY = {name: family for family in (distilbert, tinybert, mobilebert) for name in family.METHODS}
METHODS = {name: family.METHODS[name] for name, family in FAMILY.items()}
INNER = tuple(tinybert.METHODS)  # these need no words: no mask, no MLM head, a student of any width

# What the originals set: DistilBERT's released command, and BERT's own pre-training, which TinyBERT and
# MiniLM follow (TinyBERT's code has lr 5e-5 and 10 % warm-up).
BERTS = dict(init="teacher", masking="bert", mask_share=0.15, optimizer="adamw", lr=1e-4, warmup=0.01,
             beta2=0.999, weight_decay=0.01, clip=1.0)
METHOD_DEFAULTS = {
    "distilbert": BERTS | dict(masking="smoothed", lr=5e-4, warmup=0.05, beta2=0.98, weight_decay=0.0,
                               clip=5.0),
    "mlm": BERTS,
    "tinybert": BERTS | dict(init="random", mask_share=0.0),
    "minilm": BERTS | dict(init="random", mask_share=0.0, lr=5e-4),
    "minilmv2": BERTS | dict(init="random", mask_share=0.0, lr=5e-4),
    "mobilebert": BERTS | dict(optimizer="lamb", lr=1.5e-3, warmup=0.02),  # lr for batches of 2,048
}


def by_method(name: str) -> str:
    """An option's defaults in words: 0.0005; mlm, tinybert 0.0001."""
    methods_of: dict = {}
    for method, defaults in METHOD_DEFAULTS.items():
        methods_of.setdefault(defaults[name], []).append(method)
    (first, _), *others = methods_of.items()
    return "; ".join([str(first), *(f"{', '.join(those)}: {value}" for value, those in others)])


@dataclass(frozen=True)
class Options:
    """Every option of train.py; None means the default of the method."""

    method: str = option("distilbert", "what is minimised", choices=tuple(METHOD_DEFAULTS))
    teacher: str | None = option(None, "folder or hub name of the teacher (default: the bundled one); "
                                 "with mlm, the student only starts from it (default: none)")
    student: str | None = option(
        None, "preset (`bench.py size` lists them), or folder to start from (default: a DistilBERT of the "
        "teacher; tinybert, minilm, minilmv2: tinybert-4 in its vocabulary; mobilebert: a MobileBERT of "
        "its width)")
    layers: int | None = option(None, "layers of the student (default: the preset's; without one half the "
                                "teacher's)")
    layer_map: str | None = option(None, "teacher layers to start from, as 0,2,5 (default: evenly spread)")
    init: str | None = option(None, "student weights: copied from the teacher, or random "
                              f"(default: {by_method('init')})", choices=("teacher", "random"))
    token_types: str = option(
        "fold", "teacher's token type 0: folded into the positions, or dropped as published",
        choices=("fold", "drop"))
    corpus: tuple[str, ...] = option(
        ("python-docs",), "prepared folder, text files or folders, or python-docs")
    eval_corpus: tuple[str, ...] = option(
        (), "likewise, held-out text (default: the held-out part of --corpus)")
    wikitext: str = option("auto", "text files are tokenised WikiText", choices=("auto", "yes", "no"))
    one_line: bool = option(False, "one line is one sequence, instead of lines joined up to --max-length")
    max_length: int = option(128, "tokens of a sequence, [CLS] and [SEP] included")
    steps: int | None = option(None, "optimiser steps (default: from --epochs)")
    epochs: float = option(3.0, "passes over the corpus")
    batch: int = option(
        128, "sequences of one optimiser step, over all ranks and micro-batches (published: 4000)")
    micro_tokens: int = option(4096, "most tokens in one forward pass of one rank; "
                               "changes memory and, but for dropout's draws, no result")
    masking: str | None = option(None, f"which tokens are masked (default: {by_method('masking')})",
                                 choices=tuple(SELECTIONS))
    mask_share: float | None = option(
        None, f"share of tokens that are masked (default: {by_method('mask_share')})")
    weights: tuple[str, ...] = option(
        (), "weights of loss terms other than the published, as mlm=1 cosine=0 (distilbert: kl=5 mlm=2 "
        "cosine=1; tinybert: embedding, hidden, attention, minilm: attention_relation, value_relation, "
        "minilmv2: q_relation, k_relation, v_relation, 1 each; mobilebert: feature_map=100 mean=5000 "
        "variance=5 attention=1 mlm=0.5 kd=0.5)")
    schedule: str | None = option(None, "mobilebert: akt, all at once; jkt, the transfer of all layers, then "
                                  "distillation; pkt, layer by layer, then distillation (default)",
                                  choices=SCHEDULES)
    transfer_share: float | None = option(None, "share of the steps before the distillation (mobilebert jkt, "
                                          "pkt; default: 24 / 74)")
    temperature: float | None = option(None, "temperature of the KL (distilbert; default: 2) or of the KD "
                                       "(mobilebert; default: 1)")
    kl_masked_only: bool = option(False, "KL at masked tokens only, instead of all tokens (distilbert)")
    imitate: str | None = option(None, "teacher layers, from 1, that the student's imitate, as 2,4,6 "
                                 "(tinybert; default: evenly spread)")
    teacher_layer: int | None = option(None, "the teacher layer, from 1, that the student's last imitates "
                                       "(minilm, minilmv2; default: the last)")
    relation_heads: int | None = option(None, "heads that queries, keys and values are cut into (minilmv2; "
                                        "default: 48, or the most below that divide both widths)")
    optimizer: str | None = option(None, f"default: {by_method('optimizer')}", choices=("adamw", "lamb"))
    lr: float | None = option(None, f"peak learning rate (default: {by_method('lr')})")
    warmup: float | None = option(None, f"share of steps that warm up (default: {by_method('warmup')})")
    beta2: float | None = option(
        None, f"the optimiser's second decay rate; the first is 0.9 (default: {by_method('beta2')})")
    weight_decay: float | None = option(
        None, f"not for biases and norms (default: {by_method('weight_decay')})")
    clip: float | None = option(None, f"largest global gradient norm (default: {by_method('clip')})")
    dropout: float | None = option(
        None, "of the student's embeddings and block outputs (default: the model's)")
    attention_dropout: float = option(0.0, "of attention probabilities; 0.1 in the papers, but slower")
    precision: str = option("auto", "of matrix products; auto is 16 bits where native",
                            choices=("auto", *PRECISIONS))
    device: str = option("auto", "cpu, cuda, cuda:1 ...")
    compile: bool = option(False, "torch.compile the student and the teacher")
    threads: int | None = option(None, "CPU threads (default: torch's choice)")
    seed: int = option(56, "of weights, order, masks and dropout")
    eval_every: int = option(0, "steps between held-out evaluations (default: at the end only)")
    eval_sequences: int = option(1000, "held-out sequences to evaluate on")
    checkpoint_every: int = option(500, "steps between checkpoints")
    out: str = option("runs/train", "folder of the run")
    resume: bool = option(False, "continue the run in --out")

    def __post_init__(self):
        at_least_one(self, "batch", "micro_tokens", "checkpoint_every", "eval_sequences", "steps", "layers",
                     "threads")
        if self.micro_tokens < self.max_length:
            raise UserError(f"--micro-tokens {self.micro_tokens} cannot hold one sequence of "
                            f"--max-length {self.max_length}")
        within(self, 0, math.inf, "lr", "weight_decay", "eval_every")
        within(self, 0, math.inf, "epochs", "temperature", "clip", open_low=True)
        within(self, 0, 2**63, "seed", open_high=True)
        within(self, 0, 1, "warmup")
        within(self, 0, 1, "beta2", open_high=True)
        within(self, 0, 1, "mask_share", open_low=self.method not in INNER, open_high=True)
        within(self, 0, 1, "transfer_share", open_low=True, open_high=True)
        if self.schedule == "akt" and self.transfer_share is not None:
            raise UserError("--transfer-share goes with --schedule jkt and pkt: akt transfers all along")
        only_for(self, ONLY_FOR)
        if self.method == "mlm" and self.student is None and self.teacher is None:
            raise UserError("--method mlm needs --student, a preset to train from scratch or a folder to "
                            "continue from, or --teacher, whose student it then trains without distillation")
        loss_weights(self)


# Options that only some methods read.
ONLY_FOR = {"temperature": ("distilbert", "mobilebert"), "kl_masked_only": ("distilbert",),
            "imitate": ("tinybert",), "teacher_layer": ("minilm", "minilmv2"),
            "relation_heads": ("minilmv2",), "schedule": ("mobilebert",), "transfer_share": ("mobilebert",)}
# Options that may differ when a run is resumed.
MAY_CHANGE = {"resume", "out", "micro_tokens", "precision", "device", "compile", "threads",
              "eval_every", "eval_sequences", "checkpoint_every"}


def resolve(options: Options) -> Options:
    """The same with the method's defaults filled in; `UserError` for what is given and would not be read."""
    defaults = METHOD_DEFAULTS[options.method]
    filled = dataclasses.replace(options, **{name: value for name, value in defaults.items()
                                             if getattr(options, name) is None})
    check_read(options, filled.init)
    if options.masking is not None and filled.mask_share == 0:
        raise UserError(f"--masking would not be read: {options.method} masks no tokens without --mask-share")
    return filled


def loss_weights(options: Options) -> Weights | InnerWeights | TransferWeights:
    """The weights of the method's terms and what else it can be told: as published but for the options."""
    kind = {distilbert: Weights, tinybert: InnerWeights, mobilebert: TransferWeights}[FAMILY[options.method]]
    terms = FAMILY[options.method].TERMS[options.method]
    told = term_weights(options.weights, terms, options.method)
    settings = {"temperature": options.temperature, "kl_masked_only": options.kl_masked_only or None,
                "teacher_layer": options.teacher_layer, "relation_heads": options.relation_heads,
                "layers": options.imitate and tuple(numbers("--imitate", options.imitate))}
    told |= {name: value for name, value in settings.items() if value is not None}
    weights = kind(**told)
    if terms and not any(getattr(weights, name) for name in terms):
        raise UserError(f"every term of {options.method} has weight 0: nothing would be learned")
    return weights

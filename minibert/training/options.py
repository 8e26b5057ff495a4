"""The options of train.py, what each method makes of those that are not given, and the loss they describe."""

import dataclasses
import math
from dataclasses import dataclass

from minibert.common.errors import UserError
from minibert.common.options import at_least_one, numbers, option, term_weights, within
from minibert.common.runtime import PRECISIONS
from minibert.data.masking import SELECTIONS
from minibert.distill import tinybert, distilbert, mobilebert
from minibert.distill.distilbert import Weights
from minibert.distill.mobilebert import TransferWeights
from minibert.distill.students import check_read
from minibert.distill.tinybert import InnerWeights
from minibert.training.mobilebert_stages import SCHEDULES
from minibert.training.optim import OPTIMIZERS

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


def only(*methods: str) -> dict[str, tuple]:
    """What `option` is told of an option that only these methods read."""
    return {"method": methods}


NOT_MOBILEBERT = only(*(method for method in METHOD_DEFAULTS if method != "mobilebert"))


@dataclass(frozen=True)
class Options:
    """Every option of train.py; None means the default of the method."""

    method: str = option("distilbert", "what is minimised; --help with a method shows its options and defaults",
                         choices=tuple(METHOD_DEFAULTS))

    teacher: str | None = option(
        None, "folder or hub name of the teacher (default: the bundled one); with mlm, the student only starts "
        "from it (default: none)", metavar="FOLDER", group="model")
    student: str | None = option(
        None, "preset (`bench.py size` lists them), or folder to start from (default: a DistilBERT of the "
        "teacher; tinybert, minilm, minilmv2: tinybert-4 in its vocabulary; mobilebert: a MobileBERT of its "
        "width)", metavar="PRESET")
    layers: int | None = option(None, "layers of the student (default: the preset's; without one half the "
                                "teacher's)", metavar="LAYERS")
    init: str | None = option(None, "student weights: copied from the teacher, or random",
                              choices=("teacher", "random"))
    layer_map: str | None = option(
        None, "the teacher layer, from 0, that each of the student's starts as, as 0,2,5 (default: evenly spread)",
        metavar="NUMBERS", only_with=NOT_MOBILEBERT)
    token_types: str = option(
        "fold", "the teacher's token type 0, for a student without token types: added to the positions, or "
        "left out as published", choices=("fold", "drop"), only_with=NOT_MOBILEBERT)
    dropout: float | None = option(
        None, "of the student's embeddings and block outputs (default: the model's)", metavar="RATE")
    attention_dropout: float = option(0.0, "of attention probabilities; 0.1 in the papers, but slower",
                                      metavar="RATE")

    corpus: tuple[str, ...] = option(("python-docs",), "prepared folder, text files or folders, or python-docs",
                                     metavar="FILE", group="data")
    eval_corpus: tuple[str, ...] = option(
        (), "likewise, held-out text (default: the held-out part of --corpus)", metavar="FILE")
    wikitext: str = option("auto", "text files are tokenised WikiText", choices=("auto", "yes", "no"))
    one_line: bool = option(False, "one line is one sequence, instead of lines joined up to --max-length")
    max_length: int = option(128, "length of a sequence, [CLS] and [SEP] included", metavar="TOKENS")
    masking: str | None = option(None, "which tokens are masked", choices=tuple(SELECTIONS))
    mask_share: float | None = option(None, "share of tokens that are masked", metavar="SHARE")

    weights: tuple[str, ...] = option((), "weights of loss terms other than the published", group="loss",
                                      metavar="TERM=WEIGHT", only_with=only("distilbert", *INNER, "mobilebert"))
    temperature: float | None = option(None, "of the KL between the outputs of teacher and student",
                                       metavar="T", only_with=only("distilbert", "mobilebert"))
    kl_masked_only: bool = option(False, "KL at masked tokens only, instead of all tokens",
                                  only_with=only("distilbert"))
    imitate: str | None = option(
        None, "the teacher layer, from 1, that each of the student's imitates, as 2,4,6 (default: evenly spread)",
        metavar="NUMBERS", only_with=only("tinybert"))
    teacher_layer: int | None = option(
        None, "the teacher layer, from 1, that the student's last imitates (default: the last)",
        metavar="NUMBER", only_with=only("minilm", "minilmv2"))
    relation_heads: int | None = option(
        None, "heads that queries, keys and values are cut into (default: 48, or the most below that divide "
        "both widths)", metavar="HEADS", only_with=only("minilmv2"))
    schedule: str | None = option(
        None, "akt, all at once; jkt, the transfer of all layers, then distillation; pkt, layer by layer, then "
        "distillation", choices=SCHEDULES, only_with=only("mobilebert"))
    transfer_share: float | None = option(None, "share of the steps before the distillation, of jkt and pkt",
                                          metavar="SHARE", only_with=only("mobilebert"))

    steps: int | None = option(None, "optimiser steps (default: from --epochs)", metavar="STEPS",
                               group="optimisation")
    epochs: float = option(3.0, "passes over the corpus", metavar="PASSES")
    batch: int = option(128, "size of one optimiser step, over all ranks and micro-batches (published: 4000)",
                        metavar="SEQUENCES")
    optimizer: str | None = option(None, "AdamW, or LAMB for large batches", choices=tuple(OPTIMIZERS))
    lr: float | None = option(None, "peak learning rate", metavar="RATE")
    warmup: float | None = option(None, "share of the steps in which the rate rises", metavar="SHARE")
    beta2: float | None = option(None, "the optimiser's second decay rate; the first is 0.9", metavar="RATE")
    weight_decay: float | None = option(None, "not for biases and norms", metavar="DECAY")
    clip: float | None = option(None, "largest norm of the gradient of all weights", metavar="NORM")
    seed: int = option(56, "of weights, order, masks and dropout", metavar="NUMBER")

    micro_tokens: int = option(4096, "most tokens in one forward pass of one rank; changes memory and, but for "
                               "dropout's draws, no result", metavar="TOKENS", group="machine")
    precision: str = option("auto", "of matrix products; auto is 16 bits where the hardware has them",
                            choices=("auto", *PRECISIONS))
    device: str = option("auto", "cpu, cuda, cuda:1 ...", metavar="DEVICE")
    compile: bool = option(False, "torch.compile the student and the teacher")
    threads: int | None = option(None, "CPU threads (default: torch's choice)", metavar="THREADS")

    out: str = option("runs/train", "folder of the run", metavar="FOLDER", group="output")
    resume: bool = option(False, "continue the run in --out")
    eval_every: int | None = option(None, "steps between held-out evaluations (default: at the end only)",
                                    metavar="STEPS")
    eval_sequences: int = option(1000, "held-out sequences to evaluate on", metavar="SEQUENCES")
    checkpoint_every: int = option(500, "steps between checkpoints", metavar="STEPS")

    def __post_init__(self):
        at_least_one(self, "batch", "micro_tokens", "checkpoint_every", "eval_every", "eval_sequences", "steps",
                     "layers", "threads")
        if self.micro_tokens < self.max_length:
            raise UserError(f"--micro-tokens {self.micro_tokens} cannot hold one sequence of "
                            f"--max-length {self.max_length}")
        within(self, 0, math.inf, "lr", "weight_decay")
        within(self, 0, math.inf, "epochs", "temperature", "clip", open_low=True)
        within(self, 0, 2**63, "seed", open_high=True)
        within(self, 0, 1, "warmup")
        within(self, 0, 1, "beta2", "dropout", "attention_dropout", open_high=True)
        within(self, 0, 1, "mask_share", open_low=self.method not in INNER, open_high=True)
        within(self, 0, 1, "transfer_share", open_low=True, open_high=True)
        if self.schedule == "akt" and self.transfer_share is not None:
            raise UserError("--transfer-share goes with --schedule jkt and pkt: akt transfers in every step")
        if self.method == "mlm" and self.student is None and self.teacher is None:
            raise UserError("--method mlm needs --student, a preset to train from scratch or a folder to "
                            "continue from, or --teacher, whose student it then trains without distillation")
        loss_weights(self)


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

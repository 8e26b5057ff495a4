"""The options of train.py."""

import dataclasses
import math
from dataclasses import dataclass

from minibert.common.errors import UserError
from minibert.common.options import MachineOptions, at_least_one, flag, numbers, option, term_weights, within
from minibert.data.masking import SELECTIONS
from minibert.distill.methods import METHODS, terms_of, weights_of
from minibert.distill.students import STARTS
from minibert.model.config import PRESETS
from minibert.training.mobilebert_stages import SCHEDULES, TRANSFER_SHARE
from minibert.training.optim import OPTIMIZERS


def only(*methods: str) -> dict[str, tuple]:
    """Returns a value for `only_with` (see `option`): the option has an effect only with `methods`."""
    return {"method": methods}


NOT_MOBILEBERT = only(*(name for name in METHODS if name != "mobilebert"))


@dataclass(frozen=True)
class Options(MachineOptions):
    """The options of train.py. The defaults of some options depend on the method. If the user does not give
    such an option, its value is None until `resolved` fills in the default.
    """

    method: str = option(
        "distilbert", "training method; `--method NAME --help` shows the options and defaults of the method "
                      "NAME",
        choices=tuple(METHODS))

    teacher: str | None = option(
        None, "folder or hub name of the teacher (default: the bundled teacher; for mlm: no teacher). With "
              "mlm, the teacher gives the student's initial weights and tokenizer, and is not used in "
              "training",
        metavar="FOLDER", group="model")
    student: str | None = option(
        None, "name of a preset (`bench.py size` lists all presets), or folder of a model to train further "
              "(default: a student with half as many layers as the teacher; for mobilebert: with as many "
              "layers as the teacher; for tinybert, minilm and minilmv2: tinybert-4). mlm needs --student or "
              "--teacher",
        metavar="PRESET")
    layers: int | None = option(
        None, "number of layers of the student (default: see --student)", metavar="LAYERS")
    init: str | None = option(
        None, "initial weights of the student. teacher: embeddings, layers and head are copied from the "
              "teacher; embeddings: only embeddings and head are copied; random: nothing is copied",
        choices=STARTS)
    layer_map: str | None = option(
        None, "with --init teacher: for each student layer, the number of the teacher layer to copy, counted "
              "from 0; for example 0,2,5 (default: evenly spaced layers)", metavar="NUMBERS",
        only_with=NOT_MOBILEBERT)
    token_types: str = option(
        "fold", "how a student without token types is copied. fold: the teacher's vector of token type 0 is "
                "added to the position vectors; drop: this vector is not used, as in DistilBERT's code",
        choices=("fold", "drop"),
        only_with=NOT_MOBILEBERT)
    dropout: float | None = option(
        None, "dropout rate after the student's embeddings and after each attention and feed-forward block. "
              "If no default is shown, the dropout in the student's config is used", metavar="RATE")
    attention_dropout: float = option(
        0.0, "dropout rate of the attention probabilities. The papers use 0.1. Training is faster with 0",
        metavar="RATE")

    corpus: tuple[str, ...] = option(
        ("python-docs",), "training text: text files, folders of text files, a folder made by "
                          "data/prepare.py, or python-docs (Python's documentation)",
        metavar="FILE", group="data")
    eval_corpus: tuple[str, ...] = option(
        (), "text for the evaluation: files, folders or python-docs, as for --corpus (default: the held-out "
            "part of --corpus)", metavar="FILE")
    wikitext: str = option("auto", "yes: the text files are tokenised WikiText; no: they are "
                                   "other text; auto: guessed for each file",
                           choices=("auto", "yes", "no"))
    one_line: bool = option(False, "use each line as one sequence. Without this option, consecutive lines "
                                   "are joined into sequences of at most --max-length tokens")
    max_length: int = option(128, "length of the longest sequence in tokens, with [CLS] and "
                                  "[SEP]", metavar="TOKENS")
    min_length: int | None = option(None, "minimum length of a sequence in tokens, with [CLS] and [SEP]; "
                                          "shorter sequences are left out",
                                    metavar="TOKENS")
    masking: str | None = option(None, "how the masked tokens are chosen; needs a --mask-share above 0",
                                 choices=tuple(SELECTIONS))
    mask_share: float | None = option(None, "share of tokens that are masked", metavar="SHARE")

    weights: tuple[str, ...] = option((), "weights of the loss terms, for example mlm=1", group="loss",
                                      metavar="TERM=WEIGHT")
    temperature: float | None = option(
        None, "temperature of the KL divergence between the predictions of teacher and student",
        metavar="T", only_with=only("distilbert", "mobilebert"))
    kl_masked_only: bool = option(False, "compute the KL to the teacher at masked tokens only",
                                  only_with=only("distilbert"))
    imitate: str | None = option(
        None, "for each student layer, the number of the teacher layer that it learns from, counted from 1; "
              "for example 2,4,6 (default: evenly spaced layers)", metavar="NUMBERS",
        only_with=only("tinybert"))
    teacher_layer: int | None = option(
        None, "number of the teacher layer that the student's last layer learns from, counted from 1 "
              "(default: the teacher's last layer)",
        metavar="NUMBER", only_with=only("minilm", "minilmv2"))
    relation_heads: int | None = option(
        None, "number of relation heads (default: the largest number up to 48 that divides the attention "
              "width of the student and of the teacher)", metavar="HEADS", only_with=only("minilmv2"))
    schedule: str | None = option(
        None, "order of knowledge transfer (of hidden states and attention) and distillation (of logits). "
              "akt: every step has both; jkt: first transfer in all layers together, then distillation; "
              "pkt: first transfer in one layer after another, then distillation",
        choices=SCHEDULES, only_with=only("mobilebert"))
    transfer_share: float | None = option(None, "share of the steps that are used for the knowledge "
                                                "transfer in jkt and pkt",
                                          metavar="SHARE", only_with=only("mobilebert"))

    steps: int | None = option(None, "number of optimiser steps (default: computed from "
                                     "--epochs)", metavar="STEPS",
                               group="optimisation")
    epochs: float = option(3.0, "number of passes over the corpus", metavar="PASSES")
    batch: int = option(128, "number of sequences in one optimiser step, on all ranks together (in the "
                        "DistilBERT paper up to 4000)",
                        metavar="SEQUENCES")
    optimizer: str | None = option(
        None, "the optimiser: AdamW, or LAMB for large batches", choices=tuple(OPTIMIZERS))
    lr: float | None = option(None, "learning rate at the end of the warm-up. With --schedule jkt or pkt, a "
                              "layer has up to 3 times this rate in its stage, and up to 0.3 times this "
                              "rate in later stages", metavar="RATE")
    warmup: float | None = option(None, "share of the steps in which the learning rate "
                                        "rises", metavar="SHARE")
    beta2: float | None = option(None, "beta2 of the optimiser; beta1 is 0.9", metavar="RATE")
    weight_decay: float | None = option(
        None, "weight decay of all weights except biases and norms", metavar="DECAY")
    clip: float | None = option(
        None, "largest norm of the gradient; a larger gradient is scaled down to this norm", metavar="NORM")
    seed: int = option(56, "random seed for new weights, the order of the text, the masks and "
                           "dropout", metavar="NUMBER")

    out: str = option("runs/train", "folder of the run", metavar="FOLDER", group="output")
    resume: bool = option(False, "continue the run in the folder --out from its last checkpoint")
    eval_every: int | None = option(None, "number of steps between evaluations on held-out text (default: "
                                          "only at the end)",
                                    metavar="STEPS")
    eval_sequences: int = option(1000, "number of held-out sequences for the evaluation", metavar="SEQUENCES")
    checkpoint_every: int = option(500, "number of steps between checkpoints", metavar="STEPS")

    def __post_init__(self):
        super().__post_init__()
        at_least_one(self, "batch", "checkpoint_every", "eval_every", "eval_sequences", "steps", "layers",
                     "min_length")
        if self.micro_tokens < self.max_length:
            raise UserError(f"--micro-tokens {self.micro_tokens} cannot hold one sequence of "
                            f"--max-length {self.max_length}")
        within(self, 0, math.inf, "lr", "weight_decay")
        within(self, 0, math.inf, "epochs", "temperature", "clip", open_low=True)
        within(self, 0, 2**63, "seed", open_high=True)
        within(self, 0, 1, "warmup")
        within(self, 0, 1, "beta2", "dropout", "attention_dropout", open_high=True)
        within(self, 0, 1, "mask_share", open_low=METHODS[self.method].head == "mlm", open_high=True)
        within(self, 0, 1, "transfer_share", open_low=True, open_high=True)
        if self.schedule == "akt" and self.transfer_share is not None:
            raise UserError("--transfer-share needs --schedule jkt or pkt: in akt, every step transfers")
        if self.method == "mlm" and self.student is None and self.teacher is None:
            raise UserError("--method mlm needs --student (a preset for a new model, or the folder of a "
                            "model to train further) or --teacher (a model whose layers are copied)")
        self.loss_weights()

    def resolved(self) -> "Options":
        """Returns a copy in which the method's defaults replace None. Raises `UserError` if `check_read`
        finds an option without effect, or if --masking is given and no tokens are masked.
        """
        defaults = METHODS[self.method].defaults
        filled = dataclasses.replace(self, **{name: value for name, value in defaults.items()
                                              if getattr(self, name) is None})
        self.check_read(filled.init)
        if self.masking is not None and filled.mask_share == 0:
            raise UserError(f"--masking has no effect: {self.method} masks no tokens without --mask-share")
        return filled

    def check_read(self, init: str) -> None:
        """Raises `UserError` if --layers, --layer-map, --init or --token-types is given, but has no effect
        because of the other options. `init` is the value of --init, or its default.
        """
        unread = {}
        if self.student is not None and self.student not in PRESETS:
            unread = dict.fromkeys(("layers", "layer_map", "init", "token_types"),
                                   f"--student {self.student} is a complete model, which is not changed")
        elif self.method == "mlm" and self.teacher is None:
            unread = dict.fromkeys(("layer_map", "token_types"),
                                   "a preset without --teacher gets random weights")
            if self.init != "random":
                unread["init"] = unread["layer_map"]
        elif self.method == "mobilebert" and self.student is None:
            unread = {"layers": "a MobileBERT has as many layers as its teacher"}
        elif init == "random":
            unread = dict.fromkeys(("layer_map", "token_types"),
                                   "nothing is copied from the teacher without --init teacher")
        elif init == "embeddings":
            unread = {"layer_map": "no layers are copied from the teacher without --init teacher"}
        for name, why in unread.items():
            if getattr(self, name) not in (None, "fold"):
                raise UserError(f"{flag(name)} has no effect: {why}")

    def loss_weights(self):
        """Returns the weights of the method's loss, for example a `DistilBERTWeights`. The options that the
        user gives replace the default values.
        """
        given = {"temperature": self.temperature, "kl_masked_only": self.kl_masked_only or None,
                 "teacher_layer": self.teacher_layer, "relation_heads": self.relation_heads,
                 "layers": self.imitate and tuple(numbers("--imitate", self.imitate))}
        return weights_of(self.method, **term_weights(self.weights, terms_of(self.method), self.method),
                          **{name: value for name, value in given.items() if value is not None})


# the options that may be changed when a run is resumed
MAY_CHANGE = {"resume", "out", "micro_tokens", "precision", "device", "threads", "eval_every",
              "eval_sequences", "checkpoint_every"}


def shown_defaults() -> dict[str, dict]:
    """Returns the defaults that the help shows: for each method, a dict from options to their defaults."""
    shown = {}
    for name, method in METHODS.items():
        weights = method.weights()
        shown[name] = method.defaults | {
            "weights": tuple(f"{term}={getattr(weights, term):g}" for term in terms_of(name)),
            "temperature": getattr(weights, "temperature", None), "schedule": "pkt",
            "transfer_share": f"{TRANSFER_SHARE:.3f}"}
    return shown

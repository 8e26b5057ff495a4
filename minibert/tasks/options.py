"""The options of finetune.py, and the defaults of each method."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from minibert.common.errors import UserError
from minibert.common.options import MachineOptions, at_least_one, flag, numbers, option, term_weights, within
from minibert.distill.methods import terms_of, weights_of
from minibert.distill.students import copied_layers
from minibert.distill.task_methods import TASK_METHODS
from minibert.distill.tinybert import TinyBERTWeights
from minibert.tasks.specs import TASKS, Task, with_tinybert_settings

PKD, TINYBERT, THESEUS = ({"method": (name,)} for name in ("pkd", "tinybert", "theseus"))


@dataclass(frozen=True)
class Options(MachineOptions):
    """The options of finetune.py. An option that the user did not give can be None. For the defaults of such
    options, see `resolve` and `task_settings`.
    """

    model: str | None = option(None, "folder or hub name of the model to train, or to evaluate with "
                               "--evaluate (default: a new model, made of copied layers of the --teacher)",
                               metavar="FOLDER", group="model")
    teacher: str | None = option(
        None, "folder or hub name of a teacher that was fine-tuned on the same task", metavar="FOLDER")
    layers: int | None = option(None, "without --model: number of the student's layers, which are copies of "
                                "evenly spaced layers of the teacher", metavar="LAYERS")
    layer_map: str | None = option(None, "without --model: numbers (from 0) of the teacher layers that are "
                                   "copied into the student, for example 0,2,5", metavar="NUMBERS")

    task: str = option(None, f"name of a task ({', '.join(TASKS)}), or a FILE.csv or FILE.tsv with the "
                       "columns text, pair (optional), and label or score", metavar="TASK", group="data")
    data: str | None = option(None, "folder of the task's official files, or its parent folder",
                              metavar="FOLDER")
    dev: str | None = option(None, "only with a file in --task: csv file with the dev examples (default: "
                             "about a tenth of the rows of the file in --task)", metavar="FILE.csv")
    augmented: str | None = option(
        None, "file from data/augment.py to train on, instead of the training set. With --method tinybert "
        "and a regression task (stsb, or a file with scores), only the intermediate stage uses this file",
        metavar="FILE.csv")
    transfer: tuple[str, ...] = option(
        (), "files with texts without labels. The student learns the teacher's outputs on these texts, not "
        "on the training set. Each line has one text, or two texts with a tab between them",
        metavar="FILE.txt")
    train_examples: int | None = option(
        None, "train on this number of examples only; every seed uses the same examples", metavar="EXAMPLES")
    max_length: int | None = option(
        None, "maximum number of tokens of an example (default: depends on the task, mostly 128). Longer "
        "texts are cut. For SQuAD, a long context is divided into windows of at most --max-length tokens",
        metavar="TOKENS")
    stride: int = option(128, "for SQuAD: distance in tokens between the starts of two neighbouring windows "
                         "of a context (not the overlap of the windows)", metavar="TOKENS")

    method: str = option("kd", "what the student learns (--method METHOD --help shows the options of a "
                         "method). "
                         + "; ".join(f"{name}: {method.learns}" for name, method in TASK_METHODS.items()),
                         choices=tuple(TASK_METHODS), group="loss")
    alpha: float | None = option(
        None, "with --teacher: weight of the loss on the teacher's outputs; the loss on the labels has the "
        "weight 1 - alpha. With --transfer, alpha is 1")
    temperature: float | None = option(
        None, "with --teacher: temperature of the softmax of the teacher's and the student's outputs")
    beta: float | None = option(None, "weight of the loss that compares the [CLS] states of student and "
                                "teacher", only_with=PKD)
    teacher_layers: str | None = option(None, "teacher layers whose [CLS] states the student learns. skip: "
                                        "evenly spaced layers. last: the layers directly below the "
                                        "teacher's last layer", choices=("skip", "last"), only_with=PKD)
    intermediate_epochs: float | None = option(
        None, "number of epochs of TinyBERT's intermediate stage (default: 50 for cola, 10 for mnli, qqp and "
        "qnli, 20 for other tasks); with 0, the stage is left out", metavar="EPOCHS", only_with=TINYBERT)
    intermediate_lr: float | None = option(None, "constant learning rate of TinyBERT's intermediate stage",
                                           metavar="RATE", only_with=TINYBERT)
    weights: tuple[str, ...] = option((), "weights of the loss terms of TinyBERT's intermediate stage "
                                      "(embedding, hidden, attention), for example embedding=0 attention=0.5",
                                      metavar="TERM=WEIGHT", only_with=TINYBERT)
    imitate: str | None = option(
        None, "for each student layer, the number (from 1) of the teacher layer that it learns to imitate, "
        "for example 3,6,9,12 (default: the layer that it is a copy of; with --model: evenly spaced layers)",
        metavar="LAYERS", only_with=TINYBERT)
    project: bool | None = option(
        None, "a linear layer maps the student's states to the teacher's hidden size, before they are "
        "compared with the teacher's states (default: only with --model)", only_with=TINYBERT)
    replace_rate: float | None = option(
        None, "probability, at the first training step, that a student layer replaces its group of teacher "
        "layers", metavar="RATE", only_with=THESEUS)
    replace_until: float | None = option(
        None, "share of the training steps in which the probability rises from --replace-rate to 1. After "
        "these steps, no teacher layer is used", metavar="SHARE", only_with=THESEUS)

    epochs: float | None = option(None, "number of passes over the training set (default: depends on the "
                                  "task, mostly 3)", metavar="EPOCHS", group="optimisation")
    batch: int | None = option(None, "number of examples in one optimiser step (default: 32, for squad 12)",
                               metavar="EXAMPLES")
    lr: float | None = option(None, "peak learning rate (default: 2e-5, or 3e-5 for squad and with tinybert)",
                              metavar="RATE")
    warmup: float = option(0.1, "share of the training steps for the warm-up, in which the learning rate "
                           "rises to --lr", metavar="SHARE")
    weight_decay: float = option(0.01, "weight decay of all weights except biases and LayerNorm")
    clip: float = option(1.0, "maximum norm of the gradient of all weights", metavar="NORM")
    dropout: float | None = option(
        None, "dropout of embeddings, and of the outputs of attention and feed-forward networks (default: as "
        "in the model)")
    attention_dropout: float = option(0.0, "dropout of attention probabilities. The BERT paper uses 0.1. "
                                      "Training is faster with 0")
    seed: int = option(
        1, "random seed for the new head, the order of the examples and dropout; with --seeds, the first of "
        "several seeds", metavar="NUMBER")
    seeds: int = option(
        1, "number of seeds: the training is repeated with the seeds --seed, --seed + 1 and so on. The model "
           "of the best seed is saved, and the median and the range of the scores over the seeds are "
           "printed. To add seeds later, give --resume and a larger --seeds", metavar="SEEDS")

    out: str = option("runs/finetune", "folder for the checkpoints, the results and the model",
                      metavar="FOLDER", group="output")
    resume: bool = option(False, "continue the stopped run in --out")
    checkpoint_every: int = option(500, "number of steps between two checkpoints", metavar="STEPS")
    evaluate: bool = option(False, "do not train. Evaluate --model on the dev set, or on all rows of the csv "
                           "file in --task. If the model was trained on this file, these rows include the "
                           "training rows")
    predict: bool = option(False, "write predictions for the test set in the format of the GLUE leaderboard")

    def __post_init__(self):
        super().__post_init__()
        known, method = check_task(self.task, self.data, self.dev), TASK_METHODS[self.method]
        if bool(self.model) == bool(self.layers or self.layer_map) or not (self.model or self.teacher):
            raise UserError("give --model, or give --teacher with --layers or --layer-map, which choose the "
                            "teacher layers that are copied into the student")
        for name in ("alpha", "temperature", "transfer"):
            if getattr(self, name) not in (None, ()) and not self.teacher:
                raise UserError(f"--{name} needs a --teacher")
        if method.needs_teacher and not self.teacher:
            raise UserError(f"--method {self.method} needs a --teacher that was fine-tuned for the task")
        spans = known is not None and known.kind == "span"
        if spans and not method.spans:
            raise UserError(f"--method {self.method} is for classification and regression, not for "
                            f"{self.task}")
        if method.cut and self.model:
            raise UserError(f"--method {self.method} trains the student's layers inside its teacher: give "
                            "--layers or --layer-map instead of --model")
        if self.transfer and self.alpha not in (None, 1):
            raise UserError("the texts of --transfer have no labels, so --alpha must be 1")
        if self.augmented and (self.transfer or spans):
            raise UserError("--augmented is for classification and regression, and without --transfer")
        if self.predict and not (known and known.test_splits):
            raise UserError(f"--predict writes files for a leaderboard, but {self.task} has no test set of a "
                            "leaderboard; for texts of your own, call minibert.predict")
        at_least_one(self, "seeds", "layers", "batch", "train_examples", "stride", "checkpoint_every")
        within(self, 0, math.inf, "epochs", "temperature", "clip", open_low=True)
        within(self, 0, math.inf, "lr", "intermediate_lr", "intermediate_epochs", "beta", "weight_decay")
        within(self, 0, 2**63, "seed", open_high=True)
        within(self, 0, 1, "alpha", "warmup", "replace_rate", "replace_until")
        within(self, 0, 1, "dropout", "attention_dropout", open_high=True)
        for field in dataclasses.fields(self) if self.evaluate else ():
            if field.name not in JUDGING and getattr(self, field.name) != field.default:
                raise UserError(f"{flag(field.name)} is for training, but --evaluate does not train")
        inner_weights(self)


def check_task(task: str, data: str | None, dev: str | None) -> Task | None:
    """Returns the `Task` with the name `task`, or None if `task` is a csv file. `task`, `data` and `dev` are
    the values of --task, --data and --dev. Raises `UserError` if `task` is neither the name of a task nor a
    csv file, or if the three values cannot be combined.
    """
    known = TASKS.get(task)
    if not known and Path(task).suffix.lower() not in (".csv", ".tsv"):
        raise UserError(f"--task {task} is neither one of {', '.join(TASKS)} nor a .csv or .tsv file")
    if bool(known) != bool(data):
        raise UserError(f"--task {task} needs --data, the folder of its files" if known else
                        f"--data is for the name of a task, but --task {task} is a file")
    if dev and known:
        raise UserError(f"--dev is for a csv file, but the task {task} has its own dev set")
    return known


METHOD_DEFAULTS = {name: method.defaults for name, method in TASK_METHODS.items()}
# the only options that may be given with --evaluate
JUDGING = {"evaluate", "model", "task", "data", "max_length", "stride", "micro_tokens", "precision", "device",
           "threads"}
# the options whose values may change when a run is resumed
MAY_CHANGE = {"resume", "out", "micro_tokens", "precision", "device", "threads", "checkpoint_every",
              "predict", "seeds"}


def resolve(options: Options) -> Options:
    """Returns the options with the defaults that depend on other options. With --teacher, options that were
    not given get the defaults of the method. With --transfer, the default of `alpha` is 1. With --method
    tinybert, the default of `project` is True if --model was given, and otherwise False.
    """
    defaults = METHOD_DEFAULTS[options.method] if options.teacher else {}
    if options.transfer:
        defaults = defaults | {"alpha": 1.0}
    if options.method == "tinybert":
        # Without --model, the student consists of copied teacher layers and has the teacher's hidden size,
        # so it needs no projection.
        defaults = defaults | {"project": bool(options.model)}
    return dataclasses.replace(options, **{name: value for name, value in defaults.items()
                                           if getattr(options, name) is None})


def cut_layers(options: Options, teacher_layers: int) -> list[int] | None:
    """Returns a list with the numbers (from 0) of the teacher layers that are copied into the student, or
    None if --model was given.
    """
    if options.model:
        return None
    if options.layer_map:
        return numbers("--layer-map", options.layer_map)
    return copied_layers(options.layers, teacher_layers)


def inner_weights(options: Options, copied: list[int] | None = None) -> TinyBERTWeights:
    """Returns the `TinyBERTWeights` of the intermediate stage: the weights of the loss terms, and the teacher
    layers that the student imitates. `copied` is the result of `cut_layers`.

    Without --imitate, a copied student layer imitates the teacher layer that it is a copy of. In the paper,
    the student layers imitate evenly spaced teacher layers. For a student of copied layers, the paper's layer
    map gave lower scores than the default here (docs/results/compressed.md).
    """
    layers = [number + 1 for number in copied] if copied else None
    if options.imitate:
        layers = numbers("--imitate", options.imitate)
    weights = term_weights(options.weights, terms_of("tinybert"), "tinybert")
    return weights_of("tinybert", layers=layers and tuple(layers), **weights)


def task_settings(options: Options, task: Task) -> Task:
    """Returns the task with the training settings of this run. By default, these settings are those of the
    task, or with --method tinybert those of TinyBERT. Options that the user gave replace the defaults.
    """
    if options.method == "tinybert":
        task = with_tinybert_settings(task)
    names = ("batch", "lr", "epochs", "max_length", "intermediate_epochs")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return dataclasses.replace(task, **given)

"""Compares the time of a fine-tuning step in minibert and in `transformers`, on examples of a real task. The
two programs run alternately on the same examples. transformers pads each batch to its longest example, and is
measured with two kinds of batches:

- random batches, as in finetune.py and by default in the Trainer of transformers
- batches of examples of similar length, which need less padding than random batches
"""

import dataclasses
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

import minibert
from minibert.bench.transformers_peer import (at_rate, check_peer, transformers_classifier_step,
                                              transformers_model)
from minibert.bench.turns import alternate, compared, serve, speeds
from minibert.common.console import table
from minibert.common.errors import UserError
from minibert.common.options import MachineOptions, at_least_one, option
from minibert.common.randomness import samples_of_step
from minibert.common.runtime import describe, start
from minibert.data.examples import Examples, draw
from minibert.distill.task_kd import TaskWeights, task_loss
from minibert.model.config import Config, preset
from minibert.model.init import init_weights
from minibert.model.heads import Classifier
from minibert.tasks.official_files import read_examples
from minibert.tasks.specs import TASKS, TEXT_TASKS
from minibert.tasks.splits import tokenised
from minibert.training.optim import adamw
from minibert.training.step import accumulate, update

CLIP, LR = 1.0, 2e-5
RANDOM, BY_LENGTH = "transformers", "transformers by length"


@dataclass(frozen=True)
class FinetuneBench(MachineOptions):
    """Every option of `bench.py finetune`."""

    task: str = option("mrpc", "name of a GLUE task, or imdb", choices=TEXT_TASKS, group="measurement")
    data: str | None = option(None, "folder of the official files of the task, or its parent folder")
    tokenizer: str | None = option(None, "folder with tokenizer.json or vocab.txt")
    model: str = option("bert-base", "preset of the model, which gets random weights")
    batch: int = option(32, "number of examples of one step")
    max_length: int = option(128, "maximum length of an example in tokens; longer examples are cut")
    steps: int = option(4, "number of training steps in one measurement")
    turns: int = option(3, "number of measurements of each program, after one warm-up")
    dropout: float = option(0.1, "dropout of embeddings, of the outputs of attention and feed-forward "
                            "networks, and of the classifier's input")

    def __post_init__(self):
        if not self.data or not self.tokenizer:
            raise UserError("bench.py finetune needs --data and --tokenizer")
        super().__post_init__()
        at_least_one(self, "batch", "steps", "turns")


def examples_and_shape(options: FinetuneBench) -> tuple[Examples, Config]:
    """Returns the training examples of one measurement, and the model's configuration."""
    task = dataclasses.replace(TASKS[options.task], max_length=options.max_length)
    tokenizer = minibert.load_tokenizer(options.tokenizer)
    rows = read_examples(task, options.data, "train")[:options.batch * options.steps]
    shape = dataclasses.replace(preset(options.model), vocab_size=tokenizer.vocab_size,
                                dropout=options.dropout, classifier_dropout=options.dropout,
                                labels=task.labels or ("score",),
                                problem_type="regression" if task.kind == "score" else None)
    return tokenised(task, rows, tokenizer, 128).examples, shape


def finetune_turn(options: FinetuneBench, runtime):
    """Returns a function that runs the steps of one measurement with minibert, with a constant learning rate.
    """
    examples, shape = examples_and_shape(options)
    model = init_weights(Classifier(shape)).to(runtime.device).train()
    optimizer, scaler = at_rate(adamw(model, (0.9, 0.999), 1e-6, 0.01), LR), runtime.scaler()
    counts = {"hard": options.batch}

    def turn() -> None:
        for step in range(len(examples.lengths) // options.batch):
            data = draw(examples, {}, step, options.batch, 0, options.micro_tokens)
            sums = accumulate(model, partial(task_loss, model, TaskWeights(), [], counts), data.micro_batches,
                              scaler, runtime)
            update(model, optimizer, sums, counts, scaler, runtime, CLIP)
    return turn


def transformers_turn(options: FinetuneBench, runtime, by_length: bool):
    """Returns a function that runs the steps of one measurement with transformers. If `by_length` is true,
    the examples are sorted by length and then divided into batches. Otherwise, the batches are random.
    """
    examples, shape = examples_and_shape(options)
    model = transformers_model(shape, "AutoModelForSequenceClassification").to(runtime.device).train()
    optimizer = at_rate(adamw(model, (0.9, 0.999), 1e-6, 0.01), LR)
    steps = len(examples.lengths) // options.batch
    drawn = [samples_of_step(step, options.batch, len(examples.lengths), seed=0) for step in range(steps)]
    if by_length:
        chosen = np.concatenate(drawn)
        drawn = chosen[np.argsort(examples.lengths[chosen], kind="stable")].reshape(steps, options.batch)
    batches = []
    for chosen in drawn:
        cut = [slice(examples.starts[i], examples.starts[i] + examples.lengths[i]) for i in chosen]
        batches.append(([torch.from_numpy(examples.ids[c].astype(np.int64)) for c in cut],
                        [torch.from_numpy(examples.segments[c].astype(np.int64)) for c in cut],
                        torch.from_numpy(examples.labels[chosen])))

    def turn() -> None:
        for ids, segments, labels in batches:
            transformers_classifier_step(model, ids, segments, labels, optimizer, runtime, CLIP)
    return turn


def finetune_worker(kind: str, options: FinetuneBench, pipe) -> None:
    """Runs all measurements of one program. `kind` is "minibert", `RANDOM` or `BY_LENGTH`."""
    torch.manual_seed(0)
    runtime = start(options.device, options.precision, options.threads, training=kind == "minibert")
    turn = (finetune_turn(options, runtime) if kind == "minibert"
            else transformers_turn(options, runtime, by_length=kind == BY_LENGTH))
    serve(turn, pipe, runtime.device)


def bench_finetune(options: FinetuneBench) -> dict:
    """Runs `bench.py finetune` and returns the results."""
    check_peer(preset(options.model))
    examples, _ = examples_and_shape(options)
    n = len(examples.lengths) // options.batch * options.batch
    if n == 0:
        raise UserError(f"{options.task} has fewer than --batch {options.batch} examples")
    seconds, memory = alternate(finetune_worker, ["minibert", RANDOM, BY_LENGTH], options, options.turns)
    figures, rows = speeds(n, "examples", ".1f", seconds, memory)
    runtime = start(options.device, options.precision, options.threads, training=False)
    print(table([*rows.values()], f"{options.model} on {options.task}, {options.batch} examples a step, "
                                  f"{examples.lengths.mean():.0f} tokens on average, {runtime.precision}, "
                                  f"dropout {options.dropout}"))
    return {"bench": "finetune", "options": dataclasses.asdict(options), "machine": describe(runtime),
            **figures, **compared(seconds, memory), "by_length": compared(seconds, memory, BY_LENGTH)}

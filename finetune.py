"""Fine-tuning and evaluation on GLUE, IMDb, SQuAD or your own CSV, plain or with a teacher.

The file reads top to bottom: options; one stage, the loop; the stages of one seed (TinyBERT has two); then
`main`: every seed, one table at the end. The losses are one import away, in minibert/finetuning.py and
inner_methods.py; the data is in task_data.py, the teacher's part in task_models.py, the end in
task_report.py.
"""

import dataclasses
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

import minibert
from minibert import report
from minibert.checkpoint import load_checkpoint, save_checkpoint
from minibert.disk import disk_errors, read_json, write_json
from minibert.errors import UserError, run_script
from minibert.examples import Drawn, Examples, draw
from minibert.feed import ahead
from minibert.finetuning import TaskWeights, task_loss
from minibert.hub import load_config
from minibert.inner_methods import (TERMS, InnerWeights, Learner, Projections, check_fit, term_counts,
                                    tinybert)
from minibert.optim import adamw, learning_rate, warmup_steps
from minibert.options import at_least_one, numbers, only_for, option, parse, term_weights, within
from minibert.run_folder import (append_row, cut_metrics, end_stopped, open_run, read_result, say,
                                 stop_requests)
from minibert.runtime import PRECISIONS, describe, start
from minibert.step import skipped_running, training_step
from minibert.task_data import Split, check_data, dev_of, fingerprints, judge, read_task, some_of
from minibert.task_models import ask_teacher, judge_teacher, load_model, load_tuned
from minibert.task_report import evaluate_only, finish, shown
from minibert.tasks import TASKS, Task
from minibert.weight_files import write_tensors

EXAMPLES = """examples:
  python finetune.py --model weights/teacher --task reviews.csv --out runs/reviews        your own texts (CPU)
  python finetune.py --model runs/mine/model --task mrpc --data glue_data --seeds 5 --out runs/mrpc
  python finetune.py --model runs/mine/model --task squad --data squad --teacher bert-squad/ --out runs/squad
"""

# ---------------------------------------------------------------- options


@dataclass(frozen=True)
class Options:
    """Every option of finetune.py; None means the task's published setting."""

    model: str | None = option(None, "folder or hub name to start from, or with --evaluate to judge")
    task: str | None = option(
        None, f"{', '.join(TASKS)}, squad, or a FILE.csv with columns text[,pair],label|score")
    data: str | None = option(None, "folder of the task's official files, or the one above it")
    dev: str | None = option(None, "held-out csv (default: a tenth of the task's csv, by a hash of the text; "
                             "with --evaluate all of it)")
    teacher: str | None = option(None, "folder of a fine-tuned teacher of the same task")
    method: str = option(
        "kd", "what is learned from the teacher: kd its outputs; pkd also its [CLS] states; tinybert, in an "
        "intermediate stage before, its embeddings, hidden states and attention",
        choices=("kd", "pkd", "tinybert"))
    alpha: float | None = option(None, "share of the teacher's outputs in the loss; the labels have the rest "
                                 "(default: 0.5; tinybert, --transfer: 1, no labels)")
    temperature: float | None = option(None, "temperature of the teacher's outputs (default: 2; tinybert: 1)")
    beta: float | None = option(None, "weight of the [CLS] states (pkd; default: 100)")
    patience: str | None = option(None, "teacher layers they are taken from (pkd; default: skip)",
                                  choices=("skip", "last"))
    intermediate_epochs: float | None = option(
        None, "passes of the intermediate stage, 0: none (tinybert; default: the task's, 20, 10 or 50)")
    intermediate_lr: float | None = option(
        None, "constant learning rate of the intermediate stage (tinybert; default: 5e-05)")
    weights: tuple[str, ...] = option((), "weights of the intermediate stage's terms other than 1, as "
                                      "embedding=0 attention=0.5 (tinybert: embedding, hidden, attention)")
    imitate: str | None = option(None, "teacher layers, from 1, that the student's imitate, as 3,6,9,12 "
                                 "(tinybert; default: evenly spread)")
    augmented: str | None = option(
        None, "train on this file of data/augment.py instead of the training set (tinybert on scores: in the "
        "intermediate stage only, as published)")
    transfer: tuple[str, ...] = option(
        (), "unlabelled text files, one text a line, a tab between the two of a pair; "
        "the teacher's outputs on them are learned, and no labels")
    train_examples: int | None = option(None, "train on so many examples only, the same for every seed")
    epochs: float | None = option(None, "passes over the training set (default: the task's)")
    batch: int | None = option(None, "examples of one optimiser step (default: the task's)")
    lr: float | None = option(None, "peak learning rate (default: the task's)")
    max_length: int | None = option(
        None, "tokens of an example; longer ones are cut, SQuAD's contexts read in windows")
    stride: int = option(128, "how far the start of SQuAD's windows advances, in tokens (not their overlap)")
    micro_tokens: int = option(4096, "most tokens in one forward pass of one rank")
    warmup: float = option(0.1, "share of steps that warm up")
    weight_decay: float = option(0.01, "AdamW's, not for biases and norms")
    clip: float = option(1.0, "largest global gradient norm")
    dropout: float | None = option(None, "of embeddings and block outputs (default: the model's)")
    attention_dropout: float = option(0.0, "of attention probabilities; 0.1 in the papers, but slower")
    seed: int = option(1, "of the new head, order and dropout; the first of --seeds")
    seeds: int = option(
        1, "runs with consecutive seeds; the best one's model is kept, median and spread are reported")
    precision: str = option("auto", "of matrix products; auto is 16 bits where native",
                            choices=("auto", *PRECISIONS))
    device: str = option("auto", "cpu, cuda, cuda:1 ...")
    threads: int | None = option(None, "CPU threads (default: torch's choice)")
    checkpoint_every: int = option(500, "steps between checkpoints")
    evaluate: bool = option(False, "no training: judge --model on the dev set, or on all rows of --dev or of "
                           "the task's csv, whether it was trained on them or not")
    predict: bool = option(False, "write predictions for the test set in the leaderboard's format")
    out: str = option("runs/finetune", "folder of the run")
    resume: bool = option(False, "continue the run in --out")

    def __post_init__(self):
        if not self.model or not self.task:
            raise UserError("--model and --task must be given")
        if self.task not in (*TASKS, "squad") and Path(self.task).suffix.lower() not in (".csv", ".tsv"):
            raise UserError(f"--task {self.task} is none of {', '.join(TASKS)}, squad, "
                            "and no .csv or .tsv file")
        if self.task in (*TASKS, "squad") and not self.data:
            raise UserError(f"--task {self.task} needs --data, the folder of its files")
        if self.method == "pkd" and (not self.teacher or self.task == "squad"):
            raise UserError("--method pkd needs a --teacher and a task of classes or scores")
        if self.method == "tinybert" and not self.teacher:
            raise UserError("--method tinybert needs a --teacher that was fine-tuned for the task")
        if self.transfer and (not self.teacher or self.alpha not in (None, 1)):
            raise UserError("--transfer text has no labels, so it needs a --teacher, and --alpha is 1")
        for name in TEACHING:
            if getattr(self, name) is not None and not self.teacher:
                raise UserError(f"--{name} goes with a --teacher")
        only_for(self, ONLY_FOR)
        if self.augmented and (self.transfer or self.task == "squad"):
            raise UserError("--augmented goes with a task of classes or scores, and not with --transfer")
        has_test_set = self.task in TASKS and TASKS[self.task].test_splits
        if self.predict and not has_test_set:
            raise UserError(f"--predict writes a leaderboard's files, and {self.task} has no test set of one"
                            + "; for texts of your own, call minibert.predict" * (self.task != "squad"))
        if self.dev and self.task in (*TASKS, "squad"):
            raise UserError(f"--dev goes with a csv; {self.task} has a dev set of its own")
        at_least_one(self, "seeds", "batch", "train_examples", "stride", "micro_tokens", "checkpoint_every",
                     "threads")
        within(self, 0, math.inf, "epochs", "temperature", "clip", open_low=True)
        within(self, 0, math.inf, "lr", "intermediate_lr", "intermediate_epochs", "beta", "weight_decay")
        within(self, 0, 1, "alpha", "warmup")
        within(self, 0, 1, "dropout", "attention_dropout", open_high=True)
        inner_weights(self)


# What the methods learn from the teacher by default; without one, none of it is read.
METHOD_DEFAULTS = {"kd": dict(alpha=0.5, temperature=2.0),
                   "pkd": dict(alpha=0.5, temperature=2.0, beta=100.0, patience="skip"),
                   "tinybert": dict(alpha=1.0, temperature=1.0, intermediate_lr=5e-5)}
TEACHING = ("alpha", "temperature")  # options that only a teacher gives a meaning
ONLY_FOR = {"beta": ("pkd",), "patience": ("pkd",), "intermediate_epochs": ("tinybert",),
            "intermediate_lr": ("tinybert",), "weights": ("tinybert",), "imitate": ("tinybert",)}
MAY_CHANGE = {"resume", "out", "micro_tokens", "precision", "device", "threads", "checkpoint_every",
              "predict"}


def resolve(options: Options) -> Options:
    """The same with the method's defaults filled in."""
    defaults = METHOD_DEFAULTS[options.method] if options.teacher else {}
    if options.transfer:
        defaults = defaults | {"alpha": 1.0}
    return dataclasses.replace(options, **{name: value for name, value in defaults.items()
                                           if getattr(options, name) is None})


def inner_weights(options: Options) -> InnerWeights:
    """The weights of the intermediate stage's terms, and its layer map."""
    layers = options.imitate and tuple(numbers("--imitate", options.imitate))
    return InnerWeights(layers=layers, **term_weights(options.weights, TERMS["tinybert"], "tinybert"))


# ---------------------------------------------------------------- one stage

class Stage(NamedTuple):
    """What is learned, from what, for how long."""

    name: str  # for the progress
    learner: nn.Module  # what is trained, and what a checkpoint holds
    loss: Callable  # from a step's data to the loss of a micro-batch and what the step divides each sum by
    examples: Examples
    targets: dict[str, np.ndarray]  # the teacher's outputs on them, see finetuning.py
    epochs: float
    lr: float
    warmup: float | None  # share of steps that warm up before the linear decay; None: the rate is constant
    dev: dict[str, Split]  # judged after each epoch, to keep the best one's model; may be none


def train(stage: Stage, seed: int, options: Options, task: Task, tokenizer, runtime, out: Path) -> dict:
    """Trains `stage.learner` in the folder `out`; returns the best epoch, the scores of all, and the seconds
    of all sessions, without what came after a checkpoint that was resumed from.
    """
    begun, n = time.perf_counter(), len(stage.examples.lengths)
    steps = math.ceil(stage.epochs * n / task.batch)
    ends = {min(steps, math.ceil(e * n / task.batch)): e for e in range(1, math.ceil(stage.epochs) + 1)}
    stage.learner.to(runtime.device).train()
    optimizer, scaler = adamw(stage.learner, (0.9, 0.999), 1e-6, options.weight_decay), runtime.scaler()
    done, best, history, seconds = 0, None, [], 0.0
    if (out / "checkpoint").exists():
        state = load_checkpoint(out / "checkpoint", stage.learner, optimizer, say, scaler)
        if state:
            done, best, history = state["step"], state.get("best"), state.get("history", [])
            seconds = state.get("seconds", 0.0)  # of the sessions before this one
            say(f"{stage.name}: resuming after step {done}")
    if runtime.is_writer:
        with disk_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        cut_metrics(out / "metrics.jsonl", done)
    progress, skipped = report.Progress(steps, done, runtime.is_writer), 0

    def drawn(step: int) -> Drawn:
        return draw(stage.examples, stage.targets, step, task.batch, seed, options.micro_tokens, runtime.rank,
                    runtime.ranks)

    with stop_requests() as stop, ahead(drawn, done) as upcoming:
        while done < steps:
            step_begun = time.perf_counter()
            data = next(upcoming)
            loss_of, counts = stage.loss(data)
            lr = stage.lr
            if stage.warmup is not None:
                lr = learning_rate(done, steps, stage.lr, warmup_steps(stage.warmup, steps))

            row = training_step(stage.learner, loss_of, data.micro_batches, counts, optimizer, scaler,
                                runtime, lr, options.clip, bool(stop))
            done += 1

            skipped = skipped_running(skipped, row, scaler, done)
            row = {"step": done, **row, "lr": lr,
                   "tokens_per_second": data.tokens / (time.perf_counter() - step_begun)}
            stopping = row["stopping"]
            if runtime.is_writer:
                progress(done, row)
                if done in ends and stage.dev:
                    scores = {name: judge(stage.learner, task, split, runtime)[0]
                              for name, split in stage.dev.items()}
                    row["dev"] = scores
                    history.append({"epoch": ends[done], **scores})
                    say(f"{stage.name}, epoch {ends[done]}: " + shown(scores))
                    first, metric = next(iter(stage.dev)), task.metrics[0]
                    if best is None or scores[first][metric] > best["scores"][first][metric]:
                        best = {"epoch": ends[done], "step": done, "scores": scores}
                        minibert.save(stage.learner, out / "model", tokenizer, format="auto",
                                      card=card_of(options, task))
                append_row(out / "metrics.jsonl", row)
                if stopping or done in ends or done % options.checkpoint_every == 0:
                    save_checkpoint(out / "checkpoint", done, stage.learner, optimizer,
                                    {"scaler": scaler.state_dict(), "best": best, "history": history,
                                     "seconds": seconds + time.perf_counter() - begun})
            if stopping and done < steps:
                end_stopped(stop, f"step {done} of {stage.name}")
    runtime.barrier()
    return {"best": best, "history": history, "seconds": seconds + time.perf_counter() - begun}


def card_of(options: Options, task: Task) -> str:
    """What the model card says."""
    teacher = f" with the teacher `{Path(options.teacher).name}`" if options.teacher else ""
    return (f"Fine-tuned on {task.name} from `{Path(options.model).name}`{teacher} "
            "by `finetune.py` of minibert.")


# ---------------------------------------------------------------- the stages of one seed

def intermediate(seed: int, options: Options, task: Task, examples: Examples, teacher: nn.Module,
                 tokenizer, runtime, out: Path) -> float:
    """TinyBERT's first stage (Jiao et al. 2019, section 3.2): the student imitates embeddings, hidden states
    and attention of the fine-tuned teacher; labels are not read. Returns its seconds. The student is in
    out/model, with a task head still as new; what it projected its states with lies beside it.
    """
    if not (out / "result.json").exists():
        student = load_model(options.model, task, options, seed)
        if student.encoder.pooler is not None:
            student.encoder.pooler.requires_grad_(False)  # no term reads it, and weight decay would shrink it
        projections = Projections(student.config, teacher.config, torch.Generator().manual_seed(seed))
        learner, weights = Learner(student.encoder, projections), inner_weights(options)

        def loss(data: Drawn) -> tuple[Callable, dict[str, int]]:
            return partial(tinybert, learner, teacher, data, weights), term_counts(data, weights)

        stage = Stage(f"seed {seed}, intermediate stage", learner, loss, examples, {},
                      task.intermediate_epochs, options.intermediate_lr, None, {})
        seconds = train(stage, seed, options, task, tokenizer, runtime, out)["seconds"]
        if runtime.is_writer:
            write_tensors(out / "projections.safetensors", projections.state_dict())
            minibert.save(student, out / "model", tokenizer, format="auto", card=card_of(options, task)
                          + " Its task head is not trained yet.")
            write_json(out / "result.json", {"seconds": seconds})
        runtime.barrier()
    return read_json(out / "result.json").get("seconds", 0.0)


def has_intermediate_stage(options: Options, task: Task) -> bool:
    """Whether the student imitates the teacher's inside before it learns its outputs."""
    return options.method == "tinybert" and task.intermediate_epochs > 0


def one_seed(seed: int, options: Options, task: Task, splits: dict[str, Split], first: Examples,
             then: Examples, teacher, targets, layers, tokenizer, runtime, out: Path) -> dict:
    """Fine-tunes with one seed into `out`, keeps the best epoch's model in out/model, returns its scores.

    `first` are the examples of the intermediate stage, `then` those of the prediction stage, which is all of
    the other methods; `targets` the teacher's outputs on `then`.
    """
    source, seconds = options.model, 0.0
    if has_intermediate_stage(options, task):
        source = out / "intermediate" / "model"
        seconds = intermediate(seed, options, task, first, teacher, tokenizer, runtime, out / "intermediate")
    student = load_model(source, task, options, seed)
    weights = (TaskWeights(options.alpha, options.temperature, options.beta or 0.0) if options.teacher
               else TaskWeights())

    def loss(data: Drawn) -> tuple[Callable, dict[str, int]]:
        counts = {"hard": max(1, data.labelled), "soft": data.sequences, "patience": data.sequences}
        return partial(task_loss, student, weights, layers, counts), counts

    stage = Stage(f"seed {seed}", student, loss, then, targets, task.epochs, task.lr, options.warmup,
                  dev_of(task, splits))
    result = train(stage, seed, options, task, tokenizer, runtime, out)
    return {"seed": seed, **result, "seconds": seconds + result["seconds"]}


def training_splits(options: Options, task: Task, splits: dict[str, Split]) -> tuple[Split, Split]:
    """What the intermediate stage learns from, and what the prediction stage or any other method does."""
    first = then = splits.get("transfer") or splits.get("augmented") or splits["train"]
    if options.method == "tinybert" and task.regression and options.augmented:
        then = splits["train"]  # as in the paper: for scores, only the intermediate stage is augmented
    elif options.augmented and then.rows[0].label is None and options.alpha != 1:
        raise UserError(f"{options.augmented} has no column 'label' or 'score': add it, or learn the outputs "
                        "of a --teacher alone, with --alpha 1")
    if options.train_examples:
        first, then = some_of(first, options.train_examples), some_of(then, options.train_examples)
    return first, then


# ---------------------------------------------------------------- main

def main(argv: list[str] | None = None) -> None:
    """Fine-tunes once for each seed, or only evaluates; shows a table."""
    options = resolve(parse(Options, argv, __doc__, EXAMPLES))
    runtime = start(options.device, options.precision, options.threads)
    out = Path(options.out)
    tokenizer = minibert.load_tokenizer(options.model)
    task, splits = read_task(options, tokenizer)
    if options.evaluate:
        return evaluate_only(options, task, splits, runtime)
    first, then = training_splits(options, task, splits)
    data = fingerprints(task, splits)
    if runtime.is_writer:
        open_run(out, options, MAY_CHANGE)
        check_data(out, options, data)
    runtime.barrier()
    teacher, targets, layers, teacher_scores = None, {}, [], {}
    if options.teacher:
        teacher, order = load_tuned(options.teacher, task)
        runtime.hold_frozen(teacher)
        if has_intermediate_stage(options, task):
            check_fit("tinybert", load_config(options.model), teacher.config, inner_weights(options))
        targets, layers = ask_teacher(options, task, then, tokenizer, teacher, order, runtime)
        if runtime.is_writer:
            teacher_scores = judge_teacher(options, task, splits, teacher, order, runtime)
        if not has_intermediate_stage(options, task):
            teacher = None  # all that is asked of it is known: its memory is free for the training
    if runtime.is_writer:
        settings = {name: getattr(task, name)
                    for name in ("batch", "lr", "epochs", "max_length", "intermediate_epochs")}
        write_json(out / "config.json", {"options": dataclasses.asdict(options), "task": settings,
                                         "data": data, **describe(runtime)})
    if options.method == "tinybert":
        say(f"intermediate stage: {len(first.examples.lengths):,} examples, "
            f"{task.intermediate_epochs:g} epochs, lr {options.intermediate_lr:g}")
    say(f"{task.name}: {len(then.examples.lengths):,} examples, {task.epochs} epochs of "
        f"{task.batch} examples a step, lr {task.lr:g}, {runtime.precision} on {runtime.device}")

    results = []
    for seed in range(options.seed, options.seed + options.seeds):
        folder = out / f"seed-{seed}"
        if not (folder / "result.json").exists():
            result = one_seed(seed, options, task, splits, first.examples, then.examples, teacher, targets,
                              layers, tokenizer, runtime, folder)
            if runtime.is_writer:
                write_json(folder / "result.json", result)
            runtime.barrier()
        if runtime.is_writer:
            for finished in (folder / "intermediate" / "checkpoint", folder / "checkpoint"):
                shutil.rmtree(finished, ignore_errors=True)
            results.append(read_result(folder / "result.json"))
    if runtime.is_writer:
        finish(options, out, task, splits, results, teacher_scores, tokenizer, runtime)
    runtime.barrier()
    runtime.leave()


if __name__ == "__main__":
    run_script(main)

"""Fine-tuning and evaluation on GLUE, IMDb, SQuAD or your own CSV file, with or without a teacher.

With --method tinybert, the training has two stages (with --intermediate-epochs 0, only one). With every other
method, the training has one stage. The function `train` runs one stage. The options are in
minibert/tasks/options.py. The losses are in task_kd.py, tinybert.py and theseus.py in minibert/distill/.
"""

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

import minibert
from minibert.common.console import Progress, say, table
from minibert.common.disk import disk_errors, read_json, write_json
from minibert.common.errors import UserError, run_script
from minibert.common.options import parse
from minibert.common.runtime import Runtime, describe, start
from minibert.data.examples import Drawn, Examples, check_examples, check_pieces, draw
from minibert.data.loader import ahead
from minibert.data.tokenizer import Tokenizer
from minibert.distill.students import make_student
from minibert.distill.task_kd import TaskWeights, patience_layers, task_loss
from minibert.distill.theseus import (layer_groups, replace_rate, replaced_groups, theseus_loss,
                                      train_layers_only)
from minibert.distill.tinybert import TinyBERTStudent, fit_tinybert, tinybert, tinybert_counts
from minibert.hub.load_save import load_config
from minibert.hub.weight_files import read_safetensors, write_tensors
from minibert.tasks.models import check_widths, keeps_head, load_for_task, load_tuned, teacher_outputs
from minibert.tasks.official_files import write_submission
from minibert.tasks.options import (MAY_CHANGE, METHOD_DEFAULTS, Options, cut_layers, inner_weights, resolve,
                                    task_settings)
from minibert.tasks.specs import TASKS, Task
from minibert.tasks.splits import (Split, answers_of, dev_of, judge, model_outputs,
                                   read_augmented, read_rows, read_rows_to_judge, read_transfer, some_of,
                                   tokenise_splits, write_errors)
from minibert.tasks.summary import OUTPUTS, keep_best_seed, on_one_line, rank, summarise
from minibert.training.checkpoint import load_checkpoint, save_checkpoint
from minibert.training.models import hold_frozen, with_dropout
from minibert.training.optim import adamw, learning_rate, set_learning_rate, warmup_steps
from minibert.training.run_folder import (append_row, check_unchanged, check_weights, cut_metrics,
                                          end_stopped, in_words, open_run, stop_requests)
from minibert.training.step import accumulate, consecutive_skips, freeze_unread, update

EXAMPLES = """examples:
  python finetune.py --model weights/teacher --task reviews.csv --out runs/reviews        your own texts (CPU)
  python finetune.py --model runs/mine/model --task mrpc --data data/glue_data --seeds 5 --out runs/mrpc
  python finetune.py --model runs/s/model --task squad --data data/squad --teacher runs/t/model --out runs/d
"""


class Run(NamedTuple):
    """The parts of a run that are the same for all seeds."""

    options: Options
    out: Path
    student: str  # the folder or hub name of the model with which the training of every seed starts
    task: Task  # the task, with the training settings of this run
    tokenizer: Tokenizer
    runtime: Runtime


class Teaching(NamedTuple):
    """The teacher and its outputs, from which the student learns."""

    teacher: nn.Module | None  # the frozen teacher; None if the method does not run it during training
    targets: dict[str, np.ndarray]  # the teacher's outputs on the training examples (see `teacher_outputs`)
    layers: list[int]  # for pkd, the numbers (from 1) of the student layers that learn [CLS] states


# ---------------------------------------------------------------- main

def main(argv: list[str] | None = None) -> None:
    """Fine-tunes once for each seed and prints a table. With --evaluate, only evaluates a model."""
    options = resolve(parse(Options, argv, __doc__, EXAMPLES, defaults={"method": METHOD_DEFAULTS}))
    runtime = start(options.device, options.precision, options.threads)
    # without --model, the student has the teacher's tokenizer
    reader = options.model or options.teacher
    tokenizer = minibert.load_tokenizer(reader)
    task, splits = read_task(options, reader, tokenizer)
    out = Path(options.out)
    run = Run(options, out, options.model or str(out / "student"), task, tokenizer, runtime)
    if options.evaluate:
        return evaluate(run, splits)
    first, then = training_splits(options, task, splits)
    record = {}
    if runtime.is_writer:
        record = open_folder(run, splits)
        if not options.model:
            cut_student(run)
    runtime.barrier()
    teaching, teacher_scores = Teaching(None, {}, []), {}
    if options.teacher:
        teacher = load_teacher(run, splits)
        teaching = ask_teacher(run, teacher, then.examples)
        if runtime.is_writer:
            teacher_scores, _ = judge_all(run, teacher, dev_of(task, splits))
        del teacher  # frees the teacher's memory, unless `teaching` also has the teacher
    if runtime.is_writer:
        write_json(out / "config.json", record)
    announce(run, first, then)
    results = [one_seed(seed, run, dev_of(task, splits), (first.examples, then.examples), teaching)
               for seed in range(options.seed, options.seed + options.seeds)]
    if runtime.is_writer:
        finish(run, splits, results, teacher_scores)
    runtime.barrier()
    runtime.leave()


def read_task(options: Options, reader: str, tokenizer: Tokenizer) -> tuple[Task, dict[str, Split]]:
    """Returns a tuple: the task with the training settings of this run, and a dict from the names of the
    splits to the tokenised splits.

    `reader` is the name of the model that `tokenizer` belongs to. The splits are train, the dev splits, and
    the splits of --predict, --augmented and --transfer. With --evaluate, the dict has only the splits to
    evaluate.
    """
    if options.evaluate:
        task, rows = read_rows_to_judge(options.task, options.data, reader)
    else:
        task, rows = read_rows(options.task, options.data, options.dev, options.predict)
    if options.augmented:
        # If train and dev are parts of one csv file, the file of --augmented must have no copies of dev rows.
        # A copy has the id of its row. If a train row and a dev row have the same id, this id is not checked,
        # because a copy with this id may be a copy of the train row.
        own_file = options.task not in TASKS and not options.dev
        held_out = {row.id for row in rows["dev"]} - {row.id for row in rows["train"]} if own_file else ()
        pairs = rows["train"][0].pair is not None
        rows["augmented"] = read_augmented(options.augmented, task, pairs, held_out)
    task = task_settings(options, task)
    config = load_config(reader)
    splits = tokenise_splits(task, rows, tokenizer, options.stride, config, reader)
    if options.transfer:
        # the training set has pairs if a token has type 1, the type of second texts (for SQuAD: of contexts)
        pairs = bool(splits["train"].examples.segments.any())
        splits["transfer"] = read_transfer(task, options.transfer, tokenizer, pairs)
        check_examples(splits["transfer"].examples, config, reader)
    return task, splits


def training_splits(options: Options, task: Task, splits: dict[str, Split]) -> tuple[Split, Split]:
    """Returns a tuple: the split for TinyBERT's intermediate stage, and the split for the last stage. Other
    methods have only the last stage, so they do not use the first split.
    """
    first = then = splits.get("transfer") or splits.get("augmented") or splits["train"]
    if options.method == "tinybert" and task.kind == "score" and options.augmented:
        # as in the TinyBERT paper: in a regression task, only the intermediate stage uses augmented examples
        then = splits["train"]
    elif options.augmented and then.rows[0].label is None and options.alpha != 1:
        raise UserError(f"{options.augmented} has no column 'label' or 'score': add it, or learn only from "
                        "the outputs of a --teacher, with --alpha 1")
    if options.train_examples:
        first, then = some_of(first, options.train_examples), some_of(then, options.train_examples)
    return first, then


def open_folder(run: Run, splits: dict[str, Split]) -> dict:
    """Creates the folder of a new run, or checks that a resumed run has the same options, examples and
    weights as at its start. Returns a dict with the content of config.json, which `main` writes later.
    """
    options = run.options
    data = {name: split.examples.fingerprint for name, split in splits.items()
            if name not in run.task.test_splits}
    open_run(run.out, dataclasses.asdict(options), MAY_CHANGE)
    # A finished run keeps only the model of its best seed. With fewer seeds than before, this best seed may
    # be left out, and the models of the other seeds no longer exist.
    if (run.out / f"seed-{options.seed + options.seeds}").exists():
        raise UserError(f"the run in {run.out} has more seeds than --seeds {options.seeds}: "
                        "resume it with at least as many seeds as before")
    check_unchanged(run.out, "data", data, "the {} examples")
    weights = check_weights(run.out, {"model": options.model, "teacher": options.teacher})
    settings = {name: getattr(run.task, name)
                for name in ("batch", "lr", "epochs", "max_length", "intermediate_epochs")}
    return {"options": dataclasses.asdict(options), "task": settings, "data": data, "weights": weights,
            **describe(run.runtime)}


def announce(run: Run, first: Split, then: Split) -> None:
    """Prints the task, the number of examples and the training settings."""
    options, task, runtime = run.options, run.task, run.runtime
    if has_intermediate_stage(options, task):
        say(f"intermediate stage: {len(first.examples.lengths):,} examples, "
            f"{task.intermediate_epochs:g} epochs, lr {options.intermediate_lr:g}")
    head = f"that of {run.student}" if keeps_head(run.student, task) else "new"
    classes = f"{len(task.labels)} classes, " if task.labels else ""
    say(f"{task.name}: {classes}{len(then.examples.lengths):,} examples, {task.epochs} epochs of "
        f"{task.batch} examples a step, lr {task.lr:g}, {runtime.precision} on {runtime.device}; "
        f"the head is {head}")


def finish(run: Run, splits: dict[str, Split], results: list[dict], teacher_scores: dict) -> None:
    """Keeps only the model of the best seed. Writes summary.json and the model's wrong answers, and with
    --predict the model's predictions for the test splits. Prints the final table.
    """
    options, task, out = run.options, run.task, run.out
    dev = dev_of(task, splits)
    deciding = next(iter(dev))
    best = keep_best_seed(out, results, deciding, task.metrics[0])
    answers = answers_of(task, dev[deciding], read_safetensors(out / OUTPUTS)["outputs"].numpy())
    write_errors(out / "errors.tsv", task, dev[deciding], answers)
    if task.kind == "span":  # the official script of SQuAD reads predictions.json
        write_json(out / "predictions.json", {id: found[0].text for id, found in answers.items()})
    scores, rows = summarise(task, dev, splits["train"], results, teacher_scores)
    # summary.json is written before the table is printed, because printing fails if the terminal was closed
    write_json(out / "summary.json", {"task": task.name, "results": results, "best_seed": best,
                                      "model": str(out / "model"), **scores, "table": rows})
    if options.predict:
        predict(run, minibert.load(out / "model").to(run.runtime.device), splits)
    held_out = ", a tenth of the file, held out" if not (task.splits or options.dev) else ""
    say("\n" + table(rows, f"{task.name}: {', '.join(task.metrics)} in percent, "
                     f"{len(dev[deciding].rows):,} dev examples{held_out}"))
    say(f"\nthe model of the best seed is in {out / 'model'}, and its errors are in {out / 'errors.tsv'}")


def evaluate(run: Run, splits: dict[str, Split]) -> None:
    """Evaluates --model on the dev splits, or on all rows of a csv file, and prints the scores."""
    options, task = run.options, run.task
    model, scores = load_tuned(run.student, task).to(run.runtime.device), {}
    for name, split in splits.items():
        scores[name], _ = judge(model, task, split, run.runtime, options.micro_tokens)
        say(f"{options.model} on {task.name}, {name} ({len(split.rows):,}): "
            + on_one_line({name: scores[name]}))
    say(json.dumps({"model": options.model, "task": task.name, "scores": scores}))


def predict(run: Run, model: nn.Module, splits: dict[str, Split]) -> None:
    """Writes the model's predictions for each test split in the format of GLUE's leaderboard."""
    for name in run.task.test_splits:
        if name in splits:
            logits = model_outputs(model, splits[name], run.runtime, run.options.micro_tokens,
                                   f"predicting {name}")
            say("predictions:", write_submission(run.out / "predictions", run.task, name,
                                                 answers_of(run.task, splits[name], logits)))


# ---------------------------------------------------------------- the teacher

def cut_student(run: Run) -> None:
    """Saves the student with which the training of every seed starts: a copy of the teacher that has only
    some of the teacher's layers. If the student is already saved, `cut_student` does nothing.
    """
    options = run.options
    if (Path(run.student) / "config.json").exists():
        return
    teacher = load_tuned(options.teacher, run.task)
    layers = cut_layers(options, teacher.config.layers)
    student = make_student(teacher, layers=options.layers, layer_map=layers)
    say(f"the student starts as a copy of the layers {', '.join(map(str, layers))} (counted from 0) of "
        f"{options.teacher}")
    minibert.save(student, run.student, run.tokenizer,
                  card=f"Layers of `{Path(options.teacher).name}`, copied by `finetune.py` of minibert and "
                  "not trained after that.")


def load_teacher(run: Run, splits: dict[str, Split]) -> nn.Module:
    """Returns the frozen teacher. Raises `UserError` if the teacher does not fit the task, the student or the
    examples.
    """
    options, student = run.options, load_config(run.student)
    teacher = hold_frozen(load_tuned(options.teacher, run.task), run.runtime)
    if minibert.load_tokenizer(options.teacher).sha256 != run.tokenizer.sha256:
        raise UserError(f"teacher {options.teacher} and model {run.student} have different vocabularies")
    check_pieces(run.tokenizer, teacher.config, options.teacher)
    for split in splits.values():
        check_examples(split.examples, teacher.config, f"--teacher {options.teacher}")
    if options.method == "pkd" or has_intermediate_stage(options, run.task) and not options.project:
        check_widths(student, teacher.config)
    if has_intermediate_stage(options, run.task):
        weights = inner_weights(options, cut_layers(options, teacher.config.layers))
        fit_tinybert(student, teacher.config, weights)
    if options.method == "theseus":
        groups = layer_groups(student.layers, teacher.config.layers)
        say("student layers and the teacher layers that they replace:",
            ", ".join(f"{m} for {group[0] + 1} to {group[-1] + 1}" for m, group in enumerate(groups, 1)))
    return teacher


def ask_teacher(run: Run, teacher: nn.Module, examples: Examples) -> Teaching:
    """Returns a `Teaching`: the teacher, and the teacher's outputs on the training examples. The outputs are
    computed only if --alpha is above 0 or the method is pkd.
    """
    options, pairs, targets = run.options, [], {}
    if options.method == "pkd":
        pairs = patience_layers(load_config(run.student).layers, teacher.config.layers,
                                options.teacher_layers)
        say("student layers learn the [CLS] states of teacher layers:",
            ", ".join(f"{s} from {t}" for s, t in pairs))
    if options.alpha > 0 or pairs:
        say(f"computing the teacher's outputs on {len(examples.lengths):,} examples")
        progress = Progress("running the teacher", int(examples.lengths.sum()), "tokens")
        targets = teacher_outputs(teacher, examples, run.runtime, [t for _, t in pairs],
                                  options.micro_tokens, progress)
    stays = has_intermediate_stage(options, run.task) or options.method == "theseus"
    return Teaching(teacher if stays else None, targets, [s for s, _ in pairs])


# ---------------------------------------------------------------- one seed

def one_seed(seed: int, run: Run, dev: dict[str, Split], examples: tuple[Examples, Examples],
             teaching: Teaching) -> dict:
    """Fine-tunes with one seed and returns a dict with the result (see `train`). If the seed is already
    finished, returns the stored result. Only the first rank returns the result; other ranks return an empty
    dict. `examples` is a pair: the examples of the intermediate stage, and the examples of the last stage.
    """
    options, task, out = run.options, run.task, run.out / f"seed-{seed}"
    if not (out / "result.json").exists():
        source, seconds = run.student, 0.0
        if has_intermediate_stage(options, task):
            source = out / "intermediate" / "model"
            seconds = intermediate(seed, run, examples[0], teaching.teacher, out / "intermediate")
        student = student_of(seed, run, source)
        loss = loss_of_task(seed, run, student, teaching, steps_of(task.epochs, examples[1], task))
        stage = Stage(f"seed {seed}", student, loss, examples[1], teaching.targets, task.epochs, task.lr,
                      options.warmup, dev)
        result = train(stage, seed, run, out)
        if run.runtime.is_writer:
            write_json(out / "result.json", {"seed": seed, **result, "seconds": seconds + result["seconds"]})
        run.runtime.barrier()
    if not run.runtime.is_writer:
        return {}
    for finished in (out / "intermediate" / "checkpoint", out / "checkpoint"):
        shutil.rmtree(finished, ignore_errors=True)
    return read_json(out / "result.json")


def student_of(seed: int, run: Run, source: str | Path) -> nn.Module:
    """Loads the student from `source`, with the task's head and the dropout of the options."""
    return with_dropout(load_for_task(source, run.task, seed), run.options.dropout,
                        run.options.attention_dropout)


def loss_of_task(seed: int, run: Run, student: nn.Module, teaching: Teaching, steps: int) -> Callable:
    """Returns a function `loss(data)`. `data` has the micro-batches of one training step.

    `loss(data)` returns a tuple: a function that computes the loss of one micro-batch, and a dict from the
    name of each loss term to its divisor. The divisor is a number of examples. The sum of a loss term over
    all examples of the step is divided by this number.
    """
    options, teacher, weights = run.options, teaching.teacher, TaskWeights()
    if options.teacher:
        weights = TaskWeights(options.alpha, options.temperature, options.beta or 0.0)
    if options.method == "theseus":
        train_layers_only(student)
        # the teacher's layers have dropout, as in the original code of BERT-of-Theseus
        with_dropout(teacher, options.dropout, options.attention_dropout).train()

    def loss(data: Drawn) -> tuple[Callable, dict[str, int]]:
        counts = {"hard": max(1, data.labelled), "soft": data.sequences, "patience": data.sequences}
        if options.method == "theseus":
            rate = replace_rate(data.step, steps, options.replace_rate, options.replace_until)
            replaced = replaced_groups(student.config.layers, rate, seed, data.step)
            return partial(theseus_loss, student, teacher, replaced, weights, counts), counts
        return partial(task_loss, student, weights, teaching.layers, counts), counts
    return loss


def has_intermediate_stage(options: Options, task: Task) -> bool:
    """Returns True if the training has TinyBERT's intermediate stage."""
    return options.method == "tinybert" and task.intermediate_epochs > 0


def intermediate(seed: int, run: Run, examples: Examples, teacher: nn.Module, out: Path) -> float:
    """Runs TinyBERT's intermediate stage (Jiao et al. 2019, section 3.2), if it is not finished yet. Returns
    the training time of the stage in seconds. In this stage, the student learns to imitate the embeddings,
    hidden states and attention of the fine-tuned teacher. The stage uses no labels, and does not train the
    student's task head.

    The student is saved in the folder `out`/model. With --project, the linear layers are saved in the file
    `out`/projections.safetensors.
    """
    options, task = run.options, run.task
    if not (out / "result.json").exists():
        student = student_of(seed, run, run.student)
        weights = inner_weights(options, cut_layers(options, teacher.config.layers))
        imitator = student
        if options.project:
            imitator = TinyBERTStudent(student.encoder, teacher.config, torch.Generator().manual_seed(seed))

        def loss(data: Drawn) -> tuple[Callable, dict[str, int]]:
            counts = tinybert_counts(data, weights)
            return partial(tinybert, imitator, teacher, weights=weights, counts=counts), counts

        stage = Stage(f"seed {seed}, intermediate stage", imitator, loss, examples, {},
                      task.intermediate_epochs, options.intermediate_lr, None, {})
        seconds = train(stage, seed, run, out)["seconds"]
        if run.runtime.is_writer:
            if options.project:
                write_tensors(out / "projections.safetensors", imitator.projections.state_dict())
            minibert.save(student, out / "model", run.tokenizer,
                          card=card_of(options, task) + " This stage did not train its task head.")
            write_json(out / "result.json", {"seconds": seconds})
        run.runtime.barrier()
    return read_json(out / "result.json").get("seconds", 0.0)


def card_of(options: Options, task: Task) -> str:
    """Returns the first sentence of the model card."""
    start = f"`{Path(options.model).name}`" if options.model else "some layers of its teacher"
    teacher = f" with the teacher `{Path(options.teacher).name}`" if options.teacher else ""
    return f"Fine-tuned on {task.name} from {start}{teacher} by `finetune.py` of minibert."


# ---------------------------------------------------------------- one stage

class Stage(NamedTuple):
    """The module, the loss, the data and the settings of one training stage."""

    name: str
    module: nn.Module
    loss: Callable  # a function like the result of `loss_of_task`
    examples: Examples
    targets: dict[str, np.ndarray]  # the teacher's outputs on the examples
    epochs: float
    lr: float
    warmup: float | None  # share of warm-up steps before the linear decay; None: a constant learning rate
    dev: dict[str, Split]  # the splits for the evaluation after each epoch; may be empty


def best_of(history: list[dict], metric: str) -> dict | None:
    """Returns the epoch of `history` with the highest `metric` on the first dev split. If several epochs have
    the highest value, returns the earliest of these epochs. Returns None if `history` is empty.
    """
    return max(history, key=lambda epoch: rank(next(iter(epoch["scores"].values())), metric), default=None)


def train(stage: Stage, seed: int, run: Run, out: Path) -> dict:
    """Trains `stage.module`, with checkpoints in the folder `out`. If the stage has dev splits, saves the
    model of the best epoch (`keep_model`). Returns a dict with the entries "best" (the best epoch, or None
    without dev splits), "history" (the scores of all epochs), and "seconds" (the time of training and
    evaluation).
    """
    begun, options, task, runtime = time.perf_counter(), run.options, run.task, run.runtime
    n = len(stage.examples.lengths)
    steps = steps_of(stage.epochs, stage.examples, task)
    # a dict from the last step of each epoch to the number of finished epochs (for 2.5 epochs: 1, 2 and 2.5)
    ends = {min(steps, math.ceil(e * n / task.batch)): min(e, stage.epochs)
            for e in range(1, math.ceil(stage.epochs) + 1)}
    stage.module.to(runtime.device).train()
    optimizer, scaler = adamw(stage.module, (0.9, 0.999), 1e-6, options.weight_decay), runtime.scaler()
    state = load_checkpoint(out / "checkpoint", stage.module, optimizer, say, scaler) or {}
    done, seconds = state.get("step", 0), state.get("seconds", 0.0)
    history = state.get("history", [])
    if done:
        say(f"{stage.name}: resuming after step {done}")
    if runtime.is_writer:
        with disk_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        cut_metrics(out / "metrics.jsonl", done)
        # if the run was killed right after the checkpoint of the best epoch, the best model is not saved yet
        if history and best_of(history, task.metrics[0])["step"] == done:
            keep_model(stage, run, out, judge_all(run, stage.module, stage.dev)[1])
    # `freeze_unread` freezes the parameters that the loss of one example does not use. With theseus, all
    # student layers are used at the end of the training. So the example is drawn as for the step after the
    # last step, and no student layer is frozen.
    one = draw(stage.examples, stage.targets, steps, 1, seed, options.micro_tokens)
    freeze_unread(stage.module, stage.loss(one)[0], one.micro_batches[0], runtime)

    def drawn(step: int) -> Drawn:
        return draw(stage.examples, stage.targets, step, task.batch, seed, options.micro_tokens, runtime.rank,
                    runtime.ranks)

    progress, skipped = Progress("training", steps, "steps", done, stays=True), 0
    with stop_requests() as stop, ahead(drawn, done) as upcoming:
        while done < steps:
            step_begun = time.perf_counter()
            data = next(upcoming)
            loss_of, counts = stage.loss(data)
            lr = stage.lr
            if stage.warmup is not None:
                lr = learning_rate(done, steps, stage.lr, warmup_steps(stage.warmup, steps))

            set_learning_rate(optimizer, lr)
            sums = accumulate(stage.module, loss_of, data.micro_batches, scaler, runtime)
            figures, stopping = update(stage.module, optimizer, sums, counts, scaler, runtime, options.clip,
                                       bool(stop))
            done += 1

            skipped = consecutive_skips(skipped, figures, scaler, done)
            row = {"step": done, **figures, "lr": lr,
                   "tokens_per_second": data.tokens / (time.perf_counter() - step_begun)}
            if runtime.is_writer:
                progress(1, in_words(row))
                if done in ends and stage.dev:
                    row["dev"], logits = judge_all(run, stage.module, stage.dev)
                    history.append({"epoch": ends[done], "step": done, "scores": row["dev"]})
                    say(f"{stage.name}, epoch {ends[done]:g}: {on_one_line(row['dev'])}")
                append_row(out / "metrics.jsonl", row)
                if stopping or done in ends or done % options.checkpoint_every == 0:
                    save_checkpoint(out / "checkpoint", done, stage.module, optimizer,
                                    {"scaler": scaler.state_dict(), "history": history,
                                     "seconds": seconds + time.perf_counter() - begun})
                if done in ends and stage.dev and best_of(history, task.metrics[0])["step"] == done:
                    keep_model(stage, run, out, logits)
            if stopping and done < steps:
                end_stopped(stop, f"step {done} of {stage.name}")
    runtime.barrier()
    return {"best": best_of(history, task.metrics[0]), "history": history,
            "seconds": seconds + time.perf_counter() - begun}


def steps_of(epochs: float, examples: Examples, task: Task) -> int:
    """Returns the number of optimiser steps in `epochs` epochs."""
    return math.ceil(epochs * len(examples.lengths) / task.batch)


def judge_all(run: Run, model: nn.Module, dev: dict[str, Split]
              ) -> tuple[dict[str, dict[str, float]], np.ndarray]:
    """Returns a tuple: a dict from the name of each dev split to a dict of the model's scores, and an array
    with the model's outputs on the first dev split.
    """
    judged = {name: judge(model, run.task, split, run.runtime, run.options.micro_tokens)
              for name, split in dev.items()}
    return {name: scores for name, (scores, _) in judged.items()}, next(iter(judged.values()))[1]


def keep_model(stage: Stage, run: Run, out: Path, logits: np.ndarray) -> None:
    """Saves the model in the folder `out`/model. Saves `logits`, the model's outputs on the first dev split,
    in the file `OUTPUTS` in `out`.
    """
    write_tensors(out / OUTPUTS, {"outputs": torch.from_numpy(logits)})
    minibert.save(stage.module, out / "model", run.tokenizer,
                  card=card_of(run.options, run.task))


if __name__ == "__main__":
    run_script(main)

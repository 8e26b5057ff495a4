"""Fine-tuning and evaluation on GLUE, IMDb, SQuAD or your own CSV, plain or with a teacher.

The file reads top to bottom: one stage, the loop; the stages of one seed (TinyBERT has two); then `main`:
every seed, one table at the end. Its options are in minibert/tasks/options.py. The losses are one import
away, in minibert/distill/task_kd.py and tinybert.py. In minibert/tasks/, splits.py has the data, models.py
the teacher's part, summary.py the end.
"""

import dataclasses
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
from minibert.common.console import say
from minibert.common.disk import disk_errors, read_json, write_json
from minibert.common.errors import UserError, run_script
from minibert.common.options import parse
from minibert.common.runtime import describe, start
from minibert.data.examples import Drawn, Examples, draw
from minibert.data.loader import ahead
from minibert.distill.task_kd import TaskWeights, task_loss
from minibert.distill.tinybert import Learner, Projections, check_fit, term_counts, tinybert
from minibert.hub.load_save import load_config
from minibert.hub.weight_files import write_tensors
from minibert.tasks.models import ask_teacher, judge_teacher, load_model, load_tuned
from minibert.tasks.options import MAY_CHANGE, Options, inner_weights, resolve
from minibert.tasks.specs import Task
from minibert.tasks.splits import Split, ask, check_data, dev_of, fingerprints, judge, read_task, some_of
from minibert.tasks.summary import OUTPUTS, evaluate_only, finish, shown
from minibert.training import summary
from minibert.training.checkpoint import load_checkpoint, save_checkpoint
from minibert.training.optim import adamw, learning_rate, set_learning_rate, warmup_steps
from minibert.training.run_folder import (append_row, check_weights, cut_metrics, end_stopped, open_run,
                                          read_result, stop_requests)
from minibert.training.step import accumulate, consecutive_skips, freeze_unread, update

EXAMPLES = """examples:
  python finetune.py --model weights/teacher --task reviews.csv --out runs/reviews        your own texts (CPU)
  python finetune.py --model runs/mine/model --task mrpc --data data/glue_data --seeds 5 --out runs/mrpc
  python finetune.py --model runs/s/model --task squad --data data/squad --teacher runs/t/model --out runs/d
"""

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

    The best epoch's model is kept in out/model, and beside it what it said of the split that decides.
    """
    begun, n = time.perf_counter(), len(stage.examples.lengths)
    steps = math.ceil(stage.epochs * n / task.batch)
    ends = {min(steps, math.ceil(e * n / task.batch)): min(e, stage.epochs)  # the last may be a part
            for e in range(1, math.ceil(stage.epochs) + 1)}
    stage.learner.to(runtime.device).train()
    optimizer, scaler = adamw(stage.learner, (0.9, 0.999), 1e-6, options.weight_decay), runtime.scaler()
    done, best, history, seconds = 0, None, [], 0.0
    deciding = next(iter(stage.dev.values()), None)
    said = None  # the model's outputs on it, after the last epoch
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
    progress, skipped = summary.Progress(steps, done), 0
    one = draw(stage.examples, stage.targets, 0, 1, seed, options.micro_tokens)
    freeze_unread(stage.learner, stage.loss(one)[0], one.micro_batches[0], runtime)

    def keep_best() -> None:
        # Runs after the step's checkpoint; after a kill between the two, --resume makes it again from there.
        if runtime.is_writer and best and best["step"] == done:
            outputs = said
            if said is None:
                outputs = ask(stage.learner, deciding, runtime, options.micro_tokens, "judging again")
            write_tensors(out / OUTPUTS, {"outputs": torch.from_numpy(outputs)})
            minibert.save(stage.learner, out / "model", tokenizer, format="auto", card=card_of(options, task))

    keep_best()

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

            set_learning_rate(optimizer, lr)
            sums = accumulate(stage.learner, loss_of, data.micro_batches, scaler, runtime)
            figures, stopping = update(stage.learner, optimizer, sums, counts, scaler, runtime, options.clip,
                                       bool(stop))
            done += 1

            skipped = consecutive_skips(skipped, figures, scaler, done)
            row = {"step": done, **figures, "lr": lr,
                   "tokens_per_second": data.tokens / (time.perf_counter() - step_begun)}
            if runtime.is_writer:
                progress(done, row)
                if done in ends and stage.dev:
                    judged = {name: judge(stage.learner, task, split, runtime, options.micro_tokens)
                              for name, split in stage.dev.items()}
                    row["dev"] = scores = {name: some for name, (some, _) in judged.items()}
                    first, metric = next(iter(judged)), task.metrics[0]
                    said = judged[first][1]
                    history.append({"epoch": ends[done], **scores})
                    say(f"{stage.name}, epoch {ends[done]:g}: " + shown(scores))
                    if best is None or scores[first][metric] > best["scores"][first][metric]:
                        best = {"epoch": ends[done], "step": done, "scores": scores}
                append_row(out / "metrics.jsonl", row)
                if stopping or done in ends or done % options.checkpoint_every == 0:
                    save_checkpoint(out / "checkpoint", done, stage.learner, optimizer,
                                    {"scaler": scaler.state_dict(), "best": best, "history": history,
                                     "seconds": seconds + time.perf_counter() - begun})
                keep_best()
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


def check_seeds(out: Path, options: Options) -> None:
    """A run can be resumed with more seeds. Of fewer, the best one's model may be gone: `UserError`."""
    if (out / f"seed-{options.seed + options.seeds}").exists():
        raise UserError(f"the run in {out} has more seeds than --seeds {options.seeds}: "
                        "resume it with as many as it was started with, or more")


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
        check_seeds(out, options)
        check_data(out, options, data)
        weights = check_weights(out, {"model": options.model, "teacher": options.teacher})
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
                                         "data": data, "weights": weights, **describe(runtime)})
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

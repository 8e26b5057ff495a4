"""Fine-tuning and evaluation on GLUE, IMDb, SQuAD or your own CSV, plain or with a teacher.

The file reads top to bottom: options, data, then `main`: one run for each seed, one table at the end.
The losses are one import away, in minibert/finetuning.py; the readers are in minibert/readers.py and
minibert/squad.py.
"""

import dataclasses
import json
import math
import os
import shutil
import signal
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

import minibert
from minibert import metrics, report, squad_data
from minibert.checkpoint import load_checkpoint, save_checkpoint
from minibert.disk import write_json
from minibert.errors import UserError, run_script
from minibert.examples import draw
from minibert.finetuning import TaskWeights, align_labels, patience_layers, task_loss, teacher_outputs
from minibert.heads import Classifier, Span
from minibert.hub import load_config
from minibert.optim import adamw, learning_rate, warmup_steps
from minibert.options import option, parse
from minibert.readers import read_csv, read_csv_splits, read_examples, write_submission
from minibert.run_folder import (append_row, cut_metrics, open_run, read_result, say, stop_requests,
                                 too_many_skips)
from minibert.runtime import PRECISIONS, describe, start
from minibert.step import training_step
from minibert.task_data import (Split, answers_to, baseline, judge, read_transfer, some_of, tokenised,
                                write_errors)
from minibert.task_report import closing_rows, spread_over_seeds
from minibert.tasks import SQUAD, TASKS, Task

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
    dev: str | None = option(None, "held-out csv (default: a tenth of the task's csv, by a hash of the text)")
    teacher: str | None = option(None, "folder of a fine-tuned teacher of the same task")
    method: str = option("kd", "what is learned from the teacher: kd its outputs, pkd also its [CLS] states",
                         choices=("kd", "pkd"))
    alpha: float = option(0.5, "share of the teacher's outputs in the loss; the labels have the rest")
    temperature: float = option(2.0, "temperature of the teacher's outputs")
    beta: float = option(100.0, "weight of the [CLS] states (pkd)")
    patience: str = option("skip", "teacher layers they are taken from (pkd)", choices=("skip", "last"))
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
    evaluate: bool = option(False, "no training: judge --model on the dev set")
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
        if self.transfer and not self.teacher:
            raise UserError("--transfer text has no labels, so it needs a --teacher")
        has_test_set = self.task in TASKS and TASKS[self.task].test_splits
        if self.predict and not has_test_set:
            raise UserError(f"--predict writes a leaderboard's files, and {self.task} has no test set of one")
        if self.dev and self.task in (*TASKS, "squad"):
            raise UserError(f"--dev goes with a csv; {self.task} has a dev set of its own")
        for name in ("seeds", "batch", "train_examples", "micro_tokens", "checkpoint_every", "threads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1")
        if (not 0 <= self.alpha <= 1 or not self.temperature > 0
                or (self.epochs is not None and not self.epochs > 0)):
            raise UserError("--alpha must be in [0, 1], --temperature and --epochs above 0")


MAY_CHANGE = {"resume", "out", "micro_tokens", "precision", "device", "threads", "checkpoint_every",
              "predict"}

# ---------------------------------------------------------------- data


def rows_of_task(options: Options) -> tuple[Task, dict[str, list]]:
    """The task and the rows of its splits: train, the dev splits, and with --predict the test ones."""
    if options.task == "squad":
        files = ({"dev": "dev-v1.1.json"} if options.evaluate
                 else {"train": "train-v1.1.json", "dev": "dev-v1.1.json"})
        folder = Path(options.data) / SQUAD.folder
        folder = folder if folder.is_dir() else Path(options.data)
        for name in files.values():
            if not (folder / name).exists():
                raise UserError(f"{folder / name} does not exist: run python data/download.py squad, "
                                f"or give --data the folder with {SQUAD.download}")
        return SQUAD, {split: squad_data.read_squad(folder / name) for split, name in files.items()}
    if options.task in TASKS:
        task = TASKS[options.task]
        wanted = ([] if options.evaluate else ["train"]) + list(task.dev_splits)
        if options.predict:
            wanted += [name for name in task.test_splits if name != "ax"]
        return task, {split: read_examples(task, options.data, split) for split in wanted}
    if options.evaluate:  # the labels are the model's: a file to judge it on may lack some
        config = load_config(options.model)
        labels = () if config.regression else config.labels
        task = Task(Path(options.task).name, labels, labels, ("pearson", "spearman") if config.regression
                    else ("accuracy", "matthews"), regression=config.regression)
        rows = read_csv(options.dev or options.task, task)[1]
        if rows[0].label is None:
            raise UserError(f"{options.dev or options.task} has no column 'label' or 'score' to judge by")
        return task, {"dev": rows}
    task, train, dev = read_csv_splits(options.task, options.dev)
    return task, {"train": train, "dev": dev}


def read_task(options: Options, tokenizer) -> tuple[Task, dict[str, Split]]:
    """The task with the options' settings in it, and its splits as the model sees them."""
    config = load_config(options.model)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(f"the tokenizer of {options.model} has {tokenizer.vocab_size} pieces, "
                        f"the model only {config.vocab_size}")
    task, rows = rows_of_task(options)
    changed = {name: getattr(options, name) for name in ("batch", "lr", "epochs", "max_length")
               if getattr(options, name) is not None}
    task = dataclasses.replace(task, **changed)
    if task.max_length > config.max_positions:
        raise UserError(f"--max-length {task.max_length} is more than the model's {config.max_positions} "
                        "positions; give a smaller one")
    return task, {name: tokenised(task, some, tokenizer, options.stride) for name, some in rows.items()}


# ---------------------------------------------------------------- models

def load_model(name: str, task: Task, options: Options, seed: int):
    """The model with the task's head:
    kept where the checkpoint has it with the same labels in the same order, or a score as well,
    else new from `seed`.
    """
    torch.manual_seed(seed)
    changed = {"attention_dropout": options.attention_dropout}
    if options.dropout is not None:
        changed["dropout"] = options.dropout
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a head is new is what fine-tuning is about
        if task.name == "squad":
            return minibert.load(name, "span", **changed)
        config = load_config(name)
        fits = config.regression == task.regression and (task.regression or config.labels == task.labels)
        if fits and isinstance(minibert.load(name), Classifier):
            return minibert.load(name, "classification", **changed)
        return minibert.load(name, "classification", labels=task.labels or ("score",),
                             regression=task.regression, **changed)


def load_tuned(name: str, task: Task):
    """A model that was fine-tuned for the task, as it is,
    and for each label of the task its class number there.
    """
    model = minibert.load(name)
    if not isinstance(model, Span if task.name == "squad" else Classifier):
        raise UserError(f"{name} has no head for {task.name}: fine-tune it first")
    if task.name == "squad":
        return model, [0, 1]
    if model.config.regression != task.regression:
        raise UserError(f"{name} predicts {'scores' if model.config.regression else 'classes'}, "
                        f"{task.name} has {'scores' if task.regression else 'classes'}")
    return model, [0] if task.regression else align_labels(model.config.labels, task.labels)


def ask_teacher(options: Options, task: Task, train: Split, tokenizer, runtime):
    """The teacher's outputs on the training examples, by name, in the task's order of classes;
    and PKD's student layers.
    """
    if not options.teacher:
        return {}, []
    student = load_config(options.model)
    teacher, order = load_tuned(options.teacher, task)
    theirs = minibert.load_tokenizer(options.teacher)
    examples = train.examples
    if theirs.sha256 != tokenizer.sha256:
        if task.name == "squad" or options.transfer:
            raise UserError(f"teacher {options.teacher} and model {options.model} "
                            "have different vocabularies")
        examples = tokenised(task, train.rows, theirs, options.stride).examples
    pairs = []
    if options.method == "pkd":
        pairs = patience_layers(student.layers, teacher.config.layers, options.patience)
        if student.hidden_size != teacher.config.hidden_size:
            raise UserError("--method pkd compares states of equal width: "
                            f"{student.hidden_size} against {teacher.config.hidden_size}; "
                            "--method kd does not")
        say("[CLS] states, student layer from teacher layer:", ", ".join(f"{s} from {t}" for s, t in pairs))
    say(f"asking the teacher about {len(examples.lengths):,} examples")
    runtime.hold_frozen(teacher)
    said = teacher_outputs(teacher, examples, runtime, [t for _, t in pairs], options.micro_tokens)
    said["logits"] = said["logits"][:, order]
    return said, [s for s, _ in pairs]


# ---------------------------------------------------------------- one run

def one_seed(seed: int, options: Options, task: Task, splits: dict[str, Split], student, targets, layers,
             tokenizer, runtime, out: Path) -> dict:
    """Fine-tunes with one seed into `out`, keeps the best epoch's model in out/model, returns its scores."""
    train, dev = splits["train"].examples, {name: splits[name] for name in task.dev_splits or ("dev",)}
    first_dev = next(iter(dev))
    n, weights = len(train.lengths), TaskWeights(options.alpha if targets else 0.0, options.temperature,
                                                 options.beta)
    if options.transfer:
        weights = dataclasses.replace(weights, alpha=1.0)
    steps = math.ceil(task.epochs * n / task.batch)
    ends = {min(steps, math.ceil(e * n / task.batch)): e for e in range(1, math.ceil(task.epochs) + 1)}
    student.to(runtime.device).train()
    optimizer, scaler = adamw(student, (0.9, 0.999), 1e-6, options.weight_decay), runtime.scaler()
    done, best, history = 0, None, []
    if (out / "checkpoint").exists():
        state = load_checkpoint(out / "checkpoint", student, optimizer, say)
        if state:
            done, best, history = state["step"], state.get("best"), state.get("history", [])
            if state.get("scaler"):
                scaler.load_state_dict(state["scaler"])
            say(f"seed {seed}: resuming after step {done}")
    if runtime.is_writer:
        out.mkdir(parents=True, exist_ok=True)
        cut_metrics(out / "metrics.jsonl", done)
    progress, skipped = report.Progress(steps, done, runtime.is_writer), 0

    def drawn(step: int):
        return draw(train, targets, step, task.batch, seed, options.micro_tokens, runtime.rank, runtime.ranks)

    with stop_requests() as stop, ThreadPoolExecutor(1) as ahead:
        upcoming = ahead.submit(drawn, done)
        while done < steps:
            begun = time.perf_counter()
            data, upcoming = upcoming.result(), ahead.submit(drawn, done + 1)
            counts = {"hard": max(1, data.labelled), "soft": task.batch, "patience": task.batch}
            lr = learning_rate(done, steps, task.lr, warmup_steps(options.warmup, steps))

            row = training_step(student, partial(task_loss, student, weights, layers, counts),
                                data.micro_batches, counts, optimizer, scaler, runtime, lr, options.clip,
                                bool(stop))
            done += 1

            # under fp16 a skip is how the loss scale settles; it counts once the scale can fall no further
            skipped = skipped + 1 if row["skipped"] and scaler.get_scale() <= 1 else 0
            if skipped == 5:
                raise too_many_skips(skipped, done)
            row = {"step": done, **row, "lr": lr,
                   "tokens_per_second": data.tokens / (time.perf_counter() - begun)}
            stopping = row["stopping"]
            if runtime.is_writer:
                progress(done, row)
                if done in ends:
                    scores = {name: judge(student, task, split, runtime)[0] for name, split in dev.items()}
                    row["dev"] = scores
                    history.append({"epoch": ends[done], **scores})
                    say(f"seed {seed}, epoch {ends[done]}: " + shown(scores))
                    if (best is None or scores[first_dev][task.metrics[0]]
                            > best["scores"][first_dev][task.metrics[0]]):
                        best = {"epoch": ends[done], "step": done, "scores": scores}
                        minibert.save(student, out / "model", tokenizer, card=card_of(options, task))
                append_row(out / "metrics.jsonl", row)
                if stopping or done in ends or done % options.checkpoint_every == 0:
                    save_checkpoint(out / "checkpoint", done, student, optimizer,
                                    {"scaler": scaler.state_dict(), "best": best, "history": history})
            if stopping and done < steps:
                upcoming.cancel()
                say(f"\nstopped after step {done} of seed {seed}; continue with --resume")
                sys.exit(128 + (stop[0] if stop else signal.SIGTERM))
        upcoming.cancel()
    runtime.barrier()
    return {"seed": seed, "best": best, "history": history}


def shown(scores: dict[str, dict[str, float]]) -> str:
    """Scores on one line."""
    return "; ".join((f"{split} " if len(scores) > 1 else "")
                     + ", ".join(f"{name} {value:.2f}" for name, value in some.items())
                     for split, some in scores.items())


def card_of(options: Options, task: Task) -> str:
    """What the model card says."""
    teacher = f" with the teacher `{Path(options.teacher).name}`" if options.teacher else ""
    return (f"Fine-tuned on {task.name} from `{Path(options.model).name}`{teacher} "
            "by `finetune.py` of minibert.")


# ---------------------------------------------------------------- main

def main(argv: list[str] | None = None) -> None:
    """Fine-tunes once for each seed, or only evaluates; shows a table."""
    options = parse(Options, argv, __doc__, EXAMPLES)
    runtime = start(options.device, options.precision, options.threads)
    out = Path(options.out)
    tokenizer = minibert.load_tokenizer(options.model)
    task, splits = read_task(options, tokenizer)
    if options.evaluate:
        return evaluate_only(options, task, splits, runtime)
    if runtime.is_writer:
        open_run(out, options, MAY_CHANGE)
    runtime.barrier()
    labelled_train = splits["train"]
    if options.transfer:
        splits["train"] = read_transfer(task, options.transfer, tokenizer)
    if options.train_examples and options.train_examples < len(splits["train"].examples.lengths):
        splits["train"] = some_of(splits["train"], options.train_examples)
    targets, layers = ask_teacher(options, task, splits["train"], tokenizer, runtime)
    if runtime.is_writer:
        settings = {"batch": task.batch, "lr": task.lr, "epochs": task.epochs, "max_length": task.max_length}
        write_json(out / "config.json", {"options": dataclasses.asdict(options), "task": settings,
                                         **describe(runtime)})
    say(f"{task.name}: {len(splits['train'].examples.lengths):,} examples, {task.epochs} epochs of "
        f"{task.batch} examples a step, lr {task.lr:g}, {runtime.precision} on {runtime.device}")

    results = []
    for seed in range(options.seed, options.seed + options.seeds):
        folder = out / f"seed-{seed}"
        if not (folder / "result.json").exists():
            begun = time.perf_counter()
            result = one_seed(seed, options, task, splits, load_model(options.model, task, options, seed),
                              targets, layers, tokenizer, runtime, folder)
            if runtime.is_writer:
                write_json(folder / "result.json", result | {"seconds": time.perf_counter() - begun})
            runtime.barrier()
        if runtime.is_writer:
            shutil.rmtree(folder / "checkpoint", ignore_errors=True)
            results.append(read_result(folder / "result.json"))
    if runtime.is_writer:
        finish(options, out, task, splits, labelled_train, results, tokenizer, runtime)
    runtime.barrier()
    runtime.leave()


def finish(options: Options, out: Path, task: Task, splits, labelled_train: Split, results: list[dict],
           tokenizer, runtime) -> None:
    """Keeps the best seed's model, writes errors, predictions and summary, and prints the table."""
    dev = {name: splits[name] for name in task.dev_splits or ("dev",)}
    first = next(iter(dev))
    best = max(results, key=lambda result: result["best"]["scores"][first][task.metrics[0]])
    source = out / f"seed-{best['seed']}" / "model"
    if source.exists():
        shutil.rmtree(out / "model", ignore_errors=True)
        os.replace(source, out / "model")
    for result in results:
        shutil.rmtree(out / f"seed-{result['seed']}" / "model", ignore_errors=True)
    model = minibert.load(out / "model").to(runtime.device)
    _, answers = judge(model, task, dev[first], runtime)
    write_errors(out / "errors.tsv", task, dev[first], answers)
    if task.name == "squad":
        squad_data.write_predictions(out, answers)
    elif not task.regression and (constant := metrics.constant_class(answers)) is not None:
        say(f"\nwarning: the model answers {task.labels[constant]!r} to everything; its scores are those "
            "of a constant. A lower --lr, more --epochs or another --seed may help")
    if options.predict:
        write_predictions(out / "predictions", task, splits, model, None, options, tokenizer, runtime)
    rows, summary = [], {"task": task.name, "results": results, "best_seed": best["seed"],
                         "model": str(out / "model")}
    for name, split in dev.items():
        constant, teacher_scores = baseline(task, labelled_train, split), None
        if options.teacher:
            teacher, order = load_tuned(options.teacher, task)
            own = tokenised(task, split.rows, minibert.load_tokenizer(options.teacher), options.stride)
            teacher_scores = judge(runtime.hold_frozen(teacher), task, own, runtime, order)[0]
        spread = spread_over_seeds(task, name, results)
        summary[name] = {**spread, "baseline": constant, "teacher": teacher_scores}
        rows += closing_rows(task, name, spread, len(results), constant, teacher_scores)
    say("\n" + report.table(rows, f"{task.name}: {', '.join(task.metrics)} in percent, "
                            f"{len(dev[first].rows):,} dev examples"))
    write_json(out / "summary.json", summary | {"table": rows})
    say(f"\nthe best seed's model is in {out / 'model'}, its errors in {out / 'errors.tsv'}")


def write_predictions(folder: Path, task: Task, splits, model, order: list[int] | None, options: Options,
                      tokenizer, runtime) -> None:
    """The leaderboard's file of every test split; for MNLI also that of AX, where its file is there."""
    some = {name: splits[name] for name in task.test_splits if name in splits}
    if "ax" in task.test_splits:
        try:
            some["ax"] = tokenised(task, read_examples(task, options.data, "ax"), tokenizer, options.stride)
        except UserError as error:
            say(f"no predictions for AX: {error}")
    for name, split in some.items():
        answers = answers_to(model, task, split, runtime, order)
        say("predictions:", write_submission(folder, task, name, answers))


def evaluate_only(options: Options, task: Task, splits, runtime) -> None:
    """Judges --model on the dev splits and prints the scores."""
    model, order = load_tuned(options.model, task)
    model.to(runtime.device)
    scores = {}
    for name in task.dev_splits or ("dev",):
        scores[name], answers = judge(model, task, splits[name], runtime, order)
        say(f"{options.model} on {task.name}, {name}: {shown({name: scores[name]})}")
        if (task.name != "squad" and not task.regression
                and (constant := metrics.constant_class(answers)) is not None):
            say(f"warning: the model answers {task.labels[constant]!r} to everything")
    if options.predict:
        tokenizer = minibert.load_tokenizer(options.model)
        write_predictions(Path(options.out) / "predictions", task, splits, model, order, options, tokenizer,
                          runtime)
    say(json.dumps({"model": options.model, "task": task.name, "scores": scores}))


if __name__ == "__main__":
    run_script(main)

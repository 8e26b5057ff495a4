"""How a fine-tuning ends: the best seed's model, its errors and predictions, and the closing table of
a constant, the teacher, the model and published figures.

`options` are those of finetune.py.
"""

import json
import os
import shutil
import statistics
from pathlib import Path

import minibert
from minibert.common.console import say, table
from minibert.common.disk import write_json
from minibert.common.errors import UserError
from minibert.hub.weight_files import read_safetensors
from minibert.tasks import metrics, squad
from minibert.tasks.models import load_tuned
from minibert.tasks.official_files import read_examples, write_submission
from minibert.tasks.specs import Task
from minibert.tasks.splits import Split, answers_of, ask, baseline, dev_of, judge, tokenised, write_errors

OUTPUTS = "dev-outputs.safetensors"  # what the kept model says of the dev split that decides


def spread_over_seeds(task: Task, split: str, results: list[dict]) -> dict[str, dict[str, float]]:
    """Median, lowest and highest of each metric over the seeds, each seed at its best epoch."""
    values = {metric: [result["best"]["scores"][split][metric] for result in results]
              for metric in task.metrics}
    return {name: {metric: take(some) for metric, some in values.items()}
            for name, take in (("median", statistics.median), ("lowest", min), ("highest", max))}


def closing_rows(task: Task, split: str, spread: dict[str, dict[str, float]], seeds: int,
                 constant: dict[str, float] | None, teacher: dict[str, float] | None) -> list[dict[str, str]]:
    """The rows of one dev split; scores in percent, None where there is no such row."""
    suffix = f" ({split})" if len(task.dev_splits) > 1 else ""

    def row(name: str, scores: dict[str, float]) -> dict[str, str]:
        return {"model": name + suffix,
                **{metric: f"{scores[metric]:.2f}" if metric in scores else "-" for metric in task.metrics}}

    rows = []
    if constant is not None:
        rows.append(row("mean score" if task.regression else "majority class", constant))
    if teacher is not None:
        rows.append(row("teacher", teacher))
    over = "one seed" if seeds == 1 else f"median of {seeds} seeds"
    rows.append(row(f"this model, {over}", spread["median"]))
    if seeds > 1:
        rows.append({"model": "  lowest to highest" + suffix,
                     **{metric: f"{spread['lowest'][metric]:.2f} to {spread['highest'][metric]:.2f}"
                        for metric in task.metrics}})
    figures: dict[str, dict[str, float]] = {}
    for known in task.published:
        if known.split in ("dev", split):
            name = f"{known.model}, published [{known.source.split(',')[0].split(':')[0]}]"
            name += "" if known.metric else ", metric not stated"
            figures.setdefault(name, {})[known.metric or task.metrics[0]] = known.value
    return rows + [row(name, scores) for name, scores in figures.items()]


def shown(scores: dict[str, dict[str, float]]) -> str:
    """Scores on one line."""
    return "; ".join((f"{split} " if len(scores) > 1 else "")
                     + ", ".join(f"{name} {value:.2f}" for name, value in some.items())
                     for split, some in scores.items())


def finish(options, out: Path, task: Task, splits: dict[str, Split], results: list[dict],
           teacher_scores: dict[str, dict[str, float]], tokenizer, runtime) -> None:
    """Keeps the best seed's model, writes errors, predictions and summary, and prints the table.

    The teacher's scores are by dev split; none without a teacher.
    """
    dev = dev_of(task, splits)
    first = next(iter(dev))
    best = max(results, key=lambda result: result["best"]["scores"][first][task.metrics[0]])
    source = out / f"seed-{best['seed']}"
    if (source / OUTPUTS).exists():
        os.replace(source / OUTPUTS, out / OUTPUTS)
    if (source / "model").exists():
        shutil.rmtree(out / "model", ignore_errors=True)
        os.replace(source / "model", out / "model")
    for result in results:
        shutil.rmtree(out / f"seed-{result['seed']}" / "model", ignore_errors=True)
        (out / f"seed-{result['seed']}" / OUTPUTS).unlink(missing_ok=True)
    answers = answers_of(task, dev[first], read_safetensors(out / OUTPUTS)["outputs"].numpy())
    write_errors(out / "errors.tsv", task, dev[first], answers)
    if task.name == "squad":
        squad.write_predictions(out, answers)
    elif not task.regression and (constant := metrics.constant_class(answers)) is not None:
        say(f"\nwarning: the model answers {task.labels[constant]!r} to everything; its scores are those "
            "of a constant. More --epochs, another --lr (higher for a small model) or --seed may help")
    if options.predict:
        model = minibert.load(out / "model").to(runtime.device)
        write_predictions(out / "predictions", task, splits, model, None, options, tokenizer, runtime)
    rows, summary = [], {"task": task.name, "results": results, "best_seed": best["seed"],
                         "model": str(out / "model")}
    for name, split in dev.items():
        constant, theirs = baseline(task, splits["train"], split), teacher_scores.get(name)
        spread = spread_over_seeds(task, name, results)
        summary[name] = {**spread, "baseline": constant, "teacher": theirs}
        rows += closing_rows(task, name, spread, len(results), constant, theirs)
    held_out = not (task.splits or task.name == "squad" or options.dev)
    say("\n" + table(rows, f"{task.name}: {', '.join(task.metrics)} in percent, "
                     f"{len(dev[first].rows):,} dev examples"
                     + ", a tenth of the file, held out" * held_out))
    write_json(out / "summary.json", summary | {"table": rows})
    say(f"\nthe best seed's model is in {out / 'model'}, its errors in {out / 'errors.tsv'}")


def write_predictions(folder: Path, task: Task, splits, model, order: list[int] | None, options,
                      tokenizer, runtime) -> None:
    """The leaderboard's file of every test split; for MNLI also that of AX, where its file is there."""
    some = {name: splits[name] for name in task.test_splits if name in splits}
    if "ax" in task.test_splits:
        try:
            some["ax"] = tokenised(task, read_examples(task, options.data, "ax"), tokenizer, options.stride)
        except UserError as error:
            say(f"no predictions for AX: {error}")
    for name, split in some.items():
        said = ask(model, split, runtime, options.micro_tokens, f"predicting {name}")
        answers = answers_of(task, split, said, order)
        say("predictions:", write_submission(folder, task, name, answers))


def evaluate_only(options, task: Task, splits, runtime) -> None:
    """Judges --model on the dev splits, or all rows of a csv, and prints the scores."""
    model, order = load_tuned(options.model, task)
    model.to(runtime.device)
    scores = {}
    for name, split in splits.items():
        if name in task.test_splits:
            continue
        scores[name], out = judge(model, task, split, runtime, options.micro_tokens, order)
        say(f"{options.model} on {task.name}, {name} ({len(split.rows):,}): {shown({name: scores[name]})}")
        if (task.name != "squad" and not task.regression
                and (constant := metrics.constant_class(answers_of(task, split, out, order))) is not None):
            say(f"warning: the model answers {task.labels[constant]!r} to everything")
    if options.predict:
        tokenizer = minibert.load_tokenizer(options.model)
        write_predictions(Path(options.out) / "predictions", task, splits, model, order, options, tokenizer,
                          runtime)
    say(json.dumps({"model": options.model, "task": task.name, "scores": scores}))

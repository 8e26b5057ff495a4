"""Keeps the model of the best seed, and makes the final table of finetune.py."""

import math
import os
import shutil
import statistics
from pathlib import Path

from minibert.tasks.specs import Task
from minibert.tasks.splits import Split, baseline

OUTPUTS = "dev-outputs.safetensors"  # the file with the outputs of the best model on the first dev split


def rank(scores: dict[str, float], metric: str) -> float:
    """Returns the value by which the best epoch and the best seed are chosen: `scores[metric]`, or -inf if
    this score is NaN.
    """
    return -math.inf if math.isnan(scores[metric]) else scores[metric]


def spread_over_seeds(task: Task, split: str, results: list[dict]) -> dict[str, dict[str, float]]:
    """Returns a dict with the entries "median", "lowest" and "highest". Each entry is a dict from the task's
    metrics to the median, lowest or highest value over all seeds. Each seed counts with its best epoch.
    """
    values = {metric: [result["best"]["scores"][split][metric] for result in results]
              for metric in task.metrics}
    return {name: {metric: take(scores) for metric, scores in values.items()}
            for name, take in (("median", statistics.median), ("lowest", min), ("highest", max))}


def closing_rows(task: Task, split: str, found: dict[str, dict[str, float] | None], seeds: int
                 ) -> list[dict[str, str]]:
    """Returns the rows of the final table for one dev split. A row is a dict from column names to texts.
    `found` is a dict with the scores on this split (see `summarise`).
    """
    suffix = f" ({split})" if len(task.dev_splits) > 1 else ""

    def row(name: str, scores: dict[str, float]) -> dict[str, str]:
        return {"model": name + suffix,
                **{metric: f"{scores[metric]:.2f}" if metric in scores else "-" for metric in task.metrics}}

    over = "one seed" if seeds == 1 else f"median of {seeds} seeds"
    rows = [row(name, scores) for name, scores in (
        ("mean score" if task.kind == "score" else "majority class", found["baseline"]),
        ("teacher", found["teacher"]), (f"this model, {over}", found["median"])) if scores is not None]
    if seeds > 1:
        rows.append({"model": "  lowest to highest" + suffix,
                     **{metric: f"{found['lowest'][metric]:.2f} to {found['highest'][metric]:.2f}"
                        for metric in task.metrics}})
    figures: dict[str, dict[str, float]] = {}
    for known in task.published:
        name = f"{known.model}, published [{known.source.split(',')[0].split(':')[0]}]"
        name += "" if known.metric else ", metric not stated"
        figures.setdefault(name, {})[known.metric or task.metrics[0]] = known.value
    return rows + [row(name, scores) for name, scores in figures.items()]


def on_one_line(scores: dict[str, dict[str, float]]) -> str:
    """Returns the scores of all splits and metrics in one line of text."""
    return "; ".join((f"{split} " if len(scores) > 1 else "")
                     + ", ".join(f"{name} {value:.2f}" for name, value in one.items())
                     for split, one in scores.items())


def keep_best_seed(out: Path, results: list[dict], split: str, metric: str) -> int:
    """Returns the best seed: the seed with the highest `metric` on the dev split `split`. Moves the model and
    the file `OUTPUTS` of the best seed to the folder `out`. Removes the models and the files `OUTPUTS` of the
    other seeds.
    """
    best = max(results, key=lambda result: rank(result["best"]["scores"][split], metric))["seed"]
    source = out / f"seed-{best}"
    if (source / OUTPUTS).exists():
        os.replace(source / OUTPUTS, out / OUTPUTS)
    if (source / "model").exists():
        shutil.rmtree(out / "model", ignore_errors=True)
        os.replace(source / "model", out / "model")
    for result in results:
        shutil.rmtree(out / f"seed-{result['seed']}" / "model", ignore_errors=True)
        (out / f"seed-{result['seed']}" / OUTPUTS).unlink(missing_ok=True)
    return best


def summarise(task: Task, dev: dict[str, Split], train: Split, results: list[dict],
              teacher_scores: dict[str, dict[str, float]]) -> tuple[dict, list[dict]]:
    """Returns a tuple: a dict from the name of each dev split to its scores, and the rows of the final table
    (see `closing_rows`).

    The scores of a split are a dict with the entries "median", "lowest" and "highest" (over all seeds),
    "baseline" (of a constant answer; None for SQuAD) and "teacher" (None without a teacher). Each entry is a
    dict from the task's metrics to values.
    """
    found, rows = {}, []
    for name, split in dev.items():
        found[name] = {**spread_over_seeds(task, name, results), "baseline": baseline(task, train, split),
                       "teacher": teacher_scores.get(name)}
        rows += closing_rows(task, name, found[name], len(results))
    return found, rows

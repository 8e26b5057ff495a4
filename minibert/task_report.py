"""The closing table of a fine-tuning: a constant, the teacher, the model, published figures."""

import statistics

from minibert.tasks import Task


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

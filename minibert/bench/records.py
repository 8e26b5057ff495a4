"""Reads the folders of finished runs of train.py and finetune.py."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from minibert.common.disk import read_json
from minibert.common.errors import UserError
from minibert.tasks.specs import TASKS
from minibert.training.run_folder import rows_up_to


class TrainRun(NamedTuple):
    """A run of train.py. `held_out` is a dict from models to their scores on held-out text. The models are
    "student, initial", "student, trained" and, if there is a teacher, "teacher".
    """
    folder: Path
    options: dict
    machine: str
    tokens: int
    seconds: float  # the time of the steps, without preparation and evaluation
    curve: list[tuple[int, dict]]  # (tokens so far, held-out scores) for each evaluation during training
    held_out: dict[str, dict]
    table: list[dict]  # sizes and speeds of the models, from `summary.comparison`


class TuneRun(NamedTuple):
    """A run of finetune.py. `scores` is measured on the first dev split, at the best epoch of each seed."""
    folder: Path
    options: dict
    machine: str
    task: str
    settings: dict  # the values of train_examples (None: all), epochs, batch, lr and max_length
    scores: dict[str, list[float]]  # for each metric, a list with one value in percent for each seed
    seconds: float  # the sum of the training times of all seeds
    baseline: dict[str, float] | None  # the scores of a constant prediction; None for SQuAD

    @property
    def start(self) -> str:
        """The folder or hub name of the model from which fine-tuning started. If the model was made
        from layers of the teacher, the value is for example "cut to 4 layers".
        """
        layers, numbers = self.options.get("layers"), self.options.get("layer_map")
        return self.options["model"] or f"cut to {f'{layers} layers' if layers else f'layers {numbers}'}"

    @property
    def values(self) -> list[float]:
        """For each seed, the value of the first metric."""
        return next(iter(self.scores.values()))

    @property
    def part(self) -> tuple[int | None, int]:
        """The number of training examples (None: all), and the maximum length of an example in tokens."""
        return self.settings["train_examples"], self.settings["max_length"]


def read_runs(folders: Iterable[str], without: Iterable[str] = ()
              ) -> tuple[list[TrainRun], list[TuneRun], list[Path]]:
    """Reads all runs in `folders` and their subfolders, except the runs in the folders `without`. Returns
    three lists: the finished trainings, the finished fine-tunings, and the folders of unfinished runs. Raises
    `UserError` if one of `folders` has no run, or if the files of a run are damaged.
    """
    left_out = {Path(name).resolve() for name in without}
    found = dict.fromkeys(folder for name in folders for folder in _run_folders(name))
    found = [folder for folder in found if not left_out & {folder.resolve(), *folder.resolve().parents}]
    runs = [read_run(folder) for folder in found if (folder / "summary.json").exists()]
    return ([run for run in runs if isinstance(run, TrainRun)],
            [run for run in runs if isinstance(run, TuneRun)],
            [folder for folder in found if not (folder / "summary.json").exists()])


def _run_folders(name: str) -> Iterator[Path]:
    """Yields `name` if it is a run folder, otherwise all run folders below `name`. Raises `UserError` if
    there is no run folder.
    """
    found = False
    for place, below, files in os.walk(name):
        below.sort()
        path = Path(place, "config.json")
        if "config.json" in files and "options" in read_json(path):  # a model's config.json has no "options"
            found = True
            below.clear()
            yield Path(place)
    if not found:
        raise UserError(f"there is no run in {name} or its subfolders: give --out folders of train.py or "
                        "finetune.py")


def read_run(folder: Path) -> TrainRun | TuneRun:
    """Reads the finished run in `folder`. Raises `UserError` if its files are damaged."""
    config, summary = read_json(folder / "config.json"), read_json(folder / "summary.json")
    try:
        read = _read_tune if "task" in config["options"] else _read_train
        return read(folder, config, summary)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, StopIteration) as error:
        raise UserError(f"the run in {folder} is damaged, or another version of minibert made it ({error!r})"
                        ) from None


def _read_train(folder: Path, config: dict, summary: dict) -> TrainRun:
    rows = rows_up_to(folder / "metrics.jsonl")
    seen = [0, *(row["tokens"] for row in rows)]
    seconds = sum((row["tokens"] - before) / row["tokens_per_second"] for before, row in zip(seen, rows))
    curve = [(row["tokens"], row["held_out"]) for row in rows if "held_out" in row]
    return TrainRun(folder, config["options"], _machine(config), summary["tokens"], seconds, curve,
                    summary.get("held_out", {}), summary.get("table", []))


def _read_tune(folder: Path, config: dict, summary: dict) -> TuneRun:
    options, results = config["options"], summary["results"]
    known = TASKS.get(options["task"])
    # the task name of a csv file includes its folder, because a/train.csv and b/train.csv are two tasks
    task = known.name if known else "/".join(Path(options["task"]).parts[-2:])
    split = next(iter(results[0]["best"]["scores"]))  # the first split, on which the best epoch is chosen
    each = [result["best"]["scores"][split] for result in results]
    settings = {"train_examples": options.get("train_examples"),
                **{name: config["task"][name] for name in ("epochs", "batch", "lr", "max_length")}}
    scores = {metric: [one[metric] for one in each] for metric in (known.metrics if known else each[0])}
    return TuneRun(folder, options, _machine(config), task, settings, scores,
                   sum(result["seconds"] for result in results), summary[split].get("baseline"))


def _machine(config: dict) -> str:
    names = " and ".join(dict.fromkeys([config["device"], config["cpu"]]))
    return (f"{names}, {config['cores']} cores, --threads {config['threads']}, {config['ranks']} x "
            f"{config['precision']}, torch {config['torch']}, minibert {config['minibert']}")

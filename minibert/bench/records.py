"""Reads the run folders of train.py and finetune.py, and finds the command line of each run."""

import contextlib
import json
import os
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from minibert.common.disk import read_json, read_text
from minibert.common.errors import UserError
from minibert.common.options import unread
from minibert.tasks import options as finetune_options
from minibert.tasks.specs import TASKS
from minibert.training import options as train_options

SMOKE_TOKENS = 5_000_000  # with fewer tokens, a training tests the code but not the quality of a method


class TrainRun(NamedTuple):
    """A run of train.py. `held_out` has scores of "teacher", "student, initial" and "student, trained"."""
    folder: Path
    options: dict
    machine: dict  # the result of runtime.describe
    steps: int  # the planned number of steps
    done: int  # the number of finished steps
    tokens: int
    seconds: float  # the time of the steps, without preparing the corpus and evaluating
    curve: list[tuple[int, dict]]  # (tokens seen, held-out scores) during the training
    held_out: dict[str, dict]
    table: list[dict]  # the rows of `summary.comparison`: sizes and speed
    finished: bool

    @property
    def trained(self) -> bool:
        """Whether the student was trained. With `--lr 0` it only has copied layers of its teacher."""
        return self.options["lr"] != 0

    @property
    def is_smoke(self) -> bool:
        """Whether this training had too few tokens to show the quality of its method."""
        return self.trained and self.tokens < SMOKE_TOKENS


class TuneRun(NamedTuple):
    """A run of finetune.py. It has the scores of the finished seeds on the first dev split, each at its best
    epoch.
    """
    folder: Path
    options: dict
    machine: dict
    task: str
    settings: dict  # the values of epochs, batch, lr and max_length that the run used
    scores: dict[str, list[float]]  # metric -> one value for each seed, in percent; the deciding metric first
    seconds: float  # the time of all seeds, over all sessions of the run
    baseline: dict[str, float] | None  # the scores of a constant prediction
    finished: bool

    @property
    def start(self) -> str:
        """The model that was fine-tuned: a folder, a hub name, or copied layers of the teacher."""
        layers = self.options.get("layers") or len((self.options.get("layer_map") or "").split(","))
        return self.options["model"] or f"{self.options['teacher']} cut to {layers} layers"

    @property
    def values(self) -> list[float]:
        """The values of the metric that decides, one for each finished seed."""
        return next(iter(self.scores.values()), [])

    @property
    def part(self) -> tuple[int | None, int]:
        """Which part of the task the run used: the number of training examples (None: all), and the maximum
        length of an example in tokens.
        """
        return self.options.get("train_examples"), self.settings["max_length"]


def read_runs(folders: Iterable[str],
              without: Iterable[str] = ()) -> tuple[list[TrainRun], list[TuneRun]]:
    """Reads all runs in these folders and their subfolders, except the runs in the folders of `without`.

    The runs are in the order of their paths. Raises `UserError` if a folder has no run, or if the files of a
    run are damaged.
    """
    train, tune = [], []
    left_out = {Path(name).resolve() for name in without}
    for folder in dict.fromkeys(found for name in folders for found in _run_folders(name)):
        if left_out & {folder.resolve(), *folder.resolve().parents}:
            continue
        run = read_run(folder)
        (train if isinstance(run, TrainRun) else tune).append(run)
    return train, tune


def read_run(folder: Path) -> TrainRun | TuneRun:
    """Reads the run in `folder`. The run may be unfinished."""
    config, summary = read_json(folder / "config.json"), None
    if (folder / "summary.json").exists():
        summary = read_json(folder / "summary.json")
    with _damage(folder / "config.json"):
        options = config["options"]
        read = _read_tune if "task" in options else _read_train
    return read(folder, config, summary)


def _machine(config: dict) -> dict:
    return {key: value for key, value in config.items() if key not in ("options", "student", "task", "steps")}


def _read_train(folder: Path, config: dict, summary: dict | None) -> TrainRun:
    with _damage(folder / "config.json"):
        steps, _ = int(config["steps"]), config["options"]["lr"]
    rows = _metrics(folder / "metrics.jsonl")
    with _damage(folder / "metrics.jsonl"):
        seen = [row["tokens"] for row in rows]
        seconds = sum((now - before) / row["tokens_per_second"]
                      for row, before, now in zip(rows, [0, *seen], seen))
        curve = [(row["tokens"], row["held_out"]) for row in rows if "held_out" in row]
        done, tokens = (rows[-1]["step"], seen[-1]) if rows else (0, 0)
    with _damage(folder / "summary.json"):
        held_out, table = {}, []
        if summary is not None:
            tokens, held_out, table = summary["tokens"], summary.get("held_out", {}), summary.get("table", [])
            for scores in held_out.values():
                sum(value for value in scores.values() if value is not None)
            for row in table:
                row["model"], row["layers"], row["fp32 MB"]
                float(row["parameters"].removesuffix("M")), float(row["encoder tok/s"].replace(",", ""))
    return TrainRun(folder, config["options"], _machine(config), steps, done, tokens, seconds, curve,
                    held_out, table, summary is not None)


def _read_tune(folder: Path, config: dict, summary: dict | None) -> TuneRun:
    options, path = config["options"], folder / "summary.json" if summary else folder
    known = TASKS.get(options["task"])
    if summary is None:
        results = [read_json(path) for path in sorted(folder.glob("seed-*/result.json"))]
    with _damage(path):
        if summary is not None:
            results = summary["results"]
            split = next(iter(results[0]["best"]["scores"]))  # the score on the first dev split decides
            baseline = summary[split].get("baseline")
        else:
            baseline = None
        settings = {name: config["task"][name] for name in ("epochs", "batch", "lr", "max_length")}
        each = [next(iter(result["best"]["scores"].values())) for result in results]
        metrics = known.metrics if known else tuple(each[0]) if each else ()
        scores = {metric: [float(some[metric]) for some in each] for metric in metrics}
        seconds = sum(float(result["seconds"]) for result in results)
    # the name of a csv file includes its folder, because a/train.csv and b/train.csv are two tasks
    task = known.name if known else "/".join(Path(options["task"]).parts[-2:])
    return TuneRun(folder, options, _machine(config), task, settings, scores, seconds, baseline,
                   summary is not None)


def _run_folders(name: str) -> Iterator[Path]:
    """The run folders in the folder `name`, which may be a run itself. Folders in a run are not searched."""
    found = False
    for place, below, files in os.walk(name):
        below.sort()
        path = Path(place, "config.json")
        if "config.json" in files and "options" in read_json(path):  # that of a model has no "options"
            found = True
            below.clear()
            yield Path(place)
    if not found:
        raise UserError(f"there is no run in {name} or below: give folders that train.py or finetune.py made")


def _metrics(path: Path) -> list[dict]:
    """The rows of metrics.jsonl. A killed run may have an incomplete last line, which is left out."""
    if not path.exists():
        return []
    lines = read_text(path).splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            if number < len(lines):
                raise UserError(f"{path}, line {number}: not valid json; the run is damaged") from None
    return rows


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Changes an error from a missing or wrong part of a run's file into a `UserError` of one sentence."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"{path} is damaged or of another version: {error} is missing") from None
    except (TypeError, ValueError, AttributeError, IndexError, StopIteration, ZeroDivisionError) as error:
        raise UserError(f"{path} is damaged or of another version ({error})") from None


# ---------------------------------------------------------------- its command

def module_of(name: str) -> ModuleType:
    """The module that defines the options of train.py or finetune.py."""
    return {"train": train_options, "finetune": finetune_options}[name]


def options_of(script: str) -> dict:
    """The options of a script, with their defaults."""
    return {field.name: field.default for field in fields(module_of(script).Options)}


def differing(script: str, options: dict) -> dict:
    """The options of a run that differ from the defaults of the script, or from those of its method.

    Options that its method does not read are left out.
    """
    method, module = options.get("method"), module_of(script)
    skipped = {"resume", *unread(module.Options, options)}
    if script == "finetune" and not options.get("teacher"):
        skipped |= set(module.TEACHING)
    defaults = options_of(script) | module.METHOD_DEFAULTS.get(method, {})
    return {name: value for name, value in options.items() if name not in skipped and (
            name not in defaults or (tuple(value) if isinstance(value, list) else value) != defaults[name])}


def words(name: str, value, renamed: Callable[[str], str]) -> str:
    """An option and its value, as a part of a command line."""
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    values = value if isinstance(value, list) else [value]
    return shlex.join([f"--{name}", *(renamed(str(word)) for word in values)])


def run_command(script: str, run: TrainRun | TuneRun, renamed: Callable[[str], str]) -> str:
    """The command line that makes the run, from its config.json.

    Options that only another version of the script knows are in a comment at the end.
    """
    known, given, said = options_of(script), differing(script, run.options), [f"python {script}.py"]
    said += [words(name, value, renamed) for name, value in given.items() if name in known]
    other = [f"{name} {value}" for name, value in given.items() if name not in known]
    return " ".join(said) + (f"  # of another version: {', '.join(other)}" if other else "")

"""The command line of a run, made from its config.json. It has only the options that are not defaults."""

import shlex
from collections.abc import Callable
from dataclasses import fields
from types import ModuleType

from minibert.bench.records import TrainRun, TuneRun
from minibert.common.options import unread
from minibert.tasks import options as finetune_options
from minibert.training import options as train_options


def module_of(name: str) -> ModuleType:
    """The module that defines the options of train.py or finetune.py."""
    return {"train": train_options, "finetune": finetune_options}[name]


def options_of(script: str) -> dict:
    """The options of a script and their defaults."""
    return {field.name: field.default for field in fields(module_of(script).Options)}


def differing(script: str, options: dict) -> dict:
    """The options of a run that are not the script's defaults, those of its method among them;
    what its method does not read is left out.
    """
    method, module = options.get("method"), module_of(script)
    skipped = {"resume", *unread(module.Options, options)}
    if script == "finetune" and not options.get("teacher"):
        skipped |= set(module.TEACHING)
    defaults = options_of(script) | module.METHOD_DEFAULTS.get(method, {})
    return {name: value for name, value in options.items() if name not in skipped and (
            name not in defaults or (tuple(value) if isinstance(value, list) else value) != defaults[name])}


def words(name: str, value, renamed: Callable[[str], str]) -> str:
    """An option as it is typed."""
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    values = value if isinstance(value, list) else [value]
    return shlex.join([f"--{name}", *(renamed(str(word)) for word in values)])


def command(script: str, run: TrainRun | TuneRun, renamed: Callable[[str], str]) -> str:
    """The command line that makes the run, from its config.json;
    options of another version as a comment.
    """
    known, given, said = options_of(script), differing(script, run.options), [f"python {script}.py"]
    said += [words(name, value, renamed) for name, value in given.items() if name in known]
    other = [f"{name} {value}" for name, value in given.items() if name not in known]
    return " ".join(said) + (f"  # of another version: {', '.join(other)}" if other else "")

"""Command-line options from a frozen dataclass: one field, one option, one help line."""

import argparse
import dataclasses
import math
import types
import typing
from collections.abc import Callable

from minibert.common.errors import UserError


def option(default, help: str, choices=None):
    """A dataclass field that is a command-line option."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def parse(cls, argv: list[str] | None, description: str, epilog: str, prog: str | None = None):
    """An instance of the dataclass `cls` from the command line;
    unknown options and wrong types end with exit code 2.

    `bool` fields are flags (--x, --no-x), `tuple[T, ...]` fields take several values,
    `T | None` fields may be left out. `prog` is what the usage line is headed by.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description, epilog=epilog, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name, kind, extra = "--" + field.name.replace("_", "-"), hints[field.name], {}
        if isinstance(kind, types.UnionType):
            kind = next(k for k in typing.get_args(kind) if k is not type(None))
        if typing.get_origin(kind) is tuple:
            kind, extra = typing.get_args(kind)[0], {"nargs": "+"}
        if kind is bool:
            extra = {"action": argparse.BooleanOptionalAction}
        else:
            extra |= {"type": kind, "metavar": None if field.metadata["choices"] else kind.__name__.upper(),
                      "choices": field.metadata["choices"]}
        default = " ".join(field.default) if isinstance(field.default, tuple) else field.default
        shown = "" if default in (None, "", False) else f" (default: {default})"
        parser.add_argument(name, default=field.default,
                            help=field.metadata["help"].replace("%", "%%") + shown, **extra)
    values = vars(parser.parse_args(argv))
    return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def at_least_one(options, *names: str) -> None:
    """`UserError` where one of these options is given and below 1."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {value}")


def within(options, low: float, high: float, *names: str, open_low: bool = False,
           open_high: bool = False) -> None:
    """`UserError` where one of these options is given and is no number from `low` to `high`.

    `open_low`, `open_high`: nor that end itself, as is always so of infinity.
    """
    open_high = open_high or high == math.inf
    upper = "finite" if high == math.inf else f"{'below' if open_high else 'at most'} {high:g}"
    for name in names:
        value = getattr(options, name)
        if not (value is None or low < value < high or value == low and not open_low
                or value == high and not open_high):
            lower = f"{'above' if open_low else 'at least'} {low:g}"
            raise UserError(f"--{name.replace('_', '-')} must be {lower} and {upper}, not {value:g}")


def only_for(options, readers: dict[str, tuple[str, ...]]) -> None:
    """`UserError` where an option is given that --method does not read; `readers` are the methods that do."""
    for name, methods in readers.items():
        given = getattr(options, name) not in (None, ()) and getattr(options, name) is not False  # 0 == False
        if given and options.method not in methods:
            raise UserError(f"--{name.replace('_', '-')} goes with --method {' or '.join(methods)}, "
                            f"not with {options.method}")


def numbers(option: str, text: str, kind: Callable = int) -> list:
    """The numbers of an option like 0,2,5."""
    try:
        return [kind(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text} is not a list of numbers as 0,2,5") from None


def dropouts(options) -> dict[str, float]:
    """The fields of a `Config` that --dropout and --attention-dropout change."""
    changed = {"attention_dropout": options.attention_dropout}
    return changed if options.dropout is None else changed | {"dropout": options.dropout}


def term_weights(given: tuple[str, ...], terms: tuple[str, ...], method: str) -> dict[str, float]:
    """The weights that --weights TERM=WEIGHT ... gives to some of a method's terms."""
    weights = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            weights[name] = float(value)
        except ValueError:
            raise UserError(f"--weights {text} is not of the form TERM=WEIGHT") from None
        if name not in terms or not 0 <= weights[name] < math.inf:
            raise UserError(f"--weights {text}: the terms of {method} are {', '.join(terms) or 'none'}, "
                            "and a weight is at least 0")
    return weights

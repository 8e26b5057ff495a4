"""Makes command-line options from the fields of a frozen dataclass.

An option can depend on another option. For example, `--imitate` has an effect only with `--method tinybert`.
With any other method, `--help` does not show `--imitate`, and the use of `--imitate` is an error.
"""

import argparse
import dataclasses
import math
import types
import typing

from minibert.common.errors import UserError


def option(default, help: str, choices=None, metavar: str | None = None, group: str | None = None,
           only_with: dict[str, tuple] | None = None):
    """Makes a dataclass field that is a command-line option.

    `metavar` stands for the value in the help. `group` is a heading in the help, above this option. The
    options after this option stand under the same heading, until an option has another `group`. With
    {"method": ("tinybert",)} as `only_with`, the option has an effect only if --method is tinybert. If
    `only_with` has several keys, the option has an effect only if all of these conditions are true.
    """
    return dataclasses.field(default=default, metadata={
        "help": help, "choices": choices, "metavar": metavar, "group": group, "only_with": only_with or {}})


@dataclasses.dataclass(frozen=True)
class MachineOptions:
    """The options for the machine on which a script runs."""

    micro_tokens: int = option(
        4096, "largest number of tokens in one forward pass of a rank; a smaller number needs less memory. "
              "Another number changes the results only by rounding and by the random numbers of dropout",
        metavar="TOKENS", group="machine")
    precision: str = option(
        "auto", "precision of matrix products; auto: bf16 on hardware that multiplies bf16, fp16 on other "
                "GPUs, and fp32 on other CPUs",
        # These are "auto" and the keys of PRECISIONS in runtime.py. The keys are written again, because the
        # import of runtime.py would import torch.
        choices=("auto", "fp32", "bf16", "fp16"))
    device: str = option("auto", "device, for example cpu, cuda or cuda:1; auto: a GPU if there is one",
                         metavar="DEVICE")
    threads: int | None = option(None, "number of CPU threads (default: torch's choice)", metavar="THREADS")

    def __post_init__(self):
        at_least_one(self, "micro_tokens", "threads")


def parse(cls, argv: list[str] | None, description: str, epilog: str, prog: str | None = None,
          defaults: dict[str, dict[str, dict]] | None = None):
    """Reads the command line and returns an instance of the dataclass `cls`.

    A `bool` field `x` becomes the flags --x and --no-x. A `tuple[T, ...]` field takes one or more values. If
    the default of a field is None and the type of the field is not `T | None`, its option is required.

    `defaults` has the defaults that depend on another option. Only the help uses `defaults`. With
    {"method": {"tinybert": {"lr": 1e-4}}}, the help for --method tinybert shows 1e-4 as the default of --lr.
    Raises `UserError` if an option on the command line has no effect with the values of the other options.
    """
    parser = argparse.ArgumentParser(prog=prog, usage="%(prog)s [options]", description=description,
                                     epilog=epilog, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = defaults or {}
    chosen = _chosen(cls, argv, [*defaults])
    left_out = {}
    for name in defaults:
        left_out |= defaults[name].get(chosen[name], {})
    refused, group = unread(cls, chosen), parser
    for field in sorted(dataclasses.fields(cls), key=lambda field: field.name not in cls.__annotations__):
        if field.metadata["group"]:
            group = parser.add_argument_group(field.metadata["group"])
        if field.name in refused:
            group.add_argument(flag(field.name), flag(f"no_{field.name}"), dest=field.name, nargs="*",
                               default=field.default, action=_Refused, const=refused[field.name],
                               help=argparse.SUPPRESS)
        else:
            _add(group, cls, field, left_out.get(field.name, field.default))
    values = vars(parser.parse_args(argv))
    return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def unread(cls, given: dict) -> dict[str, str]:
    """Finds the options of `cls` that have no effect. `given` is a dict from the names of options to their
    values. Returns a dict from the name of each option without effect to the reason. The reason is the end of
    an error message.
    """
    reasons = {}
    for field in dataclasses.fields(cls):
        for name, values in field.metadata["only_with"].items():
            if name in given and given[name] not in values:
                reasons[field.name] = (f"has no effect with {_typed(name, given[name])}: it needs "
                                       + " or ".join(_typed(name, value) for value in values))
    return reasons


def flag(name: str) -> str:
    """Returns the command-line option of a field, for example --layer-map for `layer_map`."""
    return "--" + name.replace("_", "-")


def _typed(name: str, value) -> str:
    if isinstance(value, bool):
        return flag(name if value else f"no_{name}")
    return f"{flag(name)} {value}"


class _Refused(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        raise UserError(f"{option_string} {self.const}")


def _add(parser, cls, field, default) -> None:
    """Adds the option of a field to the parser. The help shows `default` as the option's default, but the
    parser uses the default of the field.
    """
    kind, how = typing.get_type_hints(cls)[field.name], {}
    required = field.default is None and not isinstance(kind, types.UnionType)
    if isinstance(kind, types.UnionType):
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    if typing.get_origin(kind) is tuple:
        kind, how = typing.get_args(kind)[0], {"nargs": "+"}
    if kind is bool:
        how = {"action": argparse.BooleanOptionalAction}
    else:
        choices = field.metadata["choices"]
        metavar = field.metadata["metavar"] or (None if choices else kind.__name__.upper())
        how |= {"type": kind, "metavar": metavar, "choices": choices}
    if isinstance(default, tuple):
        default = " ".join(default)
    shown = "" if default is None or default is False or default == "" else f" (default: {default})"
    shown = " (required)" if required else shown
    parser.add_argument(flag(field.name), default=field.default, required=required,
                        help=field.metadata["help"].replace("%", "%%") + shown, **how)


def _chosen(cls, argv: list[str] | None, names: list[str]) -> dict:
    """Returns a dict from the names to the values of the options on which other options depend. These are the
    options in `names` and the options that are a key of an `only_with`.
    """
    deciding = {*names, *(name for field in dataclasses.fields(cls) for name in field.metadata["only_with"])}
    fields = [field for field in dataclasses.fields(cls) if field.name in deciding]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for field in fields:
        _add(parser, cls, field, None)
    try:
        return vars(parser.parse_known_args(argv)[0])
    except argparse.ArgumentError:  # ignored here, because the parser in `parse` reports this error later
        return {field.name: field.default for field in fields}


def at_least_one(options, *names: str) -> None:
    """Raises `UserError` if one of the options `names` is less than 1. The value None is allowed."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"{flag(name)} must be at least 1, not {value}")


def within(options, low: float, high: float, *names: str, open_low: bool = False,
           open_high: bool = False) -> None:
    """Raises `UserError` if one of the options `names` is neither None nor a number from `low` to `high`.
    `open_low` excludes the value `low`, and `open_high` the value `high`. Infinity is never allowed.
    """
    open_high = open_high or high == math.inf
    upper = "finite" if high == math.inf else f"{'below' if open_high else 'at most'} {high:g}"
    for name in names:
        value = getattr(options, name)
        if not (value is None or low < value < high or value == low and not open_low
                or value == high and not open_high):
            lower = f"{'above' if open_low else 'at least'} {low:g}"
            raise UserError(f"{flag(name)} must be {lower} and {upper}, not {value:g}")


def numbers(option: str, text: str) -> list[int]:
    """Returns the integers in the option value `text`, for example [0, 2, 5] for "0,2,5"."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text} is not a list of numbers like 0,2,5") from None


def term_weights(given: tuple[str, ...], terms: tuple[str, ...], method: str) -> dict[str, float]:
    """Returns a dict from loss terms to weights. `given` has the values of --weights, for example "mlm=0.5".
    Raises `UserError` if a term is not in `terms`, or if a weight is not a finite number of at least 0.
    """
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

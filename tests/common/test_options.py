"""Options: what is refused, in which words."""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from minibert.common.errors import UserError
from minibert.common.options import option, parse, unread, within


@pytest.mark.parametrize("low, high, ends, good, bad, words", [
    (0, math.inf, {"open_low": True}, (1e-9, 1e9), (0, -1, math.inf, math.nan), "above 0 and finite"),
    (0, math.inf, {}, (0, 5), (-1e-9, math.inf, -math.inf, math.nan), "at least 0 and finite"),
    (0, 1, {}, (0, 0.5, 1), (-0.1, 1.1, math.inf, math.nan), "at least 0 and at most 1"),
    (0, 1, {"open_high": True}, (0, 0.999), (-0.1, 1, math.nan), "at least 0 and below 1"),
    (0, 1, {"open_low": True, "open_high": True}, (0.001, 0.999), (0, 1, math.nan), "above 0 and below 1"),
])
def test_numbers_outside_a_range_are_refused(low, high, ends, good, bad, words):
    for value in (None, *good):
        within(SimpleNamespace(weight_decay=value), low, high, "weight_decay", **ends)
    for value in bad:
        with pytest.raises(UserError) as error:
            within(SimpleNamespace(fine=0.5, weight_decay=value), low, high, "fine", "weight_decay", **ends)
        assert str(error.value) == f"--weight-decay must be {words}, not {value:g}"


def test_help_shows_defaults_as_they_are_typed(capsys):
    @dataclass(frozen=True)
    class Some:
        files: tuple[str, ...] = option(("one", "two"), "what is read")
        more: tuple[str, ...] = option((), "what else")

    with pytest.raises(SystemExit):
        parse(Some, ["--help"], "", "")
    said = " ".join(capsys.readouterr().out.split())
    assert "what is read (default: one two)" in said and "what else (default" not in said


@dataclass(frozen=True)
class Chosen:
    how: str = option("fast", "how it is done", choices=("fast", "well"))
    rate: float | None = option(None, "how fast", metavar="RATE", group="speed", only_with={"how": ("fast",)})
    care: tuple[str, ...] = option((), "what to look at", metavar="NAME", group="quality",
                                   only_with={"how": ("well",)})
    sure: bool = option(False, "twice", only_with={"how": ("well",)})
    name: str = option("x", "of the result", metavar="NAME")


def test_help_shows_what_goes_with_what_was_chosen_and_its_defaults(capsys):
    said = {}
    for how in ("fast", "well"):
        with pytest.raises(SystemExit):
            parse(Chosen, ["--how", how, "--help"], "", "", defaults={"how": {"fast": {"rate": 3.0}}})
        said[how] = " ".join(capsys.readouterr().out.split())
    assert "speed: --rate RATE how fast (default: 3.0)" in said["fast"] and "--care" not in said["fast"]
    assert "quality: --care NAME" in said["well"] and "--rate" not in said["well"]
    assert "usage: pytest [options]" in said["well"] or "[options]" in said["well"]


@pytest.mark.parametrize("argv", [["--care", "a", "b"], ["--sure"], ["--no-sure", "--how", "fast"],
                                  ["--how=fast", "--care=a"]])
def test_an_option_that_is_not_read_is_refused_in_one_sentence(argv):
    with pytest.raises(UserError) as error:
        parse(Chosen, argv, "", "")
    option = next(word for word in argv if not word.startswith("--how")).split("=")[0]
    assert str(error.value) == f"{option} has no effect with --how fast: it needs --how well"


def test_what_is_read_is_taken_and_the_rest_has_its_defaults():
    assert parse(Chosen, ["--care", "a", "b", "--how", "well", "--sure"], "", "") == Chosen(
        "well", None, ("a", "b"), True, "x")
    assert set(unread(Chosen, {"how": "well"})) == {"rate"}
    assert set(unread(Chosen, {"how": "fast"})) == {"care", "sure"}


@pytest.mark.parametrize("argv", [["--how"], ["--how", "badly"], ["--nam", "y"]])
def test_what_is_wrong_ends_with_exit_code_two(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(Chosen, argv, "", "")
    assert stop.value.code == 2 and "error: " in capsys.readouterr().err

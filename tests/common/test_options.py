"""Options: what is refused, in which words."""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from minibert.common.errors import UserError
from minibert.common.options import option, parse, within


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

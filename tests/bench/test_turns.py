"""An error in a measured process becomes one sentence in the parent process."""

import sys

import pytest

from minibert.bench.turns import alternate
from minibert.common.errors import UserError


def worker(kind, options, pipe):
    if kind == "ends":
        sys.exit(3)
    raise UserError(f"{kind} cannot be measured")


@pytest.mark.parametrize("kind, says", [("a model", "a model cannot be"), ("ends", "ended early")])
def test_what_ends_a_contender_is_one_sentence(capfd, kind, says):
    with pytest.raises(UserError, match=says):
        alternate(worker, [kind], None, 1)
    assert capfd.readouterr().err == ""

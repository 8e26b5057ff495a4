"""A few broken and hostile files for every reader; tests/fuzz.py makes as many as one likes."""

import collections
import random

import pytest

import fuzz
from minibert.common.errors import UserError


@pytest.mark.parametrize("name", fuzz.READERS)
def test_some_inputs_of_every_reader(name, tmp_path):
    """In this process, without the memory limit; the counts of the long runs are in docs/promises.md."""
    found = [result for _, result in fuzz.inputs(name, tmp_path / name, 7, range(10))]
    assert not [result for result in found if result.startswith("FAILED")]


def test_what_a_reader_must_not_do_is_seen(tmp_path):
    """The fuzzer itself can fail: by an exception, a message of two lines, a file outside, a process."""
    watch = fuzz.WATCH
    (tmp_path / "in").mkdir()

    def read(action):
        reader = fuzz.Reader(None, lambda folder, draw: action(), {})
        return fuzz.outcome(reader, tmp_path / "in", random.Random(0), watch)

    def refuse():
        raise UserError("one\x00sentence " * 20)

    assert read(lambda: None) == "read"
    assert read(refuse).startswith("refused: ")
    assert "KeyError" in read(lambda: {}["a"])
    assert "did open" in read(lambda: open(tmp_path / "out.txt", "w").close())
    assert "did open" not in read(lambda: open(tmp_path / "in" / "x.txt", "w").close())
    assert "os.system" in read(lambda: fuzz.os.system("true"))
    assert "subprocess" in read(lambda: fuzz.subprocess.run(["true"]))


def test_enough_of_the_changed_files_still_read(tmp_path):
    """Files that are refused at the first byte would try nothing behind it."""
    counts = collections.Counter(result.partition(":")[0]
                                 for _, result in fuzz.inputs("csv", tmp_path / "csv", 3, range(60)))
    assert counts["read"] > 5 and counts["refused"] > 5

"""bench.py data at its smallest, through the real main: both programs, bad options."""

import json
import sys
from functools import partial

import pytest

from minibert.bench import data as bench_data
from minibert.bench.data import prepare_turn, repeat, tokenizers_turn, write_plain_text
from minibert.common.errors import UserError
from minibert.data.prepare import training_lines
from minibert.data.tokenizer import Tokenizer
from scripts import run_bench

run = partial(run_bench, "data")
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s", "on", "mat", ".", "-"]
TEXT = "The cat sat.\nThe cats sat on\n\n  the mat.  \n\n\nThe zebra sat.\n"


@pytest.fixture
def words(tmp_path):
    """The words of a command line with a small text and a small tokenizer."""
    Tokenizer({piece: i for i, piece in enumerate(PIECES)}).save(tmp_path / "tokenizer")
    (tmp_path / "text.txt").write_text(TEXT * 50)
    return [tmp_path / "text.txt", "--tokenizer", tmp_path / "tokenizer", "--threads", 1]


def test_both_programs(monkeypatch, capsys, words):
    code, out, err = run(monkeypatch, capsys, *words, "--megabytes", 0.02, "--rounds", 2)
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    assert 20_000 <= result["text_bytes"] < 20_100 and result["tokens"] > 1000
    for kind in ("minibert", "tokenizers"):
        low, high = result[kind]["spread"]
        assert 0 < low <= result[kind]["per_second"] <= high
        if sys.platform == "linux":
            assert 1 << 20 < result[kind]["peak_memory_bytes"] < 150 << 20  # torch alone would be more
    assert result["speed_ratio"] > 0 and "times as fast as tokenizers" in out


def test_turns_find_the_tokens_of_the_text(tmp_path):
    tokenizer = Tokenizer({piece: i for i, piece in enumerate(PIECES)})
    (tmp_path / "text.txt").write_text(TEXT)
    for turn in (prepare_turn, tokenizers_turn):
        assert turn(tmp_path / "text.txt", tokenizer)[1] == 4 + 5 + 3 + 4  # "cats" is two pieces


def test_different_tokens_are_not_compared(monkeypatch, words):
    monkeypatch.setattr(bench_data, "alternate", lambda *_: (
        {"minibert": [(1.0, 5)], "tokenizers": [(1.0, 6)]}, {"minibert": 1, "tokenizers": 1}))
    with pytest.raises(UserError, match="same tokens"):
        bench_data.bench_data(bench_data.DataBench(files=(str(words[0]),), megabytes=0.01))


def test_plain_text_has_the_lines_and_documents_of_the_files(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.jsonl").write_text('{"text": "one\\ntwo"}\n{"text": "three"}\n')
    files = (str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl"))
    target = tmp_path / "plain" / "text.txt"
    target.parent.mkdir()
    write_plain_text(files, target)
    assert list(training_lines([target], "no", 0.0)) == list(training_lines(files, "auto", 0.0))
    assert [len(d.split("\n")) for d in target.read_text().strip().split("\n\n")] == [2, 1, 1, 2, 1]


def test_text_is_repeated_and_cut(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    for size in (20, 200):
        repeat(tmp_path / "text.txt", tmp_path / "more.txt", size)
        text = (tmp_path / "more.txt").read_text()
        assert (TEXT * 5).startswith(text) and size <= len(text) < size + 20 and text.endswith("\n")


@pytest.mark.parametrize("more, says", [
    (["--rounds", 0], "--rounds"),
    (["--threads", 0], "--threads"),
    (["--megabytes", 0], "above 0"),
    (["--tokenizer", "no-such-folder"], "no-such-folder"),
    (["--files", "no-such-file.txt"], "no-such-file.txt"),
])
def test_bad_options_are_one_sentence(monkeypatch, capsys, words, more, says):
    code, _, err = run(monkeypatch, capsys, *words, *more)
    assert code == 2 and says in err and err.count("\n") == 1


def test_a_text_without_text(monkeypatch, capsys, words, tmp_path):
    (tmp_path / "text.txt").write_text("\n \n")
    code, _, err = run(monkeypatch, capsys, *words)
    assert code == 2 and "no text" in err

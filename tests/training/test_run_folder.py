"""Tests of the run folder: complete rows of metrics, and one sentence for each damaged or missing file."""

import json
import shutil
import signal

import pytest

from minibert.common.errors import UserError, run_script, sentence
from minibert.training.run_folder import (append_row, cut_metrics, last_tokens, open_run, rows_up_to,
                                          stop_requests)


OPTIONS = {"lr": 0.1, "resume": True}


def test_rows_are_added_read_and_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert last_tokens(path) == 0
    for step in range(1, 6):
        append_row(path, {"step": step, "tokens": 10 * step})
    assert last_tokens(path) == 50
    with open(path, "a") as file:
        file.write('{"step": 6, "tok')  # killed here
    assert [row["step"] for row in rows_up_to(path)] == [1, 2, 3, 4, 5]
    cut_metrics(path, 3)
    assert last_tokens(path) == 30 and path.read_text().count("\n") == 3


def test_a_folder_that_is_gone_is_noticed_at_the_next_row(tmp_path):
    out = tmp_path / "run"
    open_run(out, OPTIONS, set())
    append_row(out / "metrics.jsonl", {"step": 1})
    shutil.rmtree(out)
    with pytest.raises(UserError, match="metrics.jsonl cannot be written"):
        append_row(out / "metrics.jsonl", {"step": 2})


@pytest.mark.parametrize("error, said", [
    (PermissionError(13, "Permission denied", "my/text"), "my/text cannot be used: Permission denied"),
    (OSError(28, "No space left on device"), "No space left on device")])
def test_what_the_system_refuses_is_one_sentence(error, said, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        run_script(main)
    assert ended.value.code == 2 and capsys.readouterr().err == f"error: {said}\n"


def test_a_message_is_one_line_whatever_is_in_it():
    said = sentence(UserError("a\nb \x1b[31m \u202e c" + "x" * 5000))
    assert said.isprintable() and len(said) <= 2000 and said.startswith("a b \\x1b[31m \\u202e c")
    assert json.dumps(said)


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_requests() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop == []
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)

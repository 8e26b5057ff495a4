"""The folder of a run: rows of metrics that are whole, what is damaged or gone is one sentence."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from minibert.common.disk import write_json
from minibert.common.errors import UserError, run_script, sentence
from minibert.training.run_folder import (append_row, cut_metrics, last_tokens, open_run, read_result,
                                          rows_up_to, stop_requests)

ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize("line", ["[]", "3", '{"step": "2"}', "[" * 5000, '{"step": ' + "9" * 5000 + "}",
                                  "null"])
def test_rows_that_are_none_end_the_table(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "tokens": 7}\n' + line + '\n{"step": 3, "tokens": 9}\n')
    cut_metrics(path, 9)
    assert last_tokens(path) == 7
    path.write_text('{"step": 1}\n')
    with pytest.raises(UserError, match="damaged"):
        last_tokens(path)


def test_a_folder_that_is_gone_is_noticed_at_the_next_row(tmp_path):
    out = tmp_path / "run"
    open_run(out, OPTIONS, set())
    append_row(out / "metrics.jsonl", {"step": 1})
    shutil.rmtree(out)
    with pytest.raises(UserError, match="metrics.jsonl cannot be written"):
        append_row(out / "metrics.jsonl", {"step": 2})


@pytest.mark.parametrize("content", ["[]", "{}", '{"options": []}', "[" * 5000,
                                     '{"options": {"lr": "x"}}', ""])
def test_a_damaged_config_is_no_traceback(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="config.json|started with"):
        open_run(tmp_path, OPTIONS, set())


@pytest.mark.parametrize("content", [[], {}, {"best": None}, {"seed": "1", "best": {"scores": {}}}])
def test_a_damaged_result_names_its_file(tmp_path, content):
    write_json(tmp_path / "result.json", content)
    with pytest.raises(UserError, match="result.json"):
        read_result(tmp_path / "result.json")


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


HUNG_UP = """
import signal, time
from pathlib import Path
from minibert.training.run_folder import end_stopped, stop_requests
signal.signal(signal.SIGHUP, signal.SIG_DFL)
with stop_requests() as stop:
    Path("begun").touch()
    while not stop:
        time.sleep(0.01)
    print("step 1", flush=True)
    Path("checkpoint").touch()
    end_stopped(stop, "step 1")
"""


def test_a_terminal_that_is_lost_stops_a_run_with_its_checkpoint(tmp_path, monkeypatch):
    pty = pytest.importorskip("pty")
    monkeypatch.chdir(tmp_path)
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, "-c", HUNG_UP], os.environ | {"PYTHONPATH": str(ROOT)})
    deadline = time.time() + 60
    while time.time() < deadline and not (tmp_path / "begun").exists():
        time.sleep(0.01)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGHUP
    assert (tmp_path / "checkpoint").exists()

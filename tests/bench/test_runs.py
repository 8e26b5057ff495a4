"""bench.py runs on commands that stand in for the scripts: skipped, resumed, failed, stopped, timed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from minibert.bench import runs as run_list
from minibert.bench.runs import RunsBench, bench_runs, read_list
from minibert.common.errors import UserError
from test_bench_report import trained, tuned
from test_readme import check

ROOT = Path(__file__).parents[2]

# stands in for finetune.py: waits for as many seconds as --lr, says so, notes its words, and is done
SCRIPT = """
import json, pathlib, signal, sys, time
words = sys.argv[1:]
out = pathlib.Path(words[words.index("--out") + 1])
out.mkdir(exist_ok=True)
with open(out.parent / "order", "a") as file: file.write(" ".join([out.name, *words[-1:]]) + "\\n")
(out / "config.json").touch()
if "fail" in words: sys.exit("it went wrong")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
if "slow" in words: print("waiting", flush=True); time.sleep(60)
(out / "summary.json").write_text("{}")
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with small scripts that replace the real scripts, in which lists are run."""
    (tmp_path / "finetune.py").write_text(SCRIPT)
    monkeypatch.setattr(run_list, "ROOT", tmp_path)
    monkeypatch.setattr(run_list, "read_run", lambda folder: SimpleNamespace(seconds=60.0))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def work(place, text, **changed):
    (place / "runs.txt").write_text(text)
    return bench_runs(RunsBench(file="runs.txt", **changed))


def test_skips_resumes_and_goes_on_after_a_failure(place, capsys):
    for name in ("done", "begun"):
        (place / name).mkdir()
        (place / name / "config.json").touch()
    (place / "done" / "summary.json").touch()
    text = "\n".join(f"finetune.py --out {name}{more}" for name, more in (
        ("done", ""), ("begun", ""), ("bad", " fail"), ("new", " # a comment")))
    with pytest.raises(UserError, match="1 of 4 runs failed; see bad.log"):
        work(place, text)
    assert (place / "order").read_text() == "begun --resume\nbad --resume\nnew --resume\n"
    said = capsys.readouterr().out
    assert "3/4 finetune.py bad: failed, exit code 1: it went wrong" in said
    assert "1/4 finetune.py done: done" in said and "4/4 finetune.py new: done, after 0:00:0" in said
    with pytest.raises(UserError, match="1 of 4"):
        work(place, text)
    assert (place / "order").read_text().splitlines()[3:] == ["bad --resume"]


def test_show_runs_nothing(place):
    result = work(place, "finetune.py --out new", show=True)
    assert result["runs"] == [{"script": "finetune.py", "out": "new", "state": "to do"}]
    assert not (place / "order").exists()


def test_a_stop_reaches_the_run_once_and_ends_the_list(place):
    (place / "runs.txt").write_text("finetune.py --out a slow\nfinetune.py --out b\n")
    code = ("from pathlib import Path; from minibert.bench import runs; runs.ROOT = Path('.');"
            "runs.bench_runs(runs.RunsBench(file='runs.txt'))")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=place,
                               env=os.environ | {"PYTHONPATH": str(ROOT)})
    log, waited = place / "a.log", time.monotonic()
    while not (log.exists() and "waiting" in log.read_text()) and time.monotonic() - waited < 60:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 130 and "the same command will continue with a" in said
    assert not (place / "a" / "summary.json").exists() and not (place / "b").exists()


def test_times(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tuned(Path("a"), "m", "rte", [50.0, 60.0])
    trained(Path("c"))
    Path("runs.txt").write_text("finetune.py --task rte --out a\nfinetune.py --task rte --out b\n"
                                "train.py --method mlm --out c\ntrain.py --method distilbert --out d\n")
    states = [run["state"] for run in bench_runs(RunsBench(file="runs.txt", show=True))["runs"]]
    assert states == ["done, took 0:02:00", "to do",
                      "done, took 1:15:00", "to do"]
    assert "2 to do\n" in capsys.readouterr().out


@pytest.mark.parametrize("text, message", [
    ("\n\nrm -rf --out x", "'rm -rf --out x' starts with none of"),
    ("train.py --teacher $NO_SUCH_NAME --out x", "NO_SUCH_NAME is not set; give it before"),
    ("train.py --steps 3", "'train.py --steps 3' needs --out"),
    ("train.py --out", "needs --out"),
    ("train.py --out x\ntrain.py --steps 3 --out x", "an earlier command also writes x"),
    ("train.py --out 'x", "No closing quotation"),
    ("# nothing", "holds no command")])
def test_bad_lists_are_one_sentence(tmp_path, text, message):
    (tmp_path / "runs.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_list(tmp_path / "runs.txt")
    with pytest.raises(UserError, match="cannot be read"):
        read_list(tmp_path / "none.txt")


def test_names_and_continued_lines(tmp_path, monkeypatch):
    monkeypatch.setenv("TEACHER", "a folder")
    (tmp_path / "runs.txt").write_text("# a list \\\ntrain.py --teacher $TEACHER \\\n"
                                       "    --out runs/x   # twice\n")
    [line] = read_list(tmp_path / "runs.txt")
    assert line.words == ["--teacher", "a folder", "--out", "runs/x"] and line.log == Path("runs/x.log")


def test_a_file_that_is_there_is_done(tmp_path):
    (tmp_path / "runs.txt").write_text(f"data/augment.py --task rte --out {tmp_path / 'rte.csv'}\n")
    [line] = read_list(tmp_path / "runs.txt")
    assert not line.done
    (tmp_path / "rte.csv").write_text("")
    assert line.done


@pytest.mark.parametrize("name", ["runs.txt", "runs-inside.txt", "runs-ablation.txt", "runs-compress.txt"])
def test_the_lists_of_the_project_are_sound(name, monkeypatch):
    """The script of each line accepts its options. The files that it reads come from an earlier line."""
    monkeypatch.setenv("TEACHER", "weights/teacher")
    made, forms = set(), {}
    for line in read_list(ROOT / "docs" / name):
        for word in line.words:
            if word.startswith("runs/") and word != str(line.out):
                assert word.removesuffix("/model") in made, word
        made.add(str(line.out))
        forms[line.script, *(word for word in line.words if not word.startswith("runs/"))] = line
    for line in forms.values():
        check("python", line.script, *line.words)

"""bench.py at its smallest: the table, and one JSON document as the last line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minibert.bench import finetune as bench_finetune, train as bench_train
from scripts import run_bench

ROOT = Path(__file__).parent.parent


def bench(*words):
    return subprocess.run([sys.executable, str(ROOT / "bench.py"), *words], capture_output=True,
                          text=True, timeout=120, env=os.environ | {"PYTHONPATH": str(ROOT)})


@pytest.mark.slow
def test_train_bench_compares_with_transformers():
    pytest.importorskip("transformers")
    run = bench("train", "--teacher", "bert-L2-H128", "--student", "bert-L2-H128", "--batch", "2",
                "--max-length", "20", "--steps", "1", "--turns", "1", "--threads", "1")
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    ours, theirs = result["minibert"]["per_second"], result["transformers"]["per_second"]
    assert result["speed_ratio"] == pytest.approx(ours / theirs)


@pytest.mark.slow
def test_train_bench_times_methods_side_by_side():
    run = bench("train", "--teacher", "bert-L4-H128", "--student", "bert-L2-H128", "--batch", "2",
                "--methods", "distilbert", "mlm", "tinybert", "minilm", "--max-length", "20", "--steps", "1",
                "--turns", "1", "--threads", "1")
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert all(result[m]["per_second"] > 0 for m in ("distilbert", "mlm", "tinybert", "minilm"))
    flops = {m: result[m]["flops_per_second"] / result[m]["per_second"] for m in ("distilbert", "mlm")}
    assert flops["mlm"] < flops["distilbert"]
    run = bench("train", "--methods", "magic")
    assert run.returncode == 2 and "invalid choice: 'magic'" in run.stderr


def test_unknown_bench_is_one_sentence(monkeypatch, capsys):
    code, _, said = run_bench("nothing", monkeypatch, capsys)
    assert code == 2 and "train" in said and "Traceback" not in said


@pytest.mark.parametrize("words, says", [
    ("train --steps 0", "--steps must be at least 1"), ("train --batch 0", "--batch must"),
    ("train --turns 0", "--turns must"), ("train --threads 0", "--threads must"),
    ("train --dropout 1.5", "dropout"), ("train --teacher nosuch", "nosuch"),
    ("train --methods tinybert minilm --student bert-L2-H128 --teacher bert-L4-H256", "heads"),
    ("train --threads 1", "minibert[peers]"),
    ("finetune --data x --tokenizer y --batch 0", "--batch must"),
    ("finetune --data x --tokenizer y", "minibert[peers]")])
def test_what_is_wrong_is_said_before_the_warm_up(monkeypatch, capsys, words, says):
    monkeypatch.setitem(sys.modules, "transformers", None)  # as where it is not installed
    for module in (bench_train, bench_finetune):
        monkeypatch.setattr(module, "alternate", lambda *_: pytest.fail("contenders were started"))
    code, _, said = run_bench(words.split()[0], monkeypatch, capsys, *words.split()[1:])
    assert code == 2 and says in said and said.count("\n") == 1


def test_help_of_a_bench_is_its_own(monkeypatch, capsys):
    code, said, _ = run_bench("runs", monkeypatch, capsys, "--help")
    assert code == 0 and said.startswith("usage: bench.py runs [options]") and said.count("usage:") == 1
    assert said.split("examples:")[1].split() == (
        "TEACHER=FOLDER python bench.py runs docs/runs.txt --show "
        "shows the state of each run").split()


@pytest.mark.slow
def test_finetune_bench_compares_with_transformers(tmp_path):
    pytest.importorskip("transformers")
    rows = "\n".join(f"{k % 2}\t1\t2\tthe text number {k} is here\ta text is " + "long " * k
                     for k in range(4))
    (tmp_path / "train.tsv").write_text("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n" + rows + "\n")
    run = bench("finetune", "--task", "mrpc", "--data", str(tmp_path),
                "--tokenizer", str(ROOT / "weights" / "teacher"), "--model", "bert-L2-H128",
                "--batch", "2", "--steps", "2", "--turns", "1", "--threads", "1")
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    ours, theirs = result["minibert"]["per_second"], result["transformers"]["per_second"]
    assert result["speed_ratio"] == pytest.approx(ours / theirs)
    grouped = result["transformers by length"]["per_second"]
    assert result["by_length"]["speed_ratio"] == pytest.approx(ours / grouped)

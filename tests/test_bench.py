"""bench.py at its smallest: the table, and one JSON document as the last line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minibert.bench_train import TrainBench, sequences, useful_flops
from minibert.config import preset

ROOT = Path(__file__).parent.parent


def bench(*words):
    return subprocess.run([sys.executable, str(ROOT / "bench.py"), *words], capture_output=True, text=True, timeout=120,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_train_bench_ends_with_json():
    run = bench("train", "--teacher", "bert-L2-H128", "--student", "bert-L2-H128", "--batch", "2", "--max-length", "20",
                "--steps", "1", "--turns", "1", "--threads", "1", "--no-peer")
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert result["minibert"]["tokens_per_second"] > 0 and "transformers" not in result


def test_unknown_bench_is_one_sentence():
    run = bench("nothing")
    assert run.returncode == 2 and "train" in run.stderr and "Traceback" not in run.stderr


def test_useful_flops_of_one_token_by_hand():
    config = preset("bert-L2-H128")
    lengths = sequences(TrainBench(batch=3, steps=1), config.vocab_size)[0][1]
    n, squares = lengths.sum(), (lengths.astype(float) ** 2).sum()
    forward = 2 * (n * 2 * 12 * 128 * 128 + 4 * 128 * squares) + n * 2 * (128 * 128 + 128 * 30522)
    assert useful_flops(config, config, lengths) == pytest.approx(4 * forward)

"""A run that is killed at any moment and resumed ends with the weights of one that was not:
the real script, SIGKILL.
"""

import json
import os
import random
import subprocess
import sys
import time

import pytest
import torch

from test_train import ROOT, folder, options, rows, weights  # noqa: F401  (folder is a fixture)

pytestmark = pytest.mark.slow
KILLS, INSIDE_A_WRITE = 20, 8


def start_run(folder, out):  # noqa: F811
    """Dropout on, three or more micro-batches a step, two threads, a checkpoint every other step."""
    argv = options(folder, out, "--resume", steps=60, threads=2, **{"checkpoint-every": 2})
    return subprocess.Popen([sys.executable, str(ROOT / "train.py"), *argv], stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


def kill_inside_a_write(run, out):
    """Waits until a checkpoint is half-written; the folder tells by its name."""
    while run.poll() is None:
        try:
            if any(entry.name.endswith(".partial") for entry in os.scandir(out / "checkpoint")):
                return run.kill()
        except FileNotFoundError:
            pass


def kill_after(run, out, seconds):
    """Waits until the run is under way, and then some."""
    before = (out / "metrics.jsonl").stat().st_mtime if (out / "metrics.jsonl").exists() else 0
    while run.poll() is None and not ((out / "metrics.jsonl").exists()
                                      and (out / "metrics.jsonl").stat().st_mtime > before):
        time.sleep(0.01)
    time.sleep(seconds)
    run.kill()


def test_killed_at_twenty_moments_and_resumed(folder, tmp_path):  # noqa: F811
    whole, out = tmp_path / "whole", tmp_path / "killed"
    assert start_run(folder, whole).wait() == 0
    draw, caught = random.Random(0), 0
    for number in range(KILLS):
        run = start_run(folder, out)
        if number % 5 < 2:
            kill_inside_a_write(run, out)
        else:
            kill_after(run, out, draw.random() * 0.3)
        said = run.communicate()[1]
        assert run.returncode in (0, -9), said  # 0: it was done before the shot
        caught += bool(list((out / "checkpoint").glob("*.partial")))
    run = start_run(folder, out)
    said = run.communicate()[1]
    assert run.returncode == 0, said
    print(f"{KILLS} kills, {caught} of them inside a write")
    assert caught >= 5
    a, b = weights(whole), weights(out)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert [row["loss"] for row in rows(whole)] == [row["loss"] for row in rows(out)]
    assert [row["step"] for row in rows(out)] == list(range(1, 61))
    assert (json.loads((out / "summary.json").read_text())["tokens"]
            == json.loads((whole / "summary.json").read_text())["tokens"])

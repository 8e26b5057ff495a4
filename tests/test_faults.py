"""What can go wrong around a run, done to the real train.py: it ends within seconds with one sentence, and
its last checkpoint is whole, so that --resume ends as if nothing had happened.
"""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import test_train
from minibert.data.prepare import prepare
from minibert.data.tokenizer import load_tokenizer
from minibert.training.checkpoint import checkpoints
from test_kill import start
from test_train import ROOT, options, rows, weights

pytestmark = pytest.mark.slow
folder = test_train.folder  # a fixture: corpus and teacher
STEPS = {"steps": 4000, "checkpoint-every": 5}


def under_way(run, out):
    """Waits for the second checkpoint."""
    deadline = time.monotonic() + 120
    while len(checkpoints(out / "checkpoint")) < 2:
        assert run.poll() is None and time.monotonic() < deadline, run.communicate()[1]
        time.sleep(0.02)


def ends(run, *words, seconds=20):
    """Waits for the end and returns stderr, one sentence with these words."""
    begun = time.monotonic()
    said = run.communicate(timeout=120)[1]
    assert time.monotonic() - begun < seconds
    assert run.returncode == 2 and "Traceback" not in said, (run.returncode, said)
    assert said.count("error: ") == 1 and all(word in said for word in words), said
    return said


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB; tests that may not mount one are skipped."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("a disk cannot be mounted here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def fill(disk):
    """Leaves no room."""
    with pytest.raises(OSError), open(disk / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


@pytest.fixture
def prepared(folder, tmp_path):  # noqa: F811
    """The corpus prepared outside the run."""
    prepare([folder / "corpus.txt"], load_tokenizer(folder / "teacher"), tmp_path / "prepared", report=None)
    return tmp_path / "prepared"


def whole_run(folder, out, prepared, steps):
    """What the run has to end as."""
    train_argv = options(folder, out, corpus=prepared, steps=steps, **{"checkpoint-every": 5})
    run = start("train.py", train_argv, out)
    assert run.wait() == 0, run.stderr.read()
    return weights(out), [row["loss"] for row in rows(out)]


def test_a_full_disk(folder, small_disk, tmp_path, prepared):  # noqa: F811
    """Full in the middle of the run; with room again it resumes, and ends with the weights of another."""
    out = small_disk / "run"
    argv = options(folder, out, corpus=prepared, steps=400, **{"checkpoint-every": 5})
    run = start("train.py", argv, out)
    under_way(run, out)
    fill(small_disk)
    ends(run, "disk is full")
    (small_disk / "filler").unlink()
    assert start("train.py", [*argv, "--resume"], out).wait() == 0
    expected, losses = whole_run(folder, tmp_path / "whole", prepared, 400)
    found = weights(out)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert losses == [row["loss"] for row in rows(out)]


def test_a_disk_that_is_full_from_the_start(folder, small_disk):  # noqa: F811
    """Nothing half-written has a final name."""
    fill(small_disk)
    for script, argv in (("data/prepare.py", [folder / "corpus.txt", "--tokenizer", folder / "teacher",
                                              "--out", small_disk / "out"]),
                         ("train.py", options(folder, small_disk / "out", steps=3))):
        ends(start(script, argv, small_disk / "out"), "disk is full", seconds=60)
        assert not (small_disk / "out" / "corpus").exists() and not (small_disk / "out" / "model").exists()
        shutil.rmtree(small_disk / "out", ignore_errors=True)


def test_a_disk_that_becomes_read_only(folder, small_disk, prepared):  # noqa: F811
    out = small_disk / "run"
    run = start("train.py", options(folder, out, corpus=prepared, **STEPS), out)
    under_way(run, out)
    deadline = time.monotonic() + 20
    while subprocess.run(["mount", "-o", "remount,ro", small_disk], capture_output=True).returncode:
        assert time.monotonic() < deadline  # busy while a file is being written
    ends(run, "Read-only")
    newest = checkpoints(out / "checkpoint")[0][0]
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    run = start("train.py", options(folder, out, "--resume", corpus=prepared, **STEPS), out)
    while checkpoints(out / "checkpoint")[0][0] == newest:
        assert run.poll() is None
        time.sleep(0.02)
    run.kill()
    run.communicate()


def test_an_output_folder_that_vanishes(folder, tmp_path, prepared):  # noqa: F811
    out = tmp_path / "run"
    run = start("train.py", options(folder, out, corpus=prepared, **STEPS), out)
    under_way(run, out)
    os.rename(out, tmp_path / "moved")
    ends(run, "cannot be written")
    assert not out.exists() or not (out / "config.json").exists()
    assert len(checkpoints(tmp_path / "moved" / "checkpoint")) == 2
    assert not list((tmp_path / "moved" / "checkpoint").glob("*.partial"))


def test_a_run_is_not_resumed_on_another_text(folder, tmp_path):  # noqa: F811
    out, texts = tmp_path / "run", tmp_path / "prepared"
    tokenizer = load_tokenizer(folder / "teacher")
    prepare([folder / "corpus.txt"], tokenizer, texts, report=None)
    argv = options(folder, out, corpus=texts, steps=3)
    assert start("train.py", argv, out).wait() == 0
    shutil.rmtree(texts)
    prepare([folder / "held-out.txt"], tokenizer, texts, report=None)
    ends(start("train.py", [*argv, "--resume"], out), "not the one that the run", seconds=60)


def test_a_text_that_disappears_while_it_is_prepared(folder, tmp_path):  # noqa: F811
    """The first file is a pipe that waits until the second is gone."""
    os.mkfifo(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_text("some text\n")
    argv = [tmp_path / "a.txt", tmp_path / "b.txt", "--tokenizer", folder / "teacher",
            "--out", tmp_path / "out"]
    run = start("data/prepare.py", argv, tmp_path / "out")
    with open(tmp_path / "a.txt", "w") as pipe:
        (tmp_path / "b.txt").unlink()
        pipe.write("text\n")
    ends(run, "b.txt cannot be read")
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies(folder, tmp_path, prepared, rank):  # noqa: F811
    """SIGKILL of one of two: all end within seconds, and one process resumes what two began."""
    out = tmp_path / "run"
    argv = options(folder, out, corpus=prepared, **STEPS)
    run = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(ROOT / "train.py"), *argv], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)})
    under_way(run, out)
    ranks = sorted(int(pid) for pid in subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True,
                                                      text=True).stdout.split())
    os.kill(ranks[rank], signal.SIGKILL)
    begun = time.monotonic()
    run.communicate(timeout=120)
    assert run.returncode != 0 and time.monotonic() - begun < 40
    newest = checkpoints(out / "checkpoint")[0][0]
    resumed = start("train.py", [*argv, "--resume"], out)
    while checkpoints(out / "checkpoint")[0][0] == newest:
        assert resumed.poll() is None, resumed.communicate()[1]
        time.sleep(0.02)
    resumed.kill()
    resumed.communicate()


def test_more_ranks_than_sequences(folder, tmp_path):  # noqa: F811
    """One sequence a step for two ranks: one of them has nothing to do, and the run is that of one rank."""
    argv = options(folder, tmp_path / "two", steps=3, batch=1, dropout=0.0)
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                    str(ROOT / "train.py"), *argv], check=True, timeout=300, capture_output=True,
                   env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert start("train.py", options(folder, tmp_path / "one", steps=3, batch=1, dropout=0.0),
                 tmp_path / "one").wait() == 0
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)

"""The real scripts, struck by SIGKILL, SIGTERM and Ctrl-C at any moment, many of them inside a write, and
started again: each ends as one that nobody touched.

    python -m pytest -m slow -s tests/test_kill.py -k train        120 strikes in all; about eight minutes
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import test_finetune
import test_train
from minibert.data.corpus import open_corpus
from test_train import ROOT, weights

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="signals")]
folder = test_train.folder  # a fixture: corpus and teacher of train.py
tuning = test_finetune.folder  # likewise, for finetune.py
CODES = {signal.SIGKILL: (-9,), signal.SIGTERM: (143, -15), signal.SIGINT: (130, -2)}
HALF_WRITTEN = ("**/*.partial", "**/.saving-*", "**/.out.*")


def start(script, argv, out):
    """A script as its own process, in a session of its own, with Ctrl-C as a terminal has it."""
    return subprocess.Popen([sys.executable, str(ROOT / script), *map(str, argv)], stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
                            cwd=out.parent, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


def half_written(out) -> bool:
    """Whether something has the name of what is not complete."""
    return any(next(out.parent.glob(f"{out.name}/{pattern}"), None) for pattern in HALF_WRITTEN) or any(
        out.parent.glob(f".{out.name}.*"))


def strike(run, out, sign, draw, begun_file, inside):
    """Sends the signal: while something is half-written, soon after the work began, or at any moment."""
    if inside:
        while run.poll() is None and not half_written(out):
            time.sleep(0.0005)
    elif begun_file and draw.random() < 0.7:
        before = begun_file.stat().st_mtime if begun_file.exists() else 0
        while run.poll() is None and not (begun_file.exists() and begun_file.stat().st_mtime > before):
            time.sleep(0.005)
        time.sleep(draw.random() * 0.4)
    else:
        time.sleep(draw.random() * 5)
    run.send_signal(sign)


def besiege(script, argv, tmp_path, sign, strikes, begun, check, after=lambda out: None):
    """Strikes a script again and again, every other time inside a write; what ends is checked."""
    draw, caught, done = random.Random(f"{script} {sign}"), 0, 0
    out = tmp_path / "out-0"
    for number in range(strikes):
        run = start(script, argv(out), out)
        strike(run, out, sign, draw, begun and out / begun, number % 2)
        said = run.communicate(timeout=120)[1]
        assert run.returncode in (0, *CODES[sign]), said
        # Ctrl-C before the first line of the script, or the end of one whose helpers were just being started
        assert "Traceback" not in said or "import" in said or "forkserver" in said, said
        caught += run.returncode != 0 and sign == signal.SIGKILL and half_written(out)
        if run.returncode == 0:
            check(out)
            done += 1
            out = tmp_path / f"out-{done}"
        else:
            after(out)
    run = start(script, argv(out), out)
    assert run.wait() == 0, run.stderr.read()
    check(out)
    print(f"\n{script}: {strikes} x {signal.Signals(sign).name}, {caught} seen to leave something half-"
          f"written; {done + 1} runs ended, each as it should")
    return caught


@pytest.mark.parametrize("sign, strikes", [(signal.SIGKILL, 20), (signal.SIGTERM, 10), (signal.SIGINT, 10)])
def test_training_is_struck(folder, tmp_path, sign, strikes):  # noqa: F811
    """Dropout on, three or more micro-batches a step, two threads, a checkpoint every other step."""
    def argv(out):
        return test_train.options(folder, out, "--resume", steps=60, threads=2, **{"checkpoint-every": 2})

    whole = tmp_path / "whole"
    assert start("train.py", argv(whole), whole).wait() == 0
    a, rows = weights(whole), test_train.rows(whole)
    tokens = json.loads((whole / "summary.json").read_text())["tokens"]

    def check(out):
        b = weights(out)
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert [row["loss"] for row in rows] == [row["loss"] for row in test_train.rows(out)]
        assert [row["step"] for row in test_train.rows(out)] == list(range(1, 61))
        assert json.loads((out / "summary.json").read_text())["tokens"] == tokens
        assert not half_written(out / "model")

    caught = besiege("train.py", argv, tmp_path, sign, strikes, "metrics.jsonl", check)
    assert caught >= 3 or sign != signal.SIGKILL


@pytest.mark.parametrize("sign, strikes", [(signal.SIGKILL, 16), (signal.SIGTERM, 7), (signal.SIGINT, 7)])
def test_finetuning_is_struck(tuning, tmp_path, sign, strikes):  # noqa: F811
    """Two seeds, a model and a checkpoint written at the end of every epoch and every other step."""
    def argv(out):
        return test_finetune.options(tuning, "reviews.csv", out, "--resume", seeds=2, epochs=3, dropout=0.1,
                                     **{"checkpoint-every": 2})

    whole = tmp_path / "whole"
    assert start("finetune.py", argv(whole), whole).wait() == 0
    a = weights(whole)
    plain = [{k: v for k, v in r.items() if k != "seconds"} for r in test_finetune.summary(whole)["results"]]

    def check(out):
        b = weights(out)
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert plain == [{k: v for k, v in r.items() if k != "seconds"}
                         for r in test_finetune.summary(out)["results"]]
        assert (out / "errors.tsv").read_bytes() == (whole / "errors.tsv").read_bytes()

    besiege("finetune.py", argv, tmp_path, sign, strikes, "seed-1/metrics.jsonl", check)


@pytest.mark.parametrize("sign, strikes", [(signal.SIGKILL, 24), (signal.SIGTERM, 13), (signal.SIGINT, 13)])
def test_preparing_is_struck(folder, tmp_path, sign, strikes):  # noqa: F811
    """The prepared folder is complete and always the same, or does not exist."""
    (tmp_path / "text.txt").write_text(test_train.text(documents=26_000))  # 10 MB

    def argv(out):
        return [tmp_path / "text.txt", "--tokenizer", folder / "teacher", "--out", out]

    def hashes(out):
        return {path.relative_to(out): hashlib.sha256(path.read_bytes()).hexdigest()
                for path in out.rglob("*") if path.is_file()}

    whole = tmp_path / "whole"
    assert start("data/prepare.py", argv(whole), whole).wait() == 0
    expected = hashes(whole)

    def check(out):
        open_corpus(out)
        assert hashes(out) == expected

    def after(out):
        assert not out.exists() or hashes(out) == expected  # struck when all was done
        left = list(tmp_path.glob(".out-*"))
        assert sign == signal.SIGKILL or not left, left
        for path in (out, *left):
            shutil.rmtree(path, ignore_errors=True)

    besiege("data/prepare.py", argv, tmp_path, sign, strikes, None, check, after)

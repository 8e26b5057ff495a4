"""Tests and measures minibert on one GPU, in about ten minutes. It has five parts:

1. the tests that need a GPU (`pytest -m gpu`)
2. the distillation step, and the same step on `transformers` with SDPA attention, also compiled
3. tokens a second and the share of the bf16 peak, for micro-batches of 4,096 to 65,536 tokens
4. inference, and the same on `transformers` with SDPA attention, also compiled
5. five minutes of distillation on Python's documentation, which is prepared first

Each part is a command, which is printed. A part is stopped at its time limit. If a part fails, the following
parts still run. `--dry-run` runs the same parts with tiny models on a CPU, to test that the commands work.
"""

import dataclasses
import json
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from minibert.common.console import table
from minibert.common.disk import read_text
from minibert.common.errors import UserError
from minibert.common.options import option
from minibert.common.runtime import describe, start

ROOT = Path(__file__).parents[2]
MICRO_TOKENS = (4096, 8192, 16384, 32768, 65536)


@dataclass(frozen=True)
class GpuBench:
    """Every option of bench.py gpu."""

    minutes: float = option(5.0, "minutes of distillation", metavar="MINUTES")
    dry_run: bool = option(False, "run with tiny models on the CPU: this tests the commands, and its figures "
                                  "mean nothing")

    def __post_init__(self):
        if not 0 < self.minutes < float("inf"):
            raise UserError(f"--minutes is above 0, not {self.minutes}")


class Part(NamedTuple):
    """One command and its time limit in seconds. `stopped` is True if the time limit is its planned end."""

    name: str
    words: list[str]
    seconds: float
    stopped: bool = False


def parts_of(options: GpuBench, folder: Path) -> list[Part]:
    """The commands in the order in which they run. They write into `folder`."""
    models, sentences, most = ("bert-base", "distilbert"), ("100", "256"), MICRO_TOKENS
    peers, modes = ["--compiled-peer"], ["fp32", "bf16"]
    train = ["--corpus", "python-docs", "--batch", "256", "--micro-tokens", "16384"]
    device, tests = ["--device", "cuda"], []
    if options.dry_run:
        models, sentences, most = ("bert-L4-H128", "bert-L2-H128"), ("4", "4"), (128, 256)
        peers, modes = [], ["fp32"]
        train = ["--corpus", str(folder / "text.txt"), "--batch", "4"]
        device, tests = ["--device", "cpu", "--threads", "1"], ["--collect-only"]

    def step(*words: str) -> list[str]:
        return ["bench.py", "train", "--teacher", models[0], "--student", models[1], "--turns", "3",
                *device, *words]

    long = str(128 if not options.dry_run else 32)
    made = [Part("tests", ["-m", "pytest", "-q", "-m", "gpu", *tests], 90),
            Part("step beside transformers", step("--batch", str(most[0] // int(long)), "--max-length", long,
                                                  "--steps", "2", *peers), 150)]
    for size in most:  # each step has the tokens of the largest micro-batch
        made.append(Part(f"step, {size:,} tokens", step(
            "--no-peer", "--batch", str(most[-1] // int(long)), "--min-length", long, "--max-length", long,
            "--micro-tokens", str(size), "--steps", "1"), 60))
    engines = ["minibert", *(f"minibert {mode}" for mode in modes[1:]),
               *(f"transformers {mode}" for mode in modes)]
    if not options.dry_run:
        engines.append("transformers bf16 compiled")
    made.append(Part("inference beside transformers", [
        "bench.py", "inference", "--models", models[0], "--engines", *engines, "--examples", sentences[0],
        "--batch", sentences[1], *device, *([] if options.dry_run else ["--threads", "8"])], 120))
    made.append(Part("distillation", ["train.py", *train, "--steps", "1000000", "--warmup", "0.0001",
                                      "--checkpoint-every", "1000000",
                                      "--out", str(folder / "run"), *device],
                     60 * options.minutes + 60, stopped=True))  # one minute more, to prepare the corpus
    return made


def run_part(part: Part) -> tuple[str, dict | None, float]:
    """Runs a command and prints its output.

    Returns how the command ended, the content of its JSON line (None without one), and its seconds. To stop a
    command, this function sends SIGINT. Then train.py writes a checkpoint and ends.
    """
    words = [sys.executable, *part.words]
    print(f"\n$ python {shlex.join(part.words)}", flush=True)
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = subprocess.Popen(words, cwd=ROOT, stdout=output, stdin=subprocess.DEVNULL)
        try:
            code = process.wait(part.seconds)
            state = "done" if code == 0 else f"failed, exit code {code}"
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            state = "done" if part.stopped else f"stopped after {part.seconds:.0f} s"
        output.seek(0)
        text = output.read()
    lines = text.splitlines()
    result = None
    if lines and lines[-1].startswith("{"):
        result, lines = json.loads(lines[-1]), lines[:-1]
    print("\n".join(lines), flush=True)
    return state, result, time.monotonic() - begun


def micro_batch_table(results: dict[str, dict]) -> str:
    """A table of tokens a second, share of the peak and peak memory for each size of a micro-batch."""
    return table([{"tokens a micro-batch": f"{result['options']['micro_tokens']:,}",
                   "tok/s": f"{result['minibert']['tokens_per_second']:,.0f}",
                   "of the peak": f"{100 * result['minibert']['share_of_peak']:.0f} %",
                   "peak memory": f"{result['minibert']['peak_memory_bytes'] / 2**30:.2f} GiB"}
                  for name, result in results.items() if name.startswith("step, ") and result],
                 "the distillation step by the size of a micro-batch")


def learned(folder: Path) -> dict:
    """The result of the distillation: steps, tokens, first and last loss, median tokens a second.

    The dict is empty if the run wrote no row of metrics.jsonl.
    """
    path = folder / "run" / "metrics.jsonl"
    rows = [json.loads(line) for line in read_text(path).splitlines()] if path.exists() else []
    if not rows:
        return {}
    rates = sorted(row["tokens_per_second"] for row in rows)
    return {"steps": rows[-1]["step"], "tokens": rows[-1]["tokens"], "first_loss": rows[0]["loss"],
            "last_loss": rows[-1]["loss"], "tokens_per_second": rates[len(rates) // 2]}


def bench_gpu(options: GpuBench) -> dict:
    """Runs the parts and prints. Returns the content of the JSON line. Raises `UserError` without a GPU."""
    runtime = start("cpu" if options.dry_run else "auto", training=False)
    if runtime.device.type != "cuda" and not options.dry_run:
        raise UserError("bench.py gpu needs a CUDA device, and torch finds none; --dry-run tests the "
                        "commands on the CPU")
    results, rows = {}, []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if options.dry_run:
            text = read_text(ROOT / "README.md")
            (folder / "text.txt").write_text("\n".join([text] * 20), encoding="utf-8")
        for part in parts_of(options, folder):
            state, results[part.name], seconds = run_part(part)
            rows.append({"part": part.name, "state": state, "seconds": f"{seconds:.0f}"})
        results["distillation"] = learned(folder)
    print("\n" + micro_batch_table(results))
    if results["distillation"]:
        print("\ndistillation: {steps:,} steps, {tokens:,} tokens, {tokens_per_second:,.0f} tokens/s "
              "(median), loss {first_loss:.3f} to {last_loss:.3f}".format(**results["distillation"]))
    print("\n" + table(rows, "what was run"))
    return {"bench": "gpu", "options": dataclasses.asdict(options), "machine": describe(runtime),
            "states": {row["part"]: row["state"] for row in rows}, "results": results}

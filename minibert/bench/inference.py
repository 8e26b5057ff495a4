"""Compares the inference speed of minibert with the speed of other installed libraries. For fine-tuned
models, the scores of minibert's fast modes (fp32, fp16, bf16, int8) are also measured.

Each example runs alone, as in the DistilBERT paper (Sanh et al. 2019, table 3). Then the first --batch
examples run together. The compared programs (engines) run alternately, with the same examples and the same
weights. On a GPU, the measured time ends when the result is on the CPU.
"""

import dataclasses
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import minibert
from minibert.bench.engines import ENGINES, PADDED, why_not, write_files
from minibert.bench.flops import encoder_flops, matrix_peak
from minibert.bench.turns import alternate, rate, ratios, serve
from minibert.common.console import table
from minibert.common.errors import UserError
from minibert.common.options import at_least_one, option
from minibert.common.runtime import Runtime, describe, start
from minibert.inference.fast_encoder import MODES, fast, kernels_of
from minibert.inference.predict import outputs
from minibert.model.config import PRESETS, Config
from minibert.model.init import init_weights
from minibert.model.heads import Classifier
from minibert.tasks.models import load_tuned
from minibert.tasks.official_files import read_examples
from minibert.tasks.specs import TASKS, TEXT_TASKS
from minibert.tasks.splits import judge, some_of, tokenised

ROOT = Path(__file__).parents[2]
# The lengths of random examples have a log-normal distribution with the median 29, like the lengths
# of the STS-B dev pairs in tokens of bert-base-uncased.
LOG_MEAN, LOG_DEVIATION = 3.354, 0.432


@dataclass(frozen=True)
class InferenceBench:
    """Every option of `bench.py inference`."""

    models: tuple[str, ...] = option(
        ("bert-base", "distilbert"), "presets (with random weights), or folders of models that were "
        "fine-tuned on --task. For the model of a folder, the scores of minibert's fast modes are also "
        "measured")
    task: str = option("stsb", "task whose dev examples are read (only with --data)", choices=TEXT_TASKS)
    data: str | None = option(None, "folder of the official files of the task, or its parent folder; without "
                              "--data, the examples are random tokens, with lengths like those of STS-B")
    tokenizer: str = option(str(ROOT / "weights" / "teacher"), "folder of the tokenizer for presets")
    examples: int | None = option(None, "number of examples (default: the whole dev set; without --data: 100 "
                                  "random examples)")
    batch: int = option(32, "number of examples that run together, to measure the throughput")
    turns: int = option(3, "number of measurements of each engine, after one warm-up")
    engines: tuple[str, ...] = option(
        (), "engines to run, each in quotes, for example 'minibert int8' 'transformers fp32' (default: all "
        "engines that can run on this machine)",
        choices=tuple(ENGINES))
    threads: tuple[int, ...] = option((), "one or several numbers of CPU threads; everything is measured "
                                      "with each number (default: 1, and the number that torch chooses)")
    max_length: int = option(128, "maximum length of an example in tokens; longer examples are cut")
    device: str = option("auto", "device, for example cpu, cuda or cuda:1")

    def __post_init__(self):
        at_least_one(self, "batch", "turns", "examples")
        if min(self.threads, default=1) < 1:
            raise UserError("--threads must be at least 1")


@dataclass(frozen=True)
class Job:
    """The settings and the examples of a comparison. The process of each engine gets the same `Job`."""

    folder: Path
    ids: list[list[int]]
    segments: list[list[int]]
    batch: int
    device: str
    threads: int


def inference_worker(engine: str, job: Job, pipe) -> None:
    """Runs all measurements of one engine. A measurement runs each example alone, and then the first
    `job.batch` examples together. Its result is a dict: "alone" has the seconds of each example, "together"
    the seconds of the batch, and "logits" the logits of the batch.
    """
    runtime = start(job.device, "fp32", job.threads, training=False)
    run = ENGINES[engine](job.folder, runtime.device)

    def turn() -> dict:
        alone = []
        for ids, segments in zip(job.ids, job.segments):
            begun = time.perf_counter()
            run([ids], [segments])
            alone.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        logits = run(job.ids[:job.batch], job.segments[:job.batch])
        return {"alone": alone, "together": time.perf_counter() - begun, "logits": logits}
    serve(turn, pipe, runtime.device)


def material(options: InferenceBench, tokenizer) -> tuple[list[list[int]], list[list[int]]]:
    """Returns a tuple (token ids, token types) with one list for each example. The examples are in random
    order, so the first --batch examples have different lengths.
    """
    rng = np.random.default_rng(0)
    if options.data is None:
        lengths = np.exp(rng.normal(LOG_MEAN, LOG_DEVIATION, options.examples or 100)).round()
        ids = [rng.integers(5, tokenizer.vocab_size, int(n)).tolist()
               for n in lengths.clip(8, options.max_length)]
        return ids, [[0] * len(one) for one in ids]
    task = TASKS[options.task]
    rows = read_examples(task, options.data, task.dev_splits[0])
    rows = [rows[i] for i in rng.permutation(len(rows))[:options.examples]]
    pairs = None if rows[0].pair is None else [row.pair for row in rows]
    return tokenizer.encode([row.text for row in rows], pairs, options.max_length)


def quality(folder: str, task_name: str, data: str, max_length: int, limit: int | None,
            runtime: Runtime) -> dict[str, dict]:
    """Evaluates a fine-tuned model on `limit` dev examples (None: all), first without `fast`, then in each
    mode of `fast` that the device supports. Prints a table. Returns a dict with the engines as keys, for
    example "minibert int8". A value is a dict with the scores in percent, and with the differences between
    the logits of the engine and the logits without `fast`.
    """
    task = dataclasses.replace(TASKS[task_name], max_length=max_length)
    model = load_tuned(folder, task)
    split = tokenised(task, read_examples(task, data, task.dev_splits[0]),
                      minibert.load_tokenizer(folder), 128)
    if limit:
        split = some_of(split, limit)
    model.to(runtime.device)
    exact, found = outputs(model, split.examples, runtime), {}
    for engine in ("minibert", *(f"minibert {mode}" for mode in MODES)):
        if why_not(engine, runtime.device):
            continue
        made = fast(model, engine.split()[1]) if engine != "minibert" else model
        scores, logits = judge(made, task, split, runtime)
        found[engine] = {**scores,
                         "largest_logit_change": float(abs(logits - exact).max()),
                         "mean_logit_change": float(abs(logits - exact).mean())}
        if task.kind == "classes":
            found[engine]["answers_changed"] = int((logits.argmax(-1) != exact.argmax(-1)).sum())
    rows = [{"mode": engine, **{key: f"{value:.4g}" if isinstance(value, float) else str(value)
                                for key, value in one.items()}} for engine, one in found.items()]
    print(table(rows, f"{folder} on the {len(split.examples.lengths)} examples of {task.name}'s dev set; "
                      f"largest logit {abs(exact).max():.2f}"), flush=True)
    return found


def percentiles(values: list[float]) -> dict[str, float]:
    """Returns a dict with the median and the 5th, 95th and 99th percentiles of `values`."""
    return dict(zip(("median", "p5", "p95", "p99"), np.percentile(values, (50, 5, 95, 99)).tolist()))


def figures(turns: list[dict], memory: int, flops: float, flops_together: float, peak: float,
            batch: int) -> dict:
    """Returns a dict with the figures of one engine. `turns` has the results of the measurements (see
    `inference_worker`), and `memory` is the peak memory in bytes. `flops` counts the FLOPs of all examples,
    and `flops_together` counts the FLOPs of the `batch` examples that ran together. `peak` is the result of
    `matrix_peak`.

    The entry "pass" is the time in seconds for all examples, one at a time (median over the measurements).
    "share_of_peak" has two shares of `peak`: for the examples one at a time, and for the batch.
    """
    passes = [sum(turn["alone"]) for turn in turns]
    together = [turn["together"] for turn in turns]
    sentences, lowest_highest = rate(batch, together)
    return {"latency": percentiles([s for turn in turns for s in turn["alone"]]),
            "pass": statistics.median(passes), "pass_spread": [min(passes), max(passes)],
            "sentences_per_second": sentences, "spread": lowest_highest,
            "share_of_peak": [rate(flops, passes)[0] / peak, rate(flops_together, together)[0] / peak],
            "peak_memory_bytes": memory}


def compare_engines(name: str, config: Config, engines: list[str], job: Job, turns: int) -> dict:
    """Runs the engines alternately and prints a table. Returns a dict from the name of each engine to the
    result of `figures`, with two more entries: "times_as_fast" and "logit_change". These two compare the
    engine with "transformers fp32" if `engines` has it, otherwise with the first of `engines`.
    """
    taken, memory = alternate(inference_worker, engines, job, turns)
    peak = matrix_peak(start(job.device, "fp32", job.threads, training=False))
    flops = [encoder_flops(config, len(ids)) for ids in job.ids]
    first = "transformers fp32" if "transformers fp32" in engines else engines[0]
    found, rows = {}, []
    batch = min(job.batch, len(job.ids))
    for engine in engines:
        one = figures(taken[engine], memory[engine], sum(flops), sum(flops[:batch]), peak, batch)
        found[engine] = one
        passes, first_passes = ([sum(turn["alone"]) for turn in taken[which]] for which in (engine, first))
        one["times_as_fast"] = statistics.median(ratios(first_passes, passes))
        one["logit_change"] = float(abs(taken[engine][0]["logits"] - taken[first][0]["logits"]).max())
        ms = {key: f"{1e3 * value:.1f}" for key, value in one["latency"].items()}
        rows.append({"engine": engine, "ms each": ms["median"], "p5 - p95": f"{ms['p5']} - {ms['p95']}",
                     "p99": ms["p99"], "pass s": f"{one['pass']:.2f}",
                     "from - to": "{:.2f} - {:.2f}".format(*one["pass_spread"]),
                     f"x {first}": f"{one['times_as_fast']:.2f}",
                     "together/s": f"{one['sentences_per_second']:.1f}",
                     "from - to ": "{:.1f} - {:.1f}".format(*one["spread"]),
                     "of peak": "{:.0f} %, {:.0f} %".format(*(100 * share for share in one["share_of_peak"])),
                     "logits by": f"{one['logit_change']:.0e}",
                     "memory": f"{memory[engine] / 2**30:.2f} GiB"})
    tokens = sum(map(len, job.ids)) / len(job.ids)
    print(table(rows, f"{name}: {len(job.ids)} examples of {tokens:.0f} tokens on average, one at a time; "
                      f"{batch} of them together; {job.threads} threads; the peak is "
                      f"{peak / 1e9:,.0f} GFLOP/s"), flush=True)
    return found


def bench_inference(options: InferenceBench) -> dict:
    """Runs `bench.py inference` and returns the results."""
    runtime = start(options.device, "fp32", training=False)
    counts = options.threads or tuple(sorted({1, torch.get_num_threads()}))
    tuned = [name for name in options.models if name not in PRESETS]
    if tuned and not options.data:
        raise UserError(f"{tuned[0]} is not a preset; to measure the scores of a model in a folder, give "
                        "--data")
    reasons = {engine: why_not(engine, runtime.device) for engine in options.engines or ENGINES}
    for engine, reason in reasons.items():
        if reason:
            print(f"without {engine}: {reason}")
        elif engine.startswith("minibert "):
            print(kernels_of(engine.split()[1], runtime.device)[1])
    engines = [engine for engine, reason in reasons.items() if not reason]
    if not engines:
        raise UserError("none of the engines can run on this machine")
    results = []
    for name in options.models:
        scores = quality(name, options.task, options.data, options.max_length, options.examples,
                         runtime) if name in tuned else None
        tokenizer = minibert.load_tokenizer(name if name in tuned else options.tokenizer)
        examples = material(options, tokenizer)  # before `write_model`, to report a wrong --data early
        with tempfile.TemporaryDirectory() as folder:
            config = write_model(name, tokenizer, Path(folder), engines, examples)
            for threads in counts:
                job = Job(Path(folder), *examples, options.batch, options.device, threads)
                results.append({"model": name, "threads": threads, "quality": scores,
                                "engines": compare_engines(name, config, engines, job, options.turns)})
    return {"bench": "inference", "options": dataclasses.asdict(options), "machine": describe(runtime),
            "padded_batch": PADDED, "absent": {k: v for k, v in reasons.items() if v}, "results": results}


def write_model(name: str, tokenizer, folder: Path, engines: list[str],
                examples: tuple[list[list[int]], list[list[int]]]) -> Config:
    """Loads a model from the folder `name`, or makes the preset `name` with random weights. Writes to
    `folder` the files that the engines need. Returns the model's configuration.
    """
    if name in PRESETS:
        torch.manual_seed(0)
        shape = PRESETS[name]
        model = init_weights(Classifier(dataclasses.replace(
            shape, vocab_size=max(shape.vocab_size, tokenizer.vocab_size))))
    else:
        model = minibert.load(name)
    write_files(model, tokenizer, folder, engines, examples)
    return model.config

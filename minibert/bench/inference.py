"""Times inference with minibert and with other installed engines, and measures the scores of each mode.

Examples run one at a time, as in the DistilBERT paper (Sanh et al. 2019, table 3: the pairs of the STS-B dev
set). Then some examples run together in batches. Every engine has its own process, with a given number of
threads. The engines take turns on the same sentences, with the same weights. A result is copied to the CPU
before the clock stops, so the time includes the work of the GPU.
"""

import dataclasses
import math
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
from minibert.bench.quality import plot, quality
from minibert.bench.turns import alternate, rate, ratios, serve
from minibert.common.console import table
from minibert.common.errors import UserError
from minibert.common.options import at_least_one, option
from minibert.common.runtime import describe, start
from minibert.inference.fast_encoder import kernels_of
from minibert.model.config import PRESETS, Config, preset
from minibert.model.init import init_weights
from minibert.model.heads import Classifier
from minibert.tasks.official_files import read_examples
from minibert.tasks.specs import TASKS, TEXT_TASKS

ROOT = Path(__file__).parents[2]
# The lengths of the STS-B dev pairs in tokens of bert-base-uncased are modelled as log-normal: median 29, at
# least 8 tokens.
LOG_MEAN, LOG_DEVIATION = 3.354, 0.432


@dataclass(frozen=True)
class InferenceBench:
    """Every option of bench.py inference."""

    models: tuple[str, ...] = option(
        ("bert-base", "distilbert"), "presets (random weights), or folders of models that were fine-tuned on "
        "--task; for a folder, the scores of each mode are measured, too")
    grid: bool = option(False, "compare depth and width: models of 2 to 24 layers, all with about as "
                                "many parameters in the layers as distilbert")
    task: str = option("stsb", "the task whose dev examples are run", choices=TEXT_TASKS)
    data: str | None = option(None, "folder of the official files of the task, or its parent folder; "
                              "without --data: random tokens, with lengths like those of STS-B")
    tokenizer: str = option(str(ROOT / "weights" / "teacher"), "folder of the tokenizer for presets")
    examples: int | None = option(None, "number of examples of the dev set (default: all; without --data: "
                                  "100)")
    batch: int = option(32, "number of examples that run together, to measure the throughput")
    turns: int = option(3, "number of measured turns of each engine, after one warm-up turn")
    engines: tuple[str, ...] = option(
        (), "engines to run, each in quotes: 'minibert int8' 'transformers fp32' (default: all engines that "
        "run here)",
        choices=tuple(ENGINES))
    threads: tuple[int, ...] = option((), "number of CPU threads; several numbers are measured one after "
                                      "the other (default: 1, and the number that torch chooses)")
    max_length: int = option(128, "longest example in tokens; longer ones are cut")
    files: str | None = option(None, "folder for the files of the engines; existing files are used again "
                               "(default: a temporary folder)")
    plot: str | None = option(None, "name of a PNG file for a plot of speed and score of fine-tuned models")
    device: str = option("auto", "device, for example cpu, cuda or cuda:1")

    def __post_init__(self):
        at_least_one(self, "batch", "turns", "examples")
        if min(self.threads, default=1) < 1:
            raise UserError("--threads must be at least 1")
        if self.grid and any(not name.startswith("minibert") for name in self.engines):
            raise UserError("--grid compares shapes in minibert's own engines only")


@dataclass(frozen=True)
class Job:
    """The settings and the examples for the process of one engine."""

    folder: str
    texts: list[str] | None  # None if there are only tokens
    pairs: list[str] | None
    ids: list[list[int]]
    segments: list[list[int]]
    batch: int
    max_length: int
    device: str
    threads: int


def inference_worker(engine: str, job: Job, pipe) -> None:
    """Runs one engine in its own process. A turn returns the seconds of every example and of the batch, and
    the logits of the batch.
    """
    runtime = start(job.device, "fp32", job.threads, training=False)
    run = ENGINES[engine](Path(job.folder), runtime.device)
    tokenizer = minibert.load_tokenizer(Path(job.folder) / "model") if job.texts else None

    def turn() -> dict:
        alone, with_tokenizer = [], []
        for i in range(len(job.ids)):
            begun = time.perf_counter()
            if tokenizer:
                tokenizer.encode([job.texts[i]], job.pairs and [job.pairs[i]], job.max_length)
            tokens = time.perf_counter()
            run([job.ids[i]], [job.segments[i]])
            ended = time.perf_counter()
            alone.append(ended - tokens)
            with_tokenizer.append(ended - begun)
        begun = time.perf_counter()
        logits = run(job.ids[:job.batch], job.segments[:job.batch])
        return {"alone": alone, "with_tokenizer": with_tokenizer, "together": time.perf_counter() - begun,
                "logits": logits}
    serve(turn, pipe, runtime.device)


def grid_shapes() -> dict[str, Config]:
    """Shapes with the 42.5M parameters of distilbert's layers: 12 L D^2 for L layers of width D."""
    base = preset("distilbert")
    made = {}
    for layers in (2, 3, 6, 12, 24):
        width = round(base.hidden_size * math.sqrt(base.layers / layers) / 32) * 32
        made[f"{layers} x {width}"] = dataclasses.replace(
            base, layers=layers, hidden_size=width, heads=width // 32, intermediate_size=4 * width)
    return made


def material(options: InferenceBench, tokenizer) -> tuple:
    """Returns texts, pairs, ids and segments of the examples. 

    The order is random, so that a batch has examples of different lengths.
    """
    rng = np.random.default_rng(0)
    if options.data is None:
        lengths = np.exp(rng.normal(LOG_MEAN, LOG_DEVIATION, options.examples or 100)).round()
        ids = [rng.integers(5, tokenizer.vocab_size, int(n)).tolist()
               for n in lengths.clip(8, options.max_length)]
        return None, None, ids, [[0] * len(one) for one in ids]
    task = TASKS[options.task]
    rows = read_examples(task, options.data, task.dev_splits[0])
    rows = [rows[i] for i in rng.permutation(len(rows))[:options.examples]]
    texts = [row.text for row in rows]
    pairs = None if rows[0].pair is None else [row.pair for row in rows]
    return texts, pairs, *tokenizer.encode(texts, pairs, options.max_length)


def percentiles(some: list[float]) -> dict[str, float]:
    """The median and the 5th, 95th and 99th percentiles of some values."""
    return dict(zip(("median", "p5", "p95", "p99"), np.percentile(some, (50, 5, 95, 99)).tolist()))


def figures(turns: list[dict], memory: int, flops: float, flops_together: float, peak: float,
            batch: int) -> dict:
    """The figures of one engine, from the times of its turns.

    A turn has the seconds of each example alone, whose sum is a pass, and the seconds of the batch together.
    """
    passes = [sum(turn["alone"]) for turn in turns]
    together = [turn["together"] for turn in turns]
    sentences, spread = rate(batch, together)
    return {"latency": percentiles([s for turn in turns for s in turn["alone"]]),
            "latency_with_tokenizer": percentiles([s for turn in turns for s in turn["with_tokenizer"]]),
            "pass": statistics.median(passes), "pass_spread": [min(passes), max(passes)],
            "pass_with_tokenizer": statistics.median(sum(turn["with_tokenizer"]) for turn in turns),
            "sentences_per_second": sentences, "spread": spread,
            "share_of_peak": [rate(flops, passes)[0] / peak, rate(flops_together, together)[0] / peak],
            "peak_memory_bytes": memory}


def compare_engines(name: str, config: Config, engines: list[str], job: Job, turns: int) -> dict:
    """Runs the engines in turns, prints a table and returns the figures of each engine."""
    taken, memory = alternate(inference_worker, engines, job, turns)
    peak = matrix_peak(start(job.device, "fp32", job.threads, training=False))
    flops = [encoder_flops(config, len(ids)) for ids in job.ids]
    first = "transformers fp32" if "transformers fp32" in engines else engines[0]
    found, rows = {}, []
    batch = min(job.batch, len(job.ids))
    for engine in engines:
        one = figures(taken[engine], memory[engine], sum(flops), sum(flops[:batch]), peak, batch)
        found[engine] = one
        ours, theirs = ([sum(turn["alone"]) for turn in taken[which]] for which in (engine, first))
        one["times_as_fast"] = statistics.median(ratios(theirs, ours))
        one["logit_change"] = float(abs(taken[engine][0]["logits"] - taken[first][0]["logits"]).max())
        ms = {key: f"{1e3 * value:.1f}" for key, value in one["latency"].items()}
        row = {"engine": engine, "ms each": ms["median"], "p5 - p95": f"{ms['p5']} - {ms['p95']}",
               "p99": ms["p99"], "pass s": f"{one['pass']:.2f}",
               "from - to": "{:.2f} - {:.2f}".format(*one["pass_spread"])}
        if job.texts:
            row["with tokenizer"] = f"{one['pass_with_tokenizer']:.2f}"
        row |= {f"x {first}": f"{one['times_as_fast']:.2f}",
                "together/s": f"{one['sentences_per_second']:.1f}",
                "from - to ": "{:.1f} - {:.1f}".format(*one["spread"]),
                "of peak": "{:.0f} %, {:.0f} %".format(*(100 * share for share in one["share_of_peak"])),
                "logits by": f"{one['logit_change']:.0e}", "memory": f"{memory[engine] / 2**30:.2f} GiB"}
        rows.append(row)
    tokens = sum(map(len, job.ids)) / len(job.ids)
    print(table(rows, f"{name}: {len(job.ids)} examples of {tokens:.0f} tokens on average, one at a time; "
                      f"{batch} of them together; {job.threads} threads; the peak is "
                      f"{peak / 1e9:,.0f} GFLOP/s"), flush=True)
    return found


def bench_inference(options: InferenceBench) -> dict:
    """Measures and prints. Returns the content of the JSON line as a dict."""
    runtime = start(options.device, "fp32", training=False)
    counts = options.threads or tuple(sorted({1, torch.get_num_threads()}))
    shapes = grid_shapes() if options.grid else {name: PRESETS.get(name) for name in options.models}
    tuned = [name for name, shape in shapes.items() if shape is None]
    if tuned and not options.data:
        raise UserError(f"{tuned[0]} is no preset, and the quality of a folder's model needs --data")
    if options.plot and not tuned:
        raise UserError("--plot needs a fine-tuned model: --models FOLDER")
    wanted = options.engines or tuple(ENGINES)
    if options.grid and not options.engines:
        wanted = ("minibert", "minibert fp32", "minibert int8")
    reasons = {engine: why_not(engine, runtime.device) for engine in wanted}
    for engine, reason in reasons.items():
        if reason:
            print(f"without {engine}: {reason}")
        elif engine.startswith("minibert "):
            print(kernels_of(engine.split()[1], runtime.device)[1])
    engines = [engine for engine, reason in reasons.items() if not reason]
    if not engines:
        raise UserError("none of the engines asked for runs here")
    results = []
    for name, shape in shapes.items():
        scores = None if shape else quality(name, options.task, options.data, options.max_length,
                                            options.examples, runtime)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(options.files or temporary) / name.strip("/").replace("/", "-").replace(" ", "")
            tokenizer = minibert.load_tokenizer(options.tokenizer if shape else name)
            # an error in --data is reported before the files are made
            examples = material(options, tokenizer)
            torch.manual_seed(0)
            model = (init_weights(Classifier(dataclasses.replace(
                shape, vocab_size=max(shape.vocab_size, tokenizer.vocab_size)))) if shape
                else minibert.load(name))
            write_files(model, tokenizer, folder, engines, examples[2:])
            config = model.config
            del model
            for threads in counts:
                job = Job(str(folder), *examples, options.batch, options.max_length,
                          options.device, threads)
                results.append({"model": name, "threads": threads, "quality": scores,
                                "engines": compare_engines(name, config, engines, job, options.turns)})
    if options.plot:
        metric = TASKS[options.task].metrics[0]
        plot([result for result in results if result["quality"]], metric, options.plot)
    return {"bench": "inference", "options": dataclasses.asdict(options), "machine": describe(runtime),
            "padded_batch": PADDED, "absent": {k: v for k, v in reasons.items() if v}, "results": results}

"""Measures the time of a training step, for one or several methods of train.py. If the only method is
`distilbert`, the same step is also measured with models of `transformers`, unless --no-peer is given. The
methods (and transformers) run alternately, with the same sequences. The number of tokens per second does not
include padding.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from minibert.bench.flops import matrix_peak, useful_flops
from minibert.bench.transformers_peer import at_rate, check_peer, transformers_model, transformers_step
from minibert.bench.turns import alternate, compared, rate, serve, speeds
from minibert.common.console import table
from minibert.common.errors import UserError
from minibert.common.options import MachineOptions, at_least_one, option
from minibert.common.runtime import describe, start
from minibert.data.loader import cut
from minibert.distill.distilbert import DistilBERTWeights
from minibert.distill.methods import METHODS
from minibert.model.batch import IGNORE, Step
from minibert.model.config import Config, preset
from minibert.model.init import init_weights
from minibert.model.heads import MaskedLM, build_encoder
from minibert.training.models import hold_frozen
from minibert.training.optim import adamw, set_learning_rate
from minibert.training.step import accumulate, update

CLIP, LR = 5.0, 1e-4
PEER, COMPILED = "transformers", "transformers compiled"
# The method mobilebert is left out, because it does not support the default models, BERT and DistilBERT.
TIMED = tuple(name for name in METHODS if name != "mobilebert")


@dataclass(frozen=True)
class TrainBench(MachineOptions):
    """Every option of `bench.py train`."""

    teacher: str = option("bert-base", "preset of the teacher (random weights)", group="measurement")
    student: str = option("distilbert", "preset of the student (random weights)")
    methods: tuple[str, ...] = option(("distilbert",), "methods of train.py whose steps are timed",
                                       choices=TIMED)
    batch: int = option(8, "number of sequences in one training step")
    max_length: int = option(128, "maximum length of a sequence in tokens")
    min_length: int = option(16, "minimum length of a sequence in tokens; all lengths from --min-length to "
                                  "--max-length are equally likely")
    steps: int = option(4, "number of training steps in one measurement")
    turns: int = option(5, "number of measurements of each method (and of transformers), after one warm-up")
    dropout: float = option(0.1, "dropout of embeddings, and of the outputs of attention and feed-forward "
                                 "networks")
    peer: bool = option(True, "also measure the same step in transformers (only if --methods is distilbert)")
    compiled_peer: bool = option(False, "also measure the step of --peer with torch.compile")

    def __post_init__(self):
        super().__post_init__()
        at_least_one(self, "batch", "steps", "turns")
        if not 2 < self.min_length <= self.max_length <= self.micro_tokens:
            raise UserError("lengths must be in order: 2 < --min-length <= --max-length <= --micro-tokens")


def random_sequences(options: TrainBench, vocab_size: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Returns random sequences: a list with one tuple (ids, lengths, selected) for each step. `ids` has the
    token ids of all sequences of the step, one after another. `lengths` has the number of tokens of each
    sequence. `selected` is True for masked tokens, about 15 % of all tokens. Every call returns the same
    sequences.
    """
    rng = np.random.default_rng(0)
    steps = []
    for _ in range(options.steps):
        lengths = rng.integers(options.min_length, options.max_length + 1, options.batch)
        ids = rng.integers(5, vocab_size, lengths.sum())
        steps.append((ids, lengths, rng.random(len(ids)) < 0.15))
    return steps


def shapes(options: TrainBench) -> tuple[Config, Config]:
    """Returns the configurations (teacher, student), with the dropout of `options`."""
    return tuple(dataclasses.replace(preset(name), dropout=options.dropout)
                 for name in (options.teacher, options.student))


def distillation_turn(method: str, options: TrainBench, runtime):
    """Returns a function that runs the steps of one measurement with minibert, with a constant learning rate.
    """
    timed = METHODS[method]
    weights, build = timed.weights(), MaskedLM if timed.head == "mlm" else build_encoder
    teacher, student = (init_weights(build(config)) for config in shapes(options))
    if timed.module:
        student = timed.module(student, teacher)
    hold_frozen(teacher, runtime)
    student.to(runtime.device).train()
    optimizer, scaler = adamw(student, (0.9, 0.98), 1e-6, 0.0), runtime.scaler()
    set_learning_rate(optimizer, LR)
    data = []
    for number, (ids, lengths, selected) in enumerate(random_sequences(options, teacher.config.vocab_size)):
        micro = cut(ids, lengths, np.where(selected, 4, ids), selected, options.micro_tokens, (number,))
        data.append(Step(micro, len(ids), int(selected.sum()), len(lengths)))

    def turn() -> None:
        for step in data:
            counts = timed.counts(step, weights)
            sums = accumulate(student, partial(timed.loss, student, teacher, weights=weights, counts=counts),
                              step.micro_batches, scaler, runtime)
            update(student, optimizer, sums, counts, scaler, runtime, CLIP)
    return turn


def transformers_distillation_turn(options: TrainBench, runtime, compiled: bool):
    """Returns a function that runs the steps of one measurement with transformers. The sequences of all steps
    are sorted by length and then divided into batches, so that the batches need little padding. If
    `compiled` is true, both models use torch.compile.
    """
    teacher, student = (transformers_model(config).to(runtime.device) for config in shapes(options))
    teacher.eval().requires_grad_(False)
    student.train()
    if compiled:
        teacher.compile(dynamic=True)
        student.compile(dynamic=True)
    optimizer = at_rate(adamw(student, (0.9, 0.98), 1e-6, 0.0), LR)
    pool = []
    for ids, lengths, selected in random_sequences(options, teacher.config.vocab_size):
        borders = np.cumsum(lengths)[:-1]
        inputs, labels = np.where(selected, 4, ids), np.where(selected, ids, IGNORE)
        pool += [(torch.from_numpy(i), torch.from_numpy(k)) for i, k in
                 zip(np.split(inputs, borders), np.split(labels, borders))]
    pool.sort(key=lambda pair: len(pair[0]))
    batches = [pool[i:i + options.batch] for i in range(0, len(pool), options.batch)]

    def turn() -> None:
        for batch in batches:
            transformers_step(student, teacher, *map(list, zip(*batch)), DistilBERTWeights(), optimizer,
                              runtime, CLIP)
    return turn


def train_worker(kind: str, options: TrainBench, pipe) -> None:
    """Runs all measurements of one program. `kind` is `PEER`, `COMPILED` or the name of a method. If only one
    method is timed, `kind` is "minibert" for this method.
    """
    torch.manual_seed(0)
    peer = kind in (PEER, COMPILED)
    runtime = start(options.device, options.precision, options.threads, training=not peer)
    turn = transformers_distillation_turn(options, runtime, kind == COMPILED) if peer else distillation_turn(
        options.methods[0] if kind == "minibert" else kind, options, runtime)
    serve(turn, pipe, runtime.device)


def bench_train(options: TrainBench) -> dict:
    """Runs `bench.py train` and returns the results."""
    peer = options.peer and options.methods == ("distilbert",)
    method_of = {method: method for method in options.methods}
    if len(method_of) == 1:
        method_of = {"minibert": options.methods[0]}
    peers = [PEER, *[COMPILED] * options.compiled_peer] if peer else []
    kinds = [*method_of, *peers]
    teacher, student = shapes(options)
    # if a method does not support the models, the error comes now, not after the long warm-up
    for method in options.methods:
        METHODS[method].fit(student, teacher, METHODS[method].weights())
    if peer:
        check_peer(teacher, student)
    runtime = start(options.device, options.precision, options.threads, training=False)
    peak = matrix_peak(runtime)
    seconds, memory = alternate(train_worker, kinds, options, options.turns)
    steps = random_sequences(options, student.vocab_size)
    tokens = sum(len(ids) for ids, _, _ in steps)
    figures, rows = speeds(tokens, "tok", ",.0f", seconds, memory)
    for kind in kinds:
        flops = sum(useful_flops(teacher, student, lengths, method_of.get(kind, "distilbert"))
                    for _, lengths, _ in steps)
        used, _ = rate(flops, seconds[kind])
        figures[kind] |= {"flops_per_second": used, "share_of_peak": used / peak}
        rows[kind] |= {"GFLOP/s": f"{used / 1e9:,.0f}", "of matrix peak": f"{100 * used / peak:.0f} %",
                       "peak memory": rows[kind].pop("peak memory")}  # moves the memory to the last column
    title = (f"{options.teacher} to {options.student}, {options.batch} sequences of {options.min_length} to "
             f"{options.max_length} tokens, {tokens / options.steps:,.0f} tokens a step, "
             f"{runtime.precision}, dropout {options.dropout}")
    print(table([*rows.values()], title))
    result = {"bench": "train", "options": dataclasses.asdict(options), "machine": describe(runtime),
              "matrix_peak": peak, **figures}
    if peers:
        result |= compared(seconds, memory)
    if COMPILED in peers:
        result["compiled"] = compared(seconds, memory, COMPILED)
    return result

"""Pre-training and pre-training distillation of BERT.

The file reads top to bottom: options, data, models; `main`; one loop, `learn`; the result.
The maths is one import away: minibert/methods.py names the loss terms, minibert/model.py is the encoder.
"""

import copy
import dataclasses
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

import minibert
from minibert import inner_methods, methods, report, transfer
from minibert.checkpoint import load_checkpoint, save_checkpoint
from minibert.corpus import Corpus, NoSequences, open_corpus
from minibert.disk import write_json
from minibert.errors import UserError, run_script
from minibert.evaluate import attention_kl, evaluate, evaluate_terms, held_out_batches
from minibert.feed import Step, ahead, make_step
from minibert.heads import encoder_of
from minibert.inner_methods import InnerWeights, Learner, Projections
from minibert.masking import SELECTIONS, smoothed_weights
from minibert.methods import Weights
from minibert.optim import OPTIMIZERS, learning_rate, warmup_steps
from minibert.options import at_least_one, numbers, only_for, option, parse, term_weights, within
from minibert.prepare import prepare
from minibert.python_docs import prepare_python_docs
from minibert.run_folder import (append_row, check_corpus, cut_metrics, end_stopped, last_tokens, open_run,
                                 say, stop_requests)
from minibert.runtime import PRECISIONS, Runtime, compile_encoder, describe, start
from minibert.schedules import (SCHEDULES, TRANSFER_SHARE, Stage, enter, part_of, rates, stage_at,
                                stage_weights, stages)
from minibert.step import skipped_running, training_step
from minibert.students import check_read, load_models
from minibert.tokenizer import Tokenizer
from minibert.transfer import TransferWeights

HERE = Path(__file__).resolve().parent
BUNDLED_TEACHER = HERE / "weights" / "teacher"

EXAMPLES = """examples:
  python train.py --out runs/demo              the bundled teacher, distilled on Python's documentation (CPU)
  python train.py --teacher bert-base-uncased --corpus my_text/ --batch 4000 --epochs 3 --out runs/mine
  python train.py --method mlm --student bert-L4-H256 --corpus data/prepared --steps 10000 --out runs/scratch
"""

# ---------------------------------------------------------------- options

FAMILY = {name: family for family in (methods, inner_methods, transfer) for name in family.METHODS}
METHODS = {name: family.METHODS[name] for name, family in FAMILY.items()}
INNER = tuple(inner_methods.METHODS)  # these need no words: no mask, no MLM head, a student of any width

# What the originals set: DistilBERT's released command, and BERT's own pre-training, which TinyBERT and
# MiniLM follow (TinyBERT's code has lr 5e-5 and 10 % warm-up).
BERTS = dict(init="teacher", masking="bert", mask_share=0.15, optimizer="adamw", lr=1e-4, warmup=0.01,
             beta2=0.999, weight_decay=0.01, clip=1.0)
METHOD_DEFAULTS = {
    "distilbert": BERTS | dict(masking="smoothed", lr=5e-4, warmup=0.05, beta2=0.98, weight_decay=0.0,
                               clip=5.0),
    "mlm": BERTS,
    "tinybert": BERTS | dict(init="random", mask_share=0.0),
    "minilm": BERTS | dict(init="random", mask_share=0.0, lr=5e-4),
    "minilmv2": BERTS | dict(init="random", mask_share=0.0, lr=5e-4),
    "mobilebert": BERTS | dict(optimizer="lamb", lr=1.5e-3, warmup=0.02),  # lr for batches of 2,048
}


def by_method(name: str) -> str:
    """An option's defaults in words: 0.0005; mlm, tinybert 0.0001."""
    methods_of: dict = {}
    for method, defaults in METHOD_DEFAULTS.items():
        methods_of.setdefault(defaults[name], []).append(method)
    (first, _), *others = methods_of.items()
    return "; ".join([str(first), *(f"{', '.join(those)}: {value}" for value, those in others)])


@dataclass(frozen=True)
class Options:
    """Every option of train.py; None means the default of the method."""

    method: str = option("distilbert", "what is minimised", choices=tuple(METHOD_DEFAULTS))
    teacher: str | None = option(None, "folder or hub name of the teacher (default: the bundled one); "
                                 "with mlm, the student only starts from it")
    student: str | None = option(
        None, "preset, or folder to start from (default: a DistilBERT of the teacher; tinybert, minilm: "
        "tinybert-4 in its vocabulary; mobilebert: a MobileBERT of its width)")
    layers: int | None = option(None, "layers of the student (default: half the teacher's)")
    layer_map: str | None = option(None, "teacher layers to start from, as 0,2,5 (default: evenly spread)")
    init: str | None = option(None, "student weights: copied from the teacher, or random "
                              f"(default: {by_method('init')})", choices=("teacher", "random"))
    token_types: str = option(
        "fold", "teacher's token type 0: folded into the positions, or dropped as published",
        choices=("fold", "drop"))
    corpus: tuple[str, ...] = option(
        ("python-docs",), "prepared folder, text files or folders, or python-docs")
    eval_corpus: tuple[str, ...] = option(
        (), "likewise, held-out text (default: the held-out part of --corpus)")
    wikitext: str = option("auto", "text files are tokenised WikiText", choices=("auto", "yes", "no"))
    one_line: bool = option(False, "one line is one sequence, instead of lines joined up to --max-length")
    max_length: int = option(128, "tokens of a sequence, [CLS] and [SEP] included")
    steps: int | None = option(None, "optimiser steps (default: from --epochs)")
    epochs: float = option(3.0, "passes over the corpus")
    batch: int = option(
        128, "sequences of one optimiser step, over all ranks and micro-batches (published: 4000)")
    micro_tokens: int = option(4096, "most tokens in one forward pass of one rank; "
                               "changes memory and, but for dropout's draws, no result")
    masking: str | None = option(None, f"which tokens are masked (default: {by_method('masking')})",
                                 choices=tuple(SELECTIONS))
    mask_share: float | None = option(
        None, f"share of tokens that are masked (default: {by_method('mask_share')})")
    weights: tuple[str, ...] = option(
        (), "weights of loss terms other than the published, as mlm=1 cosine=0 (distilbert: kl=5 mlm=2 "
        "cosine=1; tinybert: embedding, hidden, attention, minilm: attention_relation, value_relation, "
        "minilmv2: q_relation, k_relation, v_relation, 1 each; mobilebert: feature_map=100 mean=5000 "
        "variance=5 attention=1 mlm=0.5 kd=0.5)")
    schedule: str | None = option(None, "mobilebert: akt, all at once; jkt, the transfer of all layers, then "
                                  "distillation; pkt, layer by layer, then distillation (default)",
                                  choices=SCHEDULES)
    transfer_share: float | None = option(None, "share of the steps before the distillation (mobilebert jkt, "
                                          "pkt; default: 24 / 74)")
    temperature: float | None = option(None, "temperature of the KL (distilbert; default: 2) or of the KD "
                                       "(mobilebert; default: 1)")
    kl_masked_only: bool = option(False, "KL at masked tokens only, instead of all tokens (distilbert)")
    imitate: str | None = option(None, "teacher layers, from 1, that the student's imitate, as 2,4,6 "
                                 "(tinybert; default: evenly spread)")
    teacher_layer: int | None = option(None, "the teacher layer, from 1, that the student's last imitates "
                                       "(minilm, minilmv2; default: the last)")
    relation_heads: int | None = option(None, "heads that queries, keys and values are cut into (minilmv2; "
                                        "default: 48, or the most below that divide both widths)")
    optimizer: str | None = option(None, f"default: {by_method('optimizer')}", choices=("adamw", "lamb"))
    lr: float | None = option(None, f"peak learning rate (default: {by_method('lr')})")
    warmup: float | None = option(None, f"share of steps that warm up (default: {by_method('warmup')})")
    beta2: float | None = option(
        None, f"the optimiser's second decay rate; the first is 0.9 (default: {by_method('beta2')})")
    weight_decay: float | None = option(
        None, f"not for biases and norms (default: {by_method('weight_decay')})")
    clip: float | None = option(None, f"largest global gradient norm (default: {by_method('clip')})")
    dropout: float | None = option(
        None, "of the student's embeddings and block outputs (default: the model's)")
    attention_dropout: float = option(0.0, "of attention probabilities; 0.1 in the papers, but slower")
    precision: str = option("auto", "of matrix products; auto is 16 bits where native",
                            choices=("auto", *PRECISIONS))
    device: str = option("auto", "cpu, cuda, cuda:1 ...")
    compile: bool = option(False, "torch.compile the student and the teacher")
    threads: int | None = option(None, "CPU threads (default: torch's choice)")
    seed: int = option(56, "of weights, order, masks and dropout")
    eval_every: int = option(0, "steps between held-out evaluations (default: at the end only)")
    eval_sequences: int = option(1000, "held-out sequences to evaluate on")
    checkpoint_every: int = option(500, "steps between checkpoints")
    out: str = option("runs/train", "folder of the run")
    resume: bool = option(False, "continue the run in --out")

    def __post_init__(self):
        at_least_one(self, "batch", "micro_tokens", "checkpoint_every", "eval_sequences", "steps", "layers",
                     "threads")
        if self.micro_tokens < self.max_length:
            raise UserError(f"--micro-tokens {self.micro_tokens} cannot hold one sequence of "
                            f"--max-length {self.max_length}")
        within(self, 0, math.inf, "lr", "weight_decay", "eval_every")
        within(self, 0, math.inf, "epochs", "temperature", "clip", open_low=True)
        within(self, 0, 1, "warmup")
        within(self, 0, 1, "beta2", open_high=True)
        within(self, 0, 1, "mask_share", open_low=self.method not in INNER, open_high=True)
        within(self, 0, 1, "transfer_share", open_low=True, open_high=True)
        if self.schedule == "akt" and self.transfer_share is not None:
            raise UserError("--transfer-share goes with --schedule jkt and pkt: akt transfers all along")
        only_for(self, ONLY_FOR)
        if self.method == "mlm" and self.student is None and self.teacher is None:
            raise UserError("--method mlm needs --student, a preset to train from scratch or a folder to "
                            "continue from, or --teacher, whose student it then trains without distillation")
        if self.layer_map is not None and (self.init or METHOD_DEFAULTS[self.method]["init"]) == "random":
            raise UserError("--layer-map says what to copy from the teacher, and nothing is: "
                            "give --init teacher")
        loss_weights(self)


# Options that only some methods read.
ONLY_FOR = {"temperature": ("distilbert", "mobilebert"), "kl_masked_only": ("distilbert",),
            "imitate": ("tinybert",), "teacher_layer": ("minilm", "minilmv2"),
            "relation_heads": ("minilmv2",), "schedule": ("mobilebert",), "transfer_share": ("mobilebert",)}


def resolve(options: Options) -> Options:
    """The same with the method's defaults filled in."""
    check_read(options)
    defaults = METHOD_DEFAULTS[options.method]
    return dataclasses.replace(options, **{name: value for name, value in defaults.items()
                                           if getattr(options, name) is None})


def loss_weights(options: Options) -> Weights | InnerWeights | TransferWeights:
    """The weights of the method's terms and what else it can be told: as published but for the options."""
    kind = {methods: Weights, inner_methods: InnerWeights, transfer: TransferWeights}[FAMILY[options.method]]
    terms = FAMILY[options.method].TERMS[options.method]
    told = term_weights(options.weights, terms, options.method)
    settings = {"temperature": options.temperature, "kl_masked_only": options.kl_masked_only or None,
                "teacher_layer": options.teacher_layer, "relation_heads": options.relation_heads,
                "layers": options.imitate and tuple(numbers("--imitate", options.imitate))}
    told |= {name: value for name, value in settings.items() if value is not None}
    weights = kind(**told)
    if terms and not any(getattr(weights, name) for name in terms):
        raise UserError(f"every term of {options.method} has weight 0: nothing would be learned")
    return weights


# ---------------------------------------------------------------- data

def prepared(sources: tuple[str, ...], target: Path, options: Options, tokenizer, runtime,
             held_out: float) -> Path:
    """The prepared folder of a corpus option:
    itself where it is one, else made in `target` by the first rank.
    """
    if len(sources) == 1 and (Path(sources[0]) / "corpus.json").exists():
        return Path(sources[0])
    if runtime.is_writer and not (options.resume and (target / "corpus.json").exists()):
        if sources == ("python-docs",):
            prepare_python_docs(tokenizer, target)
        else:
            prepare(list(sources), tokenizer, target, wikitext=options.wikitext, held_out=held_out,
                    report=say)
    runtime.barrier()
    return target


def corpora(options: Options, tokenizer: Tokenizer, runtime: Runtime,
            out: Path) -> tuple[Corpus, Corpus | None]:
    """The text to train on, and what is never trained on; None, and a word about it, where there is none."""
    def opened(folder: Path, *parts: str) -> Corpus:
        return open_corpus(folder, options.max_length, options.one_line, parts, tokenizer)

    folder = prepared(options.corpus, out / "corpus", options, tokenizer, runtime,
                      0.0 if options.eval_corpus else 0.01)
    corpus = opened(folder, "train")
    if options.eval_corpus:
        folder = prepared(options.eval_corpus, out / "eval-corpus", options, tokenizer, runtime, 0.0)
        return corpus, opened(folder, "train", "held-out")
    try:
        return corpus, opened(folder, "held-out")
    except NoSequences as error:
        say(f"nothing will be evaluated: {error}; give --eval-corpus, or prepare the corpus with a larger "
            "--held-out (data/prepare.py)")
        return corpus, None


MAY_CHANGE = {"resume", "out", "micro_tokens", "precision", "device", "compile", "threads",
              "eval_every", "eval_sequences", "checkpoint_every"}


# ---------------------------------------------------------------- the run

class Run(NamedTuple):
    """What is learned, from what, and how it is judged."""

    student: nn.Module  # what is trained, and what a checkpoint holds
    teacher: nn.Module | None
    tokenizer: Tokenizer
    weights: Weights | InnerWeights | TransferWeights
    corpus: Corpus
    steps: int
    plan: list[Stage]  # those of MobileBERT's transfer; none with any other method
    held_out: Step | None  # what is never trained on
    score: Callable  # (model, held_out, runtime, teacher) to its figures by name


def make_run(options: Options, runtime: Runtime, out: Path) -> Run:
    """Models and text as the options say, on the device."""
    weights = loss_weights(options)
    student, teacher, tokenizer = load_models(options, weights, BUNDLED_TEACHER)
    corpus, held_out = corpora(options, tokenizer, runtime, out)
    steps = options.steps or max(1, math.ceil(options.epochs * len(corpus) / options.batch))
    plan, score, share = [], evaluate, 0.15
    if options.method == "mobilebert":
        plan = stages(options.schedule or "pkt", steps, student.config.layers,
                      TRANSFER_SHARE if options.transfer_share is None else options.transfer_share)
    if options.method in INNER:
        student = Learner(student, Projections(student.config, teacher.config)
                          if options.method == "tinybert" else None)
        score, share = partial(evaluate_terms, METHODS[options.method], weights), options.mask_share
    if held_out is not None:
        held_out = held_out_batches(held_out, tokenizer, options.eval_sequences, options.micro_tokens, share)
    student.to(runtime.device).train()
    if teacher is not None:
        runtime.hold_frozen(teacher)
    return Run(student, teacher, tokenizer, weights, corpus, steps, plan, held_out, score)


def main(argv: list[str] | None = None) -> None:
    """Trains, evaluates, writes the run folder."""
    options = resolve(parse(Options, argv, __doc__, EXAMPLES))
    runtime = start(options.device, options.precision, options.threads)
    out = Path(options.out)
    if runtime.is_writer:
        open_run(out, options, MAY_CHANGE)
    runtime.barrier()
    run = make_run(options, runtime, out)
    initial = copy.deepcopy(run.student) if run.held_out else None
    learn(run, options, runtime, out)
    if runtime.is_writer:
        finish(run, initial, options, runtime, out)
    runtime.barrier()
    runtime.leave()


def learn(run: Run, options: Options, runtime: Runtime, out: Path) -> None:
    """The loop: every step of the run, or those that are left of it."""
    student, steps, family = run.student, run.steps, FAMILY[options.method]
    optimizer = OPTIMIZERS[options.optimizer](student, (0.9, options.beta2), 1e-6, options.weight_decay,
                                              part_of if run.plan else None)
    scaler, done = runtime.scaler(), 0
    if options.resume:
        state = load_checkpoint(out / "checkpoint", student, optimizer, say, scaler)
        done = state["step"] if state else 0
        say(f"resuming after step {done}")
    if runtime.is_writer:
        open_metrics(run, options, runtime, out, done)
    if options.compile:
        for model in filter(None, (student, run.teacher)):
            compile_encoder(encoder_of(model))
    smoothing = None
    if options.masking == "smoothed":
        smoothing = smoothed_weights(run.corpus.counts, run.tokenizer.special)

    def step_data(step: int) -> Step:
        return make_step(run.corpus, run.tokenizer, step, batch=options.batch,
                         micro_tokens=options.micro_tokens, seed=options.seed, selection=options.masking,
                         share=options.mask_share, weights=smoothing, rank=runtime.rank, ranks=runtime.ranks)

    progress, skipped = report.Progress(steps, done, runtime.is_writer), 0
    tokens_before = last_tokens(out / "metrics.jsonl") if runtime.is_writer else 0
    with stop_requests() as stop, ahead(step_data, done) as upcoming:
        while done < steps:
            begun = time.perf_counter()
            data = next(upcoming)
            lr, weights, factors = at_step(done, run, options, optimizer)

            loss_of = partial(METHODS[options.method], student, run.teacher, data, weights)
            row = training_step(student, loss_of, data.micro_batches, family.term_counts(data, weights),
                                optimizer, scaler, runtime, lr, options.clip, bool(stop), factors)
            done += 1

            skipped = skipped_running(skipped, row, scaler, done)
            tokens_before += data.tokens
            row = {"step": done, "tokens": tokens_before, **row, "lr": lr * max(factors or [1.0]),
                   **({"stage": run.plan.index(stage_at(run.plan, done - 1)) + 1} if run.plan else {}),
                   "tokens_per_second": data.tokens / (time.perf_counter() - begun)}
            if run.held_out and options.eval_every and done % options.eval_every == 0 and done < steps:
                row["held_out"] = run.score(student, run.held_out, runtime,
                                            run.teacher if options.method in INNER else None)
            stopping = row["stopping"]
            if runtime.is_writer:
                append_row(out / "metrics.jsonl", row)
                progress(done, row)
                if stopping or done % options.checkpoint_every == 0 or done == steps:
                    save_checkpoint(out / "checkpoint", done, student, optimizer,
                                    {"scaler": scaler.state_dict()})
            if stopping and done < steps:
                end_stopped(stop, f"step {done}")


def at_step(step: int, run: Run, options: Options, optimizer: torch.optim.Optimizer
            ) -> tuple[float, Weights | InnerWeights | TransferWeights, list[float] | None]:
    """The learning rate of a step, what it minimises, and the rates of the student's parts; None: all alike.

    MobileBERT's stages say what is minimised when, and which parts of the student move: they are readied.
    """
    if not run.plan:
        lr = learning_rate(step, run.steps, options.lr, warmup_steps(options.warmup, run.steps))
        return lr, run.weights, None
    stage = stage_at(run.plan, step)
    factors = rates(stage, step, run.student.config.layers, options.warmup)
    enter(stage, step, run.student, optimizer, factors)
    return options.lr, stage_weights(stage, run.weights), factors


def open_metrics(run: Run, options: Options, runtime: Runtime, out: Path, done: int) -> None:
    """Writes config.json, cuts metrics.jsonl back to the step that is resumed from, says what is trained."""
    check_corpus(out, run.corpus)
    cut_metrics(out / "metrics.jsonl", done)
    write_json(out / "config.json", {"options": dataclasses.asdict(options), "steps": run.steps,
                                     "corpus": run.corpus.fingerprint,
                                     "student": dataclasses.asdict(run.student.encoder.config),
                                     **describe(runtime)})
    say(f"{options.method}: {sum(p.numel() for p in run.student.parameters()):,} parameters, "
        f"{len(run.corpus):,} sequences, {run.steps:,} steps of {options.batch} sequences, "
        f"{runtime.precision} on {runtime.device}")


def finish(run: Run, initial: nn.Module | None, options: Options, runtime: Runtime, out: Path) -> None:
    """Writes model/ and summary.json, and shows what became of the student, beside what it was."""
    student = run.student.eval()
    card = (f"Trained by `train.py --method {options.method}` of minibert; "
            "the options are in the run's `config.json`.")
    shutil.rmtree(out / "model", ignore_errors=True)
    result = student.encoder if options.method in INNER else student
    if minibert.save(result, out / "model", run.tokenizer, format="auto", card=card) == "minibert":
        say("transformers has no model of this shape: model/ is in minibert's own format")
    summary = {"tokens": last_tokens(out / "metrics.jsonl")}
    if run.held_out:
        summary |= compare(run, initial.eval(), options, runtime)
    write_json(out / "summary.json", summary)
    drawn = report.plot_curves(out / "metrics.jsonl", out / "curves.png")
    say(f"\nthe model is in {out / 'model'}" + (f", its curves in {out / 'curves.png'}" if drawn else ""))


def compare(run: Run, initial: nn.Module, options: Options, runtime: Runtime) -> dict:
    """The held-out figures of the teacher and of the student, at its start and now; shows them as a table."""
    held_out, teacher = run.held_out, run.teacher
    models = {"student, initial": initial, "student, trained": run.student}
    scores = {name: run.score(model, held_out, runtime, teacher) for name, model in models.items()}
    if teacher is not None:
        for name, model in models.items():
            scores[name]["attention_kl"] = attention_kl(model, teacher, held_out, runtime)
        models = {"teacher": teacher} | models
        scores["teacher"] = {} if options.method in INNER else evaluate(teacher, held_out, runtime)
    if options.method in INNER:  # no heads, no projections
        models = {name: encoder_of(model) for name, model in models.items()}
    rows = report.comparison(models, scores, report.tokens_per_second(models, held_out, runtime))
    say("\n" + report.table(
        rows, f"held out: {held_out.tokens:,} tokens, {held_out.masked:,} of them masked"))
    for sentence in () if options.method in INNER else report.SENTENCES:
        say(f"\n{sentence}")
        for name, model in models.items():
            say(f"  {name:18} {', '.join(report.fill_masks(model, run.tokenizer, sentence, runtime))}")
    return {"held_out": scores, "table": rows}


if __name__ == "__main__":
    run_script(main)

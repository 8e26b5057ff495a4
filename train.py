"""Pre-training and pre-training distillation of BERT.

The file reads top to bottom: data, models; `main`; one loop, `learn`; the result. Its options are in
minibert/training/options.py. The maths is one import away: minibert/distill/distilbert.py names the loss
terms, minibert/model/encoder.py is the encoder.
"""

import copy
import dataclasses
import math
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

import minibert
from minibert.common.console import say, table
from minibert.common.disk import write_json
from minibert.common.errors import UserError, run_script
from minibert.common.options import parse
from minibert.common.runtime import Runtime, compile_encoder, describe, start
from minibert.data.corpus import Corpus, NoSequences, open_corpus
from minibert.data.loader import Step, ahead, make_step
from minibert.data.masking import smoothed_weights
from minibert.data.prepare import prepare
from minibert.data.python_docs import prepare_python_docs
from minibert.data.text import find_sources
from minibert.data.tokenizer import Tokenizer
from minibert.distill.distilbert import Weights
from minibert.distill.mobilebert import TransferWeights
from minibert.distill.students import counterparts, load_models
from minibert.distill.tinybert import InnerWeights, Learner, Projections
from minibert.model.config import PRESETS
from minibert.model.heads import encoder_of
from minibert.training import summary
from minibert.training.checkpoint import load_checkpoint, save_checkpoint
from minibert.training.evaluate import attention_kl, evaluate, evaluate_terms, held_out_batches
from minibert.training.mobilebert_stages import (TRANSFER_SHARE, Stage, begin_stage, part_of, rates, stage_at,
                                                 stage_weights, stages)
from minibert.training.optim import OPTIMIZERS, learning_rate, set_learning_rate, warmup_steps
from minibert.training.options import (FAMILY, INNER, MAY_CHANGE, METHOD_DEFAULTS, METHODS, Options, loss_weights,
                                       resolve)
from minibert.training.run_folder import (append_row, check_corpus, check_weights, cut_metrics, end_stopped,
                                          last_tokens, open_run, stop_requests)
from minibert.training.step import accumulate, consecutive_skips, freeze_unread, update

HERE = Path(__file__).resolve().parent
BUNDLED_TEACHER = HERE / "weights" / "teacher"

EXAMPLES = """examples:
  python train.py --batch 32 --epochs 0.5 --out runs/first    bundled teacher, Python's documentation: minutes
  python train.py --teacher bert-base-uncased --corpus my_text/ --batch 4000 --epochs 3 --out runs/mine
  python train.py --method mlm --student bert-L4-H256 --corpus data/prepared --steps 10000 --out runs/scratch
"""

# ---------------------------------------------------------------- data

def is_prepared(sources: tuple[str, ...]) -> bool:
    """Whether a corpus option is one prepared folder, to be read as it is."""
    return len(sources) == 1 and (Path(sources[0]) / "corpus.json").exists()


def prepared(sources: tuple[str, ...], target: Path, options: Options, tokenizer, runtime,
             held_out: float) -> Path:
    """The prepared folder of a corpus option:
    itself where it is one, else made in `target` by the first rank.
    """
    if is_prepared(sources):
        return Path(sources[0])
    if runtime.is_writer and not (options.resume and (target / "corpus.json").exists()):
        if (target / "corpus.json").exists():
            raise UserError(f"{target} is there from a run that never began: remove it, or give --resume to "
                            "take it as it is")
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

    for sources in (options.corpus, options.eval_corpus):  # a slip is said before hours of preparing
        if sources not in ((), ("python-docs",)) and not is_prepared(sources) and not options.resume:
            find_sources(list(sources))
    folder = prepared(options.corpus, out / "corpus", options, tokenizer, runtime,
                      0.0 if options.eval_corpus else 0.01)
    try:
        corpus = opened(folder, "train")
    except NoSequences as error:
        raise UserError(f"{error}: give more text, or a larger --max-length, up to which the lines of a "
                        "document are joined") from None
    if corpus.left_out:
        say(corpus.left_out)
    if options.eval_corpus:
        folder = prepared(options.eval_corpus, out / "eval-corpus", options, tokenizer, runtime, 0.0)
        return corpus, opened(folder, "train", "held-out")
    try:
        return corpus, opened(folder, "held-out")
    except NoSequences as error:
        say(f"nothing will be evaluated: {error}; give --eval-corpus, or prepare the corpus with a larger "
            "--held-out (data/prepare.py)")
        return corpus, None


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
    corpus, unseen = corpora(options, tokenizer, runtime, out)
    steps = options.steps or max(1, math.ceil(options.epochs * len(corpus) / options.batch))
    plan, score, share = [], evaluate, 0.15
    if options.method == "mobilebert":
        plan = stages(options.schedule or "pkt", steps, student.config.layers,
                      TRANSFER_SHARE if options.transfer_share is None else options.transfer_share)
    if options.method in INNER:
        student = Learner(student, Projections(student.config, teacher.config)
                          if options.method == "tinybert" else None)
        score, share = partial(evaluate_terms, METHODS[options.method], weights), options.mask_share
    held_out = None
    if unseen is not None:
        held_out = held_out_batches(unseen, tokenizer, options.eval_sequences, options.micro_tokens, share)
    student.to(runtime.device).train()
    if teacher is not None:
        runtime.hold_frozen(teacher)
    return Run(student, teacher, tokenizer, weights, corpus, steps, plan, held_out, score)


def main(argv: list[str] | None = None) -> None:
    """Trains, evaluates, writes the run folder."""
    options = resolve(parse(Options, argv, __doc__, EXAMPLES, defaults={"method": METHOD_DEFAULTS}))
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

    def freeze() -> None:
        one = make_step(run.corpus, run.tokenizer, 0, batch=1, micro_tokens=options.micro_tokens, seed=options.seed,
                        selection=options.masking, share=options.mask_share, weights=smoothing)
        freeze_unread(student, partial(METHODS[options.method], student, run.teacher, one, weights),
                      one.micro_batches[0], runtime)

    stage, weights = None, run.weights
    if not run.plan:
        freeze()
    if runtime.is_writer:
        open_metrics(run, options, runtime, out, done)
    progress, skipped = summary.Progress(steps, done), 0
    tokens_before = last_tokens(out / "metrics.jsonl") if runtime.is_writer else 0
    with stop_requests() as stop, ahead(step_data, done) as upcoming:
        while done < steps:
            begun = time.perf_counter()
            data = next(upcoming)
            if run.plan and stage_at(run.plan, done) != stage:
                stage = stage_at(run.plan, done)
                weights = stage_weights(stage, run.weights)
                begin_stage(stage, done, student, optimizer)
                freeze()
            lr, factors = rate_at(done, run, options)

            loss_of = partial(METHODS[options.method], student, run.teacher, data, weights)
            set_learning_rate(optimizer, lr, factors)
            sums = accumulate(student, loss_of, data.micro_batches, scaler, runtime)
            figures, stopping = update(student, optimizer, sums, family.term_counts(data, weights), scaler, runtime,
                                       options.clip, bool(stop))
            done += 1

            skipped = consecutive_skips(skipped, figures, scaler, done)
            tokens_before += data.tokens
            row = {"step": done, "tokens": tokens_before, **figures, "lr": lr * max(factors or [1.0]),
                   **({"stage": run.plan.index(stage_at(run.plan, done - 1)) + 1} if run.plan else {}),
                   "tokens_per_second": data.tokens / (time.perf_counter() - begun)}
            if run.held_out and options.eval_every and done % options.eval_every == 0 and done < steps:
                row["held_out"] = run.score(student, run.held_out, runtime,
                                            run.teacher if options.method in INNER else None)
            if runtime.is_writer:
                append_row(out / "metrics.jsonl", row)
                progress(done, row)
                if stopping or done % options.checkpoint_every == 0 or done == steps:
                    save_checkpoint(out / "checkpoint", done, student, optimizer,
                                    {"scaler": scaler.state_dict()})
            if stopping and done < steps:
                end_stopped(stop, f"step {done}")


def rate_at(step: int, run: Run, options: Options) -> tuple[float, list[float] | None]:
    """The learning rate of a step, and what it is multiplied with for each part of the student; None: nothing."""
    if not run.plan:
        return learning_rate(step, run.steps, options.lr, warmup_steps(options.warmup, run.steps)), None
    return options.lr, rates(stage_at(run.plan, step), step, run.student.config.layers, options.warmup)


def open_metrics(run: Run, options: Options, runtime: Runtime, out: Path, done: int) -> None:
    """Writes config.json, cuts metrics.jsonl back to the step that is resumed from, says what is trained."""
    check_corpus(out, run.corpus)
    weights = check_weights(out, {
        "teacher": None if run.teacher is None else options.teacher or BUNDLED_TEACHER,
        "student": None if options.student in PRESETS else options.student})
    cut_metrics(out / "metrics.jsonl", done)
    write_json(out / "config.json", {"options": dataclasses.asdict(options), "steps": run.steps,
                                     "corpus": run.corpus.fingerprint, "weights": weights,
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
    figures = {"tokens": last_tokens(out / "metrics.jsonl")}
    if run.held_out:
        figures |= compare(run, initial.eval(), options, runtime)
    write_json(out / "summary.json", figures)
    if run.held_out and options.method not in INNER:  # these have no heads
        models = {"teacher": run.teacher, "student, initial": initial, "student, trained": student}
        say(*summary.filled_sentences(models, run.tokenizer, runtime), sep="\n")
    drawn = summary.plot_curves(out / "metrics.jsonl", out / "curves.png")
    say(f"\nthe model is in {out / 'model'}" + (f", its curves in {out / 'curves.png'}" if drawn else ""))


def compare(run: Run, initial: nn.Module, options: Options, runtime: Runtime) -> dict:
    """The held-out figures of the teacher and of the student, at its start and now; shows them as a table."""
    held_out, teacher = run.held_out, run.teacher
    models = {"student, initial": initial, "student, trained": run.student}
    scores = {name: run.score(model, held_out, runtime, teacher) for name, model in models.items()}
    if teacher is not None:
        layers = counterparts(options, run.weights, encoder_of(initial).config, teacher.config)
        for name, model in models.items():
            scores[name]["attention_kl"] = layers and attention_kl(model, teacher, layers, held_out, runtime)
        models = {"teacher": teacher} | models
        scores["teacher"] = {} if options.method in INNER else evaluate(teacher, held_out, runtime)
    if options.method in INNER:  # no heads, no projections
        models = {name: encoder_of(model) for name, model in models.items()}
    rows = summary.comparison(models, scores, summary.tokens_per_second(models, held_out, runtime))
    say("\n" + table(
        rows, f"held out: {held_out.tokens:,} tokens, {held_out.masked:,} of them masked"))
    return {"held_out": scores, "table": rows}


if __name__ == "__main__":
    run_script(main)

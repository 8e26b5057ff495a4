"""Pre-training and pre-training distillation of BERT.

The options are in minibert/training/options.py, and the methods in minibert/distill/methods.py. Read `main`
and the training loop `learn` first.
"""

import copy
import dataclasses
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

import minibert
from minibert.common.console import Progress, say, table
from minibert.common.disk import write_json
from minibert.common.errors import run_script
from minibert.common.options import numbers, parse
from minibert.common.runtime import Runtime, describe, start
from minibert.data.corpus import Corpus, NoSequences, open_corpus
from minibert.data.examples import check_pieces
from minibert.data.loader import ahead, make_step
from minibert.data.masking import Masking, smoothed_weights
from minibert.data.prepare import prepare
from minibert.data.python_docs import prepare_python_docs
from minibert.data.text import find_sources
from minibert.data.tokenizer import Tokenizer
from minibert.distill.embedding import SentenceStudent
from minibert.distill.methods import METHODS, Method
from minibert.distill.students import copied_layers, imitated_layers, make_student, preset_of
from minibert.hub.load_save import Beside
from minibert.hub.sentence_files import SHARED, sentence_files
from minibert.model.batch import MicroBatch, Step
from minibert.model.config import PRESETS
from minibert.model.heads import encoder_of
from minibert.training.checkpoint import load_checkpoint, save_checkpoint
from minibert.training.evaluate import attention_kl, evaluate_mlm, evaluate_terms, held_out_step
from minibert.training.mobilebert_stages import (TRANSFER_SHARE, Stage, begin_stage, part_of, rates, stage_at,
                                                 stage_weights, stages)
from minibert.training.models import (check_positions, check_sentence_teacher, equal_token_types, hold_frozen,
                                      keep_token_types_equal, load_alone, load_student, start_alone,
                                      with_dropout)
from minibert.training.optim import OPTIMIZERS, learning_rate, set_learning_rate, warmup_steps
from minibert.training.options import MAY_CHANGE, Options, shown_defaults
from minibert.training.plots import plot_curves
from minibert.training.run_folder import (append_row, check_corpus, check_weights, cut_metrics, end_stopped,
                                          in_words, last_tokens, open_run, stop_requests)
from minibert.training.step import accumulate, consecutive_skips, freeze_unread, update
from minibert.training.summary import comparison, filled_sentences, tokens_per_second

BUNDLED_TEACHER = Path(__file__).resolve().parent / "weights" / "teacher"

EXAMPLES = """examples:
  python train.py --batch 32 --epochs 0.5 --out runs/first    takes some minutes, with the bundled teacher
  python train.py --teacher bert-base-uncased --corpus my_text/ --batch 4000 --epochs 3 --out runs/mine
  python train.py --method mlm --student bert-L4-H256 --corpus data/prepared --steps 10000 --out runs/scratch
"""


class Run(NamedTuple):
    """The settings, the models and the text of a run."""

    options: Options
    runtime: Runtime
    out: Path
    method: Method
    weights: object  # the weights of the loss terms, and other settings, for example the temperature
    module: nn.Module  # the module to train: the student, or the method's wrapper around the student
    teacher: nn.Module | None
    origins: list[int] | None  # as in `Models`
    tokenizer: Tokenizer
    corpus: Corpus
    held_out: Step | None  # sequences for the evaluation; None: there is no held-out text
    steps: int
    plan: list[Stage]  # the stages of MobileBERT's schedule; empty for any other method


# ---------------------------------------------------------------- main

def main(argv: list[str] | None = None) -> None:
    """Trains a model, evaluates it, and writes the run folder."""
    options = parse(Options, argv, "Pre-training and pre-training distillation of BERT.", EXAMPLES,
                    defaults={"method": shown_defaults()}).resolved()
    runtime = start(options.device, options.precision, options.threads)
    out = Path(options.out)
    if runtime.is_writer:
        open_run(out, dataclasses.asdict(options), MAY_CHANGE)
    runtime.barrier()
    run = make_run(options, runtime, out)  # every rank builds the same models, because the seed is the same
    # the summary compares the trained student with this copy, which is made before the training
    initial = copy.deepcopy(run.module) if run.held_out else None
    # `learn` trains only the vector of token type 0, because the text has no other token type. The vectors
    # that are equal to this vector before `learn` become copies of the trained vector after `learn`.
    # Otherwise the token types of a text pair would have different vectors in fine-tuning.
    equal_types = equal_token_types(encoder_of(run.module))
    learn(run)
    if runtime.is_writer:
        keep_token_types_equal(encoder_of(run.module), equal_types)
        finish(run, initial)
    runtime.barrier()  # the other ranks wait while the first rank evaluates and saves
    runtime.leave()


def make_run(options: Options, runtime: Runtime, out: Path) -> Run:
    """Returns the `Run` with the models and the corpora that the options name."""
    method, weights = METHODS[options.method], options.loss_weights()
    models = make_models(options, method, weights)
    student, teacher = models.student, models.teacher
    corpus, unseen = corpora(options, models.tokenizer, runtime, out)
    steps = options.steps or max(1, math.ceil(options.epochs * len(corpus) / options.batch))
    plan = []
    if options.method == "mobilebert":
        plan = stages(options.schedule or "pkt", steps, student.config.layers,
                      TRANSFER_SHARE if options.transfer_share is None else options.transfer_share)
    held_out = None
    if unseen is not None:
        # If the method trains an MLM head, 15 % of the held-out tokens are masked, even with another
        # --mask-share. So the held-out losses of all runs with such a method are comparable.
        share = 0.15 if method.head == "mlm" else options.mask_share
        held_out = held_out_step(unseen, models.tokenizer, options.eval_sequences, options.micro_tokens,
                                 share)
    module = method.module(student, teacher) if method.module else student
    module.to(runtime.device).train()
    if teacher is not None:
        hold_frozen(teacher, runtime)
    return Run(options, runtime, out, method, weights, module, teacher, models.origins, models.tokenizer,
               corpus, held_out, steps, plan)


# ---------------------------------------------------------------- models

class Models(NamedTuple):
    """The models and the tokenizer at the start of a run."""

    student: nn.Module
    teacher: nn.Module | None
    # for each student layer, the number (from 0) of the copied teacher layer; None: no layers were copied
    origins: list[int] | None
    tokenizer: Tokenizer


def make_models(options: Options, method: Method, weights) -> Models:
    """Builds the models that the options name. Raises `UserError` if the method cannot compare this student
    with this teacher, if the tokenizer has more tokens than the student's vocabulary, or if a model has fewer
    than --max-length positions.
    """
    torch.manual_seed(options.seed)  # for the random layers of `TinyBERTStudent` and `SentenceStudent`
    alone = options.method == "mlm" and options.teacher is None
    models = student_alone(options) if alone else student_and_teacher(options, method, weights)
    name = options.student if alone else options.teacher or BUNDLED_TEACHER
    check_pieces(models.tokenizer, models.student.config, str(name))
    check_positions(options.max_length, student=models.student, teacher=models.teacher)
    with_dropout(models.student, options.dropout, options.attention_dropout)
    return models


def student_alone(options: Options) -> Models:
    """Returns `Models` with the student and its tokenizer, for training without a teacher."""
    if options.student in PRESETS:
        student, tokenizer = start_alone(options.student, options.layers, options.corpus[0], options.seed)
    else:
        student, tokenizer = load_alone(options.student, options.seed)
    return Models(student, None, None, tokenizer)


def student_and_teacher(options: Options, method: Method, weights) -> Models:
    """Returns `Models` with a student and a teacher. Both models have the head that the method needs."""
    name = options.teacher or str(BUNDLED_TEACHER)
    # Student and teacher read the same ids, so the student uses the teacher's tokenizer.
    teacher, tokenizer = minibert.load(name, head=method.head), minibert.load_tokenizer(name)
    if options.method == "embedding":
        check_sentence_teacher(teacher, tokenizer)
    student, origins = None, None
    if options.student in PRESETS:
        config = preset_of(options.student, teacher.config, options.layers, copied=options.init == "teacher")
    elif options.student:
        student = load_student(options.student, method.head, tokenizer)
        config = student.config
    else:
        config = method.shape(teacher.config, options.layers)
    # `fit` checks the config before the student is built, because building the student takes time
    compared = method.fit(config, teacher.config, weights)
    if compared:
        say(compared)
    if student is None:
        if options.init == "teacher":
            origins = (numbers("--layer-map", options.layer_map) if options.layer_map
                       else copied_layers(config.layers, teacher.config.layers))
            say(f"student layers start from teacher layers {origins}")
        student = make_student(teacher, config, layer_map=origins, init=options.init, seed=options.seed,
                               fold_segments=options.token_types == "fold")
    return Models(student, teacher, origins, tokenizer)


# ---------------------------------------------------------------- text

def is_prepared(sources: tuple[str, ...]) -> bool:
    """Returns True if `sources`, the value of a corpus option, is a single prepared folder."""
    return len(sources) == 1 and (Path(sources[0]) / "corpus.json").exists()


def prepared(sources: tuple[str, ...], target: Path, options: Options, tokenizer, runtime,
             held_out: float) -> Path:
    """Returns the folder with the prepared text of --corpus or --eval-corpus. `sources` is the value of the
    option. If `sources` is not a prepared folder, the first rank prepares the text in the folder `target`. A
    resumed run uses the text that is already in `target`. `held_out` is the share of held-out text (for
    python-docs, the share is fixed).
    """
    if is_prepared(sources):
        return Path(sources[0])
    if runtime.is_writer and not (options.resume and target.exists()):
        if sources == ("python-docs",):
            prepare_python_docs(tokenizer, target, say)
        else:
            prepare(list(sources), tokenizer, target, options.wikitext, held_out, say)
    runtime.barrier()
    return target


def corpora(options: Options, tokenizer: Tokenizer, runtime: Runtime,
            out: Path) -> tuple[Corpus, Corpus | None]:
    """Returns the corpus for training and the corpus for evaluation (--eval-corpus, or the held-out text of
    --corpus). If there is no held-out text, prints a message, and the second value is None.
    """
    def opened(folder: Path, *parts: str) -> Corpus:
        return open_corpus(folder, options.max_length, options.one_line, parts, tokenizer,
                           options.min_length)

    # `find_sources` reports wrong paths before a corpus is prepared, because preparing can take hours
    for sources in (options.corpus, options.eval_corpus):
        if sources not in ((), ("python-docs",)) and not is_prepared(sources) and not options.resume:
            find_sources(list(sources))
    unseen = None
    if options.eval_corpus:
        unseen = opened(prepared(options.eval_corpus, out / "eval-corpus", options, tokenizer, runtime, 0.0),
                        "train", "held-out")
    folder = prepared(options.corpus, out / "corpus", options, tokenizer, runtime,
                      0.0 if options.eval_corpus else 0.01)
    corpus = opened(folder, "train")
    if corpus.left_out:
        say(corpus.left_out)
    if not options.eval_corpus:
        try:
            unseen = opened(folder, "held-out")
        except NoSequences as error:
            say(f"there is no evaluation: {error}; or give --eval-corpus, or prepare the corpus with a "
                "larger --held-out (data/prepare.py)")
    return corpus, unseen


# ---------------------------------------------------------------- the loop

def learn(run: Run) -> None:
    """Runs all training steps, or the remaining steps of a resumed run."""
    options, runtime, module = run.options, run.runtime, run.module
    # beta1 is 0.9 and epsilon 1e-6, as in Google's BERT code
    optimizer = OPTIMIZERS[options.optimizer](module, (0.9, options.beta2), 1e-6, options.weight_decay,
                                              part_of if run.plan else None)
    # In fp16, the scaler multiplies the loss, because otherwise small gradients would be rounded to 0.
    scaler, done = runtime.scaler(), 0
    if options.resume:
        state = load_checkpoint(run.out / "checkpoint", module, optimizer, say, scaler)
        done = state["step"] if state else 0
        say(f"resuming after step {done}")
    draw = drawing(run)
    draw_mine = partial(draw, batch=options.batch, part=(runtime.rank, runtime.ranks))
    one = draw(0, batch=1)  # one sequence is enough to find the parameters that get a gradient
    weights, stage = run.weights, None
    if not run.plan:
        freeze_unread(module, objective(run, one, weights)[0], one.micro_batches[0], runtime)
    tokens = 0
    if runtime.is_writer:
        begin_records(run, done)
        tokens = last_tokens(run.out / "metrics.jsonl")
    progress, skipped = Progress("training", run.steps, "steps", done, stays=True), 0
    # A thread makes the data of the next step during the current step. SIGTERM or SIGINT (Ctrl-C) ends the
    # loop after the current step.
    with stop_requests() as stop, ahead(draw_mine, done) as upcoming:
        while done < run.steps:
            begun = time.perf_counter()
            if run.plan and stage_at(run.plan, done) != stage:
                stage = stage_at(run.plan, done)
                weights = stage_weights(stage, run.weights)
                # The parameters to train are chosen again, because the stages train different layers or have
                # different loss terms.
                begin_stage(stage, done, module, optimizer)
                freeze_unread(module, objective(run, one, weights)[0], one.micro_batches[0], runtime)
            data = next(upcoming)
            loss_of, counts = objective(run, data, weights)
            # the learning rate depends only on the step, so no state of a scheduler is saved
            lr, factors = rate_at(done, run)
            set_learning_rate(optimizer, lr, factors)

            sums = accumulate(module, loss_of, data.micro_batches, scaler, runtime)
            figures, stopping = update(module, optimizer, sums, counts, scaler, runtime, options.clip,
                                       bool(stop))
            done += 1

            skipped = consecutive_skips(skipped, figures, scaler, done)
            tokens += data.tokens
            row = {"step": done, "tokens": tokens, **figures, "lr": lr * max(factors or [1.0]),
                   **({"stage": run.plan.index(stage) + 1} if run.plan else {}),
                   # `update` has waited for the device, so the measured time is that of the whole step
                   "tokens_per_second": data.tokens / (time.perf_counter() - begun)}
            # Every rank computes the held-out figures, although only the first rank writes them. To wait for
            # the first rank would take as long as this computation.
            if run.held_out and options.eval_every and done % options.eval_every == 0 and done < run.steps:
                row["held_out"] = held_out_figures(run, module, with_teacher=False)
            if runtime.is_writer:
                # the row is written before the checkpoint, so every checkpoint has its row, even after a kill
                append_row(run.out / "metrics.jsonl", row)
                progress(1, in_words(row))
                if stopping or done % options.checkpoint_every == 0 or done == run.steps:
                    save_checkpoint(run.out / "checkpoint", done, module, optimizer,
                                    {"scaler": scaler.state_dict()})
            if stopping and done < run.steps:
                end_stopped(stop, f"step {done}")


def drawing(run: Run) -> Callable[..., Step]:
    """Returns a function that calls `make_step` with the corpus, the tokenizer and the options of the run.
    The caller gives this function the step, `batch` and `part`.
    """
    options, smoothing = run.options, None
    if options.masking == "smoothed":
        smoothing = smoothed_weights(run.corpus.counts, run.tokenizer.special)
    return partial(make_step, run.corpus, run.tokenizer, micro_tokens=options.micro_tokens, seed=options.seed,
                   masking=Masking(options.masking, options.mask_share, smoothing))


def objective(run: Run, data: Step, weights) -> tuple[Callable, dict[str, int]]:
    """Returns the function that computes the loss of one micro-batch, and a dict from the name of each loss
    term to its divisor.
    """
    # The divisors are counts over the whole step, with the sequences of all ranks. So the losses of all
    # micro-batches and ranks add up to the mean over the step.
    counts = run.method.counts(data, weights)
    return partial(run.method.loss, run.module, run.teacher, weights=weights, counts=counts), counts


def rate_at(step: int, run: Run) -> tuple[float, list[float] | None]:
    """Returns the learning rate of a step, and None. For MobileBERT, returns the peak learning rate, and a
    list with a factor for each part of the student. The part's learning rate is the peak rate times its
    factor (see `rates`).
    """
    options = run.options
    if not run.plan:
        return learning_rate(step, run.steps, options.lr, warmup_steps(options.warmup, run.steps)), None
    return options.lr, rates(stage_at(run.plan, step), step, run.module.config.layers, options.warmup)


def begin_records(run: Run, done: int) -> None:
    """Checks that a resumed run has the same text and loads the same weights as at its start. Removes the
    rows of all steps after step `done`, the step of the checkpoint, from metrics.jsonl. Writes config.json.
    """
    options = run.options
    check_corpus(run.out, run.corpus.fingerprint)
    hashes = check_weights(run.out, {
        "teacher": None if run.teacher is None else options.teacher or BUNDLED_TEACHER,
        "student": None if options.student in PRESETS else options.student})
    cut_metrics(run.out / "metrics.jsonl", done)
    write_json(run.out / "config.json", {
        "options": dataclasses.asdict(options), "steps": run.steps, "corpus": run.corpus.fingerprint,
        "weights": hashes, "student": dataclasses.asdict(encoder_of(run.module).config),
        **describe(run.runtime)})
    say(f"{options.method}: {sum(p.numel() for p in run.module.parameters()):,} parameters, "
        f"{len(run.corpus):,} sequences, {run.steps:,} steps of {options.batch} sequences, "
        f"{run.runtime.precision} on {run.runtime.device}")


# ---------------------------------------------------------------- the result

def held_out_figures(run: Run, model: nn.Module, with_teacher: bool) -> dict[str, float]:
    """Returns a model's figures on held-out text, as a dict. If the method trains an MLM head, these are the
    figures of `evaluate_mlm`. With `with_teacher`, they include the KL divergence to the teacher. If the
    method trains no MLM head, the figures are the loss and its terms (see `evaluate_terms`).
    """
    if run.method.head == "mlm":
        return evaluate_mlm(model, run.held_out, run.runtime, run.teacher if with_teacher else None)
    counts = run.method.counts(run.held_out, run.weights)

    def loss_of(student: nn.Module, micro: MicroBatch):
        return run.method.loss(student, run.teacher, micro, run.weights, counts)

    return evaluate_terms(loss_of, counts, model, run.held_out, run.runtime)


def finish(run: Run, initial: nn.Module | None) -> None:
    """Writes model/, summary.json and, if matplotlib is installed, curves.png. Prints the held-out figures of
    the teacher, and of the student before and after training.
    """
    options, out, module = run.options, run.out, run.module.eval()
    card = (f"Trained by `train.py --method {options.method}` of minibert; "
            "the options are in the run's `config.json`.")
    # a method without an MLM head trains no head, so only the encoder is saved
    student = module if run.method.head == "mlm" else encoder_of(module)
    if isinstance(module, SentenceStudent):
        # `SentenceStudent` uses the pooling of `source`: the student if it was loaded as a sentence encoder,
        # otherwise the teacher
        source = student if getattr(student, "sentences", None) else run.teacher
        settings = source.beside.files.get(SHARED)
        student.sentences = module.sentences
        # `save` also writes these files, which say how the sentence vector is computed
        student.beside = Beside(files=sentence_files(module.sentences, module.config.hidden_size, settings))
    minibert.save(student, out / "model", run.tokenizer, card=card)
    figures = {"tokens": last_tokens(out / "metrics.jsonl")}
    if run.held_out:
        scores, rows = compare(run, initial.eval())
        figures |= {"held_out": scores, "table": rows}
    # summary.json is written before the table is printed, because printing fails if the terminal was closed
    write_json(out / "summary.json", figures)
    if run.held_out:
        say("\n" + table(rows, f"held out: {run.held_out.tokens:,} tokens, "
                         f"{run.held_out.masked:,} of them masked"))
        if run.method.head == "mlm":
            models = {"teacher": run.teacher, "student, initial": initial, "student, trained": student}
            say(*filled_sentences(models, run.tokenizer, run.runtime), sep="\n")
    drawn = plot_curves(out / "metrics.jsonl", out / "curves.png")
    say(f"\nthe model is in {out / 'model'}" + (f", its curves in {out / 'curves.png'}" if drawn else ""))


def compare(run: Run, initial: nn.Module) -> tuple[dict[str, dict], list[dict]]:
    """Returns a dict from the name of a model to its held-out figures, and a list with the rows of the table
    that shows them. The models are the student before training (`initial`), the student after training, and
    the teacher, if there is one.
    """
    models = {"student, initial": initial, "student, trained": run.module}
    scores = {name: held_out_figures(run, model, with_teacher=True) for name, model in models.items()}
    if run.teacher is not None:
        layers = compared_layers(run)
        for name, model in models.items():
            scores[name]["attention_kl"] = (
                attention_kl(model, run.teacher, layers, run.held_out, run.runtime) if layers else None)
        models = {"teacher": run.teacher} | models
        scores["teacher"] = {}
        if run.method.head == "mlm":
            scores["teacher"] = evaluate_mlm(run.teacher, run.held_out, run.runtime)
    if run.method.head == "encoder":
        # the table counts only encoder parameters, because TinyBERT's projections are not part of the student
        models = {name: encoder_of(model) for name, model in models.items()}
    return scores, comparison(models, scores, tokens_per_second(models, run.held_out, run.runtime))


def compared_layers(run: Run) -> tuple[int, ...] | None:
    """Returns a tuple with a number (from 1) for each student layer: the number of the teacher layer whose
    attention is compared with the attention of the student layer.

    With the method tinybert, this is the teacher layer that the student layer imitates. With any other
    method, if layers were copied, it is the teacher layer from which the student layer was copied. If no
    layer was copied, the teacher layers are evenly spaced. Then returns None if the student has more layers
    than the teacher.
    """
    student, teacher = encoder_of(run.module).config.layers, run.teacher.config.layers
    if run.options.method == "tinybert":
        return imitated_layers(student, teacher, run.weights.layers)[1:]
    if run.origins is not None:
        return tuple(layer + 1 for layer in run.origins)
    return imitated_layers(student, teacher)[1:] if student <= teacher else None


if __name__ == "__main__":
    run_script(main)

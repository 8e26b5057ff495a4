"""Pre-training and pre-training distillation of BERT.

The file reads top to bottom: options, then `main`: models, data, one loop, result.
The maths is one import away: minibert/methods.py names the loss terms, minibert/model.py is the encoder.
"""

import dataclasses
import json
import math
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

import minibert
from minibert import report
from minibert.checkpoint import load_checkpoint, save_checkpoint
from minibert.config import PRESETS, preset
from minibert.corpus import Corpus, NoSequences, open_corpus
from minibert.disk import write_json
from minibert.errors import UserError, run_script
from minibert.evaluate import evaluate, held_out_batches
from minibert.feed import make_step
from minibert.heads import MaskedLM, PreTraining
from minibert.masking import SELECTIONS, smoothed_weights
from minibert.methods import METHODS, Weights, term_counts
from minibert.optim import adamw, learning_rate, warmup_steps
from minibert.options import option, parse
from minibert.prepare import prepare
from minibert.python_docs import prepare_python_docs
from minibert.run_folder import cut_metrics, last_tokens, open_run, say, stop_requests, too_many_skips
from minibert.runtime import PRECISIONS, describe, start
from minibert.step import training_step
from minibert.students import (check_fit, distilbert_of, from_scratch, layer_map, student_from,
                               with_new_mlm_head)

HERE = Path(__file__).resolve().parent
BUNDLED_TEACHER = HERE / "weights" / "teacher"

EXAMPLES = """examples:
  python train.py --out runs/demo              the bundled teacher, distilled on Python's documentation (CPU)
  python train.py --teacher bert-base-uncased --corpus my_text/ --batch 4000 --epochs 3 --out runs/mine
  python train.py --method mlm --student bert-L4-H256 --corpus data/prepared --steps 10000 --out runs/scratch
"""

# ---------------------------------------------------------------- options

# What the originals set: DistilBERT's released command, and BERT's own pre-training.
METHOD_DEFAULTS = {
    "distilbert": dict(masking="smoothed", lr=5e-4, warmup=0.05, beta2=0.98, weight_decay=0.0, clip=5.0),
    "mlm": dict(masking="bert", lr=1e-4, warmup=0.01, beta2=0.999, weight_decay=0.01, clip=1.0),
}


@dataclass(frozen=True)
class Options:
    """Every option of train.py; None means the default of the method."""

    method: str = option("distilbert", "what is minimised", choices=tuple(METHODS))
    teacher: str | None = option(None, "folder or hub name of the teacher (default: the bundled one); "
                                 "with mlm, the student only starts from it")
    student: str | None = option(
        None, "preset, or folder to start from (default: a DistilBERT of the teacher)")
    layers: int | None = option(None, "layers of the student (default: half the teacher's)")
    layer_map: str | None = option(None, "teacher layers to start from, as 0,2,5 (default: evenly spread)")
    init: str = option("teacher", "student weights: copied from the teacher, or random",
                       choices=("teacher", "random"))
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
    masking: str | None = option(None, "which tokens are masked (default: smoothed; mlm: bert)",
                                 choices=tuple(SELECTIONS))
    mask_share: float = option(0.15, "share of tokens that are masked")
    alpha_kl: float = option(5.0, "weight of the KL to the teacher")
    alpha_mlm: float = option(2.0, "weight of the MLM loss (distilbert)")
    alpha_cosine: float = option(1.0, "weight of the cosine loss of the last hidden states")
    temperature: float = option(2.0, "temperature of the KL")
    kl_masked_only: bool = option(False, "KL at masked tokens only, instead of all tokens")
    lr: float | None = option(None, "peak learning rate (default: 5e-4; mlm: 1e-4)")
    warmup: float | None = option(None, "share of steps that warm up (default: 0.05; mlm: 0.01)")
    beta2: float | None = option(
        None, "AdamW's second decay rate; the first is 0.9 (default: 0.98; mlm: 0.999)")
    weight_decay: float | None = option(None, "AdamW's, not for biases and norms (default: 0; mlm: 0.01)")
    clip: float | None = option(None, "largest global gradient norm (default: 5; mlm: 1)")
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
        for name in ("batch", "micro_tokens", "checkpoint_every", "eval_sequences"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1")
        for name in ("steps", "layers", "threads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1")
        if self.micro_tokens < self.max_length:
            raise UserError(f"--micro-tokens {self.micro_tokens} cannot hold one sequence of "
                            f"--max-length {self.max_length}")
        if not 0 < self.mask_share < 1:
            raise UserError("--mask-share must be between 0 and 1")
        if not self.epochs > 0 or not self.temperature > 0:
            raise UserError("--epochs and --temperature must be above 0")
        if self.method == "mlm" and self.student is None and self.teacher is None:
            raise UserError("--method mlm needs --student, a preset to train from scratch or a folder to "
                            "continue from, or --teacher, whose student it then trains without distillation")
        if self.layer_map is not None and self.init == "random":
            raise UserError("--layer-map says what to copy from the teacher, --init random that nothing is")


def resolve(options: Options) -> Options:
    """The same with the method's defaults filled in."""
    defaults = METHOD_DEFAULTS[options.method]
    return dataclasses.replace(options, **{name: value for name, value in defaults.items()
                                           if getattr(options, name) is None})


# ---------------------------------------------------------------- models and data

def load_models(options: Options):
    """Student, teacher (None where there is none) and tokenizer."""
    torch.manual_seed(options.seed)
    if options.method == "mlm" and options.teacher is None:
        folder_or_preset, teacher = options.student, None
        if folder_or_preset in PRESETS:
            folder = options.corpus[0] if len(options.corpus) == 1 else ""
            if not (Path(folder) / "tokenizer").is_dir():
                raise UserError(f"--student {folder_or_preset} starts without a vocabulary: "
                                "give --corpus a folder made by data/prepare.py, whose tokenizer it takes")
            tokenizer = minibert.load_tokenizer(Path(folder) / "tokenizer")
            config = dataclasses.replace(preset(folder_or_preset), vocab_size=tokenizer.vocab_size,
                                         pad_id=tokenizer.pad_id)
            student = from_scratch(config, options.seed)
        else:
            tokenizer = minibert.load_tokenizer(folder_or_preset)
            student = minibert.load(folder_or_preset)
            if isinstance(student, PreTraining):  # nothing trains NSP, and its pooler would only decay
                student = minibert.load(folder_or_preset, head="mlm")
            if not hasattr(student, "mlm"):
                say(f"{folder_or_preset} has no MLM head: a new one is trained")
                student = with_new_mlm_head(getattr(student, "encoder", student), options.seed)
    else:
        name = options.teacher or str(BUNDLED_TEACHER)
        teacher, tokenizer = minibert.load(name, head="mlm"), minibert.load_tokenizer(name)
        student = make_student(options, teacher)
    if len(tokenizer.special) > student.config.vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size} pieces, "
                        f"the model only {student.config.vocab_size}")
    if options.max_length > student.config.max_positions:
        raise UserError(f"--max-length {options.max_length} is more than the model's "
                        f"{student.config.max_positions} positions")
    changed = {"attention_dropout": options.attention_dropout}
    if options.dropout is not None:
        changed["dropout"] = options.dropout
    return with_dropout(student, **changed), teacher, tokenizer


def make_student(options: Options, teacher: MaskedLM) -> MaskedLM:
    """The student before training:
    from a folder, or a preset's shape or half the teacher's, copied or random.
    """
    if options.student and options.student not in PRESETS:
        student = minibert.load(options.student, head="mlm")
        check_fit(student.config, teacher.config)
        return student
    if options.student:
        config = dataclasses.replace(preset(options.student), vocab_size=teacher.config.vocab_size,
                                     max_positions=teacher.config.max_positions, pad_id=teacher.config.pad_id)
        if options.layers:
            config = dataclasses.replace(config, layers=options.layers)
    else:
        config = distilbert_of(teacher.config, options.layers)
    check_fit(config, teacher.config)
    if options.init == "random":
        return from_scratch(config, options.seed)
    layers = layer_map(teacher.config.layers, config.layers)
    if options.layer_map:
        try:
            layers = [int(i) for i in options.layer_map.split(",")]
        except ValueError:
            raise UserError(f"--layer-map {options.layer_map} is not a list of layers as 0,2,5") from None
    say(f"student layers start from teacher layers {layers}")
    return student_from(teacher, config, layers, options.token_types == "fold")


def with_dropout(model: MaskedLM, **changed) -> MaskedLM:
    """The same model with other dropout settings."""
    for module in model.modules():
        if hasattr(module, "config"):
            module.config = dataclasses.replace(module.config, **changed)
    return model


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


def held_out_part(folder: Path, options: Options, tokenizer) -> Corpus | None:
    """The part of a corpus that is never trained on; None, and a word about it, where it holds nothing."""
    try:
        return open_corpus(folder, options.max_length, options.one_line, ("held-out",), tokenizer)
    except NoSequences as error:
        say(f"nothing will be evaluated: {error}; give --eval-corpus, or a corpus of more documents")
        return None


MAY_CHANGE = {"resume", "out", "micro_tokens", "precision", "device", "compile", "threads",
              "eval_every", "eval_sequences", "checkpoint_every"}


# ---------------------------------------------------------------- the run

def main(argv: list[str] | None = None) -> None:
    """Trains, evaluates, writes the run folder."""
    options = resolve(parse(Options, argv, __doc__, EXAMPLES))
    runtime = start(options.device, options.precision, options.threads)
    out = Path(options.out)
    if runtime.is_writer:
        open_run(out, options, MAY_CHANGE)
    runtime.barrier()

    student, teacher, tokenizer = load_models(options)
    corpus_folder = prepared(options.corpus, out / "corpus", options, tokenizer, runtime,
                             0.0 if options.eval_corpus else 0.01)
    corpus = open_corpus(corpus_folder, options.max_length, options.one_line, ("train",), tokenizer)
    if options.eval_corpus:
        folder = prepared(options.eval_corpus, out / "eval-corpus", options, tokenizer, runtime, 0.0)
        held_out = open_corpus(folder, options.max_length, options.one_line, ("train", "held-out"), tokenizer)
    else:
        held_out = held_out_part(corpus_folder, options, tokenizer)

    steps = options.steps or max(1, math.ceil(options.epochs * len(corpus) / options.batch))
    micro_eval = [] if held_out is None else held_out_batches(held_out, tokenizer, options.eval_sequences,
                                                              options.micro_tokens)
    weights = Weights(options.alpha_kl, options.alpha_mlm, options.alpha_cosine, options.temperature,
                      options.kl_masked_only)
    method = METHODS[options.method]
    student.to(runtime.device).train()
    if teacher is not None:
        runtime.hold_frozen(teacher)
    initial = {name: t.clone() for name, t in student.state_dict().items()} if micro_eval else None
    optimizer = adamw(student, (0.9, options.beta2), 1e-6, options.weight_decay)
    scaler = runtime.scaler()
    smoothing = smoothed_weights(corpus.counts, tokenizer.special) if options.masking == "smoothed" else None

    done = 0
    if options.resume:
        state = load_checkpoint(out / "checkpoint", student, optimizer, say)
        done = state["step"] if state else 0
        if state and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        say(f"resuming after step {done}")
    if runtime.is_writer:
        cut_metrics(out / "metrics.jsonl", done)
        write_json(out / "config.json", {"options": dataclasses.asdict(options), "steps": steps,
                                         "student": dataclasses.asdict(student.config), **describe(runtime)})
    say(f"{options.method}: {sum(p.numel() for p in student.parameters()):,} parameters, "
        f"{len(corpus):,} sequences, {steps:,} steps of {options.batch} sequences, "
        f"{runtime.precision} on {runtime.device}")
    if options.compile:
        student.encoder.compile(dynamic=True)
        if teacher is not None:
            teacher.encoder.compile(dynamic=True)

    def step_data(step: int):
        return make_step(corpus, tokenizer, step, batch=options.batch, micro_tokens=options.micro_tokens,
                         seed=options.seed, selection=options.masking, share=options.mask_share,
                         weights=smoothing, rank=runtime.rank, ranks=runtime.ranks)

    progress = report.Progress(steps, done, runtime.is_writer)
    metrics = open(out / "metrics.jsonl", "a", encoding="utf-8") if runtime.is_writer else None
    tokens_before = last_tokens(out / "metrics.jsonl") if runtime.is_writer else 0
    skipped = 0
    with stop_requests() as stop, ThreadPoolExecutor(1) as ahead:
        upcoming = ahead.submit(step_data, done)
        while done < steps:
            begun = time.perf_counter()
            data, upcoming = upcoming.result(), ahead.submit(step_data, done + 1)
            lr = learning_rate(done, steps, options.lr, warmup_steps(options.warmup, steps))

            row = training_step(student, partial(method, student, teacher, data, weights), data.micro_batches,
                                term_counts(data, weights), optimizer, scaler, runtime, lr, options.clip,
                                bool(stop))
            done += 1

            # under fp16 a skip is how the loss scale settles; it counts once the scale can fall no further
            skipped = skipped + 1 if row["skipped"] and scaler.get_scale() <= 1 else 0
            if skipped == 5:
                raise too_many_skips(skipped, done)
            tokens_before += data.tokens
            row = {"step": done, "tokens": tokens_before, **row, "lr": lr,
                   "tokens_per_second": data.tokens / (time.perf_counter() - begun)}
            if micro_eval and options.eval_every and done % options.eval_every == 0 and done < steps:
                row["held_out"] = evaluate(student, micro_eval, runtime)
            if runtime.is_writer:
                metrics.write(json.dumps(row) + "\n")
                progress(done, row)
            stopping = row["stopping"]
            if stopping or done % options.checkpoint_every == 0 or done == steps:
                if runtime.is_writer:
                    metrics.flush()
                    save_checkpoint(out / "checkpoint", done, student, optimizer,
                                    {"scaler": scaler.state_dict()})
            if stopping and done < steps:
                upcoming.cancel()
                say(f"\nstopped after step {done}; continue with --resume")
                sys.exit(128 + (stop[0] if stop else signal.SIGTERM))
        upcoming.cancel()
    if runtime.is_writer:
        metrics.close()
        finish(options, out, student, teacher, initial, tokenizer, micro_eval, runtime)
    runtime.barrier()
    runtime.leave()


def finish(options: Options, out: Path, student, teacher, initial, tokenizer, micro_eval, runtime) -> None:
    """Writes model/ and summary.json, and shows what became of the student."""
    student.eval()
    card = (f"Trained by `train.py --method {options.method}` of minibert; "
            "the options are in the run's `config.json`.")
    shutil.rmtree(out / "model", ignore_errors=True)
    minibert.save(student, out / "model", tokenizer, card=card)
    summary = {"tokens": last_tokens(out / "metrics.jsonl")}
    if micro_eval:
        models = {} if teacher is None else {"teacher": teacher}
        models["student, initial"] = MaskedLM(student.config).to(runtime.device)
        models["student, initial"].load_state_dict(initial)
        models["student, trained"] = student
        scores = {name: evaluate(model, micro_eval, runtime, None if model is teacher else teacher)
                  for name, model in models.items()}
        rows = report.comparison(models, scores, report.tokens_per_second(models, micro_eval, runtime))
        say("\n" + report.table(
            rows, f"held out: {scores['student, trained']['masked_tokens']:,} masked tokens"))
        for sentence in report.SENTENCES:
            say(f"\n{sentence}")
            for name, model in models.items():
                say(f"  {name:18} {', '.join(report.fill_masks(model, tokenizer, sentence, runtime))}")
        summary |= {"held_out": scores, "table": rows}
    write_json(out / "summary.json", summary)
    drawn = report.plot_curves(out / "metrics.jsonl", out / "curves.png")
    say(f"\nthe model is in {out / 'model'}" + (f", its curves in {out / 'curves.png'}" if drawn else ""))


if __name__ == "__main__":
    run_script(main)

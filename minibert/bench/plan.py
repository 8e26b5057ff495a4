"""Calculates hours and cost of a training on one or many devices, from the tokens a second of one device.

This command measures nothing. The tokens a second of one device (the rate) come from one of three sources: a
measurement (--measured, the last line of `bench.py train`), a given number (--tokens-per-second), or an
estimate from the peak of the device and a share of it (--peak-tflops, --share). The output names the source
and all assumptions. Without options it prints two ready-made plans.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minibert.bench.flops import useful_flops
from minibert.common.console import table
from minibert.common.disk import read_text
from minibert.common.errors import UserError
from minibert.common.options import numbers, option
from minibert.data.corpus_writer import SPECIALS
from minibert.model.config import Config, preset
from minibert.model.init import on_meta
from minibert.model.heads import MaskedLM

STEP_FORMULA = """seconds a step = B / (K R) + 2 (K - 1) / K x G / W
  B is the number of tokens of a step, K the number of devices, R the tokens a second of one device, G the
  bytes of the gradient, and W the bytes a second of a device's link. The formula assumes that every device
  gets the same number of tokens. It assumes that one ring all-reduce of the gradient starts after the end of
  the last micro-batch. It assumes that latency, evaluation and checkpoints take no time."""

# The mean number of word pieces for one word, in BERT's uncased vocabulary. They were counted in samples of
# 634,000 words of English Wikipedia and of 181,000 words of public-domain books.
WIKIPEDIA_PIECES, BOOK_PIECES = 1.32, 1.25

# the number of tokens of each corpus, without [CLS] and [SEP], and its source
CORPORA = {
    "wikitext-2": (2_153_632, "counted: wiki.train.tokens by data/prepare.py with BERT's uncased vocabulary"),
    "wikitext-103": (round(103_227_021 * 2_153_632 / 2_088_628),
                     "estimated: 103,227,021 words (Merity et al. 2016) with 1.03 pieces a word, as in "
                     "WikiText-2; the true number may be higher, because fewer words are <unk>"),
    "bookcorpus+wikipedia": (round(800e6 * BOOK_PIECES + 2500e6 * WIKIPEDIA_PIECES),
                             f"estimated: 800 M and 2,500 M words (Devlin et al. 2019) with {BOOK_PIECES} "
                             f"and {WIKIPEDIA_PIECES} pieces a word, as counted in samples of such texts"),
}

# two ready-made plans; the peaks are from NVIDIA's data sheets, and the shares are assumed
READY = {
    "BookCorpus + Wikipedia, 3 epochs, on 1, 8 and 64 GPUs (A100: 312 TFLOP/s dense bf16)":
        dict(corpus_tokens="bookcorpus+wikipedia", epochs=3, machines="1,8,64", peak_tflops=312, share=0.4),
    "WikiText-2, ten epochs, on a T4 (65 TFLOP/s fp16)":
        dict(corpus_tokens="wikitext-2", epochs=10, machines="1", peak_tflops=65, share=0.3),
}


@dataclass(frozen=True)
class PlanBench:
    """Every option of bench.py plan."""

    corpus_tokens: str | None = option(None, f"number of tokens of the corpus, for example 2.5e9, or a name: "
                                             f"{', '.join(CORPORA)}")
    epochs: float = option(1.0, "number of passes over the corpus")
    machines: str = option("1", "numbers of devices, for example 1,8,64")
    tokens_per_second: float | None = option(None, "tokens that one device trains on in a second")
    measured: str | None = option(None, "result of bench.py train, for the tokens a second, the models and "
                                        "the length: its JSON line, or a file that ends with this line")
    peak_tflops: float | None = option(None, "peak of one device in 10^12 FLOP/s (needs --share)")
    share: float | None = option(None, "share of the peak that the training reaches, above 0 and at most 1")
    price: float | None = option(None, "price of one device for one hour, in any currency")
    bandwidth: float = option(25.0, "bandwidth of each device's link in 10^9 bytes a second; a 200 Gbit/s "
                                   "network has 25")
    teacher: str | None = option(None, "preset of the teacher (default: that of --measured, or bert-base)")
    student: str | None = option(None, "preset of the student (default: that of --measured, or distilbert)")
    batch: int = option(4000, "number of sequences of one step, over all devices")
    length: float | None = option(None, "mean number of tokens of a sequence, with [CLS] and [SEP] "
                                        "(default: that of --measured, or 128)")

    def __post_init__(self):
        for name in ("epochs", "tokens_per_second", "peak_tflops", "share", "bandwidth", "batch"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"--{name.replace('_', '-')} is above 0, not {value}")
        if self.share is not None and self.share > 1:
            raise UserError(f"--share is at most 1, not {self.share}: 0.4 is 40 % of the peak")
        if self.price is not None and not 0 <= self.price < float("inf"):
            raise UserError(f"--price is at least 0, not {self.price}")
        if self.length is not None and not SPECIALS < self.length < float("inf"):
            raise UserError(f"--length is more than the {SPECIALS} tokens that are added to a sequence, not "
                            f"{self.length}")


def devices(options: PlanBench) -> list[int]:
    """The numbers of devices in `--machines`."""
    found = numbers("--machines", options.machines)
    if min(found) < 1:
        raise UserError(f"--machines takes numbers of devices from 1, not {min(found)}")
    if max(found) > options.batch:
        raise UserError(f"--batch {options.batch} is less than the {max(found)} devices of --machines")
    return found


def corpus_tokens(text: str | None) -> tuple[int, str]:
    """Returns the number of tokens of a corpus and its source. `text` is a name or a number."""
    if text is None:
        raise UserError(f"--corpus-tokens is missing: a number, or one of {', '.join(CORPORA)}")
    if text in CORPORA:
        return CORPORA[text]
    try:
        tokens = float(text.replace(",", ""))
    except ValueError:
        tokens = 0.0
    if not 1 <= tokens < float("inf"):
        raise UserError(f"--corpus-tokens is a number of tokens or one of {', '.join(CORPORA)}, not {text!r}")
    return int(tokens), "given"


def read_measured(text: str) -> dict:
    """Reads a result of bench.py train. `text` is its JSON line, or the name of a file that ends with it."""
    where = "--measured"
    if not text.lstrip().startswith("{"):
        where = text
        text = next((line for line in reversed(read_text(Path(text)).split("\n")) if line.strip()), "")
    try:
        result = json.loads(text)
        rate, options = float(result["minibert"]["tokens_per_second"]), result["options"]
        found = {"tokens_per_second": rate, "teacher": options["teacher"], "student": options["student"],
                 "length": float(result["length"]), "batch": options["batch"],
                 "device": result["machine"]["device"]}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{where} holds no result of bench.py train: give its last line, or a file that ends "
                        "with it") from None
    if not 0 < rate < float("inf"):
        raise UserError(f"{where} holds a rate of {rate} tokens a second, which is none")
    return found


def flops_per_token(teacher: Config, student: Config, length: float) -> float:
    """Useful FLOPs of one token in sequences of `length`, as `bench.py train` counts them."""
    return useful_flops(teacher, student, np.array([length])) / length


def gradient_bytes(student: Config) -> int:
    """The size of the gradient that the ranks sum in each step, in bytes: fp32, with the shared word table
    counted once.
    """
    return 4 * sum(p.numel() for p in on_meta(MaskedLM, student).parameters())


def all_reduce_seconds(number: int, size: float, bandwidth: float) -> float:
    """Seconds of a ring all-reduce of `size` bytes over K devices (`number`). Each device sends
    2 (K - 1) / K x `size` bytes.
    """
    return 2 * (number - 1) / number * size / bandwidth


def rate_of(options: PlanBench, measured: dict, flops: float) -> tuple[float, str]:
    """Returns the tokens a second of one device, and the source of this number."""
    if measured:
        return measured["tokens_per_second"], (
            f"measured on {measured['device']}, in steps of {measured['batch']} sequences")
    if options.tokens_per_second is not None:
        return options.tokens_per_second, "given"
    return options.share * options.peak_tflops * 1e12 / flops, (
        f"assumed, not measured: {100 * options.share:g} % of {options.peak_tflops:g} TFLOP/s, "
        f"{flops / 1e6:,.0f} MFLOP a token")


def plan(options: PlanBench) -> dict:
    """Calculates the time and the cost of a training for each number of devices.

    In the result, `basis` has the name, the value and the source of every assumption.
    """
    by_peak = [options.peak_tflops is not None, options.share is not None]
    if (options.tokens_per_second is not None) + (options.measured is not None) + any(by_peak) != 1 or (
            any(by_peak) and not all(by_peak)):
        raise UserError("a plan needs one rate: --tokens-per-second, --measured or --peak-tflops and --share")
    tokens, whence = corpus_tokens(options.corpus_tokens)
    measured = read_measured(options.measured) if options.measured is not None else {}
    for name in ("teacher", "student"):
        if measured and getattr(options, name) not in (None, measured[name]):
            raise UserError(f"--{name} {getattr(options, name)} is not what was measured, {measured[name]}: "
                            "leave it out")
    teacher, student = (getattr(options, name) or measured.get(name) or default
                        for name, default in (("teacher", "bert-base"), ("student", "distilbert")))
    length = options.length or measured.get("length") or 128.0
    flops = flops_per_token(preset(teacher), preset(student), length)
    gradient = gradient_bytes(preset(student))
    rate, origin = rate_of(options, measured, flops)
    trained = tokens * options.epochs * length / (length - SPECIALS)
    step, link = options.batch * length, options.bandwidth * 1e9
    rows = []
    for number in devices(options):
        compute, reduce = step / number / rate, all_reduce_seconds(number, gradient, link)
        hours = trained / step * (compute + reduce) / 3600
        rows.append({"devices": number, "compute_seconds": compute, "all_reduce_seconds": reduce,
                     "speed_up": step / rate / (compute + reduce), "hours": hours,
                     "cost": None if options.price is None else hours * number * options.price})
    basis = [("corpus", f"{tokens:,} tokens", whence),
             ("trained", f"{trained:,.0f} tokens",
              f"{options.epochs:g} x corpus, and [CLS] and [SEP]; assumed: {length:g} tokens a sequence"),
             ("R", f"{rate:,.0f} tokens/s", origin),
             ("B", f"{step:,.0f} tokens", f"chosen: {options.batch:,} sequences a step"),
             ("G", f"{gradient / 1e6:,.0f} MB", f"counted: parameters of {student} in fp32"),
             ("W", f"{options.bandwidth:g} GB/s", "assumed (--bandwidth), not measured")]
    if options.price is not None:
        basis.append(("price", f"{options.price:g}", "given: of one device for an hour"))
    return {"teacher": teacher, "student": student, "corpus_tokens": tokens, "epochs": options.epochs,
            "length": length, "trained_tokens": trained, "tokens_per_second": rate, "tokens_per_step": step,
            "flops_per_token": flops, "gradient_bytes": gradient, "bandwidth": link, "price": options.price,
            "basis": basis, "devices": rows}


def show_plan(title: str, result: dict) -> None:
    """Prints the table of a plan, and then the source of each number."""
    rows = [{"devices": row["devices"], "compute a step": f"{row['compute_seconds']:.3g} s",
             "all-reduce": f"{1000 * row['all_reduce_seconds']:.3g} ms", "speed-up": f"{row['speed_up']:.1f}",
             "hours": f"{row['hours']:,.2f}", "cost": "-" if row["cost"] is None else f"{row['cost']:,.2f}"}
            for row in result["devices"]]
    print(table(rows, title))
    width = max(len(value) for _, value, _ in result["basis"])
    for name, value, whence in result["basis"]:
        print(f"  {name:7}  {value:>{width}}  {whence}")
    print()


def plan_command(ready: dict) -> str:
    """The command line that calculates a ready-made plan."""
    words = (f"--{name.replace('_', '-')} " + (value if isinstance(value, str) else f"{value:g}")
             for name, value in ready.items())
    return " ".join(["python bench.py plan", *words])


def bench_plan(options: PlanBench) -> dict:
    """Calculates and prints the plans. Returns the content of the JSON line."""
    plans = []
    if options == PlanBench():
        print("Two ready-made plans. Nothing is measured here: the rates are assumed, no price was given.\n")
        for title, ready in READY.items():
            plans.append(plan(dataclasses.replace(options, **ready)))
            show_plan(f"{title}\n{plan_command(ready)}", plans[-1])
    else:
        plans.append(plan(options))
        show_plan("{teacher} to {student}".format(**plans[0]), plans[0])
    print(STEP_FORMULA)
    return {"bench": "plan", "formula": STEP_FORMULA.split("\n")[0], "plans": plans}

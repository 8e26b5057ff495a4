"""Calculates hours and cost of a training on one or many devices, from the tokens a second of one device.

This command measures nothing. Give the tokens a second of one device, as measured by `bench.py train`
(--tokens-per-second). If they are unknown, they are estimated from the peak FLOP/s of the device and the
share of it that the training reaches (--peak-tflops, --share). The output names all assumptions.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from minibert.bench.flops import useful_flops
from minibert.common.console import table
from minibert.common.errors import UserError
from minibert.common.options import numbers, option, within
from minibert.data.corpus_writer import SPECIALS
from minibert.model.config import preset
from minibert.model.heads import MaskedLM
from minibert.model.init import on_meta

STEP_FORMULA = """seconds a step = B / (K R) + 2 (K - 1) / K x G / W
  B is the number of tokens of a step, K the number of devices, R the tokens a second of one device, G the
  bytes of the gradient, and W the bytes a second of a device's link. The formula assumes that every device
  gets the same number of tokens. It assumes that one ring all-reduce of the gradient starts after the last
  micro-batch. It assumes that latency, evaluation and checkpoints take no time."""

# These are the mean numbers of pieces of one word, in BERT's uncased vocabulary. The pieces were counted in
# 634,000 words of English Wikipedia and in 181,000 words of public-domain books.
WIKIPEDIA_PIECES, BOOK_PIECES = 1.32, 1.25

# the number of tokens of each corpus, without [CLS] and [SEP], and its source
CORPORA = {
    "wikitext-2": (2_153_632, "counted: wiki.train.tokens by data/prepare.py with BERT's uncased vocabulary"),
    "wikitext-103": (round(103_227_021 * 2_153_632 / 2_088_628),
                     "estimated: 103,227,021 words (Merity et al. 2016) with 1.03 pieces a word, as in "
                     "WikiText-2; WikiText-103 has fewer <unk>, so its true number may be higher"),
    "bookcorpus+wikipedia": (round(800e6 * BOOK_PIECES + 2500e6 * WIKIPEDIA_PIECES),
                             f"estimated: 800 M and 2,500 M words (Devlin et al. 2019) with {BOOK_PIECES} "
                             f"and {WIKIPEDIA_PIECES} pieces a word, as counted in samples of such texts"),
}


@dataclass(frozen=True)
class PlanBench:
    """Every option of bench.py plan."""

    corpus_tokens: str | None = option(None, f"number of tokens of the corpus, for example 2.5e9, or a name: "
                                             f"{', '.join(CORPORA)}")
    epochs: float = option(1.0, "number of passes over the corpus")
    machines: str = option("1", "numbers of devices, for example 1,8,64")
    tokens_per_second: float | None = option(None, "number of tokens a second in training on one device")
    peak_tflops: float | None = option(None, "peak of one device in 10^12 FLOP/s (needs --share)")
    share: float | None = option(None, "share of the peak that the training reaches, above 0 and at most 1")
    price: float | None = option(None, "price of one device for one hour, in any currency")
    bandwidth: float = option(25.0, "bandwidth of each device's network in 10^9 bytes a second; a 200 Gbit/s "
                                   "network has 25")
    teacher: str = option("bert-base", "preset of the teacher")
    student: str = option("distilbert", "preset of the student")
    batch: int = option(4000, "number of sequences of one step, over all devices")
    length: float = option(128.0, "mean number of tokens of a sequence, with [CLS] and [SEP]")

    def __post_init__(self):
        within(self, 0, float("inf"), "epochs", "tokens_per_second", "peak_tflops", "bandwidth", "batch",
               open_low=True)
        within(self, 0, 1, "share", open_low=True)
        within(self, 0, float("inf"), "price")
        within(self, SPECIALS, float("inf"), "length", open_low=True)
        if (self.peak_tflops is None) != (self.share is None) or (
                (self.tokens_per_second is None) == (self.peak_tflops is None)):
            raise UserError("give either --tokens-per-second, or --peak-tflops with --share")


def corpus_tokens(text: str | None) -> tuple[float, str]:
    """Returns the number of tokens of a corpus, and the source of this number. `text` is the name of a corpus
    or a number.
    """
    if text in CORPORA:
        return CORPORA[text]
    try:
        tokens = float((text or "").replace(",", ""))
    except ValueError:
        tokens = 0.0
    if not 1 <= tokens < float("inf"):
        raise UserError(f"--corpus-tokens must be a number or one of {', '.join(CORPORA)}, not {text!r}")
    return tokens, "given"


def plan(options: PlanBench) -> dict:
    """Calculates the time and the cost of a training for each number of devices.

    In the result, `basis` has the name, the value and the source of every assumption.
    """
    devices = numbers("--machines", options.machines)
    if not 1 <= min(devices) <= max(devices) <= options.batch:
        raise UserError(f"--machines {options.machines}: each number must be from 1 to --batch")
    tokens, whence = corpus_tokens(options.corpus_tokens)
    # in training, each sequence has `SPECIALS` more tokens: [CLS] and [SEP]
    trained = tokens * options.epochs * options.length / (options.length - SPECIALS)
    step, student = options.batch * options.length, preset(options.student)
    flops = useful_flops(preset(options.teacher), student, np.array([options.length])) / options.length
    rate, origin = options.tokens_per_second, "given"
    if rate is None:
        rate = options.share * options.peak_tflops * 1e12 / flops
        origin = (f"assumed, not measured: {100 * options.share:g} % of {options.peak_tflops:g} TFLOP/s, "
                  f"{flops / 1e6:,.0f} MFLOP a token")
    gradient = 4 * sum(p.numel() for p in on_meta(MaskedLM, student).parameters())  # bytes, in fp32
    rows = []
    for number in devices:
        compute = step / (number * rate)
        reduce = 2 * (number - 1) / number * gradient / (1e9 * options.bandwidth)
        hours = trained / step * (compute + reduce) / 3600
        rows.append({"devices": number, "compute_seconds": compute, "all_reduce_seconds": reduce,
                     "speed_up": step / rate / (compute + reduce), "hours": hours,
                     "cost": None if options.price is None else hours * number * options.price})
    basis = [("corpus", f"{tokens:,.0f} tokens", whence),
             ("trained", f"{trained:,.0f} tokens", f"{options.epochs:g} x corpus, and [CLS] and [SEP]; "
                                                   f"assumed: {options.length:g} tokens a sequence"),
             ("R", f"{rate:,.0f} tokens/s", origin),
             ("B", f"{step:,.0f} tokens", f"chosen: {options.batch:,} sequences a step"),
             ("G", f"{gradient / 1e6:,.0f} MB", f"counted: parameters of {options.student} in fp32"),
             ("W", f"{options.bandwidth:g} GB/s", "assumed (--bandwidth), not measured")]
    return {"tokens_per_second": rate, "flops_per_token": flops, "basis": basis, "devices": rows}


def bench_plan(options: PlanBench) -> dict:
    """Calculates and prints a plan. Returns the content of the JSON line."""
    result = plan(options)
    rows = [{"devices": row["devices"], "compute a step": f"{row['compute_seconds']:.3g} s",
             "all-reduce": f"{1000 * row['all_reduce_seconds']:.3g} ms", "speed-up": f"{row['speed_up']:.1f}",
             "hours": f"{row['hours']:,.2f}", "cost": "-" if row["cost"] is None else f"{row['cost']:,.2f}"}
            for row in result["devices"]]
    print(table(rows, f"{options.teacher} to {options.student}"))
    for name, value, whence in result["basis"]:
        print(f"  {name:7}  {value:>20}  {whence}")
    print(STEP_FORMULA)
    return {"bench": "plan", "options": dataclasses.asdict(options), **result}

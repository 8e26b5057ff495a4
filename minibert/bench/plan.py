"""Calculates how many hours a training takes on one device, from the number of tokens per second.

Measure this number with `bench.py train`, and give it as --tokens-per-second. If you cannot measure it, give
the peak FLOP/s of the device (--peak-tflops) and the share of the peak that the training reaches (--share).
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from minibert.bench.flops import useful_flops
from minibert.common.errors import UserError
from minibert.common.options import option, within
from minibert.data.corpus_writer import SPECIALS
from minibert.model.config import preset

# Mean number of tokens per word with BERT's uncased vocabulary, counted in 634,000 words of English Wikipedia
# and in 181,000 words of public-domain books.
WIKIPEDIA_PIECES, BOOK_PIECES = 1.32, 1.25

# for each corpus, the number of tokens without [CLS] and [SEP], and the source of this number
CORPORA = {
    "wikitext-2": (2_153_632, "counted: wiki.train.tokens by data/prepare.py with BERT's uncased vocabulary"),
    "wikitext-103": (round(103_227_021 * 2_153_632 / 2_088_628),
                     "estimated: 103,227,021 words (Merity et al. 2016) with 1.03 tokens per word, as in "
                     "WikiText-2. The true number may be higher: WikiText-103 has fewer <unk>, and each "
                     "<unk> is only one token"),
    "bookcorpus+wikipedia": (round(800e6 * BOOK_PIECES + 2500e6 * WIKIPEDIA_PIECES),
                             f"estimated: 800 M and 2,500 M words (Devlin et al. 2019) with {BOOK_PIECES} "
                             f"and {WIKIPEDIA_PIECES} tokens per word, as counted in samples of such texts"),
}


@dataclass(frozen=True)
class PlanBench:
    """Every option of `bench.py plan`."""

    corpus_tokens: str | None = option(None, "number of tokens of the corpus, for example 2.5e9, or the name "
                                             f"of a corpus: {', '.join(CORPORA)}")
    epochs: float = option(1.0, "number of passes over the corpus")
    tokens_per_second: float | None = option(None, "number of tokens that the training processes per second")
    peak_tflops: float | None = option(None, "peak speed of the device in 10^12 FLOP/s (needs --share)")
    share: float | None = option(None, "share of --peak-tflops that the training reaches, more than 0 and at "
                                       "most 1")
    teacher: str = option("bert-base", "preset of the teacher")
    student: str = option("distilbert", "preset of the student")
    length: float = option(128.0, "mean number of tokens of a sequence, with [CLS] and [SEP]")

    def __post_init__(self):
        within(self, 0, float("inf"), "epochs", "tokens_per_second", "peak_tflops", open_low=True)
        within(self, 0, 1, "share", open_low=True)
        within(self, SPECIALS, float("inf"), "length", open_low=True)
        if (self.peak_tflops is None) != (self.share is None) or (
                (self.tokens_per_second is None) == (self.peak_tflops is None)):
            raise UserError("give either --tokens-per-second, or --peak-tflops with --share")


def corpus_tokens(text: str | None) -> tuple[float, str]:
    """Returns a tuple: the number of tokens of a corpus, and the source of this number. `text` is a name in
    `CORPORA`, or the number itself. Raises `UserError` for any other text.
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
    """Calculates how many hours a training takes. The entry "basis" of the result has a tuple (name, number,
    source) for each number from which the hours are calculated.
    """
    tokens, whence = corpus_tokens(options.corpus_tokens)
    # `tokens` does not count [CLS] and [SEP], but training reads them in each sequence
    trained = tokens * options.epochs * options.length / (options.length - SPECIALS)
    flops = useful_flops(preset(options.teacher), preset(options.student), np.array([options.length]))
    flops /= options.length
    rate, origin = options.tokens_per_second, "given"
    if rate is None:
        rate = options.share * options.peak_tflops * 1e12 / flops
        origin = (f"assumed, not measured: {100 * options.share:g} % of {options.peak_tflops:g} TFLOP/s, "
                  f"{flops / 1e6:,.0f} MFLOP a token")
    basis = [("corpus", f"{tokens:,.0f} tokens", whence),
             ("trained", f"{trained:,.0f} tokens", f"{options.epochs:g} x corpus, and [CLS] and [SEP]; "
                                                   f"assumed: {options.length:g} tokens a sequence"),
             ("rate", f"{rate:,.0f} tokens/s", origin)]
    return {"hours": trained / rate / 3600, "tokens_per_second": rate, "flops_per_token": flops,
            "basis": basis}


def bench_plan(options: PlanBench) -> dict:
    """Runs `bench.py plan` and returns the results."""
    result = plan(options)
    print(f"{options.teacher} to {options.student}: {result['hours']:,.2f} hours, without the time of "
          "evaluation and checkpoints")
    for name, value, whence in result["basis"]:
        print(f"  {name:7}  {value:>20}  {whence}")
    return {"bench": "plan", "options": dataclasses.asdict(options), **result}

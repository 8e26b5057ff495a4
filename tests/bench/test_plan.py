"""bench.py plan: the hours by hand, where each number comes from, and bad options as one sentence."""

import json
from functools import partial

import pytest

from minibert.bench.plan import PlanBench, plan
from scripts import run_bench

run = partial(run_bench, "plan")
TINY = dict(teacher="bert-L4-H128", student="bert-L2-H128")


def test_hours_by_hand():
    # 98,000 tokens are 1,000 sequences of 100 tokens with [CLS] and [SEP]; twice, at 100 tokens a second
    result = plan(PlanBench(corpus_tokens="98,000", length=100, tokens_per_second=100, epochs=2, **TINY))
    assert result["hours"] == pytest.approx(2 * 1000 * 100 / 100 / 3600)


def test_rate_from_a_peak():
    # by hand, at 64 tokens: linear layers, attention, head; the teacher once, the student three times
    layer, head = 2 * 12 * 128 * 128 + 4 * 128 * 64, 2 * (128 * 128 + 128 * 30522)
    by_hand = (4 * layer + head) + 3 * (2 * layer + head)
    result = plan(PlanBench(corpus_tokens="1000", peak_tflops=10, share=0.25, length=64, **TINY))
    assert result["tokens_per_second"] == pytest.approx(0.25 * 10e12 / by_hand)
    assert "assumed" in dict((name, whence) for name, _, whence in result["basis"])["rate"]


def test_command_line_prints_the_hours(monkeypatch, capsys):
    words = "--corpus-tokens 1e9 --tokens-per-second 1000 --student bert-L2-H128"
    code, out, _ = run(monkeypatch, capsys, *words.split())
    result = json.loads(out.splitlines()[-1])
    assert code == 0 and "bert-base to bert-L2-H128: 282.19 hours" in out
    assert result["hours"] == pytest.approx(1e9 * 128 / 126 / 1000 / 3600)


@pytest.mark.parametrize("words, says", [
    ("--corpus-tokens 1e6", "give either --tokens-per-second"),
    ("--corpus-tokens 1e6 --peak-tflops 10", "--share"),
    ("--corpus-tokens 1e6 --tokens-per-second 10 --peak-tflops 10 --share 0.5", "give either --tokens"),
    ("--tokens-per-second 10", "--corpus-tokens"),
    ("--tokens-per-second 10 --corpus-tokens the-web", "wikitext-103"),
    ("--tokens-per-second 0 --corpus-tokens 1e6", "--tokens-per-second"),
    ("--peak-tflops 10 --share 40 --corpus-tokens 1e6", "--share"),
    ("--tokens-per-second 10 --corpus-tokens 1e6 --student nobody", "nobody"),
    ("--tokens-per-second 10 --corpus-tokens 1e6 --length 2", "--length"),
])
def test_bad_options_are_one_sentence(monkeypatch, capsys, words, says):
    code, _, err = run(monkeypatch, capsys, *words.split())
    assert code == 2 and says in err and err.count("\n") == 1

"""bench.py plan: the formulas by hand, where each number comes from, and bad options as one sentence."""

import json
from functools import partial

import pytest

from minibert.bench.plan import STEP_FORMULA, PlanBench, plan
from minibert.model.config import preset
from minibert.model.heads import MaskedLM
from scripts import run_bench

run = partial(run_bench, "plan")
TINY = dict(teacher="bert-L4-H128", student="bert-L2-H128")


def test_hours_and_cost_by_hand():
    # 98,000 tokens are 1,000 sequences of 100, 100 steps of 10; at 1,000 tokens a step 10 s each
    options = dict(corpus_tokens="98,000", length=100, batch=10, tokens_per_second=100, price=3, epochs=2)
    gradient = 4 * sum(p.numel() for p in MaskedLM(preset("bert-L2-H128")).parameters())
    # on 4 devices, a quarter of the step is 2.5 s; a link so slow that the sum takes 2 x 3/4 x 4 s
    result = plan(PlanBench(**options, **TINY, machines="1,4", bandwidth=gradient / 4 / 1e9))
    one, four = result["devices"]
    assert [one["hours"], one["cost"]] == pytest.approx([200 * 10 / 3600, 3 * 200 * 10 / 3600])
    assert four["all_reduce_seconds"] == pytest.approx(6) and four["compute_seconds"] == pytest.approx(2.5)
    assert [four["hours"], four["cost"]] == pytest.approx([200 * 8.5 / 3600, 4 * 3 * 200 * 8.5 / 3600])
    assert four["speed_up"] == pytest.approx(10 / 8.5)


def test_rate_from_a_peak():
    # by hand, at 64 tokens: linear layers, attention, head; the teacher once, the student three times
    layer, head = 2 * 12 * 128 * 128 + 4 * 128 * 64, 2 * (128 * 128 + 128 * 30522)
    by_hand = (4 * layer + head) + 3 * (2 * layer + head)
    result = plan(PlanBench(corpus_tokens="1000", peak_tflops=10, share=0.25, length=64, **TINY))
    assert result["tokens_per_second"] == pytest.approx(0.25 * 10e12 / by_hand)
    assert "assumed" in dict((name, whence) for name, _, whence in result["basis"])["R"]


def test_command_line_prints_table_and_formula(monkeypatch, capsys):
    words = "--corpus-tokens 1e6 --tokens-per-second 1000 --machines 1,2 --price 2 --student bert-L2-H128"
    code, out, _ = run(monkeypatch, capsys, *words.split())
    result = json.loads(out.splitlines()[-1])
    assert code == 0 and STEP_FORMULA in out and "hours" in out
    assert result["devices"][0]["cost"] == pytest.approx(2 * 1e6 * 128 / 126 / 1000 / 3600)


@pytest.mark.parametrize("words, says", [
    ("--corpus-tokens 1e6", "give either --tokens-per-second"),
    ("--corpus-tokens 1e6 --peak-tflops 10", "--share"),
    ("--corpus-tokens 1e6 --tokens-per-second 10 --peak-tflops 10 --share 0.5", "give either --tokens"),
    ("--tokens-per-second 10", "--corpus-tokens"),
    ("--tokens-per-second 10 --corpus-tokens the-web", "wikitext-103"),
    ("--tokens-per-second 0 --corpus-tokens 1e6", "--tokens-per-second"),
    ("--tokens-per-second 10 --corpus-tokens 1e6 --machines 1,x", "--machines"),
    ("--tokens-per-second 10 --corpus-tokens 1e6 --machines 1,0", "--machines"),
    ("--tokens-per-second 10 --corpus-tokens 1e6 --machines 8 --batch 4", "--batch"),
    ("--peak-tflops 10 --share 40 --corpus-tokens 1e6", "--share"),
    ("--tokens-per-second 10 --corpus-tokens 1e6 --student nobody", "nobody"),
    ("--tokens-per-second 10 --corpus-tokens 1e6 --length 2", "--length"),
])
def test_bad_options_are_one_sentence(monkeypatch, capsys, words, says):
    code, _, err = run(monkeypatch, capsys, *words.split())
    assert code == 2 and says in err and err.count("\n") == 1

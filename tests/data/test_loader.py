"""Tests that a step is the same for any size of the micro-batches and any number of ranks."""

import numpy as np
import pytest
import torch

from minibert.data.loader import make_step
from minibert.data.masking import Masking, mask_tokens
from minibert.model.batch import IGNORE
from steps import TOKENIZER, V, FakeCorpus, rows_of


def step_of(micro_tokens=10_000, rank=0, ranks=1, step=3, corpus=FakeCorpus()):
    return make_step(corpus, TOKENIZER, step, batch=40, micro_tokens=micro_tokens, seed=7,
                     masking=Masking("bernoulli"), part=(rank, ranks))


def test_cutting_and_dealing_change_nothing():
    whole = step_of()
    assert len(whole.micro_batches) == 1 and len(rows_of(whole)) == 40
    small = step_of(micro_tokens=64)
    assert len(small.micro_batches) > 5
    assert max(len(m.batch.ids) for m in small.micro_batches) <= 64
    assert rows_of(small) == rows_of(whole)
    for ranks in (2, 3):
        dealt = [step_of(64, rank, ranks) for rank in range(ranks)]
        assert sorted(sum((rows_of(s) for s in dealt), [])) == rows_of(whole)
        work = [sum(len(m.batch.ids) for m in s.micro_batches) for s in dealt]
        assert max(work) - min(work) <= 32
        assert {(s.tokens, s.masked) for s in dealt} == {(whole.tokens, whole.masked)}


def test_counts_are_those_of_the_whole_step():
    step = step_of(64)
    assert step.tokens == sum(len(m.batch.ids) for m in step.micro_batches)
    assert step.masked == sum(int((m.labels != IGNORE).sum()) for m in step.micro_batches) > 0


def test_more_ranks_than_sequences():
    corpus = FakeCorpus(3)
    steps = [make_step(corpus, TOKENIZER, 0, batch=2, micro_tokens=64, seed=7, masking=Masking(),
                       part=(r, 4)) for r in range(4)]
    assert [len(s.micro_batches) for s in steps] == [1, 1, 0, 0]


def test_labels_are_the_original_tokens():
    corpus = FakeCorpus()
    originals = {tuple(t.tolist()) for t in corpus.data}
    for inputs, labels in rows_of(step_of(corpus=corpus)):
        original = [i if label == IGNORE else label for i, label in zip(inputs, labels)]
        assert (original[0], original[-1]) == (2, 3) and tuple(original[1:-1]) in originals


def test_a_corpus_smaller_than_a_batch_comes_again():
    step = make_step(FakeCorpus(7), TOKENIZER, 0, batch=20, micro_tokens=1000, seed=7, masking=Masking())
    assert len(rows_of(step)) == 20


def test_the_same_sequence_is_masked_anew_in_every_step():
    """The corpus has one sequence, so every step is an epoch. The masks depend on (seed, step)."""
    corpus = FakeCorpus(1)
    corpus.data = [np.arange(5, V).astype(np.uint16)]

    def step(k, seed=7):
        return make_step(corpus, TOKENIZER, k, batch=1, micro_tokens=1000, seed=seed,
                         masking=Masking("bernoulli"))

    masks = [tuple((step(k).micro_batches[0].labels != IGNORE).tolist()) for k in range(20)]
    assert len(set(masks)) == 20
    assert masks[0] != tuple((step(0, seed=8).micro_batches[0].labels != IGNORE).tolist())
    expected = mask_tokens(np.array([2, *range(5, V), 3]), np.array([V - 3]), TOKENIZER,
                           Masking("bernoulli"), 7, 4)
    assert step(4).micro_batches[0].batch.ids.tolist() == expected.inputs.tolist()


def test_a_step_is_masked_as_asked_for():
    """"bert" masks an exact number of tokens in each sequence, and the step has the count of all of them."""
    step = make_step(FakeCorpus(), TOKENIZER, 0, batch=40, micro_tokens=10_000, seed=7,
                     masking=Masking("bert", 0.4))
    for inputs, labels in rows_of(step):
        wanted = max(1, int(0.4 * len(inputs) + 0.5))
        assert sum(label != IGNORE for label in labels) == min(wanted, len(inputs) - 2)
    assert step.masked == sum(label != IGNORE for _, labels in rows_of(step) for label in labels)


def test_dropout_seeds_differ_between_micro_batches_and_steps():
    seeds = [m.seed for k in range(3) for m in step_of(64, step=k).micro_batches]
    assert len(set(seeds)) == len(seeds)
    assert ([m.seed for m in step_of(64, step=0).micro_batches]
            == seeds[:len(step_of(64, step=0).micro_batches)])


@pytest.mark.parametrize("device", ["cpu"])
def test_to_device(device):
    micro = step_of().micro_batches[0]
    assert torch.equal(micro.to(device).labels, micro.labels)

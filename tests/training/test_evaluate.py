"""Tests that held-out figures equal their formulas, for any micro-batches and in both modes of the model."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minibert.common.randomness import permute
from minibert.data.loader import with_specials
from minibert.data.masking import Masking, mask_tokens
from minibert.distill.methods import METHODS
from minibert.model.batch import IGNORE
from minibert.model.init import init_weights
from minibert.model.heads import MaskedLM
from minibert.training.evaluate import attention_kl, evaluate_mlm, evaluate_terms, held_out_step
from steps import CPU, TOKENIZER, FakeCorpus, counts_of, data, loss_of, rows_of


def models(tiny_config):
    """A student in training mode, with dropout, and a teacher twice as deep; both random, in fp64."""
    teacher = init_weights(MaskedLM(replace(tiny_config, layers=4, vocab_size=60)))
    student = init_weights(MaskedLM(replace(tiny_config, layers=2, vocab_size=60, dropout=0.5)))
    for p in (*teacher.parameters(), *student.parameters()):
        p.data += 0.2 * torch.randn_like(p)
    return student.double().train(), teacher.double().eval()


@pytest.mark.parametrize("micro_tokens", [32, 1000])
@pytest.mark.parametrize("with_teacher", [False, True])
def test_language_models(micro_tokens, with_teacher, tiny_config):
    student, teacher = models(tiny_config)
    (held_out,) = data(micro_tokens)
    figures = evaluate_mlm(student, held_out, CPU, teacher if with_teacher else None)
    assert student.training
    student.eval()
    ((micro,),) = (step.micro_batches for step in data(1000))
    with torch.no_grad():
        z, z_t = student(micro.batch), teacher(micro.batch)
    rows = micro.labels != IGNORE
    mlm = F.cross_entropy(z[rows], micro.labels[rows]).item()
    expected = {"mlm": mlm, "perplexity": math.exp(mlm), "masked_tokens": int(rows.sum()),
                "accuracy": (z.argmax(-1) == micro.labels)[rows].double().mean().item()}
    if with_teacher:  # over all tokens, at T = 1
        expected["kl"] = F.kl_div(z.log_softmax(-1), z_t.softmax(-1), reduction="batchmean").item()
    assert figures == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("micro_tokens", [32, 1000])
def test_attention(micro_tokens, tiny_config):
    """The expected KL compares layers 1 and 2 with the teacher's layers 2 and 4, for each sequence and head.
    """
    student, teacher = models(tiny_config)
    student.eval()
    (held_out,) = data(micro_tokens)
    ((micro,),) = (step.micro_batches for step in data(1000))
    lengths, total = micro.batch.lengths.tolist(), 0.0
    with torch.no_grad():
        ours, theirs = student.encoder.trace(micro.batch), teacher.encoder.trace(micro.batch)
    for m, g in ((0, 1), (1, 3)):
        for q, k, t_q, t_k in zip(*(x.split(lengths) for x in (ours.queries[m], ours.keys[m],
                                                               theirs.queries[g], theirs.keys[g]))):
            for h in range(q.shape[1]):
                a_s, a_t = ((a[:, h] @ b[:, h].T / math.sqrt(a.shape[-1])).softmax(-1)
                            for a, b in ((q, k), (t_q, t_k)))
                total += (a_t * (a_t / a_s).log()).sum(-1).mean().item() / q.shape[1]
    expected = total / (2 * len(lengths))
    assert attention_kl(student, teacher, (2, 4), held_out, CPU) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("method, changed", [
    ("tinybert", {"hidden": 0.5}), ("minilm", {"value_relation": 2.0}),
    ("minilmv2", {"k_relation": 3.0, "relation_heads": 6})])
def test_terms_of_a_method(method, changed, tiny_config):
    """Several micro-batches give the loss and the terms of one batch without dropout."""
    student, teacher = models(tiny_config)
    weights = METHODS[method].weights(**changed)
    (held_out,), (whole,) = data(32), data(1000)
    counts = counts_of(method, held_out)
    figures = evaluate_terms(
        lambda model, micro: METHODS[method].loss(model, teacher, micro, weights, counts), counts, student,
        held_out, CPU)
    assert student.training
    loss, _ = loss_of(method, student.eval(), teacher, whole, weights)(*whole.micro_batches)
    assert figures["loss"] == pytest.approx(loss.item(), rel=1e-9)
    assert sum(getattr(weights, name) * value for name, value in figures.items()
               if name != "loss") == pytest.approx(loss.item(), rel=1e-9)


def test_held_out_text_is_masked_the_same_way_whatever_training_does():
    """Every token is masked independently with probability `share`. This is not "bert", which masks an exact
    number.
    """
    corpus = FakeCorpus(50)
    found = held_out_step(corpus, TOKENIZER, 20, 10_000, share=0.3)
    assert rows_of(found) == rows_of(held_out_step(corpus, TOKENIZER, 20, 10_000, share=0.3))
    ids, lengths = with_specials(corpus, permute(np.arange(20), 50, 0), TOKENIZER)
    inputs, selected = mask_tokens(ids, lengths, TOKENIZER, Masking("bernoulli", 0.3), 0)
    borders = np.cumsum(lengths)[:-1]
    expected = [(a.tolist(), b.tolist()) for a, b in zip(np.split(inputs, borders),
                                                         np.split(np.where(selected, ids, IGNORE), borders))]
    assert rows_of(found) == sorted(expected) and found.masked == selected.sum() and found.tokens == len(ids)

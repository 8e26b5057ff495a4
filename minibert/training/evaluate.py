"""Evaluates models on held-out text."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from minibert.common.randomness import permute
from minibert.common.runtime import Runtime
from minibert.data.corpus import Corpus
from minibert.data.loader import cut, with_specials
from minibert.model.batch import Step
from minibert.data.masking import Masking, mask_tokens
from minibert.data.tokenizer import Tokenizer
from minibert.distill.attention_loss import relation_sum
from minibert.distill.distilbert import vocab_side
from minibert.distill.vocab_loss import vocab_loss
from minibert.model.heads import encoder_of


def held_out_step(corpus: Corpus, tokenizer: Tokenizer, sequences: int, micro_tokens: int,
                  share: float = 0.15) -> Step:
    """Returns a `Step` with `sequences` masked sequences from a corpus, or with all sequences if the corpus
    has fewer. Each token that is not special is masked with probability `share`. Calls with the same
    arguments give the same sequences and masks.
    """
    chosen = permute(np.arange(min(sequences, len(corpus))), len(corpus), 0)
    ids, lengths = with_specials(corpus, chosen, tokenizer)
    masked = mask_tokens(ids, lengths, tokenizer, Masking("bernoulli", share), 0)
    return Step(cut(ids, lengths, masked.inputs, masked.selected, micro_tokens, (0,)), len(ids),
                int(masked.selected.sum()), len(lengths))


@torch.no_grad()
def evaluate_mlm(model: nn.Module, held_out: Step, runtime: Runtime, teacher: nn.Module | None = None
                 ) -> dict[str, float]:
    """Returns a dict with the MLM loss `mlm` (in nats per masked token), `perplexity`, `accuracy`, and the
    number `masked_tokens`. With a teacher, the dict also has `kl`: the KL(teacher || student) of the
    predictions in nats, at temperature 1. This is a mean over all tokens, masked or not.
    """
    training = model.training
    model.eval()
    total = {"mlm": 0.0, "correct": 0.0, "kl": 0.0}
    for micro in held_out.micro_batches:
        micro = micro.to(runtime.device)
        with runtime.autocast():
            last, side, labels, labelled = model.encoder(micro.batch), None, micro.labels, micro.masked
            if teacher is not None:
                side = vocab_side(teacher, teacher.encoder(micro.batch))
            else:  # without a teacher there is no KL, so only the masked tokens are needed
                rows = labelled.to(last.device)
                last, labels, labelled = last[rows], labels[rows], torch.arange(len(rows))
            _, sums = vocab_loss(vocab_side(model, last), labels, side, kl_weight=1.0, labelled=labelled)
        total["mlm"] += sums.mlm.item()
        total["correct"] += sums.correct.item()
        total["kl"] += sums.kl.item()
    model.train(training)
    masked = max(1, held_out.masked)
    result = {"mlm": total["mlm"] / masked, "perplexity": math.exp(min(total["mlm"] / masked, 700)),
              "accuracy": total["correct"] / masked, "masked_tokens": held_out.masked}
    return result if teacher is None else {**result, "kl": total["kl"] / held_out.tokens}


@torch.no_grad()
def evaluate_terms(loss_of: Callable, counts: dict[str, int], student: nn.Module, held_out: Step,
                   runtime: Runtime) -> dict[str, float]:
    """Returns a dict from each loss term to its mean on held-out text, without dropout. The entry `loss` is
    the weighted sum of the means. `loss_of(student, micro)` returns the part of the loss that comes from one
    micro-batch, and a dict with the sum of each term over the micro-batch. For each term, `counts` has the
    number of tokens or sequences by which the term's sum is divided.
    """
    training = student.training
    student.eval()
    total = {"loss": 0.0}
    for micro in held_out.micro_batches:
        with runtime.autocast():
            loss, sums = loss_of(student, micro.to(runtime.device))
        total["loss"] += loss.item()
        for name, value in sums.items():
            total[name] = total.get(name, 0.0) + value.item() / counts[name]
    student.train(training)
    return total


@torch.no_grad()
def attention_kl(student: nn.Module, teacher: nn.Module, layers: Sequence[int], held_out: Step,
                 runtime: Runtime) -> float | None:
    """Returns the KL(teacher || student) of the attention distributions in nats: the mean over query tokens,
    heads, sequences and student layers. Returns None if the models have different numbers of heads.
    `layers[m]` is the number (from 1) of the teacher layer that student layer m (from 0) is compared with.
    Student and teacher must be in eval mode.
    """
    student, teacher, total = encoder_of(student), encoder_of(teacher), 0.0
    if student.config.heads != teacher.config.heads:
        return None
    for micro in held_out.micro_batches:
        batch = micro.to(runtime.device).batch
        with runtime.autocast():
            a, b = student.trace(batch), teacher.trace(batch)
            total += sum(relation_sum(a.queries[m], a.keys[m], b.queries[g - 1], b.keys[g - 1], batch).item()
                         for m, g in enumerate(layers))
    return total / (held_out.sequences * len(layers))

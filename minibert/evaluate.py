"""Held-out evaluation of a masked language model: loss, perplexity and accuracy at masks, KL to a teacher."""

import math

import numpy as np
import torch
from torch import nn

from minibert.corpus import Corpus
from minibert.feed import MicroBatch, cut, with_specials
from minibert.masking import mask_tokens
from minibert.methods import vocab_side
from minibert.randomness import permute
from minibert.runtime import Runtime
from minibert.tokenizer import Tokenizer
from minibert.vocab_loss import vocab_loss


def held_out_batches(corpus: Corpus, tokenizer: Tokenizer, sequences: int,
                     micro_tokens: int) -> list[MicroBatch]:
    """The same `sequences` of a corpus, masked the same way, at every call:
    Bernoulli 15 %, whatever the run trains with.
    """
    some = permute(np.arange(min(sequences, len(corpus))), len(corpus), 0)
    ids, lengths = with_specials(corpus, some, tokenizer)
    masked = mask_tokens(ids, lengths, tokenizer, "bernoulli", 0)
    return cut(ids, lengths, masked.inputs, masked.selected, micro_tokens, (0,))


@torch.no_grad()
def evaluate(model: nn.Module, micro_batches: list[MicroBatch], runtime: Runtime,
             teacher: nn.Module | None = None) -> dict:
    """MLM loss (nats per masked token), perplexity, accuracy,
    and with a teacher the KL to it (T = 1, per token).
    """
    training = model.training
    model.eval()
    total = {"mlm": 0.0, "correct": 0.0, "kl": 0.0, "tokens": 0, "masked": 0}
    for micro in micro_batches:
        micro = micro.to(runtime.device)
        with runtime.autocast():
            last, side, labels, labelled = model.encoder(micro.batch), None, micro.labels, micro.masked
            if teacher is not None:
                side = vocab_side(teacher, teacher.encoder(micro.batch))
            else:  # only masked tokens matter
                rows = labelled.to(last.device)
                last, labels, labelled = last[rows], labels[rows], torch.arange(len(rows))
            _, sums = vocab_loss(vocab_side(model, last), labels, side, kl_weight=1.0, labelled=labelled)
        total["mlm"] += sums.mlm.item()
        total["correct"] += sums.correct.item()
        total["kl"] += sums.kl.item()
        total["tokens"] += len(micro.batch.ids)
        total["masked"] += len(micro.masked)
    model.train(training)
    masked = max(1, total["masked"])
    result = {"mlm": total["mlm"] / masked, "perplexity": math.exp(min(total["mlm"] / masked, 700)),
              "accuracy": total["correct"] / masked, "masked_tokens": total["masked"]}
    return result if teacher is None else {**result, "kl": total["kl"] / total["tokens"]}

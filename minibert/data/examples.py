"""Tokenised examples for fine-tuning and inference, and the batches drawn from them.

Masked text for pre-training is in loader.py.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minibert.common.errors import UserError
from minibert.common.randomness import samples_of_step, seed_of
from minibert.data.tokenizer import Tokenizer
from minibert.model.batch import Batch, groups, rows_of
from minibert.model.config import Config


@dataclass(frozen=True, eq=False)
class Examples:
    """n sequences of N tokens in all, one after the other, and their labels."""

    ids: np.ndarray  # (N,) int32
    segments: np.ndarray  # (N,) int8
    lengths: np.ndarray  # (n,) int64
    # (n,) int64 classes or float32 scores, -1 or NaN without a label; spans: (n, 2) int64
    labels: np.ndarray

    @cached_property
    def starts(self) -> np.ndarray:
        """(n,) the first token of each sequence; computed once, so that a step does not cost O(n)."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def fingerprint(self) -> str:
        """A hash of all arrays, to recognise the same texts and labels in the same order."""
        digest = hashlib.sha256()
        for array in (self.ids, self.segments, self.lengths, self.labels):
            digest.update(f"{array.dtype.str} {array.shape} ".encode() + array.tobytes())
        return digest.hexdigest()[:16]

    def batch(self, indices: np.ndarray) -> Batch:
        """The sequences `indices`, packed, in this order."""
        rows, positions, offsets = rows_of(self.starts[indices], self.lengths[indices])
        ids, segments = (torch.from_numpy(x[rows].astype(np.int64)) for x in (self.ids, self.segments))
        return Batch(ids, torch.from_numpy(positions), segments, torch.from_numpy(offsets),
                     torch.from_numpy(self.lengths[indices]))

    def part(self, indices: np.ndarray) -> "Examples":
        """Only these examples, in this order."""
        rows, _, _ = rows_of(self.starts[indices], self.lengths[indices])
        return Examples(self.ids[rows], self.segments[rows], self.lengths[indices], self.labels[indices])


def check_pieces(tokenizer: Tokenizer, config: Config, name: str) -> None:
    """`UserError` where the tokenizer of `name` has pieces that the model has no vectors of."""
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(f"the tokenizer of {name} has {tokenizer.vocab_size} pieces, "
                        f"the model only {config.vocab_size}")


def check_examples(examples: Examples, config: Config, name: str) -> None:
    """`UserError` where the model `name` has too few positions for the longest example, or one token type for
    pairs of texts. A model without token types reads pairs.
    """
    if (longest := examples.lengths.max()) > config.max_positions:
        raise UserError(f"{name} has {config.max_positions} positions, and an example has {longest} tokens: "
                        f"give --max-length {config.max_positions}, or take another model")
    if 0 < config.segments <= examples.segments.max():
        raise UserError(f"{name} has one token type (type_vocab_size 1), and pairs of texts need two: take "
                        "another model, or single texts")


class LabelledBatch(NamedTuple):
    """A micro-batch of fine-tuning."""

    batch: Batch
    labels: Tensor  # (S,) classes or scores, or (S, 2) first and last row of the answer, inside the sequence
    targets: dict[str, Tensor]  # the teacher's outputs for these examples, see distill/task_kd.py
    seed: int  # for the dropout of this micro-batch

    def to(self, device) -> "LabelledBatch":
        """The same on `device`."""
        return LabelledBatch(self.batch.to(device), self.labels.to(device, non_blocking=True),
                             {name: t.to(device, non_blocking=True) for name, t in self.targets.items()},
                             self.seed)


def make_examples(ids: list[list[int]], segments: list[list[int]], labels: np.ndarray) -> Examples:
    """Examples from lists of ids and segments, one list for each sequence."""
    lengths = np.array([len(sequence) for sequence in ids], dtype=np.int64)
    if len(lengths) == 0:
        raise UserError("there is no text")
    flat_ids = np.fromiter((i for sequence in ids for i in sequence), np.int32, lengths.sum())
    flat_segments = np.fromiter((s for sequence in segments for s in sequence), np.int8, lengths.sum())
    return Examples(flat_ids, flat_segments, lengths, labels)


def encode(tokenizer: Tokenizer, texts: list[str], pairs: list[str] | None, max_length: int,
           labels: np.ndarray | None = None) -> Examples:
    """Tokenised texts, or pairs of texts; labels are -1 where none are given."""
    ids, segments = tokenizer.encode(texts, pairs, max_length)
    return make_examples(ids, segments, np.full(len(ids), -1) if labels is None else labels)


class Drawn(NamedTuple):
    """One rank's micro-batches of an optimiser step. The counts are of all ranks."""

    step: int  # from 0
    micro_batches: list[LabelledBatch]
    tokens: int
    labelled: int  # examples that have a label
    sequences: int  # examples


def draw(examples: Examples, targets: dict[str, np.ndarray], step: int, batch: int, seed: int,
         micro_tokens: int, rank: int = 0, ranks: int = 1) -> Drawn:
    """One rank's part of the `batch` examples of optimiser step `step` (from 0), in micro-batches of at most
    `micro_tokens` tokens.

    `targets` have one row for each example, or for each of its tokens (the logits of a span head).
    """
    drawn = samples_of_step(step, batch, len(examples.lengths), seed)
    made = []
    for group in groups(examples.lengths[drawn], micro_tokens, rank, ranks):
        indices = drawn[group]
        tokens = rows_of(examples.starts[indices], examples.lengths[indices])[0]
        chosen = {name: torch.from_numpy(values[indices if len(values) == len(examples.lengths) else tokens])
                  for name, values in targets.items()}
        made.append(LabelledBatch(examples.batch(indices), torch.from_numpy(examples.labels[indices]), chosen,
                                  seed_of(seed, step, int(group[0]))))
    labels = examples.labels[drawn]
    labelled = np.isfinite(labels) if labels.dtype.kind == "f" else labels.reshape(batch, -1)[:, 0] >= 0
    return Drawn(step, made, int(examples.lengths[drawn].sum()), int(labelled.sum()), batch)

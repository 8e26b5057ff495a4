"""Stores tokenised examples for fine-tuning and inference, and makes the micro-batches of a fine-tuning step.
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
    """The tokenised sequences of a data set and their labels. There are n sequences with N tokens together.
    `ids` and `segments` have the tokens of one sequence after the other.
    """

    ids: np.ndarray  # (N,) int32
    segments: np.ndarray  # (N,) int8
    lengths: np.ndarray  # (n,) int64
    # classification: (n,) int64, the class of each sequence, or -1 if the sequence has no label
    # regression: (n,) float32, the score of each sequence, or NaN if the sequence has no label
    # SQuAD: (n, 2) int64, the positions of the first and the last token of the answer in each sequence, or
    # 0 and 0 if the sequence does not contain the whole answer
    labels: np.ndarray

    @cached_property
    def starts(self) -> np.ndarray:
        """The index of the first token of each sequence, (n,)."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def fingerprint(self) -> str:
        """A hash of all arrays."""
        digest = hashlib.sha256()
        for array in (self.ids, self.segments, self.lengths, self.labels):
            digest.update(f"{array.dtype.str} {array.shape} ".encode() + array.tobytes())
        return digest.hexdigest()[:16]

    def batch(self, indices: np.ndarray) -> Batch:
        """Returns the sequences `indices` as one packed batch, in the order of `indices`."""
        rows, positions, offsets = rows_of(self.starts[indices], self.lengths[indices])
        ids, segments = (torch.from_numpy(x[rows].astype(np.int64)) for x in (self.ids, self.segments))
        return Batch(ids, torch.from_numpy(positions), segments, torch.from_numpy(offsets),
                     torch.from_numpy(self.lengths[indices]))

    def part(self, indices: np.ndarray) -> "Examples":
        """Returns new `Examples` with the sequences `indices`, in the order of `indices`."""
        rows, _, _ = rows_of(self.starts[indices], self.lengths[indices])
        return Examples(self.ids[rows], self.segments[rows], self.lengths[indices], self.labels[indices])


def check_pieces(tokenizer: Tokenizer, config: Config, name: str) -> None:
    """Raises `UserError` if the tokenizer has more tokens than the model has word embeddings. The message
    calls the tokenizer "the tokenizer of `name`".
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(f"the tokenizer of {name} has {tokenizer.vocab_size} pieces, "
                        f"the model only {config.vocab_size}")


def check_examples(examples: Examples, config: Config, name: str) -> None:
    """Raises `UserError` if the longest example has more tokens than the model has positions. Also raises
    `UserError` if examples are pairs of texts and the model has only one token type. A model without token
    types, such as DistilBERT, can read pairs.
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
    # the labels of the S sequences in `batch`: (S,), or (S, 2) for SQuAD (see `Examples.labels`)
    labels: Tensor
    targets: dict[str, Tensor]  # the teacher's outputs for `batch`: "logits" and "cls" (distill/task_kd.py)
    seed: int  # the random seed of dropout

    def to(self, device) -> "LabelledBatch":
        """Returns the micro-batch on `device`; only `batch.lengths` stays on the CPU."""
        return LabelledBatch(self.batch.to(device), self.labels.to(device, non_blocking=True),
                             {name: t.to(device, non_blocking=True) for name, t in self.targets.items()},
                             self.seed)


def make_examples(ids: list[list[int]], segments: list[list[int]], labels: np.ndarray) -> Examples:
    """Makes `Examples` from lists with the token ids and the segments of each sequence. Raises `UserError` if
    there is no sequence.
    """
    lengths = np.array([len(sequence) for sequence in ids], dtype=np.int64)
    if len(lengths) == 0:
        raise UserError("there is no text")
    flat_ids = np.fromiter((i for sequence in ids for i in sequence), np.int32, lengths.sum())
    flat_segments = np.fromiter((s for sequence in segments for s in sequence), np.int8, lengths.sum())
    return Examples(flat_ids, flat_segments, lengths, labels)


def encode(tokenizer: Tokenizer, texts: list[str], pairs: list[str] | None, max_length: int,
           labels: np.ndarray | None = None) -> Examples:
    """Tokenises texts, or pairs of texts if `pairs` is not None. Returns `Examples`. Without `labels`, the
    label of each example is -1.
    """
    ids, segments = tokenizer.encode(texts, pairs, max_length)
    return make_examples(ids, segments, np.full(len(ids), -1) if labels is None else labels)


class Drawn(NamedTuple):
    """The micro-batches of one rank in an optimiser step, and three counts over the examples of all ranks."""

    step: int  # counted from 0
    micro_batches: list[LabelledBatch]
    tokens: int
    labelled: int  # number of examples with a label
    sequences: int


def draw(examples: Examples, targets: dict[str, np.ndarray], step: int, batch: int, seed: int,
         micro_tokens: int, rank: int = 0, ranks: int = 1) -> Drawn:
    """Draws `batch` examples for optimiser step `step` (the first step is 0). Returns the examples of one
    rank in micro-batches. A micro-batch has at most `micro_tokens` tokens, or a single longer example.
    `targets` is a dict with the teacher's outputs. An output has one row for each example, or one row for
    each token if the teacher has a span head.
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

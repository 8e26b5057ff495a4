"""Packed batches: many sequences in one flat stream of tokens, no padding.

A padded batch of three sequences of 3, 2 and 4 tokens is a (3, 4) table. Three cells are empty, and a mask
marks them:

    a1 a2 a3 ..
    b1 b2 .. ..        ->        a1 a2 a3 b1 b2 c1 c2 c3 c4        offsets 0 3 5 9
    c1 c2 c3 c4

Packed, it is the stream on the right, N = 9 tokens, and the S + 1 = 4 offsets where sequences begin and end.
Everything in BERT except attention works token by token, so it does not need the borders. Attention
(attention.py) reads the offsets. A padded implementation has hidden states of shape (S, T, D). Ours are (N,
D), and a mean over tokens needs no mask.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minibert.common.errors import UserError

IGNORE = -100  # the label of a token that is not to be predicted


class Batch(NamedTuple):
    """S sequences of N tokens in all.

    `lengths` stays on the CPU, where attention reads it. The rest is on the device.
    """

    ids: Tensor  # (N,) int64, token ids
    positions: Tensor  # (N,) int64, position of each token inside its sequence
    segments: Tensor  # (N,) int64, token types
    offsets: Tensor  # (S + 1,) int32, where each sequence starts; the last is N
    lengths: Tensor  # (S,) int64, on the CPU

    def to(self, device) -> "Batch":
        """The same batch with its token tensors on `device`."""
        if self.ids.device == torch.device(device):
            return self
        return Batch(*(t.to(device, non_blocking=True) for t in self[:-1]), self.lengths)

    @property
    def first_tokens(self) -> Tensor:
        """(S,) the row of each sequence's first token, [CLS]."""
        return self.offsets[:-1].long()


def pack(ids, segments=None, positions=None) -> Batch:
    """One packed batch from lists of token ids, one list a sequence.

    `segments` (token types) default to 0 and `positions` to 0, 1, 2 ...; both are lists of the same lengths
    as `ids`. Raises `UserError` where there is no sequence, an empty one, or lengths that differ.
    """
    lengths = torch.tensor([len(sequence) for sequence in ids], dtype=torch.int64)  # (S,)
    if len(lengths) == 0 or int(lengths.min()) == 0:
        raise UserError("a batch needs at least one sequence and no empty one")
    offsets = torch.zeros(len(lengths) + 1, dtype=torch.int32)
    offsets[1:] = lengths.cumsum(0)

    def flat(lists, name):
        if [len(values) for values in lists] != lengths.tolist():
            raise UserError(f"{name} and ids differ in length")
        return torch.tensor([value for values in lists for value in values], dtype=torch.int64)

    stream = flat(ids, "ids")  # (N,)
    if positions is None:
        positions = torch.arange(len(stream)) - offsets[:-1].long().repeat_interleave(lengths)
    else:
        positions = flat(positions, "positions")
    segments = torch.zeros_like(stream) if segments is None else flat(segments, "segments")
    return Batch(stream, positions, segments, offsets, lengths)


def rows_of(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The places of some sequences in a stream: their rows (N,), the position of each row inside its sequence
    (N,), and the offsets (S + 1,).
    """
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    positions = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    return np.repeat(starts, lengths) + positions, positions, offsets.astype(np.int32)


class MicroBatch(NamedTuple):
    """The input of one forward pass: a packed batch of masked text, and the original ids of the masked
    tokens.
    """

    batch: Batch
    labels: Tensor  # (N,) int64, IGNORE where nothing is to be predicted
    masked: Tensor  # (M,) int64, on the CPU: the rows that have a label
    seed: int  # for the dropout of this micro-batch

    def to(self, device) -> "MicroBatch":
        """The same on `device`."""
        return MicroBatch(self.batch.to(device), self.labels.to(device, non_blocking=True), self.masked,
                          self.seed)


class Step(NamedTuple):
    """One optimiser step of one rank.

    `tokens`, `masked` and `sequences` count the *whole* step: all micro-batches, all ranks.
    """

    micro_batches: list[MicroBatch]
    tokens: int
    masked: int
    sequences: int


def groups(lengths: np.ndarray, micro_tokens: int, rank: int = 0, ranks: int = 1) -> list[np.ndarray]:
    """The sequences of each micro-batch of this rank, as indices. A group has at most `micro_tokens` tokens,
    or one sequence.

    Sorted by length, longest first, so that ranks get equal work
    and neighbours of equal length share one attention call.
    """
    made, group, size = [], [], 0
    for i in np.argsort(-lengths, kind="stable")[rank::ranks]:
        if group and size + lengths[i] > micro_tokens:
            made.append(np.array(group))
            group, size = [], 0
        group.append(i)
        size += lengths[i]
    return made + [np.array(group)] if group else made

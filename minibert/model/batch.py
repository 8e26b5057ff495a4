"""A packed batch has the tokens of all its sequences in one list, without padding.

The figure shows three sequences a, b and c: on the left as a padded batch (.. is padding), on the right as a
packed batch.

    a1 a2 a3 ..
    b1 b2 .. ..        ->        a1 a2 a3 b1 b2 c1 c2 c3 c4        offsets 0 3 5 9
    c1 c2 c3 c4

The packed batch has S = 3 sequences, N = 9 tokens (rows 0 to 8), and S + 1 = 4 offsets. Sequence i (from 0)
has the rows from `offsets[i]` to `offsets[i + 1] - 1`. Hidden states of width D are (N, D) in the packed
batch, and (S, 4, D) in the padded batch.

Most parts of BERT treat each token by itself, so they do not need to know where a sequence begins (the
offsets). Attention needs the offsets (or the lengths), because a token attends only to tokens of its own
sequence.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minibert.common.errors import UserError

IGNORE = -100  # the label of a token that is not predicted


class Batch(NamedTuple):
    """A packed batch of S sequences that have N tokens together."""

    ids: Tensor  # (N,) int64, the token ids
    positions: Tensor  # (N,) int64, the position of each token inside its sequence
    segments: Tensor  # (N,) int64, the token types
    offsets: Tensor  # (S + 1,) int32, the first row of each sequence; the last offset is N
    lengths: Tensor  # (S,) int64, always on the CPU: the number of tokens of each sequence

    def to(self, device) -> "Batch":
        """Returns the batch on `device`; only `lengths` stays on the CPU."""
        if self.ids.device == torch.device(device):
            return self
        return Batch(*(t.to(device, non_blocking=True) for t in self[:-1]), self.lengths)

    @property
    def first_tokens(self) -> Tensor:
        """Returns the row of the first token ([CLS]) of each sequence, (S,)."""
        return self.offsets[:-1].long()


def pack(ids, segments=None, positions=None) -> Batch:
    """Builds a packed batch from lists of token ids, one list for each sequence. `segments` are lists of
    token types (default: 0). `positions` are lists of positions (default: 0, 1, 2 ...). Raises `UserError` if
    there is no sequence, if a sequence is empty, or if the lists of segments or positions have other lengths
    than the lists of ids.
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
    """Finds the N tokens of S sequences in an array of tokens. Sequence i has `lengths[i]` tokens, and its
    first token has the index `starts[i]` in the array. Returns three arrays: the index of each token (N,),
    its position inside its sequence (N,), and the offsets (S + 1,) of a `Batch` with these sequences.
    """
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    positions = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    return np.repeat(starts, lengths) + positions, positions, offsets.astype(np.int32)


class MicroBatch(NamedTuple):
    """The input of one forward pass in pre-training. If no token is masked, M is 0."""

    batch: Batch
    labels: Tensor  # (N,) int64, the original ids; IGNORE at tokens that are not masked
    masked: Tensor  # (M,) int64, on the CPU: the rows of the M masked tokens
    seed: int  # the random seed of dropout

    def to(self, device) -> "MicroBatch":
        """Returns the micro-batch on `device`; only `masked` and `batch.lengths` stay on the CPU."""
        return MicroBatch(self.batch.to(device), self.labels.to(device, non_blocking=True), self.masked,
                          self.seed)


class Step(NamedTuple):
    """The data of one optimiser step on one rank. `tokens`, `masked` and `sequences` count the tokens, masked
    tokens and sequences of the *whole* step, on all ranks.
    """

    micro_batches: list[MicroBatch]
    tokens: int
    masked: int
    sequences: int


def groups(lengths: np.ndarray, micro_tokens: int, rank: int = 0, ranks: int = 1) -> list[np.ndarray]:
    """Divides the sequences of one rank into micro-batches. `lengths` are the numbers of tokens of all
    sequences, on all ranks. Returns one array for each micro-batch: the indices of its sequences in
    `lengths`. A micro-batch has at most `micro_tokens` tokens, but a longer sequence is a micro-batch by
    itself.

    The sequences are sorted by length, the longest first, so that sequences of equal length are neighbours.
    With 2 ranks, each rank takes every second sequence. So all ranks get about the same number of tokens.
    """
    made, group, size = [], [], 0
    # the sort is stable, so that all ranks sort in the same order and no two ranks take the same sequence
    for i in np.argsort(-lengths, kind="stable")[rank::ranks]:
        if group and size + lengths[i] > micro_tokens:
            made.append(np.array(group))
            group, size = [], 0
        group.append(i)
        size += lengths[i]
    return made + [np.array(group)] if group else made

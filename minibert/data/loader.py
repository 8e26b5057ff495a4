"""From a corpus to the micro-batches of a step: drawn, masked, dealt to ranks, packed.

`--batch` is the sequences of one optimiser step over all ranks; `--micro-tokens` only says how much
of them goes through the model at once. The counts that the losses are divided by are those of the
whole step, known before any forward pass.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minibert.common.randomness import samples_of_step, seed_of
from minibert.data.corpus import Corpus
from minibert.data.masking import mask_tokens
from minibert.data.tokenizer import Tokenizer
from minibert.model.batch import IGNORE, Batch, rows_of


class MicroBatch(NamedTuple):
    """What goes through the model at once:
    a packed batch of masked text, and the original ids where it is masked.
    """

    batch: Batch
    labels: Tensor  # (N,) int64, IGNORE where nothing is to be predicted
    masked: Tensor  # (M,) int64, on the CPU: the rows that have a label, so that no GPU is asked for them
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


def with_specials(corpus: Corpus, indices: np.ndarray, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """The sequences `indices` as one stream of ids (N,)
    with [CLS] and [SEP] around each, and their lengths (S,).
    """
    lengths = corpus.lengths(indices) + 2
    ids = np.empty(int(lengths.sum()), dtype=np.int64)
    end = 0
    for index, length in zip(indices, lengths):
        start, end = end, end + int(length)
        ids[start], ids[end - 1] = tokenizer.cls_id, tokenizer.sep_id
        ids[start + 1:end - 1] = corpus.tokens(int(index))
    return ids, lengths


def make_step(corpus: Corpus, tokenizer: Tokenizer, step: int, *, batch: int, micro_tokens: int, seed: int,
              selection: str, share: float = 0.15, weights: np.ndarray | None = None, rank: int = 0,
              ranks: int = 1) -> Step:
    """The micro-batches of optimiser step `step` (from 0) for one rank of several;
    may be none where sequences are few.
    """
    ids, lengths = with_specials(corpus, samples_of_step(step, batch, len(corpus), seed), tokenizer)
    masked = mask_tokens(ids, lengths, tokenizer, selection, seed, step, weights=weights, share=share)
    return Step(cut(ids, lengths, masked.inputs, masked.selected, micro_tokens, (seed, step), rank, ranks),
                len(ids), int(masked.selected.sum()), len(lengths))


@contextlib.contextmanager
def ahead(make: Callable[[int], NamedTuple], step: int) -> Iterator[Iterator]:
    """Inside, an iterator over make(step), make(step + 1) ..., each made in a thread while the one before is
    in use.
    """
    with ThreadPoolExecutor(1) as thread:
        upcoming = thread.submit(make, step)

        def steps() -> Iterator:
            nonlocal upcoming
            for following in itertools.count(step + 1):
                made, upcoming = upcoming.result(), thread.submit(make, following)
                yield made
        try:
            yield steps()
        finally:
            upcoming.cancel()


def cut(ids: np.ndarray, lengths: np.ndarray, inputs: np.ndarray, selected: np.ndarray, micro_tokens: int,
        key: tuple[int, ...], rank: int = 0, ranks: int = 1) -> list[MicroBatch]:
    """Cuts masked sequences into packed micro-batches
    of at most `micro_tokens` tokens (or one sequence that is longer).
    """
    starts = np.cumsum(lengths) - lengths
    return [_pack(ids, lengths, inputs, selected, starts, group, key)
            for group in groups(lengths, micro_tokens, rank, ranks)]


def groups(lengths: np.ndarray, micro_tokens: int, rank: int = 0, ranks: int = 1) -> list[np.ndarray]:
    """Which sequences go through the model together:
    indices, in groups of at most `micro_tokens` tokens, or of one.

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


def _pack(ids, lengths, inputs, selected, starts, group, key) -> MicroBatch:
    # batch.pack does this from lists; here the tokens lie in arrays already,
    # and steps have up to a million of them
    rows, positions, offsets = rows_of(starts[group], lengths[group])
    labels = np.where(selected[rows], ids[rows], IGNORE)
    packed = Batch(torch.from_numpy(inputs[rows]), torch.from_numpy(positions),
                   torch.zeros(len(rows), dtype=torch.int64), torch.from_numpy(offsets),
                   torch.from_numpy(lengths[group]))
    masked = torch.from_numpy(np.flatnonzero(selected[rows]))
    return MicroBatch(packed, torch.from_numpy(labels), masked, seed_of(*key, int(group[0])))

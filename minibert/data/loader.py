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

from minibert.common.errors import UserError
from minibert.common.randomness import samples_of_step, seed_of
from minibert.data.corpus import Corpus
from minibert.data.masking import SELECTIONS, Masking, mask_tokens
from minibert.data.tokenizer import Tokenizer
from minibert.model.batch import IGNORE, Batch, MicroBatch, Step, groups, rows_of


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
              masking: Masking, part: tuple[int, int] = (0, 1)) -> Step:
    """The micro-batches of optimiser step `step` (from 0) for one rank; may be none where sequences are few.

    `part`: the rank, and how many ranks there are.
    """
    ids, lengths = with_specials(corpus, samples_of_step(step, batch, len(corpus), seed), tokenizer)
    masked = mask_tokens(ids, lengths, tokenizer, masking, seed, step)
    return Step(cut(ids, lengths, masked.inputs, masked.selected, micro_tokens, (seed, step), *part),
                len(ids), int(masked.selected.sum()), len(lengths))


def masked_batch(tokenizer: Tokenizer, texts: list[str], *, max_length: int = 512, selection: str = "bert",
                 share: float = 0.15, seed: int = 0) -> MicroBatch:
    """A masked batch of texts, the longest first: what `minibert.distillation_loss` takes.

    Longer texts are cut to `max_length` tokens. `selection` is "bert", "bernoulli" or "whole-word", see
    `masking.SELECTIONS`; another `seed` masks other tokens. Raises `UserError` where there is no text.
    """
    if selection not in SELECTIONS or selection == "smoothed":  # which needs the counts of a corpus
        raise UserError(f"selection {selection!r} is not one of bert, bernoulli, whole-word")
    if isinstance(texts, str) or not texts:  # a string would be read as a list of letters
        raise UserError("masked_batch takes a list of texts, at least one")
    sequences, _ = tokenizer.encode(list(texts), max_length=max_length)
    ids, lengths = np.concatenate(sequences).astype(np.int64), np.array([len(ids) for ids in sequences])
    masked = mask_tokens(ids, lengths, tokenizer, Masking(selection, share), seed)
    return cut(ids, lengths, masked.inputs, masked.selected, len(ids), (seed,))[0]


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

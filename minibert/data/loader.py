"""Makes the micro-batches of an optimiser step from a corpus. The sequences of the step are drawn, masked,
divided among the ranks, and packed into batches without padding.

Each loss is divided by a count over the whole step, for example the number of masked tokens. All sequences of
the step are drawn and masked first, so this count is known before the first forward pass.
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
    """Adds [CLS] and [SEP] to the sequences `indices`. Returns two int64 arrays: the token ids of all these
    sequences, one sequence after the other, and the length of each sequence.
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
    """Makes the data of optimiser step `step` (the first step is 0) for one rank. `part` is the pair (rank of
    this process, number of ranks). If the step has fewer sequences than there are ranks, some ranks get no
    micro-batch.
    """
    ids, lengths = with_specials(corpus, samples_of_step(step, batch, len(corpus), seed), tokenizer)
    masked = mask_tokens(ids, lengths, tokenizer, masking, seed, step)
    return Step(cut(ids, lengths, masked.inputs, masked.selected, micro_tokens, (seed, step), *part),
                len(ids), int(masked.selected.sum()), len(lengths))


def masked_batch(tokenizer: Tokenizer, texts: list[str], *, max_length: int = 512, selection: str = "bert",
                 share: float = 0.15, seed: int = 0) -> MicroBatch:
    """Tokenises and masks texts, and makes the batch that `minibert.distillation_loss` takes. In the batch,
    the texts are sorted by length, the longest first.

    A text with more than `max_length` tokens is cut ([CLS] and [SEP] are also counted). `selection` says how
    the masked tokens are chosen: "bert", "bernoulli" or "whole-word" (`masking.SELECTIONS`). `share` is the
    share of the tokens that are masked. With "whole-word", `share` is the share of the words. Raises
    `UserError` if there is no text.
    """
    # "smoothed" is refused, because it needs the token counts of a corpus
    if selection not in SELECTIONS or selection == "smoothed":
        raise UserError(f"selection {selection!r} is not one of bert, bernoulli, whole-word")
    if isinstance(texts, str) or not texts:
        raise UserError("masked_batch takes a list of texts, at least one")
    sequences, _ = tokenizer.encode(list(texts), max_length=max_length)
    ids, lengths = np.concatenate(sequences).astype(np.int64), np.array([len(ids) for ids in sequences])
    masked = mask_tokens(ids, lengths, tokenizer, Masking(selection, share), seed)
    return cut(ids, lengths, masked.inputs, masked.selected, len(ids), (seed,))[0]


@contextlib.contextmanager
def ahead(make: Callable[[int], NamedTuple], step: int) -> Iterator[Iterator]:
    """A context manager that yields an iterator over the results of `make(step)`, `make(step + 1)` and so on.
    A thread makes the next result while the current result is in use.
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
    """Makes the packed micro-batches of one rank (see `groups`) from the masked sequences of a step. `key`
    and the index of the first sequence of a micro-batch give the micro-batch's seed of dropout.
    """
    starts, labels = np.cumsum(lengths) - lengths, np.where(selected, ids, IGNORE)
    made = []
    for group in groups(lengths, micro_tokens, rank, ranks):
        # the `Batch` is not made by `pack`, because `pack` takes lists and is slow for a million tokens
        rows, positions, offsets = rows_of(starts[group], lengths[group])
        segments = np.zeros(len(rows), np.int64)
        packed = Batch(*map(torch.from_numpy, (inputs[rows], positions, segments, offsets, lengths[group])))
        masked = torch.from_numpy(np.flatnonzero(selected[rows]))
        seed = seed_of(*key, int(group[0]))
        made.append(MicroBatch(packed, torch.from_numpy(labels[rows]), masked, seed))
    return made

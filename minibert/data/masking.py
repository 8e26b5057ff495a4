"""Dynamic masking: which tokens of a step are predicted, and what replaces them.

A pure function of (seed, step, sample, position): how a step is divided into micro-batches or among ranks
does not change its masks. The arrays below hold a whole optimiser step over all ranks, N tokens; the
selection is one of `SELECTIONS`, the replacement always BERT's 80/10/10 (Devlin et al. 2018, section 3.1,
Task 1).
"""

from typing import NamedTuple

import numpy as np

from minibert.common.randomness import uniform
from minibert.data.tokenizer import Tokenizer

SELECTIONS = {
    "bert": "round(share * T) tokens of every sequence, [CLS] and [SEP] counted in T, as in BERT's own code",
    "bernoulli": "every token by itself with probability `share`",
    "whole-word": "every word with probability `share`, with all its pieces",
    "smoothed": "`share` of the whole batch, rare tokens oftener (count^-0.7), as in DistilBERT's own code",
}


class Masked(NamedTuple):
    """`inputs`: ids with masks in place;
    `selected`: bool, True where the original token is to be predicted; both (N,).
    """

    inputs: np.ndarray
    selected: np.ndarray


def smoothed_weights(counts: np.ndarray, special: np.ndarray, exponent: float = 0.7) -> np.ndarray:
    """max(count, 1)^-0.7 for every id, 0 for special tokens; (V,).

    The "MLM smoothing" of DistilBERT's distiller.
    """
    weights = np.maximum(counts.astype(np.float64), 1.0) ** -exponent
    weights[special] = 0.0
    return weights


def mask_tokens(ids: np.ndarray, lengths: np.ndarray, tokenizer: Tokenizer, selection: str, *key,
                weights: np.ndarray | None = None, share: float = 0.15) -> Masked:
    """Masks the S sequences of a step;
    ids (N,), lengths (S,), `key` what the draws depend on, for instance (seed, step).

    `weights` (V,) is needed by "smoothed" only. Special tokens are never selected; a random replacement is
    drawn from the whole vocabulary, special tokens included, as in the original code. A share of 0 masks
    nothing. note: BERT's code spares only [CLS] and [SEP]; here, as in the distiller, [UNK] is never
    predicted either.
    """
    if share == 0:
        return Masked(ids, np.zeros(len(ids), dtype=bool))
    sample = np.repeat(np.arange(len(lengths)), lengths)  # (N,)
    position = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)  # (N,)

    def draw(purpose: int) -> np.ndarray:
        return uniform(*key, purpose, sample, position)  # (N,)

    allowed = ~tokenizer.special[ids]
    if selection == "bernoulli":
        selected = allowed & (draw(0) < share)
    elif selection == "whole-word":
        # A word starts at each piece without ##, special tokens among them, so none spans two sequences; its
        # pieces share the draw of its first.
        starts = ~tokenizer.continuation[ids]  # (N,)
        word = np.cumsum(starts) - 1  # (N,) the word that each piece is in
        selected = allowed & (draw(0)[starts][word] < share)
    elif selection == "bert":
        keys = np.where(allowed, draw(0), 2.0)
        order = np.lexsort((keys, sample))  # sorted inside each sequence; sequences stay where they are
        rank = np.empty(len(ids), dtype=np.int64)
        rank[order] = position  # position of a slot = rank of the token sorted into it
        budget = np.maximum(1, np.floor(share * lengths + 0.5)).astype(np.int64)
        selected = allowed & (rank < np.repeat(budget, lengths))
    elif selection == "smoothed":
        # Drawing without replacement with probability proportional to w is taking the largest log(u) / w
        # (Efraimidis and Spirakis 2006), so one top-k replaces the distiller's multinomial.
        w = weights[ids]
        with np.errstate(divide="ignore"):
            keys = np.where(w > 0, np.log(draw(0)) / w, -np.inf)
        wanted = min(int(np.ceil(share * len(ids))), int((w > 0).sum()))
        selected = np.zeros(len(ids), dtype=bool)
        if wanted:
            selected[np.argpartition(keys, len(keys) - wanted)[len(keys) - wanted:]] = True
    else:
        raise ValueError(f"selection {selection!r}")

    replacement = draw(1)
    random_ids = (draw(2) * tokenizer.vocab_size).astype(np.int64)
    inputs = np.where(selected & (replacement < 0.8), tokenizer.mask_id, ids)
    return Masked(np.where(selected & (replacement >= 0.9), random_ids, inputs), selected)

"""Dynamic masking: selects the tokens that the model predicts in an optimiser step. As in BERT, about 80 % of
the selected tokens become [MASK], 10 % become a random token, and 10 % are not changed (Devlin et al. 2018,
section 3.1, Task 1).

The random numbers of a token depend only on the seed, the step, the index of its sequence in the step, and
the token's position in the sequence. So the masks do not depend on the size of the micro-batches or the
number of ranks. N is the number of tokens of an optimiser step, on all ranks together.
"""

from typing import NamedTuple

import numpy as np

from minibert.common.randomness import uniform
from minibert.data.tokenizer import Tokenizer


class Masking(NamedTuple):
    """The settings of the masking."""

    selection: str = "bert"  # how tokens are chosen: a name in `SELECTIONS`
    share: float = 0.15  # share of the tokens that are selected; for "whole-word", share of the words
    weights: np.ndarray | None = None  # (V,): the weight of each token id; used only by "smoothed"


class Masked(NamedTuple):
    """The tokens of a step after masking."""

    inputs: np.ndarray  # (N,): the ids that the model reads
    selected: np.ndarray  # (N,) bool: True if the original token is predicted


def smoothed_weights(counts: np.ndarray, special: np.ndarray, exponent: float = 0.7) -> np.ndarray:
    """Returns an array (V,) with the weight max(count, 1)^-exponent of each token id. `counts` says how often
    each token id occurs in the corpus. `special` is True for special tokens, which get the weight 0. In
    DistilBERT's code, the exponent is the option `mlm_smoothing`.
    """
    weights = np.maximum(counts.astype(np.float64), 1.0) ** -exponent
    weights[special] = 0.0
    return weights


def mask_tokens(ids: np.ndarray, lengths: np.ndarray, tokenizer: Tokenizer, masking: Masking,
                *key: int) -> Masked:
    """Masks the sequences of a step. `ids` has the token ids of all sequences, one after the other. `lengths`
    has the number of tokens of each sequence. The random numbers are computed from the integers `key`, for
    example the seed and the step.

    Special tokens, including [UNK], are never selected, as in DistilBERT's code. (BERT's code can select
    [UNK].) A random token can be any token of the vocabulary, even a special token, as in BERT's code.
    """
    if masking.share == 0:
        return Masked(ids, np.zeros(len(ids), dtype=bool))
    sample = np.repeat(np.arange(len(lengths)), lengths)  # (N,)
    position = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)  # (N,)

    def draw(purpose: int) -> np.ndarray:
        return uniform(*key, purpose, sample, position)  # (N,)

    selected = SELECTIONS[masking.selection](ids, lengths, tokenizer, masking, draw(0))
    replacement = draw(1)
    random_ids = (draw(2) * tokenizer.vocab_size).astype(np.int64)
    inputs = np.where(selected & (replacement < 0.8), tokenizer.mask_id, ids)
    return Masked(np.where(selected & (replacement >= 0.9), random_ids, inputs), selected)


# Each of the four functions below returns a bool array (N,): True for each selected token. Special tokens are
# never selected. `draw` (N,) has a uniform random number for each token.

def select_tokens(ids, lengths, tokenizer, masking: Masking, draw: np.ndarray) -> np.ndarray:
    """Selects each token with probability `masking.share`, independently of all other tokens."""
    return ~tokenizer.special[ids] & (draw < masking.share)


def select_words(ids, lengths, tokenizer, masking: Masking, draw: np.ndarray) -> np.ndarray:
    """Selects each word with probability `masking.share`. All tokens of a selected word are selected."""
    # A word starts at each token without ##. [CLS] has no ##, so the last word of a sequence ends before the
    # next sequence.
    starts = ~tokenizer.continuation[ids]  # (N,)
    word = np.cumsum(starts) - 1  # (N,): for each token, the index of its word
    return ~tokenizer.special[ids] & (draw[starts][word] < masking.share)


def select_in_each(ids, lengths, tokenizer, masking: Masking, draw: np.ndarray) -> np.ndarray:
    """In each sequence of T tokens (with [CLS] and [SEP]), selects floor(share * T + 0.5) tokens, but at
    least one, like BERT's code. If a sequence has fewer tokens that are not special, selects all of them.
    """
    allowed = ~tokenizer.special[ids]
    sample = np.repeat(np.arange(len(lengths)), lengths)  # (N,)
    # (N,): the indices of all tokens; those of one sequence are sorted by `draw`, with special tokens last
    order = np.lexsort((np.where(allowed, draw, 2.0), sample))
    rank = np.empty(len(ids), dtype=np.int64)
    # (N,): for each token, its place (from 0) among the sorted tokens of its sequence
    rank[order] = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    budget = np.maximum(1, np.floor(masking.share * lengths + 0.5)).astype(np.int64)  # (S,)
    return allowed & (rank < np.repeat(budget, lengths))


def select_rare(ids, lengths, tokenizer, masking: Masking, draw: np.ndarray) -> np.ndarray:
    """Selects ceil(share * N) of the N tokens in the step, or fewer if too many tokens are special. The
    tokens are drawn without replacement, with probabilities proportional to the weights of their ids, as in
    DistilBERT's code. If u is the random number of a token and w its weight, the tokens with the largest
    log(u) / w are selected (Efraimidis and Spirakis 2006).
    """
    w = masking.weights[ids]
    with np.errstate(divide="ignore"):
        keys = np.where(w > 0, np.log(draw) / w, -np.inf)
    wanted = min(int(np.ceil(masking.share * len(ids))), int((w > 0).sum()))
    selected = np.zeros(len(ids), dtype=bool)
    if wanted:
        selected[np.argpartition(keys, len(keys) - wanted)[len(keys) - wanted:]] = True
    return selected


SELECTIONS = {"bert": select_in_each, "bernoulli": select_tokens, "whole-word": select_words,
              "smoothed": select_rare}

"""Dynamic masking: functions that choose the tokens to predict in a step, and replace them.

The masks depend only on (seed, step, sample, position). The masks do not depend on the micro-batches or the
number of ranks. The arrays in this file have the N tokens of a whole optimiser step over all ranks.
The dict `SELECTIONS` has several functions that choose the tokens. As in BERT, 80 % of the chosen tokens
become [MASK], 10 % become a random token, and 10 % stay (Devlin et al. 2018, section 3.1, Task 1).
"""

from typing import NamedTuple

import numpy as np

from minibert.common.randomness import uniform
from minibert.data.tokenizer import Tokenizer


class Masking(NamedTuple):
    """The settings that choose the masked tokens."""

    selection: str = "bert"  # a name in `SELECTIONS`
    share: float = 0.15  # share of masked tokens; 0 masks no token
    weights: np.ndarray | None = None  # (V,), the weight of each id; only for "smoothed"


class Masked(NamedTuple):
    """The tokens of a step after masking. Both arrays are (N,)."""

    inputs: np.ndarray  # the ids that the model reads
    selected: np.ndarray  # bool: True if the original token is predicted


def smoothed_weights(counts: np.ndarray, special: np.ndarray, exponent: float = 0.7) -> np.ndarray:
    """The weight of each id, (V,): max(count, 1)^-0.7, and 0 for special tokens. DistilBERT's code calls this
    "MLM smoothing".
    """
    weights = np.maximum(counts.astype(np.float64), 1.0) ** -exponent
    weights[special] = 0.0
    return weights


def mask_tokens(ids: np.ndarray, lengths: np.ndarray, tokenizer: Tokenizer, masking: Masking,
                *key: int) -> Masked:
    """Masks the S sequences of a step. `ids` is (N,) and `lengths` (S,). The random numbers depend only on
    `key`, for example (seed, step). Special tokens are never selected. A random replacement is drawn from the
    whole vocabulary with its special tokens, as in BERT's code. note: BERT's code excludes only [CLS] and
    [SEP] from the selection. This function also excludes [UNK], as DistilBERT's code does.
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


# In each of these functions, `draw` (N,) has a uniform random number for each token. The result is bool (N,),
# and it is True for the selected tokens.

def select_tokens(ids, lengths, tokenizer, masking: Masking, draw: np.ndarray) -> np.ndarray:
    """Selects each token independently with probability `share`."""
    return ~tokenizer.special[ids] & (draw < masking.share)


def select_words(ids, lengths, tokenizer, masking: Masking, draw: np.ndarray) -> np.ndarray:
    """Selects each word with probability `share`. All tokens of a word are selected, or none."""
    # A word starts at each piece without ##. Special tokens have no ##, so no word is in two sequences.
    starts = ~tokenizer.continuation[ids]  # (N,)
    word = np.cumsum(starts) - 1  # (N,) for each piece, the number of its word
    return ~tokenizer.special[ids] & (draw[starts][word] < masking.share)


def select_in_each(ids, lengths, tokenizer, masking: Masking, draw: np.ndarray) -> np.ndarray:
    """Selects floor(share * T + 0.5) tokens of every sequence, but at least one, as in BERT's code. [CLS] and
    [SEP] count in T.
    """
    allowed = ~tokenizer.special[ids]
    sample = np.repeat(np.arange(len(lengths)), lengths)  # (N,)
    # sorts the tokens of each sequence by `draw`; the order of the sequences does not change
    order = np.lexsort((np.where(allowed, draw, 2.0), sample))
    rank = np.empty(len(ids), dtype=np.int64)
    # the rank of a token is its position in its sequence after the sort; the first ranks are selected
    rank[order] = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    budget = np.maximum(1, np.floor(masking.share * lengths + 0.5)).astype(np.int64)  # (S,)
    return allowed & (rank < np.repeat(budget, lengths))


def select_rare(ids, lengths, tokenizer, masking: Masking, draw: np.ndarray) -> np.ndarray:
    """Selects the share `share` of all tokens in the step, without replacement, with probabilities
    proportional to the weights, as in DistilBERT's code.

    The selected tokens are those with the largest log(u) / w, where u is the random number of a token and w
    its weight (Efraimidis and Spirakis 2006). DistilBERT's code calls a multinomial sampler instead.
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

"""Tests of masking: which tokens are selected, what replaces them, and that no call depends on earlier calls.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from minibert.data.masking import SELECTIONS, Masking, mask_tokens, smoothed_weights

V = 1000
SPECIAL = np.arange(V) < 5
CONTINUATION = np.arange(V) >= 600
TOKENIZER = SimpleNamespace(special=SPECIAL, continuation=CONTINUATION, vocab_size=V, mask_id=4)
CLS, SEP, UNK, MASK = 2, 3, 1, 4


def sequences(n=400, seed=0):
    """Random sequences of [CLS], 5 to 60 tokens and [SEP], with some [UNK]. Returns ids (N,) and lengths
    (S,).
    """
    rng = np.random.default_rng(seed)
    lists = [np.concatenate(([CLS], np.where(rng.random(k := rng.integers(5, 60)) < 0.02, UNK,
                                             rng.integers(5, V, k)), [SEP]))
             for _ in range(n)]
    return np.concatenate(lists), np.array([len(x) for x in lists])


def run(selection, ids, lengths, *key):
    masking = Masking(selection, weights=smoothed_weights(np.ones(V), SPECIAL))
    return mask_tokens(ids, lengths, TOKENIZER, masking, *key)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_special_tokens_are_never_masked_and_replacement_is_80_10_10(selection):
    ids, lengths = sequences(4000)
    inputs, selected = run(selection, ids, lengths, 1, 2)
    assert not selected[SPECIAL[ids]].any()
    assert np.array_equal(inputs[~selected], ids[~selected])
    n = selected.sum()
    became_mask = (inputs[selected] == MASK).mean()
    kept = (inputs[selected] == ids[selected]).mean()
    sigma = np.sqrt(0.8 * 0.2 / n)
    assert abs(became_mask - (0.8 + 0.1 / V)) < 4 * sigma  # a random id may be [MASK]
    assert abs(kept - (0.1 + 0.1 / V)) < 4 * np.sqrt(0.1 * 0.9 / n)
    random_ids = inputs[selected & (inputs != MASK) & (inputs != ids)]
    assert random_ids.min() < 20 and random_ids.max() >= V - 20  # the whole vocabulary
    counts = np.histogram(random_ids, 10, (0, V))[0]
    # chi-square, 9 degrees of freedom, p = 0.001
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 27.9


def test_every_piece_is_drawn_as_a_replacement_and_each_as_often():
    """All tokens are selected. A tenth of them becomes any of the 12 pieces, also the first and the last one.
    """
    small = SimpleNamespace(special=np.arange(12) < 5, continuation=np.zeros(12, bool), vocab_size=12,
                            mask_id=MASK)
    ids, lengths = np.full(60_000, 7), np.full(600, 100)
    inputs, selected = mask_tokens(ids, lengths, small, Masking("bernoulli", 1.0), 1)
    assert selected.all()
    counts = np.bincount(inputs, minlength=12)
    counts[[MASK, 7]] = 500  # these come from masks and from tokens that are kept, too
    assert ((counts - 500) ** 2 / 500).sum() < 27.9  # chi-square, 9 degrees of freedom, p = 0.001


@pytest.mark.parametrize("share", [0.1, 0.15, 0.4])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_the_share_is_that_which_was_asked_for(selection, share):
    ids, lengths = sequences(4000)
    selected = mask_tokens(ids, lengths, TOKENIZER,
                           Masking(selection, share, smoothed_weights(np.ones(V), SPECIAL)), 3).selected
    # "bert" and "smoothed" take the share of all tokens, the others of those that may be masked
    of = len(ids) if selection in ("bert", "smoothed") else (~SPECIAL[ids]).sum()
    assert selected.sum() / of == pytest.approx(share, rel=0.02)


def test_bernoulli_selects_tokens_independently():
    ids, lengths = sequences(4000)
    selected = run("bernoulli", ids, lengths, 3).selected
    allowed = ~SPECIAL[ids]
    n = allowed.sum()
    assert abs(selected[allowed].mean() - 0.15) < 4 * np.sqrt(0.15 * 0.85 / n)
    both = (selected[1:] & selected[:-1])[allowed[1:] & allowed[:-1]].mean()
    assert abs(both - 0.15**2) < 0.003


def test_bert_selects_an_exact_number_in_every_sequence():
    ids, lengths = sequences()
    selected = run("bert", ids, lengths, 3).selected
    per_sequence = np.add.reduceat(selected, np.cumsum(lengths) - lengths)
    allowed = np.add.reduceat(~SPECIAL[ids], np.cumsum(lengths) - lengths)
    wanted = np.maximum(1, np.floor(0.15 * lengths + 0.5))
    assert np.array_equal(per_sequence, np.minimum(wanted, allowed))
    # every place is as likely as any other
    firsts = selected[np.cumsum(lengths) - lengths + 1]
    lasts = selected[np.cumsum(lengths) - 2]
    assert abs(firsts.mean() - lasts.mean()) < 0.1


def test_whole_words_are_selected_whole():
    ids, lengths = sequences(2000)
    selected = run("whole-word", ids, lengths, 3).selected
    inner = CONTINUATION[ids] & ~SPECIAL[np.roll(ids, 1)]
    assert np.array_equal(selected[inner], np.roll(selected, 1)[inner])
    assert abs(selected[~SPECIAL[ids]].mean() - 0.15) < 0.01


def test_smoothed_draws_a_fixed_share_and_rare_tokens_oftener():
    counts = np.ones(V)
    counts[5:300] = 10_000  # frequent; all others rare
    weights = smoothed_weights(counts, SPECIAL)
    assert weights[SPECIAL].max() == 0 and weights[5] == pytest.approx(10_000**-0.7) and weights[500] == 1
    ids, lengths = sequences(2000)
    selected = mask_tokens(ids, lengths, TOKENIZER, Masking("smoothed", weights=weights), 1).selected
    assert selected.sum() == int(np.ceil(0.15 * len(ids)))
    frequent, rare = (ids >= 5) & (ids < 300), ids >= 300
    assert selected[rare].mean() > 50 * max(selected[frequent].mean(), 1e-9)


def test_smoothed_is_drawing_without_replacement_in_proportion_to_the_weights():
    # two tokens of weights 3 and 1, one to be drawn: the first with probability 3 / 4
    ids, lengths = np.array([CLS, 10, 11, SEP]), np.array([4])
    weights = np.zeros(V)
    weights[10], weights[11] = 3, 1
    hits = [mask_tokens(ids, lengths, TOKENIZER, Masking("smoothed", weights=weights), k).selected
            for k in range(4000)]
    assert all(h.sum() == 1 for h in hits)
    assert abs(np.mean([h[1] for h in hits]) - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 4000)


def test_masks_change_from_step_to_step_and_come_back():
    ids, lengths = sequences()
    a, b, again = (run("bernoulli", ids, lengths, 56, step) for step in (0, 1, 0))
    assert np.array_equal(a.inputs, again.inputs) and not np.array_equal(a.selected, b.selected)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_nothing_to_mask(selection):
    ids, lengths = np.array([CLS, SEP, CLS, UNK, SEP]), np.array([2, 3])
    inputs, selected = run(selection, ids, lengths, 1)
    assert not selected.any() and np.array_equal(inputs, ids)

"""The two formulas of a share against figures by hand, and the interval over seeds."""

import numpy as np
import pytest

from minibert.bench.scores import FORMULAS, mean_score, share_kept


def test_the_formulas_by_hand():
    student, teacher = [[10.0], [90.0]], [[20.0], [100.0]]
    assert share_kept("ratio of means", student, teacher) == pytest.approx((100 / 120,) * 3)
    assert share_kept("mean of ratios", student, teacher) == pytest.approx(((0.5 + 0.9) / 2,) * 3)


def test_the_published_shares():
    """Both figures of Botros et al. and the 97 % of the DistilBERT paper, from their tables."""
    ours, theirs = [[91.2], [48.9], [86.2]], [[92.4], [57.2], [87.2]]
    assert share_kept("mean of ratios", ours, theirs)[0] == pytest.approx(0.943, abs=5e-4)
    assert share_kept("ratio of means", ours, theirs)[0] == pytest.approx(0.956, abs=5e-4)
    bert = [56.3, 84.7, 88.6, 91.8, 89.6, 69.3, 92.7, 89.0, 53.5]
    distilbert = [51.3, 82.2, 87.5, 89.2, 88.5, 59.9, 91.3, 86.9, 56.3]
    assert share_kept("ratio of means", [[x] for x in distilbert], [[x] for x in bert])[0] == pytest.approx(
        0.969, abs=5e-4)


def test_medians_over_seeds_and_an_interval_around_them():
    value, low, high = share_kept("ratio of means", [[40.0, 45.0, 80.0]], [[50.0]])
    assert value == pytest.approx(0.9) and low == pytest.approx(0.8) and high == pytest.approx(1.6)


def test_the_interval_of_normal_scores_is_that_of_their_median():
    """For many seeds, the standard error of the median is 1.2533 sigma / sqrt(n)."""
    seeds = np.random.default_rng(1).normal(100.0, 5.0, 400)
    _, low, high = share_kept("mean of ratios", [list(seeds)], [[100.0]])
    assert (high - low) * 100 == pytest.approx(2 * 1.96 * 1.2533 * 5 / 20, rel=0.25)


def test_there_is_no_share_of_nothing():
    for formula in FORMULAS:
        assert share_kept(formula, [[10.0]], [[0.0, 5.0]]) is None


def test_a_mean_score():
    assert mean_score([[10.0, 20.0, 60.0], [90.0]]) == 55.0

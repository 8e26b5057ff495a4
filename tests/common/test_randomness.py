"""Random numbers without state: right statistics, no history."""

import numpy as np
import pytest

from minibert.common import randomness
from minibert.common.randomness import mix, permute, samples_of_step, seed_of, uniform


def test_mix_is_splitmix64():
    # the first outputs of SplitMix64 seeded with 0 and 1 (a one-word hash is one step of the generator)
    assert int(mix(0)[0]) == 0xE220A8397B1DCDAF
    assert int(mix(1)[0]) == 0x910A2DEC89025CC1


def test_order_of_words_matters_and_broadcasts():
    assert mix(1, 2)[0] != mix(2, 1)[0]
    assert np.array_equal(mix(7, np.arange(5)), np.concatenate([mix(7, i) for i in range(5)]))
    assert 0 <= seed_of(3, 4) < 2**63


def test_uniform_is_uniform_and_never_zero():
    u = uniform(5, np.arange(200_000))
    assert u.min() > 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 0.003 and abs(u.var() - 1 / 12) < 0.001
    assert np.histogram(u, 10, (0, 1))[0].min() > 19_300  # expected 20,000 each, sigma 134
    neighbours = np.corrcoef(u[:-1], u[1:])[0, 1]
    assert abs(neighbours) < 0.01


@pytest.mark.parametrize("hashed, expected", [(0, 2.0**-53), (2**64 - 1, 1 - 2.0**-53)])
def test_uniform_ends_before_0_and_1(hashed, expected, monkeypatch):
    monkeypatch.setattr(randomness, "mix", lambda *words: np.array([hashed], dtype=np.uint64))
    assert randomness.uniform(0)[0] == expected and 0 < expected < 1


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 1000, 65_537])
def test_permute_is_a_permutation_that_depends_on_its_key(n):
    image = permute(np.arange(n), n, 1, 2)
    assert np.array_equal(np.sort(image), np.arange(n))
    if n >= 16:
        assert not np.array_equal(image, permute(np.arange(n), n, 1, 3))
        assert not np.array_equal(image, np.arange(n))


def test_every_epoch_holds_every_sequence_once_whatever_the_batch():
    n, seed = 103, 9
    # 225 = two epochs and 19
    drawn = np.concatenate([samples_of_step(step, 25, n, seed) for step in range(9)])
    first, second = drawn[:n], drawn[n:2 * n]
    assert sorted(first) == sorted(second) == list(range(n))
    assert not np.array_equal(first, second)
    other_batch = np.concatenate([samples_of_step(step, 45, n, seed) for step in range(5)])
    assert np.array_equal(drawn, other_batch)

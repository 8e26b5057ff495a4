"""Random numbers as pure functions of (seed, step, sample, position ...), so that a run can be resumed at any
step and divided among any number of ranks.

Nothing here has a state: a number is a hash of its arguments, and the order of the data is a permutation that
is computed, not stored. The hash is the finaliser of SplitMix64 (Steele, Lea, Flood 2014).
"""

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def mix(*words) -> np.ndarray:
    """Hashes integers or integer arrays (broadcast together) to uint64; the order of the words matters."""
    # An array: numpy warns when a scalar overflows, and here it should.
    state = np.zeros(1, dtype=np.uint64)
    for word in words:
        z = state + _GAMMA + np.asarray(word).astype(np.uint64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = z ^ (z >> np.uint64(31))
    return state


def uniform(*words) -> np.ndarray:
    """Hashes like `mix`, to floats in (0, 1), without 0 and 1: log(u) is finite, and u * n is below n."""
    # 52 bits: with 53, adding 0.5 would be rounded, at the upper end to 1.
    return ((mix(*words) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def seed_of(*words) -> int:
    """Hashes like `mix`, to one non-negative int63 for a generator of torch."""
    return int(mix(*words)[0] >> np.uint64(1))


def permute(i: np.ndarray, n: int, *key) -> np.ndarray:
    """The images of `i` under a pseudo-random permutation of 0 ... n-1 that `key` chooses; int64.

    A balanced Feistel network over the next even number of bits. It is applied again to results of n or more
    ("cycle walking", Black and Rogaway 2002), fewer than four times on average.
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    x = np.asarray(i).astype(np.uint64)
    outside = np.ones(x.shape, dtype=bool)
    while outside.any():
        left, right = x[outside] >> half, x[outside] & low
        for round_number in range(6):
            left, right = right, left ^ (mix(*key, round_number, right) & low)
        x[outside] = (left << half) | right
        outside = x >= np.uint64(n)
    return x.astype(np.int64)


def samples_of_step(step: int, batch: int, n: int, seed: int) -> np.ndarray:
    """The numbers of the `batch` sequences, out of n, that optimiser step `step` (from 0) reads; int64.

    Each epoch is another permutation of all n.
    """
    drawn = np.arange(step * batch, (step + 1) * batch, dtype=np.int64)
    epochs = drawn // n
    out = np.empty(batch, dtype=np.int64)
    for epoch in np.unique(epochs):
        out[epochs == epoch] = permute(drawn[epochs == epoch] % n, n, seed, int(epoch))
    return out

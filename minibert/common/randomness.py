"""Computes each random number as a hash of integers: the seed, the step, the position and so on. So a resumed
run has the same random numbers as a run that was never stopped. The number of ranks changes neither the order
of the sequences nor the choice of masked tokens. The hash uses the mixing function of SplitMix64 (Steele,
Lea, Flood 2014).
"""

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def mix(*words) -> np.ndarray:
    """Returns a uint64 array with a hash of `words`, which are integers or integer arrays. Arrays are
    broadcast together. The hash of integers alone has the shape (1,).
    """
    # `state` is an array, because numpy warns if a scalar overflows. The overflow here is intended.
    state = np.zeros(1, dtype=np.uint64)
    for word in words:
        z = state + _GAMMA + np.asarray(word).astype(np.uint64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = z ^ (z >> np.uint64(31))
    return state


def uniform(*words) -> np.ndarray:
    """Returns uniform random floats u in (0, 1), computed from the hash `mix(*words)`. `log(u)` is finite,
    and `int(u * n)` is a valid index of a list with n elements.
    """
    # Only 52 bits are used, because a float64 cannot hold a number of 53 bits plus 0.5. The sum would be
    # rounded, and the largest u would be 1.
    return ((mix(*words) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def seed_of(*words) -> int:
    """Returns a seed for torch, from 0 to 2^63 - 1, computed from the hash `mix(*words)`."""
    return int(mix(*words)[0] >> np.uint64(1))


def permute(i: np.ndarray, n: int, *key) -> np.ndarray:
    """Maps the numbers `i` by a pseudo-random permutation of 0 ... n - 1. Returns the results as int64. `key`
    chooses the permutation. A balanced Feistel network computes the permutation, on the smallest even number
    of bits (at least 2) that can hold n - 1. If a result is n or more, the network is applied to the result
    again ("cycle walking", Black and Rogaway 2002).
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
    """Returns the indices (int64, from 0 to `n` - 1) of the `batch` sequences in optimiser step `step` (the
    first step is 0). `n` is the number of all sequences. They get a new random order in each epoch.
    """
    drawn = np.arange(step * batch, (step + 1) * batch, dtype=np.int64)
    epochs = drawn // n
    out = np.empty(batch, dtype=np.int64)
    for epoch in np.unique(epochs):
        out[epochs == epoch] = permute(drawn[epochs == epoch] % n, n, seed, int(epoch))
    return out

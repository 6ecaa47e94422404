"""Orders without a table: a permutation of 0..n-1 under a key, entry by entry."""

from __future__ import annotations

import numpy as np


def permute(index: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
    """A pseudo-random permutation of 0..n-1, applied to `index` [m] uint64 under `key` [m] or [1] uint64.

    A Feistel network over pairs (left, right) with left < a and right < b, a * b >= n, adding modulo a and b (Black and
    Rogaway 2002, "Ciphers with arbitrary finite domains": generalized Feistel with cycle walking). Every round is
    invertible, so it permutes the a * b pairs; a result of n or more is permuted again until it is below n. As
    a * b - n < a, about sqrt(n), that is rare.
    """
    a = np.uint64(max(1, int(np.ceil(np.sqrt(n)))))
    b = np.uint64(-(-n // int(a)))

    def rounds(index: np.ndarray, key: np.ndarray) -> np.ndarray:
        left, right = index % a, index // a
        for i in range(6):  # with 4, orders of fewer than 10 windows are measurably uneven
            left = (left + mix(right ^ (key + np.uint64(2 * i)))) % a
            right = (right + mix(left ^ (key + np.uint64(2 * i + 1)))) % b
        return right * a + left

    key = np.broadcast_to(key, index.shape)
    out = rounds(index, key)
    while (outside := out >= n).any():
        out[outside] = rounds(out[outside], key[outside])
    return out


def mix(x: np.ndarray) -> np.ndarray:
    """One step of splitmix64 (Steele, Lea, Flood 2014): uint64 arrays to uint64, well mixed; wraps around."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))

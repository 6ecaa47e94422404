"""A made-up language whose entropy is known: an order-1 Markov chain. Needs numpy only."""

from __future__ import annotations

import functools

import numpy as np

# From any token, the next is one of four, with these probabilities.
PROBABILITIES = (0.55, 0.25, 0.15, 0.05)
TRAIN_TOKENS = 1 << 22
HELDOUT_TOKENS = 1 << 18


def synthetic_entropy() -> float:
    """The chain's entropy rate, nats per token: no model's expected loss can be lower, whatever the vocabulary."""
    p = np.array(PROBABILITIES)
    return float(-(p * np.log(p)).sum())


def successors(vocab_size: int) -> np.ndarray:
    """[vocab_size, 4] the tokens that may follow each token, in the order of PROBABILITIES."""
    places, names, steps = _language(vocab_size)
    return names[(places[:, None] + steps) % vocab_size]


@functools.lru_cache(maxsize=2)
def tokens(vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """(train, held-out) tokens, read-only, the same on every call. The chain is stationary, its marginal uniform."""
    _, names, steps = _language(vocab_size)
    rng = np.random.default_rng(0)
    splits = []
    for n in (TRAIN_TOKENS, HELDOUT_TOKENS):
        # Walk round a circle of places by random steps (a cumulative sum), then rename places to tokens.
        choice = np.searchsorted(np.cumsum(PROBABILITIES)[:-1], rng.random(n), side="right")
        walk = np.cumsum(steps[choice]) + rng.integers(vocab_size)
        split = names[walk % vocab_size]
        split.flags.writeable = False
        splits.append(split)
    return splits[0], splits[1]


def _language(vocab_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """places [V] of each token on a circle, names [V] (the inverse), steps [4] distinct."""
    rng = np.random.default_rng(1)
    names = rng.permutation(vocab_size).astype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
    steps = rng.choice(vocab_size, len(PROBABILITIES), replace=False)
    return np.argsort(names), names, steps

"""Mixtures of corpora by weight: which sequence of a run is of which corpus, as a pure function of (seed, sequence).

Of every SLOTS sequences each corpus has its share, exactly, in an order of their own. So how a run is cut into batches,
calls or processes changes nothing, and any sequence is known without those before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.errors import InputError
from engine.shuffle import mix, permute

SLOTS = 1000


@dataclass(frozen=True, eq=False)
class Mixture:
    """Tokens of several corpora; `slots` of every SLOTS sequences are of each."""

    parts: tuple[np.ndarray, ...]
    slots: tuple[int, ...]

    def __len__(self) -> int:
        """Tokens of all of them."""
        return sum(map(len, self.parts))


def parse(corpus: str) -> list[tuple[str, float]]:
    """Corpora and their shares, which sum to one, of 'A:3,B:1'; of any other name itself. Raises InputError."""
    names = corpus.split(",")
    if len(names) == 1 or Path(corpus).expanduser().exists():
        return [(corpus, 1.0)]
    weights = {}
    for entry in names:
        name, _, number = entry.strip().rpartition(":")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not (name and 0 < weight < math.inf):
            raise InputError(f"data.corpus {corpus!r}: {entry.strip()!r} has no weight; write it as A:0.7,B:0.3")
        if name in weights:
            raise InputError(f"data.corpus {corpus!r} names {name!r} twice; give it one weight")
        weights[name] = weight
    total = sum(weights.values())
    for name, weight in weights.items():
        if weight / total < 1 / SLOTS:
            raise InputError(f"data.corpus {corpus!r}: {name!r} has less than a thousandth of the weight; raise it")
    return [(name, weight / total) for name, weight in weights.items()]


def slots(shares: Sequence[float]) -> tuple[int, ...]:
    """SLOTS divided as `shares`, one at least each, the largest remainders rounded up."""
    exact = np.asarray(shares) * SLOTS
    whole = np.maximum(1, np.floor(exact)).astype(int)
    for i in np.argsort(whole - exact, kind="stable")[: SLOTS - whole.sum()]:
        whole[i] += 1
    whole[np.argmax(whole)] += SLOTS - whole.sum()
    return tuple(whole.tolist())


def assign(slots: Sequence[int], seed: int, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(part, place) of sequences `at` [m] uint64: the corpus of each, and how many sequences of it come before."""
    part, place = np.zeros(len(at), np.int64), np.zeros(len(at), np.uint64)
    period, within = np.divmod(at, np.uint64(SLOTS))
    ends = np.cumsum(slots)
    key = mix(np.array([seed % 2**64], np.uint64) ^ np.uint64(0x6D6978))  # of its own, beside the orders of windows
    for p in np.unique(period):
        order = permute(np.arange(SLOTS, dtype=np.uint64), SLOTS, mix(key ^ p))
        parts = np.searchsorted(ends, order.astype(np.int64), side="right")
        ranks = np.zeros(SLOTS, np.uint64)
        for j in range(len(slots)):
            ranks[parts == j] = np.arange(slots[j])
        here = period == p
        part[here] = parts[within[here].astype(np.int64)]
        place[here] = p * np.asarray(slots, np.uint64)[part[here]] + ranks[within[here].astype(np.int64)]
    return part, place

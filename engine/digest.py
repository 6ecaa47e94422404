"""Digests of arrays, whole or in parts on many devices and hosts: the same however they are divided.

Each element is mixed with its place, and what comes out is added up, modulo 2**32, in two lanes: so each process
digests its own parts, and only sums are exchanged. Mixing is a bijection of the element, so that a change of one always
shows; of several, all but one in 2**64 of the times. Against damage, not against forgers.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from engine import processes

LANES = np.array([0x9E3779B9, 0x7F4A7C15], np.uint32)
STEP = 0x85EBCA77  # odd: the place of an element is the sum of its indices, each times a power of it
BLOCK = 1 << 15  # elements at a time, so that they stay in a core's cache


def of(arrays: dict[str, Any]) -> dict[str, str]:
    """16 hex digits of each array, on the host or on devices. In a run of several processes all call this together."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        mine = list(pool.map(_own, arrays.values()))
    sums = np.asarray(processes.current().gather(mine), np.uint64).sum(0) % 2**32
    return {name: "".join(f"{int(lane):08x}" for lane in lanes) for name, lanes in zip(arrays, sums)}


def of_bytes(array: Any) -> str:
    """32 hex digits of an array on the host: BLAKE2b."""
    return hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).hexdigest()


def _own(array: Any) -> list[int]:
    """Sums over this process's parts of the array."""
    parts = [_sums(part, first) for part, first in _parts(array)]
    return [sum(lane) % 2**32 for lane in zip(*parts)] or [0] * len(LANES)


def _parts(array: Any) -> Iterator[tuple[np.ndarray, list[int]]]:
    """What this process answers for: each part, with the indices of its first element."""
    if not isinstance(array, jax.Array):
        if processes.current().lead:
            yield np.asarray(array), [0] * np.ndim(array)
        return
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            yield jax.device_get(shard.data), [at.start or 0 for at in shard.index]


def _sums(part: np.ndarray, first: list[int]) -> list[int]:
    places = np.zeros(1, np.uint32)
    step = 1
    last = np.zeros(1, np.uint32)
    for size, start in zip(part.shape, first):
        step = step * STEP % 2**32
        places = (places[:, None] + last[None, :]).ravel()
        last = np.arange(start, start + size, dtype=np.uint32) * np.uint32(step)
    bits = _bits(np.ascontiguousarray(part)).reshape(len(places), len(last))
    rows = max(1, BLOCK // max(1, len(last)))
    sums = np.zeros(len(LANES), np.uint64)
    for i in range(0, len(places), rows):
        for j in range(0, len(last), BLOCK):
            place = places[i : i + rows, None] + last[None, j : j + BLOCK]
            element = bits[i : i + rows, j : j + BLOCK].astype(np.uint32)
            for k, lane in enumerate(LANES):
                sums[k] += _mixed((place + lane) ^ element).sum(dtype=np.uint64)
    return (sums % 2**32).tolist()


def _bits(x: np.ndarray) -> np.ndarray:
    """As unsigned integers, element for element."""
    return x.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[x.dtype.itemsize])


def _mixed(x: np.ndarray) -> np.ndarray:
    """A bijection of 32 bits, each of which changes about half of the others: the finalizer of MurmurHash3."""
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x85EBCA6B)
    x ^= x >> np.uint32(13)
    x *= np.uint32(0xC2B2AE35)
    x ^= x >> np.uint32(16)
    return x

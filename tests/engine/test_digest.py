"""A digest is of the values and their places, however they are divided; any change shows."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from engine import digest

RNG = np.random.default_rng(0)


def plainly(array):
    """The definition, element by element."""
    sums = [0] * len(digest.LANES)
    flat = np.ascontiguousarray(array).reshape(array.shape or (1,))
    bits = flat.view(f"u{flat.itemsize}")
    for index in np.ndindex(array.shape):
        place = sum(i * pow(digest.STEP, axis, 2**32) for axis, i in enumerate(index, start=1)) % 2**32
        for k, lane in enumerate(digest.LANES):
            x = (place + int(lane)) % 2**32 ^ int(bits[index or 0])
            for shift, times in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
                x = (x ^ x >> shift) * times % 2**32
            sums[k] = (sums[k] + x) % 2**32
    return "".join(f"{lane:08x}" for lane in sums)


ARRAYS = {
    "matrix": RNG.normal(size=(8, 6)).astype(np.float32),
    "scalar": np.int32(7),
    "flags": np.array([True, False, True]),
    "half": RNG.normal(size=(3, 2, 4)).astype(np.float16),
    "empty": np.zeros((0, 3), np.float32),
    "rows longer than a block": RNG.integers(0, 9, (2, 3)).astype(np.uint8),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_as_defined(name, monkeypatch):
    monkeypatch.setattr(digest, "BLOCK", 2)
    assert digest.of(ARRAYS) == {n: plainly(np.asarray(a)) for n, a in ARRAYS.items()}


@pytest.mark.parametrize("spec", [("a", "b"), (("b", "a"),), (None, "b"), ("b", None, "a"), ()])
def test_the_same_however_divided(spec):
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))
    values = RNG.normal(size=(16, 8, 40)).astype(np.float32)
    divided = jax.device_put(values, NamedSharding(mesh, PartitionSpec(*spec)))
    assert digest.of({"x": divided}) == digest.of({"x": values})


def test_every_flipped_bit_and_every_swap_shows():
    good = ARRAYS["matrix"]
    seen = {digest.of({"x": good})["x"]}
    for i in range(good.size * 32):
        data = bytearray(good.tobytes())
        data[i // 8] ^= 1 << i % 8
        seen.add(digest.of({"x": np.frombuffer(data, np.float32).reshape(good.shape)})["x"])
    assert len(seen) == 1 + good.size * 32
    for swapped in (good[::-1], good[:, [1, 0, 2, 3, 4, 5]], good.reshape(6, 8)):
        assert digest.of({"x": swapped})["x"] not in seen

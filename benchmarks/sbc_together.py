"""The chains of all replications of `benchmarks.sbc` in one compiled program: a tenth of the work of one fit each.

Each replication runs in a thread of its own up to where it asks for its chains; when all have asked, all chains go in
step, each on its own data, and every thread goes on with its draws. No chain goes on where it has not mixed, as the
library's would: replications with an R-hat above MAX_RHAT, of few chains and draws, are left out and counted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer.hmc import hmc

from laws import normal, sampler
from laws.errors import FitError
from laws.jumps import Jumps
from laws.whitening import Whitening, place_all

CHAINS, WARMUP, DRAWS, CHUNK = 2, 200, 300, 50
ACCEPT, DEPTH = 0.8, 7
MAX_RHAT = 1.1

# model, data, mode, whitening, jumps, starts
Asked = tuple[Callable, dict[str, Any], dict[str, dict], Whitening, Jumps | None, jax.Array]


class Together:
    """Stands in for `sampler.sample` while `replicate` runs in threads."""

    def __init__(self) -> None:
        self.asked: dict[int, Asked] = {}
        self.answers: dict[int, dict[str, np.ndarray]] = {}
        self.waits, self.drawn = threading.Semaphore(0), threading.Event()

    def sample(self, model, data, start, *, name, hold=(), others=(), over="", seed=0, **_) -> normal.Samples:
        with jax.enable_x64(True):
            data = {key: jnp.asarray(value) for key, value in data.items()}
            modes = normal.find_modes(model, data, [start, *others], hold, name)
            way, begin, leaps = sampler.whitened(model, data, modes, over, CHAINS, seed)
        if begin is None:
            begin = np.random.default_rng(seed).standard_normal((CHAINS, len(way.own)))
        self.asked[seed] = model, data, modes[0][0], way, leaps, begin
        self.waits.release()
        self.drawn.wait()
        if seed not in self.answers:
            raise FitError(f"{name}: its chains have not mixed")
        return normal.Samples(self.answers[seed], {})


def replicate_all(replicate: Callable[[int], Any], seeds: Sequence[int]) -> list[Any]:
    """`replicate(seed)` for each seed; None where it raised FitError."""
    out: dict[int, Any] = dict.fromkeys(seeds)
    together, own = Together(), sampler.sample

    def one(seed: int) -> None:
        try:
            out[seed] = replicate(seed)
        except FitError:
            together.waits.release()

    threads = [threading.Thread(target=one, args=(seed,)) for seed in seeds]
    try:
        sampler.sample = together.sample
        for thread in threads:  # one at a time, to where it waits
            thread.start()
            together.waits.acquire()
        try:
            together.answers = draw(together.asked)
        finally:
            together.drawn.set()
        for thread in threads:
            thread.join()
    finally:
        sampler.sample = own
    return [out[seed] for seed in seeds]


def draw(asked: dict[int, Asked]) -> dict[int, dict[str, np.ndarray]]:
    """Seed -> site -> draws [chain, draw, ...] of those that have mixed. Data of one shape, one model."""
    model = next(iter(asked.values()))[0]

    init_kernel, sample_kernel = hmc(potential_fn_gen=sampler.potential(model), algo="NUTS")
    how = {"step_size": 0.5, "target_accept_prob": ACCEPT, "max_tree_depth": DEPTH}

    def start(white, key, *args):
        return init_kernel(white, WARMUP, model_args=args[:3], rng_key=key, **how)

    def advance(state, *args):
        def one(state, _):
            state = sampler.step(model, sample_kernel, state, *args)
            return state, state.z

        return jax.lax.scan(one, state, None, length=CHUNK)

    with jax.enable_x64(True):
        args = jax.tree.map(
            lambda *each: jnp.repeat(jnp.stack([jnp.asarray(x) for x in each]), CHAINS, axis=0),
            *(x[1:5] for x in asked.values()),
        )
        white = jnp.concatenate([jnp.asarray(x[5]) for x in asked.values()])
        size, keys = white.shape[1], jax.random.split(jax.random.key(0), len(asked) * CHAINS)
        state = jax.jit(jax.vmap(start))(white, keys, *args)
        advance = jax.jit(jax.vmap(advance))
        kept = []
        for k in range((WARMUP + DRAWS) // CHUNK):
            state, z = advance(state, *args)
            if k * CHUNK >= WARMUP:
                kept.append(np.asarray(z))
        found = np.concatenate(kept, axis=1).reshape(len(asked), CHAINS, -1, size)
        out = {}
        for (seed, (_, data, mode, way, *_)), z in zip(asked.items(), found):
            if sampler.rank_diagnostics(z)[0] < MAX_RHAT:
                flat = place_all(way, jnp.asarray(z))
                out[seed] = {k: np.asarray(v) for k, v in normal.constrained(model, data, mode, flat).items()}
    return out

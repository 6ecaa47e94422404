"""How many trials of a population step together: measured, since no rule holds on every machine.

Many small matrix products in one keep an accelerator busy that one trial cannot fill. On a CPU they cost more than one
after the other once a trial fills its cores. So a long run first times a few steps of each choice. What was found is
kept in the cache: the same run makes the same choice again, which rounding depends on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from engine import config as config_lib
from engine import measurements, population, processes, sizes, step
from engine import mesh as mesh_lib
from engine.config import TrainConfig

WORTH = 120.0  # seconds of training, about, from which on a measurement of some 20 pays
ASSUMED = {"cpu": 2e10}  # FLOP/s, to tell how long a run is before it has begun; elsewhere 1e14
STEPS, REPEATS = 2, 3  # of a measurement; the first call, which compiles, is left out


def choose(config: TrainConfig, trials: Sequence[TrainConfig], mesh: Mesh, call_steps: int) -> int:
    """`config.compute.lanes`, or the fastest of one (a device), four and all; all where the run is too short to tell.

    Always a divisor of the number of trials, and a multiple of the devices that share them.
    """
    group = processes.current()
    chosen = group.agree(settled(config, trials, mesh))
    if chosen is None:
        candidates = _candidates(len(trials), mesh)
        seconds = {lanes: _seconds(config, trials, mesh, lanes, call_steps) for lanes in candidates}
        chosen = group.agree(min(seconds, key=lambda lanes: seconds[lanes]))
        measurements.keep("lanes", measurements.key(config, len(trials), mesh), chosen)
    return chosen


def settled(config: TrainConfig, trials: Sequence[TrainConfig], mesh: Mesh) -> int | None:
    """What `choose` returns, where it would measure nothing; else None."""
    n, candidates = len(trials), _candidates(len(trials), mesh)
    if config.compute.lanes:
        return max((k for k in _fitting(n, mesh) if k <= config.compute.lanes), default=mesh.shape["trial"])
    flops = sum(sizes.flops_per_token(t.model, t.data.seq_len) * t.steps * t.batch_tokens for t in trials)
    if len(candidates) == 1 or flops < WORTH * assumed_flops():
        return n
    known = measurements.known("lanes", measurements.key(config, n, mesh))
    return known if known in candidates else None


def _fitting(n: int, mesh: Mesh) -> list[int]:
    least = mesh.shape["trial"]
    return [k for k in range(least, n + 1, least) if n % k == 0]


def _candidates(n: int, mesh: Mesh) -> list[int]:
    fitting = _fitting(n, mesh)
    return sorted({fitting[0], max((k for k in fitting if k <= 4 * mesh.shape["trial"]), default=n), n})


def assumed_flops() -> float:
    """FLOP/s of this process's device, about."""
    return ASSUMED.get(jax.default_backend(), 1e14)


def with_lanes(config: TrainConfig, lanes: int) -> TrainConfig:
    """`config` with that many lanes."""
    return config_lib.replace(config, {"compute.lanes": lanes})


def _seconds(config: TrainConfig, trials: Sequence[TrainConfig], mesh: Mesh, lanes: int, call_steps: int) -> float:
    """Of STEPS steps of all trials, the least of some; by the very program that the run would use."""
    hyper = mesh_lib.put(population.stack_hypers(trials), mesh_lib.trial_sharding(mesh))
    state = population.init_state(mesh, trials, hyper)
    run = population.compiled_train_steps(step.program(with_lanes(config, lanes)), mesh)
    tokens = np.zeros((call_steps, config.batch_size, config.data.seq_len + 1), np.int32)
    batches = mesh_lib.put(tokens, mesh_lib.batch_sharding(mesh, steps_axis=True))
    n_steps = mesh_lib.put(np.int32(STEPS), mesh_lib.replicated(mesh))
    times = []
    for _ in range(1 + REPEATS):
        begun = time.perf_counter()
        state, metrics = run(state, batches, n_steps, hyper)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - begun)
    return min(times[1:])

"""How many trials of a population step together: measured, since no rule holds on every machine.

Many small matrix products in one keep an accelerator busy that one trial cannot fill. On a CPU they cost more than one
after the other once a trial fills its cores. So a long run first times a few steps of each choice. What was found is
kept in the cache: the same run makes the same choice again, which rounding depends on.
"""

from __future__ import annotations

import json
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from engine import cache, population, row, sizes, step
from engine import config as config_lib
from engine import mesh as mesh_lib
from engine.config import TrainConfig

WORTH = 120.0  # seconds of training, about, from which on a measurement of some 20 pays
ASSUMED = {"cpu": 2e10}  # FLOP/s, to tell how long a run is before it has begun; elsewhere 1e14
STEPS, REPEATS = 2, 3  # of a measurement; the first call, which compiles, is left out


def choose(config: TrainConfig, trials: list[TrainConfig], mesh: Mesh, call_steps: int) -> int:
    """`config.compute.lanes`, or the fastest of one (a device), four and all; all where the run is too short to tell.

    Always a divisor of the number of trials, and a multiple of the devices that share them.
    """
    n, least = len(trials), mesh.shape["trial"]
    fitting = [k for k in range(least, n + 1, least) if n % k == 0]
    if config.compute.lanes:
        return max((k for k in fitting if k <= config.compute.lanes), default=least)
    candidates = sorted({fitting[0], max((k for k in fitting if k <= 4 * least), default=n), n})
    flops = sum(sizes.flops_per_token(t.model, t.data.seq_len) * t.steps * t.batch_tokens for t in trials)
    if len(candidates) == 1 or flops < WORTH * ASSUMED.get(jax.default_backend(), 1e14):
        return n
    file = cache.root() / "lanes.json"
    known = _read(file)
    key = json.dumps([row.device_name(), row.versions(), n, dict(mesh.shape), config_lib.structure(config)])
    if known.get(key) not in candidates:
        seconds = {lanes: _seconds(config, trials, mesh, lanes, call_steps) for lanes in candidates}
        known = _read(file) | {key: min(seconds, key=lambda lanes: seconds[lanes])}
        _write(file, known)
    return known[key]


def with_lanes(config: TrainConfig, lanes: int) -> TrainConfig:
    """`config` with that many lanes."""
    return config_lib.replace(config, {"compute.lanes": lanes})


def _seconds(config: TrainConfig, trials: list[TrainConfig], mesh: Mesh, lanes: int, call_steps: int) -> float:
    """Of STEPS steps of all trials, the least of some; by the very program that the run would use."""
    hyper = jax.device_put(population.stack_hypers(trials), mesh_lib.trial_sharding(mesh))
    state = population.init_state(mesh, trials, hyper)
    run = population.compiled_train_steps(step.program(with_lanes(config, lanes)), mesh)
    tokens = np.zeros((call_steps, config.batch_size, config.data.seq_len + 1), np.int32)
    batches = jax.device_put(tokens, mesh_lib.batch_sharding(mesh, steps_axis=True))
    n_steps = jax.device_put(np.int32(STEPS), mesh_lib.replicated(mesh))
    times = []
    for _ in range(1 + REPEATS):
        begun = time.perf_counter()
        state, metrics = run(state, batches, n_steps, hyper)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - begun)
    return min(times[1:])


def _read(file: Any) -> dict[str, int]:
    try:
        found = json.loads(file.read_text())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def _write(file: Any, known: dict[str, int]) -> None:
    """Best effort: where the cache can't be written, it is measured again next time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(known))
        partial.replace(file)
    except OSError:
        pass

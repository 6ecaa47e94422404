"""What a population costs on this machine, measured: its program is compiled and trains for some steps.

Pilots of two lengths run the very code of a long run. Their difference is what steps cost, with batches and logs; the
rest is what every population costs beside: first weights, evaluation, checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from engine import config as config_lib
from engine import lanes, loop, measurements, memory, population, sizes
from engine import mesh as mesh_lib
from engine.config import TrainConfig

SHORT = 4  # steps of the short pilots
LASTING = 2.0  # seconds at least that the long one takes longer than a short one
MOST_STEPS = 4096  # of the long one
LONGEST_STEP = 10.0  # seconds: where a step is thought to take longer, there is no pilot
ROOM = 0.9  # of the memory that is available, for a program


@dataclass(frozen=True)
class Cost:
    """Of a population of `n_trials`."""

    n_trials: int
    bytes: int  # of a device
    fits: bool
    # Seconds, NaN where it does not fit:
    compile_s: float = math.nan  # by the compiler, the first time; later what it made is read from a disk
    start_s: float = math.nan  # by a process's first population, beside: tracing, reading what was compiled
    fixed_s: float = math.nan  # by every population, whatever its steps
    step_s: float = math.nan  # by a step of all trials


def too_slow(config: TrainConfig, n_trials: int) -> bool:
    """True where a step is thought to take so long that no pilot is worth it."""
    flops = sizes.flops_per_token(config.model, config.data.seq_len) * config.batch_tokens * n_trials
    return flops / lanes.assumed_flops() > LONGEST_STEP


def known(trials: Sequence[TrainConfig]) -> Cost | None:
    """What an earlier `measure` on such devices found; None where there was none, or what did not fit then does now."""
    mesh = _mesh(trials)
    n_lanes = lanes.settled(trials[0], trials, mesh) or len(trials)
    found = measurements.known("pilots", _key(trials, mesh, n_lanes))
    try:
        cost = Cost(**found) if found else None
    except TypeError:
        return None
    return None if cost is not None and not cost.fits and _fits(cost.bytes) else cost


def measure(trials: Sequence[TrainConfig]) -> Cost:
    """Of trials of one program, as `engine.train_population` would train them. Kept in the cache; of what does not fit
    only the bytes are known.

    Takes as long as compiling, and some seconds.
    """
    mesh, n, config, call_steps = _mesh(trials), len(trials), trials[0], loop.call_steps(trials[0])

    def compiled(n_lanes: int) -> tuple[float, float, int]:
        begun = time.monotonic()
        lowered = population.lowered_train_steps(lanes.with_lanes(config, n_lanes), trials, mesh, call_steps)
        traced = time.monotonic()
        with _compiler() as seen:
            made = lowered.compile()
        return traced - begun, time.monotonic() - traced + seen["saved"], memory.of_program(made)

    n_lanes = config.compute.lanes or n
    trace_s, compile_s, size = compiled(n_lanes)
    if not _fits(size):
        cost = Cost(n, size, False)
        measurements.keep("pilots", _key(trials, mesh, n_lanes), dataclasses.asdict(cost))
        return cost
    chosen = lanes.choose(config, trials, mesh, call_steps)
    if chosen != n_lanes:
        trace_s, compile_s, size = compiled(chosen)
    with _compiler() as beside:  # what makes first weights, and evaluates
        first = _seconds(trials, chosen, SHORT)
    short = _seconds(trials, chosen, SHORT)
    steps, spent = SHORT, short
    most = min(MOST_STEPS, max(t.steps for t in trials))
    while spent - short < max(LASTING, short) and steps < most:  # else what is beside steps would drown them
        steps = min(4 * steps, most)
        spent = _seconds(trials, chosen, steps)
    step_s = max(0.0, spent - short) / (steps - SHORT) if steps > SHORT else short / SHORT
    cost = Cost(
        n,
        size,
        True,
        compile_s=compile_s + beside["spent"] + beside["saved"],
        start_s=trace_s + max(0.0, first - beside["spent"] - short),
        fixed_s=max(0.0, short - SHORT * step_s),
        step_s=step_s,
    )
    measurements.keep("pilots", _key(trials, mesh, chosen), dataclasses.asdict(cost))
    return cost


@contextlib.contextmanager
def _compiler() -> Iterator[dict[str, float]]:
    """Seconds of the compiler meanwhile: `spent` on programs that are on disk from then on, and `saved` by those that
    were (JAX keeps whole seconds of each)."""
    seconds, missed = {"spent": 0.0, "saved": 0.0}, [False]
    least = jax.config.jax_persistent_cache_min_compile_time_secs  # type: ignore[attr-defined]  # faster: not kept

    def happened(event: str, **_: Any) -> None:
        missed[0] |= event == "/jax/compilation_cache/cache_misses"

    def took(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/compilation_cache/compile_time_saved_sec":
            seconds["saved"] += max(0.0, duration_secs)
        if event == "/jax/core/compile/backend_compile_duration":
            seconds["spent"] += duration_secs * (missed[0] and duration_secs >= least)
            missed[0] = False

    jax.monitoring.register_event_listener(happened)
    jax.monitoring.register_event_duration_secs_listener(took)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_listener(happened)
        jax.monitoring.unregister_event_duration_listener(took)


def _fits(size: float) -> bool:
    return size <= ROOM * memory.available()


def _mesh(trials: Sequence[TrainConfig]) -> Mesh:
    config = trials[0]
    batch_size = config.compute.micro_batch or config.batch_size
    return mesh_lib.make_mesh(config.mesh, n_trials=len(trials), batch_size=batch_size)


def _key(trials: Sequence[TrainConfig], mesh: Mesh, n_lanes: int) -> str:
    return measurements.key(lanes.with_lanes(trials[0], n_lanes), len(trials), mesh)


def _seconds(trials: Sequence[TrainConfig], n_lanes: int, steps: int) -> float:
    """Of training for so many steps, at a learning rate at which nothing diverges, into a folder that goes."""
    config = lanes.with_lanes(trials[0], n_lanes)
    changes = {"tokens": steps * config.batch_tokens, "optim.warmup_steps": 0, "optim.lr": 1e-6, "optim.final_lr": 0.0}
    hypers = [{**config_lib.hypers(t), **changes} for t in trials]
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        loop.train_population(config, hypers, folder=Path(folder) / "run", logs=Path(folder) / "logs")
        return time.monotonic() - begun

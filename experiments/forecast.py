"""How long chunks take here: from pilots (`engine.pilot`) of the cohorts that carry the work, by FLOPs for the rest."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine import lanes, pilot, sizes
from engine.errors import InputError
from engine.pilot import Cost
from experiments.plan import Chunk, Plan

MOST = 8  # cohorts with a pilot
SHARE = 0.95  # of the FLOPs, from which on the rest has none
WORTH = 600.0  # seconds of a run, about, from which on pilots pay
FASTER = 0.95  # of the time per trial, below which a larger chunk is the better one


@dataclass(frozen=True)
class Forecast:
    """Seconds of chunks, one after another, on this machine's devices."""

    by_chunk: Mapping[str, float]
    training: float  # of them, for steps
    compiling: float  # tracing included
    beside: float  # first weights, evaluations, checkpoints
    pilots: int  # cohorts that were measured
    share: float  # of the FLOPs, that those carry
    cohorts: int

    @property
    def seconds(self) -> float:
        return sum(self.by_chunk.values())


def known(plan: Plan) -> dict[str, Cost]:
    """Costs by cohort, of those that were measured on such devices before."""
    found = {chunk.cohort: _known(chunk) for chunk in _representatives(plan)}
    return {cohort: cost for cohort, cost in found.items() if cost is not None}


def measure(plan: Plan, on_progress: Callable[[int, int], None] | None = None) -> dict[str, Cost]:
    """Costs by cohort, pilots run of those that are `wanted` and not known.

    Of a cohort it is the cost of the number of trials to run together: as many as planned, or else what fits; on
    accelerators more, if they are faster.
    """
    costs = known(plan)
    new = [chunks for chunks in wanted(plan) if chunks[0].cohort not in costs]
    for i, chunks in enumerate(new):
        if on_progress is not None:
            on_progress(i, len(new))
        costs[chunks[0].cohort] = _best_size(chunks)
    return costs


def wanted(plan: Plan) -> list[tuple[Chunk, ...]]:
    """The cohorts that are worth a pilot: those of most FLOPs, up to `SHARE` of all, `MOST` of them at most, and none
    whose step would take too long."""
    found: list[tuple[Chunk, ...]] = []
    covered = 0.0
    for chunks in sorted(plan.cohorts, key=lambda chunks: -sum(c.flops for c in chunks)):
        if len(found) < MOST and covered < SHARE * plan.flops and not _too_slow(chunks[0]):
            found.append(chunks)
            covered += sum(c.flops for c in chunks)
    return found


def sizes_that_pay(plan: Plan, costs: Mapping[str, Cost]) -> dict[str, int]:
    """Trials of a chunk, by cohort, where pilots found another number than planned."""
    planned = {chunk.cohort: len(chunk.trials) for chunk in _representatives(plan)}
    return {cohort: cost.n_trials for cohort, cost in costs.items() if cost.n_trials != planned[cohort]}


def forecast(
    plan: Plan, left: Sequence[Chunk], costs: Mapping[str, Cost], *, ready: Collection[str] = ()
) -> Forecast | None:
    """Of `left`, in that order, by the costs of `plan`'s cohorts; None where none is known. ready: cohorts whose
    program this process has.
    """
    measured = sorted(
        ((_step_flops(chunk), costs[chunk.cohort]) for chunk in _representatives(plan) if chunk.cohort in costs),
        key=lambda pair: pair[0],
    )
    measured = [(flops, cost) for flops, cost in measured if math.isfinite(cost.step_s)]
    if not measured:
        return None
    seen: set[tuple[str, int]] = set()
    by_chunk: dict[str, float] = {}
    training = compiling = 0.0
    for chunk in left:
        own = costs.get(chunk.cohort)
        own = own if own is not None and math.isfinite(own.step_s) else None
        cost = own or _interpolated(_step_flops(chunk), measured)
        n = len(chunk.trials)
        steps_s = cost.step_s * n / cost.n_trials * (chunk.base.steps - chunk.shared_steps)
        start_s = 0.0
        if (chunk.cohort, n) not in seen:
            seen.add((chunk.cohort, n))
            compiled = own is not None and own.n_trials == n
            start_s = 0.0 if compiled and chunk.cohort in ready else cost.start_s + (not compiled) * cost.compile_s
        by_chunk[chunk.id] = steps_s + start_s + cost.fixed_s
        training, compiling = training + steps_s, compiling + start_s
    beside = sum(by_chunk.values()) - training - compiling
    cohorts = {chunk.cohort for chunk in left}
    flops = sum(chunk.flops for chunk in left)
    share = sum(chunk.flops for chunk in left if chunk.cohort in costs) / flops if left else 1.0
    return Forecast(by_chunk, training, compiling, beside, len(cohorts & costs.keys()), share, len(cohorts))


def pays(plan: Plan) -> bool:
    """True where a run is long enough for pilots to be a small part of it."""
    return sum(chunk.flops for chunk in plan.chunks) > WORTH * lanes.assumed_flops()


def _interpolated(step_flops: float, measured: Sequence[tuple[float, Cost]]) -> Cost:
    """Of one trial, at the FLOP/s of the programs whose steps have about as many FLOPs; the rest is the nearest's."""
    logs = np.log([flops for flops, _ in measured])
    rates = [flops * cost.n_trials / max(cost.step_s, 1e-9) for flops, cost in measured]
    nearest = measured[int(np.argmin(np.abs(logs - math.log(step_flops))))][1]
    step_s = step_flops / float(np.interp(math.log(step_flops), logs, rates))
    return Cost(1, 0, True, nearest.compile_s, nearest.start_s, nearest.fixed_s, step_s)


def _best_size(chunks: Sequence[Chunk]) -> Cost:
    """Of the number of trials that fits and, on accelerators, is fastest."""
    import jax

    chunk = max(chunks, key=lambda c: (c.flops, len(c.trials)))
    alike = [t for c in chunks for t in c.trials if (t.recipe, t.steps) == (chunk.base.recipe, chunk.base.steps)]
    n = len(chunk.trials)
    cost = pilot.measure(chunk.trials)
    while not cost.fits and n > 1:
        n = -(-n // 2)
        cost = pilot.measure(chunk.trials[:n])
    # A CPU's cores are busy with a few trials at a time already, which is what compute.lanes is for.
    while jax.default_backend() != "cpu" and cost.fits and n < len(alike):
        n = min(4 * n, len(alike))
        more = pilot.measure(alike[:n])
        if not more.fits or more.step_s / more.n_trials > FASTER * cost.step_s / cost.n_trials:
            break
        cost = more
    return cost


def _representatives(plan: Plan) -> list[Chunk]:
    """Of every cohort the chunk of most FLOPs."""
    return [max(chunks, key=lambda c: (c.flops, len(c.trials))) for chunks in plan.cohorts]


def _known(chunk: Chunk) -> Cost | None:
    """Of as many trials, or of a half, a quarter, ... where it is known that more don't fit."""
    n, cost = len(chunk.trials), None
    with contextlib.suppress(InputError):  # its mesh is not to be had here
        cost = pilot.known(chunk.trials)
        while cost is not None and not cost.fits and n > 1:
            n = -(-n // 2)
            cost = pilot.known(chunk.trials[:n])
    return cost


def _too_slow(chunk: Chunk) -> bool:
    return pilot.too_slow(chunk.base, 1)


def _step_flops(chunk: Chunk) -> float:
    """Of one trial."""
    base = chunk.base
    return sizes.flops_per_token(base.model, base.data.seq_len) * base.batch_tokens

"""From trials to programs: cohorts share a compiled program, chunks are what one run of it trains."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from engine import config as config_lib
from engine import sizes
from engine.config import TrainConfig
from experiments import grid
from experiments import trunks as trunks_lib

MAX_TRIALS = 16  # trials of one program at most


@dataclass(frozen=True)
class Chunk:
    """Trials that train together in one program: same structure, same recipe, same number of steps."""

    trials: tuple[TrainConfig, ...]
    # With shared trunks (`experiments.trunks`):
    trunk: str | None = None  # the chunk whose checkpoints it goes on from
    shared_steps: int = 0  # its first steps, which that one trains
    keep_at: tuple[int, ...] = ()  # steps at which others go on from this one

    @cached_property
    def id(self) -> str:
        """Hash of its run ids: 16 hex digits. Names its part file and its checkpoints."""
        return _digest("\n".join(t.run_id for t in self.trials))

    @cached_property
    def flops(self) -> float:
        """Of the steps that it trains itself. Its trials have as many each."""
        return trial_flops(self.base) * len(self.trials) * (1 - self.shared_steps / self.base.steps)

    @cached_property
    def program(self) -> tuple[str, int]:
        """What decides its compiled program: structure and number of trials."""
        return config_lib.structure(self.base), len(self.trials)

    @cached_property
    def cohort(self) -> str:
        """Hash of its structure: 16 hex digits."""
        return _digest(config_lib.structure(self.base))

    @property
    def base(self) -> TrainConfig:
        return self.trials[0]

    @property
    def hypers(self) -> list[dict[str, float]]:
        """Per trial, what `engine.train_population` takes beside `base`."""
        return [config_lib.hypers(t) for t in self.trials]


@dataclass(frozen=True)
class Plan:
    """A grid made ready to run. `chunks` are in the order in which they run: cheapest cohorts first."""

    name: str
    trials: tuple[TrainConfig, ...]  # in the grid's order, without repeats
    chunks: tuple[Chunk, ...]
    repeats: int  # trials that were dropped because the grid had them twice
    max_trials: int
    cut: Mapping[str, int] = field(default_factory=dict)  # trials of a chunk at most, by cohort, where it is another
    trunks: bool = False  # shared

    @cached_property
    def run_ids(self) -> tuple[str, ...]:
        return tuple(t.run_id for t in self.trials)

    @cached_property
    def flops(self) -> float:
        """Of all trials, each trained from its beginning."""
        return sum(chunk.flops / (1 - chunk.shared_steps / chunk.base.steps) for chunk in self.chunks)

    @cached_property
    def saved_flops(self) -> float:
        """Of it, what shared trunks save."""
        return self.flops - sum(chunk.flops for chunk in self.chunks)

    @property
    def programs(self) -> int:
        """Programs to compile: one per cohort and chunk size."""
        return len({chunk.program for chunk in self.chunks})

    @property
    def cohorts(self) -> list[tuple[Chunk, ...]]:
        """Chunks grouped by structure, in order."""
        return by_cohort(self.chunks)


def make_plan(
    name: str,
    trials: Sequence[TrainConfig],
    *,
    max_trials: int = MAX_TRIALS,
    cut: Mapping[str, int] | None = None,
    trunks: bool = False,
) -> Plan:
    """Groups trials into chunks of at most max_trials (or `cut`). Deterministic: the same grid gives the same chunks.

    Trials of one cohort but different numbers of steps go to different chunks, so that none waits, dead, for another.
    trunks: chunks that differ only in how they end share one (`experiments.trunks`).
    """
    assert max_trials >= 1
    distinct, cut = grid.unique(trials), cut or {}
    cohorts: dict[str, list[TrainConfig]] = {}
    for trial in distinct:
        cohorts.setdefault(config_lib.structure(trial), []).append(trial)
    chunked = []
    for structure, cohort in cohorts.items():
        groups = trunks_lib.groups(cohort) if trunks else _by_steps(cohort)
        most = cut.get(_digest(structure), max_trials) if cut else max_trials
        chunks = [chunk for group in groups for chunk in _chunks(group, most)]
        chunked.append(trunks_lib.shared(chunks) if trunks else chunks)
    chunked.sort(key=lambda chunks: sum(c.flops for c in chunks))
    in_order = tuple(chunk for cohort in chunked for chunk in cohort)
    return Plan(name, tuple(distinct), in_order, len(trials) - len(distinct), max_trials, cut, trunks)


def by_cohort(chunks: Sequence[Chunk]) -> list[tuple[Chunk, ...]]:
    """Chunks grouped by structure, in order."""
    groups: dict[str, list[Chunk]] = {}
    for chunk in chunks:
        groups.setdefault(chunk.program[0], []).append(chunk)
    return [tuple(chunks) for chunks in groups.values()]


def pending(plan: Plan, done: Collection[str], fits: Mapping[str, int] | None = None) -> list[Chunk]:
    """What is left to run when the run ids of `done` have rows: chunks without their finished trials.

    fits: how many trials at a time fit into memory, by cohort, where that is known; larger chunks are cut.
    """
    done = set(done)
    left = []
    chunks: Sequence[Chunk] = plan.chunks
    if fits:
        chunks = _that_fit(chunks, fits)
        chunks = trunks_lib.shared(chunks) if plan.trunks else chunks
    for chunk in chunks:
        missing = tuple(t for t in chunk.trials if t.run_id not in done)
        if missing:
            left.append(chunk if len(missing) == len(chunk.trials) else Chunk(missing))
    return left


def _that_fit(chunks: Sequence[Chunk], fits: Mapping[str, int]) -> list[Chunk]:
    """Those with more trials than `fits` says of their cohort in parts, the others as they are."""
    found: list[Chunk] = []
    for chunk in chunks:
        most = fits.get(chunk.cohort, len(chunk.trials))
        found += [chunk] if len(chunk.trials) <= most else _chunks(chunk.trials, most)
    return found


def shard(chunks: Sequence[Chunk], index: int, of: int) -> list[Chunk]:
    """Part `index` (from 0) of `of`: every chunk in one part, a trunk and its branches in the same, the parts of like
    FLOPs. Deterministic."""
    flops: dict[str, float] = {}
    for chunk in chunks:
        flops[chunk.trunk or chunk.id] = flops.get(chunk.trunk or chunk.id, 0.0) + chunk.flops
    loads, part = [0.0] * of, {}  # type: tuple[list[float], dict[str, int]]
    for key in sorted(flops, key=lambda key: (-flops[key], key)):
        part[key] = loads.index(min(loads))
        loads[part[key]] += flops[key]
    return [chunk for chunk in chunks if part[chunk.trunk or chunk.id] == index]


@dataclass(frozen=True)
class Estimate:
    """Seconds that chunks would take, from finished trials of the same grid; None before any has finished."""

    seconds: float | None
    trials: int  # finished ones that it rests on


def estimate(plan: Plan, left: Sequence[Chunk], walls: Mapping[str, float]) -> Estimate:
    """Wall time of `left` at the measured FLOP/s, of the same cohort where one of its trials has finished.

    walls: seconds by run id, each trial's share of its program's (compile time included). Trials without a time
    (NaN: failed ones) don't count.
    """
    rates: dict[str, float] = {}
    all_flops = all_seconds = 0.0
    count = 0
    for cohort in plan.cohorts:
        flops = seconds = 0.0
        for chunk in cohort:
            own = [s for s in (walls.get(t.run_id, math.nan) for t in chunk.trials) if math.isfinite(s)]
            flops += chunk.flops * len(own) / len(chunk.trials)
            seconds, count = seconds + sum(own), count + len(own)
        if seconds:
            rates[cohort[0].program[0]] = flops / seconds
        all_flops, all_seconds = all_flops + flops, all_seconds + seconds
    if not count:
        return Estimate(None, 0)
    overall = all_flops / all_seconds
    return Estimate(sum(c.flops / rates.get(c.program[0], overall) for c in left), count)


def trial_flops(config: TrainConfig) -> float:
    """Training FLOPs of a trial, analytic (`engine.sizes.flops_per_token`)."""
    tokens = config.steps * config.batch_tokens
    return sizes.flops_per_token(config.model, config.data.seq_len) * tokens


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _by_steps(trials: Sequence[TrainConfig]) -> list[list[TrainConfig]]:
    groups: dict[tuple[str, int], list[TrainConfig]] = {}
    for trial in trials:
        groups.setdefault((trial.recipe, trial.steps), []).append(trial)
    return [groups[key] for key in sorted(groups)]


def _chunks(trials: Sequence[TrainConfig], max_trials: int) -> list[Chunk]:
    """Cut into as few chunks as fit, of sizes that differ by one at most (a new size is a new compile)."""
    n = -(-len(trials) // max_trials)
    bounds = [i * len(trials) // n for i in range(n + 1)]
    return [Chunk(tuple(trials[a:b])) for a, b in itertools.pairwise(bounds)]

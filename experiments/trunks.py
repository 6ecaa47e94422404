"""One trunk for many token budgets: wsd trials that differ only in how they end have their first steps in common.

The trial that stays longest at the constant rate is the trunk; it keeps checkpoints where the others begin to decay,
and those go on from there (`engine.branch`), to the very row that they would have alone. Whole chunks do so: trials of
the same lines, in the same order, at another budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engine import config as config_lib
from engine.config import TrainConfig

if TYPE_CHECKING:
    from experiments.plan import Chunk

END = ("tokens", "optim.decay_fraction", "optim.final_lr", "optim.final_fraction")  # what may differ along a line
_START = tuple(name for name in config_lib.HYPERS if name not in END)


def groups(trials: Iterable[TrainConfig]) -> list[list[TrainConfig]]:
    """Trials of one cohort, grouped so that chunks cut from groups align: those of one end, whose lines have the same
    ends, in the order of their lines."""
    lines: dict[Any, list[TrainConfig]] = {}
    for trial in trials:
        lines.setdefault(_line(trial), []).append(trial)
    found: dict[Any, list[TrainConfig]] = {}
    for line in lines.values():
        ends = tuple(sorted(_end(trial) for trial in line))
        for trial in line:
            found.setdefault((trial.recipe, ends, _end(trial)), []).append(trial)
    return [found[key] for key in sorted(found)]


def shared(chunks: Sequence[Chunk]) -> list[Chunk]:
    """The chunks, each trunk before those that branch from it."""
    families: dict[Any, list[Chunk]] = {}
    for chunk in chunks:
        wsd = chunk.base.optim.schedule == "wsd"
        key = (chunk.cohort, tuple(map(_line, chunk.trials))) if wsd else chunk.id
        families.setdefault(key, []).append(chunk)
    return [chunk for family in families.values() for chunk in (_family(family) if len(family) > 1 else family)]


def _family(chunks: Sequence[Chunk]) -> list[Chunk]:
    trunk = max(chunks, key=lambda chunk: (_constant_steps(chunk), chunk.base.steps, chunk.id))
    others = [
        replace(chunk, trunk=trunk.id, shared_steps=_constant_steps(chunk)) if _constant_steps(chunk) else chunk
        for chunk in chunks
        if chunk is not trunk
    ]
    kept = sorted({chunk.shared_steps for chunk in others} - {0})
    return [replace(trunk, keep_at=tuple(kept)), *others]


def _constant_steps(chunk: Chunk) -> int:
    from engine import branch  # brings jax, for which a grid without trunks does not wait

    return min(branch.constant_steps(trial) for trial in chunk.trials)


def _line(trial: TrainConfig) -> Any:
    return (trial.recipe, *(config_lib.get(trial, name) for name in _START))


def _end(trial: TrainConfig) -> tuple[float, ...]:
    return (trial.steps, *(config_lib.get(trial, name) for name in END[1:]))

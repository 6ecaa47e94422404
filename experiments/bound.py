"""The least time and memory of a plan on devices that are not at hand, from their published peaks (`tpu.roofline`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine import sizes
from experiments.plan import Chunk

if TYPE_CHECKING:
    from tpu.topologies import Slice

STATE_BYTES = 12.0  # of a parameter: weight and two moments, float32; gradients and activations come on top

ASSUMED = (
    "a bound, not an estimate: every chip at its published peak of bfloat16, or of memory, from which weights and "
    "moments are read and written once a step; no compiling, no messages, no evaluation"
)


@dataclass(frozen=True)
class Bound:
    """Of chunks one after another, each on all chips that it can use."""

    seconds: float
    bytes: float  # of a chip, of the largest chunk


def bound(chunks: Sequence[Chunk], where: Slice) -> Bound:
    """Laid out as `tpu.compile.layout` does: trials apart, weights in as few shards as fit, then data."""
    from tpu import compile as compile_lib
    from tpu.roofline import roofline

    seconds, most = 0.0, 0.0
    for chunk in chunks:
        n = len(chunk.trials)
        mesh = compile_lib.layout(chunk.base, n, where)
        chips = max(1, mesh.trial * mesh.data * mesh.fsdp // where.chip.devices)
        state = STATE_BYTES * sizes.total_params(chunk.base.model) * n / (mesh.trial * mesh.fsdp) * where.chip.devices
        step = roofline(chunk.base, n, where, chips, state_bytes=state, temporary_bytes=0.0, collectives=())
        seconds += step.step_s * (chunk.base.steps - chunk.shared_steps)
        most = max(most, state)
    return Bound(seconds, most)

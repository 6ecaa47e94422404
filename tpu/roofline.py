"""How long a step takes at best: its arithmetic, its memory traffic and its messages, each at the published peak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine import sizes
from engine.config import TrainConfig
from tpu.hlo import Collective
from tpu.topologies import Slice

ASSUMPTIONS = (
    "arithmetic: analytic FLOPs, attention without its causal half, and what remat computes twice, at the peak of "
    "dense bfloat16",
    "memory: state read and written once, temporaries written and read once, at the peak of HBM",
    "messages: ring algorithms, every link of a chip busy one way",
    "the three overlap wholly; no kernel start, no stragglers, no input: a bound, and MFU is at most this",
)


@dataclass(frozen=True)
class Roofline:
    """Seconds of a step."""

    arithmetic_s: float
    memory_s: float
    messages_s: float
    model_flops: float  # of a step, all chips: what MFU counts

    @property
    def step_s(self) -> float:
        return max(self.arithmetic_s, self.memory_s, self.messages_s)

    @property
    def bound(self) -> str:
        """What the step waits for."""
        return max(("arithmetic", "memory", "messages"), key=lambda name: getattr(self, f"{name}_s"))

    def mfu(self, where: Slice, chips: int) -> float:
        """Model FLOPs utilisation: the share of the peak of `chips` chips."""
        return self.model_flops / (self.step_s * chips * where.chip.flops)


def model_flops(config: TrainConfig, n_trials: int) -> float:
    """Training FLOPs of a step: of experts the active ones."""
    return sizes.flops_per_token(config.model, config.data.seq_len) * config.batch_tokens * n_trials


def executed_flops(config: TrainConfig, n_trials: int) -> float:
    """With the forward pass that remat repeats: all of a block for full, its attention for less."""
    model, tokens = config.model, config.batch_tokens * n_trials
    blocks = sizes.block_flops_per_token(model, config.data.seq_len)
    attention = blocks - 6 * sizes.active_params(model)
    again = {"none": 0.0, "full": blocks / 3}.get(config.compute.remat)
    if again is None:
        again = 0.0 if config.compute.remat == "dots" or "attention" in config.compute.remat else attention / 3
    return model_flops(config, n_trials) + again * tokens


def roofline(
    config: TrainConfig,
    n_trials: int,
    where: Slice,
    chips: int,
    *,
    state_bytes: float,
    temporary_bytes: float,
    collectives: Sequence[Collective],
) -> Roofline:
    """Of one step. chips: those that the mesh uses; state_bytes, temporary_bytes: a chip's; collectives: a device's."""
    chip = where.chip
    return Roofline(
        arithmetic_s=executed_flops(config, n_trials) / (chips * chip.flops),
        memory_s=2 * (state_bytes + temporary_bytes) / chip.memory_bandwidth,
        messages_s=chip.devices * sum(map(_sent, collectives)) / (chip.link_bandwidth / 2),
        model_flops=model_flops(config, n_trials),
    )


def _sent(c: Collective) -> float:
    """Bytes that a device sends."""
    ring = (c.group - 1) / c.group
    rounds = {"all-reduce": 2.0 * ring, "collective-permute": 1.0}.get(c.kind, ring)
    return rounds * c.bytes * c.times

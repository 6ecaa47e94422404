"""Memory of a device: whether a program ran out of it, and what to change then."""

from __future__ import annotations

from engine.config import TrainConfig


def ran_out(error: BaseException) -> bool:
    """True for what XLA and numpy raise where memory is short."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error))


def advice(config: TrainConfig) -> str:
    """The setting to change first where a single trial does not fit. It stays the same run: `TrainConfig.run_id`."""
    compute = config.compute
    if compute.remat == "none":
        return "compute.remat=full"
    micro = compute.micro_batch or config.batch_size
    if micro % 2 == 0:
        return f"compute.micro_batch={micro // 2}"
    if compute.loss_chunk == 0:
        return f"compute.loss_chunk={max(1, config.batch_tokens // 4)}"
    return "mesh.fsdp, on more devices"

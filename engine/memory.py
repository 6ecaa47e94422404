"""Memory of a device: how much there is, what a program takes of it, and what to change where it ran out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax

from engine.config import TrainConfig


def available() -> float:
    """Bytes that programs may take of a device: of an accelerator all that is not taken, of a CPU's its share of what
    the machine has left."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return float(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return free / jax.local_device_count()


def of_program(compiled: Any) -> int:
    """Bytes of a device that a compiled train step holds while it runs; on a CPU also the copy that is saved."""
    stats = compiled.memory_analysis()
    beside = stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    copies = 2 if jax.default_backend() == "cpu" else 1
    return copies * stats.argument_size_in_bytes + beside


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

"""Compiler flags by accelerator, each with its reason, and the switch to bitwise repeatable steps.

Every flag here is known to the libtpu and the XLA of `constraints.txt` (a test starts both with them). None changes
what is computed beyond rounding. They are starting points from the makers' guides, not measured here.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from engine.errors import InputError
from tpu.topologies import GPUS, TPUS, Chip

TPU_VARIABLE, GPU_VARIABLE = "LIBTPU_INIT_ARGS", "XLA_FLAGS"


@dataclass(frozen=True)
class Flag:
    """One setting. variable: the environment variable that it is part of, or is."""

    variable: str
    name: str  # empty where the variable itself is set
    value: str
    reason: str

    @property
    def text(self) -> str:
        return f"{self.name}={self.value}" if self.name else self.value


def _tpu(name: str, value: str, reason: str) -> Flag:
    return Flag(TPU_VARIABLE, f"--{name}", value, reason)


def _gpu(name: str, value: str, reason: str) -> Flag:
    return Flag(GPU_VARIABLE, f"--{name}", value, reason)


_EVERY_TPU = (
    _tpu(
        "xla_latency_hiding_scheduler_rerun", "2",
        "a schedule that overlaps messages may need more memory than there is: try again with less of it",
    ),
    _tpu(
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather", "true",
        "gathers of weights (mesh.fsdp) run beside the products before them",
    ),
    _tpu(
        "xla_tpu_overlap_compute_collective_tc", "true",
        "products and messages share the tensor core's schedule",
    ),
    _tpu(
        "xla_tpu_data_parallel_opt_different_sized_ops", "true",
        "gradients' sums (mesh.data) of different sizes run beside the backward pass too",
    ),
    _tpu(
        "xla_tpu_enable_data_parallel_all_reduce_opt", "true",
        "gradients' sums (mesh.data) run beside the backward pass, layer by layer",
    ),
)  # fmt: skip
_VMEM = "xla_tpu_scoped_vmem_limit_kib"
_TILES = "the default limit is a part of VMEM ({} MiB a core): more of it, larger tiles of products, less traffic"
_BY_TPU = {
    "v4": (),  # 16 MiB of VMEM: nothing to give
    "v5e": (_tpu(_VMEM, "65536", _TILES.format(128)),),
    "v5p": (_tpu(_VMEM, "49152", _TILES.format(64)),),
    "v6e": (_tpu(_VMEM, "98304", _TILES.format(128)),),
    "tpu7x": (_tpu(_VMEM, "49152", _TILES.format(64)),),
}

_EVERY_GPU = (
    _gpu(
        "xla_gpu_enable_latency_hiding_scheduler", "true",
        "messages run beside products (NVIDIA's images set it)",
    ),
    Flag("XLA_PYTHON_CLIENT_MEM_FRACTION", "", "0.9", "JAX takes 75% of the memory by itself; the rest is for NCCL"),
)  # fmt: skip
_BIG_SUMS = _gpu(
    "xla_gpu_all_reduce_combine_threshold_bytes", "134217728",
    "small gradients' sums are joined to 128 MiB: NVLink needs large messages",
)  # fmt: skip
_ONE_QUEUE = Flag("CUDA_DEVICE_MAX_CONNECTIONS", "", "1", "one queue of kernels: XLA has put them in order already")
_BY_GPU = {
    "a100": (_ONE_QUEUE, _BIG_SUMS),
    "h100": (_ONE_QUEUE, _BIG_SUMS),
    "h200": (_ONE_QUEUE, _BIG_SUMS),
    "b200": (_BIG_SUMS,),  # NVIDIA advises against one queue on Blackwell
}

_REPEATABLE_GPU = (
    _gpu("xla_gpu_deterministic_ops", "true", "kernels with atomic sums, whose order varies, are replaced or refused"),
    _gpu("xla_gpu_autotune_level", "0", "kernels are not chosen by a race, which another run may end otherwise"),
    Flag("NCCL_ALGO", "", "Ring", "sums over GPUs in one order, not in the one that seems fastest today"),
)


def flags(chip: Chip, *, deterministic: bool = False) -> list[Flag]:
    """Those of an accelerator. deterministic: with what makes two runs equal bit for bit, at some speed.

    TPUs repeat a step bit for bit by themselves, on the same mesh; nothing is added there.
    """
    if chip.name in _BY_TPU:
        return [*_EVERY_TPU, *_BY_TPU[chip.name]]
    return [*_EVERY_GPU, *_BY_GPU[chip.name], *(_REPEATABLE_GPU if deterministic else ())]


def environment(chip: Chip, *, deterministic: bool = False) -> dict[str, str]:
    """The flags as environment variables, to be set before Python starts."""
    found: dict[str, list[str]] = {}
    for flag in flags(chip, deterministic=deterministic):
        found.setdefault(flag.variable, []).append(flag.text)
    return {variable: " ".join(texts) for variable, texts in found.items()}


def shell(chip: Chip, *, deterministic: bool = False) -> str:
    """The same as lines that a shell reads."""
    pairs = environment(chip, deterministic=deterministic).items()
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in pairs)


def chip_named(name: str) -> Chip:
    """v5e or h100; of a slice's name (v5e-256) its chip. Raises InputError for another."""
    chips = TPUS | GPUS
    kind = name.partition("-")[0].partition(":")[0]
    if kind not in chips:
        raise InputError(f"no accelerator {name!r}; one of: {', '.join(chips)}")
    return chips[kind]

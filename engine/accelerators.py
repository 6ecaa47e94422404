"""How fast known accelerators can be at most, for MFU: the share of that which training makes use of."""

from __future__ import annotations

import math

from jax.sharding import Mesh

from engine import sizes
from engine.config import TrainConfig

# Dense bfloat16 TFLOP/s of one JAX device, from the makers' data sheets, by how its device_kind begins.
PEAK = {
    "NVIDIA B200": 2250.0,
    "NVIDIA H200": 989.4,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H100 NVL": 835.0,
    "NVIDIA H100": 989.4,  # SXM
    "NVIDIA A100": 312.0,
    "NVIDIA L40S": 362.0,
    "NVIDIA L4": 121.0,
    "TPU v6": 918.0,
    "TPU v5 lite": 197.0,
    "TPU v5": 459.0,  # v5p
    "TPU v4": 275.0,
}


def peak_flops(device_kind: str) -> float:
    """FLOP/s of a device, of dense bfloat16 products; NaN where none is known, as of CPUs."""
    known = [peak for kind, peak in PEAK.items() if device_kind.startswith(kind)]
    return known[0] * 1e12 if known else math.nan


def peak_tokens_per_s(config: TrainConfig, mesh: Mesh) -> float:
    """Tokens per second at which MFU would be 1: the mesh's peak over the FLOPs that a token takes; NaN if unknown.

    FLOPs are those that training needs (`sizes.flops_per_token`: no rematerialisation, attention without the causal
    half), and the peak is that of bfloat16 whatever the dtype, so float32 runs show a low share.
    """
    devices = mesh.devices.flat
    return mesh.size * peak_flops(devices[0].device_kind) / sizes.flops_per_token(config.model, config.data.seq_len)

"""Accelerators as their makers publish them: slices of TPUs, as libtpu names them, and nodes of GPUs."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass

from engine.errors import InputError

GIB = 2**30

_TPU_DOCS = "https://docs.cloud.google.com/tpu/docs/"
_GKE_DOCS = "https://docs.cloud.google.com/kubernetes-engine/docs/concepts/tpus"


@dataclass(frozen=True)
class Chip:
    """One accelerator. Peaks are dense bfloat16, as published, without sparsity."""

    name: str
    memory: float  # bytes of HBM
    memory_bandwidth: float  # bytes/s
    flops: float  # FLOP/s
    link_bandwidth: float  # bytes/s between chips, of all links, both directions together
    source: str  # of the figures above
    cores: int = 1  # that a name such as v5p-128 counts
    devices: int = 1  # that JAX sees in a chip
    machine: int = 4  # chips of a host: libtpu's for TPUs, the node's for GPUs
    gke: str = ""  # node selector: cloud.google.com/gke-tpu-accelerator or gke-accelerator
    accelerator: str = ""  # prefix of Cloud TPU's accelerator type
    runtime: str = ""  # Cloud TPU's software version
    dimensions: int = 0  # of the torus


# ICI of v4: "TPU v4: An Optically Reconfigurable Supercomputer" (Jouppi et al. 2023), table 4: 6 links of 50 GB/s a
# direction. The others': "bidirectional inter-chip interconnect bandwidth per chip" of the page.
TPUS = {
    "v4": Chip(
        "v4", 32 * GIB, 1.2e12, 275e12, 600e9, _TPU_DOCS + "v4; arXiv:2304.01433", cores=2,
        gke="tpu-v4-podslice", accelerator="v4", runtime="tpu-ubuntu2204-base", dimensions=3,
    ),
    "v5e": Chip(
        "v5e", 16 * GIB, 819e9, 197e12, 400e9, _TPU_DOCS + "v5e",
        gke="tpu-v5-lite-podslice", accelerator="v5litepod", runtime="v2-alpha-tpuv5-lite", dimensions=2,
    ),
    "v5p": Chip(
        "v5p", 95 * GIB, 2765e9, 459e12, 1200e9, _TPU_DOCS + "v5p", cores=2,
        gke="tpu-v5p-slice", accelerator="v5p", runtime="v2-alpha-tpuv5", dimensions=3,
    ),
    "v6e": Chip(
        "v6e", 32 * GIB, 1638e9, 918e12, 800e9, _TPU_DOCS + "v6e",
        gke="tpu-v6e-slice", accelerator="v6e", runtime="v2-alpha-tpuv6e", dimensions=2,
    ),
    "tpu7x": Chip(
        "tpu7x", 192 * GIB, 7380e9, 2307e12, 1200e9, _TPU_DOCS + "tpu7x", cores=2, devices=2,
        gke="tpu7x", dimensions=3,  # through GKE and Compute Engine only
    ),
}  # fmt: skip

# Nodes of eight. link_bandwidth: NVLink.
GPUS = {
    "a100": Chip(
        "a100", 80e9, 2039e9, 312e12, 600e9, "NVIDIA A100 Tensor Core GPU datasheet (SXM, 80 GB)",
        machine=8, gke="nvidia-a100-80gb",
    ),
    "h100": Chip(
        "h100", 80e9, 3.35e12, 989.5e12, 900e9, "NVIDIA H100 Tensor Core GPU datasheet (SXM)",
        machine=8, gke="nvidia-h100-80gb",
    ),
    "h200": Chip(
        "h200", 141e9, 4.8e12, 989.5e12, 900e9, "NVIDIA H200 Tensor Core GPU datasheet (SXM)",
        machine=8, gke="nvidia-h200-141gb",
    ),
    "b200": Chip(
        "b200", 180e9, 8e12, 2250e12, 1800e9, "NVIDIA DGX B200 datasheet (1,440 GB, 64 TB/s, 36 PFLOPS sparse FP8 / 4)",
        machine=8, gke="nvidia-b200",
    ),
}  # fmt: skip

# Slices by chips. Three dimensions: the shapes of Cloud TPU's v4 and v5p pages; two: of its v5e and v6e pages.
_SHAPES = {
    2: {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"},
    3: {
        4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8",
        1024: "8x8x16", 2048: "8x16x16", 4096: "16x16x16", 6144: "16x16x24",
    },
}  # fmt: skip
_MOST_CHIPS = {"v4": 4096, "v5p": 6144, "tpu7x": 4096}
_SHAPED = re.compile(r"(\w+):(\d+(?:x\d+){1,2})")


@dataclass(frozen=True)
class Slice:
    """Chips that share an interconnect: a TPU slice, or GPU nodes."""

    name: str  # v5e-256
    chip: Chip
    chips: int
    shape: str  # 16x16; empty for GPUs

    @property
    def hosts(self) -> int:
        """Machines, one process each."""
        return -(-self.chips // self.chip.machine)

    @property
    def libtpu(self) -> str:
        """What libtpu calls it."""
        return f"{self.chip.name}:{self.shape}"


def tpu_names() -> list[str]:
    """Every slice's name. v4, v5p and tpu7x count cores, two a chip; v5e and v6e count chips."""
    return [
        f"{name}-{chips * chip.cores}"
        for name, chip in TPUS.items()
        for chips in _SHAPES[chip.dimensions]
        if chips <= _MOST_CHIPS.get(name, chips)
    ]


def find(name: str) -> Slice:
    """A slice by name: v5e-256, v5p-128 (64 chips), v5p:4x4x4 (as libtpu), h100-16 (two nodes).

    Raises InputError for one that there is not.
    """
    shaped = _SHAPED.fullmatch(name)
    if shaped and shaped[1] in TPUS:
        chip = TPUS[shaped[1]]
        chips = math.prod(int(n) for n in shaped[2].split("x"))
        if shaped[2] in _SHAPES[chip.dimensions].values():
            return Slice(f"{chip.name}-{chips * chip.cores}", chip, chips, shaped[2])
        known = ", ".join(_SHAPES[chip.dimensions].values())
        raise InputError(f"topology {name!r}: {chip.name} has no slice of {shaped[2]}; shapes: {known}")
    if name in tpu_names():
        kind, _, size = name.partition("-")
        chips = int(size) // TPUS[kind].cores
        return Slice(name, TPUS[kind], chips, _SHAPES[TPUS[kind].dimensions][chips])
    kind, _, size = name.partition("-")
    if kind in GPUS and size.isdigit() and int(size) > 0:
        if int(size) > 8 and int(size) % 8:
            raise InputError(f"topology {name!r}: {size} GPUs are no whole nodes of 8; use a multiple of 8")
        return Slice(name, GPUS[kind], int(size), "")
    if kind in TPUS and size.isdigit() and int(size) > 0:
        sizes = [one for one in tpu_names() if one.startswith(f"{kind}-")]
        near = [min(sizes, key=lambda one: abs(math.log(int(one.partition("-")[2]) / int(size))))]
    else:
        near = difflib.get_close_matches(name, [*tpu_names(), *(f"{g}-8" for g in GPUS)], n=1, cutoff=0.6)
    kinds = ", ".join([*TPUS, *GPUS])
    hint = f"did you mean {near[0]}?" if near else f"name one of {kinds} and its size, such as v5e-256 or h100-8"
    raise InputError(f"no topology {name!r}; {hint}")

"""`stepseer tpu topologies`: the slices and nodes that can be named, their figures, and where these come from."""

from __future__ import annotations

import argparse
from typing import Any

from experiments import show
from experiments.options import Parser
from tpu import topologies
from tpu.topologies import GIB, Chip


def parser() -> Parser:
    return Parser(
        "tpu topologies",
        "List the TPU slices and GPU nodes that can be named, with the makers' figures.",
        examples="  stepseer tpu topologies\n  stepseer tpu topologies --json",
    )


def run(args: argparse.Namespace) -> int:
    chips = [*topologies.TPUS.values(), *topologies.GPUS.values()]
    if args.json:
        print(show.as_json([_as_dict(chip) for chip in chips]))
        return 0
    console = show.console()
    rows = [
        [
            chip.name,
            f"{chip.memory / GIB:.0f} GiB",
            f"{chip.memory_bandwidth / 1e9:,.0f} GB/s",
            f"{chip.flops / 1e12:,.4g}",
            f"{chip.link_bandwidth / 1e9:,.0f} GB/s",
            str(chip.machine),
        ]
        for chip in chips
    ]
    header = ["chip", "memory", "bandwidth", "bf16 TFLOP/s", "interconnect", "chips a host"]
    console.print(show.table("Of a chip: dense bfloat16, links of both directions together", header, rows))
    slices = [topologies.find(name) for name in topologies.tpu_names()]
    rows = [
        [s.name, s.libtpu, f"{s.chips:,}", f"{s.hosts:,}", _tib(s.chips * s.chip.memory), _peta(s.chips * s.chip.flops)]
        for s in slices
    ]
    header = ["slice", "libtpu's name", "chips", "hosts", "memory", "bf16 PFLOP/s"]
    console.print(show.table("TPU slices; v4, v5p and tpu7x are named by cores, two a chip", header, rows, left=2))
    console.print("GPUs, in nodes of eight: " + ", ".join(f"{name}-8" for name in topologies.GPUS) + ", and multiples")
    console.print("\nSources:")
    for chip in chips:
        console.print(f"  {chip.name}: {chip.source}", soft_wrap=True)
    return 0


def _as_dict(chip: Chip) -> dict[str, Any]:
    return {
        "chip": chip.name,
        "memory_bytes": chip.memory,
        "memory_bytes_per_s": chip.memory_bandwidth,
        "flops_bf16": chip.flops,
        "interconnect_bytes_per_s": chip.link_bandwidth,
        "chips_per_host": chip.machine,
        "slices": [
            {"name": s.name, "shape": s.shape, "chips": s.chips, "hosts": s.hosts}
            for s in map(topologies.find, topologies.tpu_names())
            if s.chip is chip
        ],
        "source": chip.source,
    }


def _tib(value: float) -> str:
    return f"{value / 2**40:.3g} TiB"


def _peta(value: float) -> str:
    return f"{value / 1e15:,.3g}" if value < 1e18 else f"{value / 1e15:,.0f}"

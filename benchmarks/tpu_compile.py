"""Three recipes compiled for three TPU slices by libtpu, on a machine without a TPU; writes `tpu_compile.md`.

    python -m benchmarks.tpu_compile [CASES.json]

About half an hour on two cores. CASES.json keeps what has been compiled: run again, it goes on. Nothing here is a
measurement of a TPU: bytes and messages are what the compiler says, times are the roofline's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from experiments import recipes, show
from experiments.commands.tpu_compile import as_dict
from tpu import compile as compile_lib
from tpu import roofline, topologies

RECIPES = ("population_64", "steplaw_1b", "moe_2b")
SLICES = ("v6e-64", "v5p-128", "v5e-256")
OUT = Path(__file__).with_suffix(".md")


def main() -> None:
    kept = Path(sys.argv[1] if len(sys.argv) > 1 else "tpu_compile.json")
    found: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else {}
    for recipe in RECIPES:
        for name in SLICES:
            case = f"{recipe} {name}"
            if case not in found:
                found[case] = as_dict(compile_lib.compile_step(recipes.load(recipe), topologies.find(name)))
                kept.write_text(json.dumps(found, indent=1))
                print(case, f"{found[case]['compile_s']:.0f} s", flush=True)
    OUT.write_text(report(found))


def report(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        "# Recipes compiled for TPU slices",
        "",
        "`python -m benchmarks.tpu_compile`: the real train step, splash attention and grouped matmuls included, "
        "compiled by libtpu on a CPU machine. Bytes and messages are the compiler's; times are a roofline's bound, no "
        "measurement. Bytes are of a chip; messages of a chip in a step.",
        "",
        "- A population sends nothing where each trial has a chip of its own; with four chips a trial (v5e-256), "
        "only the sums of gradients.",
        "- Of `steplaw_1b` on v5e-256 the gathers' 16 GB are as much as its weights three times in float32: for the "
        "forward pass, its repetition (remat) and the backward pass.",
        "- `moe_2b` on v5e-256 waits for its messages, a sequence a chip: every layer's experts are gathered whole.",
        "",
        "| recipe | slice | layout | fits | weights | optimizer | activations | temporaries | total of | messages "
        "| step, at least | bound by | MFU, at most | compiled in |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case, r in found.items():
        recipe, name = case.split()
        axes = ", ".join(f"{axis} {size}" for axis, size in r["mesh"].items() if size > 1)
        kinds = " | ".join(_gib(size) for size in r["bytes_per_chip_by_kind"].values())
        sent = r.get("collectives", {})
        messages = ", ".join(f"{kind} {c['count']} ({c['bytes'] / 1e9:.2g} GB)" for kind, c in sent.items()) or "none"
        times = f"{r['step_s']:.3g} s | {r['bound']} | {show.percent(r['mfu'])}" if r["fits"] else "- | - | -"
        lines.append(
            f"| {recipe} | {name} | {axes} | {'yes' if r['fits'] else 'no: ' + r['advice']} | {kinds} | "
            f"{_gib(r['bytes_per_chip'])} of {_gib(r['bytes_per_chip_limit'])} | {messages} | {times} | "
            f"{r['compile_s']:.0f} s |"
        )
    lines += ["", "GiB where no unit is given. The times assume:", ""]
    return "\n".join([*lines, *(f"- {one}" for one in roofline.ASSUMPTIONS), ""])


def _gib(value: float) -> str:
    return f"{value / topologies.GIB:.2f}"


if __name__ == "__main__":
    main()

"""What a compiled program's text says: its collectives, how often they run, and how many bytes they move."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")

_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) \(")
_OPCODE = re.compile(r" ([a-z][a-z\-]*)\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|called_computations)=\{?(%[\w.\-]+(?:, ?%[\w.\-]+)*)")
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")
_LIMIT = re.compile(r"s32\[\][^=]* constant\((\d+)\)")
_WIDTH = re.compile(r"\d+")


@dataclass(frozen=True)
class Collective:
    """One instruction."""

    kind: str  # of KINDS
    bytes: int  # of a device: the larger of what goes in and what comes out
    times: int  # it runs in a call of the program, loops of unknown length counted once
    group: int  # devices that take part together


@dataclass(frozen=True)
class _Computation:
    entry: bool
    lines: list[str]


def collectives(text: str, n_devices: int) -> list[Collective]:
    """The collectives of `compiled.as_text()`."""
    computations = _computations(text)
    times = _times(computations)
    found = []
    for name, computation in computations.items():
        for line in computation.lines:
            opcode = _opcode(line)
            kind = opcode.removesuffix("-start")
            if kind not in KINDS or not times[name]:
                continue
            if kind == "all-reduce" and "reduce-scatter" in name:  # a fused slice keeps each device's part only
                kind = "reduce-scatter"
            group = _group(line, n_devices)
            if group > 1:
                inputs = group if opcode.startswith("reduce-scatter") else 1
                found.append(Collective(kind, _bytes(line, opcode) * inputs, times[name], group))
    return found


def custom_calls(text: str) -> dict[str, int]:
    """How many instructions call each kernel, by target."""
    found: dict[str, int] = defaultdict(int)
    for target in re.findall(r'custom_call_target="([^"]*)"', text):
        found[target] += 1
    return dict(found)


def _computations(text: str) -> dict[str, _Computation]:
    found: dict[str, _Computation] = {}
    current: list[str] = []
    for line in text.splitlines():
        start = _COMPUTATION.match(line)
        if start and line.endswith("{"):
            current = []
            found[start[2]] = _Computation(bool(start[1]), current)
        elif " = " in line:
            current.append(line)
    return found


def _times(computations: dict[str, _Computation]) -> dict[str, int]:
    """How often each computation runs."""
    times: dict[str, int] = defaultdict(int)

    def visit(name: str, n: int) -> None:
        times[name] += n
        for line in computations[name].lines:
            trips = _trips(line, computations) if _opcode(line) == "while" else 1
            for called in _CALLED.findall(line):
                for one in called.replace("%", "").split(","):
                    if one.strip() in computations:
                        visit(one.strip(), n * trips)

    for name, computation in computations.items():
        if computation.entry:
            visit(name, 1)
    return times


def _trips(line: str, computations: dict[str, _Computation]) -> int:
    """A while's iterations: what its condition compares with; 1 where that is data."""
    condition = re.search(r"condition=%([\w.\-]+)", line)
    assert condition is not None
    limits = [int(m[1]) for one in computations[condition[1]].lines for m in _LIMIT.finditer(one)]
    return max(limits, default=1)


def _opcode(line: str) -> str:
    found = _OPCODE.search(line.partition(" = ")[2].partition("metadata=")[0])
    return found[1] if found else ""


def _bytes(line: str, opcode: str) -> int:
    result, _, _rest = line.partition(" = ")[2].partition(f" {opcode}(")
    sizes = [_shape_bytes(m[1], m[2]) for m in _SHAPE.finditer(result)]
    return max(sizes) if opcode.endswith("-start") else sum(sizes)


def _shape_bytes(dtype: str, dims: str) -> int:
    width = _WIDTH.search(dtype)
    bits = 8 if dtype == "pred" or width is None else int(width[0])
    return math.prod(int(d) for d in dims.split(",") if d) * bits // 8


def _group(line: str, n_devices: int) -> int:
    """Devices of a group, from any of the three ways that replica groups are written."""
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return listed[1].count(",") + 1
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", line)
    if iota:
        return int(iota[2])
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line)
    if mesh:
        sizes = {m[0]: int(m[1]) for m in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        return math.prod(sizes.get(axis, 1) for axis in re.findall(r"'(\w+)'", mesh[2]))
    if "source_target_pairs" in line:
        return 2
    return n_devices

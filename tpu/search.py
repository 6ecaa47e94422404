"""How to lay a step out on a slice: meshes, remat and micro-batches, the likeliest compiled and ranked by roofline."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

from engine import config as config_lib
from engine import sizes
from engine.config import MeshConfig, TrainConfig
from engine.errors import InputError
from tpu import compile as compile_lib
from tpu.compile import Report
from tpu.roofline import executed_flops
from tpu.topologies import Slice

REMATS = ("none", "dots", "full")
ROOM = 1.5  # estimates are rough: what is guessed to take this many times the memory is compiled all the same
STATE_BYTES = 16.0  # of a parameter: itself, two moments and the gradient, float32


@dataclasses.dataclass(frozen=True)
class Guess:
    """A layout with what it would take, by formulas alone."""

    config: TrainConfig
    bytes: float  # of a device
    step_s: float


def search(
    trials: Sequence[TrainConfig],
    where: Slice,
    *,
    most: int = 8,
    on_report: Callable[[int, int, Report], None] = lambda i, n, report: None,
) -> list[Report]:
    """Compiles the `most` layouts that are guessed fastest; those that fit first, fastest first.

    on_report: called after each with its number, how many there are, and what the compiler made of it. Raises
    InputError where no layout divides the model and the batch.
    """
    found = guesses(trials, where)
    if not found:
        raise InputError(
            f"no mesh of {where.name} divides the model and a batch of {trials[0].batch_size} sequences; "
            "change batch_size or the slice"
        )
    reports = []
    for i, guess in enumerate(found[:most], 1):
        changed = {f"mesh.{axis}": size for axis, size in dataclasses.asdict(guess.config.mesh).items()}
        changed |= {f"compute.{name}": getattr(guess.config.compute, name) for name in ("remat", "micro_batch")}
        report = compile_lib.compile_step([config_lib.replace(t, changed) for t in trials], where)
        reports.append(report)
        on_report(i, min(most, len(found)), report)
    return sorted(reports, key=lambda r: r.roofline.step_s if r.roofline else math.inf)


def largest(
    trials: Sequence[TrainConfig],
    where: Slice,
    *,
    on_report: Callable[[int, int, Report], None] = lambda i, n, report: None,
) -> Report:
    """All trials as one program, or half of them, a quarter and so on: the first that fits; else the single trial."""
    n = len(trials)
    sizes_tried = [max(1, n >> k) for k in range(n.bit_length())]
    for i, size in enumerate(sizes_tried, 1):
        report = compile_lib.compile_step(trials[:size], where)
        on_report(i, len(sizes_tried), report)
        if report.fits:
            break
    return report


def guesses(trials: Sequence[TrainConfig], where: Slice) -> list[Guess]:
    """Every layout that divides the model and the batch and is not hopeless, guessed fastest first."""
    base, n = trials[0], len(trials)
    activations = {
        remat: compile_lib.activation_bytes(config_lib.replace(base, {"compute.remat": remat}), 1) for remat in REMATS
    }
    found = []
    for mesh in meshes(base, n, where):
        sharers = mesh.data * mesh.fsdp * mesh.expert
        for micro in _micro_batches(base.batch_size, sharers):
            for remat in REMATS:
                changes = {f"mesh.{axis}": size for axis, size in dataclasses.asdict(mesh).items()}
                changes |= {"compute.remat": remat, "compute.micro_batch": micro}
                found.append(_guess(config_lib.replace(base, changes), n, where, activations[remat]))
    limit = ROOM * where.chip.memory / where.chip.devices
    return sorted((g for g in found if g.bytes <= limit), key=lambda g: (g.step_s, g.bytes))


def meshes(config: TrainConfig, n_trials: int, where: Slice) -> Iterator[MeshConfig]:
    """Meshes that use every device: trials apart as far as they go, or half or a quarter as far."""
    model, n_devices = config.model, where.chips * where.chip.devices
    apart = math.gcd(n_devices, n_trials)
    for trial in {apart, max(1, apart // 2), max(1, apart // 4)}:
        rest = n_devices // trial
        for tensor in (t for t in (1, 2, 4, 8) if rest % t == 0 and _divides(t, model.n_heads, model.n_kv_heads)):
            if not _divides(tensor, model.d_ff, model.d_expert or 1 if model.n_experts > 1 else tensor):
                continue
            experts = (1, 2, 4, 8) if model.n_experts > 1 else (1,)
            for expert in (e for e in experts if rest % (tensor * e) == 0 and model.n_experts % e == 0):
                share, fsdp = rest // (tensor * expert), 1
                while share % fsdp == 0 and model.d_model % fsdp == 0:
                    if config.batch_size % (share * expert) == 0:
                        yield MeshConfig(trial=trial, data=share // fsdp, fsdp=fsdp, expert=expert, tensor=tensor)
                    fsdp *= 2


def _guess(config: TrainConfig, n_trials: int, where: Slice, activations: float) -> Guess:
    """activations: bytes of one sequence of one trial."""
    mesh, chip, model = config.mesh, where.chip, config.model
    n_devices, here = where.chips * chip.devices, n_trials / mesh.trial
    params = sizes.total_params(model)
    micro = config.compute.micro_batch or config.batch_size
    rounds, sharers = config.batch_size // micro, mesh.data * mesh.fsdp * mesh.expert
    local = micro / sharers * here  # sequences of a device at a time
    divided = mesh.fsdp * mesh.expert * mesh.tensor
    logits = 2 * 4.0 * local * config.data.seq_len * model.vocab_size / mesh.tensor
    taken = STATE_BYTES * params * here / divided + local * activations + logits
    item = 2.0 if config.dtype == "bfloat16" else 4.0
    per_tensor = params * here / mesh.tensor
    gathers = 3.0 * rounds * item * per_tensor if mesh.fsdp * mesh.expert > 1 else 0.0
    reduces = 2.0 * 4.0 * per_tensor / (mesh.fsdp * mesh.expert) if mesh.data > 1 else 0.0
    rows = rounds * local * config.data.seq_len * model.d_model * item
    tensor = 8.0 * model.n_layers * rows if mesh.tensor > 1 else 0.0
    messages = (gathers + reduces + tensor) / (chip.link_bandwidth / chip.devices / 2)
    arithmetic = executed_flops(config, n_trials) / (n_devices * chip.flops / chip.devices)
    return Guess(config, taken, max(arithmetic, messages))


def _micro_batches(batch: int, sharers: int) -> Iterator[int]:
    """The whole batch (0), and halves of it down to one sequence a device."""
    yield 0
    micro = batch // 2
    while batch % 2 == 0 and micro and batch % micro == 0 and micro % sharers == 0:
        yield micro
        if micro % 2:
            return
        micro //= 2


def _divides(n: int, *numbers: int | None) -> bool:
    return all(number is None or number % n == 0 for number in numbers)

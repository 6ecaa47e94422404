"""A train step compiled for a TPU slice on a machine without one, through libtpu: does it fit, what does it do?"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine import config as config_lib
from engine import mesh as mesh_lib
from engine import model as model_lib
from engine import population, sizes, step
from engine.config import MeshConfig, TrainConfig
from engine.errors import InputError
from tpu import hlo
from tpu.absent import NO_TPU
from tpu.roofline import Roofline, roofline
from tpu.topologies import Slice

_AMOUNT = r"([\d.]+)([KMGT]?)"
_TOO_MUCH = (  # what the compiler says of a program that doesn't fit
    re.compile(rf"temporaries \({_AMOUNT}\) exceeds available HBM \({_AMOUNT}\)"),
    re.compile(rf"Used {_AMOUNT} of {_AMOUNT} hbm"),
)


@dataclass(frozen=True)
class Memory:
    """Bytes of a chip."""

    weights: int
    optimizer: int
    activations: int  # kept for the backward pass: an estimate, from the shapes of the gradient's residuals
    temporaries: int  # gradients, gathered weights, logits and the rest of what the compiler reserves
    total: int
    limit: int | None  # what the compiler lets a program have; None: it does not say where all fits


@dataclass(frozen=True)
class Report:
    """What the compiler made of a step."""

    config: TrainConfig  # with the mesh, attention and experts' products that were compiled
    n_trials: int
    where: Slice
    chips: int  # that the mesh uses
    fits: bool
    memory: Memory
    collectives: list[hlo.Collective]  # of one step; empty where it doesn't fit
    kernels: dict[str, int]  # custom calls by target
    roofline: Roofline | None
    compiler_flops: float  # of a device, as the compiler counts: loops once
    compile_s: float
    advice: str  # the setting to change where it doesn't fit

    @property
    def messages(self) -> dict[str, tuple[int, int]]:
        """By kind of collective: how many a step runs, and the bytes that they move, of a chip."""
        found = {kind: (0, 0) for kind in hlo.KINDS}
        for c in self.collectives:
            n, size = found[c.kind]
            found[c.kind] = n + c.times, size + c.times * c.bytes * self.where.chip.devices
        return {kind: both for kind, both in found.items() if both[0]}


def compile_step(trials: Sequence[TrainConfig], where: Slice) -> Report:
    """The step of one model, or of trials that differ in numbers only, compiled for `where`.

    A mesh left as it is by default is laid out by `layout`. Raises InputError for trials of several programs, a mesh
    that doesn't fit the slice, a slice that is no TPU's, or without libtpu.
    """
    config, n = resolved(trials, where), len(trials)
    mesh = mesh_lib.make_mesh(
        config.mesh, n_trials=n, batch_size=config.compute.micro_batch or config.batch_size, devices=devices(where)
    )
    chips = mesh.size // where.chip.devices or 1
    program = step.program(config, "tpu")
    shardings = mesh_lib.state_sharding(mesh, config.model, program.method)
    hyper = population.stack_hypers(trials)
    seeds, stds = np.zeros(n, np.uint32), np.ones(n, np.float32)
    shapes = jax.eval_shape(partial(step.init_state, config.model, program.method), seeds, stds, hyper)
    state = jax.tree.map(lambda s, at: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at), shapes, shardings)
    a_step = (1, config.batch_size, config.data.seq_len + 1)
    arguments = (
        state,
        jax.ShapeDtypeStruct(a_step, np.int32, sharding=mesh_lib.batch_sharding(mesh, steps_axis=True)),
        jax.ShapeDtypeStruct((), np.int32, sharding=mesh_lib.replicated(mesh)),
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=mesh_lib.trial_sharding(mesh)), hyper),
    )
    started = time.monotonic()
    lowered = population.compiled_train_steps(program, mesh).lower(*arguments)
    kept = [
        d * _bytes_of(part) for d, part in ((where.chip.devices, state.params), (where.chip.devices, state.moments))
    ]
    divided = math.prod(size for axis, size in mesh.shape.items() if axis != "tensor")
    activations = activation_bytes(config, config.compute.micro_batch or config.batch_size, n)
    activations = where.chip.devices * activations // divided
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        used, limit = _too_much(str(error))
        memory = _memory(kept, activations, used * where.chip.devices, limit * where.chip.devices)
        advice = advise(config, n, where, memory)
        spent = time.monotonic() - started
        return Report(config, n, where, chips, False, memory, [], {}, None, 0.0, spent, advice)
    text, stats = compiled.as_text(), compiled.memory_analysis()
    collectives = hlo.collectives(text, mesh.size)
    extra = stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    memory = _memory(kept, activations, extra * where.chip.devices, None)
    line = roofline(
        config, n, where, chips,
        state_bytes=sum(kept), temporary_bytes=memory.activations + memory.temporaries, collectives=collectives,
    )  # fmt: skip
    flops = float((compiled.cost_analysis() or {}).get("flops", 0.0))
    spent = time.monotonic() - started
    return Report(config, n, where, chips, True, memory, collectives, hlo.custom_calls(text), line, flops, spent, "")


def resolved(trials: Sequence[TrainConfig], where: Slice) -> TrainConfig:
    """The trials' shared config, with what `auto` and the default mesh mean on `where`."""
    config = trials[0]
    if len({config_lib.structure(t) for t in trials}) > 1:
        raise InputError(
            f"the {len(trials)} trials are of several programs; compile one, such as a recipe whose trials differ in "
            f"numbers only ({', '.join(config_lib.HYPERS[:3])} ...)"
        )
    changes: dict[str, Any] = {
        "compute.attention": step.program(config, "tpu").compute.attention,
        "compute.lanes": len(trials),
    }
    if config.model.n_experts > 1 and not config.model.capacity_factor:
        changes["model.moe_matmul"] = "ragged" if config.model.moe_matmul == "auto" else config.model.moe_matmul
    if config.mesh == MeshConfig():
        laid = layout(config, len(trials), where)
        changes |= {f"mesh.{axis}": size for axis, size in dataclasses.asdict(laid).items()}
    return config_lib.replace(config, changes)


def layout(config: TrainConfig, n_trials: int, where: Slice) -> MeshConfig:
    """A mesh by rule of thumb: trials apart; then the fewest shards of weights, gradients and moments (16 bytes a
    parameter) that leave two thirds of the memory; then data."""
    n_devices = where.chips * where.chip.devices
    trial = math.gcd(n_devices, n_trials)
    state = 16.0 * sizes.total_params(config.model) * n_trials / trial
    fsdp, free = 1, math.gcd(n_devices // trial, config.compute.micro_batch or config.batch_size)
    while state / fsdp > where.chip.memory / where.chip.devices / 3 and free % (2 * fsdp) == 0:
        if config.model.d_model % (2 * fsdp):
            break
        fsdp *= 2
    return MeshConfig(trial=trial, data=free // fsdp, fsdp=fsdp)


def devices(where: Slice) -> list[Any]:
    """The slice's devices, as libtpu describes them. Raises InputError where it can't."""
    if not where.shape:
        raise InputError(f"topology {where.name!r} is of GPUs; compiling ahead of time is for TPU slices")
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("no libtpu here, which compiles for TPUs; install it: pip install 'stepseer[tpu]'")
    for name, value in NO_TPU.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    options = {"chip_config_name": "megacore"} if where.chip.name == "v4" else {}  # else two devices a chip
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=where.libtpu, **options).devices)
    except (jax.errors.JaxRuntimeError, RuntimeError) as error:
        what = " ".join(str(error).split())[:200]
        raise InputError(f"libtpu does not describe {where.libtpu}: {what}; is another process using it?") from None


def advise(config: TrainConfig, n_trials: int, where: Slice, memory: Memory) -> str:
    """The one setting to change first for a step that doesn't fit."""
    mesh, compute = config.mesh, config.compute
    shared = where.chips * where.chip.devices // max(1, mesh.trial)
    if memory.weights + memory.optimizer > (memory.limit or 0) / 2:
        if n_trials > mesh.trial:
            return f"fewer trials at a time: {n_trials} trials share {mesh.trial} groups of devices; halve them"
        wider = 2 * mesh.fsdp
        if wider <= shared and config.model.d_model % wider == 0:
            return f"mesh.fsdp={wider}: weights and optimizer take more than half of the memory"
        return "a larger slice, or a chip with more memory: weights and optimizer can't be divided further"
    if compute.remat == "none":
        return "compute.remat=full: activations are kept for the backward pass"
    micro, sharers = compute.micro_batch or config.batch_size, max(1, mesh.data) * mesh.fsdp * mesh.expert
    if micro // 2 >= sharers and micro % 2 == 0:
        return f"compute.micro_batch={micro // 2}: {micro // sharers} sequences at a time on a chip"
    if compute.remat != "full":
        return "compute.remat=full: less is kept for the backward pass"
    if compute.loss_chunk == 0:
        return f"compute.loss_chunk={config.batch_tokens // 4}: logits of fewer tokens at a time"
    if 2 * mesh.fsdp <= shared and mesh.data % 2 == 0:
        return f"mesh.fsdp={2 * mesh.fsdp} and mesh.data={mesh.data // 2}: gathered weights and gradients"
    return "mesh.tensor=2, or a larger slice: a single sequence doesn't fit a chip"


def _memory(kept: list[int], activations: int, extra: int, limit: int | None) -> Memory:
    weights, optimizer = kept
    activations = min(activations, extra)
    return Memory(weights, optimizer, activations, extra - activations, sum(kept) + extra, limit)


def _bytes_of(tree: Any) -> int:
    """Of one device."""
    parts = [(x.sharding.shard_shape(x.shape), x.dtype) for x in jax.tree.leaves(tree)]
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in parts)


def activation_bytes(config: TrainConfig, n_sequences: int, n_trials: int = 1) -> int:
    """Bytes of what a gradient's forward pass keeps, all devices together: its residuals but for the weights."""
    program = step.program(config, "tpu")
    tokens = jax.ShapeDtypeStruct((n_sequences, config.data.seq_len + 1), np.int32)
    seeds, stds = np.zeros(n_trials, np.uint32), np.ones(n_trials, np.float32)
    hyper = population.stack_hypers([config] * n_trials)
    params = jax.eval_shape(partial(step.init_state, config.model, program.method), seeds, stds, hyper).params

    def residuals(params: Any, tokens: jax.Array) -> Any:
        def total(params: Any) -> jax.Array:
            x_GBTD, _ = model_lib.hidden(
                program.model, params, tokens[:, :-1], jnp.dtype(program.dtype),
                attend=program.compute.attention, remat=program.compute.remat,
            )  # fmt: skip
            return x_GBTD.astype(jnp.float32).sum()

        return jax.vjp(total, params)[1]

    weights = {x.shape for x in jax.tree.leaves(params)}
    kept = [x for x in jax.tree.leaves(jax.eval_shape(residuals, params, tokens)) if x.shape not in weights]
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in kept)


def _too_much(message: str) -> tuple[int, int]:
    """Bytes beside the arguments that a program would take, and the limit, from the compiler's error."""
    for pattern in _TOO_MUCH:
        found = pattern.search(message)
        if found:
            scale = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
            return int(float(found[1]) * scale[found[2]]), int(float(found[3]) * scale[found[4]])
    raise InputError(f"libtpu could not compile it: {' '.join(message.split())[:300]}; change the mesh or the backend")

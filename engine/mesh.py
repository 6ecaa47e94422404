"""One mesh with every axis, size 1 when unused, and the physical sharding of every array of a population."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from engine import model as model_lib
from engine import optim, step
from engine.config import MeshConfig, ModelConfig
from engine.errors import InputError

AXES = ("trial", "data", "fsdp", "expert", "tensor")
BATCH = ("data", "fsdp", "expert")  # the axes that a batch is divided over

# Logical axis of a parameter -> mesh axis.
RULES = {
    "layer": None,
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "ffn": "tensor",
    "expert": "expert",
    "choice": None,
    "expert_ffn": "tensor",
    "shared_ffn": "tensor",
}


def make_mesh(config: MeshConfig, *, n_trials: int, batch_size: int, devices: list[Any] | None = None) -> Mesh:
    """The mesh for n_trials trials with batch_size sequences at a time; `MeshConfig` says how -1 is resolved.

    Raises InputError when the axes ask for more devices than there are, or don't divide what they shard.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dataclasses.asdict(config)
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if fixed > len(devices):
        raise InputError(f"mesh {config} needs {fixed} devices, but there are {len(devices)}; lower an axis")
    free = len(devices) // fixed
    trial = config.trial if config.trial != -1 else math.gcd(free, n_trials)
    if config.trial == -1:
        free //= trial
    sharers = config.fsdp * config.expert
    batch_left = batch_size // sharers if batch_size % sharers == 0 else 1
    data = config.data if config.data != -1 else math.gcd(free, batch_left)
    if n_trials % trial:
        raise InputError(f"mesh.trial {trial} does not divide the {n_trials} trials; use mesh.trial=-1")
    if batch_size % (data * sharers):
        raise InputError(
            f"mesh.data {data} times mesh.fsdp {config.fsdp} times mesh.expert {config.expert} does not divide the "
            f"{batch_size} sequences of a step (batch_size, or compute.micro_batch); change them or the mesh"
        )
    shape = tuple((sizes | {"trial": trial, "data": data})[axis] for axis in AXES)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[: math.prod(shape)])


def state_sharding(mesh: Mesh, model: ModelConfig, method: optim.Method) -> Any:
    """A `step.State` of shardings. Raises InputError when a mesh axis does not divide the weights it shards.

    A vocabulary that does not divide (257 bytes) is replicated. What an optimizer keeps in the shape of a parameter is
    sharded as that is; what is smaller (counts, Adafactor's rows and columns) is replicated, but for its trials.
    """
    shapes = jax.eval_shape(partial(model_lib.init, model))
    sizes = jax.tree.map(lambda x: x.shape, shapes)
    axes = model_lib.logical_axes(model)
    trial_axis = model_lib.trial_axis(sizes)

    def leaf(at: int, names: tuple[str, ...], shape: tuple[int, ...]) -> NamedSharding:
        spec = [RULES[name] for name in names]
        for i, (name, size, rule) in enumerate(zip(names, shape, spec)):
            if rule and size % mesh.shape[rule] and name == "vocab":
                spec[i] = None
            elif rule and size % mesh.shape[rule]:
                raise InputError(
                    f"mesh.{rule} {mesh.shape[rule]} does not divide the model's {name} axis of {size}; "
                    f"change mesh.{rule} or the model"
                )
        spec.insert(at, "trial")
        return NamedSharding(mesh, P(*spec))

    is_axes = lambda x: isinstance(x, tuple)  # noqa: E731
    params = {k: jax.tree.map(partial(leaf, trial_axis[k]), axes[k], sizes[k], is_leaf=is_axes) for k in sizes}
    flat = jax.tree_util.tree_flatten_with_path(shapes)[0]
    of_param = {_keys(path): (x.shape, sharding) for (path, x), sharding in zip(flat, jax.tree.leaves(params))}

    def moment(path: Any, at: int, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        keys = _keys(path)
        for name in (keys[i:] for i in range(len(keys))):
            if name in of_param and of_param[name][0] == leaf.shape:
                return of_param[name][1]
        return NamedSharding(mesh, P(*[None] * at, "trial"))

    moments = jax.eval_shape(partial(optim.init_moments, method), shapes)
    moments = jax.tree_util.tree_map_with_path(moment, step.moments_axis(model, method), moments)
    return step.State(params, moments, replicated(mesh), NamedSharding(mesh, P("trial")))  # type: ignore[arg-type]


def _keys(path: Any) -> tuple[str, ...]:
    """The dicts' keys in a leaf's path: of a moment they end with its parameter's."""
    return tuple(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, P())


def trial_sharding(mesh: Mesh) -> NamedSharding:
    """Of [G] arrays."""
    return NamedSharding(mesh, P("trial"))


def metrics_sharding(mesh: Mesh) -> NamedSharding:
    """Of [K, G] arrays."""
    return NamedSharding(mesh, P(None, "trial"))


def batch_sharding(mesh: Mesh, *, steps_axis: bool) -> NamedSharding:
    """Of token batches [B, T+1], or [K, B, T+1] with steps_axis."""
    return NamedSharding(mesh, P(*([None] if steps_axis else []), BATCH, None))

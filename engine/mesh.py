"""One mesh with every axis, size 1 when unused, and the physical sharding of every array of a population."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from engine import model as model_lib
from engine import optim, step
from engine.config import MeshConfig, ModelConfig
from engine.errors import InputError
from engine.placement import AXES, BATCH

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

    Trials are the outer axis, so that one stays within a host where it can. Of several processes each has a part:
    where there are too few trials and sequences for that, all of it is computed several times. Raises InputError when
    the axes ask for more devices than there are, or don't divide what they shard.
    """
    compiling = devices is not None  # for another machine
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
    used = math.prod((sizes | {"trial": trial, "data": data}).values())
    hosts = [d.process_index for d in devices]
    alone = compiling or set(hosts[:used]) == set(hosts)
    copy = 1 if alone else len(devices) // used
    if not alone and set(hosts[: used * copy]) != set(hosts):
        raise InputError(
            f"{n_trials} trials of {batch_size} sequences at a time are divided among {used} devices, which the "
            f"{len(devices)} of {len(set(hosts))} processes are no multiple of; change batch_size or the mesh"
        )
    shape = tuple((sizes | {"copy": copy, "trial": trial, "data": data})[axis] for axis in AXES)
    array = _arranged(shape, devices[: math.prod(shape)])
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arranged(shape: tuple[int, ...], devices: list[Any]) -> np.ndarray:
    """Devices in the order of AXES: a trial's within a host, where they fit into one."""
    together = partial(mesh_utils.create_device_mesh, allow_split_physical_axes=True)  # 8 of a 4x4x4 torus, too
    groups, each = shape[0] * shape[1], math.prod(shape[2:])
    hosts = Counter(d.process_index for d in devices)
    if groups == 1 or len(hosts) == 1 or any(n % each for n in hosts.values()):
        return together(shape, devices)
    in_hosts = sorted(devices, key=lambda d: (d.process_index, d.id))
    parts = [together(shape[2:], in_hosts[i * each : (i + 1) * each]) for i in range(groups)]
    return np.stack(parts).reshape(shape)


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Host arrays, of which every process has at least its own parts right, on the devices."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def leaf(x: Any) -> jax.Array:
        x = np.asarray(x)
        parts = sharding.addressable_devices_indices_map(x.shape)
        mine = [jax.device_put(x[index], device) for device, index in parts.items()]
        return jax.make_array_from_single_device_arrays(x.shape, sharding, mine)

    return jax.tree.map(leaf, tree)


def readable(tree: Any) -> Any:
    """What `jax.device_get` can read on every process: arrays of which this one lacks parts are gathered, by the
    devices, in their own time."""
    return jax.tree.map(lambda x: x if x.is_fully_addressable else _gathered(x.sharding.mesh)(x), tree)


@lru_cache(maxsize=8)
def _gathered(mesh: Mesh) -> Any:
    return jax.jit(lambda x: x, out_shardings=replicated(mesh))


def own_rows(sharding: NamedSharding, shape: tuple[int, ...], axis: int) -> range:
    """The indices along `axis` that this process's devices have a part of."""
    indices = sharding.addressable_devices_indices_map(shape).values()
    parts = [index[axis].indices(shape[axis]) for index in indices if index is not None]
    return range(min(first for first, _, _ in parts), max(end for _, end, _ in parts))


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

"""Many trials as one program: stacking their numbers, and compiling the step for a mesh once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from engine import config as config_lib
from engine import mesh as mesh_lib
from engine import model as model_lib
from engine import optim, placement, step
from engine.config import ModelConfig, TrainConfig
from engine.errors import InputError
from engine.optim import Hyper


def trial_configs(config: TrainConfig, hypers: Sequence[Mapping[str, float]]) -> list[TrainConfig]:
    """`config` with each trial's numbers. Raises InputError for a field that is not a hyper (`config.HYPERS`)."""
    if not hypers:
        raise InputError("no trials: hypers is empty; give one mapping of numbers per trial, {} for the config's own")
    for trial in hypers:
        for name in trial:
            if name not in config_lib.HYPERS:
                raise InputError(
                    f"{name!r} cannot differ between the trials of one program; it may be one of: "
                    + ", ".join(config_lib.HYPERS)
                )
    return [config_lib.replace(config, dict(trial)) for trial in hypers]


def stack_hypers(trials: Sequence[TrainConfig]) -> Hyper:
    """The trials' numbers as float32 arrays [G]."""

    def stacked(name: str) -> np.ndarray:
        values = [t.steps if name == "steps" else getattr(t.optim, name) for t in trials]
        return np.asarray(values, np.float32)

    return Hyper(*(stacked(name) for name in Hyper._fields))  # type: ignore[arg-type]


def init_state(mesh: Mesh, trials: Sequence[TrainConfig], hyper_G: Hyper) -> step.State:
    """Initial state, born sharded."""
    model, method = trials[0].model, optim.method(trials[0].optim)
    seeds = mesh_lib.put(np.asarray([t.seed for t in trials], np.uint32), mesh_lib.trial_sharding(mesh))
    stds = mesh_lib.put(np.asarray([t.init_std for t in trials], np.float32), mesh_lib.trial_sharding(mesh))
    return _compiled_init(model, method, mesh)(seeds, stds, hyper_G)


def state_shapes(mesh: Mesh, trials: Sequence[TrainConfig]) -> step.State:
    """Shapes, dtypes and shardings of `init_state`."""
    model, method = trials[0].model, optim.method(trials[0].optim)
    seeds, stds = np.zeros(len(trials), np.uint32), np.ones(len(trials), np.float32)
    shapes = jax.eval_shape(partial(step.init_state, model, method), seeds, stds, stack_hypers(trials))
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        shapes,
        mesh_lib.state_sharding(mesh, model, method),
    )


def placed(mesh: Mesh, trials: Sequence[TrainConfig], params: Sequence[model_lib.Params]) -> model_lib.Params:
    """Each trial's parameters, as `engine.init` returns them, stacked and sharded. Raises InputError for other counts
    and shapes than the trials'."""
    model, method = trials[0].model, optim.method(trials[0].optim)
    wanted = jax.eval_shape(partial(model_lib.init, model))
    if len(params) != len(trials) or any(
        jax.tree.map(np.shape, one) != jax.tree.map(np.shape, wanted) for one in params
    ):
        raise InputError(f"start must hold the parameters of {len(trials)} trials, of the shapes of config.model")
    axis = model_lib.trial_axis(wanted)
    stacked = {
        name: jax.tree.map(lambda *leaves, at=at: np.stack(leaves, at), *(one[name] for one in params))
        for name, at in axis.items()
    }
    return jax.tree.map(
        lambda x, sharding: mesh_lib.put(x.astype(np.float32), sharding),
        stacked,
        mesh_lib.state_sharding(mesh, model, method).params,
    )


@lru_cache(maxsize=64)
def _compiled_init(model: ModelConfig, method: optim.Method, mesh: Mesh) -> Any:
    return jax.jit(partial(step.init_state, model, method), out_shardings=mesh_lib.state_sharding(mesh, model, method))


@lru_cache(maxsize=64)
def compiled_train_steps(program: step.Program, mesh: Mesh) -> Any:
    """`step.train_steps` for a mesh: (state, tokens_KBT1, n_steps, hyper_G) -> (state, metrics); donates state."""
    return jax.jit(
        placement.within(mesh, partial(step.train_steps, program)),
        donate_argnums=0,
        out_shardings=(mesh_lib.state_sharding(mesh, program.model, program.method), mesh_lib.metrics_sharding(mesh)),
    )


def lowered_train_steps(config: TrainConfig, trials: Sequence[TrainConfig], mesh: Mesh, call_steps: int) -> Any:
    """`compiled_train_steps` as it is called, before it is compiled; no array is made."""
    program, hyper = step.program(config), stack_hypers(trials)
    seeds, stds = np.zeros(len(trials), np.uint32), np.ones(len(trials), np.float32)

    def abstract(shape: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    shapes = jax.eval_shape(partial(step.init_state, config.model, program.method), seeds, stds, hyper)
    state = jax.tree.map(abstract, shapes, mesh_lib.state_sharding(mesh, config.model, program.method))
    tokens = np.empty((call_steps, config.batch_size, config.data.seq_len + 1), np.int32)
    return compiled_train_steps(program, mesh).lower(
        state,
        abstract(tokens, mesh_lib.batch_sharding(mesh, steps_axis=True)),
        abstract(np.int32(0), mesh_lib.replicated(mesh)),
        jax.tree.map(lambda x: abstract(x, mesh_lib.trial_sharding(mesh)), hyper),
    )


@lru_cache(maxsize=64)
def compiled_eval_step(program: step.Program, mesh: Mesh) -> Any:
    """`step.eval_step` jitted for a mesh: (params_G, tokens_BT1, weights_BT) -> [G]."""
    return jax.jit(
        placement.within(mesh, partial(step.eval_step, program)), out_shardings=mesh_lib.trial_sharding(mesh)
    )

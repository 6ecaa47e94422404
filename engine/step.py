"""Training and evaluation steps: pure functions in which every number is an array.

Shapes: G trials, K steps of a call, B sequences, T tokens, M routed layers, E experts.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from engine import loss as loss_lib
from engine import model as model_lib
from engine import moe, mup, optim, tokenize
from engine.config import ComputeConfig, ModelConfig, TrainConfig
from engine.loss import Losses
from engine.optim import Hyper, Method


class Program(NamedTuple):
    """The part of a config that decides the compiled step, beside array shapes; hashable."""

    model: ModelConfig
    method: Method
    dtype: str
    compute: ComputeConfig  # its attention resolved
    separator: int | None = None  # the token that begins documents, if attention keeps them apart


def program(config: TrainConfig, platform: str | None = None) -> Program:
    """What of `config` the compiled step depends on, for devices of `platform` (None: this process's)."""
    apart = config.data.documents == "apart"
    attend = model_lib.attention_backend(
        config.model,
        config.compute.attention,
        config.dtype,
        platform,
        divided=config.mesh.sequence > 1,
        apart=apart,
    )
    compute = dataclasses.replace(config.compute, attention=attend)
    separator = tokenize.separator_of(config.data.tokenizer) if apart else None
    return Program(config.model, optim.method(config.optim), config.dtype, compute, separator)


class State(NamedTuple):
    """A population in training."""

    params: model_lib.Params  # float32, trial axis per `model.trial_axis`
    moments: Any  # optax state, trial axis per `moments_axis`
    step: jax.Array  # [] int32: steps done
    alive: jax.Array  # [G] bool: False from a trial's first non-finite loss or gradient on


class Metrics(NamedTuple):
    """Of every step of a call, [K, G] float32 where not said otherwise."""

    loss: jax.Array  # nats per token, of the batch before its update
    grad_norm: jax.Array
    lr: jax.Array
    expert_load: jax.Array | None  # [K, G, M, E]: share of a layer's choices that fell on each expert; None when dense


def as_dict(metrics: Metrics) -> dict[str, Any]:
    """By name, without those that a dense model doesn't have."""
    return {name: rows for name, rows in metrics._asdict().items() if rows is not None}


def moments_axis(model: ModelConfig, method: Method) -> Any:
    """Where the trial axis stands in every leaf of `State.moments`: behind the layers where it has them, as in
    `model.trial_axis`."""

    def leaf(path: Any, _: Any) -> int:
        return int(any(str(getattr(entry, "key", "")).endswith("layers") for entry in path))

    params = jax.eval_shape(partial(model_lib.init, model))
    moments = jax.eval_shape(partial(optim.init_moments, method), params)
    return jax.tree_util.tree_map_with_path(leaf, moments)


def init_state(model: ModelConfig, method: Method, seeds_G: jax.Array, init_std_G: jax.Array, hyper_G: Hyper) -> State:
    """Initial state of G trials: own seed, own initial scale."""

    def init(seed: jax.Array, init_std: jax.Array, base_width: jax.Array) -> model_lib.Params:
        params = model_lib.init(model, seed, init_std)
        return mup.scale_params(params, base_width) if method.parametrization == "mup" else params

    axis = model_lib.trial_axis(jax.eval_shape(partial(model_lib.init, model)))
    params = jax.vmap(init, out_axes=axis)(seeds_G, init_std_G, hyper_G.base_width)
    moments = jax.vmap(partial(optim.init_moments, method), in_axes=(axis,), out_axes=moments_axis(model, method))(
        params
    )
    return State(params, moments, jnp.int32(0), jnp.ones(seeds_G.shape, bool))


def train_step(
    program: Program, state: State, tokens_BT1: jax.Array, hyper_G: Hyper, weights_BT: jax.Array | None = None
) -> tuple[State, Metrics]:
    """One optimizer step of every trial on the same batch. weights_BT: of each predicted token in the mean loss; None:
    all count alike.

    A trial past its horizon rests; one whose loss or gradient is not finite freezes, unchanged from then on. Trials
    share no arithmetic, so neither touches its neighbours.
    """
    grads_G, (loss_G, load_GME) = _gradients(program, state.params, tokens_BT1, hyper_G, _of_mean_one(weights_BT))
    lr_G = optim.learning_rate(program.method.schedule, state.step, hyper_G)

    def update(
        grads: Any, moments: Any, params: Any, hyper: Hyper, lr: jax.Array, loss: jax.Array, load_ME: Any, active: Any
    ) -> Any:
        grad_norm = optax.tree.norm(grads)
        direction, new_moments = optim.direction(program.method, hyper).update(grads, moments, params)
        new_params = jax.tree.map(lambda p, d: p - lr * d, params, direction)
        if program.model.router_bias:
            bias_ME = moe.move_bias(params["layers"]["router_bias"], load_ME, hyper.router_bias_rate)
            new_params = {**new_params, "layers": {**new_params["layers"], "router_bias": bias_ME}}
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        keep = partial(jnp.where, active & finite)
        return jax.tree.map(keep, (new_params, new_moments), (params, moments)), grad_norm, finite

    axis, moments_at = model_lib.trial_axis(state.params), moments_axis(program.model, program.method)
    active_G = state.alive & (state.step < hyper_G.steps)
    (params, moments), grad_norm_G, finite_G = jax.vmap(
        update,
        in_axes=(axis, moments_at, axis, 0, 0, 0, 0, 0),
        out_axes=((axis, moments_at), 0, 0),
    )(grads_G, state.moments, state.params, hyper_G, lr_G, loss_G, load_GME, active_G)
    alive_G = state.alive & (finite_G | ~active_G)
    return State(params, moments, state.step + 1, alive_G), Metrics(loss_G, grad_norm_G, lr_G, load_GME)


def _of_mean_one(weights_BT: jax.Array | None) -> jax.Array | None:
    """Scaled, so that sums over any part of the batch add up to the weighted mean over all of it."""
    if weights_BT is None:
        return None
    total = jnp.sum(weights_BT)
    return weights_BT * jnp.where(total > 0, weights_BT.size / total, 0.0)


def _gradients(
    program: Program, params_G: model_lib.Params, tokens_BT1: jax.Array, hyper_G: Hyper, weights_BT: jax.Array | None
) -> Any:
    """Gradients of the batch's mean objective, and (loss_G, load_GME); micro-batch after micro-batch if so asked.

    A micro-batch takes every n-th sequence, so that each has its part of a sharded batch on every device.
    """
    gradients = jax.grad(partial(_objective, program), has_aux=True)
    b, micro = tokens_BT1.shape[0], program.compute.micro_batch
    if micro in (0, b):
        return gradients(params_G, tokens_BT1, hyper_G, weights_BT)
    n = b // micro
    parts = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(micro, n, -1), 0, 1), (tokens_BT1, weights_BT))

    def of_part(part: Any) -> Any:
        return gradients(params_G, part[0], hyper_G, part[1])

    def add(sums: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(lambda s, x: s + x / n, sums, of_part(part)), None

    shapes = jax.eval_shape(of_part, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, parts)[0]


def _objective(
    program: Program, params_G: model_lib.Params, tokens_BT1: jax.Array, hyper_G: Hyper, weights_BT: jax.Array | None
) -> tuple[jax.Array, Any]:
    """What is minimised, summed over trials; and the cross-entropy [G] and the experts' load [G, M, E] in it.
    weights_BT: with mean one over the batch; None: ones."""
    if weights_BT is None:
        weights_BT = jnp.ones(tokens_BT1[:, 1:].shape)
    nll_G, z_G, routing = _token_losses(program, params_G, tokens_BT1, weights_BT)
    loss_G = nll_G / weights_BT.size
    total_G = loss_G + hyper_G.z_loss * z_G / weights_BT.size
    if routing is None:
        return jnp.sum(total_G), (loss_G, None)
    total_G += hyper_G.balance_loss * jnp.sum(routing.balance_G, axis=0)
    total_G += hyper_G.router_z_loss * jnp.sum(routing.z_G, axis=0)
    return jnp.sum(total_G), (loss_G, jnp.moveaxis(routing.load_GE, 0, 1))


def train_steps(
    program: Program, state: State, tokens_KBT1: jax.Array, n_steps: jax.Array, hyper_G: Hyper
) -> tuple[State, Metrics]:
    """The first n_steps of K batches. n_steps is data: a short last call runs the same program.

    `compute.lanes` trials take all these steps together, then the next. Metrics rows from n_steps on are NaN.
    """
    lanes, n_trials = program.compute.lanes, state.alive.shape[0]
    if lanes == 0 or lanes >= n_trials:
        return _train_steps(program, state, tokens_KBT1, n_steps, hyper_G)
    axes: Any = State(
        params=model_lib.trial_axis(state.params),
        moments=moments_axis(program.model, program.method),
        step=None,  # type: ignore[arg-type]
        alive=0,  # type: ignore[arg-type]
    )

    def body(_: None, group: tuple[State, Hyper]) -> tuple[None, tuple[State, Metrics]]:
        one, hyper = group
        return None, _train_steps(program, one._replace(step=state.step), tokens_KBT1, n_steps, hyper)

    no_step: Any = None  # it is the same for all
    groups = (_in_groups(axes, state._replace(step=no_step), lanes), _in_groups(0, hyper_G, lanes))
    _, (states, metrics) = jax.lax.scan(body, None, groups)
    joined = _from_groups(axes, states._replace(step=no_step))
    return joined._replace(step=states.step[0]), _from_groups(1, metrics)


def _in_groups(axes: Any, tree: Any, lanes: int) -> Any:
    """Trials [..., G, ...] as [G / lanes, ..., lanes, ...]; each group has its part of trials that are sharded."""

    def leaf(axis: int, x: jax.Array) -> jax.Array:
        x = x.reshape(*x.shape[:axis], lanes, -1, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis + 1, 0)

    return jax.tree.map(lambda axis, part: jax.tree.map(partial(leaf, axis), part), axes, tree)


def _from_groups(axes: Any, tree: Any) -> Any:
    """The inverse of `_in_groups`."""

    def leaf(axis: int, x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, 0, axis + 1)
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    return jax.tree.map(lambda axis, part: jax.tree.map(partial(leaf, axis), part), axes, tree)


def _train_steps(
    program: Program, state: State, tokens_KBT1: jax.Array, n_steps: jax.Array, hyper_G: Hyper
) -> tuple[State, Metrics]:
    one_step = jax.eval_shape(partial(train_step, program), state, tokens_KBT1[0], hyper_G)[1]
    empty = jax.tree.map(lambda row: jnp.full((tokens_KBT1.shape[0], *row.shape), jnp.nan), one_step)

    def body(k: jax.Array, carry: tuple[State, Metrics]) -> tuple[State, Metrics]:
        state, rows = carry
        state, row = train_step(program, state, tokens_KBT1[k], hyper_G)
        return state, jax.tree.map(lambda all_k, at_k: all_k.at[k].set(at_k), rows, row)

    return jax.lax.fori_loop(0, n_steps, body, (state, empty))


def eval_step(program: Program, params_G: model_lib.Params, tokens_BT1: jax.Array, weights_BT: jax.Array) -> jax.Array:
    """Summed negative log-likelihood in nats, [G], over the tokens of weight 1."""
    return _token_losses(program, params_G, tokens_BT1, weights_BT).nll_G


def _token_losses(program: Program, params_G: Any, tokens_BT1: jax.Array, weights_BT: jax.Array) -> Losses:
    return loss_lib.token_losses(
        program.model,
        params_G,
        tokens_BT1,
        weights_BT,
        dtype=jnp.dtype(program.dtype),
        chunk=program.compute.loss_chunk,
        attend=program.compute.attention,
        remat=program.compute.remat,
        separator=program.separator,
    )

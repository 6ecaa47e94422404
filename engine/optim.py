"""Optimizers' directions without a learning rate (optax), and learning-rate schedules as pure functions of numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from engine import mup
from engine.config import OPTIMIZERS

if TYPE_CHECKING:
    from engine.config import OptimConfig

MUON_RMS = 0.2  # of an update's entries: about AdamW's, so that one learning rate serves both (Liu et al. 2025, eq. 4)
LEAST_SQUARE = 1e-30  # added to squared gradients by Adafactor at the least, as in its paper


class Method(NamedTuple):
    """The part of an `OptimConfig` that decides the program; hashable."""

    optimizer: str = "adamw"
    schedule: str = "cosine"
    parametrization: str = "standard"


class Hyper(NamedTuple):
    """The numbers of a trial, as float32 scalars ([G] for a population). Names as in `config.OptimConfig`."""

    lr: jax.Array
    final_lr: jax.Array
    final_fraction: jax.Array
    warmup_steps: jax.Array
    decay_fraction: jax.Array
    beta1: jax.Array
    beta2: jax.Array
    eps: jax.Array
    weight_decay: jax.Array
    clip_norm: jax.Array
    z_loss: jax.Array
    balance_loss: jax.Array
    router_z_loss: jax.Array
    router_bias_rate: jax.Array
    base_width: jax.Array
    steps: jax.Array  # horizon: optimizer steps in all


def method(config: OptimConfig) -> Method:
    """What of `config` the compiled step depends on."""
    return Method(config.optimizer, config.schedule, config.parametrization)


def learning_rate(schedule: str, step: jax.Array, hyper: Hyper) -> jax.Array:
    """The learning rate of optimizer step `step` (0 is the first): linear warm-up to lr, then down to the floor,
    final_lr + final_fraction lr, at which the last step runs.

    cosine: half a cosine over the remaining steps (Step Law's recipe with final_lr 1e-5).
    linear: a line over the remaining steps.
    wsd: constant, then linear over the last `decay_fraction` of all steps.
    constant: it stays at lr; the trunk of wsd runs (`engine.branch`).
    """
    count = step.astype(jnp.float32) + 1
    warmup = hyper.lr * jnp.minimum(1.0, count / jnp.maximum(hyper.warmup_steps, 1.0))
    floor = hyper.final_lr + hyper.final_fraction * hyper.lr
    after = hyper.steps - hyper.warmup_steps
    if schedule == "constant":
        return jnp.where(count < hyper.warmup_steps, warmup, hyper.lr)
    if schedule == "cosine":
        progress = (count - hyper.warmup_steps) / jnp.maximum(after, 1.0)
        remaining = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))
    else:
        decay_steps = after if schedule == "linear" else jnp.minimum(hyper.decay_fraction * hyper.steps, after)
        remaining = jnp.clip((hyper.steps - count) / jnp.maximum(decay_steps, 1), 0.0, 1.0)
    rate = floor + (hyper.lr - floor) * remaining
    if schedule == "wsd":
        rate = jnp.where(remaining < 1, rate, hyper.lr)  # to the last bit, else no run could branch from another
    return jnp.where(count < hyper.warmup_steps, warmup, rate)


def direction(method: Method, hyper: Hyper) -> optax.GradientTransformation:
    """Clip by global norm, the optimizer's direction, decoupled weight decay. Apply as params - lr * update.

    adamw: Adam's moments (Loshchilov & Hutter 2019).
    muon: momentum beta1, orthogonalised (Jordan 2024; Liu et al. 2025), of the blocks' matrices, an expert's or a
      layer's by itself, heads side by side; Adam for embedding, head, norms and routers. An update's RMS is `MUON_RMS`.
    lion: the sign of a mean of gradients (Chen et al. 2023); eps is not used. Wants a third of AdamW's learning rate.
    adafactor: of squared gradients only row and column means of each matrix (Shazeer & Stern 2018), forgetting as
      1 - step^-0.8 up to beta2 (Zhai et al. 2022), each matrix's update at an RMS of at most one; no first moment, so
      beta1 is not used; not relative to the weights, so that lr is AdamW's. eps^2 is added to squared gradients.

    Weight decay is of matrices, not of norms, router biases and the embedding table. With parametrization "mup" each
    leaf's direction is scaled before it (`mup.scale_directions`).
    """
    parts = [optax.clip_by_global_norm(hyper.clip_norm), _DIRECTIONS[method.optimizer](hyper)]
    if method.parametrization == "mup":
        scale = mup.scale_directions
        parts.append(optax.stateless(lambda updates, _: scale(updates, hyper.base_width, method.optimizer)))
    return optax.chain(*parts, optax.add_decayed_weights(hyper.weight_decay, mask=_decayed))


def init_moments(method: Method, params: Any) -> Any:
    """The optimizer's state of one model; it depends on no number."""
    return direction(method, Hyper(*(jnp.float32(0) for _ in Hyper._fields))).init(params)


def _adam(hyper: Hyper) -> optax.GradientTransformation:
    return optax.scale_by_adam(hyper.beta1, hyper.beta2, hyper.eps)


def _lion(hyper: Hyper) -> optax.GradientTransformation:
    return optax.scale_by_lion(hyper.beta1, hyper.beta2)


def _muon(hyper: Hyper) -> optax.GradientTransformation:
    scale_by_muon = optax.contrib.scale_by_muon(
        beta=hyper.beta1,
        eps=hyper.eps,
        weight_dimension_numbers=lambda tree: jax.tree_util.tree_map_with_path(_muon_axes, tree),
    )
    scale_by_shape = optax.stateless(lambda tree, _: jax.tree_util.tree_map_with_path(_to_adams_rms, tree))
    return optax.partition(
        {"muon": optax.chain(scale_by_muon, scale_by_shape), "adam": _adam(hyper)},
        lambda tree: jax.tree_util.tree_map_with_path(lambda p, _: "muon" if mup.is_hidden(p) else "adam", tree),
    )


def _muon_axes(path: Any, _: Any) -> optax.contrib.MuonDimensionNumbers:
    n_in, n_out = _n_axes(path)
    axes = range(-n_in - n_out, 0)
    return optax.contrib.MuonDimensionNumbers(tuple(axes[:n_in]), tuple(axes[n_in:]))


def _to_adams_rms(path: Any, x: jax.Array) -> jax.Array:
    """Orthogonal columns have entries of about max(in, out)^-1/2."""
    return MUON_RMS * max(_matrices(path, x).shape[-2:]) ** 0.5 * x


def _adafactor(hyper: Hyper) -> optax.GradientTransformation:
    def forget(step: jax.Array, exponent: float) -> jax.Array:
        return jnp.minimum(hyper.beta2, 1.0 - (step + 1.0) ** -exponent)

    matrix = optax.chain(
        optax.scale_by_factored_rms(
            min_dim_size_to_factor=1,  # every matrix: a ladder of widths would else change optimizers on the way
            epsilon=jnp.maximum(hyper.eps**2, LEAST_SQUARE),
            decay_rate_fn=forget,
        ),
        optax.clip_by_block_rms(1.0),
    )
    return _each_matrix(matrix)


_DIRECTIONS = {"adamw": _adam, "muon": _muon, "lion": _lion, "adafactor": _adafactor}
assert tuple(_DIRECTIONS) == OPTIMIZERS


def _each_matrix(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """`transform` applied to every layer's and expert's matrix (or vector) by itself."""

    def over(function: Any, path: Any, n_axes: int) -> Any:
        for _ in range(n_axes - (1 if _n_axes(path)[1] == 0 else 2)):
            function = jax.vmap(function)
        return function

    def init(params: Any) -> Any:
        def leaf(path: Any, p: jax.Array) -> Any:
            p = _matrices(path, p)
            return over(transform.init, path, p.ndim)(p)

        return jax.tree_util.tree_map_with_path(leaf, params)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        leaves = jax.tree_util.tree_flatten_with_path(updates)[0]
        treedef: Any = jax.tree.structure(updates)
        new = []
        for (path, u), s, p in zip(leaves, treedef.flatten_up_to(state), treedef.flatten_up_to(params)):
            u2, p2 = _matrices(path, u), _matrices(path, p)
            out, s = over(transform.update, path, u2.ndim)(u2, s, p2)
            new.append((out.reshape(u.shape), s))
        return treedef.unflatten([u for u, _ in new]), treedef.unflatten([s for _, s in new])

    return optax.GradientTransformation(init, update)


def _n_axes(path: Any) -> tuple[int, int]:
    """How many last axes of a leaf are a matrix's inputs and outputs; (1, 0) of a vector. Those before are layers and
    experts."""
    name = path[-1].key
    if name.endswith(("norm", "bias")):
        return 1, 0
    return {"q": (1, 2), "k": (1, 2), "v": (1, 2), "o": (2, 1)}.get(name, (1, 1))


def _matrices(path: Any, x: jax.Array) -> jax.Array:
    """[..., in, out], heads merged; of vectors [..., in]."""
    n_in, n_out = _n_axes(path)
    first, split = x.ndim - n_in - n_out, x.ndim - n_out
    parts = (x.shape[first:split], x.shape[split:])
    return x.reshape(*x.shape[:first], *(math.prod(part) for part in parts if part))


def _decayed(params: Any) -> Any:
    """True for matrices: not for norm scales and router biases, nor for the embedding table."""
    named = lambda path, _: not (path[-1].key.endswith(("norm", "bias")) or path[-1].key == "embed")  # noqa: E731
    return jax.tree_util.tree_map_with_path(named, params)

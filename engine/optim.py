"""AdamW's direction without a learning rate (optax), and learning-rate schedules as pure functions of numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Hyper(NamedTuple):
    """The numbers of a trial, as float32 scalars ([G] for a population). Names as in `config.OptimConfig`."""

    lr: jax.Array
    final_lr: jax.Array
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
    steps: jax.Array  # horizon: optimizer steps in all


def learning_rate(schedule: str, step: jax.Array, hyper: Hyper) -> jax.Array:
    """The learning rate of optimizer step `step` (0 is the first): linear warm-up to lr, then down to final_lr.

    cosine: half a cosine over the remaining steps (Step Law's recipe with final_lr 1e-5).
    wsd: constant, then linear over the last `decay_fraction` of all steps. The last step runs at final_lr.
    """
    count = step.astype(jnp.float32) + 1
    warmup = hyper.lr * jnp.minimum(1.0, count / jnp.maximum(hyper.warmup_steps, 1.0))
    if schedule == "cosine":
        progress = (count - hyper.warmup_steps) / jnp.maximum(hyper.steps - hyper.warmup_steps, 1.0)
        remaining = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))
    else:
        decay_steps = jnp.maximum(jnp.minimum(hyper.decay_fraction * hyper.steps, hyper.steps - hyper.warmup_steps), 1)
        remaining = jnp.clip((hyper.steps - count) / decay_steps, 0.0, 1.0)
    return jnp.where(count < hyper.warmup_steps, warmup, hyper.final_lr + (hyper.lr - hyper.final_lr) * remaining)


def adamw(hyper: Hyper) -> optax.GradientTransformation:
    """Clip by global norm, Adam moments, decoupled weight decay on matrices. Apply as params - lr * update."""
    return optax.chain(
        optax.clip_by_global_norm(hyper.clip_norm),
        optax.scale_by_adam(hyper.beta1, hyper.beta2, hyper.eps),
        optax.add_decayed_weights(hyper.weight_decay, mask=_decayed),
    )


def _decayed(params: Any) -> Any:
    """True for matrices: not for norm scales and router biases, nor for the embedding table."""
    named = lambda path, _: not (path[-1].key.endswith(("norm", "bias")) or path[-1].key == "embed")  # noqa: E731
    return jax.tree_util.tree_map_with_path(named, params)

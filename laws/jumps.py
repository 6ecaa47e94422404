"""Jumps across a posterior, between the steps of NUTS: to draws about normal approximations, taken or not by the rule
of Metropolis and Hastings (1970, Biometrika 57:97).

NUTS walks; from one mode to another, or down a narrow neck, it finds the way late or never. A jump goes there at once,
and is exact whatever the approximations are worth: they decide only how many jumps are taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import block_diag

from laws.normal import HELD, STEP, Mixture
from laws.whitening import Whitening

COMPONENTS = 64  # at most, and always: so that fits share programs
TAILS = 4.0  # degrees of freedom: from tails longer than its own a jump would hardly ever lead back


class Jumps(NamedTuple):
    """A mixture of Student-t distributions of white coordinates. means [component, k]; roots [component, k, k], L with
    L L^T the scale matrix, inverses of them, and logs of their determinants [component]; log weights [component]."""

    means: Any
    roots: Any
    inverses: Any
    volumes: Any
    weights: Any


def of(found: Mixture, way: Whitening) -> Jumps:
    """To draws of `found`, in the coordinates of `way`."""
    chosen = np.argsort(-found.weights)[:COMPONENTS]
    size = found.means.shape[1]
    held = size - len(found.own) - len(found.others)
    means, roots = np.zeros((COMPONENTS, size)), np.tile(np.eye(size), (COMPONENTS, 1, 1))
    for k, component in enumerate(chosen):
        mean, root = found.means[component], np.zeros((size, size))
        order = np.concatenate([found.own, found.others, np.arange(size - held, size)]).astype(int)
        root[np.ix_(order, order)] = block_diag(
            STEP * np.eye(len(found.own)), found.scales[component], HELD * np.eye(held)
        )
        means[k] = way.whiten(mean)
        roots[k] = way.whiten_root(mean, root)
    weights = np.zeros(COMPONENTS)
    weights[: len(chosen)] = found.weights[chosen]
    with np.errstate(divide="ignore"):
        parts = means, roots, np.linalg.inv(roots), np.linalg.slogdet(roots)[1], np.log(weights)
    return Jumps(*map(jnp.asarray, parts))


def log_density(jumps: Jumps, white: Any) -> Any:
    """Up to a constant."""
    apart = jnp.einsum("cij,cj->ci", jumps.inverses, white - jumps.means)
    tails = (TAILS + white.shape[0]) / 2 * jnp.log1p(jnp.sum(apart**2, axis=1) / TAILS)
    return jax.nn.logsumexp(jumps.weights - jumps.volumes - tails)


def jump(state: Any, jumps: Jumps, energy: Callable[[Any], Any]) -> Any:
    """numpyro's state of a chain after one: where it was, or elsewhere. energy: of white coordinates."""
    key, which, where, how_far, whether = jax.random.split(state.rng_key, 5)
    k = jax.random.categorical(which, jumps.weights)
    stretch = jnp.sqrt(TAILS / 2 / jax.random.gamma(how_far, TAILS / 2))
    there = jumps.means[k] + stretch * (jumps.roots[k] @ jax.random.normal(where, state.z.shape, state.z.dtype))
    value, slope = jax.value_and_grad(energy)(there)
    gain = state.potential_energy - value + log_density(jumps, state.z) - log_density(jumps, there)
    taken = jnp.log(jax.random.uniform(whether)) < gain  # never where the energy is not a number
    z, z_grad, potential_energy = jax.tree.map(
        lambda new, old: jnp.where(taken, new, old),
        (there, slope, value),
        (state.z, state.z_grad, state.potential_energy),
    )
    return state._replace(z=z, z_grad=z_grad, potential_energy=potential_energy, rng_key=key)

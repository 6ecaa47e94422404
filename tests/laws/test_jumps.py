"""Jumps leave a distribution as it is, whatever they are made of."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_t

from laws import jumps
from laws.normal import HELD, STEP, Mixture
from laws.whitening import straight

from .test_whitening import bending


class State(NamedTuple):
    """What `jumps.jump` needs of numpyro's."""

    z: Any
    potential_energy: Any
    z_grad: Any
    rng_key: Any


def energy(z):
    return jnp.sum(z**2) / 2


@pytest.fixture(scope="module")
def wrong():
    """Approximations of a standard normal that are off in place, width and weight."""
    means, scales = np.array([[1.0, -0.5], [-2.0, 1.0]]), np.array([[[0.9, 0.0], [0.5, 0.7]], np.eye(2)])
    return Mixture(np.array([], int), np.array([0, 1]), means, scales, np.array([0.8, 0.2]))


def test_they_leave_a_distribution_as_it_is(wrong):
    chains = 20_000
    with jax.enable_x64(True):
        leaps = jumps.of(wrong, straight(np.zeros(2), np.eye(2)))
        first = jax.random.normal(jax.random.key(0), (chains, 2))
        value, slope = jax.vmap(jax.value_and_grad(energy))(first)
        state = State(first, value, slope, jax.random.split(jax.random.key(1), chains))
        jump = jax.jit(jax.vmap(lambda one: jumps.jump(one, leaps, energy)))
        for _ in range(5):
            state = jump(state)
        np.testing.assert_allclose(state.potential_energy, jax.vmap(energy)(state.z), rtol=1e-12)
        np.testing.assert_allclose(state.z_grad, state.z, rtol=1e-12)
    assert np.mean(np.any(np.asarray(state.z != first), axis=1)) > 0.5
    z = np.asarray(state.z)
    np.testing.assert_allclose(z.mean(axis=0), 0.0, atol=0.03)
    np.testing.assert_allclose(np.cov(z.T), np.eye(2), atol=0.04)
    np.testing.assert_allclose(np.quantile(z, [0.05, 0.95], axis=0), [[-1.645] * 2, [1.645] * 2], atol=0.06)


def test_none_goes_where_the_energy_is_not_a_number(wrong):
    with jax.enable_x64(True):
        leaps = jumps.of(wrong, straight(np.zeros(2), np.eye(2)))
        state = State(jnp.zeros(2), jnp.zeros(()), jnp.zeros(2), jax.random.key(0))
        after = jumps.jump(state, leaps, lambda z: jnp.sum(z) * jnp.nan)
    assert np.all(np.asarray(after.z) == 0) and after.potential_energy == 0


def test_density_is_that_of_the_mixture_in_white_coordinates(wrong):
    root, mean, points = np.array([[2.0, 0.0], [0.3, 0.5]]), np.array([0.5, 1.0]), np.random.default_rng(0)
    with jax.enable_x64(True):
        leaps = jumps.of(wrong, straight(mean, root))
        at = points.standard_normal((5, 2))
        ours = np.array([jumps.log_density(leaps, x) for x in at])
    exact = sum(
        weight * multivariate_t(middle, scale @ scale.T, df=jumps.TAILS).pdf(mean + at @ root.T)
        for weight, middle, scale in zip(wrong.weights, wrong.means, wrong.scales)
    )
    np.testing.assert_allclose(ours - ours[0], np.log(exact) - np.log(exact[0]), rtol=1e-9)


def test_where_coordinates_bend_a_root_is_that_of_small_steps():
    found = bending()
    with jax.enable_x64(True):
        way = found.whitening()
        flat, small = found.means[2], 1e-6
        root = np.random.default_rng(1).standard_normal((3, 3))
        root[1] = 0.0  # within a knot's own value: how coordinates bend with it is left out
        steps = np.stack([way.whiten(flat + small * column) - way.whiten(flat) for column in root.T], axis=1) / small
        np.testing.assert_allclose(way.whiten_root(flat, root), steps, atol=1e-5)
        leaps = jumps.of(found, way)
    sizes = np.linalg.norm(np.asarray(leaps.roots)[:5, 1], axis=1)
    np.testing.assert_allclose(sizes, STEP / float(way.spread))


def test_held_sites_scatter_as_they_are_held():
    plain = Mixture(np.array([], int), np.array([0]), np.zeros((1, 2)), np.ones((1, 1, 1)), np.ones(1))
    with jax.enable_x64(True):
        leaps = jumps.of(plain, straight(np.zeros(2), np.eye(2)))
    np.testing.assert_allclose(leaps.roots[0], np.diag([1.0, HELD]))

"""Coordinates in which a posterior is close to a standard normal, for NUTS to walk in."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Whitening(NamedTuple):
    """A map from white coordinates [k] to unconstrained ones [k]: `mean + root @ white`, where both may bend with one
    coordinate, the logarithm of a standard deviation, on whose value it hangs how far the others scatter. (Unbent, a
    posterior in which it is large or next to nothing is a funnel, which no one step size fits.)

    own: 1 at that coordinate, 0 elsewhere [k]; all 0 where nothing bends. centre, spread: its mean and deviation.
    knots: its values [knot], evenly spaced, at which means [knot, k] and lower triangular roots [knot, k, k] are given,
    with zeros in its own row and column; one knot, and any root, where nothing bends.
    """

    own: Any
    centre: Any
    spread: Any
    knots: Any
    means: Any
    roots: Any

    def place(self, white: Any) -> tuple[Any, Any]:
        """(unconstrained coordinates, the map's log determinant up to a constant)."""
        if len(self.means) == 1:
            return self.means[0] + self.roots[0] @ white, 0.0
        u = self.centre + self.spread * (self.own @ white)
        mean, root = self._at(u)
        return mean + root @ white + self.own * u, jnp.sum(jnp.log(jnp.diagonal(root) + self.own))

    def whiten(self, flat: np.ndarray) -> np.ndarray:
        """The white coordinates of `flat` [k]."""
        own = np.asarray(self.own)
        u = own @ flat
        mean, root = self._at(u, np)
        white = np.linalg.solve(root + np.diag(own), flat - mean - own * u)
        return white + own * (u - self.centre) / self.spread

    def whiten_root(self, flat: np.ndarray, root: np.ndarray) -> np.ndarray:
        """White coordinates of small steps from `flat` [k], the columns of `root` [k, k]."""
        own = np.asarray(self.own)
        white = np.linalg.solve(self._at(own @ flat, np)[1] + np.diag(own), root)
        return white * (1 - own + own / self.spread)[:, None]

    def _at(self, u: Any, xp: Any = jnp) -> tuple[Any, Any]:
        """(mean, root) at a value of the coordinate with which they bend; xp is numpy or jax.numpy."""
        knots, means, roots = (xp.asarray(x) for x in (self.knots, self.means, self.roots))
        if len(means) == 1:
            return means[0], roots[0]
        t = xp.clip((u - knots[0]) / (knots[1] - knots[0]), 0, len(knots) - 1.001)
        k = xp.floor(t).astype(int)
        mean, root = (x[k] + (t - k) * (x[k + 1] - x[k]) for x in (means, roots))
        return mean, root


def straight(mean: Any, root: Any) -> Whitening:
    """Nothing bends. root: any factor of the covariance; its columns are the axes along which NUTS adapts its steps."""
    mean, root = jnp.asarray(mean), jnp.asarray(root)
    return Whitening(jnp.zeros(len(mean)), 0.0, 1.0, jnp.zeros(1), mean[None], root[None])


@jax.jit
def place_all(whitening: Whitening, white: Any) -> Any:
    """Unconstrained coordinates of white ones [chain, draw, k]."""
    return jax.vmap(jax.vmap(lambda one: whitening.place(one)[0]))(white)

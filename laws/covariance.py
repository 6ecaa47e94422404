"""The inverse of a covariance that changes from draw to draw, to be differentiated."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jax.scipy.linalg import solve_triangular


@jax.custom_jvp
def inverse(covariance: Any) -> tuple[Any, Any]:
    """(inverse, log determinant) of a positive definite matrix [k, k]."""
    return _inverse(covariance)


@inverse.defjvp
def _derivative(primals: Any, tangents: Any) -> Any:
    precision, log_determinant = inverse(*primals)
    (change,) = tangents
    return (precision, log_determinant), (-precision @ change @ precision, jnp.sum(precision * change))


@sequential_vmap  # XLA solves triangles in batches on the CPU by loops of its own, many times slower than LAPACK
def _inverse(covariance: Any) -> tuple[Any, Any]:
    root = jnp.linalg.cholesky(covariance)
    white = solve_triangular(root, jnp.eye(len(root), dtype=root.dtype), lower=True)
    return white.T @ white, 2 * jnp.sum(jnp.log(jnp.diagonal(root)))

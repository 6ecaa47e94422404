"""The mode of a numpyro model's unconstrained posterior, and normal approximations there.

float64 holds only inside `jax.enable_x64`: the process's own setting is untouched. Compiled programs are kept per
model, so that refits of the same shape (cross-validation) start at once.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro.infer.initialization import init_to_value
from numpyro.infer.util import constrain_fn, initialize_model, potential_energy
from scipy.linalg import block_diag
from scipy.optimize import minimize
from scipy.stats import norm

from laws.errors import FitError

AROUND, STEP = (-4, 9), 0.25  # where `sample` looks on both sides of the mode of a logarithm
HELD = 0.3  # how far held sites scatter about their start
SMALL_DATA = 2000  # numbers: below it compiling takes longer than sampling, and XLA had better not optimise
Model = Callable[[dict[str, Any]], None]
Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]


@dataclass(frozen=True)
class Samples:
    """draws: site -> [chain, draw, ...]; diagnostics: max_rhat, min_ess, divergences, draws, seconds, ...; facts: what
    else a posterior's meta should hold."""

    draws: dict[str, np.ndarray]
    diagnostics: dict[str, float]
    facts: dict[str, Any] = field(default_factory=dict)


def mode(
    model: Model, data: dict[str, Any], start: dict[str, Any], *, name: str, hold: Sequence[str] = ()
) -> dict[str, Any]:
    """Constrained values of every site, deterministic ones too, at the posterior's mode. hold: as `sample` has it."""
    with jax.enable_x64(True):
        data = {key: jnp.asarray(value) for key, value in data.items()}
        at, _ = find_mode(model, data, start, hold, name)
        out = constrained(model, data, at, ravel_pytree(at)[0][None, None])
    return {k: np.asarray(v)[0, 0] for k, v in out.items()}


def constrained(model: Model, data: dict[str, Any], mode: dict[str, dict], z: jax.Array) -> dict[str, jax.Array]:
    """Site -> constrained values [chain, draw, ...], deterministic ones too, of z [chain, draw, k], laid out as
    `mode`."""
    unravel = ravel_pytree(mode)[1]
    return _programs(model, options(data))["constrain"](jax.vmap(jax.vmap(lambda one: sites(unravel(one))))(z), data)


def options(data: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    small = sum(np.size(values) for values in data.values()) < SMALL_DATA
    return (("xla_backend_optimization_level", 0),) if small and jax.default_backend() == "cpu" else ()


@lru_cache(maxsize=16)
def _programs(model: Model, options: tuple[tuple[str, Any], ...]) -> dict[str, Callable]:
    jit = partial(jax.jit, compiler_options=dict(options))

    def energy(flat, free, held, data):
        return potential_energy(model, (data,), {}, ravel_pytree(free)[1](flat) | held)

    return {
        "value_and_grad": jit(jax.value_and_grad(energy)),
        "constrain": jit(
            lambda z, data: jax.vmap(
                jax.vmap(lambda one: constrain_fn(model, (data,), {}, one, return_deterministic=True))
            )(z)
        ),
    }


def find_mode(
    model: Model, data: dict[str, Any], start: dict[str, Any], hold: Sequence[str], name: str
) -> tuple[dict, jax.Array]:
    """The posterior mode in unconstrained space, {"free": site -> value, "held": ...}, and L with L L^T the inverse
    Hessian there."""
    values = {k: jnp.asarray(v, float) for k, v in start.items()}
    with warnings.catch_warnings():  # sites without a start are initialised at their prior's median: fine
        warnings.simplefilter("ignore")
        info = initialize_model(
            jax.random.key(0),
            model,
            init_strategy=init_to_value(values=values),
            model_args=(data,),
            validate_grad=False,
        )
    sites = info.param_info.z
    held, free = {k: sites[k] for k in hold}, {k: v for k, v in sites.items() if k not in hold}
    objective = _objective(model, data, free, held)
    flat = np.asarray(ravel_pytree(free)[0])
    flat = minimize(objective, flat, jac=True, method="L-BFGS-B", options={"maxiter": 600, "maxcor": 30}).x
    flat, value, scale = _newton(objective, flat, np.arange(len(flat)))
    if not np.isfinite(value):
        raise FitError(f"{name}: the fit has no finite starting point; check the losses for extreme values")
    mode = {"free": ravel_pytree(free)[1](jnp.asarray(flat)), "held": held}
    return mode, jnp.asarray(block_diag(scale, HELD * np.eye(len(ravel_pytree(held)[0]))))


def _objective(model: Model, data: dict[str, Any], free: dict, held: dict) -> Objective:
    """Minus the log density and its gradient, of flattened `free`."""
    programs = _programs(model, options(data))

    def objective(z: np.ndarray) -> tuple[float, np.ndarray]:
        value, grad = programs["value_and_grad"](z, free, held, data)
        return float(value), np.asarray(grad)

    return objective


def _newton(objective: Objective, at: np.ndarray, moving: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """(the minimum over the coordinates `moving`, its value, L with L L^T the inverse Hessian of those there).

    With Levenberg damping: L-BFGS alone stalls in the narrow valleys of these laws."""

    def gradient(z: np.ndarray) -> np.ndarray:
        return objective(_with(at, moving, z))[1][moving]

    z, (value, grad) = at[moving], objective(at)
    grad, damping = grad[moving], 1e-3
    for _ in range(100):
        eigen, vectors = np.linalg.eigh(_hessian(gradient, z))
        step = -vectors @ ((vectors.T @ grad) / (np.abs(eigen) + damping))
        tried, tried_grad = objective(_with(at, moving, z + step))
        if tried <= value:
            done = value - tried < 1e-6 and damping <= 1e-3  # a much damped step gains little anywhere
            z, value, grad, damping = z + step, tried, tried_grad[moving], max(damping / 10, 1e-6)
            if done:
                break
        else:
            damping *= 10
            if damping > 1e8:
                break
    eigen, vectors = np.linalg.eigh(_hessian(gradient, z))
    scale = vectors / np.sqrt(np.maximum(eigen, 0.1))  # flat directions: no wider than a few prior widths
    return _with(at, moving, z), value, scale


def _with(at: np.ndarray, moving: np.ndarray, z: np.ndarray) -> np.ndarray:
    out = at.copy()
    out[moving] = z
    return out


def mixture(model: Model, data: dict[str, Any], mode: dict[str, dict], over: str, white: np.ndarray) -> jax.Array:
    """Draws [draw, k], laid out as `mode`, of normal approximations at a row of values of `over`, a standard deviation
    whose joint mode with all else lies too low; white: [draw, k] standard normal."""
    objective, at = _objective(model, data, mode["free"], mode["held"]), np.array(ravel_pytree(mode["free"])[0])
    held = np.array(ravel_pytree(mode["held"])[0])
    own = np.flatnonzero(ravel_pytree({k: jnp.full(jnp.shape(v), k == over) for k, v in mode["free"].items()})[0])
    others = np.setdiff1d(np.arange(len(at)), own)
    steps = np.arange(*AROUND) * STEP
    found = {}
    for outward in (steps[steps >= 0], -np.sort(-steps[steps < 0])):
        z = at
        for step in outward:
            found[step] = z, *_ = _newton(objective, _with(z, own, at[own] + step), others)
    means, values, scales = zip(*(found[step] for step in steps))
    log_weight = np.array([np.linalg.slogdet(scale)[1] - value for value, scale in zip(values, scales)])
    weight = np.exp(log_weight - log_weight.max())
    # Each draw goes to a component, evenly; within it `over` is uniform about its value.
    k = np.searchsorted(np.cumsum(weight) / weight.sum(), (np.arange(len(white)) + 0.5) / len(white))
    draws = np.array(means)[k]
    draws[:, others] += np.einsum("dij,dj->di", np.array(scales)[k], white[:, others])
    draws[:, own] += STEP * (norm.cdf(white[:, own]) - 0.5)
    return jnp.asarray(np.concatenate([draws, held + HELD * white[:, len(at) :]], axis=1))


def _hessian(gradient: Callable[[np.ndarray], np.ndarray], at: np.ndarray) -> np.ndarray:
    """By central differences: a program of its own takes longer to compile than all else together."""
    steps = np.cbrt(np.finfo(float).eps) * np.maximum(1.0, np.abs(at))
    columns = [(gradient(at + e) - gradient(at - e)) / (2 * h) for h, e in zip(steps, np.diag(steps))]
    return (np.array(columns) + np.array(columns).T) / 2


def sites(mode: dict[str, dict]) -> dict[str, jax.Array]:
    return mode["free"] | mode["held"]


def sample(
    model: Model,
    data: dict[str, Any],
    start: dict[str, Any],
    *,
    name: str,
    hold: Sequence[str] = (),
    over: str = "",
    seed: int = 0,
    draws: int = 1000,
) -> Samples:
    """Independent draws from the normal approximation at the mode, in unconstrained space, as one chain: some tenths of
    a second where `sample` takes several, for hold-outs by the dozen. hold: as `sample` has it; these scatter about
    their start.

    over: a positive site whose joint mode lies too low (a standard deviation, estimated with all else at its best): the
    approximation is made at each of a row of its values, and these are mixed by their marginal densities (Rue, Martino
    and Chopin 2009, J. R. Stat. Soc. B 71:319)."""
    begun = time.perf_counter()
    with jax.enable_x64(True):
        data = {key: jnp.asarray(value) for key, value in data.items()}
        at, scale = find_mode(model, data, start, hold, name)
        white = jax.random.normal(jax.random.key(seed), (draws, scale.shape[0]))
        z = mixture(model, data, at, over, np.asarray(white)) if over else ravel_pytree(at)[0] + white @ scale.T
        out = constrained(model, data, at, z[None])
    diagnostics = {"laplace": 1.0, "draws": float(draws), "divergences": 0.0, "seconds": time.perf_counter() - begun}
    return Samples({k: np.asarray(v) for k, v in out.items()}, diagnostics)

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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.distributions.transforms import biject_to
from numpyro.infer.initialization import init_to_value
from numpyro.infer.util import constrain_fn, potential_energy
from scipy.linalg import block_diag
from scipy.optimize import minimize
from scipy.stats import norm

from laws import threads
from laws.errors import FitError
from laws.whitening import Whitening

AROUND, STEP = (-8, 13), 0.4  # where `sample` looks on both sides of the mode of a logarithm
UNLIKELY = 12.0  # a mode's log weight below the best one's at which it is dropped
APART = 0.5  # standard deviations: modes nearer than this are one
NEWTON, GAIN = 100, 1e-6  # steps at most; of log density, below which a step is not worth taking
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
    model: Model,
    data: dict[str, Any],
    start: dict[str, Any],
    *,
    name: str,
    hold: Sequence[str] = (),
    others: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Constrained values of every site, deterministic ones too, at the posterior's mode. hold, others: as `sample` has
    them."""
    with jax.enable_x64(True):
        data = {key: jnp.asarray(value) for key, value in data.items()}
        at, _ = find_modes(model, data, [start, *others], hold, name)[0]
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


def find_modes(
    model: Model, data: dict[str, Any], starts: Sequence[dict[str, Any]], hold: Sequence[str], name: str
) -> list[tuple[dict, jax.Array]]:
    """The posterior's modes that climbing from each of `starts` leads to, in unconstrained space, {"free": site ->
    value, "held": ...}, and L with L L^T the inverse Hessian there; that with most probability about it first."""
    found: list[tuple[dict, jax.Array, float]] = []
    for start in starts:
        mode, scale, log_weight = _climb(model, data, start, hold)
        if np.isfinite(log_weight) and not any(_same(mode, scale, other) for other, *_ in found):
            found.append((mode, scale, log_weight))
    if not found:
        raise FitError(f"{name}: the fit has no finite starting point; check the losses for extreme values")
    found.sort(key=lambda one: -one[2])
    return [(mode, scale) for mode, scale, log_weight in found if log_weight > found[0][2] - UNLIKELY]


@threads.one()
def log_evidence(model: Model, data: dict[str, Any], start: dict[str, Any], *, hold: Sequence[str] = ()) -> float:
    """Of the model, all its densities normalised, by the normal approximation at its mode; held sites as they are."""
    with jax.enable_x64(True):
        data = {key: jnp.asarray(value) for key, value in data.items()}
        mode, _, log_weight = _climb(model, data, start, hold)
        return log_weight + len(ravel_pytree(mode["free"])[0]) * np.log(2 * np.pi) / 2


def _same(mode: dict, scale: jax.Array, other: dict) -> bool:
    apart = ravel_pytree(mode)[0] - ravel_pytree(other)[0]
    return bool(np.linalg.norm(np.linalg.solve(scale, apart)) < APART)


def _climb(
    model: Model, data: dict[str, Any], start: dict[str, Any], hold: Sequence[str]
) -> tuple[dict, jax.Array, float]:
    """(mode, L, log of the probability about it by the normal approximation, up to a constant)."""
    values = {k: jnp.asarray(v, float) for k, v in start.items()}
    with warnings.catch_warnings():  # sites without a start are initialised by numpyro: fine
        warnings.simplefilter("ignore")
        begun = handlers.substitute(handlers.seed(model, 0), substitute_fn=init_to_value(values=values))
        trace = handlers.trace(begun).get_trace(data)
    drawn = {name: site for name, site in trace.items() if site["type"] == "sample" and not site["is_observed"]}
    sites = {name: biject_to(site["fn"].support).inv(site["value"]) for name, site in drawn.items()}
    held, free = {k: sites[k] for k in hold}, {k: v for k, v in sites.items() if k not in hold}
    objective = _objective(model, data, free, held)
    flat = np.asarray(ravel_pytree(free)[0])
    flat = minimize(objective, flat, jac=True, method="L-BFGS-B", options={"maxiter": 600, "maxcor": 30}).x
    flat, value, scale = _newton(objective, flat, np.arange(len(flat)))
    mode = {"free": ravel_pytree(free)[1](jnp.asarray(flat)), "held": held}
    whole = jnp.asarray(block_diag(scale, HELD * np.eye(len(ravel_pytree(held)[0]))))
    return mode, whole, np.linalg.slogdet(scale)[1] - value


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
    for _ in range(NEWTON):
        eigen, vectors = np.linalg.eigh(_hessian(gradient, z))
        down, curvature = vectors.T @ grad, np.abs(eigen)
        if np.sum(down**2 / np.maximum(curvature, 1e-3)) / 2 < GAIN:
            break
        while damping < 1e8:
            step = -vectors @ (down / (curvature + damping))
            tried, tried_grad = objective(_with(at, moving, z + step))
            if tried <= value:
                z, value, grad, damping = z + step, tried, tried_grad[moving], max(damping / 10, 1e-6)
                break
            damping *= 10
        else:
            break
    scale = vectors / np.sqrt(np.maximum(eigen, 0.1))  # flat directions: no wider than a few prior widths
    return _with(at, moving, z), value, scale


def _with(at: np.ndarray, moving: np.ndarray, z: np.ndarray) -> np.ndarray:
    out = at.copy()
    out[moving] = z
    return out


class Mixture(NamedTuple):
    """Normal approximations [component] of a posterior. own: index [1] of the coordinate that has a value in each, [0]
    where there is none; others: of the rest that is free. Held sites come last."""

    own: np.ndarray
    others: np.ndarray
    means: np.ndarray  # [component, k]
    scales: np.ndarray  # [component, other, other]; L with L L^T the covariance
    weights: np.ndarray  # sum to 1

    def draws(self, white: np.ndarray) -> np.ndarray:
        """[draw, k], in the order of the components, from standard normals [draw, k]."""
        # Each draw goes to a component, evenly; within it `own` is uniform about its value.
        k = np.searchsorted(np.cumsum(self.weights), (np.arange(len(white)) + 0.5) / len(white))
        draws = self.means[k]
        for component in np.unique(k):
            mine = np.ix_(k == component, self.others)
            draws[mine] += white[mine] @ self.scales[component].T
        draws[:, self.own] += STEP * (norm.cdf(white[:, self.own]) - 0.5)
        held = len(self.own) + len(self.others)
        draws[:, held:] += HELD * white[:, held:]
        return draws

    def whitening(self) -> Whitening:
        """That bends with `own`; of means and covariances of several components of one value together."""
        if not len(self.own):
            raise ValueError("a mixture over nothing does not bend")
        own, u = np.zeros(self.means.shape[1]), self.means[:, self.own[0]]
        own[self.own] = 1.0
        centre = self.weights @ u
        spread = np.sqrt(self.weights @ (u - centre) ** 2 + STEP**2 / 12)
        knots = np.unique(np.round(u, 9))
        at = [self._moments(np.isclose(u, knot, atol=1e-6)) for knot in knots]
        return Whitening(*map(jnp.asarray, (own, centre, spread, knots, *map(np.array, zip(*at)))))

    def _moments(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(mean [k], root [k, k]) of the others, given some components."""
        weights, means = self.weights[chosen] + 1e-300, self.means[chosen]
        mean = weights @ means / weights.sum()
        apart = (means - mean)[:, self.others]
        spread = [scale @ scale.T + np.outer(a, a) for scale, a in zip(self.scales[chosen], apart)]
        root = HELD * np.diag(np.arange(len(mean)) >= len(self.own) + len(self.others))
        root[np.ix_(self.others, self.others)] = np.linalg.cholesky(
            np.einsum("c,cij->ij", weights, spread) / weights.sum()
        )
        mean[self.own] = 0.0
        return mean, root


def mixture(model: Model, data: dict[str, Any], modes: Sequence[dict[str, dict]], over: str) -> Mixture:
    """Of normal approximations at each of `modes`, and there at a row of values of `over` (none if ""), a standard
    deviation whose joint mode with all else lies too low."""
    first = modes[0]
    objective, held = _objective(model, data, first["free"], first["held"]), np.array(ravel_pytree(first["held"])[0])
    own = np.flatnonzero(ravel_pytree({k: jnp.full(jnp.shape(v), k == over) for k, v in first["free"].items()})[0])
    flat = [np.array(ravel_pytree(mode["free"])[0]) for mode in modes]
    others = np.setdiff1d(np.arange(len(flat[0])), own)
    found: list[tuple[np.ndarray, float, np.ndarray]] = []
    for at in flat:
        new = _along(objective, at, own, flat[0][own], others)
        found += [one for one in new if not any(_one(one, other, others) for other in found)]
    means, values, scales = zip(*found)
    log_weight = np.array([np.linalg.slogdet(scale)[1] - value for value, scale in zip(values, scales)])
    weight = np.exp(log_weight - log_weight.max())
    whole = np.concatenate([np.array(means), np.tile(held, (len(means), 1))], axis=1)
    return Mixture(own, others, whole, np.array(scales), weight / weight.sum())


def _along(
    objective: Objective, at: np.ndarray, own: np.ndarray, middle: np.ndarray, others: np.ndarray
) -> list[tuple[np.ndarray, float, np.ndarray]]:
    """`_newton` over `others` at a row of values of the coordinate `own` about `middle`, from `at` outward."""
    steps = np.arange(*AROUND) * STEP if len(own) else np.zeros(1)
    nearest = steps[np.argmin(np.abs(middle + steps - at[own]))] if len(own) else 0.0
    found = []
    for outward in (steps[steps >= nearest], steps[steps < nearest][::-1]):
        z = at
        for step in outward:
            z, value, scale = _newton(objective, _with(z, own, middle + step), others)
            found.append((z, value, scale))
    return found


def _one(a: tuple[np.ndarray, float, np.ndarray], b: tuple[np.ndarray, float, np.ndarray], others: np.ndarray) -> bool:
    """Whether two of `_along` are the same: modes can merge on the way."""
    same_own = np.allclose(np.delete(a[0], others), np.delete(b[0], others))
    return same_own and bool(np.linalg.norm(np.linalg.solve(a[2], (a[0] - b[0])[others])) < APART)


def _hessian(gradient: Callable[[np.ndarray], np.ndarray], at: np.ndarray) -> np.ndarray:
    """By central differences: a program of its own takes longer to compile than all else together."""
    steps = np.cbrt(np.finfo(float).eps) * np.maximum(1.0, np.abs(at))
    columns = [(gradient(at + e) - gradient(at - e)) / (2 * h) for h, e in zip(steps, np.diag(steps))]
    return (np.array(columns) + np.array(columns).T) / 2


def sites(mode: dict[str, dict]) -> dict[str, jax.Array]:
    return mode["free"] | mode["held"]


@threads.one()
def sample(
    model: Model,
    data: dict[str, Any],
    start: dict[str, Any],
    *,
    name: str,
    hold: Sequence[str] = (),
    others: Sequence[dict[str, Any]] = (),
    over: str = "",
    seed: int = 0,
    draws: int = 1000,
) -> Samples:
    """Independent draws from the normal approximation at the mode, in unconstrained space, as one chain: some tenths of
    a second where `sampler.sample` takes several, for hold-outs by the dozen. hold: as `sampler.sample` has it; these
    scatter about their start.

    others: further starts, where there may be several modes: their approximations are mixed by their probabilities.

    over: a positive site whose joint mode lies too low (a standard deviation, estimated with all else at its best): the
    approximation is made at each of a row of its values, and these are mixed by their marginal densities (Rue, Martino
    and Chopin 2009, J. R. Stat. Soc. B 71:319)."""
    begun = time.perf_counter()
    with jax.enable_x64(True):
        data = {key: jnp.asarray(value) for key, value in data.items()}
        modes = [mode for mode, _ in find_modes(model, data, [start, *others], hold, name)]
        white = jax.random.normal(jax.random.key(seed), (draws, len(ravel_pytree(modes[0])[0])))
        z = mixture(model, data, modes, over).draws(np.asarray(white))
        out = constrained(model, data, modes[0], jnp.asarray(z)[None])
    diagnostics = {"laplace": 1.0, "draws": float(draws), "divergences": 0.0, "seconds": time.perf_counter() - begun}
    return Samples({k: np.asarray(v) for k, v in out.items()}, diagnostics)

"""NUTS for a numpyro model, whitened: float64, vectorized chains, diagnostics that refuse a bad fit.

The model's unconstrained posterior is first maximised; a factor of the inverse Hessian there turns it into something
close to a standard normal, and so, once more, does the covariance of a short first run: NUTS then needs few steps
whatever the scales and correlations of the parameters. Compiled programs are kept per model, so that refits of the same
shape (cross-validation) start at once. float64 holds only inside `jax.enable_x64`: the process's own setting is
untouched.
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
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer.hmc import hmc
from numpyro.infer.initialization import init_to_value
from numpyro.infer.util import constrain_fn, initialize_model, potential_energy
from scipy.linalg import block_diag
from scipy.optimize import minimize
from scipy.stats import norm, rankdata

from laws.errors import FitError

CHUNK = 50  # iterations a compiled call: between calls progress is reported
EXTENSIONS = 4  # times that sampling goes on if chains have not mixed
HOPELESS = 0.5  # share of the wanted effective draws that going on must promise
AROUND, STEP = (-4, 9), 0.25  # where `laplace` looks on both sides of the mode of a logarithm
SMALL_DATA = 2000  # numbers: below it compiling takes longer than sampling, and XLA had better not optimise
MAX_RHAT = 1.01
MIN_ESS = 400.0
Model = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Samples:
    """draws: site -> [chain, draw, ...]; diagnostics: max_rhat, min_ess, divergences, draws, seconds, ...; facts: what
    else a posterior's meta should hold."""

    draws: dict[str, np.ndarray]
    diagnostics: dict[str, float]
    facts: dict[str, Any] = field(default_factory=dict)


def sample(
    model: Model,
    data: dict[str, Any],
    start: dict[str, Any],
    *,
    name: str,
    hold: Sequence[str] = (),
    seed: int = 0,
    num_warmup: int = 400,
    num_samples: int = 500,
    chains: int = 4,
    on_progress: Callable[[int, int], None] | None = None,
) -> Samples:
    """Draws from the posterior of `model(data)`.

    data: arrays and numbers, passed to the model. start: constrained values near the mode for any of its sites.
    hold: scales of hierarchical terms, kept at their start while the mode is sought (the joint mode is degenerate).
    If chains have not mixed, sampling goes on (EXTENSIONS times at most); if any draw diverges, all start again with
    smaller steps.
    Raises FitError, starting with `name`, if R-hat > 1.01, bulk ESS < 400 or over 1% of draws diverge after that.
    """
    begun = time.perf_counter()
    with jax.enable_x64(True):
        data = {key: jnp.asarray(value) for key, value in data.items()}
        mode, scale = find_mode(model, data, start, hold, name)
        done = 0
        for accept in (0.8, 0.98):
            half = num_warmup // 2
            run = _Run(model, data, mode, scale, accept, seed, chains, half, on_progress, done)
            run.extend(half, then=half + num_samples)
            run = run.rewhitened(accept, seed + 1, half)
            run.extend(num_samples)
            for _ in range(EXTENSIONS):
                settled = run.rhat <= MAX_RHAT and run.ess >= MIN_ESS
                if settled or run.ess * (EXTENSIONS + 1) * num_samples < HOPELESS * MIN_ESS * run.draws:
                    break
                run.extend(num_samples)
            if run.divergences == 0:
                break
            done = run.done
        diverged = run.divergences / (run.draws * chains)
        if run.rhat > MAX_RHAT or run.ess < MIN_ESS or diverged > 0.01:
            raise FitError(
                f"{name}: the sampler did not settle (R-hat {run.rhat:.3f}, want at most {MAX_RHAT}; {run.ess:.0f} "
                f"effective draws, want {MIN_ESS:.0f}; {run.divergences} divergences in {run.draws * chains} draws): "
                "the runs do not pin this law down; add model sizes or token budgets, or raise num_samples"
            )
        draws = {k: np.asarray(v) for k, v in run.constrained().items()}
    diagnostics = {
        "max_rhat": run.rhat,
        "min_ess": run.ess,
        "divergences": float(run.divergences),
        "draws": float(run.draws * chains),
        "mean_steps": run.mean_steps,
        "seconds": time.perf_counter() - begun,
    }
    return Samples(draws, diagnostics)


def laplace(
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
        if over:
            z = _mixture(model, data, at, over, np.asarray(white))
        else:
            flat, unravel = ravel_pytree(at)
            z = jax.vmap(lambda one: _sites(unravel(flat + scale @ one)))(white)
        out = _programs(model, _options(data))["constrain"]({k: v[None] for k, v in z.items()}, data)
    diagnostics = {"laplace": 1.0, "draws": float(draws), "divergences": 0.0, "seconds": time.perf_counter() - begun}
    return Samples({k: np.asarray(v) for k, v in out.items()}, diagnostics)


# --- the mode --------------------------------------------------------------------------------------------------------


def mode(
    model: Model, data: dict[str, Any], start: dict[str, Any], *, name: str, hold: Sequence[str] = ()
) -> dict[str, Any]:
    """Constrained values of every site, deterministic ones too, at the posterior's mode. hold: as `sample` has it."""
    with jax.enable_x64(True):
        data = {key: jnp.asarray(value) for key, value in data.items()}
        at, scale = find_mode(model, data, start, hold, name)
        out = _constrained(model, data, at, scale, jnp.zeros((1, 1, scale.shape[0])))
    return {k: np.asarray(v)[0, 0] for k, v in out.items()}


def _constrained(
    model: Model, data: dict[str, Any], at: dict[str, dict], scale: jax.Array, white: jax.Array
) -> dict[str, jax.Array]:
    """Site -> constrained values [chain, draw, ...] of whitened ones."""
    flat, unravel = ravel_pytree(at)
    z = jax.vmap(jax.vmap(lambda one: _sites(unravel(flat + scale @ one))))(white)
    return _programs(model, _options(data))["constrain"](z, data)


def _options(data: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
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
    return mode, jnp.asarray(block_diag(scale, 0.3 * np.eye(len(ravel_pytree(held)[0]))))


Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]


def _objective(model: Model, data: dict[str, Any], free: dict, held: dict) -> Objective:
    """Minus the log density and its gradient, of flattened `free`."""
    programs = _programs(model, _options(data))

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
    for _ in range(40):
        eigen, vectors = np.linalg.eigh(_hessian(gradient, z))
        step = -vectors @ ((vectors.T @ grad) / (np.abs(eigen) + damping))
        tried, tried_grad = objective(_with(at, moving, z + step))
        if tried <= value:
            done = value - tried < 1e-6
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


def _mixture(
    model: Model, data: dict[str, Any], mode: dict[str, dict], over: str, white: np.ndarray
) -> dict[str, jax.Array]:
    """Unconstrained draws [draw, ...] from normal approximations at a row of values of `over`; white: [draw, k] standard
    normal."""
    flat, unravel = ravel_pytree(mode["free"])
    held, unravel_held = ravel_pytree(mode["held"])
    objective, at = _objective(model, data, mode["free"], mode["held"]), np.array(flat)
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
    scatter = held + 0.3 * white[:, len(at) :]
    return jax.vmap(lambda one, about: unravel(one) | unravel_held(about))(jnp.asarray(draws), jnp.asarray(scatter))


def _hessian(gradient: Callable[[np.ndarray], np.ndarray], at: np.ndarray) -> np.ndarray:
    """By central differences: a program of its own takes longer to compile than all else together."""
    steps = np.cbrt(np.finfo(float).eps) * np.maximum(1.0, np.abs(at))
    columns = [(gradient(at + e) - gradient(at - e)) / (2 * h) for h, e in zip(steps, np.diag(steps))]
    return (np.array(columns) + np.array(columns).T) / 2


def _sites(mode: dict[str, dict]) -> dict[str, jax.Array]:
    return mode["free"] | mode["held"]


# --- the chains ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def _kernel(
    model: Model, num_warmup: int, accept: float, options: tuple[tuple[str, Any], ...]
) -> tuple[Callable, Callable]:
    """Jitted (start, advance) for NUTS on the whitened posterior, vmapped over chains."""

    def potential_fn_gen(data, mode, scale):
        flat, unravel = ravel_pytree(mode)
        return lambda white: potential_energy(model, (data,), {}, _sites(unravel(flat + scale @ white)))

    init_kernel, sample_kernel = hmc(potential_fn_gen=potential_fn_gen, algo="NUTS")

    def start(white, key, *args):
        return init_kernel(
            white, num_warmup, step_size=0.5, target_accept_prob=accept, max_tree_depth=8, model_args=args, rng_key=key
        )

    def advance(state, *args):
        def one(state, _):
            state = sample_kernel(state, model_args=args)
            return state, (state.z, state.diverging, state.num_steps)

        return jax.lax.scan(one, state, None, length=CHUNK)

    none = (None, None, None)
    jit = partial(jax.jit, compiler_options=dict(options))
    return jit(jax.vmap(start, in_axes=(0, 0, *none))), jit(jax.vmap(advance, in_axes=(0, *none)))


class _Run:
    """Chains that can go on. `draws` counts kept draws a chain."""

    def __init__(self, model, data, mode, scale, accept, seed, chains, num_warmup, on_progress, done=0):
        self.model, self.data, self.mode, self.scale = model, data, mode, scale
        self.on_progress, self.done = on_progress, done
        self.warmup = -(-num_warmup // CHUNK) * CHUNK
        start, self.advance = _kernel(model, self.warmup, accept, _options(data))
        keys = jax.random.split(jax.random.key(seed), 2 * chains)
        white = jax.vmap(lambda key: jax.random.normal(key, (scale.shape[0],)))(keys[:chains])
        self.state = start(white, keys[chains:], data, mode, scale)
        self.white: list[np.ndarray] = []
        self.draws, self.divergences, self.mean_steps = 0, 0, 0.0
        self.rhat, self.ess = np.inf, 0.0

    def rewhitened(self, accept: float, seed: int, num_warmup: int) -> _Run:
        """Fresh chains, whitened by these draws' covariance, shrunk towards the identity by their number."""
        white = np.concatenate(self.white, axis=1).reshape(-1, self.scale.shape[0])
        weight = len(white) / (len(white) + white.shape[1])
        covariance = weight * np.cov(white.T) + (1 - weight) * np.eye(white.shape[1])
        flat, unravel = ravel_pytree(self.mode)
        mode = unravel(flat + self.scale @ white.mean(axis=0))
        scale = self.scale @ np.linalg.cholesky(covariance)
        chains = self.state.i.shape[0]
        return _Run(self.model, self.data, mode, scale, accept, seed, chains, num_warmup, self.on_progress, self.done)

    def extend(self, draws: int, then: int = 0) -> None:
        """Adds `draws` draws a chain (after the warm-up, the first time) and renews the diagnostics.

        then: iterations that will follow, for the progress report.
        """
        warmup = 0 if self.white else self.warmup // CHUNK
        chunks = warmup + -(-draws // CHUNK)
        steps = []
        for k in range(chunks):
            self.state, (white, diverging, num_steps) = self.advance(self.state, self.data, self.mode, self.scale)
            if k >= warmup:
                self.white.append(np.asarray(white))
                self.divergences += int(np.sum(diverging))
                steps.append(float(np.mean(num_steps)))
                self.draws += CHUNK
            self.done += CHUNK
            if self.on_progress:
                self.on_progress(self.done, self.done + (chunks - k - 1) * CHUNK + -(-then // CHUNK) * CHUNK)
        self.mean_steps = float(np.mean(steps))
        white = np.concatenate(self.white, axis=1)
        # Whitened coordinates and the parameters themselves: both must have mixed.
        flat = np.asarray(ravel_pytree(self.mode)[0]) + white @ np.asarray(self.scale).T
        both = np.concatenate([white, flat], axis=2)
        self.rhat, self.ess = rank_diagnostics(both)

    def constrained(self) -> dict[str, jax.Array]:
        """Site -> constrained draws [chain, draw, ...], deterministic sites included."""
        white = jnp.asarray(np.concatenate(self.white, axis=1))
        return _constrained(self.model, self.data, self.mode, self.scale, white)


def rank_diagnostics(draws: np.ndarray) -> tuple[float, float]:
    """Largest R-hat and smallest bulk ESS over columns of draws [chain, draw, column]; rank-normalised and split
    (Vehtari et al. 2021)."""
    chains, n, columns = draws.shape
    ranks = rankdata(draws.reshape(chains * n, columns), axis=0).reshape(draws.shape)
    normal = norm.ppf((ranks - 0.375) / (chains * n + 0.25))
    half = n // 2
    split = np.concatenate([normal[:, :half], normal[:, half : 2 * half]])
    return float(np.max(split_gelman_rubin(normal))), float(np.min(effective_sample_size(split)))

"""NUTS for a numpyro model, whitened: float64, vectorized chains, diagnostics that refuse a bad fit.

The posterior is turned into something close to a standard normal, by a factor of the inverse Hessian at its mode and
then of the covariance of a short first run (where its draws are enough to tell better), or at once by that of a mixture
of normal approximations, by which chains then also jump (`laws.jumps`): NUTS needs few steps whatever the scales and
correlations of the parameters. Compiled programs are kept per model, so that refits of the same shape start at once.
float64 holds only inside `jax.enable_x64`: the process's own setting is untouched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer.hmc import hmc
from numpyro.infer.util import potential_energy
from scipy.stats import norm, rankdata

from laws import jumps, threads
from laws.errors import FitError
from laws.jumps import Jumps
from laws.normal import Model, Samples, constrained, find_modes, mixture, options, sites
from laws.whitening import Whitening, place_all, straight

CHUNK = 50  # iterations a compiled call: between calls progress is reported
EXTENSIONS = 9  # times that sampling goes on if chains have not mixed
HOPELESS = 0.5  # share of the wanted effective draws that going on must promise
MAX_RHAT = 1.01
MIN_ESS = 400.0
NORMAL = 4000  # draws of the normal approximations
ENOUGH = 10  # draws a coordinate: the covariance of fewer is noisier than the inverse Hessian is wrong
MANY = 0.7  # acceptance aimed at with more coordinates than that: longer steps, no more of them
FEW = 0.002  # share of draws that may diverge before all start again with smaller steps
TOO_MANY = 0.01  # share at which those are refused
WILD = 0.05  # share at which they do not go on: a chain may get stuck in a tail for a while, until it jumps


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
    num_warmup: int = 400,
    num_samples: int = 500,
    chains: int = 4,
    on_progress: Callable[[int, int], None] | None = None,
) -> Samples:
    """Draws from the posterior of `model(data)`.

    data: arrays and numbers, passed to the model. start: constrained values near the mode for any of its sites.
    hold: scales of hierarchical terms, kept at their start while the mode is sought (the joint mode is degenerate).
    others: further starts, where there may be several modes: chains start at each in proportion to its probability.
    over: as `laws.normal.mixture` has it, which then whitens in place of a first run; there is none either where its
    draws were too few to.
    If chains have not mixed, sampling goes on (EXTENSIONS times at most); if more than a FEW draws diverge, all start
    again with smaller steps.
    Raises FitError, starting with `name`, if R-hat > 1.01, bulk ESS < 400 or over 1% of draws diverge after that.
    """
    begun = time.perf_counter()
    with jax.enable_x64(True):
        data = {key: jnp.asarray(value) for key, value in data.items()}
        modes = find_modes(model, data, [start, *others], hold, name)
        mode, mixed = modes[0][0], over or len(modes) > 1
        way, begin, leaps = whitened(model, data, modes, over, chains, seed)
        done, half = 0, num_warmup // 2
        first_run = not mixed and chains * half >= ENOUGH * len(way.own)
        for accept, most, wild in ((0.8 if first_run or mixed else MANY, FEW, FEW), (0.98, TOO_MANY, WILD)):
            run = _Run(model, data, mode, way, accept, seed, chains, half, on_progress, done, begin, leaps)
            if first_run:
                run.extend(half, then=half + num_samples)
                run = run.rewhitened(accept, seed + 1, half)
            run.extend(num_samples)
            for _ in range(EXTENSIONS):
                settled = run.rhat <= MAX_RHAT and run.ess >= MIN_ESS and run.diverged <= most
                hopeless = run.ess * (EXTENSIONS + 1) * num_samples < HOPELESS * MIN_ESS * run.draws
                if settled or hopeless or run.diverged > wild:
                    break
                run.extend(num_samples)
            if run.diverged <= most:
                break
            done = run.done
        if run.rhat > MAX_RHAT or run.ess < MIN_ESS or run.diverged > TOO_MANY:
            raise FitError(
                f"{name}: the sampler did not settle (R-hat {run.rhat:.3f}, want at most {MAX_RHAT}; {run.ess:.0f} "
                f"effective draws, want {MIN_ESS:.0f}; {run.diverged:.1%} of {run.draws * chains} draws diverged, want "
                f"at most {TOO_MANY:.0%}): "
                "the runs do not pin this law down; add model sizes or token budgets, or in Python raise num_samples"
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


def whitened(
    model: Model,
    data: dict[str, Any],
    modes: Sequence[tuple[dict[str, dict], jax.Array]],
    over: str,
    chains: int,
    seed: int,
) -> tuple[Whitening, jax.Array | None, Jumps | None]:
    """(whitening, where `chains` start in it, jumps), given `laws.normal.find_modes`: by its one mode, with no starts
    and no jumps; or, of several modes or with `over`, by `laws.normal.mixture`, and spread over it, so that chains that
    find the same have found all of it that weighs as much as one of them."""
    if not over and len(modes) == 1:
        mode, scale = modes[0]
        return straight(ravel_pytree(mode)[0], scale), None, None
    found = mixture(model, data, [mode for mode, _ in modes], over)
    z = found.draws(np.random.default_rng(seed).standard_normal((NORMAL, found.means.shape[1])))
    way = found.whitening() if over else straight(z.mean(axis=0), np.linalg.cholesky(np.cov(z.T)))
    spread = z[((np.arange(chains) + 0.5) / chains * NORMAL).astype(int)]
    return way, jnp.asarray([way.whiten(one) for one in spread]), jumps.of(found, way)


# --- the chains ------------------------------------------------------------------------------------------------------


def potential(model: Model) -> Callable:
    """(data, a mode for its layout, whitening) -> potential energy of white coordinates [k]."""

    def of(data, mode, way):
        unravel = ravel_pytree(mode)[1]

        def energy(white):
            flat, log_det = way.place(white)
            return potential_energy(model, (data,), {}, sites(unravel(flat))) - log_det

        return energy

    return of


@lru_cache(maxsize=32)
def _kernel(
    model: Model, num_warmup: int, accept: float, options: tuple[tuple[str, Any], ...]
) -> tuple[Callable, Callable]:
    """Jitted (start, advance) for NUTS on the whitened posterior, vmapped over chains."""

    init_kernel, sample_kernel = hmc(potential_fn_gen=potential(model), algo="NUTS")

    def start(white, key, *args):
        return init_kernel(
            white, num_warmup, step_size=0.5, target_accept_prob=accept, max_tree_depth=8, model_args=args, rng_key=key
        )

    def advance(state, *args):
        def one(state, _):
            state = step(model, sample_kernel, state, *args)
            return state, (state.z, state.diverging, state.num_steps)

        return jax.lax.scan(one, state, None, length=CHUNK)

    none = (None, None, None)
    jit = partial(jax.jit, compiler_options=dict(options))
    return jit(jax.vmap(start, in_axes=(0, 0, *none))), jit(jax.vmap(advance, in_axes=(0, *none, None)))


def step(model: Model, sample_kernel: Callable, state: Any, data: Any, mode: Any, way: Whitening, leaps: Any) -> Any:
    """A chain's state after a step of NUTS, and a jump if there are any."""
    state = sample_kernel(state, model_args=(data, mode, way))
    return state if leaps is None else jumps.jump(state, leaps, potential(model)(data, mode, way))


class _Run:
    """Chains that can go on, from `begin` [chain, k], whitened. `draws` counts kept draws a chain."""

    def __init__(
        self, model, data, mode, way, accept, seed, chains, num_warmup, on_progress, done=0, begin=None, leaps=None
    ):
        self.model, self.data, self.mode, self.way, self.leaps = model, data, mode, way, leaps
        self.on_progress, self.done = on_progress, done
        self.warmup = -(-num_warmup // CHUNK) * CHUNK
        start, self.advance = _kernel(model, self.warmup, accept, options(data))
        keys = jax.random.split(jax.random.key(seed), 2 * chains)
        normal = jax.vmap(lambda key: jax.random.normal(key, way.own.shape))
        self.state = start(normal(keys[:chains]) if begin is None else begin, keys[chains:], data, mode, way)
        self.white: list[np.ndarray] = []
        self.draws, self.divergences, self.mean_steps = 0, 0, 0.0
        self.rhat, self.ess = np.inf, 0.0

    @property
    def diverged(self) -> float:
        """Share of the kept draws."""
        return self.divergences / (self.draws * len(self.state.i))

    def rewhitened(self, accept: float, seed: int, num_warmup: int) -> _Run:
        """Fresh chains, whitened by these draws' covariance, shrunk towards the identity by their number."""
        white = np.concatenate(self.white, axis=1).reshape(-1, len(self.way.own))
        weight = len(white) / (len(white) + white.shape[1])
        covariance = weight * np.cov(white.T) + (1 - weight) * np.eye(white.shape[1])
        way = straight(self.way.place(white.mean(axis=0))[0], self.way.roots[0] @ np.linalg.cholesky(covariance))
        chains = self.state.i.shape[0]
        return _Run(
            self.model, self.data, self.mode, way, accept, seed, chains, num_warmup, self.on_progress, self.done
        )

    def extend(self, draws: int, then: int = 0) -> None:
        """Adds `draws` draws a chain (after the warm-up, the first time) and renews the diagnostics.

        then: iterations that will follow, for the progress report.
        """
        warmup = 0 if self.white else self.warmup // CHUNK
        chunks = warmup + -(-draws // CHUNK)
        steps = []
        for k in range(chunks):
            self.state, (white, diverging, num_steps) = self.advance(
                self.state, self.data, self.mode, self.way, self.leaps
            )
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
        both = np.concatenate([white, np.asarray(place_all(self.way, white))], axis=2)
        self.rhat, self.ess = rank_diagnostics(both)

    def constrained(self) -> dict[str, jax.Array]:
        """Site -> constrained draws [chain, draw, ...], deterministic sites included."""
        white = jnp.asarray(np.concatenate(self.white, axis=1))
        return constrained(self.model, self.data, self.mode, place_all(self.way, white))


def rank_diagnostics(draws: np.ndarray) -> tuple[float, float]:
    """Largest R-hat and smallest bulk ESS over columns of draws [chain, draw, column]; rank-normalised and split
    (Vehtari et al. 2021)."""
    chains, n, columns = draws.shape
    ranks = rankdata(draws.reshape(chains * n, columns), axis=0).reshape(draws.shape)
    normal = norm.ppf((ranks - 0.375) / (chains * n + 0.25))
    half = n // 2
    split = np.concatenate([normal[:, :half], normal[:, half : 2 * half]])
    return float(np.max(split_gelman_rubin(normal))), float(np.min(effective_sample_size(split)))

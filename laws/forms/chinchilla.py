"""Chinchilla: L = E + A / N^alpha + B / D^beta  (Hoffmann et al. 2022, arXiv 2203.15556, approach 3).

Sampled as the loss at the centre of the data (geometric means of N and D), its slopes there and the shares of the three
terms in it: what runs determine, best first. `point_fit` is the literature's estimator: Huber loss on log L, delta
1e-3, from a grid of starts (Besiroglu et al. 2024 replicated Hoffmann's with it).
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd

from laws.forms import grid

CITATION = "Hoffmann et al. 2022, Training Compute-Optimal Large Language Models, arXiv 2203.15556"
COLUMNS = ()
QUANTITIES = ("loss", "mean_loss")
SITES = ("E", "A", "B", "alpha", "beta", *grid.SITES)
COVARIATES = ()
HELD = ()


def prepare(runs: pd.DataFrame, target: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """See `laws.forms.grid.prepare`; needs 7 cells, 3 sizes, 3 budgets."""
    return grid.prepare(runs, target, law="chinchilla", parameters=5, sizes=3, budgets=3)


def log_curve(xp: Any, p: dict[str, Any], x: dict[str, Any]) -> Any:
    """ln L; p: E, A, B, alpha, beta; x: as `grid.coordinates` gives them."""
    size = xp.log(p["A"]) - p["alpha"] * (x["n"] + x["ln_N"])
    data = xp.log(p["B"]) - p["beta"] * (x["d"] + x["ln_D"])
    return grid.logaddexp(xp, xp.log(p["E"]), grid.logaddexp(xp, size, data))


def priors(data: dict[str, Any]) -> dict[str, Any]:
    """E, A, B, alpha, beta."""
    import jax.numpy as jnp
    import numpyro

    center, share, (alpha, beta) = at_center(sampled(data))
    e, a, b = center + share
    p = {"E": jnp.exp(e), "A": jnp.exp(a + alpha * data["ln_N"]), "B": jnp.exp(b + beta * data["ln_D"])}
    p |= {"alpha": alpha, "beta": beta}
    return {site: numpyro.deterministic(site, value) for site, value in p.items()}


def sampled(data: dict[str, Any]) -> dict[str, Any]:
    """The sites that are sampled, as data determine them best: ln loss at the centre, its slopes in ln N and ln D there
    (share times exponent), then shares: around a third each, anywhere from 3% to 90%; exponents 0.35 give or take a
    factor 2."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    site = {"center": numpyro.sample("center", dist.Normal(data["ln_L"], 0.2))}
    site |= {name: numpyro.sample(name, dist.Normal(0.0, 1.0)) for name in ("share_a", "share_b")}
    share = _shares(site)
    for i, name in ((1, "log_slope_N"), (2, "log_slope_D")):
        site[name] = numpyro.sample(name, dist.Normal(jnp.log(0.35) + share[i], 0.6))
    return site


def at_center(site: dict[str, Any]) -> tuple[Any, Any, Any]:
    """ln of the loss at the centre of the data, ln of the shares of the three terms in it [3, ...], exponents [2, ...];
    site: as `sampled` gives it, each a number or [...]."""
    import jax.numpy as jnp

    share = _shares(site)
    return site["center"], share, jnp.exp(jnp.stack([site["log_slope_N"], site["log_slope_D"]]) - share[1:])


def _shares(site: dict[str, Any]) -> Any:
    import jax
    import jax.numpy as jnp

    a, b = site["share_a"], site["share_b"]
    return jax.nn.log_softmax(jnp.stack([jnp.zeros_like(a), a, b]), axis=0)


def model(data: dict[str, Any]) -> None:
    """The numpyro model."""
    import jax.numpy as jnp

    grid.observe(log_curve(jnp, priors(data), data), data)


def start(data: dict[str, Any]) -> dict[str, Any]:
    """The point fit, kept inside the prior's bulk."""
    e, a, b, alpha, beta = point_fit(data)
    center = np.logaddexp(e, np.logaddexp(a, b))
    share_a, share_b = np.clip([a - e, b - e], -2.5, 2.5)
    log_share = np.array([0.0, share_a, share_b]) - np.log(1 + np.exp(share_a) + np.exp(share_b))
    alpha, beta = np.clip([alpha, beta], 0.05, 2.0)
    return {
        "center": center,
        "share_a": share_a,
        "share_b": share_b,
        "log_slope_N": np.log(alpha) + log_share[1],
        "log_slope_D": np.log(beta) + log_share[2],
    } | grid.START


def point_fit(data: dict[str, Any], delta: float = 1e-3) -> np.ndarray:
    """[e, a, b, alpha, beta] by Huber loss on log L: the best of a small grid of BFGS starts.

    e, a, b: logs of the three terms at the centre of the data."""
    from scipy.optimize import minimize
    from scipy.special import huber

    n, d, y = (np.asarray(data[k]) for k in ("n", "d", "log_loss"))

    def objective(p):
        e, a, b, alpha, beta = p
        curve = np.logaddexp(e, np.logaddexp(a - alpha * n, b - beta * d))
        residual = curve - y
        pull = np.clip(residual, -delta, delta)
        terms = np.exp(np.stack([np.full_like(n, e), a - alpha * n, b - beta * d]) - curve)
        gradient = np.array(
            [pull @ terms[0], pull @ terms[1], pull @ terms[2], -(pull * n) @ terms[1], -(pull * d) @ terms[2]]
        )
        return huber(delta, residual).sum() / delta, gradient / delta

    mean = y.mean()
    starts = itertools.product((mean - 0.7,), (mean - 1, mean - 3), (mean - 1, mean - 3), (0.2, 0.6), (0.2, 0.6))
    fits = [minimize(objective, s, jac=True, method="BFGS", options={"maxiter": 500}) for s in starts]
    return min(fits, key=lambda fit: fit.fun).x


def predict(
    draws: dict[str, np.ndarray], meta: dict[str, Any], query: dict[str, np.ndarray], noise: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """See `laws.forms.grid.predict`."""
    return grid.predict(log_curve, draws, meta, query, noise)

"""Chinchilla: L = E + A / N^alpha + B / D^beta  (Hoffmann et al. 2022, arXiv 2203.15556, approach 3).

Sampled as the three terms' sizes at the centre of the data (geometric means of N and D) and the two exponents: those are
what the data determine. `point_fit` is the literature's estimator: Huber loss on log L, delta 1e-3, from a grid of
starts (Besiroglu et al. 2024 replicated Hoffmann's with it).
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
SITES = ("E", "A", "B", "alpha", "beta", "noise", "df")
HELD = ()


def prepare(runs: pd.DataFrame, target: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """See `laws.forms.grid.prepare`; needs 7 cells, 3 sizes, 3 budgets."""
    return grid.prepare(runs, target, law="chinchilla", parameters=5, sizes=3, budgets=3)


def log_curve(xp: Any, e: Any, a: Any, b: Any, alpha: Any, beta: Any, n: Any, d: Any) -> Any:
    """ln L; e, a, b: logs of the three terms at n = d = 0 (ln N and ln D less their centres)."""
    return xp.logaddexp(e, xp.logaddexp(a - alpha * n, b - beta * d))


def model(data: dict[str, Any]) -> None:
    """The numpyro model. Priors: each term is between 1/20 and all of the mean loss; exponents around 0.1 to 1."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    terms = {k: numpyro.sample(f"log_{k}", dist.Normal(data["ln_L"] - 1.2, 1.0)) for k in "eab"}
    alpha = numpyro.sample("alpha", dist.LogNormal(np.log(0.35), 0.6))
    beta = numpyro.sample("beta", dist.LogNormal(np.log(0.35), 0.6))
    numpyro.deterministic("E", jnp.exp(terms["e"]))
    numpyro.deterministic("A", jnp.exp(terms["a"] + alpha * data["ln_N"]))
    numpyro.deterministic("B", jnp.exp(terms["b"] + beta * data["ln_D"]))
    curve = log_curve(jnp, terms["e"], terms["a"], terms["b"], alpha, beta, data["n"], data["d"])
    grid.observe(curve, data["log_loss"])


def start(data: dict[str, Any]) -> dict[str, Any]:
    """The point fit, kept inside the prior's bulk."""
    e, a, b, alpha, beta = point_fit(data)
    low = data["ln_L"] - 4.0
    alpha, beta = np.clip([alpha, beta], 0.05, 2.0)
    return {
        "log_e": max(e, low),
        "log_a": max(a, low),
        "log_b": max(b, low),
        "alpha": alpha,
        "beta": beta,
        "noise": 5e-3,
        "df_above_1": 5.0,
    }


def point_fit(data: dict[str, Any], delta: float = 1e-3) -> np.ndarray:
    """[e, a, b, alpha, beta] of `log_curve` by Huber loss on log L: the best of a small grid of L-BFGS starts."""
    from scipy.optimize import minimize
    from scipy.special import huber

    n, d, y = (np.asarray(data[k]) for k in ("n", "d", "log_loss"))

    def objective(p):
        e, a, b, alpha, beta = p
        curve = log_curve(np, e, a, b, alpha, beta, n, d)
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
    draws: dict[str, np.ndarray],
    meta: dict[str, Any],
    params: np.ndarray,
    tokens: np.ndarray,
    noise: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """`mean_loss` (the curve) and `loss` (of a new run: noise included): [draw, query]."""
    E, A, B, alpha, beta = (draws[k][:, None] for k in SITES[:5])
    # Powers as exponentials of sums: A alone may be huge, A N^-alpha never is.
    mean = E + np.exp(np.log(A) - alpha * np.log(params)) + np.exp(np.log(B) - beta * np.log(tokens))
    return {"mean_loss": mean, "loss": grid.predictive(mean, draws, noise)}

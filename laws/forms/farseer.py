"""Farseer: L(N, D) = exp(a3 N^g + b3) + exp(a2 N^b + b2) D^(-exp(a1 N^a + b1))  (Li et al. 2025, arXiv 2506.10972).

Each of the three stretched exponentials exp(a N^p + b) is written by its log value at the centre of the data, its
log-log slope there and the exponent p (a Box-Cox curve, ln N at p = 0):

    h(n) = level + slope * (exp(p n) - 1) / p,   n = ln N - centre.

Level and slope are what data determine; p is weakly identified and only bends the curve away from its centre. `floor`
is the loss at infinite data, `decay` the exponent of D, and B(N) is written by the second term at the centre's D
(`gap`) and that term's slope in ln N there. Priors are on these and on the surface falling with N.

The law's loss at infinite data goes to 0 with N whatever D: its compute optimum is only a local minimum that vanishes
far above the data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from laws.forms import grid

CITATION = "Li et al. 2025, Predictable Scale: Part II, Farseer, arXiv 2506.10972"
COLUMNS = ()
QUANTITIES = ("loss", "mean_loss")
PIECES = ("floor", "gap", "decay")
SITES = tuple(f"{piece}{part}" for piece in PIECES for part in ("", "_slope", "_power")) + ("noise", "df")
HELD = ()
DECADE = np.log(10.0)


def prepare(runs: pd.DataFrame, target: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """See `laws.forms.grid.prepare`; needs 12 cells, 4 sizes, 3 budgets."""
    return grid.prepare(runs, target, law="farseer", parameters=10, sizes=4, budgets=3)


def stretched(xp: Any, level: Any, slope: Any, power: Any, n: Any) -> Any:
    """level + slope (exp(power n) - 1) / power; xp is numpy or jax.numpy."""
    small = xp.abs(power) < 1e-4
    safe = xp.where(small, 1.0, power)
    bent = xp.where(small, n * (1 + power * n / 2), xp.expm1(xp.clip(safe * n, -50.0, 50.0)) / safe)
    return level + slope * bent


def log_curve(xp: Any, p: dict[str, Any], n: Any, d: Any, ln_D: Any) -> Any:
    """ln L; p: values of SITES, n and d: ln N and ln D less their centres, ln_D: D's centre."""
    A_0 = xp.exp(p["decay"])
    level, slope = p["gap"] + A_0 * ln_D, p["gap_slope"] + A_0 * p["decay_slope"] * ln_D
    floor = stretched(xp, p["floor"], p["floor_slope"], p["floor_power"], n)
    A = xp.exp(xp.clip(stretched(xp, p["decay"], p["decay_slope"], p["decay_power"], n), -50.0, 5.0))
    return xp.logaddexp(floor, stretched(xp, level, slope, p["gap_power"], n) - A * (d + ln_D))


def model(data: dict[str, Any]) -> None:
    """The numpyro model."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    center = numpyro.sample("center", dist.Normal(data["ln_L"], 0.2))
    share_logit = numpyro.sample("share", dist.Normal(-1.0, 1.0))
    share = jax.nn.sigmoid(share_logit)  # of the second term in the loss at the centre
    slope_D = numpyro.sample("log_slope_D", dist.Normal(jnp.log(0.35 * share), 0.6))  # a prior on the exponent of D
    gap_slope = numpyro.sample("gap_slope", dist.Normal(-0.1, 0.3))
    # The loss's own slope in ln N; given the gap's, a prior of -0.1 give or take 0.15 on the floor's.
    slope_N = numpyro.sample("slope_N", dist.Normal(share * gap_slope - (1 - share) * 0.1, (1 - share) * 0.15))
    p = {
        "floor": numpyro.deterministic("floor", center + jax.nn.log_sigmoid(-share_logit)),
        "floor_slope": numpyro.deterministic("floor_slope", (slope_N - share * gap_slope) / (1 - share)),
        "gap": numpyro.deterministic("gap", center + jax.nn.log_sigmoid(share_logit)),
        "gap_slope": gap_slope,
        "decay": numpyro.deterministic("decay", slope_D - jnp.log(share)),
        "decay_slope": numpyro.sample("decay_slope", dist.Normal(0.0, 0.2)),
    }
    for piece in PIECES:
        p[f"{piece}_power"] = numpyro.sample(f"{piece}_power", dist.Normal(0.0, 0.2))
    # The loss falls with N, at every corner of the data's rectangle widened by half a decade.
    corners_n = jnp.stack([data["n"].min() - DECADE / 2, data["n"].max() + DECADE / 2])[:, None]
    corners_d = jnp.stack([data["d"].min() - DECADE / 2, data["d"].max() + DECADE / 2])[None, :]
    step = 0.01
    fall = (
        log_curve(jnp, p, corners_n, corners_d, data["ln_D"])
        - log_curve(jnp, p, corners_n + step, corners_d, data["ln_D"])
    ) / step
    numpyro.factor("falling", jax.nn.log_sigmoid(fall / 0.01).sum())
    grid.observe(log_curve(jnp, p, data["n"], data["d"], data["ln_D"]), data["log_loss"])


def start(data: dict[str, Any]) -> dict[str, Any]:
    """Chinchilla's point fit, which is this law with flat powers, as the place to climb from."""
    from laws.forms import chinchilla

    e, a, b, alpha, beta = chinchilla.point_fit(data)
    alpha, beta = np.clip([alpha, beta], 0.05, 1.5)
    floor = np.logaddexp(e, a)
    logit = np.clip(b - floor, -3.0, 1.0)
    share = 1 / (1 + np.exp(-logit))
    gap_slope = -0.02
    return {
        "center": np.logaddexp(floor, b),
        "share": logit,
        "log_slope_D": np.log(share * beta),
        "gap_slope": gap_slope,
        "slope_N": share * gap_slope - (1 - share) * alpha * np.exp(a - floor),
        "decay_slope": 0.0,
        "noise": 5e-3,
        "df_above_1": 5.0,
    } | {f"{piece}_power": 0.0 for piece in PIECES}


def coefficients(draws: dict[str, np.ndarray], meta: dict[str, Any]) -> dict[str, np.ndarray]:
    """The paper's a1, alpha, b1 (of A), a2, beta, b2 (of B), a3, gamma, b3 (of L_N), in raw N and D; [draw] each.

    A power near 0 sends its pair (a, b) to plus and minus infinity: the curve, not the coefficients, is what is known.
    """
    ln_N, ln_D = meta["center"]["ln_N"], meta["center"]["ln_D"]
    A_0 = np.exp(draws["decay"])
    pieces = {
        ("a1", "alpha", "b1"): (draws["decay"], draws["decay_slope"], draws["decay_power"]),
        ("a2", "beta", "b2"): (
            draws["gap"] + A_0 * ln_D,
            draws["gap_slope"] + A_0 * draws["decay_slope"] * ln_D,
            draws["gap_power"],
        ),
        ("a3", "gamma", "b3"): (draws["floor"], draws["floor_slope"], draws["floor_power"]),
    }
    out: dict[str, np.ndarray] = {}
    for names, (level, slope, power) in pieces.items():
        out |= dict(zip(names, (slope / power * np.exp(-power * ln_N), power, level - slope / power)))
    return out


def predict(
    draws: dict[str, np.ndarray],
    meta: dict[str, Any],
    params: np.ndarray,
    tokens: np.ndarray,
    noise: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """`mean_loss` (the curve) and `loss` (of a new run: noise included): [draw, query]."""
    n, d = np.log(params) - meta["center"]["ln_N"], np.log(tokens) - meta["center"]["ln_D"]
    mean = np.exp(log_curve(np, {k: draws[k][:, None] for k in SITES[:-2]}, n, d, meta["center"]["ln_D"]))
    return {"mean_loss": mean, "loss": grid.predictive(mean, draws, noise)}

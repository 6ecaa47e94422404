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
SITES = tuple(f"{piece}{part}" for piece in PIECES for part in ("", "_slope", "_power")) + grid.SITES
COVARIATES = ()
HELD = ()


def prepare(runs: pd.DataFrame, target: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """See `laws.forms.grid.prepare`; needs 12 cells, 4 sizes, 3 budgets."""
    return grid.prepare(runs, target, law="farseer", parameters=10, sizes=4, budgets=3)


def stretched(xp: Any, level: Any, slope: Any, power: Any, n: Any) -> Any:
    """level + slope (exp(power n) - 1) / power; xp is numpy or jax.numpy."""
    small = xp.abs(power) < 1e-4
    safe = xp.where(small, 1.0, power)
    bent = xp.expm1(xp.clip(safe * n, -50.0, 50.0)) / safe
    if xp is not np or small.any():
        bent = xp.where(small, n * (1 + power * n / 2), bent)
    return level + slope * bent


def log_curve(xp: Any, p: dict[str, Any], x: dict[str, Any]) -> Any:
    """ln L; p: values of SITES; x: as `grid.coordinates` gives them."""
    n, d, ln_D = x["n"], x["d"], x["ln_D"]
    A_0 = xp.exp(p["decay"])
    level, slope = p["gap"] + A_0 * ln_D, p["gap_slope"] + A_0 * p["decay_slope"] * ln_D
    floor = stretched(xp, p["floor"], p["floor_slope"], p["floor_power"], n)
    A = xp.exp(xp.clip(stretched(xp, p["decay"], p["decay_slope"], p["decay_power"], n), -50.0, 5.0))
    return grid.logaddexp(xp, floor, stretched(xp, level, slope, p["gap_power"], n) - A * (d + ln_D))


def priors(data: dict[str, Any]) -> dict[str, Any]:
    """Values of SITES."""
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
        p[f"{piece}_power"] = numpyro.sample(f"{piece}_power", dist.Normal(0.0, 0.1))  # the paper's: 0.12, -0.10, 0.17
    # The loss falls with N at the corners of the data's rectangle; a soft wall, which chains can follow.
    corner = {
        "n": jnp.stack([data["n"].min(), data["n"].max()])[:, None],
        "d": jnp.stack([data["d"].min(), data["d"].max()])[None, :],
        "ln_D": data["ln_D"],
    }
    step = 0.01
    fall = (log_curve(jnp, p, corner) - log_curve(jnp, p, corner | {"n": corner["n"] + step})) / step
    numpyro.factor("falling", -(jax.nn.relu(-fall / 0.05) ** 2).sum() / 2)
    return p


def model(data: dict[str, Any]) -> None:
    """The numpyro model."""
    import jax.numpy as jnp

    grid.observe(log_curve(jnp, priors(data), data), data)


def start(data: dict[str, Any]) -> dict[str, Any]:
    """Chinchilla's point fit, which is this law with flat powers, as the place to climb from."""
    from laws.forms import chinchilla

    e, a, b, alpha, beta = chinchilla.point_fit(data)
    alpha, beta = np.clip([alpha, beta], 0.05, 1.5)
    floor = np.logaddexp(e, a)
    logit = np.clip(b - floor, -3.0, 1.0)
    share = 1 / (1 + np.exp(-logit))
    gap_slope = -0.02
    out = {
        "center": np.logaddexp(floor, b),
        "share": logit,
        "log_slope_D": np.log(share * beta),
        "gap_slope": gap_slope,
        "slope_N": share * gap_slope - (1 - share) * alpha * np.exp(a - floor),
        "decay_slope": 0.0,
    }
    return out | {f"{piece}_power": 0.0 for piece in PIECES} | grid.START


def others(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Further places to climb from. How the loss bends in ln N tells the difference of the two terms' slopes, but not
    its sign, and how its slope in ln D changes with N that difference and the decay's slope together: often there is a
    mode with each sign. Noise starts large: the surface is smoother then."""
    here = start(data) | {"noise": 0.02, "form_error": 0.02, "share": -1.0, "gap_slope": -0.4}
    return [here | {"decay_slope": slope} for slope in (-0.2, 0.2)]


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
    draws: dict[str, np.ndarray], meta: dict[str, Any], query: dict[str, np.ndarray], noise: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """See `laws.forms.grid.predict`."""
    return grid.predict(log_curve, draws, meta, query, noise)

"""Step Law: the best learning rate and batch size at any scale, from the whole loss surface of every (N, D) cell.

    ln lr* = lr_const    + lr_N ln N    + lr_D ln D            (Li et al. 2025, arXiv 2503.04715)
    ln B*  = batch_const + batch_N ln N + batch_D ln D         (the paper has batch_N = 0; here it is estimated)

and for mixtures of experts further lr_S ln S and batch_S ln S, S the share of N that is active for a token: a law in
the total N has exponents 0 there, one in the active N has lr_S = lr_N and batch_S = batch_N. Dense models have S = 1.

The authors regress the near-optimal settings. Here the loss itself is modelled. In cell c,

    ln L = m_c + excess(ln lr - ln lr*_c, ln B - ln B*_c) + noise,

where the cell's own optimum scatters about the law (`lr_sd`, `batch_sd`) and the excess is a sum of three bowls (or
the first two, where the runs ask for no more: `simplest`), each convex in the logs with its minimum at the optimum, so
their sum is too:

    excess(u, v) = sum_k kappa_k w_k^2 linex(bend_k w_k),       linex(s) = (exp(s) - 1 - s) / s^2,
    w_1 = u - tilt_1 v   gradient noise: learning rate high for the batch
    w_2 = v              too few steps: batch too large (a parabola: bend_2 = 0)
    w_3 = u + tilt_3 v   instability: learning rate too high whatever the batch

Curvatures kappa vary from cell to cell and with N, D and S; tilts and bends vary smoothly with their logs. Where cells
hold fewer than some 25 runs on 5 learning rates and 5 batch sizes (`rich` is false), there is no third bowl, and one
shape with one common change of curvature with N, D and S serves all cells. Where the batch size hardly varies, its law
is its prior and the learning rate's optimum is at the batch sizes tried.

Noise is Student-t with its own scale in each rich cell; the form's own error grows in proportion to the excess
(`form_error`), so that runs far from the optimum weigh less. All priors are weak and in the data's own units: none
holds a published coefficient.

Of a run that diverged only this is taken: it ends above the lowest loss of its cell, a right-censored observation that
counts by the probability of that. Where the bowl rises that high anyway, the run says nothing; where the best run is
next to it, it bounds the optimum. (To ask for 2% above the lowest bends the bowls to walls that are steeper than they
can be: on made-up cells with such walls it drew the optimum 0.05 to 0.1 lower, away from the truth, in intervals as
wide.) One run in a hundred may have diverged whatever its setting (`CHANCE`), so that none overrules its neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from laws.forms.steplaw_cells import MIN_LRS, prepare  # noqa: F401  part of this law's interface

CITATION = "Li et al. 2025, Predictable Scale: Part I, Step Law, arXiv 2503.04715"
COLUMNS = ("lr", "batch_tokens")
OPTIONAL = ("params_active", "recipe")
QUANTITIES = ("lr", "batch_tokens")
COVARIATES = ()
CENSORED = True  # runs that diverged count too
CHANCE = 0.01  # of a run to diverge whatever its setting
KAPPA_SD, NOISE_SD = 0.3, 0.3  # scatter between cells of ln curvature and of ln noise
HELD = ("lr_sd", "batch_sd")  # a joint mode over these and the cells' deviations is degenerate

LAW = (
    "lr_const",
    "lr_N",
    "lr_D",
    "batch_const",
    "batch_N",
    "batch_D",
    "lr_S",
    "batch_S",
    "lr_sd",
    "batch_sd",
    "noise",
    "form_error",
    "df",
)
SLOPES = {"N": "n", "D": "d", "S": "s"}  # suffix of an exponent or slope -> what it multiplies, less its centre ln_*
SHAPE = ("log_kappa", "tilt", "bend")  # at the data's centre (3, 2 and 2 values), with slopes
SITES = LAW + tuple(f"{name}{slope}" for name in SHAPE for slope in ("", *(f"_{slope}" for slope in SLOPES)))


def linex(xp: Any, s: Any) -> Any:
    """(exp(s) - 1 - s) / s^2, smooth through s = 0; xp is numpy or jax.numpy."""
    s = xp.clip(s, -60.0, 20.0)
    small = xp.abs(s) < 1e-2
    safe = xp.where(small, 1.0, s)
    return xp.where(small, 0.5 + s / 6 + s**2 / 24 + s**3 / 120, (xp.expm1(safe) - safe) / safe**2)


def excess(xp: Any, u: Any, v: Any, log_kappa: Any, tilt: Any, bend: Any) -> Any:
    """Log loss above the optimum's. u, v: ln lr - ln lr*, ln B - ln B*. The shape arrays' last axes hold the bowls:
    log_kappa 3, tilt and bend 2 in rich cells; 2, 1 and 1 in others, which have no third bowl."""
    noisy = u - tilt[..., 0] * v
    out = xp.exp(log_kappa[..., 0]) * noisy**2 * linex(xp, bend[..., 0] * noisy)
    out = out + xp.exp(log_kappa[..., 1]) * v**2 / 2
    if bend.shape[-1] == 1:
        return out
    unstable = u + tilt[..., 1] * v
    return out + xp.exp(log_kappa[..., 2]) * unstable**2 * linex(xp, bend[..., 1] * unstable)


def log_survival(xp: Any, log_ndtr: Any, t: Any, df: Any) -> Any:
    """ln of the probability that a Student-t variable exceeds t, by its normal equivalent (Wallace 1959, Ann. Math.
    Stat. 30:1124), which has gradients in df: at most 0.002 of probability and 7% of the log off above df 2."""
    squared = t**2 / df
    small = squared < 1e-6
    ratio = xp.where(small, 1 - squared / 2, xp.log1p(squared) / xp.where(small, 1.0, squared))
    return log_ndtr(-t * xp.sqrt(ratio) * (8 * df + 1) / (8 * df + 3))


# --- model -----------------------------------------------------------------------------------------------------------


def model(data: dict[str, Any]) -> None:
    """The numpyro model; `data` as `prepare` gives it."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from jax.scipy.special import log_ndtr, ndtr, ndtri

    def site(name, loc, scale, shape=()):
        return numpyro.sample(name, dist.Normal(jnp.broadcast_to(loc, shape), scale).to_event(len(shape)))

    x = {slope: data[key] for slope, key in SLOPES.items() if key in data}
    cells = data["n"].shape[0]
    rich = "rich" in data
    bowls = 3 if "third" in data else 2
    shape = {}
    for name, loc, prior_sd, slope_sd in (
        ("log_kappa", np.log([0.02, 0.02, 0.02]), 1.5 if rich else 1.0, 0.5),
        ("tilt", np.array([0.7, 0.0]), 0.5, 0.2),
        ("bend", np.array([0.5, 1.5]), 0.7, 0.2),
    ):
        loc = loc if bowls == 3 else loc[:-1]
        shape[name] = site(name, loc, prior_sd, loc.shape)[None, :]
        if rich or name == "log_kappa":
            width = loc.shape if rich else (1,)
            for slope, values in x.items():
                shape[name] += site(f"{name}_{slope}", 0.0, slope_sd, width) * values[:, None]
    if rich:
        shape["log_kappa"] += KAPPA_SD * site("kappa_cell", 0.0, 1.0, (cells, bowls))

    def law(name, unit=1.0, slide=0.0, offsets=None):
        """(center less mid, then the exponents) of a law and ln of the optimum in each cell. Sampled: the law less
        `slide` times the offsets, in 1/unit. The prior is that of unit 1 and no slide."""
        widths = {"mid": data[f"{name}_half"]} | {slope: 0.5 for slope in x}  # exponents within 1 of 0
        offsets = offsets or dict.fromkeys(widths, 0.0)
        part = {
            k: site(f"{name}_{k}_raw", 0.0, width * unit) / unit + slide * offsets[k] for k, width in widths.items()
        }
        at_center = data[f"{name}_mid"] + part["mid"]
        best = at_center + sum(part[slope] * values for slope, values in x.items())
        for slope in x:
            numpyro.deterministic(f"{name}_{slope}", part[slope])
            at_center -= part[slope] * data[f"ln_{slope}"]
        numpyro.deterministic(f"{name}_const", at_center)
        sd = numpyro.sample(f"{name}_sd", dist.LogNormal(np.log(0.1), 0.7))
        # Centred deviations mix well where every cell pins its own optimum, non-centred ones where it does not.
        scatter = site(f"{name}_cell", 0.0, sd, (cells,)) if rich else sd * site(f"{name}_cell", 0.0, 1.0, (cells,))
        return part, best + scatter

    if rich:
        best_batch, best_lr = law("batch")[1], law("lr")[1]
    elif "batch_swept" in data:
        # Few batch sizes determine the slope of the loss at their middle (curvature times distance to the best batch)
        # and the best learning rate there: sample those.
        offsets, best_batch = law("batch", unit=jnp.exp(shape["log_kappa"][0, 1]))
        best_lr = law("lr", slide=shape["tilt"][0, 0], offsets=offsets)[1]
    else:
        best_batch, best_lr = law("batch")[1], law("lr")[1]

    def rise(lr, batch):
        """Log loss above the optimum's, [cell, run]."""
        u, v = lr - best_lr[:, None], batch - best_batch[:, None]
        if "batch_swept" not in data:
            v = jnp.zeros_like(v)  # the best learning rate is then at the batch sizes tried
        return excess(jnp, u, v, *(shape[name][:, None, :] for name in SHAPE))

    above = rise(data["lr"], data["batch"])
    floor = data["floor"] + data["spread"] * site("floor_cell", 0.0, 1.0, (cells,))
    if not rich and "batch_swept" in data:  # sampled is the lowest loss at the middle batch size, not at the best
        floor -= jnp.exp(shape["log_kappa"][:, 1]) * (best_batch - data["batch_mid"]) ** 2 / 2
    noise = numpyro.sample("noise", dist.LogNormal(np.log(3e-3), 1.0))
    noise_cell = jnp.broadcast_to(noise, (cells,))
    if rich:
        noise_cell = noise * jnp.exp(NOISE_SD * site("noise_cell", 0.0, 1.0, (cells,)))
    # HalfNormal(0.2). Where data say much it is a normal variable: its logarithm has a long tail below, in which chains
    # linger. Where they say little chains settle better in its logarithm.
    if rich:
        form_error = numpyro.deterministic("form_error", 0.2 * ndtri((1 + ndtr(site("form_error_raw", 0.0, 1.0))) / 2))
    else:
        form_error = numpyro.sample("form_error", dist.HalfNormal(0.2))
    df = numpyro.deterministic("df", 2.0 + numpyro.sample("df_above_2", dist.Gamma(2.0, 0.5)))

    def scale(above):
        return jnp.sqrt(noise_cell[:, None] ** 2 + (form_error * above) ** 2)

    losses = dist.StudentT(df, floor[:, None] + above, scale(above)).mask(data["used"])
    numpyro.sample("log_loss", losses, obs=data["log_loss"])
    if "lost" in data:
        above = rise(data["lost_lr"], data["lost_batch"])
        t = ((data["floor"] - floor)[:, None] - above) / scale(above)
        beyond = jnp.log1p(-CHANCE) + log_survival(jnp, log_ndtr, t, df)
        numpyro.factor("diverged", jnp.where(data["lost"], jnp.logaddexp(np.log(CHANCE), beyond), 0.0).sum())


def start(data: dict[str, Any]) -> dict[str, Any]:
    """A starting point for the search of the mode: the law through each cell's best runs, ordinary curvature."""
    x = {slope: data[key] for slope, key in SLOPES.items() if key in data}
    best = {}
    for name in ("lr", "batch"):
        at = data[name][:, :3].mean(axis=1)
        ridge = np.diag([1e-6] + [0.1] * len(x))
        X = np.stack([np.ones_like(at), *x.values()], axis=1)
        best[name] = np.linalg.solve(X.T @ X + ridge, X.T @ at)
    out: dict[str, Any] = {}
    for name, (center, *slopes) in best.items():
        unit = 0.02 if name == "batch" and "rich" not in data and "batch_swept" in data else 1.0
        law = {"mid": center - data[f"{name}_mid"]} | dict(zip(x, slopes))
        out |= {f"{name}_{part}_raw": unit * value for part, value in law.items()}
        out |= {f"{name}_sd": 0.1, f"{name}_cell": np.zeros(len(data["n"]))}
    cells = len(data["n"])
    out |= {
        "log_kappa": np.log([0.02, 0.02, 0.01]),
        "tilt": np.array([0.7, 0.2]),
        "bend": np.array([0.6, 1.5]),
    }
    if "third" not in data:
        out |= {name: out[name][:-1] for name in SHAPE}
    out |= {f"{name}_{slope}": np.zeros_like(out[name]) for name in SHAPE for slope in x}
    if "rich" not in data:
        out |= {f"log_kappa_{slope}": np.zeros(1) for slope in x}
    out |= {"kappa_cell": np.zeros((cells, len(out["log_kappa"]))), "floor_cell": np.zeros(cells)}
    out |= {"noise": 2e-3, "noise_cell": np.zeros(cells), "df_above_2": 2.0}
    out |= {"form_error_raw": -0.85} if "rich" in data else {"form_error": 0.05}
    return out


def simplest(data: dict[str, Any]) -> dict[str, Any]:
    """`data` without the third bowl where the runs don't ask for it, by the model's evidence with and without: where
    their losses are near a parabola, two bowls of one kind could each be all of it, and chains would not settle."""
    from laws.normal import log_evidence

    if "third" not in data:
        return data
    without = {key: value for key, value in data.items() if key != "third"}
    evidence, less = (log_evidence(model, x, start(x), hold=HELD) for x in (data, without))
    return data if evidence > less else without


# --- prediction ------------------------------------------------------------------------------------------------------


def predict(
    draws: dict[str, np.ndarray], meta: dict[str, Any], query: dict[str, np.ndarray], noise: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """`lr` and `batch_tokens` at the optimum of a new cell: [draw, query]. The scatter of cells about the law is
    included, so an interval says where the optimum of a cell nobody has swept would be; the median is the law's.

    query: `params` and `tokens`, [query] each.
    noise: standard normal scores, one a draw, under the names `lr` and `batch` (marginally right at every query).
    """
    x = logs(query)
    out = {}
    for name, quantity in (("lr", "lr"), ("batch", "batch_tokens")):
        at = draws[f"{name}_const"] + draws[f"{name}_sd"] * noise[name]
        slopes = [
            draws[f"{name}_{slope}"][:, None] * values for slope, values in x.items() if f"{name}_{slope}" in draws
        ]
        out[quantity] = np.exp(at[:, None] + sum(slopes))
    return out


def logs(query: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the law's exponents multiply: ln N, ln D and ln of the active share of N, which is 0 for a dense model."""
    ln_N, ln_D = np.log(query["params"]), np.log(query["tokens"])
    return {"N": ln_N, "D": ln_D, "S": np.log(query.get("params_active", query["params"])) - ln_N}

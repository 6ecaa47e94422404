"""Simulation-based calibration: are the posteriors what they claim to be, if the model is true?

    python -m benchmarks.sbc [LAW ...] [--replications 100] [--laplace | --together] [--write]

For each law: parameters, noise with its tails and trend, and form error from the prior; losses from them on a fixed
small design; the posterior given those losses; the rank of the truth among LEFT draws of it (Talts et al. 2018, arXiv
1804.06788). Over replications ranks must be uniform. They are tested by chi-square over ten bins and by the largest
deviation of their empirical distribution (Kolmogorov and Smirnov, ranks jittered), for every coefficient and for the
mean loss in the middle of the design and ten times beyond its largest size and budget. Also printed: how often the
central 90% interval holds the truth, and the mean rank (below 0.5: answers too high).

What is not Bayes here would show: robust weights, tails and trend found beforehand, form error drawn after the law. A
prior centred on the table's own mean loss is centred on the same fixed value in simulation and fit. Step Law is tested
for its model and sampler with all runs of each cell in use. Fits that the sampler refuses are counted, not ranked. The
stack, a mixture of these laws, and the pooled law, many nested ones, are not in it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pandas as pd
from numpyro import handlers
from scipy.stats import chisquare, kstest

from benchmarks import sbc_together
from laws import forms, noise, normal, rows, sampler, surface
from laws.errors import FitError
from laws.forms import discrepancy

LAWS = [law for law in forms.NAMES if law not in ("stack", "pooled")]
LEFT = 99  # posterior draws a truth is ranked among
LEVEL = 0.01  # of the verdict, over all quantities of a law
SETTINGS = {"num_warmup": 200, "num_samples": 250, "chains": 4}
OUT = Path(__file__).with_name("sbc.md")
DECADE = np.log(10.0)


def design(law: str) -> pd.DataFrame:
    """30 runs: six sizes over a factor 32, five budgets over a factor 64, and what else the law needs."""
    N, D = np.meshgrid(np.geomspace(2e8, 6.4e9, 6), np.geomspace(4e9, 2.56e11, 5), indexing="ij")
    table = pd.DataFrame({"params": N.ravel(), "tokens": D.ravel(), "loss": 2.5 + np.linspace(0, 1e-3, 30)})
    if law == "data_constrained":
        table["unique_tokens"] = np.minimum(table["tokens"], np.tile([4e9, 1.6e10, 1e12], 10))
    if law == "moe":
        table["params_active"] = table["params"] * np.tile([1.0, 0.5, 0.25], 10)
    if law == "routed":
        table = table.assign(tokens=1e11, params_active=table["params"], n_experts=np.tile([1.0, 4, 16, 64, 256], 6))
    if law == "steplaw":
        cells = [(n, d) for n in (2e8, 8e8, 3.2e9) for d in (4e9, 1.6e10, 6.4e10)]
        rows = [(n, d, lr, b) for n, d in cells for lr in np.geomspace(2e-4, 6e-3, 6) for b in (2.6e5, 1e6)]
        table = pd.DataFrame(rows, columns=["params", "tokens", "lr", "batch_tokens"])
        table["loss"] = 2.5 + np.linspace(0, 1e-2, len(table))
    return table.assign(recipe="design")


def replicate(law: str, data: dict[str, Any], seed: int, laplace: bool) -> dict[str, float]:
    """Quantity -> rank of the truth over LEFT + 1, jittered within its step: uniform if all is well."""
    form, rng = forms.get(law), np.random.default_rng(seed)
    how: dict[str, Any] = {} if laplace else dict(SETTINGS)
    if law == "steplaw":
        truth, simulated = _simulated_steplaw(form, data, seed)
        draw = normal.sample if laplace else sampler.sample
        result = draw(form.model, simulated, form.start(simulated), name=law, hold=form.HELD, seed=seed, **how)
        found = {k: x for k, x in result.draws.items() if k in form.SITES}
    else:
        truth, simulated = _simulated_loss(form, data, rng, seed)
        result = surface.sample(form, simulated, name=law, seed=seed, laplace=laplace, **how)
        found = result.draws | _answers(form, simulated, result.draws)
    out = {}
    for name, value in truth.items():
        draws = np.asarray(found[name]).reshape(-1, *np.shape(value))
        chosen = draws[np.linspace(0, len(draws) - 1, LEFT).round().astype(int)]
        ranks = (chosen < value).sum(axis=0)
        for i, rank in enumerate(np.ravel(ranks)):
            out[name if np.ndim(value) == 0 else f"{name}[{i}]"] = float((rank + rng.uniform()) / (LEFT + 1))
    return out


def _simulated_loss(
    form: ModuleType, data: dict[str, Any], rng: np.random.Generator, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(truth, data with simulated losses), by `laws.forms.grid.observe` and `laws.surface` as they document it."""
    phi = discrepancy.features(discrepancy.domain(data), data)
    p = _prior(form, data, phi, rng, seed)
    p["discrepancy"] = p["form_error"] * rng.standard_normal(phi.shape[1])
    df = next(df for df in 1 + rng.gamma(2.0, 10.0, size=100) if df >= 3)  # as `laws.surface` looks for it
    trend, compute = np.clip(rng.normal(0, noise.TREND_SD), noise.TRENDS[0], noise.TRENDS[-1]), data["n"] + data["d"]
    scatter = p["noise"] * np.exp(trend * compute) * rng.standard_t(df, size=len(phi))
    y = np.asarray(form.log_curve(np, p, data)) + phi @ p["discrepancy"] + scatter
    answers = _answers(form, data, {k: np.asarray(v)[None] for k, v in p.items()})
    truth = {site: p[site] for site in form.SITES} | {name: x[0] for name, x in answers.items()}
    return truth, data | {"log_loss": y}


def _prior(
    form: ModuleType, data: dict[str, Any], phi: np.ndarray, rng: np.random.Generator, seed: int
) -> dict[str, Any]:
    """A draw of the model's prior, by rejection where that has a factor (which never exceeds 1)."""
    even = np.ones(len(phi))
    whole = rows.observed(data, discrepancy.rotate(phi), even, len(phi))
    for attempt in range(1000):
        values, factors = _traced(form, whole, jax.random.fold_in(jax.random.key(seed), attempt))
        if np.log(rng.uniform()) < sum(factors.values()):
            return {name: float(x) for name, x in values.items() if np.ndim(x) == 0}
    raise RuntimeError("no draw of the prior was accepted in 1000")


def _traced(form: ModuleType, data: dict[str, Any], key: Any) -> tuple[dict[str, Any], dict[str, float]]:
    """(values of the model's sites drawn from its prior, log factors other than the likelihood)."""
    with jax.enable_x64(True):
        values, factors = _program(form)(data, key)
    return {k: np.asarray(x) for k, x in values.items()}, {k: float(x) for k, x in factors.items()}


@lru_cache(maxsize=16)
def _program(form: ModuleType) -> Any:
    def program(data: dict[str, Any], key: Any) -> Any:
        trace = handlers.trace(handlers.seed(form.model, key)).get_trace(data)
        sampled = {k: s for k, s in trace.items() if s["type"] == "sample"}
        fixed = {k for k, s in sampled.items() if s["is_observed"]}
        values = {
            k: s["value"] for k, s in trace.items() if s["type"] in ("sample", "deterministic") and k not in fixed
        }
        return values, {k: sampled[k]["fn"].log_prob(sampled[k]["value"]) for k in fixed - {"log_loss"}}

    return jax.jit(program, compiler_options={"xla_backend_optimization_level": 0})


def _answers(form: ModuleType, data: dict[str, Any], draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Log of the mean loss at the middle of the design and ten times beyond it, [draw]."""
    p = {k: np.ravel(x) for k, x in draws.items() if k != "discrepancy"}
    weights = draws["discrepancy"].reshape(len(p["noise"]), -1)
    largest = int(np.argmax(data["n"] + data["d"]))
    last = {k: x[largest] if np.shape(x) == np.shape(data["n"]) else x for k, x in data.items()}
    middle = {k: 0.0 if np.shape(x) == np.shape(data["n"]) else x for k, x in data.items()}
    far = last | {axis: last[axis] + DECADE for axis in ("n", "d")}
    out = {}
    for name, x in (("mean loss, middle", middle), ("mean loss, 10 x beyond", far)):
        phi = discrepancy.features(discrepancy.domain(data), {axis: np.atleast_1d(x[axis]) for axis in ("n", "d")})[0]
        out[name] = form.log_curve(np, p, x) + weights @ phi
    return out


def _simulated_steplaw(form: ModuleType, data: dict[str, Any], seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(truth, data with simulated losses, the runs of each cell sorted by them)."""
    values, _ = _traced(form, data | {"log_loss": None}, jax.random.key(seed))
    truth, y = {site: values[site] for site in form.SITES if site in values}, values["log_loss"]
    order = np.argsort(y, axis=1)
    turned = {name: np.take_along_axis(data[name], order, axis=1) for name in ("lr", "batch")}
    return truth, data | turned | {"log_loss": np.take_along_axis(y, order, axis=1)}


def _each(replicate: Callable[[int], Any], seeds: Sequence[int]) -> list[Any]:
    """`replicate(seed)` for each seed; None where it raised FitError."""
    out: list[Any] = []
    for seed in seeds:
        try:
            out.append(replicate(seed))
        except FitError:
            out.append(None)
    return out


def judged(
    law: str, replications: int, laplace: bool = False, together: bool = False
) -> tuple[pd.DataFrame, int, float]:
    """(a row a quantity: mean rank, share inside 90%, p of two tests; refused fits; seconds a replication)."""
    data, _ = forms.get(law).prepare(design(law), "loss")

    def one(seed: int) -> dict[str, float]:
        return replicate(law, data, seed, laplace)

    begun = time.perf_counter()
    found = (sbc_together.replicate_all if together else _each)(one, range(replications))
    ranks = [ranked for ranked in found if ranked is not None]
    refused = replications - len(ranks)
    seconds = (time.perf_counter() - begun) / replications
    table = pd.DataFrame(ranks)
    bins = 10 if len(table) >= 50 else 5
    rows = []
    for name in table:
        u = table[name].to_numpy()
        counts = np.histogram(u, np.linspace(0, 1, bins + 1))[0]
        row = {"quantity": name, "mean rank": u.mean(), "inside 90%": np.mean(np.abs(u - 0.5) < 0.45)}
        rows.append(row | {"chi-square p": chisquare(counts).pvalue, "KS p": kstest(u, "uniform").pvalue})
    return pd.DataFrame(rows), refused, seconds


def verdict(table: pd.DataFrame) -> str:
    """By the smallest p, for as many tests as there are."""
    tests = table[["chi-square p", "KS p"]].to_numpy()
    least, limit = tests.min(), LEVEL / tests.size
    worst = table["quantity"].iloc[int(tests.min(axis=1).argmin())]
    return f"{'NOT UNIFORM' if least < limit else 'uniform'} (least p {least:.2g}, {worst}; limit {limit:.2g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("laws", nargs="*", default=LAWS, metavar="LAW")
    parser.add_argument("--replications", type=int, default=100)
    parser.add_argument("--laplace", action="store_true", help="the normal approximation at the mode in place of NUTS")
    parser.add_argument("--together", action="store_true", help="NUTS, all replications' chains in one program")
    parser.add_argument("--write", action="store_true", help=f"write {OUT.name}")
    args = parser.parse_args()
    engine = "the normal approximation" if args.laplace else "NUTS"
    parts = [f"# Simulation-based calibration, {args.replications} replications a law, {engine}\n"]
    for law in args.laws:
        table, refused, seconds = judged(law, args.replications, args.laplace, args.together)
        line = f"{verdict(table)}; {refused} fits refused; {seconds:.1f} s a replication"
        parts.append(f"## {law}\n\n{line}\n\n{_markdown(table)}\n")
        print(parts[-1], flush=True)
    if args.write:
        OUT.write_text("\n".join(parts), encoding="utf-8")


def _markdown(table: pd.DataFrame) -> str:
    rows = [[row[0], f"{row[1]:.3f}", f"{row[2]:.0%}", f"{row[3]:.3f}", f"{row[4]:.3f}"] for row in table.to_numpy()]
    head = ["| " + " | ".join(table.columns) + " |", "|---|" + "---:|" * (len(table.columns) - 1)]
    return "\n".join([*head, *("| " + " | ".join(row) + " |" for row in rows)])


if __name__ == "__main__":
    main()

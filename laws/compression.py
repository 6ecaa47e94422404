"""Code intelligence against compression: is a benchmark's score linear in bits per character, or in their logarithm?

    linear: score = a + b BPC            Huang et al. 2024 (arXiv 2404.09937)
    log:    score = a + b ln BPC         "Is Compression Really Linear with Code Intelligence?" (arXiv 2505.11441)

A row is a model on a task: `correct` of `total` items right, at the model's `bpc`. Items are binomial, and models
scatter about the line more than that: beta-binomial, whose precision is fitted. Scores stay within 0 and 1 by corners
CORNER wide. Lines of several tasks are drawn from one population (hierarchical) or each for itself (separate). Priors
are on the score at the mean of x and its change over a standard deviation of x, so that both forms have the same.

    found = compare(table)                 # which form, how surely: found.sentence, found.probability
    found.fits["log"].bpc_for(0.6)         # a Quantity: the BPC that a score takes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from laws.errors import FitError, InputError
from laws.posterior import Quantity

FORMS: dict[str, Callable[[Any], np.ndarray]] = {"linear": lambda bpc: np.asarray(bpc, float), "log": np.log}
COLUMNS = ("model", "bpc", "correct", "total")  # `task` too, where there are several
CORNER, LEAST = 0.01, 1e-4  # width of the corners; the score of one who knows nothing, and its distance from 1
FEWEST = 4  # models
BAD_K = 0.7  # Pareto k from which importance sampling is not to be trusted
BOOTSTRAP = 4000
CLOSE = 1.0  # of elpd: what lies nearer is told apart by the luck of the draws, which the bootstrap does not see


@dataclass(frozen=True)
class Fit:
    """One form fitted. draws: site -> [draw, ...]: a, b [draw, task] of score = a + b x, x = BPC or ln BPC;
    hierarchical: mean_a, mean_b [draw] of the tasks' population; scatter [draw], the share of an item's variance that
    is the models'. elpd, pareto_k: [row], leave-one-out. table: the rows."""

    form: str
    tasks: tuple[str, ...]
    draws: dict[str, np.ndarray]
    table: pd.DataFrame
    elpd: np.ndarray
    pareto_k: np.ndarray
    diagnostics: dict[str, float]
    warnings: list[str] = field(default_factory=list)

    def score(self, bpc: Any, task: str | None = None) -> Quantity:
        """The score at `bpc` (an array is welcome): of a task, or the mean over the tasks. Raises InputError for bpc
        not above 0 and an unknown task."""
        bpc = np.asarray(bpc, float)
        if not (np.isfinite(bpc) & (bpc > 0)).all():
            raise InputError(f"bpc is {bpc}; bits per character are finite and above 0")
        a, b = self._lines(task)
        x = FORMS[self.form](bpc)
        return Quantity(np.mean([held(a[:, j].reshape(-1, *[1] * x.ndim) + np.multiply.outer(b[:, j], x), np)
                                 for j in range(a.shape[1])], axis=0))  # fmt: skip

    def bpc_for(self, score: float, task: str | None = None) -> Quantity:
        """The BPC at which the line, of a task or the mean of all, has `score`; 0 in draws where no BPC above 0 does
        (a linear law may want a negative one), infinite where any does, as its score does not fall with BPC."""
        if not 0 < score < 1:
            raise InputError(f"score is {score!r}; it must be between 0 and 1, such as 0.6")
        a, b = (line.mean(axis=1) for line in self._lines(task))
        with np.errstate(divide="ignore", over="ignore"):
            x = (score - a) / b
            bpc = np.maximum(x, 0.0) if self.form == "linear" else np.exp(x)
        return Quantity(np.where(b < 0, bpc, np.inf))

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row a task: a, b with 90% edges, the correlation of scores with x, root mean square error, R squared."""
        rows = []
        for j, task in enumerate(self.tasks):
            own = self.table[self.table["task"] == task]
            seen, x = (own["correct"] / own["total"]).to_numpy(), FORMS[self.form](own["bpc"])
            off = seen - self.score(own["bpc"].to_numpy(), task).draws.mean(axis=0)
            edges = {f"{name}_{edge}": np.quantile(self.draws[name][:, j], q) for name in "ab"
                     for edge, q in (("low", 0.05), ("median", 0.5), ("high", 0.95))}  # fmt: skip
            rows.append(
                {
                    "task": task,
                    "models": len(own),
                    **edges,
                    "pearson": np.corrcoef(x, seen)[0, 1],
                    "rmse": np.sqrt(np.mean(off**2)),
                    "r2": 1 - np.sum(off**2) / np.sum((seen - seen.mean()) ** 2),
                }
            )
        return pd.DataFrame(rows)  # fmt: skip

    def _lines(self, task: str | None) -> tuple[np.ndarray, np.ndarray]:
        if task is None:
            return self.draws["a"], self.draws["b"]
        if task not in self.tasks:
            raise InputError(f"no task {task!r} in this fit; one of: {', '.join(self.tasks)}")
        j = self.tasks.index(task)
        return self.draws["a"][:, j : j + 1], self.draws["b"][:, j : j + 1]


@dataclass(frozen=True)
class Comparison:
    """difference: elpd of log less that of linear, se its standard error over models. probability: that log predicts
    models left out better, by a Bayesian bootstrap over models. weight: of log, pseudo-BMA+ (Yao et al. 2018)."""

    fits: dict[str, Fit]
    difference: float
    se: float
    probability: float
    weight: float
    sentence: str
    warnings: list[str]

    def bpc_for(self, score: float, task: str | None = None) -> Quantity:
        """The BPC that `score` takes, of both forms by their weights: the uncertainty about the form is in it."""
        draws = {form: fit.bpc_for(score, task).draws for form, fit in self.fits.items()}
        n = len(draws["log"])
        of_log = round(self.weight * n)
        rng = np.random.default_rng(0)
        return Quantity(np.concatenate([rng.permutation(draws["log"])[:of_log],
                                        rng.permutation(draws["linear"])[: n - of_log]]))  # fmt: skip


def compare(table: pd.DataFrame, **options: Any) -> Comparison:
    """Both forms fitted to `table`, and which of them the evidence prefers. options: of `fit`."""
    fits = {form: fit(table, form, **options) for form in FORMS}
    rows = fits["log"].elpd - fits["linear"].elpd
    of_model = fits["log"].table.assign(difference=rows).groupby("model", sort=True)["difference"].sum().to_numpy()
    n = len(of_model)
    shares = np.random.default_rng(0).dirichlet(np.ones(n), size=BOOTSTRAP) * n
    sums = shares @ of_model
    probability = float(np.mean(sums > 0))
    weight = float(np.mean(1 / (1 + np.exp(-np.clip(sums, -700, 700)))))
    difference, se = float(of_model.sum()), float(np.sqrt(n) * of_model.std(ddof=1))
    better, sure = ("log", probability) if probability >= 0.5 else ("linear", 1 - probability)
    name = {"log": "the logarithm of BPC", "linear": "BPC itself"}[better]
    said = (
        f"scores are a line in {name} with probability {sure:.2f} (elpd {abs(difference):.1f} better, standard error "
    )
    said += f"{se:.1f}, {n} models)"
    if sure < 0.9 or abs(difference) < CLOSE:
        said += ": these models do not tell the forms apart; add some of lower or of higher BPC"
    warnings = [f"{form}: {text}" for form, one in fits.items() for text in one.warnings]
    return Comparison(fits, difference, se, probability, weight, said, warnings)


def read(path: str | Path) -> pd.DataFrame:
    """A table of scores from a CSV. Raises InputError if it is none."""
    if not Path(path).is_file():
        raise InputError(f"no file {path}; give a CSV with columns {', '.join(COLUMNS)}")
    try:
        return pd.read_csv(path)
    except (ValueError, pd.errors.ParserError) as error:
        raise InputError(f"{path} is not a table in CSV: {error}") from None


def fit(
    table: pd.DataFrame,
    form: str = "log",
    *,
    hierarchical: bool = True,
    seed: int = 0,
    num_warmup: int = 400,
    num_samples: int = 500,
    chains: int = 4,
) -> Fit:
    """The posterior of one form, by NUTS. table: a row a model and task, columns COLUMNS and, for several, `task`.

    Raises InputError naming the row and column of a value that cannot be, and FitError where the sampler does not
    settle or a task has fewer than FEWEST models.
    """
    from laws.sampler import sample

    if form not in FORMS:
        raise InputError(f"form is {form!r}; one of: {', '.join(FORMS)}")
    rows = checked(table)
    names, task = np.unique(rows["task"].to_numpy(str), return_inverse=True)
    x = FORMS[form](rows["bpc"].to_numpy(float))
    center, width = x.mean(), x.std()
    correct, total = (rows[column].to_numpy(float) for column in ("correct", "total"))
    data = {"u": (x - center) / width, "task": task, "correct": correct, "total": total, "tasks": np.zeros(len(names))}
    pooled = hierarchical and len(names) > 1
    start = _start(data, pooled)
    hold = ("tau_level", "tau_slope") if pooled else ()
    found = sample(_pooled if pooled else _separate, data, start, name=f"compression ({form})", hold=hold, seed=seed,
                   num_warmup=num_warmup, num_samples=num_samples, chains=chains)  # fmt: skip
    flat = {site: draws.reshape(-1, *draws.shape[2:]) for site, draws in found.draws.items()}
    elpd, k = _left_out(_log_likelihood(flat, data))
    draws = {"b": flat["slope"] / width, "scatter": flat["root"] ** 2 / (1 + flat["root"] ** 2)}
    draws["a"] = flat["level"] - draws["b"] * center
    if pooled:
        draws["mean_b"] = flat["mu_slope"] / width
        draws["mean_a"] = flat["mu_level"] - draws["mean_b"] * center
    warnings = []
    if bad := int(np.sum(k > BAD_K)):
        warnings.append(f"{bad} of {len(k)} rows hold the fit by themselves (Pareto k above {BAD_K:g}): their own "
                        "score is not to be trusted")  # fmt: skip
    return Fit(form, tuple(str(name) for name in names), draws, rows, elpd, k, found.diagnostics, warnings)


def checked(table: pd.DataFrame) -> pd.DataFrame:
    """The rows to fit, `task` filled in where there is none. Raises InputError and FitError as `fit` does."""
    if missing := [column for column in COLUMNS if column not in table]:
        raise InputError(f"no column {missing[0]!r}; a table of scores has {', '.join(COLUMNS)} and, for several, task")
    rows = table[[*COLUMNS]].assign(task=table["task"].astype(str) if "task" in table else "all")
    rows = rows.reset_index(drop=True)
    try:
        rows = rows.astype({"bpc": float, "correct": float, "total": float})
    except (TypeError, ValueError) as error:
        raise InputError(f"bpc, correct and total must be numbers: {error}") from None
    for column, fine, rule in (
        ("bpc", np.isfinite(rows["bpc"]) & (rows["bpc"] > 0), "bits per character are finite and above 0"),
        ("total", (rows["total"] >= 1) & (rows["total"] % 1 == 0), "a number of items is whole and above 0"),
        ("correct", (rows["correct"] >= 0) & (rows["correct"] <= rows["total"]) & (rows["correct"] % 1 == 0),
         "items right are whole, from 0 to total (counts, not shares)"),
    ):  # fmt: skip
        if not fine.all():
            at = int(np.flatnonzero(~fine)[0])
            raise InputError(f"row {at + 1}: {column} is {rows[column][at]:g}; {rule}")
    if twice := rows.duplicated(["model", "task"]).to_numpy().nonzero()[0].tolist():
        raise InputError(f"row {twice[0] + 1}: model {rows['model'][twice[0]]} has its score of the task twice")
    values = rows.groupby("task")["bpc"].nunique()
    if values.min() < FEWEST:
        raise FitError(f"task {values.idxmin()} has models of {values.min()} different bpc; a line needs {FEWEST}")
    return rows


# --- the model -------------------------------------------------------------------------------------------------------


def held(line: Any, xp: Any) -> Any:
    """A line's score, held within (0, 1) by corners CORNER wide; xp: numpy or jax.numpy."""
    up = xp.logaddexp(0.0, line / CORNER) - xp.logaddexp(0.0, (line - 1) / CORNER)
    return LEAST + (1 - 2 * LEAST) * CORNER * up


def _separate(data: dict[str, Any]) -> None:
    """Each task's line for itself."""
    import numpyro
    from numpyro import distributions as dist

    with numpyro.plate("tasks", data["tasks"].shape[0]):
        level = numpyro.sample("level", dist.Normal(0.5, 0.5))
        slope = numpyro.sample("slope", dist.Normal(0.0, 0.3))
    _observe(data, level, slope)


def _pooled(data: dict[str, Any]) -> None:
    """The tasks' lines, of one population."""
    import numpyro
    from numpyro import distributions as dist

    mu_level = numpyro.sample("mu_level", dist.Normal(0.5, 0.5))
    mu_slope = numpyro.sample("mu_slope", dist.Normal(0.0, 0.3))
    # Away from 0, where the chains would have to follow a funnel (Chung et al. 2013, Psychometrika 78:685).
    tau_level = numpyro.sample("tau_level", dist.Gamma(2.0, 10.0))
    tau_slope = numpyro.sample("tau_slope", dist.Gamma(2.0, 20.0))
    with numpyro.plate("tasks", data["tasks"].shape[0]):
        level = numpyro.sample("level", dist.Normal(mu_level, tau_level))
        slope = numpyro.sample("slope", dist.Normal(mu_slope, tau_slope))
    _observe(data, level, slope)


def _observe(data: dict[str, Any], level: Any, slope: Any) -> None:
    import jax.numpy as jnp
    import numpyro
    from jax.scipy.special import gammaln
    from numpyro import distributions as dist

    root = numpyro.sample("root", dist.LogNormal(np.log(0.05), 0.8))  # a model is off by a few hundredths
    score = held(level[data["task"]] + slope[data["task"]] * data["u"], jnp)
    numpyro.factor("correct", jnp.sum(_log_density(score, root, data["correct"], data["total"], jnp, gammaln)))


def _log_density(score: Any, root: Any, correct: Any, total: Any, xp: Any, gammaln: Any) -> Any:
    """Of `correct` of `total`, beta-binomial of mean `score` and precision 1 / root^2. One call of gammaln: it takes
    long to compile."""
    precision = 1 / root**2 + 0 * score
    a, b, wrong = score * precision, (1 - score) * precision, total - correct
    ones = xp.ones_like(score)
    parts = [a + correct, b + wrong, precision, (total + 1) * ones, a, b, precision + total, (correct + 1) * ones,
             (wrong + 1) * ones]  # fmt: skip
    found = gammaln(xp.stack(parts))
    return found[:4].sum(axis=0) - found[4:].sum(axis=0)


def _start(data: dict[str, np.ndarray], pooled: bool) -> dict[str, Any]:
    """Least squares, task by task."""
    seen, k = data["correct"] / data["total"], len(data["tasks"])
    lines = np.array([np.polyfit(data["u"][data["task"] == j], seen[data["task"] == j], 1) for j in range(k)])
    slope, level = lines.T
    if not pooled:
        return {"level": level, "slope": slope, "root": 0.05}
    tau_level, tau_slope = max(level.std(), 0.02), max(slope.std(), 0.01)
    return {
        "mu_level": level.mean(), "mu_slope": slope.mean(), "tau_level": tau_level, "tau_slope": tau_slope,
        "level": level, "slope": slope, "root": 0.05,
    }  # fmt: skip


def _log_likelihood(draws: dict[str, np.ndarray], data: dict[str, np.ndarray]) -> np.ndarray:
    """[draw, row]."""
    from scipy.special import gammaln

    score = held(draws["level"][:, data["task"]] + draws["slope"][:, data["task"]] * data["u"], np)
    return _log_density(score, draws["root"][:, None], data["correct"], data["total"], np, gammaln)


def _left_out(log_lik: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(log predictive density of each row from all the others, Pareto k), by Pareto-smoothed importance sampling."""
    import arviz
    from scipy.special import logsumexp

    log_weights, k = arviz.psislw(-log_lik.T)
    return logsumexp(log_weights.T + log_lik, axis=0), np.asarray(k)

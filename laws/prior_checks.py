"""What a loss law's prior says before it sees losses, and how much of an answer is its doing.

Sensitivity is by power-scaling (Kallioinen, Paananen, Buerkner and Vehtari 2024, Stat. Comput. 34:57): the prior to
the power 1/2 and 2. Refitted, by the normal approximation at the mode, rather than by importance weights: exact for
large moves too, and the draws that are kept need not hold every prior site.
"""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from laws import forms, threads
from laws.allocation import allocate
from laws.checks import BEYOND, beyond, mean_loss
from laws.posterior import Posterior

DRAWS = 500
POWERS = (0.5, 2.0)
COLUMNS = ("half", "double")  # of the prior
SENSITIVE = 0.5  # posterior standard deviations that an answer may move when the prior counts half or double


@threads.in_turn
def predictive(law: str, used: pd.DataFrame, target: str) -> dict[str, float]:
    """Of surfaces drawn from the prior: `inside`, the share of cells whose loss lies in their 90% interval; `low` and
    `high`, that interval's ends at the middle cell over the loss there; `falling`, the share of surfaces that fall with
    both N and D from every cell to ten times its scale. The prior is centred on the table's mean log loss."""
    import jax
    from numpyro.infer import Predictive

    form = forms.get(law)
    data, _ = form.prepare(used, target)
    with jax.enable_x64(True):
        drawn = Predictive(form.priors, num_samples=DRAWS)(jax.random.key(0), data)
    p = {site: np.asarray(x)[:, None] if np.ndim(x) == 1 else np.asarray(x) for site, x in drawn.items()}
    y = np.asarray(data["log_loss"])
    here = np.asarray(form.log_curve(np, p, data))
    low, high = np.quantile(here, [0.05, 0.95], axis=0)
    middle = int(np.argmin(np.abs(data["n"]) + np.abs(data["d"])))
    step = np.log(BEYOND)
    falls = [form.log_curve(np, p, data | {axis: np.asarray(data[axis]) + step}) < here for axis in ("n", "d")]
    return {
        "inside": float(np.mean((low <= y) & (y <= high))),
        "low": float(np.exp(low[middle] - y[middle])),
        "high": float(np.exp(high[middle] - y[middle])),
        "falling": float(np.mean(np.all(falls, axis=(0, 2)))),
    }


def predictive_sentence(found: dict[str, float]) -> tuple[bool, str]:
    text = (
        f"Before it sees the runs the law expects {found['low']:.2f} to {found['high']:.2f} times the middle cell's "
        f"loss there, and {found['inside']:.0%} of the cells lie in its 90% intervals"
    )
    fine = found["inside"] > 0.9
    return fine, f"{text}: {'the prior allows for these data' if fine else 'the prior argues with these data'}."


@threads.in_turn
def sensitivity(law: str, used: pd.DataFrame, target: str) -> pd.DataFrame:
    """How answers move with the prior to the powers 1/2 and 2: one row an answer, columns answer, median, sd, half,
    double (the moves of its mean in units of sd). Answers are in logs, so sd and moves are relative."""
    from laws import surface

    form = forms.get(law)
    data, facts = form.prepare(used, target)
    data = data | {"prior_power": np.array(1.0)}
    scaled = _scaled(form)
    numbers = [c for c in ("params", "tokens", *form.COVARIATES) if c != "recipe"]
    ranges = {c: [float(used[c].min()), float(used[c].max())] for c in numbers}
    answers = {}
    for power in (1.0, *POWERS):
        data["prior_power"] = np.array(power)
        result = surface.sample(scaled, data, name=law, seed=0, laplace=True)
        samples = {k: np.asarray(v) for k, v in result.draws.items()}
        meta = facts | result.facts | {"ranges": ranges, "target": target, "warnings": []}
        posterior = Posterior(law, samples, meta)
        if "recipe" in form.COVARIATES:  # asked of the recipe with most runs
            posterior = posterior.of(used["recipe"].mode()[0])
        answers[power] = _answers(posterior, ranges)
    rows = []
    for name, draws in answers[1.0].items():
        sd = float(draws.std())
        if sd < 1e-9:  # no draw has an answer, such as a best size
            continue
        moves = [float((answers[power][name].mean() - draws.mean()) / sd) for power in POWERS]
        rows.append({"answer": name, "median": float(np.exp(np.median(draws))), "sd": sd} | dict(zip(COLUMNS, moves)))
    return pd.DataFrame(rows)


def sensitivity_sentence(table: pd.DataFrame) -> tuple[bool, str]:
    moves = table[[*COLUMNS]].abs().max(axis=1).to_numpy()
    i = int(np.argmax(moves))
    text = (
        f"With the prior counting half or double, {table['answer'].iloc[i]} moves by {moves[i]:.1f} posterior "
        f"deviations ({moves[i] * table['sd'].iloc[i]:.2%})"
    )
    if moves[i] <= SENSITIVE:
        return True, f"{text} at most, the other answers less: the runs decide, not the prior."
    others = int((moves > SENSITIVE).sum()) - 1
    rest = f", and of the others {others} by over {SENSITIVE:g}" if others else ", the other answers less"
    return False, f"{text}{rest}: the prior decides there too, more runs would help."


def _answers(posterior: Posterior, ranges: dict[str, list[float]]) -> dict[str, np.ndarray]:
    """Logs of what a pretraining lead asks, [draw] each."""
    largest = {c: high for c, (_, high) in ranges.items()}
    extra: dict[str, Any] = {c: x for c, x in largest.items() if c not in ("params", "tokens")}
    out = {
        "the loss at the largest scale": np.log(mean_loss(posterior, largest)),
        f"the loss at {BEYOND:g} times the scale": np.log(mean_loss(posterior, beyond(largest, BEYOND))),
    }
    if getattr(forms.get(posterior.law), "ONE_BUDGET", False):  # no size is best for a budget
        return out
    active = largest.get("params_active", largest["params"]) / largest["params"]
    if "params_active" in extra:
        extra["params_active"] = lambda params: active * params
    budget = 6 * active * largest["params"] * largest["tokens"]
    best = allocate(posterior, flops=budget, flops_per_token=6 * active, **extra)
    return out | {"the best size at the largest scale's compute": np.log(best.params.draws)}


def _scaled(form: ModuleType) -> Any:
    """`form` whose prior counts `data["prior_power"]` times: every site but the likelihood's."""
    from numpyro.primitives import Messenger

    class Power(Messenger):
        def __init__(self, fn: Any, power: Any):
            super().__init__(fn)
            self.power = power

        def process_message(self, msg: dict[str, Any]) -> None:
            if msg["type"] == "sample" and msg["name"] != "log_loss":
                msg["scale"] = self.power if msg.get("scale") is None else msg["scale"] * self.power

    def model(data: dict[str, Any]) -> None:
        with Power(None, data["prior_power"]):
            form.model(data)

    names = ("log_curve", "start", "SITES", "HELD")
    return SimpleNamespace(model=model, **{name: getattr(form, name) for name in names})

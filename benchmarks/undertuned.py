"""Laws of the loss fitted to runs whose learning rate and batch size were not the best, as they are and as tuned.

    python -m benchmarks.undertuned [--only made-up|few|step-law|published]

Four questions, each answered with `tuned_by` (losses brought to those of the best settings by a Step Law posterior)
and without, by the nested law and normal approximations:

- made-up: does it find a known surface? Runs are de-tuned by a rule, along Step Laws drawn from the packaged posterior.
- few: are noise and loss inside their intervals where a table has 12 cells, so that the correction's standard errors
  explain most of what is seen?
- step-law: and on real runs whose truth is known? Of each of Step Law's 17 dense cells one run is kept, by a rule; the
  truth is what its whole sweep says. A cell is tuned by a Step Law fitted to the other half of the cells.
- published: tables of other people's runs. Held-out runs are what they are, so the tuned law's prediction is put back
  to their settings: multiplied by 1 + regret. Does it foretell them better?

Prints the tables of benchmarks/undertuned.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

import laws
from experiments import compile_cache
from laws import datasets, tuning
from laws.forms.grid import best_per_cell
from laws.published import SETTINGS
from laws.splits import FRACTION, held_out

LAW = "nested"
KEYS = ["params", "tokens"]
TRUTH = {"E": 1.7, "A": 400.0, "B": 1800.0, "alpha": 0.34, "beta": 0.36}
REPEATS, FEW_REPEATS = 6, 20
NOISE = 0.001
HOW = ("as they are", "tuned")


def surface(params: Any, tokens: Any) -> Any:
    p = TRUTH
    return p["E"] + p["A"] * params ** -p["alpha"] + p["B"] * tokens ** -p["beta"]


def fit(runs: pd.DataFrame, target: str = "loss", by: Any = None) -> laws.Posterior:
    return laws.fit(LAW, runs, target=target, tuned_by=by, laplace=True)


def scored(draws: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Of predictions [draw, cell]: relative error of the median, whether the 90% interval holds, its width; [cell]."""
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    inside = (low <= truth) & (truth <= high)
    return {"error": np.median(draws, axis=0) / truth - 1, "inside": inside, "width": (high - low) / truth}


def row(label: list[str], scores: dict[str, np.ndarray]) -> str:
    error = 100 * scores["error"]
    cells = [f"{np.abs(error).mean():.2f}", f"{error.mean():+.2f}", f"{scores['inside'].mean():.0%}"]
    return "| " + " | ".join([*label, *cells, f"{100 * scores['width'].mean():.2f}"]) + " |"


def head(*columns: str) -> str:
    columns = (*columns, "error %", "bias %", "inside 90%", "width of 90%")
    return f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


# --- made up ---------------------------------------------------------------------------------------------------------


def made_up() -> Iterator[str]:
    """6 sizes and 5 budgets of Step Law's range; judged: its mean loss there, and at 4 times the largest of both."""
    yield head("settings", "judged", "fitted")
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(2e8, 2e9, 6), np.geomspace(2e9, 1e11, 5), indexing="ij"))
    far = {"params": np.array([8e9]), "tokens": np.array([4e11])}
    steplaw = laws.load_posterior("steplaw")
    rules = {
        "best for the smallest": lambda rng: _settings(steplaw, N[:1], D[:1], len(N)),
        "up to 4 times off, by chance": lambda rng: _settings(steplaw, N, D, 1) * np.exp(
            rng.uniform(-1, 1, (2, len(N))) * np.log(4)
        ),
        "the best": lambda rng: _settings(steplaw, N, D, 1),
    }  # fmt: skip
    for rule, settings in rules.items():
        scores: dict[tuple[str, str], list] = {}
        for seed in range(REPEATS):
            rng = np.random.default_rng(seed)
            lr, batch = settings(rng)
            runs = pd.DataFrame({"params": N, "tokens": D, "lr": lr, "batch_tokens": batch})
            above = tuning.excess(steplaw, {c: runs[c].to_numpy() for c in runs})
            own = above[rng.integers(len(above), size=len(N)), np.arange(len(N))]  # each cell has its own optimum
            runs["loss"] = surface(N, D) * np.exp(own + NOISE * rng.standard_normal(len(N)))
            for how in HOW:
                posterior = fit(runs, by=steplaw if how == "tuned" else None)
                for where, x in {"among the runs": {"params": N, "tokens": D}, "4 times beyond": far}.items():
                    draws = posterior.predict(**x).mean_loss.draws
                    scores.setdefault((where, how), []).append(scored(draws, surface(**x)))
        for (where, how), each in scores.items():
            yield row([rule, where, how], {k: np.concatenate([s[k] for s in each]) for k in each[0]})


def few() -> Iterator[str]:
    """3 sizes and 4 budgets at one learning rate and batch size, their regrets one draw of Step Law's; by the
    Chinchilla law."""
    yield "\n| fitted | noise, median of 5, 50, 95% | true noise inside 90% | cells inside 90% | width of 90% |"
    yield "|---|---|---|---|---|"
    N, D = (x.ravel() for x in np.meshgrid([1e8, 3e8, 1e9], [2e9, 6e9, 2e10, 6e10], indexing="ij"))
    steplaw = laws.load_posterior("steplaw")
    runs = pd.DataFrame({"params": N, "tokens": D, "lr": 1e-3, "batch_tokens": 5e5})
    above = tuning.excess(steplaw, {c: runs[c].to_numpy() for c in runs})
    for how in HOW:
        noises, scores = [], []
        for seed in range(FEW_REPEATS):
            rng = np.random.default_rng(seed)
            loss = surface(N, D) * np.exp(above[rng.integers(len(above))] + NOISE * rng.standard_normal(len(N)))
            by = steplaw if how == "tuned" else None
            posterior = laws.fit("chinchilla", runs.assign(loss=loss), tuned_by=by, laplace=True)
            noises.append(np.quantile(posterior.draws["noise"], [0.05, 0.5, 0.95]))
            scores.append(scored(posterior.predict(params=N, tokens=D).mean_loss.draws, surface(N, D)))
        inside = np.mean([low < NOISE < high for low, _, high in noises])
        shown = ", ".join(f"{100 * x:.2f}%" for x in np.median(noises, axis=0))
        cells, width = (np.mean([score[k] for score in scores]) for k in ("inside", "width"))
        yield f"| {how} | {shown} | {inside:.0%} | {cells:.0%} | {100 * width:.2f} |"


def _settings(steplaw: laws.Posterior, params: np.ndarray, tokens: np.ndarray, times: int) -> np.ndarray:
    """The law's best (lr, batch_tokens), [2, cell]."""
    best = steplaw.predict(params=params, tokens=tokens)
    return np.tile([best.lr.median, best.batch_tokens.median], times)


# --- Step Law's own runs ---------------------------------------------------------------------------------------------


def step_law() -> Iterator[str]:
    yield head("settings", "judged", "fitted")
    dense, sparse = laws.load_runs("steplaw-dense"), laws.load_runs("steplaw-moe")
    cell = dense.groupby(KEYS).ngroup()
    others = [laws.fit("steplaw", pd.concat([dense[cell % 2 != k], sparse]), laplace=True) for k in (0, 1)]
    truth = pd.concat([laws.tuned(dense[cell % 2 == k], others[k]) for k in (0, 1)])
    groups = [runs for _, runs in dense.groupby(KEYS)]  # by size, then by budget
    best = [runs.loc[runs["loss"].idxmin()] for runs in groups]
    deepseek = SETTINGS["deepseek"]
    rules = {
        "best for the smallest": lambda runs: (best[0]["lr"], best[0]["batch_tokens"]),
        "best for the largest": lambda runs: (best[-1]["lr"], best[-1]["batch_tokens"]),
        "DeepSeek's law": lambda runs: (
            deepseek.lr(flops=runs["flops"].iloc[0]),
            deepseek.batch_tokens(flops=runs["flops"].iloc[0]),
        ),
        "the best of the sweep": lambda runs: tuple(runs.loc[runs["loss"].idxmin(), ["lr", "batch_tokens"]]),
    }
    for rule, settings in rules.items():
        kept = pd.DataFrame([_nearest(runs, *settings(runs)) for runs in groups])
        parts = [kept[(np.arange(len(kept)) % 2) == k] for k in (0, 1)]
        tuned = pd.concat([laws.tuned(part, others[k]) for k, part in enumerate(parts)], ignore_index=True)
        for where in ("these cells", "most compute, held out"):
            for how, runs in zip(HOW, (kept, tuned)):
                runs, judged = runs.reset_index(drop=True), truth
                if where != "these cells":
                    _, judged, _ = held_out(truth, "compute", FRACTION["compute"], LAW)
                    runs = runs[~_in(runs, judged)].reset_index(drop=True)
                draws = fit(runs).predict(params=judged["params"].to_numpy(), tokens=judged["tokens"].to_numpy())
                yield row([rule, where, how], scored(draws.mean_loss.draws, judged["loss"].to_numpy()))


def _nearest(runs: pd.DataFrame, lr: float, batch: float) -> pd.Series:
    off = np.log(runs["lr"] / lr) ** 2 + np.log(runs["batch_tokens"] / batch) ** 2
    return runs.loc[off.idxmin()]


def _in(table: pd.DataFrame, cells: pd.DataFrame) -> np.ndarray:
    return pd.MultiIndex.from_frame(table[KEYS]).isin(pd.MultiIndex.from_frame(cells[KEYS]))


# --- published tables ------------------------------------------------------------------------------------------------


def published() -> Iterator[str]:
    yield head("table", "held out", "fitted")
    steplaw = laws.load_posterior("steplaw")
    for table in datasets.loss_tables():
        runs = datasets.load_loss_table(table)
        if not {"lr", "batch_tokens"} <= set(runs) or runs[["lr", "batch_tokens"]].isna().any(axis=1).all():
            continue
        runs = runs[runs[["lr", "batch_tokens", table.target]].notna().all(axis=1)].reset_index(drop=True)
        best = runs.loc[runs.groupby(KEYS)[table.target].idxmin()].reset_index(drop=True)
        for heldout in FRACTION:
            _, out, _ = held_out(best, heldout, FRACTION[heldout], LAW)
            kept = runs[~_in(runs, out)].reset_index(drop=True)
            query = {c: out[c].to_numpy(float) for c in (*KEYS, "lr", "batch_tokens")}
            back = np.random.default_rng(0).permutation(tuning.excess(steplaw, query))
            for how in HOW:
                raw = how != "tuned"
                posterior = fit(
                    best_per_cell(kept, table.target) if raw else kept, table.target, None if raw else steplaw
                )
                draws = posterior.predict(params=query["params"], tokens=query["tokens"], n_draws=len(back)).loss.draws
                scores = scored(draws * (1 if raw else np.exp(back)), out[table.target].to_numpy())
                yield row([table.label, heldout, how], scores)


PARTS = {"made-up": made_up, "few": few, "step-law": step_law, "published": published}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=PARTS, help="one of the four")
    only = parser.parse_args().only
    compile_cache.use()
    for name, part in PARTS.items():
        if only in (None, name):
            print(f"\n## {name}", flush=True)
            for line in part():
                print(line, flush=True)


if __name__ == "__main__":
    main()

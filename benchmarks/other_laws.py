"""Coefficients of the laws of routed models, mixtures of experts and repeated data, on public runs, beside the papers'.

    python -m benchmarks.other_laws [--json]

Posterior medians and 90% intervals, with the form's error modelled (the default) and with the form taken for true, as
the papers do; and, for routed models, least squares on the log loss, the papers' own estimator. The runs are read by
`laws.load_runs`.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

import laws
from laws import published
from laws.forms import routed

NOTE = """Medians and 90% intervals; in parentheses cells, R-hat, effective draws, divergences. The paper on repeated
data holds alpha, beta and E (A and B too) to an earlier fit, and fits the others to 182 runs that it does not list."""
ROUTERS = {"S-Base": "clark-s-base", "RL-R": "clark-rl-r", "Hash": "clark-hash"}


def fits(law: str, runs: pd.DataFrame, target: str, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Both kinds of fit: coefficient -> (median, 5%, 95%), cells, R-hat, ESS, divergences."""
    out = {}
    for label, form_error in (("form error modelled", True), ("form taken for true", False)):
        posterior = laws.fit(law, runs, target=target, form_error=form_error)
        summary = {k: [float(q) for q in np.quantile(posterior.draws[k], [0.5, 0.05, 0.95])] for k in names}
        kept = ("max_rhat", "min_ess", "divergences")
        out[label] = {"coefficients": summary, "cells": posterior.meta["cells"]} | {
            k: posterior.meta["diagnostics"][k] for k in kept
        }
    return out


def least_squares_routed(runs: pd.DataFrame) -> dict[str, float]:
    """Clark et al.'s estimator: squared error of the log loss, here with E_start and E_max by their logs."""
    x = {"n": np.log(runs["params_active"]), "ln_N": 0.0, "d": np.log(runs["n_experts"]), "ln_D": 0.0}
    log_loss = np.log(runs["eval_loss"])

    def coefficients(v: np.ndarray) -> dict[str, float]:
        ends = {"E_start": np.exp(v[4]), "E_max": np.exp(v[4]) + np.exp(v[5])}
        return dict(zip("abcd", v[:4])) | ends

    start, scale = [-0.08, -0.1, 0.01, 1.1, np.log(2.0), np.log(300.0)], [0.01, 0.01, 0.001, 0.1, 1.0, 1.0]
    found = least_squares(lambda v: routed.log_curve(np, coefficients(v), x) - log_loss, start, x_scale=scale)
    return {k: float(v) for k, v in coefficients(found.x).items()}


def measure() -> dict[str, Any]:
    out: dict[str, Any] = {}
    names = ("a", "b", "c", "d", "E_start", "E_max")
    ends = laws.load_runs("routed-moe")
    for router, paper in ROUTERS.items():
        runs = ends[ends["recipe"].isin(["Dense", router])]
        out[f"routed, {router}"] = {
            "paper": {k: published.LOSSES[paper].coefficients[k] for k in names},
            "least squares": least_squares_routed(runs),
        } | fits("routed", runs, "eval_loss", names)

    names = ("R_N", "R_D", "alpha", "beta", "E")
    repeated = laws.load_runs("datablations")
    for label, runs in (
        ("all runs", repeated),
        ("runs of 1e9 tokens or more", repeated[repeated["tokens"] >= 1e9]),
        ("runs of 1e9 distinct tokens or more", repeated[repeated["unique_tokens"] >= 1e9]),
    ):
        paper = {k: published.LOSSES["muennighoff"].coefficients[k] for k in names}
        out[f"data_constrained, {label}"] = {"paper": paper} | fits("data_constrained", runs, "eval_loss", names)

    dense = laws.load_runs("steplaw-dense")
    both = pd.concat([dense.assign(params_active=dense["params"]), laws.load_runs("steplaw-moe")])
    out["moe, Step Law's dense and sparse runs"] = fits("moe", both, "loss", ("eta", "alpha", "beta", "E"))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true")
    result = parser.parse_args()
    found = measure()
    if result.json:
        print(json.dumps(found))
        return
    print("# Routed models, mixtures of experts, repeated data: coefficients on public runs\n")
    print("    python -m benchmarks.other_laws\n")
    print(NOTE)
    for title, rows in found.items():
        names = list(next(row["coefficients"] for row in rows.values() if "coefficients" in row))
        print(f"\n## {title}\n\n|  | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
        for label, row in rows.items():
            if "coefficients" in row:
                cells = [f"{m:.3g} [{low:.3g}, {high:.3g}]" for m, low, high in (row["coefficients"][k] for k in names)]
                label += f" ({row['cells']}, {row['max_rhat']:.3f}, {row['min_ess']:.0f}, {row['divergences']:.0f})"
            else:
                cells = [f"{row[k]:.3g}" for k in names]
            print(f"| {label} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

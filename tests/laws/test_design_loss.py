"""Choosing trials for the loss: beside conditioning a normal by brute force."""

import numpy as np
import pandas as pd
import pytest

import laws
from laws import design, design_loss
from laws.errors import FitError, InputError

from .conftest import loss_grid

TARGETS = pd.DataFrame({"params": [5e10, 2e10], "tokens": [1e12, 4e11]})


@pytest.fixture(scope="module")
def begun() -> tuple[laws.Posterior, pd.DataFrame]:
    runs = loss_grid("chinchilla", 0.003, sizes=4, budgets=4)
    return design_loss.fit("chinchilla", runs), runs


def left(posterior: laws.Posterior, table: pd.DataFrame, rows: list[int]) -> float:
    """Variance of the targets, summed, once runs of `rows` are known: numpy's covariance of the draws, conditioned."""
    every = pd.concat([table.iloc[rows], TARGETS])[["params", "tokens"]]
    x = {column: every[column].to_numpy() for column in every}
    cov = np.cov(np.log(posterior.predict(**x).mean_loss.draws), rowvar=False)
    k = len(rows)
    observed = cov[:k, :k] + np.diag(design_loss.run_variance(posterior, table.iloc[rows]))
    return float(np.trace(cov[k:, k:] - cov[k:, :k] @ np.linalg.solve(observed, cov[:k, k:])))


def test_each_choice_is_the_best_by_brute_force(begun):
    posterior, runs = begun
    table = design_loss.candidates(runs)
    assert len(table) == 5 * 5 - 16 and table["tokens"].max() == pytest.approx(1.6e10)  # one beyond, none twice
    cost = table["flops"].to_numpy()
    chosen, gains, now, after = design_loss.choose(posterior, table, TARGETS, batch=3)
    taken: list[int] = []
    for i, gain in zip(chosen, gains):
        others = [j for j in range(len(table)) if j not in taken]
        exact = {j: left(posterior, table, taken) - left(posterior, table, [*taken, j]) for j in others}
        assert i == max(others, key=lambda j: exact[j] / cost[j])
        assert gain == pytest.approx(exact[i], rel=1e-6)
        taken.append(i)
    assert np.sum(now**2) == pytest.approx(left(posterior, table, [])) and len(chosen) == 3
    assert np.sum(after**2) == pytest.approx(left(posterior, table, taken)) and np.all(after < now)


def test_a_run_at_the_target_is_best_where_it_costs_nothing(begun):
    posterior, runs = begun
    target = TARGETS.iloc[:1]
    table = pd.concat([design_loss.candidates(runs), target], ignore_index=True).assign(flops=1.0)
    chosen, _, now, after = design_loss.choose(posterior, table, target, batch=1)
    assert chosen.tolist() == [len(table) - 1]
    noise = design_loss.run_variance(posterior, target)[0]
    assert after[0] ** 2 == pytest.approx(1 / (1 / now[0] ** 2 + 1 / noise))


def test_what_correlates_by_chance_is_not_bought():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(21, 1000)) / np.sqrt(1000)
    Z, T, cost = draws[:20], draws[20:].T, np.r_[np.ones(19), 1e6]
    Z[19] += 3 * T[:, 0]
    how = {"noise": np.full(20, 1e-3), "cost": cost, "batch": 4}
    assert 19 not in design.greedy(Z, T=T, **how)[0]
    assert design.greedy(Z, T=T, least=0.02, **how)[0].tolist() == [19]


def test_too_few_runs_say_what_to_do():
    with pytest.raises(FitError, match="begin with the cheapest sizes"):
        design_loss.fit("nested", loss_grid("chinchilla", 0.003, sizes=2, budgets=2))
    with pytest.raises(InputError, match="none of the 4 runs ended well"):
        design_loss.candidates(loss_grid("chinchilla", 0.003, sizes=2, budgets=2).assign(status="diverged"))

"""Choosing trials: beside plain linear algebra, numerical derivatives and a made-up table with a known optimum."""

import numpy as np
import pandas as pd
import pytest

from laws import design, design_fit
from laws.errors import InputError
from laws.forms import steplaw

LAW = {"lr": (-6.0, -0.6, 0.2), "batch": (12.5, -0.2, 0.5)}  # at the centre, by ln N, by ln D
CENTER = np.log([3e8, 1e10])
KAPPA, TILT, BEND = np.log([0.02, 0.015, 0.01]), np.array([0.8, 0.2]), np.array([0.6, 1.2])


def optimum(table: pd.DataFrame) -> np.ndarray:
    x = np.log(table[["params", "tokens"]].to_numpy()) - CENTER
    return np.stack([c[0] + x @ np.array(c[1:]) for c in LAW.values()], axis=1)


def losses(table: pd.DataFrame, seed: int = 0, noise: float = 1e-3) -> np.ndarray:
    """By the law's own formula, with noise; runs far from the optimum diverge."""
    x = np.log(table[["params", "tokens"]].to_numpy()) - CENTER
    u, v = (np.log(table[["lr", "batch_tokens"]].to_numpy()) - optimum(table)).T
    above = steplaw.excess(np, u, v, KAPPA, TILT, BEND)
    y = 0.9 - 0.06 * x[:, 0] - 0.07 * x[:, 1] + above + noise * np.random.default_rng(seed).normal(size=len(u))
    return np.where(above > 0.5, np.nan, np.exp(y))


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    scales = pd.DataFrame([(n, d) for n in (1e8, 3e8, 9e8) for d in (3e9, 1e10, 3e10)], columns=["params", "tokens"])
    made = design.candidates(scales, (2e-4, 2e-2), (2**16, 2**22))
    return made.assign(loss=losses(made))


def begun(table: pd.DataFrame, runs: int = 60) -> tuple[design.Belief, pd.DataFrame]:
    rows = design.first(table, batch=runs, scales=4)
    targets = pd.DataFrame({"params": [2e9], "tokens": [1e11]})
    return design.fit(design.make_space(table, targets), table.iloc[rows]), targets


def test_candidates_are_a_grid_without_what_was_run():
    scales = pd.DataFrame({"params": [1e8, 2e8], "tokens": [1e9, 1e9]})
    every = design.candidates(scales, (1e-3, 4e-3), (2**16, 2**18))
    assert len(every) == 2 * 5 * 3 and every["flops"].iloc[0] == 6e17
    np.testing.assert_allclose(np.unique(every["lr"]), 1e-3 * 2 ** (np.arange(5) / 2))
    run = pd.DataFrame({"params": [2e8], "tokens": [1e9], "lr": [1.41e-3], "batch_tokens": [2**17]})
    left = design.candidates(scales, (1e-3, 4e-3), (2**16, 2**18), run)
    assert len(left) == 29
    gone = every.merge(left, how="left", indicator=True).query("_merge == 'left_only'").iloc[0]
    assert (gone["params"], gone["batch_tokens"]) == (2e8, 2**17) and gone["lr"] == pytest.approx(1.414e-3, rel=1e-3)


def test_budgets_rounded_to_whole_steps_are_one_scale():
    run = {"params": [1e8] * 3, "tokens": [1e9, 1.004e9, 2e9], "lr": [1e-3, 2e-3, 1e-3], "batch_tokens": [2**16] * 3}
    runs = pd.DataFrame(run)
    scales = design.scales_of(runs)
    assert scales["tokens"].round(3).tolist() == [1e9, 2e9]
    assert design.make_space(runs).of(runs).tolist() == [0, 0, 1]
    left = design.candidates(scales, (1e-3, 2e-3), (2**16, 2**16), runs)
    found = {(round(row.tokens), round(row.lr, 5)) for row in left.itertuples()}
    assert found == {(10**9, 0.00141), (2 * 10**9, 0.00141), (2 * 10**9, 0.002)}


def test_active_parameters_cost():
    rows = pd.DataFrame({"params": [1e9, 1e9], "tokens": [1e10, 1e10], "params_active": [2e8, np.nan]})
    np.testing.assert_allclose(design.training_flops(rows), [1.2e19, 6e19])


def test_the_surface_is_the_laws_and_its_derivatives_are_right():
    rng = np.random.default_rng(0)
    q = np.concatenate([np.zeros((40, 2)), rng.normal([*KAPPA, *TILT, *BEND, 0.0], 0.3, (40, 8))], axis=1)
    lr, batch = rng.normal(size=(2, 40))
    value, by_q = design_fit.surface(q, lr, batch)
    np.testing.assert_allclose(value, steplaw.excess(np, lr, batch, q[:, 2:5], q[:, 5:7], q[:, 7:9]), rtol=1e-12)
    for j in range(10):
        step = 1e-5 * np.eye(10)[j]
        numeric = (design_fit.surface(q + step, lr, batch)[0] - design_fit.surface(q - step, lr, batch)[0]) / 2e-5
        np.testing.assert_allclose(by_q[:, j], numeric, rtol=1e-5, atol=1e-9)
    h, at = 1e-4, design_fit.hessian(q)
    for i, j in ((0, 0), (0, 1), (1, 1)):
        corners = [(a, b, a * b) for a in (1, -1) for b in (1, -1)]
        moved = [s * design_fit.surface(q, *(h * (a * np.eye(2)[i] + b * np.eye(2)[j])))[0] for a, b, s in corners]
        np.testing.assert_allclose(at[:, i, j], sum(moved) / (4 * h**2), rtol=1e-3, atol=1e-7)


def test_both_ways_to_solve_agree():
    rng = np.random.default_rng(0)
    J, weight, diagonal = rng.normal(size=(20, 600)), rng.uniform(1, 9, 20), rng.uniform(1, 4, 600)
    for b in (rng.normal(size=600), rng.normal(size=(600, 3))):
        expected = np.linalg.solve(J.T @ (weight[:, None] * J) + np.diag(diagonal), b)
        np.testing.assert_allclose(design_fit._solve(J, weight, diagonal, b), expected, rtol=1e-8, atol=1e-12)


def test_gains_are_what_adding_the_trials_takes_from_the_regret(table):
    """Beside the plain formula for the covariance after a batch."""
    belief, targets = begun(table)
    chosen, gains = design.choose(belief, table, targets, batch=5)
    before = design.expected_regret(belief, targets)
    at = belief.space.of(table)
    settings = np.log(table[["lr", "batch_tokens"]].to_numpy())
    above, local = design_fit.surface(design_fit.quantities(belief.space, belief.theta)[at], *settings.T)
    local[:, design_fit.FLOOR] = 1.0
    J = design_fit.derivatives(belief.space, at, local)
    noise = belief.noise**2 + design_fit.FORM_ERROR**2 * (above**2 + np.sum((J @ belief.cov) * J, axis=1))
    J, noise = J[chosen], noise[chosen]
    cov = np.linalg.inv(np.linalg.inv(belief.cov) + J.T @ (J / noise[:, None]))
    after = design.expected_regret(design.Belief(belief.space, belief.theta, cov, belief.noise), targets)
    assert sum(gains) == pytest.approx(before - after, rel=1e-6) and 0 < sum(gains) < before


def test_the_cheaper_of_two_alike_is_taken(table):
    belief, targets = begun(table)
    twice = pd.concat([table, table.assign(flops=table["flops"] / 2)], ignore_index=True)
    chosen, _ = design.choose(belief, twice, targets, batch=1)
    assert chosen[0] >= len(table)
    dear, _ = design.choose(belief, twice, targets, batch=1, slot=1e30)  # then FLOPs do not matter
    best, _ = design.choose(belief, table, targets, batch=1, slot=1e30)
    assert table.iloc[best[0]]["lr"] == twice.iloc[dear[0]]["lr"]


def test_a_batch_spreads(table):
    belief, targets = begun(table)
    # Every candidate five times: the same setting again is worth less once it is taken.
    many = pd.concat([table] * 5, ignore_index=True)
    chosen, gains = design.choose(belief, many, targets, batch=12)
    assert len(set(chosen)) == 12
    kinds = many.iloc[chosen][["params", "tokens", "lr", "batch_tokens"]]
    assert len(kinds.drop_duplicates()) >= 6
    again, second = design.choose(belief, many.iloc[[chosen[0]] * 2], targets, batch=2)
    assert len(again) == 2 and second[0] == pytest.approx(gains[0]) and second[1] < 0.6 * second[0]


def test_budget_and_cohorts_are_kept(table):
    belief, targets = begun(table)
    chosen, _ = design.choose(belief, table, targets, batch=50, flops=2e20)
    assert 0 < table["flops"].iloc[chosen].sum() <= 2e20
    chosen, _ = design.choose(belief, table, targets, batch=12, cohort=4)
    groups = table.iloc[chosen].groupby(["params", "tokens", "batch_tokens"]).size()
    assert len(chosen) == 12 and len(groups) <= 3 and (groups % 4 == 0).all()
    with pytest.raises(InputError, match="cheapest of"):
        design.choose(belief, table, targets, batch=4, flops=1.0)


def test_the_first_batch_is_of_the_cheapest_scales_and_spreads(table):
    rows = table.iloc[design.first(table, batch=24)]
    assert len(rows.drop_duplicates()) == 24
    assert set(rows["flops"]) == set(np.sort(table["flops"].unique())[:3])
    assert np.log(rows["lr"]).std() > 0.8 * np.log(table["lr"]).std()
    assert len(design.first(table.head(5), batch=24)) == 5
    other = design.first(table, batch=24, seed=1)
    assert set(other) != set(rows.index)


def test_the_optimum_is_found_for_fewer_flops_than_at_random(table):
    targets = table[["params", "tokens"]].drop_duplicates()
    space = design.make_space(table)

    def regret(belief: design.Belief) -> float:
        u, v = (belief.optimum(targets) - optimum(targets)).T
        return float(np.mean(steplaw.excess(np, u, v, KAPPA, TILT, BEND)))

    total = table["flops"].sum()
    found, drawn = [], []
    for seed in range(3):
        rows = list(design.first(table, batch=24, seed=seed))
        belief = design.fit(space, table.iloc[rows])
        while table["flops"].iloc[rows].sum() < 0.015 * total:
            left = np.setdiff1d(np.arange(len(table)), rows)
            rows += list(left[design.choose(belief, table.iloc[left], targets, batch=8, flops=0.01 * total)[0]])
            belief = design.fit(space, table.iloc[rows], warm=belief)
        found.append(regret(belief))
        order = np.random.default_rng(seed).permutation(len(table))
        order = order[np.cumsum(table["flops"].to_numpy()[order]) <= table["flops"].iloc[rows].sum() * 2]
        drawn.append(regret(design.fit(space, table.iloc[order])))
    assert np.mean(found) < 4e-4  # 0.04%: far below the noise of a run
    assert np.mean(found) < np.mean(drawn) / 2  # which had twice the FLOPs


def test_diverged_runs_keep_the_optimum_away():
    scale = pd.DataFrame({"params": [1e8], "tokens": [1e9]})
    every = design.candidates(scale, (1e-3, 1.6e-2), (2**18, 2**18))
    runs = every.assign(loss=[2.50, 2.46, 2.43, 2.41, 2.40, np.nan, np.nan, np.nan, np.nan])
    space = design.make_space(every)
    with_lost, without = design.fit(space, runs), design.fit(space, runs.dropna())
    best = [belief.optimum(scale)[0, 0] for belief in (with_lost, without)]
    assert best[0] < np.log(6e-3) and best[0] < best[1]
    nothing = design.fit(space, runs.tail(4))  # all diverged: the prior
    assert nothing.optimum(scale)[0, 0] == pytest.approx(space.mid[0])


def test_a_published_law_as_prior():
    scales = pd.DataFrame({"params": [1e8, 1e9, 1e8], "tokens": [1e10, 1e10, 1e11]})
    every = design.candidates(scales, (1e-4, 1e-2), (2**16, 2**22))
    space = design.make_space(every)
    belief = design.fit(space, every.head(0).assign(loss=1.0), informed=design.published(space, "steplaw"))
    N, D = scales["params"], scales["tokens"]
    expected = np.log(np.stack([1.79 * N**-0.713 * D**0.307, 0.58 * D**0.571], axis=1))
    np.testing.assert_allclose(belief.optimum(scales), expected, atol=1e-6)
    with pytest.raises(InputError, match=r"known: .*steplaw"):
        design.published(space, "kaplan")


def test_mixtures_of_experts_have_an_exponent_of_their_own():
    scales = pd.DataFrame({"params": [2e9, 2e9], "tokens": [1e10, 1e10], "params_active": [2e8, np.nan]})
    space = design.make_space(scales.merge(pd.DataFrame({"lr": [1e-3, 1e-2], "batch_tokens": [1e5, 1e6]}), how="cross"))
    assert space.x.shape == (2, 4) and len(set(space.of(scales))) == 2

"""Hold-outs: what is held out, what is fitted to, and how the answer is scored."""

from typing import ClassVar

import numpy as np
import pandas as pd
import pytest

import laws
from laws import holdout, splits
from laws.errors import FitError, InputError

SIZES = np.geomspace(1e7, 3e9, 6)
BUDGETS = np.geomspace(1e9, 1e11, 5)


def surface(params, tokens):
    return 1.7 + 400 / params**0.34 + 400 / tokens**0.28


def runs(noise=0.002, seed=0):
    """Two runs a cell, the second a little worse; the law is Chinchilla's, with noise of the given relative size."""
    rng = np.random.default_rng(seed)
    rows = [(n, d, surface(n, d) * np.exp(noise * rng.normal())) for n in SIZES for d in BUDGETS]
    best = pd.DataFrame(rows, columns=["params", "tokens", "loss"])
    worse = best.assign(loss=best["loss"] * 1.05)
    lost = best.head(1).assign(loss=np.nan)
    both = pd.concat([worse, best], ignore_index=True).assign(status="ok")
    return pd.concat([both, lost.assign(status="diverged")], ignore_index=True)


@pytest.fixture(scope="module")
def by_params():
    return laws.backtest("chinchilla", runs(), heldout="params")


def test_the_largest_sizes_are_held_out_and_not_fitted_to(by_params):
    table = by_params.table
    assert set(table["params"]) == {SIZES[-1]} and len(table) == len(BUDGETS)  # a fifth of six sizes is one
    assert by_params.posterior.meta["ranges"]["params"][1] == SIZES[-2]
    assert by_params.posterior.meta["cells"] == len(BUDGETS) * (len(SIZES) - 1)


def test_the_scores_are_those_of_the_table(by_params):
    table = by_params.table
    truth = [runs().query("params == @n and tokens == @d")["loss"].min() for n, d in zip(table.params, table.tokens)]
    np.testing.assert_allclose(table["measured"], truth)
    assert by_params.error == pytest.approx(np.mean(np.abs(table["median"] / table["measured"] - 1)))
    assert by_params.width == pytest.approx(np.mean((table["high"] - table["low"]) / table["measured"]))
    inside = (table["low"] <= table["measured"]) & (table["measured"] <= table["high"])
    assert (table["inside"] == inside).all()
    assert by_params.coverage["0.9"] == pytest.approx(inside.mean())
    assert list(by_params.coverage) == ["0.5", "0.8", "0.9", "0.95"]
    assert list(by_params.coverage.values()) == sorted(by_params.coverage.values())


def test_a_true_law_extrapolates_within_its_intervals(by_params):
    # The form is right and the noise 0.2%: five cells at 2.4 times the size are predicted to well under 1%.
    assert by_params.error < 0.006
    assert by_params.coverage["0.95"] >= 0.6


def test_summary_is_the_json_of_the_design(by_params):
    summary = by_params.summary()
    assert {"law", "heldout", "error", "coverage", "width"} <= set(summary)
    assert summary["cells"] == 5 and summary["heldout"] == "params"


def test_compute_holds_out_the_costliest_quarter_of_cells():
    cells = holdout.best_per_cell(runs().query("status == 'ok'"), "loss")
    kept, out, _ = splits.held_out(cells, "compute", 0.25, "chinchilla")
    cost = 6 * cells["params"] * cells["tokens"]
    assert len(out) == round(0.25 * len(cells))
    assert (6 * out["params"] * out["tokens"]).min() == np.sort(cost)[-len(out)]
    assert len(kept) + len(out) == len(cells)


def test_sizes_that_differ_by_rounding_are_one_size():
    cells = pd.DataFrame({"params": [1e8, 1e9, 1.001e9, 2e9, 2.001e9], "tokens": 1e10, "loss": 3.0})
    _, out, words = splits.held_out(cells, "params", 0.2, "chinchilla")
    assert out["params"].tolist() == [2e9, 2.001e9] and words == "the largest of 3 sizes"


@pytest.mark.parametrize(
    ("law", "options", "error", "said"),
    [
        ("chinchila", {}, InputError, "did you mean 'chinchilla'"),
        ("chinchilla", {"heldout": "tokens"}, InputError, "heldout must be 'params' or 'compute', got 'tokens'"),
        ("chinchilla", {"fraction": 1.5}, InputError, "between 0 and 1, got 1.5"),
        ("chinchilla", {"target": "bpc"}, InputError, "'bpc'"),
        ("steplaw", {}, InputError, "'lr'"),
        ("chinchilla", {"fraction": 0.9}, FitError, "with the largest 5 of 6 sizes held out, chinchilla needs"),
    ],
)
def test_refusals_say_what_is_wrong(law, options, error, said):
    with pytest.raises(error) as caught:
        laws.backtest(law, runs(), **options)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_one_size_cannot_be_held_out():
    one = runs().query("params == @SIZES[0]")
    with pytest.raises(FitError, match="one model size only"):
        laws.backtest("chinchilla", one)


class FixedOptimum:
    """A posterior whose Step Law answer is known: lr 2e-3 within 5%, batch 2**17 within 5%, everywhere; losses rise by
    10% of the squared distance in the logarithms, with next to no noise."""

    law = "steplaw"
    meta: ClassVar[dict] = {}
    draws: ClassVar[dict] = {"noise": np.full(101, 1e-6), "form_error": np.full(101, 0.1), "df": np.full(101, 30.0)}

    def regret(self, *, params, tokens, lr, batch_tokens, n_draws):
        at = self.predict(params=params, tokens=tokens)
        squares = np.log(lr / at.lr.draws) ** 2 + np.log(batch_tokens / at.batch_tokens.draws) ** 2
        return laws.posterior.Quantity(np.expm1(0.1 * squares))

    def predict(self, *, params, tokens):
        spread = np.exp(np.linspace(-0.05, 0.05, 101))[:, None] * np.ones(len(params))
        return laws.posterior.Prediction(
            "steplaw",
            {"lr": laws.posterior.Quantity(2e-3 * spread), "batch_tokens": laws.posterior.Quantity(2.0**17 * spread)},
            [],
        )


def test_step_law_is_judged_by_the_regret_of_the_nearest_tried_setting():
    lrs, batches = (1e-3, 1.9e-3, 4e-3), (2.0**16, 2.0**17)
    grid = [(lr, batch) for lr in lrs for batch in batches]
    done = pd.DataFrame(grid, columns=["lr", "batch_tokens"]).assign(params=1e8, tokens=1e10)
    done["loss"] = [3.2, 3.0, 3.1, 3.03, 3.3, 3.3]  # best at (1e-3, 2**17); nearest to the answer: (1.9e-3, 2**17)
    cells = holdout.best_per_cell(done, "loss")
    rest = "loss", ["params", "tokens"]
    table, hits = holdout._judge_optimum(FixedOptimum(), cells, done, *rest)
    assert table["quantity"].tolist() == ["lr", "batch_tokens"]
    np.testing.assert_allclose(table["regret"], 3.03 / 3.0 - 1)
    assert table["inside"].tolist() == [False, True]
    assert hits[0.9].tolist() == [False, True]
    # Of those tried 1.9e-3 is the one that the law expects to win, though its optimum is above that.
    table, _ = holdout._judge_optimum(FixedOptimum(), cells, done.assign(loss=done["loss"] + [1, 1, 0, 0, 0, 0]), *rest)
    assert table["measured"].tolist() == [1.9e-3, 2.0**17] and table["inside"].all()
    assert FixedOptimum().predict(params=np.ones(1), tokens=1).lr.interval(0.9)[0] > 1.9e-3
    # Where runs' noise is large, any may.
    noisy = FixedOptimum()
    noisy.draws = noisy.draws | {"noise": np.full(101, 10.0)}
    assert holdout._judge_optimum(noisy, cells, done, *rest)[0]["inside"].all()
    # A cell with one batch size measures no best batch size.
    done = done[done["batch_tokens"] == 2.0**17].reset_index(drop=True)
    cells = holdout.best_per_cell(done, "loss")
    table, _ = holdout._judge_optimum(FixedOptimum(), cells, done, *rest)
    assert table["quantity"].tolist() == ["lr"]

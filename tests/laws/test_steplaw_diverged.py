"""Step Law's censored runs: those that diverged say that their loss is above the best of their cell."""

import jax
import numpy as np
import pandas as pd
import pytest
from scipy.special import log_ndtr
from scipy.stats import t as student

import laws
from laws.forms import steplaw
from laws.runs import finished, load_runs

from .conftest import STEPLAW, swept_grid

AT = {"params": np.array([1e5, 4e6]), "tokens": np.array([1e6, 2e7])}  # among the cells, and beyond them


def walled(seed: int, wall: float = 0.25) -> pd.DataFrame:
    """Cells whose loss is a parabola in ln lr about STEPLAW's optimum, up to `wall` above it: there runs diverge."""
    rng, rows = np.random.default_rng(seed), []
    for N in (1.2e4, 5e4, 2e5, 8e5):
        for D in (3e5, 1.2e6, 5e6):
            for u in np.arange(-3.0, 2.0, 0.5) + rng.uniform(-0.25, 0.25):
                loss = (1.5 + 20 * N**-0.3 + 30 * D**-0.35) * np.exp(0.03 * u**2 + 0.003 * rng.normal())
                row = {"params": N, "tokens": D, "lr": best(N, D) * np.exp(u), "batch_tokens": 2048.0}
                rows.append(
                    row | ({"loss": np.nan, "status": "diverged"} if u > wall else {"loss": loss, "status": "ok"})
                )
    return pd.DataFrame(rows)


def best(N, D):
    return np.exp(STEPLAW["lr_const"] + STEPLAW["lr_N"] * np.log(N) + STEPLAW["lr_D"] * np.log(D))


def answer(runs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """(how far ln lr's median is from the truth, the width of its 90% interval) at AT."""
    lr = laws.fit("steplaw", runs, laplace=True).predict(**AT).lr
    low, high = lr.interval(0.9)
    return np.log(lr.median / best(**{"N": AT["params"], "D": AT["tokens"]})), np.log(high / low)


def test_log_survival_is_the_students():
    x = np.linspace(-30, 30, 1201)
    for df in (2.0, 3.0, 6.0, 30.0):
        ours, exact = steplaw.log_survival(np, log_ndtr, x, df), student.logsf(x, df)
        np.testing.assert_allclose(np.exp(ours), np.exp(exact), atol=0.002)
        np.testing.assert_allclose(ours[x > 0], exact[x > 0], rtol=0.07)


def test_log_survival_has_gradients_everywhere():
    with jax.enable_x64(True):
        slope = jax.vmap(
            jax.grad(lambda t, df: steplaw.log_survival(jax.numpy, jax.scipy.special.log_ndtr, t, df), argnums=(0, 1)),
            in_axes=(0, None),
        )
        x = np.array([-50.0, -1.0, -1e-9, 0.0, 1e-9, 1e-3, 1.0, 50.0])
        d_t, d_df = slope(x, 4.0)
        step = 1e-6
        rise = lambda e, f: steplaw.log_survival(np, log_ndtr, x + e, 4.0 + f)  # noqa: E731
        np.testing.assert_allclose(d_t, (rise(step, 0) - rise(-step, 0)) / (2 * step), rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(d_df, (rise(0, step) - rise(0, -step)) / (2 * step), rtol=1e-4, atol=1e-8)


def test_diverged_runs_bound_an_optimum_at_the_edge_of_what_finished():
    tables = [walled(seed) for seed in range(2)]
    off, width = map(np.array, zip(*(answer(runs) for runs in tables)))
    off_dropped, width_dropped = map(np.array, zip(*(answer(runs[runs["status"] == "ok"]) for runs in tables)))
    assert np.abs(off).mean() < 0.75 * np.abs(off_dropped).mean()
    assert width.mean() < width_dropped.mean()
    assert np.mean(np.abs(off) < width / 2) >= 0.75


def test_where_the_bowl_is_higher_they_say_nothing():
    """A wall well beyond the optimum: what finished determines it."""
    runs = walled(0, wall=1.0)
    off, width = answer(runs)
    off_dropped, width_dropped = answer(runs[runs["status"] == "ok"])
    np.testing.assert_allclose(off, off_dropped, atol=0.02)
    np.testing.assert_allclose(width, width_dropped, rtol=0.1)


def test_one_that_diverged_at_the_optimum_does_not_overrule_its_neighbours():
    runs = swept_grid()
    first = runs[(runs["params"] == 5e4) & (runs["tokens"] == 1.2e6)].iloc[0]
    bad = first.to_frame().T.assign(lr=best(5e4, 1.2e6), status="diverged", loss=np.nan).astype(runs.dtypes)
    off, width = answer(runs)
    off_bad, width_bad = answer(pd.concat([runs, bad], ignore_index=True))
    assert np.all(np.abs(off_bad - off) < width / 4)
    np.testing.assert_allclose(width_bad, width, rtol=0.2)


def test_without_any_nothing_changes():
    """No diverged row, none of a modelled cell, none with a setting: the model's data are those of the finished runs,
    and runs that failed stay out."""
    runs = load_runs(swept_grid())
    done = finished(runs)
    data, facts = steplaw.prepare(done, "loss")
    elsewhere = runs[runs["status"] == "diverged"].assign(tokens=7e6)
    for none in (None, done[:0], elsewhere):
        same, also = steplaw.prepare(done, "loss", none)
        assert same.keys() == data.keys() and also == facts and facts["censored"] == 0
        assert all(np.array_equal(same[key], data[key]) for key in data)
    failed = runs.assign(status=runs["status"].replace("diverged", "failed"))
    unset = runs.assign(lr=runs["lr"].where(runs["status"] == "ok"))
    fits = [laws.fit("steplaw", some, laplace=True) for some in (done, failed, unset)]
    for fit, some in zip(fits, (done, failed, unset)):
        assert fit.meta["censored"] == 0 and fit.meta["excluded"] == len(some) - len(done)
        assert fit.meta["data_digest"] == fits[0].meta["data_digest"]
        for site, values in fits[0].draws.items():
            np.testing.assert_array_equal(fit.draws[site], values)


def test_they_are_in_the_digest_and_no_longer_at_the_edge():
    """A best run at the largest learning rate that finished is not at the edge where the next one diverged."""
    runs = walled(1, wall=0.0)
    both = [laws.fit("steplaw", some, laplace=True) for some in (runs, runs[runs["status"] == "ok"])]
    assert both[0].meta["data_digest"] != both[1].meta["data_digest"]
    at_edge = [any("smallest or largest learning rate" in note for note in fit.warnings) for fit in both]
    assert at_edge == [False, True]


@pytest.mark.parametrize("size", [3, 1000])
def test_each_cell_has_its_own(size):
    """Those of a cell, in its row; of very many, evenly many."""
    runs = load_runs(swept_grid())
    one = runs[runs["status"] == "diverged"].iloc[[0]]
    many = pd.concat([one] * size).assign(lr=np.geomspace(1, 2, size))
    data, facts = steplaw.prepare(finished(runs), "loss", many)
    rows = data["lost"].sum(axis=1)
    row = int(np.argmax(rows))
    assert sorted(rows)[-2] == 0 and facts["censored"] == rows[row] == (3 if size == 3 else 334)
    assert np.exp(data["ln_N"] + data["n"][row]) == pytest.approx(one["params"].item())
    assert np.exp(data["ln_D"] + data["d"][row]) == pytest.approx(one["tokens"].item())
    assert np.exp(data["lost_lr"][row][data["lost"][row]][0]) == pytest.approx(1.0)

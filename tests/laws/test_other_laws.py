"""Nested, Kaplan, repeated data, mixtures of experts, routed models: recovery, the numpy curve, limits and refusals."""

from html import escape

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import laws
from laws import forms, noise, report
from laws.errors import FitError, InputError
from laws.forms import data_constrained, grid, routed

from .conftest import CHINCHILLA

SIZES = np.geomspace(1e8, 3e9, 6)
BUDGETS = np.geomspace(2e9, 1e11, 6)
TRUTH = {
    "nested": CHINCHILLA | {"k": 0.8, "A": 900.0, "B": 4000.0},
    "kaplan": {"alpha_N": 0.076, "alpha_D": 0.103, "ln_N_c": np.log(6.4e13), "ln_D_c": np.log(1.8e13)},
    "data_constrained": CHINCHILLA | {"R_N": 5.3, "R_D": 15.4},
    "moe": CHINCHILLA | {"eta": 0.45},
    "routed": {"a": -0.082, "b": -0.108, "c": 0.009, "d": 1.104, "E_start": 1.847, "E_max": 314.478},
}
LAWS = sorted(TRUTH)


def columns_of(law: str) -> dict[str, np.ndarray]:
    """A design of runs that can tell the law's parameters."""
    if law == "routed":
        active, experts = (x.ravel() for x in np.meshgrid(SIZES, 2.0 ** np.arange(10)))
        return {"params": active * (1 + experts / 3), "tokens": np.full(active.size, 1.3e11)} | {
            "params_active": active,
            "n_experts": experts,
        }
    if law == "data_constrained":
        unique = np.array([1e9, 4e9, 1.6e10])
        N, U, epochs = (x.ravel() for x in np.meshgrid(SIZES, unique, [1.0, 3.0, 10.0, 30.0]))
        return {"params": N, "tokens": U * epochs, "unique_tokens": U}
    N, D = (x.ravel() for x in np.meshgrid(SIZES, BUDGETS))
    if law == "moe":
        return {"params": N * np.resize([1.0, 4.0, 12.0], N.size), "tokens": D, "params_active": N}
    return {"params": N, "tokens": D}


def mean_loss(law: str, p: dict[str, float], query: dict[str, np.ndarray]) -> np.ndarray:
    """The law's curve at p, as a posterior of one draw with no form error predicts it: [query]."""
    form = forms.get(law)
    draws = {k: np.array([v]) for k, v in p.items()} | {"noise": np.zeros(1)}
    _, facts = form.prepare(table(law, np.geomspace(4.0, 2.0, len(columns_of(law)["params"]))), "loss")
    query = {k: np.atleast_1d(np.asarray(v, float)) for k, v in query.items()}
    return form.predict(draws, facts | {"tails": 4.0}, query, {"loss": np.zeros(1)})["mean_loss"][0]


def table(law: str, loss: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(columns_of(law) | {"loss": loss, "status": "ok"})


def runs_of(law: str, noise: float = 0.002) -> pd.DataFrame:
    loss = mean_loss(law, TRUTH[law], columns_of(law))
    return table(law, loss * np.exp(noise * np.random.default_rng(0).normal(size=loss.size)))


@pytest.fixture(scope="module", params=LAWS)
def fitted(request) -> laws.Posterior:
    """One by NUTS, the others by the normal approximation, which takes a tenth of the time."""
    law = request.param
    return laws.fit(law, runs_of(law), laplace=law != "routed")


def test_a_law_is_recovered(fitted):
    """The truth is inside 98% intervals: of the coefficients, and of the loss at five times the size and data."""
    assert fitted.meta["diagnostics"].get("max_rhat", 1.0) < 1.01
    for site, truth in TRUTH[fitted.law].items():
        low, high = np.quantile(fitted.draws[site], [0.01, 0.99])
        assert low <= truth <= high, site
    beyond = {k: v[-1:] * (1 if k == "n_experts" else 5) for k, v in columns_of(fitted.law).items()}
    low, high = fitted.predict(**beyond).mean_loss.interval(0.98)
    assert low <= mean_loss(fitted.law, TRUTH[fitted.law], beyond) <= high < 1.1 * low


def test_a_posterior_survives_the_disk_and_answers_arrays(fitted, tmp_path):
    again = laws.load_posterior(fitted.save(tmp_path / "law.nc"))
    query = {k: np.array([[v[0]], [v[-1]]]) for k, v in columns_of(fitted.law).items()}
    answer = again.predict(**query).loss
    assert answer.median.shape == (2, 1) and (answer.interval(0.9)[0] < answer.interval(0.9)[1]).all()
    np.testing.assert_array_equal(answer.draws, fitted.predict(**query).loss.draws)
    for missing in forms.get(fitted.law).COVARIATES:
        with pytest.raises(InputError, match=missing):
            again.predict(**{k: v for k, v in query.items() if k != missing})


def test_the_report_shows_its_coefficients(fitted, tmp_path):
    law, runs = fitted.law, runs_of(fitted.law)
    assert set(report.SITES[law]) <= set(fitted.draws)
    page = report.write(tmp_path / "page.html", runs, posteriors={law: fitted}, backtests={}).read_text()
    assert escape(report.FORMULAS[law]) in page and all(escape(name) in page for name, *_ in report.SITES[law].values())
    assert ("What the laws say" in page) == (not forms.get(law).COVARIATES)


@pytest.mark.parametrize("law", LAWS)
def test_numpy_curve_is_the_models(law):
    form = forms.get(law)
    data, facts = form.prepare(runs_of(law), "loss")
    columns = runs_of(law).sort_values(["params", "tokens"])
    with jax.enable_x64(True):
        for seed in range(3):
            p = numpyro.handlers.seed(form.priors, jax.random.key(seed))({k: jnp.asarray(v) for k, v in data.items()})
            curve = np.exp(form.log_curve(jnp, p, data))
            draws = {name: np.atleast_1d(value) for name, value in p.items()} | {"noise": np.ones(1)}
            query = {k: columns[k].to_numpy() for k in columns_of(law)}
            out = form.predict(draws, facts | {"tails": 4.0}, query, {"loss": np.zeros(1)})
            np.testing.assert_allclose(np.sort(out["mean_loss"][0]), np.sort(curve), rtol=1e-9)


@pytest.mark.parametrize("law", LAWS)
def test_the_start_is_inside_the_prior_and_near_the_data(law):
    form = forms.get(law)
    data, _ = form.prepare(runs_of(law), "loss")
    with jax.enable_x64(True):
        values = {k: jnp.asarray(v, float) for k, v in form.start(data).items() if k not in grid.START}
        priors = numpyro.handlers.seed(numpyro.handlers.substitute(form.priors, values), jax.random.key(0))
        trace = numpyro.handlers.trace(priors).get_trace({k: jnp.asarray(v) for k, v in data.items()})
        assert {k for k, site in trace.items() if site["type"] == "sample"} == set(values)
        p = {k: site["value"] for k, site in trace.items() if k in form.SITES}
        error = np.abs(form.log_curve(jnp, p, data) - data["log_loss"])
    assert np.median(error) < 0.05


# --- what the formulas promise ---------------------------------------------------------------------------------------


def test_chinchilla_is_the_limit_of_each():
    """Nested at k = 1, one pass over data that the size does not exceed, a dense model."""
    N, D, p = 1e8, 1e11, CHINCHILLA
    expected = p["E"] + p["A"] * N ** -p["alpha"] + p["B"] * D ** -p["beta"]
    for law, extra, query in (
        ("nested", {"k": 1.0}, {}),
        ("data_constrained", {"R_N": 5.0, "R_D": 15.0}, {"unique_tokens": D}),
        ("moe", {"eta": 0.3}, {"params_active": N}),
    ):
        got = mean_loss(law, CHINCHILLA | extra, {"params": N, "tokens": D} | query)
        np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_repeats_are_worth_what_the_paper_says():
    """Muennighoff et al. 2023, section 3.1: at R*_D repeats each was worth 1 - 1/e of fresh data on average."""
    for limit in (2.0, 15.4):
        worth = np.exp(data_constrained.worth(np, np.log(1 + limit), limit))
        assert worth == pytest.approx(1 + limit * (1 - np.exp(-1)))
    assert np.exp(data_constrained.worth(np, np.log(1e5), 15.4)) == pytest.approx(16.4)
    assert np.exp(data_constrained.worth(np, np.log(1.2), 1e9)) == pytest.approx(1.2)


def test_experts_saturate_at_both_ends():
    p = TRUTH["routed"]
    experts = np.exp(routed.log_experts(np, p, {"d": np.log([1.0, 64.0, 1e12]), "ln_D": 0.0}))
    np.testing.assert_allclose(experts[[0, 2]], [p["E_start"], p["E_max"]], rtol=1e-6)
    assert p["E_start"] < experts[1] < 64


def test_routed_law_is_the_papers_equation():
    p, N, E = TRUTH["routed"], 3e8, 32.0
    ends = 1 / (E - 1 + 1 / (1 / p["E_start"] - 1 / p["E_max"])) + 1 / p["E_max"]
    n, e = np.log10(N), -np.log10(ends)
    expected = 10 ** (p["a"] * n + p["b"] * e + p["c"] * n * e + p["d"])
    query = {"params": 1e10, "tokens": 1.3e11, "params_active": N, "n_experts": E}
    np.testing.assert_allclose(mean_loss("routed", p, query), expected, rtol=1e-12)


def test_kaplan_is_the_papers_equation():
    expected = ((6.4e13 / 1e9) ** (0.076 / 0.103) + 1.8e13 / 2e10) ** 0.103
    np.testing.assert_allclose(
        mean_loss("kaplan", TRUTH["kaplan"], {"params": 1e9, "tokens": 2e10}), expected, rtol=1e-12
    )


scale = st.floats(1e7, 1e12)
ratio = st.floats(1.0, 30.0)
exponent = st.floats(0.05, 1.0)


@pytest.mark.parametrize("law", ["chinchilla", *LAWS])
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_loss_falls_with_size_and_data(law, data):
    """Whatever the scale and the coefficients: more of anything never raises the loss; arrays agree with floats."""
    p = {"E": 1.5, "A": 300.0, "B": 900.0, "alpha": data.draw(exponent), "beta": data.draw(exponent)}
    p |= {"k": data.draw(st.floats(0.3, 2.0)), "R_N": data.draw(ratio), "R_D": data.draw(ratio)}
    p |= {"eta": data.draw(st.floats(0.0, 1.0)), "alpha_N": data.draw(exponent), "alpha_D": data.draw(exponent)}
    p |= {"ln_N_c": 31.0, "ln_D_c": 30.0} | {k: v for k, v in TRUTH["routed"].items() if k not in p}
    at = {"params": data.draw(scale), "tokens": data.draw(scale), "n_experts": data.draw(st.floats(1.0, 600.0))}
    at["unique_tokens"], at["params_active"] = at["tokens"] / data.draw(ratio), at["params"] / data.draw(ratio)
    if law == "routed":  # beyond some size routing no longer helps: the paper's N_cutoff
        at["params_active"] = min(at["params_active"], 1e10)
    log_curve = forms.get(law).log_curve

    def loss(query):
        if law == "routed":
            query = {"params": query["params_active"], "tokens": query["n_experts"]}
        if law == "moe":
            query = {"params": query["params_active"], "tokens": query["tokens"], "all": query["params"]}
        center = {"ln_N": 0.0, "ln_D": 0.0} | {f"ln_{c}": 0.0 for c in query if c not in ("params", "tokens")}
        return log_curve(np, p, grid.coordinates(query, center))

    grow = data.draw(st.floats(1.0, 100.0))
    for column in at:
        assert loss(at | {column: at[column] * grow}) <= loss(at) + 1e-9, column
    both = loss({column: np.array([value, value * grow]) for column, value in at.items()})
    np.testing.assert_allclose(both[0], loss(at), rtol=1e-12)


# --- refusals --------------------------------------------------------------------------------------------------------


def without(law: str, **values) -> pd.DataFrame:
    return runs_of(law).assign(**values)


@pytest.mark.parametrize(
    ("law", "runs", "said"),
    [
        ("kaplan", lambda: without("kaplan", loss=3.0), "loss is 3 in every cell"),
        ("kaplan", lambda: runs_of("kaplan").head(4), "kaplan needs at least 6"),
        ("nested", lambda: without("nested", params=1e9), "1 sizes"),
        ("data_constrained", lambda: without("data_constrained", unique_tokens=1e12), "have 0: for unique data"),
        ("moe", lambda: without("moe", params_active=1e8), "moe needs at least 8"),
        ("moe", lambda: without("moe", params=runs_of("moe")["params_active"]), "vary independently"),
        ("moe", lambda: without("moe", params=3e10), "vary independently"),
        ("routed", lambda: without("routed", tokens=columns_of("routed")["params"]), "one token budget"),
        ("routed", lambda: runs_of("routed").query("n_experts < 3"), "3 numbers of experts.*have 6 and 2"),
        ("routed", lambda: runs_of("routed").head(6), "routed needs at least 8"),
    ],
)
def test_too_few_data_say_what_is_missing(law, runs, said):
    with pytest.raises(FitError, match=said) as caught:
        forms.get(law).prepare(runs(), "loss")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("law", ["data_constrained", "moe", "routed"])
def test_a_missing_covariate_is_named(law):
    for column in forms.get(law).COLUMNS:
        with pytest.raises(InputError, match=f"{law} needs a column '{column}'"):
            laws.fit(law, runs_of(law).drop(columns=column))


@pytest.mark.parametrize("law, where", [("moe", "active N"), ("routed", "experts")])
def test_an_outlier_is_named_by_the_laws_own_axes(law, where):
    runs = runs_of(law)
    runs.loc[20, "loss"] *= 1.3
    posterior = laws.fit(law, runs, laplace=True)
    (named,) = posterior.meta["outliers"]
    for axis in forms.get(law).AXES:
        assert named[axis] == pytest.approx(runs[axis][20])
    assert f"{where} " in noise.sentence(0.01, posterior.meta)


def test_dense_rows_need_no_active_size():
    runs = runs_of("moe")
    dense = runs["params"] == runs["params_active"]
    bare = runs.assign(params_active=runs["params_active"].where(~dense), n_experts=np.where(dense, np.nan, 16))
    (note, *_) = laws.fit("moe", bare, laplace=True).meta["warnings"]
    assert note.startswith(f"{dense.sum()} rows without params_active are taken for dense models")
    with pytest.raises(InputError, match="moe needs 'params_active' in every finished run"):
        laws.fit("moe", bare.assign(n_experts=16))


def test_runs_harmed_by_repetition_are_left_out_and_counted():
    runs = runs_of("data_constrained")
    most = runs["tokens"] >= 29 * runs["unique_tokens"]
    data, facts = data_constrained.prepare(runs.assign(loss=runs["loss"] * np.where(most, 1.5, 1.0)), "loss")
    assert len(data["n"]) == (~most).sum()
    assert f"{most.sum()} of {len(runs)} cells left out" in facts["notes"][0]
    assert data_constrained.prepare(runs, "loss")[1]["notes"] == []

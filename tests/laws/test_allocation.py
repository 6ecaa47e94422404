"""Allocation against closed forms, published examples and the surface itself."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

import laws
from laws.errors import InputError
from tests.laws import known
from tests.laws.conftest import FARSEER


def test_every_draw_is_at_chinchillas_closed_form():
    posterior, flops = known.chinchilla(0.02), np.geomspace(1e18, 1e26, 9)
    found = laws.allocate(posterior, flops=flops)
    for i, C in enumerate(flops):
        np.testing.assert_allclose(found.params.draws[:, i], known.closed_form(posterior.draws, C), rtol=2e-4)
    np.testing.assert_allclose(6 * found.params.draws * found.tokens.draws / flops, 1, rtol=1e-9)
    np.testing.assert_allclose(found.ratio.draws, found.tokens.draws / found.params.draws, rtol=1e-9)
    loss = posterior.predict(params=found.params.draws[7], tokens=found.tokens.draws[7]).mean_loss.draws[7]
    np.testing.assert_allclose(found.loss.draws[7], loss, rtol=1e-6)
    assert not np.any(found.no_optimum) and not np.any(found.local_only)


def test_recommended_has_the_least_mean_loss():
    posterior, C = known.chinchilla(0.03), 1e23

    def mean(ln_N):
        return posterior.predict(params=np.exp(ln_N), tokens=C / 6 / np.exp(ln_N)).mean_loss.draws.mean()

    best = minimize_scalar(mean, bounds=(np.log(1e9), np.log(1e12)), method="bounded", options={"xatol": 1e-7})
    found = laws.allocate(posterior, flops=C)
    assert found.recommended_params == pytest.approx(np.exp(best.x), rel=1e-3)
    assert found.recommended_params != pytest.approx(found.params.median, rel=1e-3)  # another question
    assert isinstance(found.recommended_params, float) and isinstance(found.loss.median, float)
    for tolerance, (low, high) in found.valley.items():
        assert low < found.recommended_params < high
        for edge in (low, high):
            assert mean(np.log(edge)) == pytest.approx(best.fun * (1 + tolerance), rel=1e-5)


def test_farseers_optimum_is_local_and_vanishes():
    """The interior minimum by the authors' coefficients, found apart from any grid, and its disappearance."""
    from laws.forms import farseer_staged

    flops = np.array([1e19, 1e20, 1e21, 1e22, 1e23, 1e24, 1e25])
    found = laws.allocate(known.farseer(), flops=flops)
    for i, C in enumerate(flops[:-1]):
        near = np.log(found.recommended_params[i])
        at = minimize_scalar(
            lambda x, C=C: float(farseer_staged.loss(FARSEER, np.exp(x), C / 6 / np.exp(x))),
            bounds=(near - 0.7, near + 0.7), method="bounded", options={"xatol": 1e-7},
        )  # fmt: skip
        assert np.exp(at.x) == pytest.approx(found.recommended_params[i], rel=1e-3)
        assert at.fun == pytest.approx(found.recommended_loss.median[i], rel=1e-6)
    assert found.ratio.median[1] < found.ratio.median[0] and found.ratio.median[5] > 4 * found.ratio.median[1]
    assert found.no_optimum.tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert np.isnan(found.recommended_params[-1]) and np.isnan(found.valley[0.01][0][-1])
    assert any("1e+25 FLOP up to 100% of the draws have no optimum" in text for text in found.warnings)
    assert any("only a local minimum" in text and "to 1e+24 FLOP" in text for text in found.warnings)
    assert found.local_only[0] == 0 and found.local_only[5] == 1


def test_inference_makes_models_smaller():
    """At equal total cost, against a minimum found apart from the grid; with no inference, nothing changes."""
    posterior, C = known.chinchilla(1e-9, truth=known.HOFFMANN, draws=4), 8e22
    p = known.HOFFMANN
    for T in (1e11, 2e12, 1e13):

        def loss(ln_N, T=T):
            N = np.exp(ln_N)
            return p["E"] + p["A"] * N ** -p["alpha"] + p["B"] * ((C - 2 * N * T) / 6 / N) ** -p["beta"]

        high = min(1e12, 0.999 * C / 2 / T)
        at = minimize_scalar(loss, bounds=(np.log(1e8), np.log(high)), method="bounded", options={"xatol": 1e-8})
        found = laws.allocate(posterior, flops=C, inference_tokens=T)
        assert found.recommended_params == pytest.approx(np.exp(at.x), rel=2e-3)
        assert found.loss.median == pytest.approx(at.fun, rel=1e-6)
        N, D = found.recommended_params, found.recommended_tokens
        assert pytest.approx(C, rel=1e-9) == 6 * N * D + 2 * N * T
    assert found.recommended_params < laws.allocate(posterior, flops=C).recommended_params / 2
    assert laws.allocate(posterior, flops=C, inference_tokens=0).recommended_params == pytest.approx(
        laws.allocate(posterior, flops=C).recommended_params
    )


def test_flops_per_token_may_be_a_function():
    posterior = known.chinchilla()
    plain = laws.allocate(posterior, flops=1e21)
    same = laws.allocate(posterior, flops=1e21, flops_per_token=lambda N: 6 * N)
    np.testing.assert_allclose(same.params.draws, plain.params.draws, rtol=1e-9)
    attention = laws.allocate(posterior, flops=1e21, flops_per_token=lambda N: 6 * N + 40 * N**0.9)
    assert attention.recommended_tokens < plain.recommended_tokens
    assert (attention.loss.draws > plain.loss.draws).all()
    halved = laws.allocate(posterior, flops=0.5e21, flops_per_token=3.0)
    np.testing.assert_allclose(halved.params.draws, plain.params.draws, rtol=1e-6)


def test_covariates_may_follow_the_size():
    """A mixture of experts at a fixed share of active parameters is a dense model of that size, per FLOP."""

    class Sparse(known.Known):
        def predict(self, *, params, tokens, n_draws=None, params_active):
            found = super().predict(params=params_active, tokens=tokens, n_draws=n_draws)
            assert np.allclose(params_active, 0.1 * np.asarray(params))
            return found

    dense = known.chinchilla()
    sparse = Sparse(dense.law, dense.samples, dense.meta)
    found = laws.allocate(sparse, flops=[1e20, 1e22], flops_per_token=0.6, params_active=lambda N: 0.1 * N)
    plain = laws.allocate(dense, flops=[1e20, 1e22])
    np.testing.assert_allclose(0.1 * found.params.draws, plain.params.draws, rtol=1e-3)
    np.testing.assert_allclose(found.recommended_loss.draws, plain.recommended_loss.draws, rtol=1e-6)


def test_overtraining_against_harms_law():
    """Compute that makes up for a smaller model, in closed form for Chinchilla: D multiplies by
    (1 - (k_N^-alpha - 1) alpha' )^(-1/beta) with alpha' = A N^-alpha / (B D^-beta) (de Vries 2023)."""
    posterior = known.chinchilla(1e-9, draws=4)
    table = laws.overtrain(posterior, flops=1e23, smaller=(1.5, 2, 3, 30))
    p, best = known.CHINCHILLA, laws.allocate(posterior, flops=1e23)
    N, D = best.recommended_params, best.recommended_tokens
    share = p["A"] * N ** -p["alpha"] / (p["B"] * D ** -p["beta"])
    for row in table.iloc[:3].itertuples():
        more_data = (1 - (row.smaller ** p["alpha"] - 1) * share) ** (-1 / p["beta"])
        assert row.compute_median == pytest.approx(more_data / row.smaller, rel=2e-3)
        assert row.tokens == pytest.approx(more_data * D, rel=2e-3)
        assert row.params == pytest.approx(N / row.smaller)
        same = p["E"] + p["A"] * row.params ** -p["alpha"] + p["B"] * (D * row.smaller) ** -p["beta"]
        assert row.loss_median == pytest.approx(same / best.recommended_loss.median - 1, rel=1e-4)
    assert table["unreachable"].tolist() == [0, 0, 0, 1] and np.isinf(table["compute_median"].iloc[3])
    with pytest.raises(InputError, match="smaller must be above 1"):
        laws.overtrain(posterior, flops=1e23, smaller=(0.5,))


def test_a_fitted_law_gives_back_the_truths_optimum(small_chinchilla):
    flops = np.array([1e20, 1e21])
    found = laws.allocate(small_chinchilla, flops=flops)
    low, high = found.params.interval(0.99)
    truth = known.closed_form(known.CHINCHILLA, flops)
    assert (low < truth).all() and (truth < high).all()
    assert found.params.draws.shape == (1000, 2) and found.recommended_loss.draws.shape == (1000, 2)
    assert found.warnings == []
    far = laws.allocate(small_chinchilla, flops=1e25)
    assert sum("decades above the fitted range" in text for text in far.warnings) == 2
    assert np.ptp(np.log(far.params.interval())) > np.ptp(np.log(np.array([low, high])), axis=0).max()


def test_it_is_quick(small_chinchilla):
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        laws.allocate(small_chinchilla, flops=np.geomspace(1e19, 1e22, 6))
        seconds.append(time.perf_counter() - begun)
    assert min(seconds) < 3  # 0.3 s on an idle machine


@pytest.mark.parametrize(
    "options, message",
    [
        ({"flops": 0}, "flops must be positive"),
        ({"flops": -1e21}, "flops must be positive"),
        ({"flops": float("nan")}, "positive and finite"),
        ({"flops": float("inf")}, "positive and finite"),
        ({"flops": 21}, "1e21 for 10\\^21"),
        ({"flops": 1e40}, "no training budget"),
        ({"flops": []}, "flops is empty"),
        ({"flops": "much"}, "flops must be a number"),
        ({"flops": 1e21, "inference_tokens": -1}, "inference_tokens must be positive"),
        ({"flops": 1e21, "inference_tokens": 2}, "write 2e9 for billions"),
        ({"flops": 1e21, "inference_tokens": float("nan")}, "inference_tokens must be positive and finite"),
        ({"flops": 1e21, "inference_tokens": [1e9, 1e10]}, "inference_tokens must be one number"),
        ({"flops": 1e15, "inference_tokens": 1e15}, "does not pay for a model"),
    ],
)
def test_bad_budgets(options, message):
    with pytest.raises(InputError, match=message) as caught:
        laws.allocate(known.chinchilla(), **options)
    assert "\n" not in str(caught.value)


def test_steplaw_has_no_loss():
    with pytest.raises(InputError, match="steplaw says nothing of the loss"):
        laws.allocate(laws.load_posterior("steplaw"), flops=1e21)


@settings(max_examples=40, deadline=None)
@given(
    exponent=st.floats(15, 27),
    inference=st.one_of(st.just(0.0), st.floats(6, 16).map(lambda x: 10**x)),
    shape=st.sampled_from([(), (1,), (2, 3), (0, 2)]),
)
def test_any_budget_is_an_answer_or_a_sentence(exponent, inference, shape):
    posterior = known.chinchilla(draws=20)
    flops = 10**exponent * np.ones(shape)
    try:
        found = laws.allocate(posterior, flops=flops, inference_tokens=inference)
    except InputError as error:
        assert "\n" not in str(error)
        assert not flops.size or 10**exponent < 2e3 * 1e3 * 3 + 2.1e3 * inference
        return
    for quantity in (found.params, found.tokens, found.ratio, found.loss, found.recommended_loss):
        assert quantity.draws.shape == (20, *shape)
    spent = 6 * found.params.draws * found.tokens.draws + 2 * inference * found.params.draws
    np.testing.assert_allclose(spent, np.broadcast_to(flops, spent.shape), rtol=1e-6)
    assert np.isfinite(found.loss.draws).all() and (found.loss.draws > 1).all()
    if np.isfinite(found.recommended_params).all():
        mean = found.recommended_loss.draws.mean(axis=0)
        for factor in (0.8, 1.25):
            N = found.recommended_params * factor
            D = (flops - 2 * inference * N) / 6 / N
            if (D > 0).all():
                assert (posterior.predict(params=N, tokens=D).mean_loss.draws.mean(axis=0) >= mean - 1e-6).all()


def test_a_smaller_model_outside_the_data_is_said_to_be():
    posterior = known.chinchilla(0.001)
    inside = laws.overtrain(posterior, flops=6e19, smaller=[1.5])
    assert inside.attrs["warnings"] == [] and inside["tokens"].iloc[0] < 1e12
    outside = laws.overtrain(posterior, flops=4e22, smaller=[1.5, 3])
    assert outside["tokens"].max() > 1e12 and outside["params"].max() > 1e10
    params, tokens = outside.attrs["warnings"]
    assert params.startswith("params ") and tokens.startswith(f"tokens {outside['tokens'].max():.3g} is")
    assert "above the fitted range" in params and "above the fitted range" in tokens

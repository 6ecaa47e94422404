"""Inverse questions: what they answer, put back into the surface, gives the loss asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar

import laws
from laws.errors import InputError
from tests.laws import known


def test_tokens_for_against_the_closed_form():
    posterior = known.chinchilla(0.01)
    p = posterior.draws
    found = laws.tokens_for(posterior, loss=2.1, params=[1e9, 7e9])
    for i, N in enumerate((1e9, 7e9)):
        left = 2.1 - p["E"] - p["A"] * N ** -p["alpha"]
        with np.errstate(invalid="ignore"):
            exact = np.where(left > 0, (left / p["B"]) ** (-1 / p["beta"]), np.inf)
        exact[exact > 1e18] = np.inf  # a million times the fitted 1e12
        np.testing.assert_allclose(found.draws[:, i], exact, rtol=2e-3)
    assert found.median.shape == (2,) and found.unreachable.shape == (2,)
    low, high = found.interval(0.9)
    assert (low <= found.median).all() and (found.median <= high).all()


def test_out_of_reach_is_infinite_and_said():
    posterior = known.chinchilla(0.01, seed=3)
    found = laws.tokens_for(posterior, loss=2.06, params=1e9)
    p = posterior.draws
    never = p["E"] + p["A"] * 1e9 ** -p["alpha"] + p["B"] * 1e18 ** -p["beta"] > 2.06
    assert 0.2 < never.mean() < 0.8
    assert found.unreachable == never.mean()
    np.testing.assert_array_equal(np.isinf(found.draws), never)
    assert any(f"in {never.mean():.0%} of the draws" in text and "out of reach" in text for text in found.warnings)
    assert np.isinf(found.interval(0.99)[1]) and np.isfinite(found.interval(0.99)[0])
    hopeless = laws.tokens_for(posterior, loss=1.0, params=1e9)
    assert hopeless.unreachable == 1 and hopeless.median == np.inf and hopeless.interval() == (np.inf, np.inf)


def test_easy_losses_are_upper_bounds():
    found = laws.tokens_for(known.chinchilla(), loss=50.0, params=1e9)
    assert found.median == pytest.approx(1e7)  # a hundredth of the fewest fitted
    assert any("upper bound" in text for text in found.warnings)


@settings(max_examples=30, deadline=None)
@given(loss=st.floats(1.9, 3.0), size=st.floats(8, 11), tokens=st.floats(9, 13))
def test_answers_put_back_give_the_loss(loss, size, tokens):
    posterior = known.chinchilla(0.005, draws=20)
    N = laws.params_for(posterior, loss=loss, tokens=10**tokens).draws
    D = laws.tokens_for(posterior, loss=loss, params=10**size).draws
    for draws, query in ((N, {"tokens": 10**tokens}), (D, {"params": 10**size})):
        axis = ({"params", "tokens"} - set(query)).pop()
        edge = {"params": 1e6, "tokens": 1e7}[axis]
        for i in np.flatnonzero(np.isfinite(draws) & (draws > edge * 1.01)):
            again = posterior.predict(**query, **{axis: draws[i]}).mean_loss.draws[i]
            assert again == pytest.approx(loss, abs=2e-4)
        for i in np.flatnonzero(np.isinf(draws)):
            far = posterior.predict(**query, **{axis: {"params": 1e16, "tokens": 1e18}[axis]}).mean_loss.draws[i]
            assert far >= loss


def test_sardanas_example():
    """A 13B Chinchilla model that will serve 2T tokens: a 7B one of the same loss costs 17%, 1.7e22 FLOP, less in all
    (Sardana et al. 2024, figure 1)."""
    p = known.HOFFMANN
    C = np.exp(brentq(lambda x: known.closed_form(p, np.exp(x)) - 13e9, np.log(1e20), np.log(1e26)))
    loss = p["E"] + p["A"] * 13e9 ** -p["alpha"] + p["B"] * (C / 6 / 13e9) ** -p["beta"]
    found = laws.cheapest(known.chinchilla(1e-9, truth=p, draws=4), loss=loss, inference_tokens=2e12)
    whole = C + 2 * 13e9 * 2e12
    assert found.params.median == pytest.approx(7e9, rel=0.01)
    assert 1 - found.flops.median / whole == pytest.approx(0.17, abs=0.005)
    assert whole - found.flops.median == pytest.approx(1.7e22, rel=0.02)


@pytest.mark.parametrize("inference", [0, 1e12])
def test_cheapest_against_a_minimum_found_otherwise(inference):
    p = known.CHINCHILLA
    posterior = known.chinchilla(1e-9, draws=4)
    found = laws.cheapest(posterior, loss=[2.0, 2.2], inference_tokens=inference)
    for i, loss in enumerate((2.0, 2.2)):

        def total(ln_N, loss=loss):
            left = loss - p["E"] - p["A"] * np.exp(-p["alpha"] * ln_N)
            return np.log(6 * (left / p["B"]) ** (-1 / p["beta"]) + 2 * inference) + ln_N if left > 0 else 1e3 - ln_N

        smallest = np.log(p["A"] / (loss - p["E"])) / p["alpha"]
        at = minimize_scalar(total, bounds=(smallest + 0.01, smallest + 8), method="bounded")
        assert found.flops.median[i] == pytest.approx(np.exp(at.fun), rel=3e-3)
        assert found.params.median[i] == pytest.approx(np.exp(at.x), rel=5e-3)
        spent = (6 * found.tokens.draws + 2 * inference) * found.params.draws
        np.testing.assert_allclose(spent, found.flops.draws, rtol=1e-6)


def test_cheapest_where_farseer_has_no_optimum():
    found = laws.cheapest(known.farseer(), loss=[0.42, 0.3])
    assert found.flops.unreachable.tolist() == [0, 1] and found.params.median[1] == np.inf
    allocated = laws.allocate(known.farseer(), flops=found.flops.median[0])
    assert allocated.loss.median == pytest.approx(0.42, abs=1e-4)
    assert allocated.params.median == pytest.approx(found.params.median[0], rel=1e-2)


@pytest.mark.parametrize(
    "question, options, message",
    [
        ("tokens_for", {"loss": 0, "params": 1e9}, "loss must be positive"),
        ("tokens_for", {"loss": float("nan"), "params": 1e9}, "loss must be positive and finite"),
        ("tokens_for", {"loss": "low", "params": 1e9}, "loss must be a number"),
        ("tokens_for", {"loss": 2, "params": 7}, "write 7e9 for billions"),
        ("tokens_for", {"loss": [2, 2.1], "params": [1e9, 2e9, 3e9]}, "do not broadcast"),
        ("params_for", {"loss": 2, "tokens": -1}, "tokens must be positive"),
        ("params_for", {"loss": 2, "tokens": 1e25}, "beyond any model"),
        ("cheapest", {"loss": float("inf")}, "loss must be positive and finite"),
        ("cheapest", {"loss": 2, "inference_tokens": 3}, "write 3e9 for billions"),
    ],
)
def test_bad_questions(question, options, message):
    with pytest.raises(InputError, match=message) as caught:
        getattr(laws, question)(known.chinchilla(), **options)
    assert "\n" not in str(caught.value)


def test_a_fitted_law(small_chinchilla):
    D = laws.tokens_for(small_chinchilla, loss=2.4, params=2e9)
    p = known.CHINCHILLA
    exact = ((2.4 - p["E"] - p["A"] * 2e9 ** -p["alpha"]) / p["B"]) ** (-1 / p["beta"])
    low, high = D.interval(0.99)
    assert low < exact < high and D.unreachable == 0 and D.warnings == []

"""Recipes compared over the plane, against the surfaces they were made from."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import laws
from laws.errors import InputError
from tests.laws import known
from tests.laws.conftest import CHINCHILLA

OTHER = CHINCHILLA | {"E": 1.71, "B": 1620.0}  # better with little data, worse with much
FLIP = (180 / 0.01) ** (1 / 0.36)


def test_where_two_recipes_cross():
    a, b = known.chinchilla(1e-4, seed=1), known.chinchilla(1e-4, OTHER, seed=2)
    found = laws.compare(a, b, params=[1e9, 1e10], tokens=np.geomspace(1e10, 1e13, 40))
    assert found.probability.shape == (2, 40) and found.difference.draws.shape == (200, 2, 40)
    assert (found.probability[:, 0] < 0.01).all() and (found.probability[:, -1] > 0.99).all()
    for row in found.crossings.itertuples():
        assert (row.before, row.after, row.share) == ("b", "a", 1.0)
        assert row.low < FLIP < row.high and row.median == pytest.approx(FLIP, rel=0.2)
    along = laws.compare(a, b).crossing
    assert (along["before"], along["after"]) == ("b", "a")
    # on the compute-optimal line the surfaces are compared at sizes and tokens of their own: found apart from compare
    flops = np.geomspace(1e18, 1e25, 4000)
    best = []
    for p in (CHINCHILLA, OTHER):
        N = known.closed_form(p, flops)
        best.append(p["E"] + p["A"] * N ** -p["alpha"] + p["B"] * (flops / 6 / N) ** -p["beta"])
    exact = flops[np.flatnonzero(best[0] < best[1])[0]]
    assert along["low"] < exact < along["high"]


def test_certain_draws_give_the_surfaces_ratio():
    a, b = known.chinchilla(1e-12, seed=1), known.chinchilla(1e-12, OTHER, seed=2)
    found = laws.compare(a, b, params=1e9, tokens=[1e10, 1e11])
    N, D = 1e9, np.array([1e10, 1e11])
    one, two = (p["E"] + p["A"] * N ** -p["alpha"] + p["B"] * D ** -p["beta"] for p in (CHINCHILLA, OTHER))
    np.testing.assert_allclose(found.difference.median, (one / two - 1)[None], rtol=1e-6)
    assert found.probability.tolist() == [[0.0, 0.0]]
    assert found.crossings["share"].tolist() == [0.0] and np.isnan(found.crossings["median"].iloc[0])


def test_the_same_recipe_twice_is_a_toss_up():
    a = known.chinchilla(0.01)
    found = laws.compare(a, a, params=[1e9, 1e10], tokens=[1e10, 1e11])
    np.testing.assert_allclose(found.probability, 0.5)
    difference = found.difference.draws
    assert (difference.std(axis=0) > 1e-3).all()  # independent draws, though the posterior is the same


def test_probability_is_over_all_pairs():
    a, b = known.chinchilla(0.01, seed=1, draws=40), known.chinchilla(0.01, OTHER, seed=2, draws=40)
    found = laws.compare(a, b, params=1e9, tokens=3e11)
    one, two = (x.predict(params=1e9, tokens=3e11).mean_loss.draws for x in (a, b))
    assert found.probability[0, 0] == pytest.approx(np.mean(one[:, None] < two), abs=1e-12)


@settings(max_examples=10, deadline=None)
@given(
    params=st.lists(st.floats(7, 12), min_size=1, max_size=4, unique=True).map(sorted),
    tokens=st.lists(st.floats(8, 14), min_size=1, max_size=4, unique=True).map(sorted),
    shift=st.floats(-0.05, 0.05),
)
def test_swapping_a_and_b_mirrors(params, tokens, shift):
    N, D = np.unique(np.round(10 ** np.array(params))), np.unique(np.round(10 ** np.array(tokens)))
    a = known.chinchilla(0.005, seed=1, draws=20)
    b = known.chinchilla(0.005, CHINCHILLA | {"E": 1.7 + shift}, seed=2, draws=20)
    one, two = laws.compare(a, b, params=N, tokens=D), laws.compare(b, a, params=N, tokens=D)
    assert one.probability.shape == (len(N), len(D))
    np.testing.assert_allclose(one.probability, 1 - two.probability, atol=1e-12)
    assert ((one.probability >= 0) & (one.probability <= 1)).all()


def test_ranges_and_warnings():
    a, b = known.chinchilla(seed=1), known.chinchilla(seed=2)
    b.meta["ranges"] = {"params": [5e8, 1e11], "tokens": [1e9, 1e12]}
    found = laws.compare(a, b)
    assert found.params[0] == pytest.approx(5e8) and found.params[-1] == pytest.approx(1e11)
    assert any(text.startswith("a: params 1e+11 is 1 decade above") for text in found.warnings)
    assert not any(text.startswith("b: params") for text in found.warnings)
    b.meta["ranges"] = {"params": [2e10, 1e11], "tokens": [1e9, 1e12]}
    with pytest.raises(InputError, match="ranges of params have nothing in common"):
        laws.compare(a, b)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"params": [2e9, 1e9]}, "params must be one number or a list of increasing ones"),
        ({"tokens": [[1e9, 2e9]]}, "tokens must be one number or a list"),
        ({"params": []}, "params must be one number or a list"),
        ({"params": 7}, "write 7e9 for billions"),
        ({"tokens": float("nan")}, "tokens must be positive and finite"),
    ],
)
def test_bad_planes(options, message):
    with pytest.raises(InputError, match=message):
        laws.compare(known.chinchilla(), known.chinchilla(), **options)


def test_different_losses_are_not_compared():
    with pytest.raises(InputError, match="a predicts 'loss' and b 'bpc'"):
        laws.compare(known.chinchilla(), known.farseer())

"""Posterior.predict whatever is asked: an answer of the query's shape, or one line that names the value."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import laws
from laws.errors import InputError

FIXTURES = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
COUNT = st.floats(3.5, 15).map(lambda x: 10**x)


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


TEXT = st.text(max_size=5).filter(lambda text: not is_number(text))


@pytest.fixture(scope="module", params=["steplaw", "chinchilla"])
def posterior(request):
    if request.param == "steplaw":
        return laws.load_posterior("steplaw")
    return request.getfixturevalue("small_chinchilla")


@settings(max_examples=40, **FIXTURES)
@given(shapes=hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=4), data=st.data())
def test_shapes_broadcast_and_entries_are_their_own(posterior, shapes, data):
    params, tokens = (data.draw(hnp.arrays(float, shape, elements=COUNT)) for shape in shapes.input_shapes)
    answer = posterior.predict(params=params, tokens=tokens)
    whole = np.broadcast_shapes(params.shape, tokens.shape)
    assert whole == shapes.result_shape
    each = list(zip(np.broadcast_to(params, whole).ravel(), np.broadcast_to(tokens, whole).ravel()))
    for name, quantity in answer.quantities.items():
        assert quantity.draws.shape[1:] == whole
        assert np.isfinite(quantity.draws).all() and (quantity.draws > 0).all()
        wide, narrow = quantity.interval(0.9), quantity.interval(0.5)
        for low, high in (wide, narrow):
            assert np.all(low <= quantity.median) and np.all(quantity.median <= high)
        assert np.all(wide[0] <= narrow[0]) and np.all(narrow[1] <= wide[1])
        if each:
            alone = getattr(posterior.predict(params=each[-1][0], tokens=each[-1][1]), name)
            assert alone.median == pytest.approx(np.ravel(quantity.median)[-1], rel=1e-9)


@settings(max_examples=60, **FIXTURES)
@given(
    value=st.one_of(st.floats(max_value=999), st.floats(min_value=1.001e20), st.just(float("nan")), TEXT, st.none()),
    which=st.sampled_from(["params", "tokens"]),
    among=st.booleans(),
)
def test_what_is_no_count_is_refused_in_one_line(posterior, value, which, among):
    among = among and isinstance(value, float)
    asked = {"params": 1e9, "tokens": 1e11} | {which: [1e9, value] if among else value}
    with pytest.raises(InputError, match=which) as caught:
        posterior.predict(**asked)
    assert "\n" not in str(caught.value)


@settings(max_examples=40, **FIXTURES)
@given(billions=st.floats(0.01, 900))
def test_billions_are_not_counts(posterior, billions):
    with pytest.raises(InputError, match=r"write .*e9 for billions"):
        posterior.predict(params=billions, tokens=1e12)
    assert posterior.predict(params=billions * 1e9, tokens=1e12)


@settings(max_examples=40, **FIXTURES)
@given(params=COUNT, tokens=COUNT)
def test_warnings_say_what_is_outside_and_nothing_else(posterior, params, tokens):
    said = posterior.predict(params=params, tokens=tokens).warnings
    for name, value in (("params", params), ("tokens", tokens)):
        low, high = posterior.meta["ranges"][name]
        mine = [text for text in said if text.startswith(name)]
        decades = max(np.log10(value / high), np.log10(low / value))
        if decades > 0.006:
            assert len(mine) == 1 and f"{decades:.2g} decade" in mine[0]
            assert ("above" if value > high else "below") in mine[0]
        elif decades < 0.004:
            assert mine == []


@settings(max_examples=20, **FIXTURES)
@given(params=st.floats(1e8, 1e11), tokens=st.floats(1e9, 1e13), times=st.floats(1.5, 100))
def test_more_of_either_never_harms_by_much(small_chinchilla, params, tokens, times):
    """A law of the loss falls with N and D; its form error may rise, but not beyond what it allows itself."""
    few = small_chinchilla.predict(params=params, tokens=tokens).mean_loss
    for more in ({"params": params * times, "tokens": tokens}, {"params": params, "tokens": tokens * times}):
        many = small_chinchilla.predict(**more).mean_loss
        assert many.median <= few.median * 1.05


def test_many_points_at_once_are_what_a_few_are(small_chinchilla):
    """Thousands go in blocks, their form error in single precision."""
    params = np.geomspace(1e7, 1e11, 2500)
    many = small_chinchilla.predict(params=params, tokens=1e21 / params, n_draws=100)
    for some in (slice(0, 300), slice(900, 1100), slice(2400, None)):
        few = small_chinchilla.predict(params=params[some], tokens=1e21 / params[some], n_draws=100)
        for name, quantity in few.quantities.items():
            np.testing.assert_allclose(many.quantities[name].draws[:, some], quantity.draws, rtol=1e-6)

"""allocate, overtrain, tokens_for, params_for, cheapest, compare and check, of a stack and of laws with covariates."""

import numpy as np
import pytest

import laws
from laws.errors import InputError

from .conftest import loss_grid
from .test_other_laws import runs_of

SHARE = 0.25
EXTRA = {
    "stack": {},
    "moe": {"params_active": lambda n: SHARE * n},
    "data_constrained": {"unique_tokens": 4e9},
    "routed": {"params_active": lambda n: SHARE * n, "n_experts": 16.0},
}


def runs(law):
    return loss_grid("chinchilla", 0.003, sizes=6, budgets=6) if law == "stack" else runs_of(law)


@pytest.fixture(scope="module")
def fits():
    return {law: laws.fit(law, runs(law), laplace=True) for law in EXTRA}


def at(posterior, params, tokens):
    """The median loss, by predict."""
    extra = {k: v(np.asarray(params)) if callable(v) else v for k, v in EXTRA[posterior.law].items()}
    return posterior.predict(params=params, tokens=tokens, **extra).mean_loss.draws.mean(axis=0)


@pytest.mark.parametrize("law", ["stack", "moe", "data_constrained"])
def test_a_budget_is_spent_where_predict_is_lowest(fits, law):
    """Against a search over sizes with predict, at the cost of what a token sees."""
    posterior, rate = fits[law], 6 * (SHARE if law == "moe" else 1)
    found = laws.allocate(posterior, flops=[1e20, 1e21], **EXTRA[law])
    for i, flops in enumerate((1e20, 1e21)):
        best = found.recommended_params[i]
        assert rate * best * found.recommended_tokens[i] == pytest.approx(flops, rel=1e-6)
        sizes = best * np.geomspace(0.3, 3, 61)
        assert np.argmin(at(posterior, sizes, flops / (rate * sizes))) in (29, 30, 31)
        assert found.recommended_loss.draws[:, i].mean() == pytest.approx(at(posterior, best, flops / (rate * best)))
    smaller = laws.overtrain(posterior, flops=1e21, smaller=[2], **EXTRA[law]).iloc[0]
    assert smaller["params"] == pytest.approx(best / 2) and smaller["loss_median"] > 0


@pytest.mark.parametrize("law", ["stack", "moe", "data_constrained", "routed"])
def test_inverse_questions_lead_back(fits, law):
    """The loss of a size and budget takes that budget, that size, and at least as little compute."""
    posterior, (params, tokens) = fits[law], (8e8, 1.5e10 if law != "routed" else 1.3e11)
    loss = float(at(posterior, params, tokens))
    size = laws.params_for(posterior, loss=loss, tokens=tokens, **EXTRA[law])
    assert size.median == pytest.approx(params, rel=0.02)
    if law == "routed":  # tokens do not enter
        return
    assert laws.tokens_for(posterior, loss=loss, params=params, **EXTRA[law]).median == pytest.approx(tokens, rel=0.02)
    least = laws.cheapest(posterior, loss=loss, **EXTRA[law])
    rate = 6 * (SHARE if law == "moe" else 1)
    assert least.flops.median <= 1.01 * rate * params * tokens
    np.testing.assert_allclose(rate * least.params.draws * least.tokens.draws, least.flops.draws, rtol=1e-6)


def test_a_law_without_tokens_is_not_asked_what_they_are_worth(fits):
    routed = fits["routed"]
    for question in (
        lambda: laws.allocate(routed, flops=[1e20, 1e21], **EXTRA["routed"]),
        lambda: laws.overtrain(routed, flops=1e21, **EXTRA["routed"]),
        lambda: laws.tokens_for(routed, loss=2.5, params=1e9, **EXTRA["routed"]),
        lambda: laws.cheapest(routed, loss=2.5, **EXTRA["routed"]),
    ):
        with pytest.raises(InputError, match=r"routed is a law of one budget, 1.3e\+11 tokens"):
            question()


@pytest.mark.parametrize("law", list(EXTRA))
def test_compared_with_itself_it_is_a_toss_up(fits, law):
    found = laws.compare(fits[law], fits[law], **EXTRA[law])
    np.testing.assert_allclose(found.probability, 0.5)


def test_two_laws_each_take_their_own(fits):
    """A mixture of experts beside a stack: of the loss that each predicts, and each at its own cost."""
    a, b = fits["moe"], fits["stack"]
    query = {"params": [1e9, 4e9], "tokens": [1e10, 4e10]}
    found = laws.compare(a, b, **query, **EXTRA["moe"])
    N, D = np.meshgrid(query["params"], query["tokens"], indexing="ij")
    middle = at(a, N, D) / at(b, N, D) - 1
    np.testing.assert_allclose(found.difference.median, middle, atol=0.01)
    assert found.budgets["flops"].iloc[0] == pytest.approx(6 * SHARE * 1e9 * 1e10)
    assert found.budgets["flops"].iloc[-1] == pytest.approx(6 * 4e9 * 4e10)
    with pytest.raises(InputError, match=r"neither moe \(a\) nor stack \(b\) reads unique_tokens"):
        laws.compare(a, b, unique_tokens=1e9, **EXTRA["moe"])


@pytest.mark.parametrize("law", ["moe", "data_constrained"])
def test_what_is_missing_is_named(fits, law):
    for question in (
        lambda: laws.allocate(fits[law], flops=1e20),
        lambda: laws.overtrain(fits[law], flops=1e20),
        lambda: laws.tokens_for(fits[law], loss=2.5, params=1e9),
        lambda: laws.cheapest(fits[law], loss=2.5),
        lambda: laws.compare(fits[law], fits[law]),
    ):
        with pytest.raises(InputError, match=f"{law} predicts from params, tokens, {next(iter(EXTRA[law]))}") as error:
            question()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("law", list(EXTRA))
def test_checks(fits, law):
    own = laws.check(fits[law], runs(law), prior=law == "routed")
    assert own.fitted_to_these and len(own.sentences) >= 6 and 0.8 < own.coverage[0.9] <= 1
    others = laws.check(fits[law], runs(law).iloc[::2], prior=False)
    assert not others.fitted_to_these and len(others.table) == len(runs(law).iloc[::2])
    if law == "routed":
        assert "the best size at the largest scale's compute" not in set(own.sensitivity["answer"])

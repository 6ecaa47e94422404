"""`fit` and `backtest` on tables that nobody chose: an answer that is finite, or a refusal of one line."""

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

import laws
from laws.errors import FitError, InputError

LOSS_LAWS = ("chinchilla", "nested", "kaplan")
SLOW = settings(max_examples=12, deadline=None)


@st.composite
def tables(draw) -> pd.DataFrame:
    """Up to 30 runs on a grid of sizes and budgets with gaps, with losses that may follow no law at all."""
    sizes = np.geomspace(1e7, 10 ** draw(st.floats(8, 10)), draw(st.integers(2, 6)))
    budgets = np.geomspace(1e9, 10 ** draw(st.floats(9.5, 12)), draw(st.integers(2, 5)))
    N, D = (x.ravel() for x in np.meshgrid(sizes, budgets))
    gaps = draw(st.sets(st.integers(0, N.size - 1), max_size=N.size // 3))
    N, D = (np.delete(x, sorted(gaps)) for x in (N, D))
    steep = draw(st.sampled_from([0.0, 0.1, 0.35]))  # 0: the loss does not depend on size or tokens
    noise = draw(st.sampled_from([0.0, 0.002, 0.3]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    loss = (1.7 + 400 * N**-steep / 400 + 1800 * D**-steep / 900) * np.exp(noise * rng.normal(size=len(N)))
    return pd.DataFrame({"params": N, "tokens": D, "loss": loss})


@given(tables(), st.sampled_from(LOSS_LAWS))
@SLOW
def test_any_table_is_fitted_or_refused_in_one_line(runs, law):
    try:
        posterior = laws.fit(law, runs, laplace=True)
    except (FitError, InputError) as refusal:
        assert "\n" not in str(refusal) and law in str(refusal)
        return
    answer = posterior.predict(params=runs["params"].to_numpy(), tokens=runs["tokens"].to_numpy()).loss
    low, high = answer.interval(0.9)
    assert np.isfinite(answer.draws).all() and (answer.draws > 0).all() and (low < high).all()
    inside = np.mean((low <= runs["loss"]) & (runs["loss"] <= high))
    assert inside >= 0.5, "a 90% interval at the runs fitted holds most of them, whatever they are"


@given(tables(), st.randoms(use_true_random=False))
@settings(max_examples=5, deadline=None)
def test_the_order_of_runs_and_their_columns_changes_nothing(runs, random):
    columns = random.sample(list(runs), len(list(runs)))
    shuffled = runs[columns].sample(frac=1, random_state=random.randrange(100)).reset_index(drop=True)
    try:
        posterior = laws.fit("chinchilla", runs, laplace=True)
    except (FitError, InputError):
        with np.testing.assert_raises((FitError, InputError)):
            laws.fit("chinchilla", shuffled, laplace=True)
        return
    again = laws.fit("chinchilla", shuffled, laplace=True)
    at = {"params": 3 * runs["params"].max(), "tokens": 3 * runs["tokens"].max()}
    a, b = (p.predict(**at).mean_loss for p in (posterior, again))
    assert abs(np.log(a.median / b.median)) < 0.5 * np.std(np.log(a.draws))


@given(tables(), st.sampled_from(["params", "compute"]))
@settings(max_examples=8, deadline=None)
def test_a_hold_out_is_finite_or_refused_in_one_line(runs, heldout):
    try:
        found = laws.backtest("chinchilla", runs, heldout=heldout, laplace=True)
    except (FitError, InputError) as refusal:
        assert "\n" not in str(refusal)
        return
    assert np.isfinite(found.error) and found.error >= 0
    assert all(0 <= share <= 1 for share in found.coverage.values())

"""Tables at the edge of sense: each gives a right answer, or one line that says what is missing or wrong."""

import numpy as np
import pandas as pd
import pytest

import laws
from experiments.cli import main
from laws import forms
from laws.forms import chinchilla, steplaw_cells

from .conftest import loss_grid, published, swept_grid

GRID = loss_grid("chinchilla", 0.003)
LAWS = ["chinchilla", "nested", "farseer", "stack"]
ONE_SIZE, ONE_BUDGET = (GRID[GRID[c] == GRID[c].iloc[0]] for c in ("params", "tokens"))
UPSIDE_DOWN = GRID.assign(loss=GRID["loss"].to_numpy().reshape(8, 8)[::-1].ravel())  # sizes in reverse


def refusal(law: str, runs: pd.DataFrame) -> str:
    with pytest.raises((laws.InputError, laws.FitError)) as caught:
        laws.fit(law, runs, laplace=True)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(
    ("runs", "said"),
    [
        (GRID.head(3), "3 cells, 1 sizes and 3 budgets: train more of what is short"),
        (ONE_SIZE, "8 cells, 1 sizes and 8 budgets: train more of what is short"),
        (ONE_BUDGET, "8 cells, 8 sizes and 1 budgets: train more of what is short"),
        (pd.concat([GRID.head(1)] * 100), "1 cells, 1 sizes and 1 budgets: train more of what is short"),
        (GRID.assign(loss=3.0), "loss is 3 in every cell"),
    ],
    ids=["3 rows", "one size", "one budget", "one run, many times", "constant loss"],
)
def test_laws_of_the_loss_say_what_is_short(law, runs, said):
    message = refusal(law, runs)
    assert message.startswith(f"{law}") and said in message


@pytest.mark.parametrize("law", [*LAWS, "steplaw"])
@pytest.mark.parametrize(
    ("column", "change", "said"),
    [
        ("params", lambda x: x / 1e9, "is it in millions or billions? write 7e9"),
        ("tokens", lambda x: x / 1e9, "is it in millions or billions? write 1.4e12"),
        ("loss", lambda x: -x, "not a plausible loss"),
        ("loss", lambda x: x.where(x.index > 0, 0.0), "row 1, loss = 0: not a plausible loss"),
        ("loss", lambda x: x.where(x.index > 0), "row 1, loss = nan: no loss in a run with status ok"),
        ("loss", lambda x: x.where(x.index > 0, np.inf), "row 1, loss = inf: no loss in a run with status ok"),
    ],
    ids=["params in billions", "tokens in billions", "negative", "zero", "NaN", "infinite"],
)
def test_impossible_numbers_are_named(law, column, change, said):
    runs = swept_grid() if law == "steplaw" else GRID
    assert said in refusal(law, runs.assign(**{column: change(runs[column])}))


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        (swept_grid().head(3), "have 0 .and 1 with fewer rates.: sweep the learning rate at more sizes or budgets"),
        (swept_grid().assign(loss=3.0, status="ok"), "the same whatever the learning rate"),
    ],
    ids=["3 rows", "constant loss"],
)
def test_steplaw_says_what_is_short(runs, said):
    with pytest.raises(laws.FitError, match=said):
        laws.fit("steplaw", runs)


def test_steplaw_of_one_size_says_which_exponents_are_not_learnt():
    runs = swept_grid()
    for column, name in (("params", "one model size"), ("tokens", "one token budget")):
        _, facts = steplaw_cells.prepare(
            runs[(runs[column] == runs[column].iloc[0]) & (runs["status"] == "ok")], "loss"
        )
        assert any(note.startswith(name) for note in facts["notes"])


def test_command_exits_with_2(tmp_path, capsys):
    path = tmp_path / "runs.csv"
    ONE_SIZE.to_csv(path, index=False)
    assert main(["fit", "chinchilla", str(path), "--out", str(tmp_path / "out.nc")]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and "1 sizes and 8 budgets: train more of what is short" in error
    assert not (tmp_path / "out.nc").exists()


@pytest.mark.parametrize("law", ["chinchilla", "nested", "farseer"])
def test_duplicates_change_nothing(law):
    once, thrice = (laws.fit(law, runs, laplace=True) for runs in (GRID, pd.concat([GRID] * 3)))
    for site in once.draws:
        np.testing.assert_array_equal(once.draws[site], thrice.draws[site])


@pytest.mark.parametrize("law", ["chinchilla", "nested", "farseer"])
def test_a_million_rows_are_their_cells(law):
    """Many runs a cell, none better than the one in GRID."""
    rng = np.random.default_rng(0)
    chosen = np.concatenate([np.arange(64), rng.integers(0, 64, 1_000_000)])
    many = GRID.iloc[chosen].reset_index(drop=True)
    many["loss"] *= 1 + np.where(np.arange(len(many)) < 64, 0.0, np.abs(0.01 * rng.standard_normal(len(many))))
    posterior = laws.fit(law, many, laplace=True)
    assert posterior.meta["rows"] == 1_000_064 and posterior.meta["cells"] == 64
    np.testing.assert_array_equal(posterior.draws["noise"], laws.fit(law, GRID, laplace=True).draws["noise"])


@pytest.mark.parametrize("law", LAWS)
def test_a_million_cells_are_refused(law):
    many = pd.DataFrame({c: np.geomspace(*ends, 1_000_000) for c, ends in ENDS.items()})
    message = refusal(law, many)
    assert "1000000 (params, tokens) cells" in message and "keep the last loss of each run" in message


ENDS = {"params": (1e8, 1e10), "tokens": (1e9, 1e12), "loss": (4.0, 2.0)}


def test_steplaw_models_some_of_very_many_runs():
    runs = swept_grid()
    runs = runs[runs["status"] == "ok"]
    rng = np.random.default_rng(0)
    many = runs.iloc[rng.integers(0, len(runs), 1_000_000)].reset_index(drop=True)
    many["loss"] *= np.exp(0.003 * rng.standard_normal(len(many)))
    data, facts = steplaw_cells.prepare(many, "loss")
    assert data["used"].shape[1] <= steplaw_cells.MOST and facts["rows_used"] > 12 * steplaw_cells.MOST / 2
    # As many from among the best as from among the worst that are near.
    cell = steplaw_cells.Cell(
        1e5, 1e6, 0.0, "", np.zeros(5000), np.zeros(5000), np.linspace(0, 0.015, 5000), *[np.empty(0)] * 2
    )
    assert np.mean(cell.log_loss[cell.modelled]) == pytest.approx(0.0075, rel=0.01)


@pytest.mark.parametrize("law", ["chinchilla", "nested", "farseer"])
def test_a_loss_that_rises_with_params_is_followed_and_said(law):
    posterior = laws.fit(law, UPSIDE_DOWN, laplace=True)
    (warning,) = posterior.warnings
    assert "the loss rises with params, which no law does" in warning
    fitted = posterior.predict(params=UPSIDE_DOWN["params"].to_numpy(), tokens=UPSIDE_DOWN["tokens"].to_numpy())
    np.testing.assert_allclose(fitted.mean_loss.median, UPSIDE_DOWN["loss"], rtol=0.015)


def test_usual_tables_do_not_rise():
    for name in ("epoch-chinchilla", "farseer", "steplaw-dense", "datablations"):
        runs = published(name).dropna(subset="params")
        target = next(c for c in ("loss", "eval_loss") if c in runs and np.isfinite(runs[c]).any())
        _, facts = chinchilla.prepare(runs[np.isfinite(runs[target])], target)
        assert facts["notes"] == []


@pytest.mark.parametrize("law", ["chinchilla", "nested", "farseer"])
def test_no_noise_at_all_gives_the_curve_back(law):
    exact = loss_grid("chinchilla", 0.0)
    posterior = laws.fit(law, exact, laplace=True)
    answer = posterior.predict(params=exact["params"].to_numpy(), tokens=exact["tokens"].to_numpy()).mean_loss
    np.testing.assert_allclose(answer.median, exact["loss"], rtol=1e-4)
    assert all(np.isfinite(values).all() for values in answer.interval())


def test_every_law_of_the_loss_refuses_three_rows():
    runs = GRID.head(3).assign(unique_tokens=GRID["tokens"], params_active=GRID["params"], n_experts=1.0)
    for law in forms.NAMES:
        if law != "steplaw":
            assert refusal(law, runs).startswith(law)

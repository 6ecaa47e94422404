"""Several recipes in one fit: a known hierarchy is recovered, few runs borrow, answers are told apart by recipe."""

import numpy as np
import pandas as pd
import pytest

import laws
from laws.errors import FitError, InputError
from laws.fitting import digest
from laws.forms import discrepancy

from .conftest import CHINCHILLA, loss_grid

LEVELS = {"a": 0.97, "b": 1.0, "c": 1.04}
BETAS = {"a": 0.36, "b": 0.37, "c": 0.34}
AT = {"params": 2e10, "tokens": 1e12}


def true_loss(recipe: str, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    p = CHINCHILLA
    data = p["B"] * 2e10 ** -p["beta"] * (tokens / 2e10) ** -BETAS[recipe]
    return LEVELS[recipe] * (p["E"] + p["A"] * params ** -p["alpha"] + data)


def runs_of(recipe: str, noise: float = 0.002, seed: int = 0) -> pd.DataFrame:
    table = loss_grid("chinchilla", 0.0, sizes=5, budgets=6)
    loss = true_loss(recipe, table["params"].to_numpy(), table["tokens"].to_numpy())
    scatter = noise * np.random.default_rng([seed, ord(recipe)]).normal(size=len(table))
    return table.assign(loss=loss * np.exp(scatter), recipe=recipe)


def hierarchy(few: int = 6) -> pd.DataFrame:
    """All runs of a and b; the `few` of c with least compute."""
    c = runs_of("c")
    c = c.iloc[np.argsort(c["params"] * c["tokens"])[:few]]
    return pd.concat([runs_of("a"), runs_of("b"), c], ignore_index=True)


@pytest.fixture(scope="module")
def fitted() -> laws.Posterior:
    return laws.fit("pooled", hierarchy(), seed=1)


def test_a_known_hierarchy_is_recovered(fitted):
    """Every recipe's loss at many times the scale, that of the one with six runs too; the spread of levels."""
    assert fitted.meta["diagnostics"]["max_rhat"] < 1.01
    for recipe in LEVELS:
        low, high = fitted.predict(**AT, recipe=recipe).mean_loss.interval(0.98)
        assert low <= true_loss(recipe, AT["params"], AT["tokens"]) <= high < 1.12 * low, recipe
    assert 0.01 < np.median(fitted.draws["spread_center"]) < 0.1
    widths = {r: np.subtract(*np.log(fitted.predict(**AT, recipe=r).loss.interval())[::-1]) for r in ("b", "c", "new")}
    assert widths["b"] < widths["c"] < widths["new"]
    assert np.log(1.04 / 0.97) < widths["new"] < 0.6


def test_form_error_is_in_the_difference_of_two_recipes(fitted):
    """Far from the data a difference opens up by more than the recipes' levels and slopes do, yet less than for fits
    that know nothing of each other."""
    b, c = fitted.of("b"), fitted.of("c")
    plain = [laws.Posterior(x.law, {s: v for s, v in x.samples.items() if s != "discrepancy"}, x.meta) for x in (b, c)]
    far = {"params": 1e12, "tokens": 1e14}

    def spread(x, y):
        return np.std(np.log(x.predict(**far).mean_loss.draws / y.predict(**far).mean_loss.draws))

    alone = np.hypot(*(np.std(np.log(x.predict(**far).mean_loss.draws)) for x in (b, c)))
    assert 1.1 * spread(*plain) < spread(b, c) < alone


def test_weights_of_recipes_are_weights_of_plain_features():
    rng = np.random.default_rng(0)
    phi, recipe, weights = rng.normal(size=(7, 3)), np.array([0, 1, 1, 0, 2, 2, 1]), rng.normal(size=(5, 4 * 3))
    expected = weights @ discrepancy.by_recipe(phi, recipe, 3).T
    each = discrepancy.of_each(weights, 3)
    assert each.shape == (5, 3, 3)
    np.testing.assert_allclose(np.einsum("spf,pf->sp", each[:, recipe], phi), expected)


def test_few_runs_borrow_from_the_others(fitted):
    """Six runs of small budgets can't tell the law; with the others they predict its largest runs."""
    alone = runs_of("c")
    out = alone.iloc[np.argsort(alone["params"] * alone["tokens"])[-10:]]
    with pytest.raises(FitError):
        laws.fit("nested", hierarchy().query("recipe == 'c'"), laplace=True)
    here = fitted.predict(params=out["params"].to_numpy(), tokens=out["tokens"].to_numpy(), recipe="c").loss
    error = np.abs(here.median / out["loss"].to_numpy() - 1).mean()
    ignored = laws.fit("nested", hierarchy().drop(columns="recipe"), laplace=True)
    other = ignored.predict(params=out["params"].to_numpy(), tokens=out["tokens"].to_numpy()).loss.median
    assert error < 0.01 < np.abs(other / out["loss"].to_numpy() - 1).mean()


def test_few_noisy_runs_shrink_to_the_population():
    """Two runs, a quarter apart in tokens, whose noise makes the loss rise with tokens: their slope is not believed."""
    two = runs_of("b").query("params < 2.1e8 and tokens < 2.1e9").assign(recipe="two")
    two["loss"] *= np.exp([-0.06, 0.06])
    assert len(two) == 2 and two["loss"].is_monotonic_increasing
    others = [runs_of("b", seed=s).assign(recipe=f"r{s}") for s in range(2)]
    posterior = laws.fit("pooled", pd.concat([*others, two], ignore_index=True), laplace=True)
    slope = {r: np.median(posterior.of(r).draws["beta"]) for r in ("two", "r0")}
    assert abs(slope["two"] / slope["r0"] - 1) < 0.25
    level = (
        posterior.predict(**AT, recipe="two").mean_loss.median / posterior.predict(**AT, recipe="r0").mean_loss.median
    )
    assert abs(np.log(level)) < 0.03


def test_identical_recipes_are_one_law():
    runs = pd.concat([runs_of("b", seed=s).assign(recipe=f"r{s}") for s in range(3)], ignore_index=True)
    posterior = laws.fit("pooled", runs)
    assert np.median(posterior.draws["spread_center"]) < 0.045  # a priori 0.1, and three recipes tell little
    single = laws.fit("nested", runs.groupby(["params", "tokens"])[["loss"]].mean().reset_index(), laplace=True)
    for recipe in ("r0", "r2", "new"):
        ratio = posterior.predict(**AT, recipe=recipe).mean_loss.median / single.predict(**AT).mean_loss.median
        assert abs(ratio - 1) < 0.01, recipe


def test_cells_of_different_recipes_are_not_merged(fitted):
    assert fitted.meta["cells"] == len(hierarchy())


def test_file_and_recipe_arrays(fitted, tmp_path):
    loaded = laws.load_posterior(fitted.save(tmp_path / "pooled.nc"))
    names = np.array([["a", "b"], ["new", "c"]])
    whole = loaded.predict(params=1e9, tokens=2e10, recipe=names).loss
    assert whole.median.shape == (2, 2)
    for name, median in zip(names.ravel(), whole.median.ravel()):
        assert fitted.predict(params=1e9, tokens=2e10, recipe=str(name)).loss.median == median
        assert fitted.of(str(name)).predict(params=1e9, tokens=2e10).loss.median == median


def test_answers_take_a_recipe(fitted):
    by_name = laws.allocate(fitted, flops=1e22, recipe="b").recommended_params
    assert by_name == laws.allocate(fitted.of("b"), flops=1e22).recommended_params
    assert laws.tokens_for(fitted, loss=2.3, params=3e9, recipe="a").median < 1e12
    found = laws.compare(fitted.of("a"), fitted.of("b"), params=[1e9, 3e9], tokens=[2e10, 6e10])
    assert (found.probability > 0.99).all()
    np.testing.assert_allclose(found.difference.median, LEVELS["a"] / LEVELS["b"] - 1, atol=0.01)
    itself = laws.compare(fitted.of("a"), fitted.of("a"), params=1e9, tokens=2e10)
    assert itself.probability == 0.5 and (itself.difference.draws == 0).all()


def test_warnings_are_of_the_recipes_own_range(fitted):
    wide, narrow = (fitted.predict(params=6e9, tokens=3e10, recipe=r).warnings for r in ("a", "c"))
    assert not wide
    assert narrow and all(note.startswith("c: ") for note in narrow)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "recipes: a, b, c, new"),
        ({"recipe": "cc"}, "no recipe 'cc', did you mean 'c'?; known: a, b, c, new"),
        ({"recipe": 3}, "no recipe 3; known: a, b, c, new"),
    ],
)
def test_unknown_recipes_are_refused(fitted, asked, said):
    with pytest.raises(InputError) as error:
        fitted.predict(params=1e9, tokens=2e10, **asked)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_what_cannot_be_pooled_is_refused(fitted):
    with pytest.raises(FitError, match="two recipes or more; these are all of 'a'"):
        laws.fit("pooled", runs_of("a"))
    with pytest.raises(FitError, match="'new' stands for a recipe without runs"):
        laws.fit("pooled", pd.concat([runs_of("a"), runs_of("b").assign(recipe="new")]))
    with pytest.raises(FitError, match="pooled needs at least 9"):
        laws.fit("pooled", pd.concat([runs_of("a")[:4], runs_of("b")[:3]]))
    with pytest.raises(InputError, match="nested is one law for all its runs"):
        fitted.of("a").of("a")


def test_a_backtest_holds_out_cells_of_every_recipe():
    found = laws.backtest("pooled", hierarchy(30), heldout="compute", laplace=True)
    assert set(found.table["recipe"]) == set(LEVELS)
    assert found.error < 0.01


def test_the_digest_holds_every_column_that_is_read():
    """Of laws with more columns, and of recipes: which rows share one, not what it is called."""
    table = laws.load_runs(hierarchy())

    def of(law: str, **changed: object) -> str:
        return digest(
            table.assign(lr=1e-3, batch_tokens=1e6, params_active=table["params"], **changed),
            "loss",
            laws.forms.get(law),
        )

    other = np.where(np.arange(len(table)) == 3, "c", table["recipe"])
    assert of("pooled") != of("pooled", recipe=other)
    assert of("pooled") == of("pooled", recipe="mine " + table["recipe"])
    assert of("nested") == of("nested", recipe=other)
    assert of("steplaw") != of("steplaw", recipe=other)
    half = digest(
        table.assign(lr=1e-3, batch_tokens=1e6, params_active=table["params"] / 2), "loss", laws.forms.get("steplaw")
    )
    assert of("steplaw") != half

"""Few nodes for many cells: the curve between them, the likelihood through them, and when all cells are looked at."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from scipy.stats import multivariate_normal

import laws
from laws import nodes, noise, published, rows, surface
from laws.forms import chinchilla, discrepancy, grid

from .conftest import loss_grid

CELLS = 200


@pytest.fixture(scope="module")
def cells():
    """Three decades of each, anywhere; a curve with noise. Checkpoints, four to a run."""
    rng = np.random.default_rng(0)
    x = {
        "n": rng.uniform(-3.5, 3.5, CELLS),
        "d": rng.uniform(-3.5, 3.5, CELLS),
        "ln_N": np.log(1e9),
        "ln_D": np.log(3e10),
    }
    return x | {"log_loss": curve(x) + 0.003 * rng.normal(size=CELLS)}


def curve(x):
    return np.log(1.7 + 400 * np.exp(-0.34 * (x["n"] + x["ln_N"])) + 1800 * np.exp(-0.36 * (x["d"] + x["ln_D"])))


@pytest.mark.parametrize("law", ["hoffmann", "farseer"])
def test_a_law_at_the_cells_is_what_its_nodes_say(cells, law):
    found = nodes.of(cells)
    assert len(found.x["n"]) == (nodes.DEGREE + 1) * (nodes.DEGREE + 2) // 2
    assert all(found.x[a].min() == cells[a].min() and found.x[a].max() == cells[a].max() for a in "nd")

    def ln_loss(x):
        N, D = np.exp(x["n"] + cells["ln_N"]), np.exp(x["d"] + cells["ln_D"])
        return np.log(published.LOSSES[law].loss(params=N, tokens=D))

    np.testing.assert_allclose(found.interpolate @ ln_loss(found.x), ln_loss(cells), atol=1e-5)


@pytest.mark.parametrize("checkpoints", [False, True])
def test_likelihood_through_nodes_is_the_exact_one(cells, checkpoints):
    """Against scipy's multivariate normal over all cells, up to a constant, at curves right and wrong."""
    rng = np.random.default_rng(1)
    precision, run = rng.uniform(0.3, 2.0, CELLS), np.arange(CELLS) // 4
    grouped = noise.groups(precision, run, 2.5) if checkpoints else None
    covariance = np.diag(1 / precision) + 2.5 * checkpoints * (run[:, None] == run)
    phi = discrepancy.features(discrepancy.domain(cells), cells)
    turned = discrepancy.rotate(noise.whiten(phi, precision, grouped))
    found = nodes.of(cells)
    seen = rows.observed(cells, turned, precision, CELLS, grouped, cells=found)
    assert max(np.size(v) for k, v in seen.items() if k != "project") == len(found.x["n"]) ** 2

    def ours(sd, form_error, off):
        with jax.enable_x64(True):
            model = numpyro.handlers.substitute(grid.observe, {"noise": sd, "form_error": form_error})
            arrays = {k: jnp.asarray(v) for k, v in seen.items()}
            at_nodes = jnp.asarray(curve(seen) + off * seen["n"])
            return float(numpyro.handlers.trace(model).get_trace(at_nodes, arrays)["log_loss"]["fn"].log_factor)

    def exact(sd, form_error, off):
        mean = curve(cells) + off * cells["n"]
        return multivariate_normal(mean, form_error**2 * phi @ phi.T + sd**2 * covariance).logpdf(cells["log_loss"])

    at = [(0.003, 0.02, 0.0), (0.002, 0.05, 0.01), (0.01, 0.001, -0.02)]
    np.testing.assert_allclose(
        [ours(*x) - ours(*at[0]) for x in at], [exact(*x) - exact(*at[0]) for x in at], rtol=1e-5, atol=1e-3
    )


@pytest.fixture(scope="module")
def runs():
    return loss_grid("chinchilla", 0.003, sizes=12, budgets=12)


def fitted(monkeypatch, runs, **settings):
    for name, value in settings.items():
        monkeypatch.setattr(surface if name == "MANY" else nodes, name, value)
    return laws.fit("chinchilla", runs, laplace=True)


def test_a_fit_through_nodes_is_the_fit_to_all_cells(monkeypatch, runs):
    assert len(runs) > surface.MANY
    through, all_cells = laws.fit("chinchilla", runs, laplace=True), fitted(monkeypatch, runs, MANY=10**9)
    for site in chinchilla.SITES:
        a, b = through.draws[site], all_cells.draws[site]
        assert abs(np.median(a) - np.median(b)) < 0.05 * np.std(b) and np.std(a) == pytest.approx(np.std(b), rel=0.05)


def test_where_nodes_are_not_close_all_cells_are_fitted(monkeypatch, runs):
    distrusted, all_cells = fitted(monkeypatch, runs, CLOSE=0.0), fitted(monkeypatch, runs, MANY=10**9)
    for site in chinchilla.SITES:
        np.testing.assert_array_equal(distrusted.draws[site], all_cells.draws[site])


def test_a_bend_between_nodes_is_noticed(cells):
    found = nodes.of(cells)
    draws = {"noise": np.full((1, 3), 0.003), "at": np.array([[0.0, 0.5, 1.0]])}

    def kink(xp, p, x):
        return 0.01 * xp.abs(x["n"] - p["at"])

    def smooth(xp, p, x):
        return 0.01 * xp.sin(x["n"] - p["at"])

    assert found.close(smooth, draws, cells) and not found.close(kink, draws, cells)


@pytest.mark.parametrize("bent, close", [(5, True), (50, False)])
def test_a_few_wild_draws_are_no_reason_to_distrust_nodes(cells, bent, close):
    size = np.r_[np.full(bent, 0.01), np.zeros(1000 - bent)]
    draws = {"noise": np.full((1, 1000), 0.003), "size": np.random.default_rng(0).permutation(size)[None]}
    assert nodes.of(cells).close(lambda xp, p, x: p["size"] * xp.abs(x["n"]), draws, cells) == close


def test_a_law_of_more_than_two_axes_has_no_nodes(cells):
    assert nodes.of(cells | {"unique_tokens": cells["d"]}) is None
    assert nodes.of(cells | {"run": np.arange(CELLS)}) is not None

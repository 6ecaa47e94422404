"""The form error against an exact Gaussian process, and what it does to fits; the stack of laws."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from scipy.stats import multivariate_normal, norm

import laws
from laws import rows, stacking
from laws.forms import discrepancy, grid

from .conftest import loss_grid


@pytest.fixture(scope="module")
def points():
    rng = np.random.default_rng(0)
    return {"n": rng.uniform(-2, 2, 30), "d": rng.uniform(-3, 3, 30)}


@pytest.fixture(scope="module")
def posterior():
    return laws.fit("nested", loss_grid("chinchilla", 0.003), laplace=True)


def matern(distance):
    r = np.sqrt(3) * np.abs(distance) / discrepancy.LENGTH
    return (1 + r) * np.exp(-r)


def test_features_are_the_process(points):
    phi = discrepancy.features(discrepancy.domain(points), points)
    kernel = matern(points["n"][:, None] - points["n"]) * matern(points["d"][:, None] - points["d"])
    np.testing.assert_allclose(phi @ phi.T, kernel, atol=0.02)


@pytest.mark.parametrize("count", [40, 900])  # fewer points than features, and more
def test_rotation_gives_back_the_covariance(count):
    rng = np.random.default_rng(3)
    many = {"n": rng.uniform(-2, 2, count), "d": rng.uniform(-3, 3, count)}
    phi = discrepancy.features(discrepancy.domain(many), many)
    root = np.sqrt(rng.uniform(0.2, 1.5, count))
    Q, s = discrepancy.rotate(root[:, None] * phi)
    np.testing.assert_allclose(Q.T @ Q, np.eye(len(s)), atol=1e-6)
    np.testing.assert_allclose(Q * s**2 @ Q.T, root[:, None] * (phi @ phi.T) * root, atol=1e-6)


def test_deviation_grows_with_the_distance_from_the_data(points):
    away = {"n": points["n"].max() + np.array([0.0, 1.0, 3.0, 6.0]), "d": np.zeros(4)}
    phi = discrepancy.features(discrepancy.domain(points), away)
    sd = np.sqrt(np.sum(phi**2, axis=1))
    assert np.all(np.diff(sd) > 0.1) and sd[0] == pytest.approx(1, abs=0.02)
    assert sd[-1] == pytest.approx(1 + 6 * discrepancy.GROWTH, rel=0.1)  # between coarse nodes a little is lost


def test_likelihood_is_the_exact_one(points):
    """`grid.observe`, rows padded and all, against scipy's multivariate normal."""
    rng = np.random.default_rng(1)
    phi = discrepancy.features(discrepancy.domain(points), points)
    precision = rng.uniform(0.2, 1.5, 30)
    data = points | {"log_loss": rng.normal(1, 0.02, 30)}
    gram = phi @ phi.T
    observed = rows.observed(data, discrepancy.rotate(np.sqrt(precision)[:, None] * phi), precision, 30.0)
    assert len(observed["n"]) == 32

    def log_likelihood(noise, form_error):
        with jax.enable_x64(True):
            curve = jnp.full(32, 1.0)
            model = numpyro.handlers.substitute(grid.observe, {"noise": noise, "form_error": form_error})
            arrays = {k: jnp.asarray(v) for k, v in observed.items()}
            return float(numpyro.handlers.trace(model).get_trace(curve, arrays)["log_loss"]["fn"].log_factor)

    def exact(noise, form_error):
        covariance = form_error**2 * gram + np.diag(noise**2 / precision)
        return multivariate_normal(np.ones(30), covariance).logpdf(data["log_loss"])

    at = [(0.01, 0.02), (0.003, 0.05), (0.02, 0.001)]
    ours, theirs = ([f(*x) - f(*at[0]) for x in at] for f in (log_likelihood, exact))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_draws_are_the_exact_conditional(points):
    """Drawn weights against the textbook conditional of a Gaussian process, at the data and beyond."""
    rng = np.random.default_rng(2)
    domain = discrepancy.domain(points)
    phi = discrepancy.features(domain, points)
    precision, noise, form_error = rng.uniform(0.2, 1.5, 30), 0.004, 0.02
    residual = form_error * phi @ rng.standard_normal(phi.shape[1]) + noise * rng.standard_normal(30)
    root, many = np.sqrt(precision), 20000
    weights = discrepancy.draw(
        discrepancy.rotate(root[:, None] * phi),
        root[:, None] * phi,
        np.tile(root * residual, (many, 1)),
        np.full(many, noise),
        np.full(many, form_error),
        rng,
    )
    far = discrepancy.features(domain, {"n": np.array([0.3, 3.5, 6.0]), "d": np.array([0.1, 4.0, -3.0])})
    draws = weights @ far.T
    inverse = np.linalg.inv(form_error**2 * phi @ phi.T + np.diag(noise**2 / precision))
    cross = form_error**2 * far @ phi.T
    mean = cross @ inverse @ residual
    covariance = form_error**2 * far @ far.T - cross @ inverse @ cross.T
    sd = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(draws.mean(axis=0), mean, atol=5 * sd.max() / np.sqrt(many))
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=0.05 * sd.max() ** 2)


def test_intervals_widen_beyond_the_data(posterior):
    (low_N, high_N), (_, high_D) = posterior.meta["ranges"]["params"], posterior.meta["ranges"]["tokens"]
    decades = np.array([0.0, 0.5, 1.0, 2.0, 3.0])
    low, high = posterior.predict(params=high_N * 10**decades, tokens=high_D * 10**decades).mean_loss.interval()
    assert np.all(np.diff(high / low) > 0)
    inside = posterior.predict(params=np.sqrt(low_N * high_N), tokens=high_D / 3).mean_loss.interval()
    assert inside[1] / inside[0] < 1.02 < (high / low)[-1]


def test_a_form_that_is_wrong_is_not_believed():
    """Losses with a bend that no law has: with form error the fit follows them and says so, without it doesn't."""
    runs = loss_grid("chinchilla", 0.001)
    n = np.log(runs["params"] / runs["params"].median())
    runs["loss"] *= np.exp(0.02 * np.sin(2 * n))
    with_error = laws.fit("chinchilla", runs, laplace=True)
    without = laws.fit("chinchilla", runs, laplace=True, form_error=False)

    def error(posterior):
        curve = posterior.predict(params=runs["params"].to_numpy(), tokens=runs["tokens"].to_numpy()).mean_loss.median
        return np.mean(np.abs(curve / runs["loss"] - 1))

    assert error(with_error) < 0.002 < 0.005 < error(without)
    assert np.median(with_error.draws["form_error"]) > 0.01
    assert np.all(without.draws["form_error"] == 0)


def test_an_outlier_is_named_and_counts_for_little():
    runs = loss_grid("chinchilla", 0.002)
    clean = laws.fit("nested", runs, laplace=True)
    spoilt = runs.copy()
    spoilt.loc[10, "loss"] *= 1.3
    dirty = laws.fit("nested", spoilt, laplace=True)
    assert clean.meta["outliers"] == []
    (named,) = dirty.meta["outliers"]
    assert named["loss"] == pytest.approx(spoilt.loc[10, "loss"])
    query = {"params": runs["params"].max() * 3, "tokens": runs["tokens"].max() * 3}
    a, b = clean.predict(**query).mean_loss, dirty.predict(**query).mean_loss
    assert abs(a.median - b.median) < np.std(a.draws)


# --- the stack -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def members():
    runs = loss_grid("chinchilla", 0.003)
    return {name: laws.fit(name, runs, laplace=True) for name in ("nested", "chinchilla")}


def test_stack_is_the_mixture_of_its_members(members, tmp_path):
    stack = stacking.combine(members, {"nested": 0.7, "chinchilla": 0.3})
    assert np.mean(stack.draws["member"] == 0) == pytest.approx(0.7, abs=1e-3)
    query = {"params": 7e9, "tokens": 1e12}
    answer = np.sort(stack.predict(**query).mean_loss.draws)
    for level in (0.1, 0.5, 0.9):
        at = np.quantile(answer, level)
        below = [np.mean(p.predict(**query).mean_loss.draws <= at) for p in members.values()]
        assert 0.7 * below[0] + 0.3 * below[1] == pytest.approx(level, abs=0.03)
    again = laws.load_posterior(stack.save(tmp_path / "stack.nc"))
    np.testing.assert_array_equal(np.sort(again.predict(**query).mean_loss.draws), answer)
    assert again.meta["members"] == ["nested", "chinchilla"]


def test_draws_of_a_stack_that_diverged_stand_beside_those_of_the_same_law(members):
    counts = {"nested": (0.0, 2000.0), "chinchilla": (1.0, 4000.0)}
    sampled = {
        name: laws.Posterior(
            p.law, p.samples, p.meta | {"diagnostics": dict(zip(("divergences", "draws"), counts[name]))}
        )
        for name, p in members.items()
    }
    stack = stacking.combine(sampled, {"nested": 0.7, "chinchilla": 0.3})
    assert stack.meta["diagnostics"] == {"divergences": 1.0, "draws": 4000.0}


def test_weights_go_to_the_law_that_extrapolates():
    """Losses of a strongly nested law: Chinchilla, which cannot bend so, loses weight against its prior."""
    grid_runs = loss_grid("chinchilla", 0.0)
    N, D = grid_runs["params"], grid_runs["tokens"]
    rng = np.random.default_rng(0)
    loss = 0.5 + (3e3 / N**0.5 + 6e4 / D**0.6) ** 0.3 * np.exp(rng.normal(0, 0.0005, len(N)))
    cells = grid_runs.assign(loss=loss)[["params", "tokens", "loss"]]
    weights = stacking.weights(cells, "loss", ["nested", "chinchilla"])
    prior = stacking.MEMBERS["chinchilla"] / (stacking.MEMBERS["nested"] + stacking.MEMBERS["chinchilla"])
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["chinchilla"] < prior / 1.5


def test_stack_leaves_out_laws_that_the_runs_are_too_few_for():
    runs = loss_grid("chinchilla", 0.003, sizes=3)
    stack = laws.fit("stack", runs, laplace=True)
    assert stack.meta["members"] == ["nested", "chinchilla"]
    assert any("farseer is not in the stack" in note and "these are 24" in note for note in stack.warnings)
    with pytest.raises(laws.FitError, match="stack: no law can be fitted"):
        laws.fit("stack", loss_grid("chinchilla", 0.003, sizes=2), laplace=True)


def test_log_density_is_that_of_the_predictive(members):
    cells = loss_grid("chinchilla", 0.003).iloc[:3][["params", "tokens", "loss"]]
    ours = stacking.log_density(members["nested"], cells, "loss")
    draws = np.log(
        members["nested"].predict(params=cells["params"].to_numpy(), tokens=cells["tokens"].to_numpy()).loss.draws
    )
    rough = norm(draws.mean(axis=0), draws.std(axis=0)).logpdf(np.log(cells["loss"]))
    assert ours == pytest.approx(rough.mean(), abs=0.5)

"""White coordinates: a map that can be undone, whose determinant is right, and a funnel that NUTS walks in it."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from laws import sampler
from laws.errors import FitError
from laws.normal import STEP, Mixture
from laws.whitening import straight


def bending(seed: int = 0) -> Mixture:
    """Of two coordinates whose mean and scatter change with a third, which comes second."""
    rng, u = np.random.default_rng(seed), np.arange(5) * STEP - 3
    means = np.stack([2 * u, u, u**2], axis=1)
    scales = np.array([np.exp(x) * np.eye(2) + 0.1 * rng.standard_normal((2, 2)) for x in u])
    return Mixture(np.array([1]), np.array([0, 2]), means, scales, np.full(5, 0.2))


def test_it_can_be_undone():
    way = bending().whitening()
    for white in np.random.default_rng(1).standard_normal((20, 3)):  # beyond the knots too
        flat, _ = way.place(white)
        np.testing.assert_allclose(way.whiten(np.asarray(flat)), white, atol=2e-4)  # in float32


def test_its_determinant_is_the_jacobians():
    with jax.enable_x64(True):
        way = bending().whitening()
        for white in np.random.default_rng(2).standard_normal((5, 3)):
            _, exact = np.linalg.slogdet(jax.jacobian(lambda w: way.place(w)[0])(white))
            assert way.place(white)[1] == pytest.approx(exact - np.log(way.spread), abs=1e-9)


def test_straight_has_the_covariance_of_any_root():
    with jax.enable_x64(True):
        root = np.random.default_rng(3).standard_normal((4, 4))
        way = straight(np.arange(4.0), root)
        columns = np.stack([way.place(e)[0] - way.place(np.zeros(4))[0] for e in np.eye(4)], axis=1)
        np.testing.assert_allclose(columns @ columns.T, root @ root.T, atol=1e-12)


def funnel(data):
    """Three values whose scatter is next to nothing or large; nothing is measured, so that all is known exactly."""
    sizes = dist.LogNormal(np.log([0.01, 0.15]), 0.5)
    size = numpyro.sample("size", dist.MixtureSameFamily(dist.Categorical(np.array([0.5, 0.5])), sizes))
    with numpyro.plate("values", 3):
        numpyro.sample("x", dist.Normal(data["middle"], size))


def test_a_funnel_is_walked_to_both_ends():
    start = {"size": 0.02, "x": np.ones(3)}
    found = sampler.sample(funnel, {"middle": 1.0}, start, name="funnel", over="size", num_samples=1000)
    log_size = np.log(found.draws["size"].ravel())
    assert (log_size > np.log(np.sqrt(0.01 * 0.15))).mean() == pytest.approx(0.5, abs=0.06)
    assert log_size.std() == pytest.approx(np.sqrt(0.5**2 + (np.log(15) / 2) ** 2), rel=0.05)
    z = (found.draws["x"] - 1.0) / found.draws["size"][..., None]
    assert z.std() == pytest.approx(1.0, rel=0.05)
    assert found.diagnostics["divergences"] <= 4


def test_chains_that_diverge_start_again_at_once_with_smaller_steps(monkeypatch):
    """They do not go on first: those draws would be thrown away."""
    # Every share of draws is too many, no chains have mixed, none are hopeless.
    for name, value in {"FEW": -1.0, "MAX_RHAT": 0.0, "HOPELESS": 0.0}.items():
        monkeypatch.setattr(sampler, name, value)
    data, start, done = {"middle": 1.0}, {"size": 0.02, "x": np.ones(3)}, []
    settings = {"num_warmup": 100, "num_samples": 100, "on_progress": lambda now, total: done.append(now)}
    with pytest.raises(FitError, match="did not settle"):
        sampler.sample(funnel, data, start, name="funnel", over="size", **settings)
    first, second = 50 + 100, 50 + 100 + sampler.EXTENSIONS * 100
    assert done[-1] == first + second

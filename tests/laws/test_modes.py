"""Posteriors of several modes: all are found from the starts given, weigh what they should, and chains show it."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from benchmarks import sbc
from laws import forms, normal, sampler, surface
from laws.errors import FitError
from laws.forms import farseer

STARTS = [{"x": -3.0, "scale": 1.0}, {"x": 3.0, "scale": 1.0}, {"x": 2.0, "scale": 1.0}]  # two lead to one mode


def two_hills(data):
    """x: three quarters Normal(-4, 0.5), a quarter Normal(4, 0.2)."""
    x = numpyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.sample("scale", dist.LogNormal(0.0, 0.5))
    hills = dist.Normal(jnp.array([-4.0, 4.0]), jnp.array([0.5, 0.2])).log_prob(x) + jnp.log(data["share"])
    numpyro.factor("hills", jnp.logaddexp(*hills))


SHARE = {"share": np.array([0.75, 0.25])}


@pytest.mark.parametrize("over", ["", "scale"])
def test_normal_approximations_are_mixed_by_the_modes_probabilities(over):
    draws = normal.sample(two_hills, SHARE, STARTS[0], others=STARTS[1:], name="hills", over=over, draws=2000).draws
    right = draws["x"] > 0
    assert right.mean() == pytest.approx(0.25, abs=0.01)
    assert np.std(draws["x"][right]) == pytest.approx(0.2, rel=0.1)
    assert np.std(draws["x"][~right]) == pytest.approx(0.5, rel=0.1)


def test_the_likeliest_mode_is_the_mode_whichever_start_comes_first():
    for first in (0, 1):
        found = normal.mode(two_hills, SHARE, STARTS[first], others=[STARTS[1 - first]], name="hills")
        assert found["x"] == pytest.approx(-4.0, abs=1e-3)


@pytest.mark.parametrize("over", ["", "scale"])
def test_chains_jump_from_mode_to_mode(over):
    found = sampler.sample(two_hills, SHARE, STARTS[0], others=STARTS[1:], name="hills", over=over)
    right = found.draws["x"] > 0
    assert np.all(right.mean(axis=1) > 0.1) and right.mean() == pytest.approx(0.25, abs=0.04)
    assert np.std(found.draws["x"][right]) == pytest.approx(0.2, rel=0.1)
    assert np.std(found.draws["x"][~right]) == pytest.approx(0.5, rel=0.1)


def test_chains_that_stay_at_different_modes_are_refused(monkeypatch):
    """From one mode they would agree, and be wrong."""
    monkeypatch.setattr(sampler.jumps, "of", lambda *_: None)
    with pytest.raises(FitError, match="did not settle"):
        sampler.sample(two_hills, SHARE, STARTS[0], others=STARTS[1:], name="hills", over="scale", num_samples=100)


def test_farseer_is_found_where_the_first_climb_leads_to_a_wrong_mode(monkeypatch):
    """Losses of `benchmarks.sbc`: from one start, the wrong sign, tens of standard deviations from the truth."""
    seed = 33
    data, _ = farseer.prepare(sbc.design("farseer"), "loss")
    truth, simulated = sbc._simulated_loss(forms.get("farseer"), data, np.random.default_rng(seed), seed)

    def rank() -> float:
        draws = surface.sample(farseer, simulated, name="farseer", seed=0, laplace=True).draws
        return float(np.mean(draws["decay_slope"] < truth["decay_slope"]))

    assert 0.005 < rank() < 0.995
    monkeypatch.delattr(farseer, "others")
    assert rank() in (0.0, 1.0)

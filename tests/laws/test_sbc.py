"""The calibration benchmark itself: it simulates what the models say, and notices a posterior that lies."""

import numpy as np
import pandas as pd
import pytest

from benchmarks import sbc
from laws import forms


@pytest.mark.parametrize("law", ["chinchilla", "farseer", "routed"])
def test_simulated_losses_are_the_laws(law):
    form = forms.get(law)
    data, _ = form.prepare(sbc.design(law), "loss")
    truth, simulated = sbc._simulated_loss(form, data, np.random.default_rng(1), 1)
    again, same = sbc._simulated_loss(form, data, np.random.default_rng(1), 1)
    np.testing.assert_array_equal(simulated["log_loss"], same["log_loss"])
    assert set(form.SITES) <= set(truth) and all(np.isfinite(v) for v in truth.values()) and truth == again
    curve = form.log_curve(np, truth, data)
    off = np.abs(simulated["log_loss"] - curve)
    assert 0 < np.median(off) < 5 * (truth["form_error"] + truth["noise"])
    middle = np.argmin(np.abs(data["n"]) + np.abs(data["d"]))
    assert truth["mean loss, middle"] == pytest.approx(curve[middle], abs=0.2)


def test_steplaw_is_simulated_with_its_runs_sorted():
    form = forms.get("steplaw")
    data, _ = form.prepare(sbc.design("steplaw"), "loss")
    truth, simulated = sbc._simulated_steplaw(form, data, 0)
    assert (np.diff(simulated["log_loss"], axis=1) >= 0).all()
    np.testing.assert_array_equal(np.sort(simulated["lr"], axis=1), np.sort(data["lr"], axis=1))
    assert {"lr_N", "lr_D", "batch_D", "noise"} <= set(truth)


def test_a_prior_returned_as_posterior_is_uniform_and_a_narrow_one_is_not(monkeypatch):
    """Posteriors that ignore the data are calibrated over the prior; draws too close together are not."""

    def ranks(scale):
        def replicate(law, data, seed, laplace):
            rng = np.random.default_rng(seed)
            return {"mu": ((rng.normal(size=sbc.LEFT) * scale < rng.normal()).sum() + rng.uniform()) / (sbc.LEFT + 1)}

        monkeypatch.setattr(sbc, "replicate", replicate)
        table, refused, _ = sbc.judged("chinchilla", 200)
        assert refused == 0
        return table

    good, narrow = ranks(1.0), ranks(0.6)
    assert sbc.verdict(good).startswith("uniform") and good["inside 90%"].iloc[0] == pytest.approx(0.9, abs=0.06)
    assert sbc.verdict(narrow).startswith("NOT UNIFORM") and narrow["inside 90%"].iloc[0] < 0.8
    assert "mu" in sbc._markdown(pd.DataFrame(good))

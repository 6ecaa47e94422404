"""Published laws: values that can be checked elsewhere, units, refusals, what all of them must obey."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laws.errors import InputError
from laws.published import LOSSES, SETTINGS, Rule, compute_optimum

RULES = [rule for law in SETTINGS.values() for rule in (law.lr, law.batch_tokens) if rule]
RULES += [law.loss for law in LOSSES.values()]
SCALES = {
    "params": st.floats(1e7, 1e11),
    "tokens": st.floats(1e9, 1e13),
    "flops": st.floats(1e17, 1e25),
    "loss": st.floats(1.5, 6.0),
    "unique_tokens": st.floats(1e8, 1e13),
    "params_active": st.floats(1e7, 5e9),  # routing stops helping at some size above: the paper's N_cutoff
    "n_experts": st.floats(1, 512),
}


def test_step_law_against_the_authors_tool():
    """Their bootstrap means at N = 1e9, D = 1e11: the printed digits are within 3% of them."""
    lr, batch = np.exp(0.5863) * 1e9**-0.7129 * 1e11**0.3075, np.exp(-0.5435) * 1e11**0.5709
    assert SETTINGS["steplaw"].lr(params=1e9, tokens=1e11) == pytest.approx(lr, rel=0.03)
    assert SETTINGS["steplaw"].batch_tokens(tokens=1e11) == pytest.approx(batch, rel=0.03)


def test_microsoft_is_what_the_step_law_paper_draws():
    law = SETTINGS["microsoft"].lr
    assert law(params=1.07e9, tokens=1e11) == pytest.approx(3.45e-4, rel=0.02)
    assert law(params=429e6, tokens=4e10) == pytest.approx(5.8e-4, rel=0.02)


def test_kaplan_batch_and_learning_rate():
    assert SETTINGS["kaplan"].batch_tokens(loss=2.0) == pytest.approx(2e8 / 2 ** (1 / 0.21))
    assert abs(SETTINGS["kaplan"].lr(params=1.2e10)) < 1e-5


def test_constants_that_are_not_published_are_not_made_up():
    assert SETTINGS["meituan"].lr is None and SETTINGS["meituan"].batch_tokens is None
    assert "not published" in SETTINGS["meituan"].notes[0]


@pytest.mark.parametrize(
    ("flops", "params", "ratio", "loss"),
    [(1e19, 2.08e8, 38.4, 0.6101), (1e21, 2.49e9, 26.9, 0.4886), (1e24, 3.21e10, 162, 0.3662)],
)
def test_farseer_optimum(flops, params, ratio, loss):
    """Computed apart from this code, by another minimiser."""
    n, d = compute_optimum("farseer", flops)
    assert n == pytest.approx(params, rel=5e-3) and d / n == pytest.approx(ratio, rel=5e-3)
    assert 6 * n * d == pytest.approx(flops)
    assert LOSSES["farseer"].loss(params=n, tokens=d) == pytest.approx(loss, abs=1e-4)


def test_farseer_optimum_vanishes():
    assert compute_optimum("farseer", 10**24.4)
    with pytest.raises(InputError, match=r"farseer has no compute optimum at 3.16e\+24 FLOP: its loss falls with N"):
        compute_optimum("farseer", 10**24.5)


@pytest.mark.parametrize(
    ("law", "flops"), [("hoffmann", 5.76e23), ("besiroglu", 5.76e23), ("farseer-chinchilla", 1e21)]
)
def test_chinchilla_optimum_is_the_closed_form(law, flops):
    p = LOSSES[law].coefficients
    power = 1 / (p["alpha"] + p["beta"])
    params = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** power * (flops / 6) ** (p["beta"] * power)
    assert compute_optimum(law, flops)[0] == pytest.approx(params, rel=1e-5)


def test_code_wants_more_data():
    """arXiv 2510.08702 reads D/N = 150 at 5.36e21 FLOP off its own digits."""
    n, d = compute_optimum("farseer-code", 5.36e21)
    assert d / n == pytest.approx(150, rel=0.05)


def test_one_epoch_of_repeated_data_is_chinchilla():
    p = LOSSES["muennighoff"].coefficients
    once = LOSSES["muennighoff"].loss(params=1e8, tokens=1e10, unique_tokens=1e10)
    assert once == pytest.approx(p["E"] + p["A"] * 1e8 ** -p["alpha"] + p["B"] * 1e10 ** -p["beta"])
    assert LOSSES["muennighoff"].loss(params=1e8, tokens=1e10, unique_tokens=1e9) > once


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.formula)
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_every_rule_broadcasts_and_falls_or_rises_as_it_says(rule: Rule, data):
    at = {name: data.draw(SCALES[name]) for name in rule.reads}
    value = rule(**at)
    assert isinstance(value, float) and np.isfinite(value)
    column = {name: np.array([[x], [2 * x]]) for name, x in at.items()}
    row = {name: np.array([x, x]) for name, x in at.items()}
    for name in rule.reads:
        out = rule(**(row | {name: column[name]}))
        assert out.shape == (2, min(len(row), 2)) and out[0, 0] == pytest.approx(value)
        if "loss" not in rule.reads and any(law.loss is rule for law in LOSSES.values()):
            assert out[1, 0] <= out[0, 0] * (1 + 1e-12)  # more size, data or experts never raises the loss


def test_arguments_are_checked():
    lr = SETTINGS["steplaw"].lr
    for scale, said in (
        ({"params": 1e9}, "reads params, tokens; got params"),
        ({}, "got nothing"),
        ({"params": 1e9, "tokens": 1e10, "flops": 1.0}, "got params, tokens, flops"),
        ({"params": -1.0, "tokens": 1e10}, "params must be positive and finite, got -1"),
        ({"params": 1e9, "tokens": [1e10, np.nan]}, "tokens must be positive and finite, got nan"),
        ({"params": [1e9] * 2, "tokens": [1e10] * 3}, "do not broadcast"),
    ):
        with pytest.raises(InputError, match=said):
            lr(**scale)
    for law in ("muennighoff", "steplaw"):
        with pytest.raises(InputError, match=f"no published loss law '{law}' in params and tokens; known: kaplan"):
            compute_optimum(law, 1e21)
    with pytest.raises(InputError, match="flops must be positive"):
        compute_optimum("hoffmann", 0.0)


def test_records_are_frozen_and_cite():
    for law in (*SETTINGS.values(), *LOSSES.values()):
        assert "20" in law.citation and law.counts
        with pytest.raises(dataclasses.FrozenInstanceError):
            law.citation = ""

"""What the Python API is given by mistake: one InputError line that names it, and short reprs of what it gives back."""

import numpy as np
import pytest

import laws
from laws import published
from laws.errors import InputError
from tests.laws import known
from tests.laws.conftest import loss_grid

MINE = known.chinchilla(draws=20)
EMPTY = {site: np.zeros((2, 10)) for site in ("E", "noise")}
META = {"ranges": {"params": [1e8, 1e10], "tokens": [1e9, 1e12], "params_active": [1e7, 1e9]}, "warnings": []}
MOE = laws.Posterior("moe", EMPTY, META)
ROUTED = laws.Posterior("routed", EMPTY, {"ranges": META["ranges"] | {"n_experts": [1.0, 64.0]}, "warnings": []})
STEPLAW = laws.load_posterior("steplaw")
SPARSE = {"params": 1e9, "tokens": 1e10}


@pytest.mark.parametrize(
    "question, named",
    [
        (lambda: laws.allocate("mine.nc", flops=1e21), ["'mine.nc'", "load_posterior"]),
        (lambda: laws.overtrain("mine.nc", flops=1e21), ["'mine.nc'"]),
        (lambda: laws.cheapest("mine.nc", loss=2.0), ["'mine.nc'"]),
        (lambda: laws.tokens_for("mine.nc", loss=2.0, params=1e9), ["'mine.nc'"]),
        (lambda: laws.allocate(MINE, flops=1e21, flops_per_token=-6), ["flops_per_token", "-6"]),
        (lambda: laws.allocate(MINE, flops=1e21, flops_per_token=np.nan), ["flops_per_token", "nan"]),
        (lambda: laws.allocate(MINE, flops=1e21, flops_per_token="6N"), ["flops_per_token", "'6N'"]),
        (lambda: laws.allocate(MINE, flops=1e21, flops_per_token=lambda n: 6 - n), ["flops_per_token"]),
        (lambda: laws.cheapest(MINE, loss=2, inference_flops_per_token=0), ["inference_flops_per_token", "0"]),
        (lambda: laws.allocate(MOE, flops=1e21, params_active=1e9), ["params_active", "lambda N: N / 8"]),
        (lambda: laws.allocate(MOE, flops=1e21, params_active="N/8"), ["params_active", "'N/8'", "lambda N: N / 8"]),
        (lambda: laws.params_for(MOE, loss=2.0, tokens=1e10, params_active=1e9), ["lambda N: N / 8"]),
        (lambda: laws.tokens_for(MOE, loss=2.0, params=1e10, params_active="N/8"), ["params_active", "'N/8'"]),
        (lambda: MOE.predict(**SPARSE, params_active=1e9, n_draws=1.5), ["n_draws", "1.5"]),
        (lambda: laws.allocate(MOE, flops=1e21, params_active=lambda n: n, n_draws=0), ["n_draws", "0"]),
        (lambda: laws.cheapest(MOE, loss=2, params_active=lambda n: n, n_draws=0), ["n_draws", "0"]),
        (lambda: MOE.predict(**SPARSE, params_active=2e9), ["params_active 2e+09 is above params 1e+09"]),
        (lambda: laws.allocate(MOE, flops=1e21, params_active=lambda n: 2 * n), ["is above params"]),
        (lambda: ROUTED.predict(**SPARSE, params_active=2e9, n_experts=8), ["is above params"]),
        (lambda: ROUTED.predict(**SPARSE, params_active=1e9, n_experts=0.5), ["n_experts 0.5 is below 1"]),
        (lambda: laws.overtrain(MINE, flops=[1e21, 1e22]), ["one budget", "2"]),
        (lambda: laws.overtrain(MINE, flops=1e21, smaller=[2, np.inf]), ["smaller", "inf"]),
        (lambda: laws.overtrain(MINE, flops=1e21, smaller="half"), ["smaller", "'half'"]),
        (lambda: laws.fit("chinchilla", loss_grid("chinchilla", 0.01), seed=-1), ["seed", "-1"]),
        (lambda: laws.fit("chinchilla", loss_grid("chinchilla", 0.01), seed="a"), ["seed", "'a'"]),
        (lambda: MINE.predict(**SPARSE).loss.interval("a"), ["level", "'a'", "0.9"]),
        (lambda: laws.tokens_for(MINE, loss=2.1, params=1e9).interval("a"), ["level", "'a'"]),
        (lambda: laws.load_posterior(5), ["load_posterior", "5"]),
        (lambda: laws.compare(MINE, "b.nc"), ["'b.nc'", "load_posterior"]),
        (lambda: laws.compare(MINE, MINE, n_draws=0), ["n_draws", "0"]),
        (lambda: laws.check("b.nc", loss_grid("chinchilla", 0.01)), ["'b.nc'", "load_posterior"]),
        (lambda: laws.fit("chinchilla", loss_grid("chinchilla", 0.01), chains="4"), ["chains", "'4'"]),
        (lambda: laws.fit("chinchilla", loss_grid("chinchilla", 0.01), num_samples=150.5), ["num_samples", "150.5"]),
        (lambda: laws.backtest("chinchilla", loss_grid("chinchilla", 0.01), fraction="0.2"), ["fraction", "'0.2'"]),
        (lambda: STEPLAW.settings(**SPARSE, within="0.1%"), ["within", "'0.1%'", "0.001"]),
        (lambda: laws.overtrain(MINE, flops=1e21, smaller=[]), ["smaller is empty"]),
        (lambda: laws.cheapest(MINE, loss=[]), ["loss is empty"]),
        (lambda: laws.allocate(MINE, flops=1e21, flops_per_token="6"), ["flops_per_token", "'6'"]),
        (lambda: MINE.save(""), ["save", "''"]),
        (lambda: STEPLAW.predict(params=10**400, tokens=1e10), ["params must be a number"]),
        (lambda: published.compute_optimum("hoffmann", "x"), ["flops", "'x'"]),
        (lambda: published.compute_optimum("hoffmann", [1e21]), ["flops", "one number"]),
        (lambda: published.LOSSES["hoffmann"].loss(params="7B", tokens=1e12), ["params", "'7B'"]),
    ],
)  # fmt: skip
def test_one_line_names_it(question, named):
    with pytest.raises(InputError) as error:
        question()
    assert "\n" not in str(error.value)
    for words in named:
        assert words in str(error.value)


def test_posteriors_can_be_compared_and_kept_in_sets():
    assert MINE == MINE and known.chinchilla(draws=20) != MINE and len({MINE, MINE}) == 1


def test_what_is_given_back_is_short_to_read():
    assert repr(MINE) == (
        "Posterior(chinchilla, 28 runs of made up: params 1e+08 to 1e+10; tokens 1e+09 to 1e+12; 20 draws)"
    )
    shown = repr(laws.allocate(MINE, flops=[1e21, 1e22]))
    assert shown.startswith("Allocation(1e+21 FLOP: ") and shown.count("tokens") == 2 and len(shown) < 150

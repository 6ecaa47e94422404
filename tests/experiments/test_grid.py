"""The grid language."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import InputError as EngineInputError
from engine.config import OptimConfig, TrainConfig
from experiments.errors import InputError
from experiments.grid import axis, chain, ladder, prod, trials, unique, where, zip_

LR = axis("optim.lr", [1e-3, 2e-3, 4e-3])
TOKENS = axis("tokens", [1e6, 2e6])


def test_prod_is_every_combination_last_fastest():
    assert prod(TOKENS, LR) == [
        {"tokens": t["tokens"], "optim.lr": r["optim.lr"]} for t in TOKENS for r in LR
    ]  # fmt: skip
    assert prod() == [{}]
    assert prod(TOKENS, []) == []


def test_prod_is_associative():
    seeds = axis("seed", [0, 1])
    assert prod(prod(TOKENS, LR), seeds) == prod(TOKENS, prod(LR, seeds)) == prod(TOKENS, LR, seeds)


def test_zip_pairs_and_refuses_unequal_lengths():
    assert zip_(axis("seed", [1, 2]), TOKENS) == [{"seed": 1, "tokens": 1e6}, {"seed": 2, "tokens": 2e6}]
    with pytest.raises(InputError, match=r"lengths 3, 2"):
        zip_(LR, TOKENS)


def test_chain_and_where():
    both = chain(LR, TOKENS)
    assert both == LR + TOKENS
    assert where(lambda t: "tokens" in t, both) == TOKENS


@pytest.mark.parametrize("combine", [prod, zip_])
def test_two_grids_that_set_one_field_are_refused(combine):
    with pytest.raises(InputError, match=r"optim\.lr is set by two"):
        combine(LR, LR)


def test_ladder_of_root_two_hits_its_ends():
    rungs = ladder(2**-9, 2**-7, 2**0.5)
    assert len(rungs) == 5
    assert rungs == pytest.approx([2 ** (-9 + i / 2) for i in range(5)], rel=1e-12)
    assert ladder(3.0, 3.0, 2) == [3.0]
    assert ladder(1.0, 7.9, 2) == [1, 2, 4]


@given(
    low=st.floats(1e-6, 1e6),
    ratio=st.floats(1.01, 10),
    n=st.integers(0, 40),
)
def test_ladder_never_passes_its_end_and_never_stops_early(low, ratio, n):
    high = low * ratio**n
    rungs = ladder(low, high, ratio)
    assert len(rungs) == n + 1
    assert rungs[0] == low
    assert rungs[-1] == pytest.approx(high, rel=1e-6)
    assert all(math.isclose(b / a, ratio, rel_tol=1e-9) for a, b in zip(rungs, rungs[1:]))  # noqa: RUF007


@pytest.mark.parametrize(
    "low, high, ratio", [(0, 1, 2), (-1, 1, 2), (2, 1, 2), (1, 2, 1), (1, 2, 0.5), (1, math.inf, 2)]
)
def test_impossible_ladders_are_refused(low, high, ratio):
    with pytest.raises(InputError, match="ladder"):
        ladder(low, high, ratio)


def test_trials_overlay_the_base():
    base = TrainConfig(tokens=1e6)
    made = trials(base, prod(axis("model.d_model", [32, 128]), LR))
    assert len(made) == 6
    assert [t.model.d_model for t in made] == [32] * 3 + [128] * 3
    assert [t.optim.lr for t in made] == [1e-3, 2e-3, 4e-3] * 2
    assert made[3].model.d_ff == 344  # derived anew from the new width: 8/3 x 128, up to a multiple of 8
    assert all(t.tokens == 1e6 for t in made)


def test_unknown_fields_and_impossible_shapes_are_refused():
    with pytest.raises(EngineInputError, match=r"'optim\.lrr'; did you mean optim\.lr"):
        trials(TrainConfig(), axis("optim.lrr", [1]))
    with pytest.raises(EngineInputError, match=r"d_model 65 is not a multiple"):
        trials(TrainConfig(), axis("model.d_model", [65]))
    with pytest.raises(EngineInputError, match=r"lr is -1"):
        trials(TrainConfig(), axis("optim.lr", [-1.0]))


def test_unique_keeps_the_first_of_equals():
    base = TrainConfig()
    made = trials(base, axis("optim.lr", [1e-3, 2e-3, "1e-3", 2e-3]))
    assert [t.optim.lr for t in unique(made)] == [1e-3, 2e-3]


def test_whole_numbers_are_the_same_run_as_floats():
    whole = TrainConfig(tokens=1_000_000, optim=OptimConfig(weight_decay=1, lr=1))
    assert whole == TrainConfig(tokens=1e6, optim=OptimConfig(weight_decay=1.0, lr=1.0))
    assert whole.run_id == TrainConfig(tokens=1e6, optim=OptimConfig(weight_decay=1.0, lr=1.0)).run_id

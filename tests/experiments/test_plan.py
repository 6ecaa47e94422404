"""Cohorts, chunks, what is left, what it costs."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import sizes
from engine.config import OptimConfig, TrainConfig, replace, structure
from experiments.grid import axis, prod, trials
from experiments.plan import estimate, make_plan, pending, trial_flops

from . import fakes

grids = st.builds(
    lambda widths, tokens, lrs, seeds, batches: trials(
        fakes.BASE,
        prod(
            axis("model.d_model", widths),
            axis("tokens", tokens),
            axis("optim.lr", lrs),
            axis("seed", seeds),
            axis("batch_size", batches),
        ),
    ),
    st.lists(st.sampled_from([16, 32, 64]), min_size=1, max_size=3),
    st.lists(st.sampled_from([640.0, 1280.0, 1300.0, 5000.0]), min_size=1, max_size=3),
    st.lists(st.sampled_from([1e-3, 2e-3, 3e-3]), min_size=1, max_size=3),
    st.lists(st.integers(0, 3), min_size=1, max_size=3),
    st.lists(st.sampled_from([1, 2, 8]), min_size=1, max_size=2),
)


@settings(max_examples=40, deadline=None)
@given(grids, st.integers(1, 7))
def test_a_plan_has_every_trial_once_in_chunks_that_can_share_a_program(configs, max_trials):
    plan = make_plan("g", configs, max_trials=max_trials)
    chunked = [t.run_id for chunk in plan.chunks for t in chunk.trials]
    assert sorted(chunked) == sorted({t.run_id for t in configs})  # none lost, none twice
    assert len(chunked) + plan.repeats == len(configs)
    assert len({chunk.id for chunk in plan.chunks}) == len(plan.chunks)
    for chunk in plan.chunks:
        assert 1 <= len(chunk.trials) <= max_trials
        assert {structure(t) for t in chunk.trials} == {structure(chunk.base)}
        assert len({t.steps for t in chunk.trials}) == 1  # no dead lanes
        assert [replace(chunk.base, h) for h in chunk.hypers] == list(chunk.trials)
    assert make_plan("g", configs, max_trials=max_trials).chunks == plan.chunks


def test_chunks_of_a_group_differ_by_one_at_most():
    plan = make_plan("g", trials(fakes.BASE, axis("seed", range(17))), max_trials=8)
    assert [len(c.trials) for c in plan.chunks] == [5, 6, 6]


def test_cheap_cohorts_come_first():
    plan = fakes.plan()
    costs = [sum(c.flops for c in cohort) for cohort in plan.cohorts]
    assert costs == sorted(costs) and len(costs) == 2


def test_recipes_do_not_mix_in_a_chunk():
    # a row's recipe is its chunk's
    configs = [replace(fakes.BASE, {"recipe": name}) for name in ("a", "b")]
    assert [len(c.trials) for c in make_plan("g", configs).chunks] == [1, 1]


@settings(max_examples=30, deadline=None)
@given(st.sets(st.integers(0, 23)))
def test_pending_is_exactly_what_is_missing(done_places):
    plan = fakes.plan()
    done = {plan.run_ids[i] for i in done_places}
    left = [t.run_id for chunk in pending(plan, done) for t in chunk.trials]
    assert sorted(left) == sorted(set(plan.run_ids) - done)
    untouched = [c for c in plan.chunks if not done & {t.run_id for t in c.trials}]
    assert set(untouched) <= set(pending(plan, done))  # same id, so its checkpoint is found


def test_flops_are_counted_over_whole_steps():
    config = TrainConfig(tokens=10_000, batch_size=16, optim=OptimConfig(warmup_steps=0))  # 4096 a batch: 2 steps
    assert trial_flops(config) == sizes.flops_per_token(config.model, 256) * 8192


def test_flops_of_a_paper_scale_grid_do_not_overflow():
    config = replace(TrainConfig(), {"model.d_model": 8192, "model.n_layers": 64, "model.n_heads": 64, "tokens": 1e14})
    assert 1e24 < trial_flops(config) < 1e27
    assert math.isfinite(make_plan("g", [config]).flops)


def test_no_estimate_before_a_trial_has_finished():
    plan = fakes.plan()
    assert estimate(plan, plan.chunks, {}).seconds is None
    assert estimate(plan, plan.chunks, {plan.run_ids[0]: math.nan}).seconds is None


def test_the_estimate_uses_a_cohorts_own_pace_where_it_is_known():
    plan = fakes.plan()
    small, large = plan.cohorts
    pace = {small[0].id: 1e9, large[0].id: 5e9}  # FLOP/s
    walls = {t.run_id: trial_flops(t) / pace[c.id] for c in (small[0], large[0]) for t in c.trials}
    left = pending(plan, walls)
    expected = sum(c.flops for c in small[1:]) / 1e9 + sum(c.flops for c in large[1:]) / 5e9
    guess = estimate(plan, left, walls)
    assert guess.seconds == pytest.approx(expected, rel=1e-9)
    assert guess.trials == len(walls)


def test_the_estimate_falls_back_on_the_overall_pace():
    plan = fakes.plan()
    small, large = plan.cohorts
    walls = {t.run_id: trial_flops(t) / 2e9 for c in small for t in c.trials}
    assert estimate(plan, large, walls).seconds == pytest.approx(sum(c.flops for c in large) / 2e9)

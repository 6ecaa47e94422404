"""engine.train and engine.train_population, whole, on synthetic tokens."""

import json
import math

import jax
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

import engine
from engine import InputError, lanes, population, row, step
from engine import config as config_lib
from engine import mesh as mesh_lib


@pytest.fixture(scope="module")
def results(tiny):
    """A good trial, one that diverges, and a short one."""
    hypers = [{}, {"optim.lr": 1e30}, {"tokens": tiny.tokens / 2, "seed": 7}]
    seen = []
    out = engine.train_population(tiny, hypers, on_progress=seen.append)
    return out, seen


def test_result_is_consistent_with_itself(results, tiny):
    out, seen = results
    good, diverged, short = out
    assert [len(r.metrics["loss"]) for r in out] == [24, 24, 12]
    assert seen[-1].step == seen[-1].total_steps == 24
    assert [s.step for s in seen] == sorted(s.step for s in seen)
    assert good.metrics["lr"][2] == pytest.approx(1e-2) and good.metrics["lr"][-1] == pytest.approx(1e-4)
    assert good.row["loss"] < math.log(257) and good.row["status"] == "ok"
    assert good.row["loss"] == pytest.approx(gaussian_filter1d(good.metrics["loss"].astype(float), 0.24)[-1])
    assert short.row["tokens"] == tiny.tokens / 2 and short.row["seed"] == 7
    assert diverged.row["status"] == "diverged" and math.isnan(diverged.row["loss"])
    first = int(np.flatnonzero(~np.isfinite(diverged.metrics["loss"]))[0])
    assert f"step {first}" in diverged.row["reason"]
    assert diverged.checkpoint is None


def test_row_holds_all_that_is_needed_to_run_it_again(results):
    good = results[0][2]
    again = engine.train(config_lib.from_json(good.row["config"]))
    assert again.row["run_id"] == good.row["run_id"] == good.config.run_id
    assert again.row["eval_loss"] == pytest.approx(good.row["eval_loss"], rel=1e-5)
    json.dumps(good.row)  # plain values only


def test_a_run_repeats_bit_for_bit(tiny):
    a, b = engine.train(tiny), engine.train(tiny)
    np.testing.assert_array_equal(a.metrics["loss"], b.metrics["loss"])
    assert a.row["eval_loss"] == b.row["eval_loss"]


def test_eval_loss_is_the_mean_over_windows(results, tiny):
    """Against logits of the public API, window by window."""
    good = results[0][0]
    heldout = engine.loop.data.load(tiny.data).heldout
    n = tiny.data.seq_len
    starts = np.unique(np.linspace(0, engine.loop.data.n_windows(heldout, n) - 1, tiny.eval_sequences).astype(int)) * n
    total = 0.0
    for start in starts:
        window = np.asarray(heldout[start : start + n + 1], np.int32)
        logp = jax.nn.log_softmax(engine.logits(tiny.model, good.params, window[None, :-1])[0])
        total -= float(logp[np.arange(n), window[1:]].sum())
    assert good.row["eval_loss"] == pytest.approx(total / (len(starts) * n), rel=1e-5)


def test_learns_and_bfloat16_follows_float32(tiny):
    config = config_lib.replace(tiny, {"tokens": tiny.batch_tokens * 60})
    full = engine.train(config)
    half = engine.train(config_lib.replace(config, {"dtype": "bfloat16"}))
    assert full.row["eval_loss"] < math.log(257) - 0.05
    assert half.row["eval_loss"] == pytest.approx(full.row["eval_loss"], rel=0.01)
    assert half.row["eval_loss"] != full.row["eval_loss"]  # it did run in another precision


def test_one_compile_for_a_whole_grid_of_numbers(tiny):
    """Every hyper changes; the step's cache holds one program, also over short and long calls."""
    tiny = config_lib.replace(tiny, {"model.d_ff": 32})  # a program of this test's own
    mesh = mesh_lib.make_mesh(tiny.mesh, n_trials=2, batch_size=tiny.batch_size)
    compiled = population.compiled_train_steps(step.program(lanes.with_lanes(tiny, 2)), mesh)
    changes = {
        "optim.lr": 2e-3, "optim.final_lr": 1e-6, "optim.final_fraction": 0.1, "optim.warmup_steps": 2,
        "optim.decay_fraction": 0.5, "optim.base_width": 64,
        "optim.beta1": 0.8, "optim.beta2": 0.9, "optim.eps": 1e-6, "optim.weight_decay": 0.0,
        "optim.clip_norm": 0.1, "optim.z_loss": 1e-4, "optim.balance_loss": 0.1, "optim.router_z_loss": 0.1,
        "optim.router_bias_rate": 0.1, "tokens": tiny.tokens * 1.5, "init_std": 0.1, "seed": 3,
    }  # fmt: skip
    assert set(changes) == set(config_lib.HYPERS)
    for name, value in changes.items():
        engine.train_population(tiny, [{}, {name: value}])
    assert compiled._cache_size() == 1


@pytest.mark.parametrize(
    "hypers, message",
    [
        ([{"model.d_model": 32}], "'model.d_model' cannot differ"),
        ([{"optim.lr": -1.0}], "optim.lr is -1.0"),
        ([{"optim.lr": float("nan")}], "optim.lr is nan"),
        ([{"tokens": 1.0}], "tokens is 1"),
        ([], "no trials"),
    ],
)
def test_impossible_trials_are_refused(hypers, message, tiny):
    with pytest.raises(InputError, match=message):
        engine.train_population(tiny, hypers)


def test_too_small_a_vocabulary_is_refused(tiny):
    with pytest.raises(InputError, match=r"model.vocab_size 100 is less than the 257 ids.*set model.vocab_size=257"):
        engine.train(config_lib.replace(tiny, {"model.vocab_size": 100}))


def test_smooth_loss_is_step_laws():
    losses = np.random.default_rng(0).normal(3, 0.1, 20_000)
    assert row.smooth_loss(losses) == pytest.approx(gaussian_filter1d(losses, 100)[-1])
    assert row.smooth_loss(losses[:500]) == pytest.approx(gaussian_filter1d(losses[:500], 5)[-1])

"""A population's step: trials equal themselves alone, and never touch each other."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from engine import config as config_lib
from engine import model, optim, population, step
from tests.engine import numpy_reference
from tests.engine.conftest import as_hyper, random_params, random_tokens

STEPS = 12


def run(trials, n_steps=STEPS, order=None):
    """(state, losses [n_steps, G]) of trials on the same random batches."""
    hyper = as_hyper(trials)
    c = trials[0]
    state = step.init_state(
        c.model,
        optim.method(c.optim),
        jnp.asarray([t.seed for t in trials], jnp.uint32),
        jnp.asarray([t.init_std for t in trials], jnp.float32),
        hyper,
    )
    tokens = random_tokens((STEPS, c.batch_size, c.data.seq_len + 1), c.model.vocab_size)
    state, metrics = jax.jit(step.train_steps, static_argnums=0)(
        step.program(c), state, tokens, jnp.int32(n_steps), hyper
    )
    return jax.device_get(state), np.asarray(metrics.loss)


def with_lrs(config, lrs, **changes):
    return population.trial_configs(config, [{"optim.lr": lr, "seed": i, **changes} for i, lr in enumerate(lrs)])


def test_population_equals_trials_alone(tiny):
    trials = with_lrs(tiny, [1e-3, 3e-3, 1e-2])
    _, together = run(trials)
    alone = np.stack([run([t])[1][:, 0] for t in trials], axis=1)
    np.testing.assert_array_equal(together[0], alone[0])  # before any update: the same arithmetic
    np.testing.assert_allclose(together, alone, rtol=2e-5)


def test_order_of_trials_does_not_matter(tiny):
    trials = with_lrs(tiny, [1e-3, 1e-2, 3e-2, 5e-3])
    order = [2, 0, 3, 1]
    np.testing.assert_array_equal(run(trials)[1][:, order], run([trials[i] for i in order])[1])


def test_diverged_trial_freezes_alone(tiny):
    """A learning rate of 1e30 overflows; its neighbours' losses and weights keep every bit."""
    good = with_lrs(tiny, [1e-3, 1e-2, 3e-2])
    bad = [good[0], config_lib.replace(good[1], {"optim.lr": 1e30}), good[2]]
    state_good, losses_good = run(good)
    state_bad, losses_bad = run(bad)
    assert list(state_bad.alive) == [True, False, True] and state_good.alive.all()
    np.testing.assert_array_equal(losses_good[:, [0, 2]], losses_bad[:, [0, 2]])
    for g in (0, 2):
        jax.tree.map(
            np.testing.assert_array_equal, model.take_trial(state_good.params, g), model.take_trial(state_bad.params, g)
        )
    first = int(np.flatnonzero(~np.isfinite(losses_bad[:, 1]))[0])
    frozen = [model.take_trial(run(bad, n)[0].params, 1) for n in (first, STEPS)]
    jax.tree.map(np.testing.assert_array_equal, *frozen)


def test_finished_trial_rests_while_others_go_on(tiny):
    tokens = tiny.batch_tokens * 6
    short = population.trial_configs(tiny, [{"tokens": tokens}, {}])
    at_6, _ = run(short, 6)
    at_12, _ = run(short, 12)
    jax.tree.map(np.testing.assert_array_equal, model.take_trial(at_6.params, 0), model.take_trial(at_12.params, 0))
    assert not np.array_equal(model.take_trial(at_6.params, 1)["norm"], model.take_trial(at_12.params, 1)["norm"])


def test_a_short_call_is_the_same_program_and_the_same_numbers(tiny):
    trials = with_lrs(tiny, [1e-3, 1e-2])
    np.testing.assert_array_equal(run(trials, 5)[1][:5], run(trials, STEPS)[1][:5])
    assert np.isnan(run(trials, 5)[1][5:]).all()


@pytest.mark.parametrize("fraction", [0.0, 0.25])
@pytest.mark.parametrize("name", ["cosine", "wsd", "linear", "constant"])
def test_schedules_equal_optax(name, fraction, tiny):
    n, warmup, lr, final_lr = 40, 7, 3e-3, 1e-4
    floor = lr if name == "constant" else final_lr + fraction * lr
    config = config_lib.replace(
        tiny,
        {"tokens": n * tiny.batch_tokens, "optim.lr": lr, "optim.final_lr": final_lr, "optim.warmup_steps": warmup,
         "optim.final_fraction": fraction, "optim.decay_fraction": 0.25, "optim.schedule": name},
    )  # fmt: skip
    if name == "cosine":
        expected = optax.warmup_cosine_decay_schedule(0.0, lr, warmup, n, floor)
    else:
        constant = {"wsd": n - 10, "linear": warmup, "constant": n}[name]
        expected = optax.join_schedules(
            [
                optax.linear_schedule(0, lr, warmup),
                optax.constant_schedule(lr),
                optax.linear_schedule(lr, floor, n - constant),
            ],
            [warmup, constant],
        )
    hyper = jax.tree.map(lambda x: x[0], as_hyper([config]))
    ours = [float(optim.learning_rate(name, jnp.int32(k), hyper)) for k in range(n)]
    np.testing.assert_allclose(ours, [float(expected(k + 1)) for k in range(n)], rtol=2e-5, atol=1e-9)
    assert ours[warmup - 1] == pytest.approx(lr) and ours[-1] == pytest.approx(floor)


@pytest.mark.parametrize("micro", [0, 2])
def test_weighted_loss_is_that_of_the_plain_decoder(tiny, micro):
    """The loss over tokens of weight one, and a gradient of it, from numpy; in micro-batches of unlike weights too."""
    config = config_lib.replace(tiny, {"compute.micro_batch": micro, "optim.clip_norm": 1e9})
    params = random_params(config.model)
    tokens = random_tokens((4, 9), config.model.vocab_size)
    weights = np.zeros((4, 8), np.float32)
    weights[0, 5:], weights[1, 2:4], weights[3, 7] = 1.0, 1.0, 1.0

    def wanted(values):
        scores = numpy_reference.forward(config.model, values, tokens[:, :-1])[0]
        lse = np.log(np.exp(scores).sum(axis=-1))
        nll = lse - np.take_along_axis(scores, tokens[:, 1:, None], axis=-1)[..., 0]
        return (nll * weights).sum() / weights.sum()

    moments = jax.vmap(lambda p: optim.init_moments(optim.method(config.optim), p), in_axes=(model.trial_axis(params),),
                       out_axes=step.moments_axis(config.model, optim.method(config.optim)))(
        model.add_trial_axis(params))  # fmt: skip
    state = step.State(model.add_trial_axis(params), moments, jnp.int32(0), jnp.ones(1, bool))
    hyper = as_hyper([config])
    program = step.program(config)
    run = jax.jit(step.train_step, static_argnums=0)
    _, metrics = run(program, state, tokens, hyper, weights)
    exact = numpy_reference.copy(jax.device_get(params), np.complex128)
    np.testing.assert_allclose(metrics.loss[0], wanted(exact).real, rtol=2e-5)
    grads, _ = step._gradients(program, state.params, tokens, hyper, step._of_mean_one(jnp.asarray(weights)))
    for index in ((0, 0), (3, 100), (15, 256)):
        exact["head"][index] += 1e-30j
        np.testing.assert_allclose(grads["head"][0][index], wanted(exact).imag / 1e-30, rtol=1e-3, atol=1e-7)
        exact["head"][index] -= 1e-30j
    _, plain = run(program, state, tokens, hyper)
    _, ones = run(program, state, tokens, hyper, np.ones_like(weights))
    np.testing.assert_allclose(ones.loss, plain.loss, rtol=1e-6)

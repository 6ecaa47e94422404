"""Mixtures of experts: layouts of the same product, populations, balance. (The values: test_reference.)"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engine
from engine import InputError, ModelConfig, moe, optim, population, step
from engine import config as config_lib
from tests.engine.conftest import as_hyper, random_tokens

STEPS = 10
ROUTED = {
    "model.n_experts": 4, "model.top_k": 2, "model.d_expert": 8, "model.d_shared": 4, "model.n_dense_layers": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def mixture(tiny):
    """The tiny model with its second layer routed: 2 of 4 experts, and a shared one."""
    return config_lib.replace(tiny, ROUTED)


def layer(n_experts=4, top_k=2, **changes):
    """A routed layer of two trials, its parameters, and activations."""
    config = ModelConfig(d_model=8, n_layers=1, n_heads=1, n_experts=n_experts, top_k=top_k, d_expert=6, **changes)
    draw = np.random.default_rng(0)
    array = lambda *shape: jnp.asarray(draw.normal(size=shape), jnp.float32)  # noqa: E731
    experts = {"gate": array(2, n_experts, 8, 6), "up": array(2, n_experts, 8, 6), "down": array(2, n_experts, 6, 8)}
    return config, {"router": array(2, 8, n_experts), **experts}, array(2, 5, 9, 8)


def with_gradient(config, p, x):
    def total(p, x):
        y, routing = moe.moe(config, x, p)
        return jnp.sum(y**2), (y, routing)

    grads, (y, routing) = jax.grad(total, argnums=(0, 1), has_aux=True)(p, x)
    return jax.tree.leaves((y, grads)), routing


@pytest.mark.parametrize("n_experts, top_k", [(4, 2), (16, 1), (3, 3)])
def test_every_layout_is_the_same_function(n_experts, top_k):
    """Ragged, blocks, and a capacity that no expert reaches: output and gradients."""
    ways = [{"moe_matmul": "ragged"}, {"moe_matmul": "blocks"}, {"capacity_factor": float(n_experts)}]
    ours = [with_gradient(*layer(n_experts, top_k, **way))[0] for way in ways]
    for other in ours[1:]:
        for a, b in zip(ours[0], other):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * float(jnp.abs(b).max()))


def test_layouts_are_different_programs():
    """Else the equality above would compare a program with itself."""
    jaxprs = {}
    for way in ("ragged", "blocks"):
        config, p, x = layer(moe_matmul=way)
        jaxprs[way] = str(jax.make_jaxpr(lambda p, x, c=config: moe.moe(c, x, p)[0])(p, x))
    assert "ragged_dot" in jaxprs["ragged"] and "ragged_dot" not in jaxprs["blocks"]


def test_an_expert_that_all_tokens_want():
    """The worst case of a dropless layout: one expert gets a row of every token; with a capacity most are dropped."""
    for way in ({"moe_matmul": "ragged"}, {"moe_matmul": "blocks"}, {"capacity_factor": 1.0}):
        config, p, _ = layer(top_k=1, **way)
        p = {**p, "router": jnp.zeros_like(p["router"]).at[:, :, 2].set(1.0)}
        x = jnp.ones((2, 40, 1, 8))
        y, routing = moe.moe(config, x, p)
        np.testing.assert_array_equal(routing.load_GE, [[0, 0, 1, 0]] * 2)
        served = np.abs(np.asarray(y)).sum(axis=(2, 3)) > 0
        assert (served.sum(axis=1) == (10 if config.capacity_factor else 40)).all()


def test_trials_of_a_layer_do_not_meet():
    """A trial full of infinities leaves the other's bits alone, whichever way the products are computed."""
    for way in ("ragged", "blocks"):
        config, p, x = layer(moe_matmul=way)
        good, _ = with_gradient(config, p, x)
        bad, _ = with_gradient(config, jax.tree.map(lambda w: w.at[1].set(1e30), p), x)
        assert not np.isfinite(bad[0][1]).all()
        for a, b in zip(good, bad):
            np.testing.assert_array_equal(a[0], b[0])


def test_balance_is_one_when_even_and_the_bias_moves_towards_it():
    config, _, _ = layer(n_experts=8, top_k=1)
    even = moe.route(config, jnp.eye(8)[None].repeat(2, 0), 50 * jnp.eye(8)[None].repeat(2, 0), None)[2]
    np.testing.assert_allclose(even.balance_G, 1.0, rtol=1e-6)
    one = moe.route(config, jnp.ones((2, 9, 8)), jnp.zeros((2, 8, 8)).at[:, :, 3].set(9.0), None)[2]
    np.testing.assert_allclose(one.balance_G, 8.0, rtol=1e-6)
    moved = moe.move_bias(jnp.zeros(4), jnp.asarray([0.25, 0.5, 0.0, 0.25]), jnp.float32(0.1))
    np.testing.assert_allclose(moved, [0.0, -0.1, 0.1, 0.0])


def run(trials):
    hyper = as_hyper(trials)
    c = trials[0]
    seeds, stds = jnp.asarray([t.seed for t in trials], jnp.uint32), jnp.asarray([t.init_std for t in trials])
    state = step.init_state(c.model, optim.method(c.optim), seeds, stds, hyper)
    tokens = random_tokens((STEPS, c.batch_size, c.data.seq_len + 1), c.model.vocab_size)
    state, metrics = jax.jit(step.train_steps, static_argnums=0)(
        step.program(c), state, tokens, jnp.int32(STEPS), hyper
    )
    return jax.device_get(state), jax.device_get(metrics)


def test_trials_of_a_ragged_layer_equal_trials_alone():
    config, p, x = layer(moe_matmul="ragged")
    together, _ = with_gradient(config, p, x)
    for g in range(2):
        alone, _ = with_gradient(config, jax.tree.map(lambda w, g=g: w[g : g + 1], p), x[g : g + 1])
        for a, b in zip(together, alone):
            np.testing.assert_allclose(a[g], b[0], rtol=1e-5, atol=1e-6 * float(jnp.abs(b).max()))


def test_population_equals_trials_alone(mixture):
    trials = population.trial_configs(mixture, [{"optim.lr": lr, "seed": g} for g, lr in enumerate((1e-3, 3e-3, 1e-2))])
    _, together = run(trials)
    alone = [run([t])[1] for t in trials]
    losses = np.concatenate([m.loss for m in alone], axis=1)
    np.testing.assert_array_equal(together.loss[0], losses[0])
    np.testing.assert_allclose(together.loss, losses, rtol=2e-5)
    loads = np.concatenate([m.expert_load for m in alone], axis=1)
    np.testing.assert_array_equal(together.expert_load[0], loads[0])
    assert together.expert_load.shape == (STEPS, 3, 1, 4)
    np.testing.assert_allclose(together.expert_load.sum(axis=-1), 1.0, rtol=1e-6)


def test_diverged_trial_freezes_alone(mixture):
    config = config_lib.replace(mixture, {"model.router_bias": True})
    good = population.trial_configs(config, [{"optim.lr": lr} for lr in (1e-3, 1e-2, 3e-2)])
    bad = [good[0], config_lib.replace(good[1], {"optim.lr": 1e30}), good[2]]
    (state_good, of_good), (state_bad, of_bad) = run(good), run(bad)
    assert list(state_bad.alive) == [True, False, True] and state_good.alive.all()
    for a, b in zip(jax.tree.leaves((state_good.params["layers"], of_good)), jax.tree.leaves(
        (state_bad.params["layers"], of_bad))):  # fmt: skip
        np.testing.assert_array_equal(a[:, [0, 2]], b[:, [0, 2]])
    assert np.abs(state_good.params["layers"]["router_bias"]).max() > 0


@pytest.fixture(scope="module")
def balanced(mixture):
    """Nothing that balances, the loss, the bias: three seeds of each, from uneven routers. In bfloat16."""
    config = config_lib.replace(
        mixture,
        {"init_std": 0.5, "tokens": mixture.batch_tokens * 100, "model.router_bias": True, "dtype": "bfloat16",
         "optim.router_z_loss": 0.0},
    )  # fmt: skip
    ways = [(0.0, 0.0), (1.0, 0.0), (0.0, 0.02)]
    return engine.train_population(
        config,
        [{"optim.balance_loss": w, "optim.router_bias_rate": rate, "seed": s} for w, rate in ways for s in range(3)],
    )


def test_loss_and_bias_make_the_load_even(balanced):
    assert all(result.metrics["expert_load"].shape == (100, 1, 4) for result in balanced)
    uneven = [np.abs(4 * result.metrics["expert_load"][-20:].mean(axis=0) - 1).max() for result in balanced]
    neither, by_loss, by_bias = np.mean(np.reshape(uneven, (3, 3)), axis=1)
    assert by_loss < 0.5 * neither and by_bias < 0.5 * neither


def test_a_row_says_what_was_active(balanced):
    row, params = balanced[0].row, balanced[0].params
    d, heads = 16, 2 * 16 * 4 * (4 + 2)
    assert row["params"] == 2 * heads + 3 * d * 24 + 3 * d * (4 * 8 + 4)
    assert row["params_active"] == 2 * heads + 3 * d * 24 + 3 * d * (2 * 8 + 4)
    assert (row["n_experts"], row["top_k"], row["d_expert"], row["d_shared"], row["n_dense_layers"]) == (4, 2, 8, 4, 1)
    assert row["params_total"] == sum(x.size for x in jax.tree.leaves(params))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model.top_k": 5}, "model.top_k 5 is above model.n_experts 4"),
        ({"model.n_dense_layers": 2}, "model.n_dense_layers 2 leaves no routed layer"),
        ({"model.n_experts": 1}, "model.n_experts 1 makes the model dense"),
        ({"model.top_k": 1, "model.normalized_gates": True}, "the router would learn nothing"),
        ({"model.d_expert": 0}, "model.d_expert is 0"),
        ({"model.capacity_factor": -1}, "model.capacity_factor is -1"),
        ({"model.capacity_factor": 1.0, "model.moe_matmul": "ragged"}, "is of dropless experts"),
        ({"model.moe_matmul": "loop"}, "known: auto, ragged, blocks"),
        ({"model.positions": "learned"}, "known: rope, alibi, sqrt_alibi"),
        ({"model.activation": "relu"}, "known: swiglu, gelu"),
    ],
)
def test_impossible_shapes_are_refused(changes, message, mixture):
    with pytest.raises(InputError, match=message) as caught:
        config_lib.replace(mixture, changes)
    assert "\n" not in str(caught.value)

"""Width transfer: the table, the parametrisation that it is said to equal, and coordinates over width."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import coordinate_check
from engine import ModelConfig, init, model, mup, step
from engine import config as config_lib
from tests.engine.conftest import as_hyper, random_tokens


def by_name(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(entry.key for entry in path): np.asarray(leaf) for path, leaf in leaves}


@pytest.mark.parametrize(
    "optimizer, hidden", [("adamw", 1 / 4), ("lion", 1 / 4), ("adafactor", 1 / 4), ("muon", 1 / 2)]
)
def test_the_table(optimizer, hidden):
    """At four times the base width, leaf by leaf."""
    config = ModelConfig(d_model=16, n_layers=2, n_heads=2, n_experts=4, top_k=2, d_shared=8, n_dense_layers=1,
                         router_bias=True)  # fmt: skip
    params = init(config)
    start, rate = by_name(mup.scale_params(params, 4.0)), by_name(mup.scale_directions(params, 4.0, optimizer))
    for name, leaf in by_name(params).items():
        last = name.split("/")[-1]
        if last in ("embed", "head", "attn_norm", "mlp_norm", "router_bias"):
            factors = 1.0, 1.0
        elif last in ("norm", "router"):
            factors = 1 / 4, 1 / 4
        else:
            assert last.removeprefix("shared_") in ("q", "k", "v", "o", "gate", "up", "down")
            factors = 1 / 2, hidden
        np.testing.assert_allclose(start[name], factors[0] * leaf, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(rate[name], factors[1] * leaf, rtol=1e-6, err_msg=name)


def test_equals_a_multiplier_on_the_logits(tiny):
    """Table 8 as written, tied embeddings: logits times 1/m, the final norm at one; by optax's Adam, a rate a leaf."""
    config = config_lib.replace(
        tiny,
        {"optim.parametrization": "mup", "optim.base_width": 4, "optim.eps": 1e-12, "optim.weight_decay": 0.0,
         "optim.clip_norm": 1e9, "optim.schedule": "constant", "optim.warmup_steps": 0, "model.tied_embeddings": True},
    )  # fmt: skip
    m, lr = 4.0, config.optim.lr
    hyper, program = as_hyper([config]), step.program(config)
    state = step.init_state(config.model, program.method, jnp.zeros(1, jnp.uint32), jnp.full(1, 0.2), hyper)
    params = model.take_trial(state.params, 0)
    params = {**params, "norm": jnp.ones_like(params["norm"])}
    rates = {"embed": lr, "norm": lr, "layers": {k: lr if "norm" in k else lr / m for k in params["layers"]}}
    adam = optax.scale_by_adam(config.optim.beta1, config.optim.beta2, 1e-12)
    moments = adam.init(params)

    @jax.jit
    def other(params, moments, tokens):
        def loss(params):
            logits = model.logits(config.model, params, tokens[:, :-1]) / m
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, moments = adam.update(grads, moments)
        return jax.tree.map(lambda p, u, r: p - r * u, params, updates, rates), moments, value

    ours = jax.jit(step.train_step, static_argnums=0)
    losses = []
    for k in range(8):
        tokens = random_tokens((4, 17), 257, seed=k)
        state, metrics = ours(program, state, tokens, hyper)
        params, moments, value = other(params, moments, tokens)
        losses.append(float(value))
        np.testing.assert_allclose(metrics.loss[0], value, rtol=2e-5)
    assert np.ptp(losses) > 1e-2  # they moved
    np.testing.assert_allclose(state.params["norm"][0], params["norm"] / m, rtol=1e-3)


def test_coordinates_move_alike_at_two_widths():
    """The standard parametrisation fails this by a factor of twenty (benchmarks/coordinate_check.md)."""
    narrow, wide = (coordinate_check.moved(coordinate_check.config(width, "adamw", "mup")) for width in (64, 256))
    np.testing.assert_allclose(wide[:3] / narrow[:3], 1.0, atol=0.15)

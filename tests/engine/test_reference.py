"""The model, its gradient and one optimizer step against the plain numpy decoder."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engine
from engine import ComputeConfig, ModelConfig, OptimConfig, TrainConfig, model, step
from engine.loss import token_losses
from tests.engine import numpy_reference as ref
from tests.engine.conftest import as_hyper, random_params, random_tokens


def small(**changes):
    return ModelConfig(**{"vocab_size": 11, "d_model": 8, "n_layers": 1, "n_heads": 2, "d_ff": 8, **changes})


MODELS = {
    "grouped-query, untied": small(n_layers=2, n_heads=4, n_kv_heads=2, d_ff=12),
    "multi-head, tied": small(n_layers=1, n_heads=2, d_ff=8, tied_embeddings=True),
    "head_dim apart from d_model": small(d_model=6, n_layers=1, n_heads=1, head_dim=4, d_ff=8),
    "sqrt-alibi, gelu, three heads": small(d_model=6, n_heads=3, positions="sqrt_alibi", activation="gelu", d_ff=8),
    "alibi, qk-norm, soft-cap": small(n_heads=4, n_kv_heads=2, positions="alibi", qk_norm=True, logit_softcap=2.0),
    "rope, qk-norm, soft-cap, tied": small(qk_norm=True, logit_softcap=0.5, n_layers=1, tied_embeddings=True),
}
MIXTURES = {
    "all there is, blocks": small(
        n_layers=2, d_ff=10, n_experts=4, top_k=2, d_expert=5, d_shared=3, n_dense_layers=1, router_bias=True,
        positions="sqrt_alibi", moe_matmul="blocks",
    ),
    "top 2 of 3, ragged": small(n_layers=1, n_experts=3, top_k=2, d_expert=5, moe_matmul="ragged"),
    "top 1, gelu, ragged": small(n_layers=2, n_experts=3, d_expert=4, activation="gelu", moe_matmul="ragged"),
    "gates as they are, capacity": small(
        n_layers=1, n_experts=4, top_k=2, d_expert=4, capacity_factor=0.75, normalized_gates=False
    ),
}  # fmt: skip
EVERY = {**MODELS, **MIXTURES}


@pytest.fixture(params=EVERY, ids=lambda name: name)
def config(request):
    return EVERY[request.param]


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize(
    "name",
    ["grouped-query, untied", "head_dim apart from d_model", "rope, qk-norm, soft-cap, tied", *list(MIXTURES)[:1]],
)
def test_logits(name):
    config = EVERY[name]
    params = random_params(config)
    tokens = random_tokens((3, 7), config.vocab_size)
    ours = np.asarray(engine.logits(config, params, tokens))
    theirs, _ = ref.forward(config, ref.copy(params, np.float64), tokens)
    assert ours.shape == (3, 7, config.vocab_size) and ours.dtype == np.float32
    assert relative(ours, theirs) < 2e-6


def test_nnx_module_is_the_same_function(config):
    decoder = model.Decoder(config, key=jax.random.key(0))
    tokens = random_tokens((2, 5), config.vocab_size)
    np.testing.assert_array_equal(decoder(tokens), engine.logits(config, engine.init(config, 0), tokens))


def test_one_step(config):
    """Loss, gradient norm, every gradient and every parameter after a step at a learning rate that makes it visible."""
    check_one_step(config, ComputeConfig())


# Ways to compute the same step; the numpy reference knows none of them.
COMPUTE = {
    "loss in chunks": ComputeConfig(loss_chunk=5),
    "sequence by sequence": ComputeConfig(micro_batch=1),
    "all twice": ComputeConfig(remat="full"),
    "products kept": ComputeConfig(remat="dots"),
    "two names kept": ComputeConfig(remat="attention,ffn", attention="xla"),
}


@pytest.mark.parametrize("compute", COMPUTE.values(), ids=COMPUTE)
def test_one_step_computed_otherwise(compute):
    check_one_step(MODELS["alibi, qk-norm, soft-cap"], compute)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_one_step_of_experts_computed_twice(remat):
    check_one_step(MIXTURES["all there is, blocks"], ComputeConfig(remat=remat))


def check_one_step(config, compute):
    weights = {"z_loss": 1e-2, "balance_loss": 0.1, "router_z_loss": 0.05}
    train = TrainConfig(
        model=config,
        optim=OptimConfig(lr=0.01, warmup_steps=0, clip_norm=0.5, final_lr=0.01, router_bias_rate=0.01, **weights),
        data=engine.DataConfig(seq_len=6),
        batch_size=2,
        tokens=12 * 10,
        compute=compute,
    )
    params = random_params(config)
    tokens = random_tokens((2, 7), config.vocab_size)
    params64 = ref.copy(params, np.float64)
    grads = ref.gradient(config, params64, tokens, **weights)
    optim = train.optim
    expected, norm = ref.adamw_step(
        params64,
        grads,
        lr=optim.lr,
        beta1=optim.beta1,
        beta2=optim.beta2,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        clip_norm=optim.clip_norm,
    )
    loads = np.array([did["load"] for did in ref.forward(config, params64, tokens[:, :-1])[1]])
    if config.router_bias:
        expected["layers"]["router_bias"] += optim.router_bias_rate * np.sign(1 / config.n_experts - loads)

    hyper = as_hyper([train])
    state = step.init_state(config, step.program(train).method, jnp.zeros(1, jnp.uint32), jnp.full(1, 0.02), hyper)
    state = state._replace(params=model.add_trial_axis(params))
    new, metrics = jax.jit(step.train_step, static_argnums=0)(step.program(train), state, tokens, hyper)

    np.testing.assert_allclose(metrics.loss[0], ref.loss(config, params64, tokens), rtol=1e-6)
    np.testing.assert_allclose(metrics.grad_norm[0], norm, rtol=1e-5)
    if len(loads):
        np.testing.assert_allclose(metrics.expert_load[0], loads, rtol=1e-6)
    # The first moment is (1 - beta1) times the clipped gradient: every gradient, leaf by leaf.
    moments = dict(ref.leaves(jax.tree.map(np.asarray, model.take_trial(new.moments[1].mu, 0))))
    for path, grad in grads.items():
        clipped = grad * min(1.0, optim.clip_norm / norm)
        if path[-1] == "router_bias":  # chooses, and nothing else
            assert not grad.any() and not moments[path].any()
        else:
            assert relative(moments[path] / (1 - optim.beta1), clipped) < 1e-5, path
    stepped = dict(ref.leaves(jax.tree.map(np.asarray, model.take_trial(new.params, 0))))
    for path, leaf in ref.leaves(expected):
        before = np.asarray(dict(ref.leaves(params64))[path])
        assert relative(stepped[path] - before, leaf - before) < 2e-3, path  # Adam's sign-like first step amplifies


def test_ways_to_compute_are_different_programs():
    """Else the equalities above would compare a program with itself."""
    config = MODELS["alibi, qk-norm, soft-cap"]
    params = model.add_trial_axis(random_params(config))
    tokens = random_tokens((2, 7), 11)
    train = TrainConfig(model=config, batch_size=2, tokens=1e5, data=engine.DataConfig(seq_len=6))

    def compiled(compute):
        program = step.program(dataclasses.replace(train, compute=compute))
        return jax.jit(partial(step._gradients, program)).lower(params, tokens, as_hyper([train]), None).as_text()

    texts = [compiled(compute) for compute in (ComputeConfig(attention="blocks"), *COMPUTE.values())]
    assert len(set(texts)) == len(texts)
    products = [text.count("dot_general") for text in texts]
    assert products[3] > products[5] > products[0]  # what is computed twice


def test_logits_in_chunks_never_exist_whole():
    config = MODELS["alibi, qk-norm, soft-cap"]
    params, tokens = model.add_trial_axis(random_params(config)), random_tokens((2, 7), 11)

    def jaxpr(chunk):
        return str(jax.make_jaxpr(jax.grad(lambda p: jnp.sum(token_losses(
            config, p, tokens, jnp.ones((2, 6)), dtype=jnp.float32, chunk=chunk).nll_G)))(params))  # fmt: skip

    whole = f"f32[1,12,{config.vocab_size}]"
    assert whole in jaxpr(0) and whole not in jaxpr(5)

"""The model, its gradient and one optimizer step against the plain numpy decoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engine
from engine import ModelConfig, OptimConfig, TrainConfig, model, step
from tests.engine import numpy_reference as ref
from tests.engine.conftest import as_hyper, random_params, random_tokens

MODELS = {
    "grouped-query, untied": ModelConfig(vocab_size=11, d_model=8, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=12),
    "multi-head, tied": ModelConfig(vocab_size=11, d_model=8, n_layers=1, n_heads=2, d_ff=8, tied_embeddings=True),
    "head_dim apart from d_model": ModelConfig(vocab_size=11, d_model=6, n_layers=1, n_heads=1, head_dim=4, d_ff=8),
}


@pytest.fixture(params=MODELS, ids=lambda name: name)
def config(request):
    return MODELS[request.param]


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def test_logits(config):
    params = random_params(config)
    tokens = random_tokens((3, 7), config.vocab_size)
    ours = np.asarray(engine.logits(config, params, tokens))
    theirs = np.stack([ref.logits(config, ref.copy(params, np.float64), row) for row in tokens])
    assert ours.shape == (3, 7, config.vocab_size) and ours.dtype == np.float32
    assert relative(ours, theirs) < 2e-6


def test_nnx_module_is_the_same_function(config):
    decoder = model.Decoder(config, key=jax.random.key(0))
    tokens = random_tokens((2, 5), config.vocab_size)
    np.testing.assert_array_equal(decoder(tokens), engine.logits(config, engine.init(config, 0), tokens))


@pytest.mark.parametrize("chunk", [0, 5], ids=["whole", "chunked"])
def test_one_step(config, chunk):
    """Loss, gradient norm and every parameter after a step, at a learning rate that makes the update visible."""
    train = TrainConfig(
        model=config,
        optim=OptimConfig(lr=0.01, warmup_steps=0, z_loss=1e-2, clip_norm=0.5, final_lr=0.01),
        data=engine.DataConfig(seq_len=6),
        batch_size=2,
        tokens=12 * 10,
        loss_chunk=chunk,
    )
    params = random_params(config)
    tokens = random_tokens((2, 7), config.vocab_size)
    params64 = ref.copy(params, np.float64)
    grads = ref.gradient(config, params64, tokens, z_loss=1e-2)
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

    hyper = as_hyper([train])
    state = step.init_state(config, jnp.zeros(1, jnp.uint32), jnp.full(1, 0.02), hyper)
    state = state._replace(params=model.add_trial_axis(params))
    new, metrics = jax.jit(step.train_step, static_argnums=0)(step.program(train), state, tokens, hyper)

    np.testing.assert_allclose(metrics.loss[0], ref.loss(config, params64, tokens), rtol=1e-6)
    np.testing.assert_allclose(metrics.grad_norm[0], norm, rtol=1e-5)
    # The first moment is (1 - beta1) times the clipped gradient: every gradient, leaf by leaf.
    moments = dict(ref.leaves(jax.tree.map(np.asarray, model.take_trial(new.moments[1].mu, 0))))
    for path, grad in grads.items():
        clipped = grad * min(1.0, optim.clip_norm / norm)
        assert relative(moments[path] / (1 - optim.beta1), clipped) < 1e-5, path
    stepped = dict(ref.leaves(jax.tree.map(np.asarray, model.take_trial(new.params, 0))))
    for path, leaf in ref.leaves(expected):
        before = np.asarray(dict(ref.leaves(params64))[path])
        assert relative(stepped[path] - before, leaf - before) < 2e-3, path  # Adam's sign-like first step amplifies


def test_chunked_and_whole_cross_entropy_are_different_programs():
    """Else the equality above would compare a program with itself."""
    config = MODELS["multi-head, tied"]

    def jaxpr(chunk):
        program = step.Program(config, "cosine", "float32", chunk)
        params = model.add_trial_axis(random_params(config))
        return str(jax.make_jaxpr(lambda p, t, w: step.eval_step(program, p, t, w))(
            params, random_tokens((2, 7), 11), jnp.ones((2, 6))
        ))  # fmt: skip

    assert jaxpr(5).count("scan") > jaxpr(0).count("scan")

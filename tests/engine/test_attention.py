"""Every backend of attention against plain numpy, and the choice among them."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine import ComputeConfig, InputError, TrainConfig, layers
from engine.attention import _splash, attention, choose

G, B, T, H, K, C = 2, 1, 150, 4, 2, 6  # T: two whole blocks and a part


def inputs(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(G, B, T, n, C) for n in (H, K, K, H)]
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes)]


def reference(q, k, v, bias, documents=None):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, H // K, axis=3) for x in (k, v))
    scores = np.einsum("gbthc,gbshc->gbhts", q, k) / np.sqrt(C) + bias
    scores[..., np.triu(np.ones((T, T), bool), 1)] = -np.inf
    if documents is not None:
        scores[..., documents[:, None] != documents] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("gbhts,gbshc->gbthc", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("backend", ["xla", "blocks", "sequence"])
@pytest.mark.parametrize("biased", [False, True])
def test_against_numpy(backend, biased):
    q, k, v, _ = inputs()
    bias = layers.alibi(T, H, sqrt=False) if biased else None
    ours = attention(q, k, v, bias, backend=backend)
    np.testing.assert_allclose(ours, reference(q, k, v, 0 if bias is None else np.asarray(bias)), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("backend", ["xla", "blocks", "sequence", "splash"])
def test_documents_apart(backend):
    """Lengths that end within blocks, at their ends and at once; every token sees its own document alone."""
    q, k, v, _ = inputs()
    documents = np.searchsorted([5, 6, 64, 100], np.arange(T), side="right")
    if backend == "splash":
        ours = _splash(q, k, v, jnp.broadcast_to(documents, (G, B, T)), interpret=True)
    else:
        ours = attention(q, k, v, None, jnp.broadcast_to(documents, (B, T)), backend=backend)
    np.testing.assert_allclose(ours, reference(q, k, v, 0, documents), rtol=2e-5, atol=2e-5)


def test_gradients_of_the_backends_agree():
    q, k, v, up = inputs()
    bias = layers.alibi(T, H, sqrt=True)

    def gradients(backend):
        return jax.grad(lambda *qkv: jnp.sum(up * attention(*qkv, bias, backend=backend)), argnums=(0, 1, 2))(q, k, v)

    expected = gradients("xla")
    for backend in ("blocks", "sequence"):
        for ours, theirs in zip(gradients(backend), expected):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_splash_is_the_same_function():
    """JAX's TPU kernel as its interpreter runs it anywhere: padded to whole tiles, grouped-query, and its gradients."""
    splash = partial(_splash, interpret=True)
    q, k, v, up = inputs()
    np.testing.assert_allclose(splash(q, k, v), reference(q, k, v, 0), rtol=2e-5, atol=2e-5)

    def gradients(f):
        return jax.grad(lambda *qkv: jnp.sum(up * f(*qkv)), argnums=(0, 1, 2))(q, k, v)

    for ours, theirs in zip(gradients(splash), gradients(attention)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_blocks_in_bfloat16():
    q, k, v, _ = inputs(jnp.bfloat16)
    ours = attention(q, k, v, backend="blocks")
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(ours, np.float64), reference(q, k, v, 0), atol=0.03)


def test_blocks_leave_most_of_the_masked_half_out():
    """A test of the program, not of time: the multiplications that XLA counts."""
    q = jax.ShapeDtypeStruct((1, 1, 512, 1, 16), jnp.float32)

    def flops(backend):
        return jax.jit(lambda q, k, v: attention(q, k, v, backend=backend)).lower(q, q, q).cost_analysis()["flops"]

    assert flops("blocks") < 0.65 * flops("xla")


def test_the_choice_here():
    assert choose("auto", head_dim=64, dtype="bfloat16", biased=False) == "blocks"  # a CPU
    assert choose("xla", head_dim=64, dtype="bfloat16", biased=False) == "xla"


def test_a_backend_that_is_not_here_is_refused():
    with pytest.raises(InputError, match=r"cudnn.*this process runs on cpu"):
        choose("cudnn", head_dim=64, dtype="bfloat16", biased=False)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"attention": "flash"}, "compute.attention is 'flash'"),
        ({"remat": "some"}, "compute.remat is 'some'"),
        ({"micro_batch": -1}, "compute.micro_batch is -1"),
        ({"loss_chunk": -5}, "compute.loss_chunk is -5"),
    ],
)
def test_unknown_ways_to_compute(changes, message):
    with pytest.raises(InputError, match=message):
        ComputeConfig(**changes)


def test_micro_batch_must_divide_the_batch():
    with pytest.raises(InputError, match="micro_batch 3 does not divide batch_size 16"):
        TrainConfig(compute=ComputeConfig(micro_batch=3))


def test_how_it_is_computed_is_no_other_run():
    config = TrainConfig()
    assert dataclasses.replace(config, compute=ComputeConfig(remat="full", loss_chunk=64)).run_id == config.run_id
    assert dataclasses.replace(config, seed=1).run_id != config.run_id

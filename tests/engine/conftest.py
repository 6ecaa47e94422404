"""Eight virtual CPU devices, and the tiny model that engine tests share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engine
from engine import DataConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def tiny() -> TrainConfig:
    """Two layers, grouped-query attention, untied head; on synthetic tokens."""
    return TrainConfig(
        model=ModelConfig(vocab_size=257, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=24),
        optim=OptimConfig(lr=1e-2, final_lr=1e-4, warmup_steps=3),
        data=DataConfig(corpus="synthetic", seq_len=16),
        mesh=MeshConfig(trial=1, data=1),
        batch_size=4,
        tokens=4 * 16 * 24,
        eval_sequences=8,
    )


def random_tokens(shape, vocab_size, seed=0):
    return np.random.default_rng(seed).integers(0, vocab_size, shape).astype(np.int32)


def random_params(config: ModelConfig, seed=0):
    """Params with every leaf away from its special value (norm scales off one), so that no gradient is trivial."""
    from engine import init

    params = init(config, seed, 0.2)
    keys = iter(jax.random.split(jax.random.key(seed + 1), 99))
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), params)


def drawn_params(config: ModelConfig, seed=0):
    """Like `random_params`, but numpy arrays of numpy's numbers: nothing is compiled."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: engine.init(config))
    draw = lambda path, leaf: rng.normal(size=leaf.shape) * 0.2 + path[-1].key.endswith("norm")  # noqa: E731
    return jax.tree.map(np.float32, jax.tree_util.tree_map_with_path(draw, shapes))


def as_hyper(trials):
    from engine import population

    return jax.tree.map(jnp.asarray, population.stack_hypers(trials))

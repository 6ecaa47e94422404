"""The decoder. An NNX module declares the parameters; everything that runs is a pure function of a plain pytree.

Shapes: G trials, L layers, B sequences, T tokens, D d_model, H query heads, K key/value heads, C head_dim, F d_ff,
V vocabulary. A single model's leaves have no G; a population's have G in front, behind L where layers are stacked.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from engine import layers, sizes
from engine.attention import attention
from engine.config import ModelConfig

Params = dict[str, Any]  # {"embed": [V, D], "layers": {name: [L, ...]}, "norm": [D], "head": [D, V] unless tied}


class _Layers(nnx.Module):
    """The blocks' parameters, stacked over layers."""


class Decoder(nnx.Module):
    """Declares every parameter once: its logical axes, hence its shape, and its initial values.

    Matrices start truncated normal (cut at 3 sigma) times `init_std`, norm scales at one. All matrices are cut from one
    draw: a draw for each would take most of a small model's compile time.
    """

    def __init__(self, config: ModelConfig, *, key: jax.Array, init_std: float | jax.Array = 0.02):
        size: dict[str, Any] = {
            "layer": config.n_layers,
            "vocab": config.vocab_size,
            "embed": config.d_model,
            "heads": config.n_heads,
            "kv_heads": config.n_kv_heads,
            "head_dim": config.head_dim,
            "ffn": config.d_ff,
        }
        n_norms = (2 * config.n_layers + 1) * config.d_model
        draw = jax.random.truncated_normal(key, -3.0, 3.0, (sizes.total_params(config) - n_norms,)) * init_std
        used = 0

        def matrix(*axes: str) -> nnx.Param:
            nonlocal used
            shape = tuple(size[a] for a in axes)
            start, used = used, used + math.prod(shape)
            return nnx.Param(draw[start:used].reshape(shape), axes=axes)

        def scale(*axes: str) -> nnx.Param:
            return nnx.Param(jnp.ones(tuple(size[a] for a in axes)), axes=axes)

        self.config = config
        self.embed = matrix("vocab", "embed")
        blocks: Any = _Layers()
        self.layers = blocks
        blocks.attn_norm = scale("layer", "embed")
        blocks.q = matrix("layer", "embed", "heads", "head_dim")
        blocks.k = matrix("layer", "embed", "kv_heads", "head_dim")
        blocks.v = matrix("layer", "embed", "kv_heads", "head_dim")
        blocks.o = matrix("layer", "heads", "head_dim", "embed")
        blocks.mlp_norm = scale("layer", "embed")
        blocks.gate = matrix("layer", "embed", "ffn")
        blocks.up = matrix("layer", "embed", "ffn")
        blocks.down = matrix("layer", "ffn", "embed")
        self.norm = scale("embed")
        if not config.tied_embeddings:
            self.head = matrix("embed", "vocab")
        assert used == draw.size

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        """Logits [B, T, V] float32."""
        return logits(self.config, nnx.to_pure_dict(nnx.state(self, nnx.Param)), tokens_BT)


def init(config: ModelConfig, seed: int | jax.Array = 0, init_std: float | jax.Array = 0.02) -> Params:
    """One model's initial parameters, a plain pytree of float32 arrays. Pure: jit and vmap it."""
    decoder = Decoder(config, key=jax.random.key(seed, impl="threefry2x32"), init_std=init_std)
    return nnx.to_pure_dict(nnx.state(decoder, nnx.Param))


def logical_axes(config: ModelConfig) -> dict[str, Any]:
    """The tree of `init`, with each leaf's tuple of logical axis names."""
    decoder = nnx.eval_shape(lambda: Decoder(config, key=jax.random.key(0)))
    return jax.tree.map(
        lambda p: p.get_metadata()["axes"],
        nnx.to_pure_dict(nnx.state(decoder, nnx.Param), extract_fn=lambda p: p),
        is_leaf=lambda x: isinstance(x, nnx.Variable),
    )


def hidden(config: ModelConfig, params_G: Params, tokens_BT: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """Final normalised activations [G, B, T, D] of G models on the same tokens."""
    assert config.head_dim is not None
    rope_table = layers.rope_table(tokens_BT.shape[1], config.head_dim, config.rope_theta)
    x = layers.embed(params_G["embed"], tokens_BT).astype(dtype)
    x, _ = jax.lax.scan(partial(_block, config, rope_table), x, params_G["layers"])
    return layers.rmsnorm(x, params_G["norm"], config.norm_eps)


def _block(config: ModelConfig, rope_table: Any, x_GBTD: jax.Array, p: Params) -> tuple[jax.Array, None]:
    p = {name: w if name.endswith("norm") else w.astype(x_GBTD.dtype) for name, w in p.items()}
    y = layers.rmsnorm(x_GBTD, p["attn_norm"], config.norm_eps)
    q = layers.rope(jnp.einsum("gbtd,gdhc->gbthc", y, p["q"]), rope_table)
    k = layers.rope(jnp.einsum("gbtd,gdhc->gbthc", y, p["k"]), rope_table)
    v = jnp.einsum("gbtd,gdhc->gbthc", y, p["v"])
    x = x_GBTD + jnp.einsum("gbthc,ghcd->gbtd", attention(q, k, v), p["o"])
    y = layers.rmsnorm(x, p["mlp_norm"], config.norm_eps)
    return x + layers.swiglu(y, p["gate"], p["up"], p["down"]), None


def head(params_G: Params) -> jax.Array:
    """The output projection [G, D, V]; the embedding transposed when tied."""
    return params_G["head"] if "head" in params_G else jnp.swapaxes(params_G["embed"], 1, 2)


@partial(jax.jit, static_argnums=0)
def logits(config: ModelConfig, params: Params, tokens: jax.Array) -> jax.Array:
    """One model's logits: tokens [B, T] int32 -> [B, T, V] float32."""
    params_G = add_trial_axis(params)
    return jnp.einsum("gbtd,gdv->gbtv", hidden(config, params_G, tokens), head(params_G))[0]


def trial_axis(params: Params) -> dict[str, Any]:
    """Where the trial axis stands in each entry of a population's parameters: a prefix tree for vmap."""
    return {name: 1 if name == "layers" else 0 for name in params}


def add_trial_axis(params: Params) -> Params:
    """One model as a population of one."""
    return {k: jax.tree.map(partial(jnp.expand_dims, axis=a), params[k]) for k, a in trial_axis(params).items()}


def take_trial(params_G: Params, g: int) -> Params:
    """Trial g of a population's parameters (numpy arrays: views), as one model's."""
    index = lambda at: (slice(None),) * at + (g,)  # noqa: E731
    return {k: jax.tree.map(lambda x, at=at: x[index(at)], params_G[k]) for k, at in trial_axis(params_G).items()}

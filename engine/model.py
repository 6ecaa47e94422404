"""The decoder. An NNX module declares the parameters; everything that runs is a pure function of a plain pytree.

Shapes: G trials, L layers, M routed layers, B sequences, T tokens, D d_model, H query heads, K key/value heads,
C head_dim, F d_ff, E experts, V vocabulary, S slots of a cache. A single model's leaves have no G; a population's have
G in front, behind L where layers are stacked.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from engine import layers
from engine.architecture import REMAT_NAMES, ModelConfig
from engine.attention import attention, attention_to_cache, choose
from engine.moe import Routing, moe
from engine.placement import tokenwise

# {"embed": [V, D], "layers": {name: [L, ...]}, "norm": [D], "head": [D, V] unless tied}; in a mixture of experts whose
# first layers are dense these are in "dense_layers" and "layers" are the routed ones.
Params = dict[str, Any]
# What decoding remembers: of each stack of layers keys and values, [L, G, B, K, S, C]; slot s holds position s.
Cache = dict[str, tuple[jax.Array, jax.Array]]


class _Layers(nnx.Module):
    """Blocks' parameters of one kind, stacked over layers."""


class Decoder(nnx.Module):
    """Declares every parameter once: its logical axes, hence its shape, and its initial values.

    Matrices start truncated normal (cut at 3 sigma) times `init_std`, norm scales at one, router biases at zero. All
    matrices are cut from one draw: a draw for each would take most of a small model's compile time.
    """

    def __init__(self, config: ModelConfig, *, key: jax.Array, init_std: float | jax.Array = 0.02):
        size: dict[str, Any] = {
            "vocab": config.vocab_size,
            "embed": config.d_model,
            "heads": config.n_heads,
            "kv_heads": config.n_kv_heads,
            "head_dim": config.head_dim,
            "ffn": config.d_ff,
            "expert": config.n_experts,
            "choice": config.n_experts,
            "expert_ffn": config.d_expert,
            "shared_ffn": config.d_shared,
        }
        matrices: list[nnx.Param] = []

        def param(axes: tuple[str, ...], n_layers: int | None, start: float | None) -> nnx.Param:
            """start: of every entry; None: drawn below."""
            shape = tuple(size[a] for a in axes)
            if n_layers is not None:
                axes, shape = ("layer", *axes), (n_layers, *shape)
            leaf = nnx.Param(jnp.full(shape, start or 0.0, jnp.float32), axes=axes)
            if start is None:
                matrices.append(leaf)
            return leaf

        def stack(n_layers: int, routed: bool) -> Any:
            blocks: Any = _Layers()
            for name, (axes, start) in _block_params(config, routed).items():
                setattr(blocks, name, param(axes, n_layers, start))
            return blocks

        self.config = config
        self.embed = param(("vocab", "embed"), None, None)
        if config.n_moe_layers < config.n_layers and config.n_moe_layers:
            self.dense_layers = stack(config.n_layers - config.n_moe_layers, False)
        self.layers = stack(config.n_moe_layers or config.n_layers, config.n_moe_layers > 0)
        self.norm = param(("embed",), None, 1.0)
        if not config.tied_embeddings:
            self.head = param(("embed", "vocab"), None, None)

        draw = jax.random.truncated_normal(key, -3.0, 3.0, (sum(m.size for m in matrices),)) * init_std
        used = 0
        for matrix in matrices:
            shape = matrix.shape
            matrix[...] = draw[used : used + math.prod(shape)].reshape(shape)
            used += math.prod(shape)

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        """Logits [B, T, V] float32."""
        return logits(self.config, nnx.to_pure_dict(nnx.state(self, nnx.Param)), tokens_BT)


def _block_params(config: ModelConfig, routed: bool) -> dict[str, tuple[tuple[str, ...], float | None]]:
    """One block's parameters: logical axes, and the value they start at (None: random)."""
    found: dict[str, tuple[tuple[str, ...], float | None]] = {
        "attn_norm": (("embed",), 1.0),
        "q": (("embed", "heads", "head_dim"), None),
        "k": (("embed", "kv_heads", "head_dim"), None),
        "v": (("embed", "kv_heads", "head_dim"), None),
        "o": (("heads", "head_dim", "embed"), None),
        "mlp_norm": (("embed",), 1.0),
    }
    if config.qk_norm:
        found |= {"q_norm": (("head_dim",), 1.0), "k_norm": (("head_dim",), 1.0)}

    def feed_forward(prefix: str, width: str, *expert: str) -> None:
        if config.activation == "swiglu":
            found[prefix + "gate"] = ((*expert, "embed", width), None)
        found[prefix + "up"] = ((*expert, "embed", width), None)
        found[prefix + "down"] = ((*expert, width, "embed"), None)

    if not routed:
        feed_forward("", "ffn")
        return found
    found["router"] = (("embed", "choice"), None)
    if config.router_bias:
        found["router_bias"] = (("choice",), 0.0)
    feed_forward("", "expert_ffn", "expert")
    if config.d_shared:
        feed_forward("shared_", "shared_ffn")
    return found


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


def hidden(
    config: ModelConfig,
    params_G: Params,
    tokens_BT: jax.Array,
    dtype: Any = jnp.float32,
    *,
    attend: str = "xla",
    remat: str = "none",
    separator: int | None = None,
) -> tuple[jax.Array, Routing | None]:
    """Final normalised activations [G, B, T, D] of G models on the same tokens, and what the routed layers did.

    attend: backend of attention. remat: as `config.ComputeConfig` has it. separator: the token with which documents
    begin that don't see each other; None: all see what is before them. The routing's leaves have the routed layers in
    front: [M, G, E] and [M, G]; None for a dense model.
    """
    places = _places(config, tokens_BT.shape[1])
    if separator is not None:
        places["documents"] = jnp.cumsum(tokens_BT == separator, axis=1, dtype=jnp.int32)
    block = _rematerialised(partial(_block, config, places, attend, False), remat)
    x, routing, _ = _through(block, params_G, tokenwise(layers.embed(params_G["embed"], tokens_BT).astype(dtype)))
    return layers.rmsnorm(x, params_G["norm"], config.norm_eps), routing


def prefill(
    config: ModelConfig, params_G: Params, tokens_BT: jax.Array, n_slots: int, dtype: Any, *, attend: str = "xla"
) -> tuple[jax.Array, Cache]:
    """`hidden`'s activations, and the cache of these tokens with room for n_slots >= T."""
    block = partial(_block, config, _places(config, tokens_BT.shape[1]), attend, True)
    x, _, fresh = _through(block, params_G, layers.embed(params_G["embed"], tokens_BT).astype(dtype))
    room = [(0, 0)] * 4 + [(0, n_slots - tokens_BT.shape[1]), (0, 0)]
    cache = jax.tree.map(lambda x_LGBTKC: jnp.pad(jnp.swapaxes(x_LGBTKC, 3, 4), room), fresh)
    return layers.rmsnorm(x, params_G["norm"], config.norm_eps), cache


def extend(
    config: ModelConfig, params_G: Params, tokens_B: jax.Array, at_B: jax.Array, cache: Cache, dtype: Any
) -> tuple[jax.Array, Cache]:
    """`hidden`'s activations [G, B, D] of one more token a sequence, at position at_B; the cache with it written there.

    Only slots before at_B are read, so what padding left behind it does not matter.
    """
    n_slots = jax.tree.leaves(cache)[0].shape[4]
    block = partial(_block, config, _places(config, n_slots, at_B), "cache", True)
    x, _, fresh = _through(block, params_G, layers.embed(params_G["embed"], tokens_B[:, None]).astype(dtype), cache)

    def write(old_LGBKSC: jax.Array, new_LGB1KC: jax.Array) -> jax.Array:
        new_BLGKC = jnp.moveaxis(new_LGB1KC[:, :, :, 0], 2, 0)
        return old_LGBKSC.at[:, :, jnp.arange(at_B.shape[0]), :, at_B].set(new_BLGKC)

    cache = jax.tree.map(write, cache, fresh)
    return layers.rmsnorm(x[:, :, 0], params_G["norm"], config.norm_eps), cache


def _through(
    block: Any, params_G: Params, x_GBTD: jax.Array, cache: Cache | None = None
) -> tuple[jax.Array, Routing | None, Any]:
    """All layers: activations, the last stack's routing, and by stack the keys and values that `block` keeps."""
    fresh, routing = {}, None
    for stack in ("dense_layers", "layers"):
        if stack in params_G:
            xs = (params_G[stack], None if cache is None else cache[stack])
            x_GBTD, (routing, fresh[stack]) = jax.lax.scan(block, x_GBTD, xs)
    return x_GBTD, routing, fresh


def _rematerialised(block: Any, remat: str) -> Any:
    """block, keeping for its backward pass only what `remat` says."""
    if remat == "none":
        return block
    kept = {"full": (), "dots": REMAT_NAMES}.get(remat, tuple(remat.split(",")))
    policy = jax.checkpoint_policies.save_only_these_names(*kept)
    return jax.checkpoint(block, policy=policy, prevent_cse=False)  # in a scan nothing can be merged


def _places(config: ModelConfig, n_positions: int, at_B: jax.Array | None = None) -> dict[str, Any]:
    """What attention knows of positions: the rotation, or a bias. at_B: of one token a sequence, at these positions."""
    assert config.head_dim is not None
    here = {} if at_B is None else {"at": at_B}
    if config.positions == "rope":
        table = layers.rope_table(n_positions, config.head_dim, config.rope_theta)
        return here | {"rope": table if at_B is None else tuple(t[at_B][:, None] for t in table)}
    sqrt = config.positions == "sqrt_alibi"
    return here | {"bias": layers.alibi(n_positions, config.n_heads, sqrt=sqrt, queries=at_B)}


def _block(
    config: ModelConfig,
    places: dict[str, Any],
    attend: str,
    keep: bool,
    x_GBTD: jax.Array,
    layer: tuple[Params, tuple[jax.Array, jax.Array] | None],
) -> tuple[jax.Array, tuple[Routing | None, tuple[jax.Array, jax.Array] | None]]:
    """One layer: its parameters, and its cache when decoding. keep: return the tokens' keys and values, too."""
    p, cache = layer
    p = {name: w if stays_float32(name) else w.astype(x_GBTD.dtype) for name, w in p.items()}
    y = layers.rmsnorm(x_GBTD, p["attn_norm"], config.norm_eps)
    q, k, v = (checkpoint_name(jnp.einsum("gbtd,gdhc->gbthc", y, p[name]), "qkv") for name in ("q", "k", "v"))
    if config.qk_norm:
        q, k = layers.rmsnorm(q, p["q_norm"], config.norm_eps), layers.rmsnorm(k, p["k_norm"], config.norm_eps)
    if "rope" in places:
        q, k = layers.rope(q, places["rope"]), layers.rope(k, places["rope"])
    if cache is None:
        mixed = attention(q, k, v, places.get("bias"), places.get("documents"), backend=attend)
    else:
        mixed = attention_to_cache(q, k, v, cache, places["at"], places.get("bias"))
    mixed = checkpoint_name(mixed, "attention")
    x = tokenwise(x_GBTD + checkpoint_name(jnp.einsum("gbthc,ghcd->gbtd", mixed, p["o"]), "projection"))
    y = layers.rmsnorm(x, p["mlp_norm"], config.norm_eps)
    kept = (k, v) if keep else None
    if "router" in p:
        out, routing = moe(config, y, p)
        return tokenwise(x + out), (routing, kept)
    return tokenwise(x + layers.feed_forward(y, p.get("gate"), p["up"], p["down"])), (None, kept)


def stays_float32(name: str) -> bool:
    """Whether a parameter is used in float32 whatever the dtype of activations."""
    return name.endswith(("norm", "router", "bias"))


def head(params_G: Params) -> jax.Array:
    """The output projection [G, D, V]; the embedding transposed when tied."""
    return params_G["head"] if "head" in params_G else jnp.swapaxes(params_G["embed"], 1, 2)


def attention_backend(
    config: ModelConfig,
    wanted: str = "auto",
    dtype: str = "float32",
    platform: str | None = None,
    *,
    divided: bool = False,
    apart: bool = False,
) -> str:
    """The backend of attention that this model gets on `platform` (None: here). divided: over `mesh.sequence`; apart:
    for documents that don't see each other."""
    assert config.head_dim is not None
    biased = config.positions != "rope"
    return choose(
        wanted,
        head_dim=config.head_dim,
        dtype=dtype,
        biased=biased,
        divided=divided,
        apart=apart,
        platform=platform,
    )


@partial(jax.jit, static_argnums=0)
def logits(config: ModelConfig, params: Params, tokens: jax.Array) -> jax.Array:
    """One model's logits: tokens [B, T] int32 -> [B, T, V] float32."""
    params_G = add_trial_axis(params)
    x_GBTD, _ = hidden(config, params_G, tokens, attend=attention_backend(config))
    return layers.softcap(jnp.einsum("gbtd,gdv->gbtv", x_GBTD, head(params_G))[0], config.logit_softcap)


def trial_axis(params: Params) -> dict[str, Any]:
    """Where the trial axis stands in each entry of a population's parameters: a prefix tree for vmap."""
    return {name: 1 if name.endswith("layers") else 0 for name in params}


def add_trial_axis(params: Params) -> Params:
    """One model as a population of one."""
    return {k: jax.tree.map(partial(jnp.expand_dims, axis=a), params[k]) for k, a in trial_axis(params).items()}


def take_trial(params_G: Params, g: int) -> Params:
    """Trial g of a population's parameters (numpy arrays: views), as one model's."""
    index = lambda at: (slice(None),) * at + (g,)  # noqa: E731
    return {k: jax.tree.map(lambda x, at=at: x[index(at)], params_G[k]) for k, at in trial_axis(params_G).items()}

"""Causal attention, one signature, several backends; all trials at once.

- xla: every query against every key, then the mask. Anywhere.
- blocks: queries in blocks, each against the keys up to its end, so that the masked half is hardly computed. For CPUs.
- cudnn: the GPU library's fused kernel; bfloat16, no bias; trials folded into the batch.
- sequence: every device the queries of its part of the sequences, block after block, against all keys, which it gathers
  (Llama 3, arXiv 2407.21783, section 3.3.2). For sequences over several devices.
- splash: JAX's fused kernel for TPUs, of each device's own part; no bias; scores never leave the chip.

Shapes: G trials, B sequences, T tokens, H query heads, K key/value heads, R = H / K, C head_dim; of a block Q queries
and S keys; of a cache S slots; P parts of a sequence, N blocks of a part.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from engine.errors import InputError
from engine.placement import BATCH, parts, per_device, whole_sequences

BLOCK = 64  # queries of a block: the fastest of 32 to 256 on two CPU cores, at 256 to 1024 tokens
MAX_BLOCKS = 16  # each is compiled by itself
PART_BLOCK = 512  # queries of a block where sequences are over several devices, at most
SPLASH_BLOCK = 512  # queries and keys of a tile, at most; of the powers of two the largest that fits any TPU's VMEM
SPLASH_TILE = 128  # what a tile is a multiple of


def attention(
    q_GBTHC: jax.Array,
    k_GBTKC: jax.Array,
    v_GBTKC: jax.Array,
    bias_HTT: jax.Array | None = None,
    documents_BT: jax.Array | None = None,
    *,
    backend: str = "xla",
) -> jax.Array:
    """softmax(q k^T / sqrt(C) + bias) v, causal, H a multiple of K (grouped-query); softmax in float32.

    bias_HTT: float32, of query t for key s, all trials alike (ALiBi); only s <= t is read. documents_BT: int32; tokens
    of different documents don't see each other. backend: as `choose` gives it. Returns [G, B, T, H, C].
    """
    if backend == "cudnn":
        q, k, v = (x.reshape(-1, *x.shape[2:]) for x in (q_GBTHC, k_GBTKC, v_GBTKC))
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn").reshape(q_GBTHC.shape)
    if backend == "splash":
        spec = P("trial", BATCH, None, "tensor")
        if documents_BT is None:
            return per_device(_splash, (spec, spec, spec), spec)(q_GBTHC, k_GBTKC, v_GBTKC)
        documents_GBT = jnp.broadcast_to(documents_BT, q_GBTHC.shape[:3])
        of_tokens = P("trial", BATCH, None)
        return per_device(_splash, (spec, spec, spec, of_tokens), spec)(q_GBTHC, k_GBTKC, v_GBTKC, documents_GBT)
    if backend == "sequence":
        return _by_parts(q_GBTHC, whole_sequences(k_GBTKC), whole_sequences(v_GBTKC), bias_HTT, documents_BT)
    t = q_GBTHC.shape[2]
    block = max(BLOCK, -(-t // MAX_BLOCKS)) if backend == "blocks" else t
    return _by_blocks(q_GBTHC, k_GBTKC, v_GBTKC, bias_HTT, documents_BT, block)


def attention_to_cache(
    q_GB1HC: jax.Array,
    k_GB1KC: jax.Array,
    v_GB1KC: jax.Array,
    cache: tuple[jax.Array, jax.Array],
    at_B: jax.Array,
    bias_HBS: jax.Array | None = None,
) -> jax.Array:
    """`attention` of one new token a sequence, at position at_B, for itself and the cache's slots before that.

    cache: keys and values [G, B, K, S, C]; slot s is position s. bias_HBS: for the slots; none for itself (a distance
    of zero). Returns [G, B, 1, H, C].
    """
    g, b, _, h, c = q_GB1HC.shape
    k_GBKSC, v_GBKSC = cache
    n_kv, n_slots = k_GBKSC.shape[2:4]
    q_GBKRC = q_GB1HC.reshape(g, b, n_kv, h // n_kv, c)
    k_GBKC, v_GBKC = k_GB1KC[:, :, 0], v_GB1KC[:, :, 0]
    past = jnp.einsum("gbkrc,gbksc->gbkrs", q_GBKRC, k_GBKSC, preferred_element_type=jnp.float32) * np.float32(c**-0.5)
    own = jnp.einsum("gbkrc,gbkc->gbkr", q_GBKRC, k_GBKC, preferred_element_type=jnp.float32) * np.float32(c**-0.5)
    if bias_HBS is not None:
        past += jnp.swapaxes(bias_HBS, 0, 1).reshape(b, n_kv, h // n_kv, n_slots)
    visible_BS = jnp.arange(n_slots) < at_B[:, None]
    past = jnp.where(visible_BS[:, None, None], past, -jnp.inf)
    weights = jax.nn.softmax(jnp.concatenate([past, own[..., None]], axis=-1), axis=-1).astype(v_GBKSC.dtype)
    out = jnp.einsum("gbkrs,gbksc->gbkrc", weights[..., :-1], v_GBKSC) + weights[..., -1:] * v_GBKC[..., None, :]
    return out.reshape(q_GB1HC.shape)


def choose(
    wanted: str,
    *,
    head_dim: int,
    dtype: str,
    biased: bool,
    divided: bool = False,
    apart: bool = False,
    platform: str | None = None,
) -> str:
    """The backend for devices of `platform` (None: this process's). wanted: auto, or a backend's name.

    divided: whether sequences are over several devices, which `sequence` alone can do. auto: blocks on a CPU; on a
    TPU splash where there is no bias; on a GPU cudnn where a small probe compiles it; else xla. Raises InputError
    for a cudnn or splash that can't be had.
    """
    if divided != (wanted == "sequence") and wanted != "auto":
        size = "more than 1" if divided else "1"
        raise InputError(f"compute.attention is {wanted!r}, but mesh.sequence is {size}; use auto")
    if divided:
        return "sequence"
    platform = platform or jax.default_backend()
    if wanted == "splash" and platform != "tpu":
        raise InputError(f"compute.attention is 'splash', but it is of TPUs, and this is for {platform}; use auto")
    if wanted == "splash" and biased:
        raise InputError("compute.attention is 'splash', but it takes no bias, and model.positions is one; use auto")
    if wanted == "auto" and platform == "tpu":
        return "xla" if biased else "splash"
    if wanted == "auto" and platform != "gpu":
        return "blocks" if platform == "cpu" else "xla"
    if wanted in ("auto", "cudnn"):
        obstacle = _no_cudnn(platform, head_dim, dtype, biased)
        obstacle = obstacle or ("it joins documents, and data.documents is apart" if apart else "")
        if wanted == "cudnn" and obstacle:
            raise InputError(f"compute.attention is 'cudnn', but {obstacle}; use auto")
        return "xla" if obstacle else "cudnn"
    return wanted


@cache
def _no_cudnn(platform: str, head_dim: int, dtype: str, biased: bool) -> str:
    """Why cudnn can't be used; empty where it can."""
    if platform != "gpu":
        return f"it is of GPUs, and this process runs on {platform}"
    if dtype != "bfloat16":
        return f"it computes in bfloat16, and dtype is {dtype}"
    if biased:
        return "it takes no bias, and model.positions is one"
    x = jax.ShapeDtypeStruct((1, 128, 1, head_dim), jnp.bfloat16)

    def probe(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn").astype(jnp.float32).sum()

    try:
        jax.jit(jax.grad(probe, argnums=(0, 1, 2))).lower(x, x, x).compile()
    except Exception as error:  # what a missing or old library raises differs by version
        return "a probe of it failed: " + " ".join(str(error).split())[:200]
    return ""


def _splash(
    q_GBTHC: jax.Array,
    k_GBTKC: jax.Array,
    v_GBTKC: jax.Array,
    documents_GBT: jax.Array | None = None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Of one device. T is padded to whole tiles: no query sees the keys behind it. interpret: on any device, slowly."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # only TPUs pay for its import

    t, c = q_GBTHC.shape[2], q_GBTHC.shape[4]
    padded = -(-t // SPLASH_TILE) * SPLASH_TILE
    block = max(b for b in range(SPLASH_TILE, SPLASH_BLOCK + 1, SPLASH_TILE) if padded % b == 0)

    def fold(x: jax.Array) -> jax.Array:
        x = jnp.swapaxes(x.reshape(-1, *x.shape[2:]), 1, 2)
        return jnp.pad(x, ((0, 0), (0, 0), (0, padded - t), (0, 0)))

    sizes = splash.BlockSizes(*(block,) * 3, *(block,) * 3, block_q_dq=block, block_kv_dq=block)
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([splash.CausalMask((padded, padded))] * q_GBTHC.shape[3]),
        block_sizes=sizes,
        residual_checkpoint_name="attention",
        interpret=interpret,
    )
    segments = None
    if documents_GBT is not None:
        documents_NT = jnp.pad(documents_GBT.reshape(-1, t), ((0, 0), (0, padded - t)))
        segments = splash.SegmentIds(documents_NT, documents_NT)
    q_NHTC = fold(q_GBTHC * np.asarray(c**-0.5, q_GBTHC.dtype))
    out_NHTC = jax.vmap(kernel)(q_NHTC, fold(k_GBTKC), fold(v_GBTKC), segments)
    return jnp.swapaxes(out_NHTC, 1, 2)[:, :t].reshape(q_GBTHC.shape)


def _by_parts(
    q_GBTHC: jax.Array,
    k_GBTKC: jax.Array,
    v_GBTKC: jax.Array,
    bias_HTT: jax.Array | None,
    documents_BT: jax.Array | None,
) -> jax.Array:
    """P parts of the queries, one a device, each N blocks of Q. Scores exist for one block of every part at a time, in
    the backward pass too."""
    g, b, t, h, c = q_GBTHC.shape
    n_parts, n_kv = parts(), k_GBTKC.shape[3]
    part = t // n_parts
    block = next(q for q in range(min(part, PART_BLOCK), 0, -1) if part % q == 0)
    n_blocks = part // block
    q_NGBPQKRC = jnp.moveaxis(q_GBTHC.reshape(g, b, n_parts, n_blocks, block, n_kv, h // n_kv, c), 3, 0)
    at_NPQ = jnp.swapaxes(jnp.arange(t).reshape(n_parts, n_blocks, block), 0, 1)

    @jax.checkpoint
    def one(_: None, xs: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        q_GBPQKRC, at_PQ = xs
        scores = jnp.einsum("gbpqkrc,gbskc->gbkrpqs", q_GBPQKRC, k_GBTKC, preferred_element_type=jnp.float32)
        scores = scores * np.float32(c**-0.5)
        if bias_HTT is not None:
            scores += bias_HTT[:, at_PQ].reshape(n_kv, h // n_kv, n_parts, block, t)
        visible = jnp.arange(t) <= at_PQ[..., None]
        if documents_BT is not None:
            same_BPQS = documents_BT[:, at_PQ][..., None] == documents_BT[:, None, None, :]
            visible = visible & same_BPQS[:, None, None]
        weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
        return None, jnp.einsum("gbkrpqs,gbskc->gbpqkrc", weights.astype(v_GBTKC.dtype), v_GBTKC)

    _, out_NGBPQKRC = jax.lax.scan(one, None, (q_NGBPQKRC, at_NPQ))
    return jnp.moveaxis(out_NGBPQKRC, 0, 3).reshape(q_GBTHC.shape)


def _by_blocks(
    q_GBTHC: jax.Array,
    k_GBTKC: jax.Array,
    v_GBTKC: jax.Array,
    bias_HTT: jax.Array | None,
    documents_BT: jax.Array | None,
    block: int,
) -> jax.Array:
    """G and B stay apart: folded, a batch that is sharded would be gathered."""
    g, b, t, h, c = q_GBTHC.shape
    n_kv = k_GBTKC.shape[3]
    q_GBKRTC = jnp.moveaxis(q_GBTHC.reshape(g, b, t, n_kv, h // n_kv, c), 2, 4)
    k_GBKTC, v_GBKTC = (jnp.swapaxes(x, 2, 3) for x in (k_GBTKC, v_GBTKC))
    outs = []
    for start in range(0, t, block):
        end = min(t, start + block)
        scores_GBKRQS = jnp.einsum(
            "gbkrqc,gbksc->gbkrqs",
            q_GBKRTC[..., start:end, :],
            k_GBKTC[..., :end, :],
            preferred_element_type=jnp.float32,
        )
        scores_GBKRQS = scores_GBKRQS * np.float32(c**-0.5)
        if bias_HTT is not None:
            scores_GBKRQS += bias_HTT[:, start:end, :end].reshape(n_kv, h // n_kv, end - start, end)
        visible: Any = np.arange(end) <= np.arange(start, end)[:, None]
        if documents_BT is not None:
            same_BQS = documents_BT[:, start:end, None] == documents_BT[:, None, :end]
            visible = visible & same_BQS[:, None, None]
        weights = jax.nn.softmax(jnp.where(visible, scores_GBKRQS, -jnp.inf), axis=-1)
        outs.append(jnp.einsum("gbkrqs,gbksc->gbkrqc", weights.astype(v_GBKTC.dtype), v_GBKTC[..., :end, :]))
    return jnp.moveaxis(jnp.concatenate(outs, axis=4), 4, 2).reshape(q_GBTHC.shape)

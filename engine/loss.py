"""Cross-entropy per trial, optionally in chunks so that full logits never exist.

Shapes: G trials, B sequences, T tokens, D d_model, V vocabulary, S tokens of a chunk, N chunks,
M routed layers.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from engine import layers
from engine import model as model_lib
from engine.architecture import ModelConfig
from engine.moe import Routing
from engine.placement import flat


class Losses(NamedTuple):
    """Sums over a batch, [G] each, and what its routed layers did ([M, G, ...]; None for a dense model)."""

    nll_G: jax.Array  # weighted negative log-likelihood in nats
    z_G: jax.Array  # weighted logsumexp^2 (z-loss)
    routing: Routing | None


def token_losses(
    config: ModelConfig,
    params_G: Any,
    tokens_BT1: jax.Array,
    weights_BT: jax.Array,
    *,
    dtype: Any,
    chunk: int = 0,
    attend: str = "xla",
    remat: str = "none",
    separator: int | None = None,
) -> Losses:
    """Cross-entropy of every trial on a batch, and its routing.

    tokens_BT1: [B, T+1] int32, inputs and their successors. weights_BT: float32, 0 leaves a token out.
    chunk: tokens whose logits exist at a time, 0 for all at once. attend, remat, separator: as in `model.hidden`.
    """
    inputs, targets = tokens_BT1[:, :-1], tokens_BT1[:, 1:]
    x_GBTD, routing = model_lib.hidden(config, params_G, inputs, dtype, attend=attend, remat=remat, separator=separator)
    x_GSD = flat(x_GBTD, 1)
    head_GDV = model_lib.head(params_G).astype(dtype)
    targets_S, weights_S = flat(targets, 0), flat(weights_BT, 0)
    n = targets_S.shape[0]
    if chunk == 0 or chunk >= n:
        return Losses(*_chunk_losses(config, head_GDV, x_GSD, targets_S, weights_S), routing)

    pad = -n % chunk
    x_GSD = jnp.pad(x_GSD, ((0, 0), (0, pad), (0, 0)))
    # A chunk takes every n-th token, so that each has its part of a sharded batch on every device.
    x_NGSD = jnp.moveaxis(x_GSD.reshape(x_GSD.shape[0], chunk, -1, x_GSD.shape[-1]), 2, 0)
    targets_NS = jnp.pad(targets_S, (0, pad)).reshape(chunk, -1).T
    weights_NS = jnp.pad(weights_S, (0, pad)).reshape(chunk, -1).T

    @partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable)
    def body(sums: tuple[jax.Array, jax.Array], xs: Any) -> tuple[tuple[jax.Array, jax.Array], None]:
        nll, z = _chunk_losses(config, head_GDV, *xs)
        return (sums[0] + nll, sums[1] + z), None

    zero = jnp.zeros(x_GSD.shape[0])
    sums, _ = jax.lax.scan(body, (zero, zero), (x_NGSD, targets_NS, weights_NS))
    return Losses(*sums, routing)


def _chunk_losses(
    config: ModelConfig, head_GDV: jax.Array, x_GSD: jax.Array, targets_S: jax.Array, weights_S: jax.Array
) -> tuple[jax.Array, jax.Array]:
    logits_GSV = jnp.einsum("gsd,gdv->gsv", x_GSD, head_GDV, preferred_element_type=jnp.float32)
    logits_GSV = layers.softcap(logits_GSV, config.logit_softcap)
    lse_GS = jax.nn.logsumexp(logits_GSV, axis=-1)
    target_GS = jnp.take_along_axis(logits_GSV, targets_S[None, :, None], axis=-1)[..., 0]
    return jnp.sum((lse_GS - target_GS) * weights_S, axis=-1), jnp.sum(lse_GS**2 * weights_S, axis=-1)

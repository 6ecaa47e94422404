"""What a model makes of given tokens: the negative log-likelihood of each, in nats.

Shapes: B sequences, T tokens, D d_model, V vocabulary, S tokens of a chunk, N chunks.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from engine import layers
from engine import model as model_lib
from engine.architecture import ModelConfig

CHUNK_LOGITS = 1 << 24  # logits that exist at a time


def token_nll(
    config: ModelConfig, params: model_lib.Params, tokens_BT1: np.ndarray, dtype: str = "float32"
) -> np.ndarray:
    """[B, T] float32 nats: of each of [B, T+1] tokens but the first, given those before it in its row.

    Padding on the right changes nothing before it. A mixture of experts is scored dropless, as in `engine.generate`.
    One program for each (config, shape, dtype).
    """
    config = dataclasses.replace(config, capacity_factor=0.0)
    attend = model_lib.attention_backend(config, dtype=dtype)
    return np.asarray(_token_nll(config, dtype, attend, params, jnp.asarray(tokens_BT1, jnp.int32)))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _token_nll(
    config: ModelConfig, dtype: str, attend: str, params: model_lib.Params, tokens_BT1: jax.Array
) -> jax.Array:
    params_G = model_lib.add_trial_axis(params)
    x_GBTD, _ = model_lib.hidden(config, params_G, tokens_BT1[:, :-1], jnp.dtype(dtype), attend=attend)
    head_DV = model_lib.head(params_G)[0].astype(dtype)
    targets_BT = tokens_BT1[:, 1:]
    n = targets_BT.size
    chunk = min(n, max(1, CHUNK_LOGITS // config.vocab_size))
    pad = -n % chunk
    x_NSD = jnp.pad(x_GBTD.reshape(n, -1), ((0, pad), (0, 0))).reshape(-1, chunk, x_GBTD.shape[-1])
    targets_NS = jnp.pad(targets_BT.reshape(n), (0, pad)).reshape(-1, chunk)

    def nll(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        x_SD, targets_S = part
        logits_SV = jnp.einsum("sd,dv->sv", x_SD, head_DV, preferred_element_type=jnp.float32)
        logits_SV = layers.softcap(logits_SV, config.logit_softcap)
        target_S = jnp.take_along_axis(logits_SV, targets_S[:, None], axis=-1)[:, 0]
        return jax.nn.logsumexp(logits_SV, axis=-1) - target_S

    return jax.lax.map(nll, (x_NSD, targets_NS)).reshape(-1)[:n].reshape(targets_BT.shape)

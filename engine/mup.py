"""Width transfer: the maximal update parametrisation (Yang et al. 2022, "Tensor Programs V", table 8), by which a
learning rate and an initial scale found at one width hold at others.

With m = d_model / optim.base_width, beside the standard parametrisation of the same numbers:

| parameter | starts times | Adam, Lion, Adafactor: lr times | Muon: lr times |
|---|---|---|---|
| blocks' matrices (q k v o, gate up down, of experts too) | m^-1/2 | 1/m | m^-1/2 |
| router | 1/m | 1/m | 1/m |
| final norm's scale | 1/m | 1/m | 1/m |
| embedding, head, blocks' norms | 1 | 1 | 1 |

- Table 8 multiplies logits by 1/m and leaves the head alone, which suits tied embeddings. Here the final norm's scale
  carries that factor: for optimizers whose step does not depend on the gradient's scale, a factor in front of a
  parameter is the same as that factor on its start and its learning rate (ibid., appendix J). So the forward pass, and
  with it a trained model's meaning, is that of the standard parametrisation. A router is an output too, in table 3's
  form.
- Muon's update has singular values of one, times about sqrt(width) to have AdamW's RMS; a spectral norm that does not
  depend on width (Yang, Simon & Bernstein 2023) takes m^-1/2 of it.
- Weight decay stays lr * weight_decay per step at every width: the learning rate's factor is not on it, as in Wortsman
  et al. 2023 and in CompleteP (Dey et al. 2025: decay times m where the learning rate has 1/m).
- Attention keeps 1/sqrt(head_dim), which is table 8's 1/head_dim where head_dim is the same at all widths: let widths
  differ in heads, not in head_dim, and keep d_ff / d_model (and d_expert's).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def is_hidden(path: Any) -> bool:
    """Whether a leaf of the parameters (its path) is a block's matrix, with width on both sides."""
    return path[0].key.endswith("layers") and not path[-1].key.endswith(("norm", "bias", "router"))


def scale_params(params: Any, base_width: jax.Array) -> Any:
    """One model's initial parameters as the table has them."""
    m = _multiple(params, base_width)

    def leaf(path: Any, p: jax.Array) -> jax.Array:
        if is_hidden(path):
            return p * m**-0.5
        return p / m if _is_output(path) else p

    return jax.tree_util.tree_map_with_path(leaf, params)


def scale_directions(updates: Any, base_width: jax.Array, optimizer: str) -> Any:
    """An optimizer's directions, each times the table's factor of the learning rate."""
    m = _multiple(updates, base_width)

    def leaf(path: Any, u: jax.Array) -> jax.Array:
        if is_hidden(path):
            return u * (m**-0.5 if optimizer == "muon" else 1 / m)
        return u / m if _is_output(path) else u

    return jax.tree_util.tree_map_with_path(leaf, updates)


def _multiple(params: Any, base_width: jax.Array) -> jax.Array:
    return jnp.float32(params["embed"].shape[-1]) / base_width


def _is_output(path: Any) -> bool:
    return path[-1].key == "router" or (len(path) == 1 and path[0].key == "norm")

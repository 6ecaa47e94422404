"""Mixtures of experts: token-choice top-k routing, the experts' matrix products, and what keeps experts evenly loaded.

Every choice of a token and an expert is a row. A layout gives each row a slot in a buffer, expert by expert; the buffer
goes through the experts' matrices and each token sums its slots by their gates. Three layouts, one program each:

- ragged: groups end to end, `jax.lax.ragged_dot`, dropless; trials are folded into groups, G * E of them.
- blocks: every group padded to whole blocks, one expert a block, dropless. For CPUs, where ragged_dot computes every
  expert's product for every row of every trial.
- capacity: every group cut or padded to one fixed size; rows past it are dropped.

Shapes: G trials, B sequences, T tokens, S = B T tokens, J choices of a token (top_k), R = J S rows, E experts,
D d_model, F d_expert, Q slots, N blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from engine import layers
from engine.architecture import ModelConfig
from engine.placement import BATCH, gather, per_device

Product = Callable[[jax.Array, jax.Array], jax.Array]  # rows times their experts' matrices


class Routing(NamedTuple):
    """What a routed layer did with a batch."""

    load_GE: jax.Array  # share of the rows that chose each expert; sums to one
    balance_G: jax.Array  # E sum_e load_e mean(probability_e): 1 when even (Fedus et al. 2022, eq. 4)
    z_G: jax.Array  # mean(logsumexp(router logits)^2) (Zoph et al. 2022, eq. 5)


def moe(config: ModelConfig, x_GBTD: jax.Array, p: dict[str, jax.Array]) -> tuple[jax.Array, Routing]:
    """The routed feed-forward of one layer, shared expert included: [G, B, T, D].

    p: router [G, D, E] and router_bias [G, E] in float32; gate, up [G, E, D, F] and down [G, E, F, D]; the shared
    expert's, shared_gate and so on, [G, D, F] and [G, F, D].
    """
    x_GSD = x_GBTD.reshape(x_GBTD.shape[0], -1, x_GBTD.shape[-1])
    gates_GSJ, experts_GSJ, routing = route(config, x_GSD, p["router"], p.get("router_bias"))
    # Rows know nothing of each other where none is dropped: each device sorts its own and gathers the experts.
    matrices: dict[str, jax.Array] = {name: p[name] for name in ("gate", "up", "down") if name in p}
    tokens, inner = P("trial", BATCH), P("trial", "expert", "fsdp", "tensor")
    specs = {name: P("trial", "expert", "tensor", "fsdp") if name == "down" else inner for name in matrices}
    routed: Callable[..., jax.Array] = partial(_routed, config)
    if not config.capacity_factor:
        routed = per_device(partial(_gathered, config), (tokens, tokens, tokens, specs), tokens, summed="tensor")
    y = routed(x_GSD, gates_GSJ, experts_GSJ, matrices).reshape(x_GBTD.shape)
    if config.d_shared:
        y = y + layers.feed_forward(x_GBTD, p.get("shared_gate"), p["shared_up"], p["shared_down"])
    return y, routing


def _gathered(
    config: ModelConfig, x_GSD: jax.Array, gates_GSJ: jax.Array, experts_GSJ: jax.Array, p: dict[str, jax.Array]
) -> jax.Array:
    """`_routed` of a device's tokens with every device's experts. A gather's gradient is a reduce-scatter."""
    whole = {name: gather(w, expert=1, fsdp=3 if name == "down" else 2) for name, w in p.items()}
    return _routed(config, x_GSD, gates_GSJ, experts_GSJ, whole)


def _routed(
    config: ModelConfig, x_GSD: jax.Array, gates_GSJ: jax.Array, experts_GSJ: jax.Array, p: dict[str, jax.Array]
) -> jax.Array:
    """Every token's experts' outputs, summed by its gates: [G, S, D]."""
    experts_GR = jnp.swapaxes(experts_GSJ, 1, 2).reshape(x_GSD.shape[0], -1)  # first choices first: dropped last
    out_GRD = _through_experts(config, x_GSD, experts_GR, p)
    out_GJSD = out_GRD.reshape(x_GSD.shape[0], config.top_k, *x_GSD.shape[1:])
    return jnp.einsum("gjsd,gsj->gsd", out_GJSD, gates_GSJ.astype(out_GRD.dtype))


def route(
    config: ModelConfig, x_GSD: jax.Array, router_GDE: jax.Array, bias_GE: jax.Array | None
) -> tuple[jax.Array, jax.Array, Routing]:
    """Gates [G, S, J] float32 and experts [G, S, J] int32 of every token, all in float32.

    The bias decides which experts are chosen, not by how much they count (Wang et al. 2024, loss-free balancing).
    """
    logits_GSE = jnp.einsum("gsd,gde->gse", x_GSD.astype(jnp.float32), router_GDE, precision=jax.lax.Precision.HIGHEST)
    probs_GSE = jax.nn.softmax(logits_GSE, axis=-1)
    scores_GSE = probs_GSE if bias_GE is None else probs_GSE + bias_GE[:, None, :]
    experts_GSJ = _top_k(jax.lax.stop_gradient(scores_GSE), config.top_k)
    gates_GSJ = jnp.take_along_axis(probs_GSE, experts_GSJ, axis=-1)
    if config.normalized_gates:
        gates_GSJ = gates_GSJ / jnp.sum(gates_GSJ, axis=-1, keepdims=True)
    load_GE = jnp.mean(jax.nn.one_hot(experts_GSJ, config.n_experts), axis=(1, 2))
    balance_G = config.n_experts * jnp.sum(load_GE * jnp.mean(probs_GSE, axis=1), axis=-1)
    z_G = jnp.mean(jax.nn.logsumexp(logits_GSE, axis=-1) ** 2, axis=-1)
    return gates_GSJ, experts_GSJ, Routing(load_GE, balance_G, z_G)


def move_bias(bias: jax.Array, load: jax.Array, rate: jax.Array) -> jax.Array:
    """Loss-free balancing after a step: rate up for experts with less than their even share, down for those with more.

    bias, load: [..., E]. (Wang et al. 2024, algorithm 1.)
    """
    over = load * bias.shape[-1] - 1
    return bias - rate * jnp.where(jnp.abs(over) < 1e-6, 0.0, jnp.sign(over))  # rounding of an even share is not over


def _top_k(scores_GSE: jax.Array, k: int) -> jax.Array:
    """Indices [G, S, k] of the k largest, largest first, ties to the lower.

    By k maxima: `lax.top_k` would gather what is sharded over trials or tokens.
    """
    found = []
    for _ in range(k):
        best_GS = jnp.argmax(scores_GSE, axis=-1)
        found.append(best_GS)
        taken_GSE = best_GS[..., None] == jnp.arange(scores_GSE.shape[-1])
        scores_GSE = jnp.where(taken_GSE, -jnp.inf, scores_GSE)
    return jnp.stack(found, axis=-1)


def _through_experts(
    config: ModelConfig, x_GSD: jax.Array, experts_GR: jax.Array, p: dict[str, jax.Array]
) -> jax.Array:
    """Every row's token through its expert: [G, R, D]; a dropped row is zero."""
    n_rows, e = experts_GR.shape[1], config.n_experts
    counts_GE = jax.vmap(lambda experts: jnp.bincount(experts, length=e))(experts_GR)
    rank_GR = jax.vmap(_ranks)(experts_GR)
    layout = backend(config)
    if layout == "ragged":
        n_slots = n_rows
        starts_GE = jnp.cumsum(counts_GE, axis=1) - counts_GE
        slots_GR = jnp.take_along_axis(starts_GE, experts_GR, axis=1) + rank_GR
    elif layout == "blocks":
        block = _block_size(n_rows, e)
        n_blocks = (n_rows + e * (block - 1)) // block  # enough however the rows fall
        n_slots = n_blocks * block
        ends_GE = jnp.cumsum(-(-counts_GE // block), axis=1)  # in blocks
        starts_GE = (ends_GE + counts_GE // -block) * block
        slots_GR = jnp.take_along_axis(starts_GE, experts_GR, axis=1) + rank_GR
    else:
        capacity = min(n_rows, math.ceil(config.capacity_factor * n_rows / e))
        n_slots = e * capacity
        slots_GR = jnp.where(rank_GR < capacity, experts_GR * capacity + rank_GR, n_slots)  # n_slots: nowhere

    def fill(x_SD: jax.Array, slots_R: jax.Array) -> jax.Array:
        tokens_Q = jnp.full(n_slots, x_SD.shape[0]).at[slots_R].set(jnp.arange(n_rows) % x_SD.shape[0], mode="drop")
        return x_SD.at[tokens_Q].get(mode="fill", fill_value=0)

    x_GQD = jax.vmap(fill)(x_GSD, slots_GR)
    matrices = [p.get("gate"), p["up"], p["down"]]
    if layout == "ragged":
        y_GQD = _ragged(x_GQD, counts_GE, matrices)
    elif layout == "blocks":
        owner = jax.vmap(lambda ends: jnp.searchsorted(ends, jnp.arange(n_blocks), side="right"))
        owner_GN = jnp.minimum(owner(ends_GE), e - 1)
        y_GQD = _batched(x_GQD, n_blocks, [None if w is None else jax.vmap(_rows)(w, owner_GN) for w in matrices])
    else:
        y_GQD = _batched(x_GQD, e, matrices)
    return jax.vmap(lambda y, slots: y.at[slots].get(mode="fill", fill_value=0))(y_GQD, slots_GR)


def backend(config: ModelConfig) -> str:
    """How the experts' products are computed here: ragged, blocks or capacity."""
    if config.capacity_factor:
        return "capacity"
    if config.moe_matmul != "auto":
        return config.moe_matmul
    return "blocks" if jax.default_backend() == "cpu" else "ragged"


def _ranks(experts_R: jax.Array) -> jax.Array:
    """Each row's place among the rows of its expert, in order."""
    order_R = jnp.argsort(experts_R, stable=True)
    sorted_R = experts_R[order_R]
    first_R = jnp.searchsorted(sorted_R, sorted_R, side="left")
    return jnp.zeros_like(experts_R).at[order_R].set(jnp.arange(experts_R.shape[0]) - first_R)


def _rows(table: jax.Array, index: jax.Array) -> jax.Array:
    return table[index]


def _block_size(n_rows: int, n_experts: int) -> int:
    """A power of two, 8 to 128, about a quarter of an even share: padding then costs an eighth or so."""
    return min(128, max(8, 2 ** round(math.log2(max(1, n_rows / n_experts / 4)))))


def _ragged(x_GQD: jax.Array, counts_GE: jax.Array, matrices: list[Any]) -> jax.Array:
    gate, up, down = (None if w is None else w.reshape(-1, *w.shape[2:]) for w in matrices)
    x = x_GQD.reshape(-1, x_GQD.shape[-1])
    counts = counts_GE.reshape(-1).astype(jnp.int32)
    return _feed_forward(x, gate, up, down, lambda a, w: jax.lax.ragged_dot(a, w, counts)).reshape(x_GQD.shape)


def _batched(x_GQD: jax.Array, n_groups: int, matrices: list[Any]) -> jax.Array:
    gate, up, down = matrices
    x = x_GQD.reshape(x_GQD.shape[0], n_groups, -1, x_GQD.shape[-1])
    return _feed_forward(x, gate, up, down, lambda a, w: jnp.einsum("gnbd,gndf->gnbf", a, w)).reshape(x_GQD.shape)


def _feed_forward(x: jax.Array, gate: Any, up: Any, down: Any, product: Product) -> jax.Array:
    kept = lambda w: checkpoint_name(product(x, w), "ffn")  # noqa: E731
    return product(layers.activate(None if gate is None else kept(gate), kept(up)), down)

"""Generation with a cache of keys and values: one compiled program, for prompts of different lengths at once.

Prompts are padded on the right, so a token's slot in the cache is its position; a generated token overwrites the
padding's slot. What comes later is never read, hence padding changes nothing.

Shapes: B prompts, T tokens of the longest (rounded up), N new tokens (rounded up), V vocabulary; G is 1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from engine import layers
from engine import model as model_lib
from engine.architecture import ModelConfig
from engine.errors import InputError, require


class _Numbers(NamedTuple):
    """What a call may change without a new program; [] each."""

    limit: Any  # int32: tokens to generate
    temperature: Any  # float32; 0: the likeliest token
    top_p: Any  # float32
    top_k: Any  # int32; 0: all
    stop: Any  # int32; -1: none
    seed: Any  # uint32


def generate(
    config: ModelConfig,
    params: model_lib.Params,
    prompts: Sequence[Sequence[int] | np.ndarray],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    stop: int | None = None,
    dtype: str = "float32",
) -> list[np.ndarray]:
    """Continues each prompt ([n] ids, n >= 1): its new ids, [m] int32, m <= max_new_tokens; `stop` ends it, left out.

    temperature: divides the logits; 0 takes the likeliest token. top_p: samples among the fewest tokens whose
    probabilities reach it (Holtzman et al. 2020). top_k: among so many at most; 0: all. seed: prompt i's draws depend
    on (seed, i), not on the other prompts. dtype: of activations and cache, float32 or bfloat16.

    One program for each (config, number of prompts, dtype, lengths rounded up); numbers are its arguments. A mixture of
    experts generates dropless: which tokens a capacity drops depends on all tokens of a batch, later ones too, so it
    has no meaning a token at a time; `capacity_factor` is ignored here, while `engine.logits` obeys it.

    Raises InputError for empty prompts, ids outside the vocabulary, or numbers out of range.
    """
    rows = _checked(config, prompts)
    require(max_new_tokens >= 1, f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    require(math.isfinite(temperature) and temperature >= 0, f"temperature is {temperature}; it must be zero or more")
    require(0 < top_p <= 1, f"top_p is {top_p}; it must be in (0, 1]")
    require(top_k >= 0, f"top_k is {top_k}; it must be zero (all) or more")
    require(0 <= seed < 2**32, f"seed is {seed}; it must be in [0, 2^32)")
    require(stop is None or 0 <= stop < config.vocab_size, f"stop is {stop}; ids are below {config.vocab_size}")
    require(dtype in ("float32", "bfloat16"), f"dtype is {dtype!r}; known dtypes: float32, bfloat16")

    lengths = np.asarray([len(row) for row in rows], np.int32)
    tokens = np.zeros((len(rows), _rounded(int(lengths.max()))), np.int32)
    for row, ids in zip(tokens, rows):
        row[: len(ids)] = ids
    numbers = _Numbers(
        limit=np.int32(max_new_tokens),
        temperature=np.float32(temperature),
        top_p=np.float32(top_p),
        top_k=np.int32(top_k),
        stop=np.int32(-1 if stop is None else stop),
        seed=np.uint32(seed),
    )
    config = dataclasses.replace(config, capacity_factor=0.0)
    attend = model_lib.attention_backend(config, dtype=dtype)
    new, counts = _generate(config, _rounded(max_new_tokens), dtype, attend, params, tokens, lengths, numbers)
    return [row[:n] for row, n in zip(np.asarray(new), np.asarray(counts))]


def _checked(config: ModelConfig, prompts: Sequence[Sequence[int] | np.ndarray]) -> list[np.ndarray]:
    require(len(prompts) >= 1, "there are no prompts; give at least one")
    rows = []
    for i, prompt in enumerate(prompts):
        ids = np.asarray(prompt)
        if ids.ndim != 1 or len(ids) == 0 or not np.issubdtype(ids.dtype, np.integer):
            raise InputError(f"prompt {i} must be one or more token ids, [n] integers")
        bad = ids[(ids < 0) | (ids >= config.vocab_size)]
        require(len(bad) == 0, f"prompt {i} holds {bad[:1]}; ids are from 0 to {config.vocab_size - 1}")
        rows.append(ids.astype(np.int32))
    return rows


def _rounded(n: int) -> int:
    """Up to a power of two, at least 16: lengths close to each other share a program."""
    return max(16, 1 << (n - 1).bit_length())


class _Going(NamedTuple):
    """A generation under way."""

    n: jax.Array  # [] tokens generated
    cache: model_lib.Cache
    last_B: jax.Array  # the newest token; its keys and values are not in the cache yet
    over_B: jax.Array  # stopped
    new_BN: jax.Array
    counts_B: jax.Array  # tokens before the stop


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _generate(
    config: ModelConfig,
    n_new: int,
    dtype: str,
    attend: str,
    params: model_lib.Params,
    tokens_BT: jax.Array,
    lengths_B: jax.Array,
    numbers: _Numbers,
) -> tuple[jax.Array, jax.Array]:
    """New tokens [B, N], and how many of each row count."""
    params_G = _cast(model_lib.add_trial_axis(params), dtype)
    head_VD = model_lib.head(params_G)[0]
    n_prompts, n_slots = tokens_BT.shape[0], tokens_BT.shape[1] + n_new
    keys_B = jax.vmap(partial(jax.random.fold_in, jax.random.key(numbers.seed, impl="threefry2x32")))(
        jnp.arange(n_prompts)
    )

    def choose(x_BD: jax.Array, n: jax.Array) -> jax.Array:
        logits_BV = jnp.einsum("bd,dv->bv", x_BD, head_VD, preferred_element_type=jnp.float32)
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys_B, n)
        return sample(layers.softcap(logits_BV, config.logit_softcap), keys, numbers)

    def append(going: _Going, token_B: jax.Array) -> _Going:
        over_B = going.over_B | (token_B == numbers.stop)
        new_BN = going.new_BN.at[:, going.n].set(token_B)
        counts_B = going.counts_B + ~over_B
        return going._replace(n=going.n + 1, last_B=token_B, over_B=over_B, new_BN=new_BN, counts_B=counts_B)

    def unfinished(going: _Going) -> jax.Array:
        return (going.n < numbers.limit) & ~jnp.all(going.over_B)

    def step(going: _Going) -> _Going:
        at_B = lengths_B + going.n - 1
        x_GBD, cache = model_lib.extend(config, params_G, going.last_B, at_B, going.cache, jnp.dtype(dtype))
        return append(going._replace(cache=cache), choose(x_GBD[0], going.n))

    x_GBTD, cache = model_lib.prefill(config, params_G, tokens_BT, n_slots, jnp.dtype(dtype), attend=attend)
    none_B = jnp.zeros(n_prompts, jnp.int32)
    start = _Going(jnp.int32(0), cache, none_B, none_B > 0, jnp.zeros((n_prompts, n_new), jnp.int32), none_B)
    first_B = choose(x_GBTD[0, jnp.arange(n_prompts), lengths_B - 1], start.n)
    going = jax.lax.while_loop(unfinished, step, append(start, first_B))
    return going.new_BN, going.counts_B


def _cast(params_G: model_lib.Params, dtype: str) -> model_lib.Params:
    """Once, not at every token; what the model wants in float32 stays."""
    return jax.tree_util.tree_map_with_path(
        lambda path, w: w if model_lib.stays_float32(path[-1].key) else w.astype(dtype), params_G
    )


def sample(logits_BV: jax.Array, keys_B: jax.Array, numbers: _Numbers) -> jax.Array:
    """One token a row, [B] int32."""

    def drawn(_: None) -> jax.Array:
        order_BV, scores_BV = nucleus(logits_BV, numbers.temperature, numbers.top_p, numbers.top_k)
        rank_B = jax.vmap(jax.random.categorical)(keys_B, scores_BV)
        return jnp.take_along_axis(order_BV, rank_B[:, None], axis=1)[:, 0].astype(jnp.int32)

    def likeliest(_: None) -> jax.Array:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)

    return jax.lax.cond(numbers.temperature > 0, drawn, likeliest, None)


def nucleus(logits_BV: jax.Array, temperature: Any, top_p: Any, top_k: Any = 0) -> tuple[jax.Array, jax.Array]:
    """Tokens from the likeliest down, [B, V], and their log-probabilities but for a constant, [B, V]; -inf: left out.

    Left out is what is behind the top_k first (0: none), then, of the probabilities that remain, what is behind the
    fewest that reach top_p. The likeliest token always stays.
    """
    order_BV = jnp.argsort(-logits_BV, axis=-1, stable=True)
    sorted_BV = jnp.take_along_axis(logits_BV, order_BV, axis=-1)
    scores_BV = (sorted_BV - sorted_BV[:, :1]) / temperature
    rank_V = jnp.arange(logits_BV.shape[-1])
    scores_BV = jnp.where((rank_V < top_k) | (top_k == 0), scores_BV, -jnp.inf)
    probs_BV = jax.nn.softmax(scores_BV, axis=-1)
    before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
    kept_BV = (before_BV < top_p) | (top_p >= 1) | (rank_V == 0)
    return order_BV, jnp.where(kept_BV, scores_BV, -jnp.inf)

"""Generation: with a cache as without, whatever stands beside; samples from what top-p leaves."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engine
from engine import InputError, ModelConfig, sample
from engine import model as model_lib
from tests.engine.conftest import drawn_params

SHAPE = {"vocab_size": 37, "d_model": 32, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "d_ff": 48}
MOE = {"n_experts": 4, "top_k": 2, "d_expert": 16}
MODELS = {
    "rope": {},
    "qk-norm, head_dim, tied": {"qk_norm": True, "head_dim": 12, "tied_embeddings": True, "n_kv_heads": 4},
    "alibi, soft-cap": {"positions": "alibi", "logit_softcap": 5.0, "n_kv_heads": 1},
    "sqrt_alibi, gelu": {"positions": "sqrt_alibi", "activation": "gelu"},
    "experts, some layers dense, shared, a capacity that generation ignores": {
        **MOE,
        **{"n_dense_layers": 1, "d_shared": 8, "router_bias": True, "capacity_factor": 0.25},
    },
    "experts, ragged": {**MOE, "moe_matmul": "ragged"},
}
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8], [7], [1, 8, 2, 8, 1, 8]]


@functools.cache
def model(name):
    """A config, the same without a capacity, and parameters."""
    config = ModelConfig(**{**SHAPE, **MODELS[name]})
    return config, dataclasses.replace(config, capacity_factor=0.0), drawn_params(config)


@pytest.mark.parametrize("name", MODELS)
def test_generation_is_that_without_a_cache(name):
    """Every new token is the likeliest by the logits of all before it, computed anew without a cache."""
    config, dropless, params = model(name)
    made = engine.generate(config, params, PROMPTS, max_new_tokens=11, temperature=0)
    assert len({tuple(ids) for ids in made}) == 3
    tokens = np.zeros((3, max(map(len, PROMPTS)) + 11), np.int32)
    for row, prompt, ids in zip(tokens, PROMPTS, made):
        row[: len(prompt) + 11] = [*prompt, *ids]
    likeliest = np.asarray(jax.jit(lambda t: engine.logits(dropless, params, t))(tokens)).argmax(axis=-1)
    for row, prompt, ids in zip(likeliest, PROMPTS, made):
        np.testing.assert_array_equal(ids, row[len(prompt) - 1 : len(prompt) + 10])


@pytest.mark.parametrize("name", ["alibi, soft-cap", next(name for name in MODELS if "capacity" in name)])
def test_activations_are_those_without_a_cache(name):
    """A prefix at once, then token by token, each sequence at a place of its own, among garbage."""
    _, config, params = model(name)
    params_G = model_lib.add_trial_axis(params)
    tokens = np.random.default_rng(1).integers(0, 37, (2, 12)).astype(np.int32)
    whole, _ = jax.jit(lambda t: model_lib.hidden(config, params_G, t))(tokens)
    at = np.asarray([5, 3])
    x, cache = jax.jit(lambda t: model_lib.prefill(config, params_G, t, 16, jnp.float32))(tokens[:, :6])
    np.testing.assert_allclose(x, whole[:, :, :6], atol=1e-5)
    extend = jax.jit(lambda *args: model_lib.extend(config, params_G, *args, jnp.float32))
    for _ in range(6):
        x, cache = extend(tokens[[0, 1], at], at, cache)
        np.testing.assert_allclose(x[0], whole[0, [0, 1], at], atol=1e-5)
        at = at + 1


def test_bfloat16_follows_its_own_uncached_logits():
    """Each token taken is, of the bfloat16 logits of all before, the likeliest but for rounding."""
    config, _, params = model("rope")
    (ids,) = engine.generate(config, params, [PROMPTS[0]], max_new_tokens=9, temperature=0, dtype="bfloat16")
    tokens = np.asarray([[*PROMPTS[0], *ids]], np.int32)
    params_G = model_lib.add_trial_axis(params)
    x, _ = jax.jit(lambda t: model_lib.hidden(config, params_G, t, jnp.bfloat16))(tokens)
    logits = np.asarray((x[0, 0] @ params["head"].astype(jnp.bfloat16)).astype(jnp.float32))
    spread = logits.max() - logits.min()
    for i, token in enumerate(ids):
        row = logits[len(PROMPTS[0]) + i - 1]
        assert row[token] > row.max() - 0.02 * spread


@pytest.fixture(scope="module")
def small():
    config, _, params = model("rope")
    return config, params


def test_neighbours_and_padding_change_nothing(small):
    made = engine.generate(*small, PROMPTS, max_new_tokens=20, temperature=0.8, seed=3)
    alone = engine.generate(*small, PROMPTS[:1], max_new_tokens=20, temperature=0.8, seed=3)
    np.testing.assert_array_equal(made[0], alone[0])
    longer = engine.generate(*small, [PROMPTS[0], [2] * 40], max_new_tokens=20, temperature=0.8, seed=3)
    np.testing.assert_array_equal(made[0], longer[0])


def test_seeds_and_the_numbers_share_one_program(small):
    engine.generate(*small, PROMPTS, max_new_tokens=20)
    programs = sample._generate._cache_size()
    a = engine.generate(*small, PROMPTS, max_new_tokens=20, temperature=1.5, seed=1)
    b = engine.generate(*small, PROMPTS, max_new_tokens=20, temperature=1.5, seed=1)
    c = engine.generate(*small, [[1, 2], [3], [4]], max_new_tokens=17, temperature=0.5, seed=2, top_p=0.5, stop=3)
    assert [x.tolist() for x in a] == [x.tolist() for x in b] != [x.tolist() for x in c]
    # the three prompts of c pad to 16, those of a and b to 32
    assert sample._generate._cache_size() <= programs + 1
    top_1 = engine.generate(*small, PROMPTS, max_new_tokens=20, temperature=1.5, top_p=1e-6, seed=4)
    np.testing.assert_array_equal(top_1, engine.generate(*small, PROMPTS, max_new_tokens=20, temperature=0))
    np.testing.assert_array_equal(top_1, engine.generate(*small, PROMPTS, max_new_tokens=20, top_k=1, seed=5))


def test_stop_ends_a_row_and_is_left_out(small):
    whole = engine.generate(*small, PROMPTS, max_new_tokens=20, temperature=0)
    stop = int(whole[0][4])
    made = engine.generate(*small, PROMPTS, max_new_tokens=20, temperature=0, stop=stop)
    for ids, full in zip(made, whole):
        (found,) = np.nonzero(full == stop)
        np.testing.assert_array_equal(ids, full[: found[0]] if len(found) else full)
    assert len(made[0]) <= 4


def by_numpy(logits, temperature, top_p, top_k=0):
    """Probabilities of sampling, one row."""
    order = np.argsort(-logits, kind="stable")
    kept = order[: top_k or None]
    p = np.exp((logits[kept] - logits.max()) / temperature)
    p /= p.sum()
    n = next((i + 1 for i in range(len(p)) if p[: i + 1].sum() >= top_p), len(p))
    out = np.zeros_like(logits)
    out[kept[:n]] = p[:n] / p[:n].sum()
    return out


@pytest.mark.parametrize("temperature, top_p, top_k", [(1, 1, 0), (0.7, 0.6, 0), (2.5, 0.9, 0), (1, 0.8, 5), (1, 1, 3)])
def test_the_nucleus(temperature, top_p, top_k):
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 2, (6, 37)).astype(np.float32)
    order, scores = sample.nucleus(logits, np.float32(temperature), np.float32(top_p), np.int32(top_k))
    probs = np.zeros_like(logits)
    np.put_along_axis(probs, np.asarray(order), np.asarray(jax.nn.softmax(scores, axis=-1)), axis=1)
    for row, ours in zip(logits.astype(np.float64), probs):
        np.testing.assert_allclose(ours, by_numpy(row, temperature, top_p, top_k), atol=1e-6)


def test_samples_are_distributed_so():
    """Chi-square of 20,000 draws."""
    from scipy import stats

    logits = np.random.default_rng(3).normal(0, 0.7, 12).astype(np.float32)
    n = 20_000
    keys = jax.random.split(jax.random.key(0), n)
    numbers = sample._Numbers(*map(np.float32, (0, 0.9, 0.85, 0, -1, 0)))
    drawn = jax.jit(sample.sample)(np.tile(logits, (n, 1)), keys, numbers)
    expected = by_numpy(logits.astype(np.float64), 0.9, 0.85)
    counts = np.bincount(np.asarray(drawn), minlength=12)
    assert counts[expected == 0].sum() == 0 and 2 < (expected > 0).sum() < 12
    assert stats.chisquare(counts[expected > 0], n * expected[expected > 0]).pvalue > 1e-3


@pytest.mark.parametrize(
    "more, said",
    [
        ({"prompts": []}, "no prompts"),
        ({"prompts": [[1], []]}, "prompt 1"),
        ({"prompts": [[1, 37]]}, "37"),
        ({"prompts": [[0.5]]}, "integers"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"stop": 37}, "stop is 37"),
        ({"dtype": "float16"}, "float16"),
    ],
)
def test_errors(small, more, said):
    prompts = more.pop("prompts", [[1]])
    with pytest.raises(InputError, match=said):
        engine.generate(*small, prompts, **{"max_new_tokens": 4, **more})

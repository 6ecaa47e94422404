"""Fine-tuning: what is packed and counted; a model learns responses, and nothing from the prompts' losses."""

from __future__ import annotations

import numpy as np
import pytest

import engine
from engine import ModelConfig
from engine.tokenize import Bytes
from experiments.code.ctf import embed, tune
from experiments.errors import InputError

MADE = [(f"ask {i}: ", f"answer {i * i}") for i in range(9)]


def test_packed_sequences_hold_whole_examples_and_count_responses():
    tokens, weights, left_out = tune.pack(Bytes(), [*MADE, ("p" * 60, "r" * 10)], 60, seed=1)
    assert left_out == 1 and tokens.shape[1] == 61 and weights.shape == (len(tokens), 60)
    text = "".join("|" if t == 256 else chr(t) for t in tokens.ravel())
    counted = "".join("|" if t == 256 else chr(t) for t in tokens[:, 1:][weights > 0])
    for prompt, response in MADE:
        assert f"{prompt}{response}|" in text
        assert counted.count(f"{response}|") >= 1
    assert "ask" not in counted and "p" not in counted
    assert weights.sum() == sum(len(response) + 1 for _, response in MADE)
    assert len(tokens) < len(MADE)
    again, _, _ = tune.pack(Bytes(), MADE, 60, seed=1)
    assert not np.array_equal(again, tune.pack(Bytes(), MADE, 60, seed=2)[0])
    with pytest.raises(InputError, match="no example fits into a sequence of 10"):
        tune.pack(Bytes(), MADE, 10, 0)


def test_batches_take_each_row_once_an_epoch():
    batches = tune._batches(5, 3, 0)
    rows = np.concatenate([next(batches) for _ in range(10)])
    for epoch in range(6):
        assert sorted(rows[5 * epoch : 5 * epoch + 5]) == list(range(5))


def test_models_learn_the_responses():
    """Two models in one program: each as if alone, both better at what they were shown."""
    config = ModelConfig(vocab_size=257, d_model=32, n_layers=1, n_heads=2)
    start = [engine.init(config, seed) for seed in (0, 1)]
    recipe = tune.Recipe(epochs=15, batch_size=2, seq_len=60, lr=1e-2)
    losses: list[np.ndarray] = []
    both = tune.tune(config, start, Bytes(), MADE, recipe, lambda n, of, loss: losses.append(loss))
    prompts, responses = ([one[side] for one in MADE] for side in (0, 1))
    for before, after in zip(start, both):
        nll = [embed.response_loss(engine.Trained(config, p, Bytes(), None), prompts, responses).mean()
               for p in (before, after)]  # fmt: skip
        assert nll[1] < nll[0] / 3
    alone = tune.tune(config, start[1:], Bytes(), MADE, recipe)[0]
    np.testing.assert_allclose(alone["norm"], both[1]["norm"], rtol=1e-3)
    assert losses[0].shape == (2,) and np.all(losses[-1] < losses[0])

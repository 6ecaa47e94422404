"""States and losses of texts by a model, against a decoder in plain numpy; transformers' model by name."""

from __future__ import annotations

import numpy as np
import pytest

import engine
from engine import ModelConfig
from engine.tokenize import Bytes
from experiments.code.ctf import embed
from experiments.errors import InputError
from tests.engine import numpy_reference
from tests.engine.conftest import drawn_params

TEXTS = ["def f(x):\n", "x", "def g(a, b):\n    return a + b  # of both, however long this line may be\n"]
MODELS = {"dense": {}, "experts": {"n_experts": 3, "top_k": 2, "d_expert": 8, "capacity_factor": 0.1}}


@pytest.fixture(scope="module", params=MODELS)
def trained(request):
    shape = {"vocab_size": 257, "d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 24}
    config = ModelConfig(**shape, **MODELS[request.param])
    return engine.Trained(config, drawn_params(config), Bytes(), None)


def reference(trained, ids):
    """(final states [T, D], logits [T, V]) of one text, alone."""
    import dataclasses

    config = dataclasses.replace(trained.model, capacity_factor=0.0)
    params = numpy_reference.copy(trained.params, np.float64)
    logits = numpy_reference.forward(config, params, np.asarray(ids)[None])[0][0]
    states = logits @ np.linalg.pinv(params["head"])  # the head has more columns than rows: it can be undone
    return states, logits


def test_pooled_states_are_means_of_each_texts_own(trained):
    found = embed.pooled(trained, TEXTS)
    for row, text in zip(found, TEXTS):
        np.testing.assert_allclose(row, reference(trained, list(text.encode()))[0].mean(axis=0), atol=2e-4)


def test_response_loss_counts_the_response_and_its_end_alone(trained):
    prompts, responses = ["ask: ", "", "a longer question\n"], ["yes", "no\n", "an answer that is long\n" * 2]
    found = embed.response_loss(trained, prompts, responses)
    for loss, prompt, response in zip(found, prompts, responses):
        ids = [*prompt.encode(), *response.encode(), 256]
        logits = reference(trained, ids)[1]
        logp = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        steps = range(max(len(prompt), 1), len(ids))  # the first token has nothing to be predicted from
        assert loss == pytest.approx(-np.mean([logp[t - 1, ids[t]] for t in steps]), rel=1e-4)


def test_a_prompt_that_fills_the_window_has_no_loss(trained, monkeypatch):
    monkeypatch.setattr(embed, "MAX_TOKENS", 16)
    found = embed.response_loss(trained, ["p" * 20, "p"], ["r", "r"])
    assert np.isnan(found[0]) and np.isfinite(found[1])


def test_a_model_by_transformers(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    config = ModelConfig(vocab_size=257, d_model=16, n_layers=2, n_heads=2, d_ff=24)
    made = engine.Trained(config, drawn_params(config), Bytes(), None)
    engine.hf.save(tmp_path / "m", config, made.params, tokenizer=Bytes())
    theirs = embed.named(f"hf:{tmp_path / 'm'}")(TEXTS)
    np.testing.assert_allclose(theirs, embed.pooled(made, TEXTS), atol=1e-3)
    np.testing.assert_allclose(embed.named(str(tmp_path / "m"))(TEXTS), embed.pooled(made, TEXTS), atol=1e-5)
    with pytest.raises(InputError, match="transformers has no model"):
        embed.named(f"hf:{tmp_path / 'none'}")(TEXTS)

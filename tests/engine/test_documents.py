"""Documents packed into one sequence that don't see each other, and evaluations on the way."""

import json

import numpy as np
import pytest

import engine
from engine import DataConfig, InputError, data, model, step
from engine import config as config_lib
from tests.engine.conftest import random_params

SEPARATOR = 256


@pytest.mark.parametrize("positions", ["rope", "alibi"])
def test_packed_documents_are_as_each_alone(positions, tiny):
    """Activations of every token, against a sequence of its document alone."""
    config = config_lib.replace(tiny, {"model.positions": positions}).model
    params = model.add_trial_axis(random_params(config))
    rng = np.random.default_rng(0)
    documents = [np.append(SEPARATOR, rng.integers(0, 256, n)) for n in (5, 1, 17, 30)]
    packed, _ = model.hidden(config, params, np.concatenate(documents)[None], separator=SEPARATOR)
    for document, ours in zip(documents, np.split(packed[0, 0], np.cumsum([len(d) for d in documents])[:-1])):
        alone, _ = model.hidden(config, params, document[None])
        np.testing.assert_allclose(ours, alone[0, 0], rtol=2e-5, atol=2e-5)
    joined, _ = model.hidden(config, params, np.concatenate(documents)[None])
    assert np.abs(joined - packed).max() > 1e-2  # what it is about


def test_of_the_config(tiny, tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets", reason="corpora of texts need tensorflow-datasets")
    monkeypatch.setenv("STEPSEER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "texts").mkdir()
    for i in range(400):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"text {i}" * 2)
    joined = config_lib.replace(tiny, {"data.corpus": str(tmp_path / "texts"), "tokens": 4 * 16 * 6})
    apart = config_lib.replace(joined, {"data.documents": "apart"})
    assert joined.run_id != apart.run_id and step.program(joined).separator is None
    corpora = {
        name: data.load(DataConfig(corpus=str(tmp_path / "texts"), tokenizer=name, seq_len=16))
        for name in ("bytes", "bpe-300")
    }
    for name, corpus in corpora.items():
        named = config_lib.replace(apart, {"data.tokenizer": name})
        assert step.program(named).separator == corpus.tokenizer.separator
    losses = [engine.train(config).metrics["loss"] for config in (joined, apart)]
    assert np.isfinite(losses).all() and not np.array_equal(*losses)


def test_what_cannot_be_apart_is_refused(tiny):
    with pytest.raises(InputError, match="synthetic, which is one endless document"):
        config_lib.replace(tiny, {"data.documents": "apart"})
    with pytest.raises(InputError, match="'split'; known: joined, apart"):
        DataConfig(documents="split")


def test_evaluations_on_the_way(tiny, tmp_path):
    """At a constant rate what is found after 10 steps is what a run of 10 steps ends with."""
    config = config_lib.replace(tiny, {"optim.schedule": "constant"})
    long = engine.train(config, folder=tmp_path, eval_every=10)
    short = engine.train(config_lib.replace(config, {"tokens": 4 * 16 * 10}))
    found = long.metrics["eval_loss"]
    assert np.flatnonzero(np.isfinite(found)).tolist() == [9, 19]
    np.testing.assert_allclose(found[9], short.row["eval_loss"], rtol=1e-6)
    np.testing.assert_allclose(long.metrics["eval_bpc"][9], short.row["bpc"], rtol=1e-6)
    np.testing.assert_array_equal(long.metrics["loss"], engine.train(config).metrics["loss"])  # nothing else changed
    lines = (tmp_path / "logs" / config.run_id / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in lines]
    assert [line["step"] for line in lines if "eval_loss" in line] == [9, 19, 24]

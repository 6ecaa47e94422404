"""Trained models come back from disk as they were, whichever kind of folder they are in."""

import shutil

import jax
import numpy as np
import pytest

import engine
from engine import InputError, hf
from engine import config as config_lib
from tests.engine.test_checkpoint import flip, steps_in
from tests.engine.test_corpora import write_texts

HYPERS = [{}, {"optim.lr": 3e-3, "seed": 5}]


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def population(tiny, tmp_path_factory):
    """A folder of checkpoints, and what was trained."""
    folder = tmp_path_factory.mktemp("population")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.loop, "MAX_CALL_STEPS", 4)  # several places to save
        return folder, engine.train_population(tiny, HYPERS, folder=folder, on_progress=lambda _: None, save_every_s=0)


def test_each_model_of_a_population(population):
    folder, results = population
    for result in results:
        trained = engine.load(folder, result.config.run_id)
        same(trained.params, result.params)
        assert trained.config == result.config and trained.model == result.config.model
        assert trained.tokenizer is None  # synthetic tokens are no text


def test_which_of_several_must_be_said(population):
    folder, results = population
    ids = [result.config.run_id for result in results]
    with pytest.raises(InputError, match=f"holds 2 models; choose a run: {ids[0]}, {ids[1]}"):
        engine.load(folder)
    with pytest.raises(InputError, match=f"no run 'nope'; it has: {ids[0]}"):
        engine.load(folder, "nope")


def test_reading_changes_nothing_and_a_damaged_step_is_passed_over(population, tmp_path):
    folder, (result, _) = population
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert len(steps_in(copy)) == 2
    flip(copy / str(steps_in(copy)[-1]))
    files = lambda: {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}  # noqa: E731
    before = files()
    older = engine.load(copy, result.config.run_id)
    assert np.abs(older.params["embed"] - result.params["embed"]).max() > 0
    assert files() == before


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe-300"])
def test_the_tokenizer_is_in_the_checkpoint(tiny, tokenizer, tmp_path, monkeypatch):
    """The corpus may be gone by then."""
    monkeypatch.setenv("STEPSEER_CACHE", str(tmp_path / "cache"))
    write_texts(tmp_path / "texts")
    changes = {"data.corpus": str(tmp_path / "texts"), "data.tokenizer": tokenizer}
    config = config_lib.replace(tiny, {**changes, "model.vocab_size": 300})
    engine.train(config, folder=tmp_path / "out" / "model")
    expected = engine.data.load(config.data).tokenizer
    monkeypatch.setenv("STEPSEER_CACHE", str(tmp_path / "elsewhere"))
    (tmp_path / "texts").rename(tmp_path / "gone")
    trained = engine.load(tmp_path / "out")  # a results folder: the checkpoint is in "model"
    assert trained.tokenizer.digest == expected.digest
    ids = trained.tokenizer.encode("def f(naïve): return 世界\n")
    np.testing.assert_array_equal(ids, expected.encode("def f(naïve): return 世界\n"))


def test_a_folder_of_hugging_faces_kind(population, tmp_path):
    _, (result, _) = population
    hf.save(tmp_path / "hf", result.config.model, result.params)
    trained = engine.load(tmp_path / "hf")
    same(trained.params, result.params)
    assert trained.model == result.config.model and trained.config is None and trained.tokenizer is None
    with pytest.raises(InputError, match=r"one model.*no run 'x'"):
        engine.load(tmp_path / "hf", "x")


def test_no_model(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="holds no model; name a results folder"):
            engine.load(folder)
    assert not (tmp_path / "none").exists()

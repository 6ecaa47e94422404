"""Grids as YAML files are those of the combinators."""

import pytest

from engine.config import TrainConfig
from experiments import recipes
from experiments.errors import InputError
from experiments.grid import axis, ladder, prod, trials, where, zip_

TEXT = """
base: {tokens: 2e5, data.corpus: synthetic, data.seq_len: 128, optim.warmup_steps: 10}
grid:
  prod:
    - zip: [{model.d_model: [32, 64]}, {model.n_heads: [1, 2]}]
    - chain: [{optim.lr: {ladder: [1e-3, 8e-3, 2]}}, {optim.lr: 0.02}]
    - {seed: [0, 1]}
without:
  - {model.d_model: 64, optim.lr: 8.0e-3}
"""


def load(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    return recipes.load(str(tmp_path / "mine.yaml"))


def test_same_as_in_python(tmp_path):
    base = TrainConfig(recipe="mine")
    base = trials(base, [{"tokens": 2e5, "data.corpus": "synthetic", "data.seq_len": 128, "optim.warmup_steps": 10}])[0]
    shapes = zip_(axis("model.d_model", [32, 64]), axis("model.n_heads", [1, 2]))
    grid = prod(shapes, axis("optim.lr", [*ladder(1e-3, 8e-3, 2), 0.02]), axis("seed", [0, 1]))
    kept = where(lambda t: not (t["model.d_model"] == 64 and abs(t["optim.lr"] - 8e-3) < 1e-9), grid)
    assert len(kept) == 18 and load(tmp_path, TEXT) == trials(base, kept)


@pytest.mark.parametrize(
    "text, words",
    [
        ("grid: {optim.lrr: [1e-3]}", "optim.lrr"),
        ("grid: {model.d_model: [33]}", "33"),
        ("grid: {optim.lr: {ladder: [1, 2]}}", "ladder: \\[low, high, ratio\\]"),
        ("grid: {optim.lr: {ladder: [1e-3, 1e-4, 2]}}", "ladder from"),
        ("grid: {prod: [{seed: 1}, {seed: 2}]}", "seed is set by two grids"),
        ("grid: {zip: [{seed: [1, 2]}, {optim.lr: [1e-3]}]}", "lengths 2, 1"),
        ("grid: {prod: {seed: 1}}", "prod takes a list"),
        ("grid: {prod: [{seed: 1}], seed: 2}", "stands beside"),
        ("grid: {product: [{seed: 1}, {optim.lr: 1}]}", "'product' to combine a list of grids; write prod, zip, chain"),
        ("grid: {tokens: [100q]}", "tokens is '100q'"),
        ("grid: {optim.lr: [3m]}", "optim.lr is '3m'"),
        ("grid: [1, 2]", "is no grid"),
        ("grid: {seed: []}", "is empty"),
        ("base: {seed: 1}", "must have the keys"),
        ("base: [1]\ngrid: {seed: 1}", "base must be a mapping"),
        ("grid: {seed: [1", "is not YAML"),
        ("grid: {seed: [1, 2]}\nwithout: [{optim.wieght_decay: 0.1}]", "did you mean optim.weight_decay"),
        ("grid: {seed: [1, 2]}\nwithout: [{seed: 3}]", "{'seed': 3} matches no trial \\(seed is 1, 2\\)"),
        ("grid: {seed: [1, 2]}\nwithout: [{optim.lr: 1e-3}]", "the grid does not vary optim.lr"),
        ("grid: {zip: [{seed: [1, 2]}, {optim.lr: [1, 2]}]}\nwithout: [{seed: 1, optim.lr: 2}]", "not together"),
        ("grid: {seed: [1, 2]}\nwithout: [{}]", "matches no trial"),
    ],
)
def test_mistakes_are_named(tmp_path, text, words):
    with pytest.raises((InputError, ValueError), match=words) as refusal:
        load(tmp_path, text)
    assert "\n" not in str(refusal.value)


def test_counts_as_people_write_them(tmp_path):
    text = TEXT.split("grid:")[0] + "grid: {tokens: [100k, 1.1M, 2B], batch_size: [1k]}"
    assert [t.tokens for t in load(tmp_path, text.replace("seq_len: 128", "seq_len: 2"))] == [1e5, 1.1e6, 2e9]
    text += "\nwithout: [{tokens: 1.0e+5}, {tokens: 1100k}]"
    assert [t.tokens for t in load(tmp_path, text.replace("seq_len: 128", "seq_len: 2"))] == [2e9]
    assert {t.batch_size for t in load(tmp_path, text.replace("seq_len: 128", "seq_len: 2"))} == {1000}


def test_no_file(tmp_path):
    with pytest.raises(InputError, match="no file"):
        recipes.load(str(tmp_path / "none.yaml"))

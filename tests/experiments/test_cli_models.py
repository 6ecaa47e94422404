"""From training to another library's format: train, generate, export, as a user runs them."""

import json

import numpy as np
import pytest

import engine
from experiments.cli import main
from tests.engine.test_corpora import write_texts
from tests.experiments.test_cli import say, say_json

GRID = """
from engine.config import DataConfig, ModelConfig, OptimConfig, TrainConfig

def one():
    return TrainConfig(
        recipe="mine",
        model=ModelConfig(d_model=16, n_layers=1, n_heads=2),
        optim=OptimConfig(lr=1e-2, warmup_steps=2),
        data=DataConfig(corpus={corpus!r}, seq_len=32),
        batch_size=8,
        tokens=2560,
    )
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A results folder of a model of text."""
    at = tmp_path_factory.mktemp("models")
    write_texts(at / "texts")
    (at / "mine.py").write_text(GRID.format(corpus=str(at / "texts")))
    assert main(["train", f"{at}/mine.py:one", "--out", f"{at}/out", "--json"]) == 0
    return at / "out"


def test_what_it_writes_follows_the_prompt_and_the_seed(trained, capsys):
    words = ["generate", trained, "--prompt", "def f(", "--prompt", "世", "--tokens", 12]
    told = say_json(capsys, *words, "--seed", 3)["continuations"]
    assert [row["prompt"] for row in told] == ["def f(", "世"]
    for row in told:
        assert len(row["ids"]) == 12 or (row["ended"] and len(row["ids"]) < 12)
        assert engine.tokenize.Bytes().decode(row["ids"]) == row["text"]
    assert say_json(capsys, *words, "--seed", 3)["continuations"] == told
    assert say_json(capsys, *words, "--seed", 4)["continuations"] != told
    assert say(capsys, *words, "--seed", 3) == "\n\n".join(row["prompt"] + row["text"] for row in told) + "\n"


def test_greedy_is_the_likeliest_byte_of_its_logits(trained, capsys):
    words = ["--prompt", "def", "--tokens", 5, "--temperature", 0]
    (row,) = say_json(capsys, "generate", trained, *words)["continuations"]
    model = engine.load(trained)
    tokens = np.asarray([[*b"def", *row["ids"]]], np.int32)
    likeliest = np.asarray(engine.logits(model.model, model.params, tokens))[0].argmax(axis=-1)
    assert row["ids"] == likeliest[2:7].tolist()


def test_without_a_prompt_a_document_begins(trained, capsys):
    (row,) = say_json(capsys, "generate", trained, "--tokens", 5)["continuations"]
    assert row["prompt"] == "" and len(row["ids"]) <= 5


def test_exported_and_loaded_it_is_the_same_model(trained, tmp_path, capsys):
    out = tmp_path / "exported"
    summary = say_json(capsys, "export", trained, "--out", out)
    assert summary["architecture"] == "LlamaForCausalLM" and summary["notes"] == []
    assert sorted(summary["files"]) == sorted(p.name for p in out.iterdir())
    assert summary["bytes"] == sum(p.stat().st_size for p in out.iterdir())
    ours, theirs = engine.load(trained), engine.load(out)
    tokens = np.arange(40, dtype=np.int32)[None]
    np.testing.assert_array_equal(
        engine.logits(ours.model, ours.params, tokens), engine.logits(theirs.model, theirs.params, tokens)
    )
    assert json.loads((out / "config.json").read_text())["max_position_embeddings"] == 32
    words = ["--prompt", "import ", "--tokens", 9, "--seed", 1]
    told = [say_json(capsys, "generate", folder, *words)["continuations"] for folder in (trained, out)]
    assert told[0] == told[1]

    assert main(["export", str(trained), "--out", str(out)]) == 2
    assert "exists" in capsys.readouterr().err
    assert "LlamaForCausalLM" in say(capsys, "export", trained, "--out", out, "--overwrite")


def test_a_model_of_synthetic_tokens_is_exported_but_writes_no_text(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(GRID.format(corpus="synthetic"))
    experts = ["--set", "model.n_experts=4", "--set", "model.top_k=2", "--set", "model.capacity_factor=1.5"]
    say_json(capsys, "train", f"{tmp_path}/mine.py:one", "--out", tmp_path / "out", *experts)
    summary = say_json(capsys, "export", tmp_path / "out", "--out", tmp_path / "exported")
    assert summary["architecture"] == "MixtralForCausalLM"
    dropless, no_tokenizer = summary["notes"]
    assert "dropless" in dropless and "no tokenizer" in no_tokenizer
    assert main(["generate", str(tmp_path / "exported"), "--prompt", "x"]) == 2
    err = capsys.readouterr().err
    assert "has no tokenizer" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "words, named",
    [
        (["--tokens", "0"], ["--tokens", "'0'"]),
        (["--temperature", "-1"], ["temperature is -1"]),
        (["--top-p", "1.5"], ["top_p is 1.5"]),
        (["--seed", "-1"], ["seed is -1"]),
        (["--run", "nope"], ["no run 'nope'"]),
    ],
)
def test_bad_numbers_are_one_line(trained, capsys, words, named):
    assert main(["generate", str(trained), "--prompt", "x", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1, err
    for word in named:
        assert word in err

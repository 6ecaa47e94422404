"""Bits per character: against a model whose bits are known, a plain loop, transformers, and other tokenizers."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

import engine
from engine import ModelConfig, hf, tokenize
from engine.score import token_nll
from experiments.cli import main
from experiments.code import bpc, corpus, scorers
from experiments.code.corpus import Text
from experiments.code.scorers import Scorer
from experiments.errors import InputError
from tests.engine.conftest import drawn_params

SHAPE = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 24}
FILES = {
    "a.py": "def double(x):\n    return 2 * x\n" * 9,
    "b.py": "# größer als 3 — 変数\nclass A:\n    pass\n" * 4,
    "lib/c.js": "function f(x) {\r\n  return x + '<|endoftext|>';\r\n}\n",
    "one.c": "int x;\n",
}


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    root = tmp_path_factory.mktemp("code")
    for path, text in FILES.items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_bytes(text.encode())
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Random models of two tokenizers, in Hugging Face's format."""
    root = tmp_path_factory.mktemp("models")
    for name in ("bytes", "bpe-300"):
        tokenizer = tokenize.train(name, FILES.values())
        config = ModelConfig(vocab_size=tokenizer.vocab_size, **SHAPE)
        hf.save(root / name, config, drawn_params(config), tokenizer=tokenizer, seq_len=64)
    return root


def uniform_over_bytes() -> Scorer:
    """Every hidden state is the same; the head gives 256 ids one logit, and the separator none of the probability."""
    config = ModelConfig(vocab_size=257, **SHAPE)
    params = jax_zeros(config)
    params["embed"][:, 0] = 1.0
    params["norm"][:] = 1.0
    params["head"][0, 256] = -100.0
    tokenizer = tokenize.Bytes()
    return Scorer(
        "engine", (256,), lambda texts: [i.astype(np.int32) for i in tokenizer.encode_batch(texts)],
        lambda tokens: token_nll(config, params, tokens), None,
    )  # fmt: skip


def jax_zeros(config):
    return {
        name: {k: np.zeros_like(v) for k, v in leaf.items()} if isinstance(leaf, dict) else np.zeros_like(leaf)
        for name, leaf in drawn_params(config).items()
    }


@pytest.mark.parametrize("window, stride", [(64, 64), (50, 7)])
def test_uniform_bytes_take_eight_bits(window, stride):
    texts = [Text("a", "python", "x = 1\n" * 50), Text("b", "c", "int y;")]
    found = bpc.rates(bpc.measure(uniform_over_bytes(), texts, window=window, stride=stride))
    assert [one.bpc for one in found.values()] == pytest.approx([8.0] * 3, abs=1e-5)
    wide = bpc.measure(uniform_over_bytes(), [Text("a", "text", "é" * 40)], window=window, stride=stride)
    assert bpc.rate(wide).bpc == pytest.approx(16.0, abs=1e-5)  # two bytes a character
    assert math.isnan(bpc.rate(wide).se)


def counting(n_first: int = 1) -> tuple[Scorer, list[np.ndarray]]:
    """Each token is worth its own id in nats; the rows that were asked for."""
    asked: list[np.ndarray] = []

    def nll(tokens):
        asked.append(tokens)
        return tokens[:, 1:].astype(float)

    encode = lambda texts: [np.frombuffer(t.encode(), np.uint8).astype(np.int32) for t in texts]  # noqa: E731
    return Scorer("test", (1000,) * n_first, encode, nll, None), asked


@pytest.mark.parametrize("n_first", [1, 2])
@pytest.mark.parametrize("window, stride", [(10, 4), (7, 7), (64, 1), (5, 2)])
def test_each_token_is_scored_once_with_context(window, stride, n_first):
    rng = np.random.default_rng(0)
    texts = [Text(str(n), "c", "".join(map(chr, rng.integers(32, 127, n)))) for n in (1, 5, 10, 11, 12, 37, 100)]
    scorer, asked = counting(n_first)
    table = bpc.measure(scorer, texts, window=window, stride=stride)
    wanted = [sum(text.text.encode()) / math.log(2) for text in texts]
    np.testing.assert_allclose(table["bits"], wanted)
    assert max(rows.shape[1] for rows in asked) <= max(window, 64) + 1
    assert list(table["chars"]) == [1, 5, 10, 11, 12, 37, 100]


def test_the_predecessors_convention_drops_the_tail_and_the_first_token():
    """As its code does it: windows of block = window + 1 tokens, masked but for the last end - prev_end."""
    texts = [Text("a", "c", "abcdefghijklmnop"), Text("b", "c", "qrstuvwxyz0123456789!")]
    scorer, _ = counting()
    table = bpc.measure(scorer, texts, window=10, stride=4, convention="predecessor")
    stream = [t for text in texts for t in text.text.encode()]
    total, before = 0, 0
    for item in range((len(stream) - 11) // 4 + 1):
        block = stream[4 * item : 4 * item + 11]
        end = 4 * item + 11
        counted = [False] * (len(block) - (end - before)) + [True] * (end - before)
        total += sum(t for t, yes in zip(block[1:], counted[1:]) if yes)
        before = end
    assert table["bits"].sum() * math.log(2) == pytest.approx(total)
    assert before < len(stream) and table["chars"].sum() == len(stream)
    with pytest.raises(InputError, match="fewer than a window of 99"):
        bpc.measure(scorer, texts, window=99, stride=4, convention="predecessor")


def test_the_standard_error_is_that_of_resampled_files():
    rng = np.random.default_rng(1)
    chars = rng.integers(100, 3000, 60)
    table = pd.DataFrame({"chars": chars, "bits": chars * rng.normal(2, 0.4, 60), "tokens": chars})
    picks = rng.integers(0, 60, (4000, 60))
    again = table["bits"].to_numpy()[picks].sum(1) / chars[picks].sum(1)
    assert bpc.rate(table).se == pytest.approx(again.std(), rel=0.05)


def test_as_a_plain_loop_over_the_models_logits(code, folders):
    model = engine.load(folders / "bpe-300")
    text = FILES["a.py"]
    ids = [model.tokenizer.separator, *model.tokenizer.encode(text)]
    nats, window, stride = 0.0, 32, 12
    for t in range(1, len(ids)):
        end = next(e for e in [*range(window, len(ids) - 1, stride), len(ids) - 1] if e >= t)
        logits = np.asarray(engine.logits(model.model, model.params, np.int32([ids[max(0, end - window) : end]])))[0]
        row = logits[t - 1 - max(0, end - window)].astype(float)
        nats += np.log(np.exp(row - row.max()).sum()) + row.max() - row[ids[t]]
    table = bpc.measure(scorers.load(folders / "bpe-300"), [Text("a", "python", text)], window=window, stride=stride)
    assert table["bits"][0] == pytest.approx(nats / math.log(2), rel=1e-5)


def test_characters_are_the_same_whatever_the_tokens(code, folders, capsys):
    counts = []
    for name in ("bytes", "bpe-300"):
        assert main(["bpc", str(folders / name), str(code), "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["window"] == 64 and said["computed_by"] == "engine"
        counts.append({k: v["chars"] for k, v in [*said["languages"].items(), ("all", said["all"])]})
    assert counts[0] == counts[1]
    assert counts[0]["all"] == sum(map(len, FILES.values())) and counts[0]["javascript"] == len(FILES["lib/c.js"])


@pytest.mark.parametrize("name", ["bytes", "bpe-300"])
@pytest.mark.parametrize("convention", bpc.CONVENTIONS)
def test_transformers_agree(code, folders, name, convention):
    pytest.importorskip("transformers")
    texts = corpus.read(code)
    texts = texts if convention == "files" else [t for t in texts if t.language == "python"]
    ours, theirs = (
        bpc.measure(scorers.load(folders / name, backend=b), texts, window=48, stride=16, convention=convention)
        for b in ("engine", "transformers")
    )
    assert list(ours["tokens"]) == list(theirs["tokens"])
    np.testing.assert_allclose(ours["bits"] / ours["chars"], theirs["bits"] / theirs["chars"], atol=1e-3)


def test_a_folder_that_the_engine_does_not_know_goes_through_transformers(code, folders, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=257, n_positions=40, n_embd=16, n_layer=1, n_head=2, bos_token_id=256)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "gpt2" / file).write_bytes((folders / "bytes" / file).read_bytes())
    assert main(["bpc", str(tmp_path / "gpt2"), str(code), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["computed_by"] == "transformers" and said["window"] == 40
    assert said["all"]["bpc"] == pytest.approx(8.2, abs=0.5)


@pytest.mark.parametrize(
    "words, line",
    [
        (["nowhere", "CODE"], "holds no model"),
        (["MODEL", "nowhere"], "no such folder or file"),
        (["MODEL", "CODE", "--languages", "pyhton"], "did you mean python?"),
        (["MODEL", "CODE", "--stride", "100"], "--stride is 100, above the window of 64"),
        (["MODEL", "CODE", "--window", "0"], "--window is '0'"),
        (["MODEL", "CODE", "--convention", "old"], "--convention is 'old'"),
        (["MODEL", "EMPTY"], "has no UTF-8 text"),
        (["MODEL", "CODE", "--run", "abc"], "no run 'abc'"),
    ],
)
def test_mistakes_are_one_line(words, line, code, folders, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    places = {"CODE": code, "MODEL": folders / "bytes", "EMPTY": tmp_path / "empty"}
    assert main(["bpc", *(str(places.get(word, word)) for word in words)]) == 2
    assert line in capsys.readouterr().err

"""Batches as a pure function of (seed, k), and the cache of token arrays."""

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import DataConfig, InputError, data
from engine.corpora import sources
from tests.engine.test_corpora import REPOSITORY, run_python, write_texts

small = settings(max_examples=60, deadline=None)


def firsts(n, *, batch_size, seed, batches, seq_len=4):
    """Which windows batches 0.. hold, in order: of tokens that count up, the first token tells the window."""
    tokens = np.arange(n * seq_len + 1, dtype=np.uint32)
    assert data.n_windows(tokens, seq_len) == n
    out = [data.batch(tokens, seq_len=seq_len, batch_size=batch_size, seed=seed, k=k)[:, 0] for k in range(batches)]
    return np.concatenate(out) // seq_len


@given(n=st.integers(1, 300), batch_size=st.integers(1, 40), seed=st.integers(0, 2**40))
@small
def test_every_epoch_visits_each_window_once(n, batch_size, seed):
    epochs = 3
    windows = firsts(n, batch_size=batch_size, seed=seed, batches=-(-epochs * n // batch_size))
    for epoch in windows[: epochs * n].reshape(epochs, n):
        assert sorted(epoch.tolist()) == list(range(n))


@given(n=st.integers(1, 200), sizes=st.tuples(st.integers(1, 50), st.integers(1, 50)), seed=st.integers(0, 99))
@small
def test_the_order_does_not_depend_on_the_batch_size(n, sizes, seed):
    a, b = (firsts(n, batch_size=size, seed=seed, batches=-(-2 * n // size))[: 2 * n] for size in sizes)
    np.testing.assert_array_equal(a, b)


def test_orders_differ_between_seeds_and_epochs():
    n = 500
    orders = [firsts(n, batch_size=n, seed=seed, batches=2).reshape(2, n) for seed in range(20)]
    flat = np.concatenate(orders)
    assert len({order.tobytes() for order in flat}) == len(flat)
    # Unrelated orders agree in about one place of n, and rank-correlate as 1/sqrt(n) = 0.045.
    agreements = [(flat[i] == flat[j]).sum() for i in range(40) for j in range(i)]
    assert 0.8 < np.mean(agreements) < 1.2
    correlations = np.corrcoef(np.concatenate([flat, np.arange(n)[None]]))
    assert np.abs(correlations - np.eye(41)).max() < 0.2


@pytest.mark.parametrize("n", [2, 3, 7, 50])
def test_every_window_is_equally_likely_everywhere(n):
    """Chi-square of window against position over many epochs."""
    epochs = 4000
    orders = firsts(n, batch_size=n * epochs, seed=1, batches=1, seq_len=2).reshape(epochs, n)
    counts = np.stack([np.bincount(orders[:, i], minlength=n) for i in range(n)])
    expected = epochs / n
    chi2 = ((counts - expected) ** 2 / expected).sum()
    freedom = (n - 1) ** 2
    assert abs(chi2 - freedom) < 5 * np.sqrt(2 * freedom)


@given(st.integers(1, 10**12), st.integers(0, 2**64 - 1), st.data())
@small
def test_permutation_as_written_with_plain_integers(n, key, draw):
    """`permute` against the definition in Python's integers, also far beyond what can be enumerated."""

    def mix(x):
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
        return x ^ (x >> 31)

    a = 1
    while a * a < n:
        a += max(1, int((n**0.5) - a))
    b = -(-n // a)

    def walk(x):
        while True:
            left, right = x % a, x // a
            for i in range(6):
                left = ((left + mix(right ^ ((key + 2 * i) % 2**64))) % 2**64) % a
                right = ((right + mix(left ^ ((key + 2 * i + 1) % 2**64))) % 2**64) % b
            x = right * a + left
            if x < n:
                return x

    index = draw.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=5))
    got = data.permute(np.array(index, np.uint64), n, np.array([key], np.uint64))
    assert got.tolist() == [walk(x) for x in index]


def test_golden_order():
    """The order of a seed is part of every result: a change here breaks exact resume."""
    tokens = np.arange(10_001, dtype=np.uint16)
    got = data.batch(tokens, seq_len=10, batch_size=6, seed=7, k=3)
    assert got[:, 0].tolist() == [1250, 1110, 5000, 1180, 6100, 5270]
    later = data.batch(tokens, seq_len=10, batch_size=6, seed=7, k=10**9)
    assert later[:, 0].tolist() == [1500, 2670, 2100, 5600, 7650, 1470]


def test_batch_holds_windows():
    tokens = np.random.default_rng(0).integers(0, 257, 1000).astype(np.uint16)
    got = data.batch(tokens, seq_len=16, batch_size=20, seed=3, k=2)
    assert got.shape == (20, 17) and got.dtype == np.int32
    windows = {tuple(tokens[i * 16 : i * 16 + 17].tolist()) for i in range(data.n_windows(tokens, 16))}
    assert {tuple(row) for row in got.tolist()} <= windows
    np.testing.assert_array_equal(got, data.batch(tokens, seq_len=16, batch_size=20, seed=3, k=2))


@pytest.mark.parametrize(("n_tokens", "windows"), [(0, 0), (1, 0), (16, 0), (17, 1), (32, 1), (33, 2)])
def test_n_windows(n_tokens, windows):
    tokens = np.zeros(n_tokens, np.uint16)
    assert data.n_windows(tokens, 16) == windows
    if windows == 0:
        with pytest.raises(InputError, match=f"{n_tokens} tokens are fewer than one window"):
            data.batch(tokens, seq_len=16, batch_size=1, seed=0, k=0)


# Corpora and the cache.


@pytest.fixture
def cache(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets", reason="corpora of files need tensorflow-datasets")
    monkeypatch.setenv("STEPSEER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def texts(tmp_path):
    return write_texts(tmp_path / "texts")


def folder_config(tmp_path, tokenizer="bytes"):
    return DataConfig(corpus=str(tmp_path / "texts"), tokenizer=tokenizer, seq_len=32)


@pytest.mark.parametrize("name", ["bytes", "bpe-400"])
def test_tokens_are_the_files(cache, texts, tmp_path, name):
    """Split the arrays at the separators, decode: the files, whole, each in its own split."""
    corpus = data.load(folder_config(tmp_path, name))
    documents = sources.find(str(tmp_path / "texts"))
    for split in ("train", "heldout"):
        tokens = getattr(corpus, split)
        assert tokens.dtype == np.uint16 and tokens.ndim == 1 and not tokens.flags.writeable
        assert tokens.max() < corpus.vocab_size
        *parts, rest = np.split(tokens, np.flatnonzero(tokens == corpus.tokenizer.separator) + 1)
        assert len(rest) == 0
        expected = [texts[d.path] for d in getattr(documents, split)]
        assert [corpus.tokenizer.decode(part) for part in parts] == expected
    chars = sum(len((documents.root / d.path).read_bytes().decode()) for d in documents.heldout)
    assert corpus.heldout_chars_per_token == chars / len(corpus.heldout)
    if name == "bytes":
        size = sum((documents.root / d.path).stat().st_size for d in documents.heldout)
        assert len(corpus.heldout) == size + len(documents.heldout)
        assert corpus.vocab_size == 257
    else:
        assert corpus.vocab_size == 400


def test_bpe_is_trained_on_the_train_split_alone(cache, texts, tmp_path):
    corpus = data.load(folder_config(tmp_path, "bpe-400"))
    documents = sources.find(str(tmp_path / "texts"))
    again = data.tokenize.train("bpe-400", (texts[d.path] for d in documents.train))
    assert corpus.tokenizer.digest == again.digest


def test_second_load_builds_nothing_and_needs_no_tfds(cache, texts, tmp_path, monkeypatch):
    stages = Counter()
    first = data.load(folder_config(tmp_path), lambda stage, done, total: stages.update([stage]))
    assert set(stages) == {"reading files", "building dataset", "encoding"}
    assert stages["building dataset"] == stages["encoding"] == len(texts)
    stages.clear()
    monkeypatch.setitem(sys.modules, "engine.corpora.builder", None)
    second = data.load(folder_config(tmp_path), lambda stage, done, total: stages.update([stage]))
    assert set(stages) == {"reading files"}
    assert first.digest == second.digest
    np.testing.assert_array_equal(first.train, second.train)


def test_progress_counts_up_to_its_total(cache, texts, tmp_path):
    calls = []
    data.load(folder_config(tmp_path, "bpe-300"), lambda *call: calls.append(call))
    for stage in ("reading files", "building dataset", "training tokenizer", "encoding"):
        done = [d for s, d, _ in calls if s == stage]
        (total,) = {t for s, _, t in calls if s == stage}
        assert done == list(range(1, total + 1))


def test_changed_file_is_a_new_corpus(cache, texts, tmp_path):
    before = data.load(folder_config(tmp_path))
    path = tmp_path / "texts" / "a" / "file_003.py"
    path.write_text("changed = True\n")
    after = data.load(folder_config(tmp_path))
    assert before.digest != after.digest
    assert b"changed = True\n" in bytes((np.concatenate([after.train, after.heldout]) % 256).astype(np.uint8))


def _cached_files(cache):
    return sorted(f.relative_to(cache).as_posix() for f in cache.rglob("*") if f.is_file() and f.suffix != ".lock")


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damaged_cache_is_built_anew(cache, texts, tmp_path, damage):
    """Every file of the cache in turn; the dataset's files are read again only when the tokens must be."""
    config = folder_config(tmp_path, "bpe-300")
    good = data.load(config)
    train, files = np.array(good.train), _cached_files(cache)
    assert {f.split("/")[0] for f in files} == {"corpora", "tokens"}
    assert {Path(f).name for f in files} >= {
        "train-0.npy",
        "heldout-0.npy",
        "meta.json",
        "tokenizer.json",
        "digests.json",
    }
    for name in files:
        if name.startswith("corpora"):
            shutil.rmtree(cache / "tokens")
        file = cache / name
        content = bytearray(file.read_bytes())
        if damage == "remove":
            file.unlink()
        else:
            content[len(content) // 2] ^= 1
            file.write_bytes(content if damage == "flip" else content[: len(content) // 2])
        with pytest.warns(UserWarning, match="is damaged"):
            again = data.load(config)
        assert again.digest == good.digest, name
        np.testing.assert_array_equal(again.train, train)
    assert _cached_files(cache) == files


LOAD = """
import os, signal, sys
from engine import DataConfig, data
def progress(stage, done, total):
    if stage == sys.argv[2] and done > total // 2:
        os.kill(os.getpid(), signal.SIGKILL)
print(data.load(DataConfig(corpus=sys.argv[1], tokenizer="bpe-300", seq_len=32), progress).digest)
"""


def test_processes_that_build_at_once_all_end_right(cache, texts, tmp_path):
    command = [sys.executable, "-c", LOAD, str(tmp_path / "texts"), "never"]
    processes = [subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    digests = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert digests == {data.load(folder_config(tmp_path, "bpe-300")).digest}


@pytest.mark.parametrize("stage", ["building dataset", "encoding"])
def test_killed_while_building(cache, texts, tmp_path, stage):
    killed = run_python(LOAD, tmp_path / "texts", stage)
    assert killed.returncode == -signal.SIGKILL
    corpus = data.load(folder_config(tmp_path, "bpe-300"))
    assert not list(cache.rglob("*.partial"))
    shutil.rmtree(cache)
    assert data.load(folder_config(tmp_path, "bpe-300")).digest == corpus.digest


def test_too_little_text(cache, tmp_path):
    (tmp_path / "texts").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "texts" / f"{name}.txt").write_text(f"just {name}")
    with pytest.raises(InputError, match=r"has \d+ train tokens, fewer than one window of data.seq_len \+ 1 = 33"):
        data.load(folder_config(tmp_path))


def test_cache_that_cannot_be_written(tmp_path, texts, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STEPSEER_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot write the cache .*set STEPSEER_CACHE"):
        data.load(folder_config(tmp_path))


def test_without_the_packages(cache, texts, tmp_path):
    """Synthetic tokens need numpy alone; a corpus without TFDS, or BPE without tokenizers, says what is missing."""
    code = """
import sys
for name in ("tensorflow_datasets", "array_record", "grain", "tokenizers"):
    sys.modules[name] = None
from engine import DataConfig, InputError, data
assert data.batch(data.load(DataConfig(corpus="synthetic")).train, seq_len=8, batch_size=2, seed=0, k=0).shape == (2, 9)
try:
    data.load(DataConfig(corpus=sys.argv[1]))
except InputError as error:
    print(error)
try:
    data.tokenize.train("bpe-300", ["text"])
except InputError as error:
    print(error)
"""
    done = run_python(code, tmp_path / "texts")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert "needs the packages tensorflow-datasets and array_record" in first and "synthetic" in first
    assert "needs the package tokenizers" in second


@pytest.mark.parametrize(("tokenizer", "vocab_size"), [("bytes", 257), ("bpe-1000", 1000)])
def test_synthetic(tokenizer, vocab_size):
    corpus = data.load(DataConfig(corpus="synthetic", tokenizer=tokenizer))
    assert corpus.vocab_size == vocab_size == corpus.train.max() + 1
    assert len(corpus.train) >= 4_000_000 and corpus.heldout_chars_per_token == 1.0
    assert corpus.digest != data.load(DataConfig(corpus="synthetic", tokenizer="bpe-999")).digest
    assert not corpus.train.flags.writeable


@pytest.mark.parametrize(("name", "train_tokens"), [("bytes", 5e6), ("bpe-1024", 2e6)])
def test_stdlib(cache, tmp_path_factory, monkeypatch, name, train_tokens):
    monkeypatch.setenv("STEPSEER_CACHE", str(tmp_path_factory.getbasetemp() / "stdlib-cache"))
    corpus = data.load(DataConfig(tokenizer=name))
    assert len(corpus.train) > train_tokens
    assert corpus.vocab_size == {"bytes": 257, "bpe-1024": 1024}[name]
    assert {"bytes": 0.99, "bpe-1024": 2.0}[name] < corpus.heldout_chars_per_token < {"bytes": 1, "bpe-1024": 4}[name]
    assert "def " in corpus.tokenizer.decode(corpus.heldout[:20_000])
    assert Path(os.environ["STEPSEER_CACHE"]) in Path(corpus.train.filename).parents

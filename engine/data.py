"""Tokens to train on: a corpus as flat token arrays, and batch k as a pure function of (seed, k).

    files -> TFDS dataset (array_record) -> token arrays (.npy, memory-mapped) -> windows -> batches

Both middle stages are cached under digests of what they were made of, so a changed file, tokenizer or format is a new
corpus, and are verified when opened (`engine.cache`).
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine import cache, tokenize
from engine.config import DataConfig
from engine.corpora import sources, synthetic
from engine.corpora.sources import OnProgress
from engine.corpora.synthetic import synthetic_entropy
from engine.errors import InputError
from engine.tokenize import Tokenizer

__all__ = ["Corpus", "batch", "load", "n_windows", "synthetic_entropy"]

_FORMAT = "1"  # of the cached token arrays; part of their key
_DOCS_PER_BATCH = 64  # documents tokenized at a time


@dataclass(frozen=True, eq=False)
class Corpus:
    """Documents as tokens, a separator after each."""

    name: str
    vocab_size: int
    train: np.ndarray  # [n] uint16 (uint32 for vocabularies over 65536), read-only, a memory map
    heldout: np.ndarray  # [m]
    heldout_chars_per_token: float  # characters of text / tokens, separators among the tokens: see `load`
    digest: str  # of both arrays and the tokenizer
    tokenizer: Tokenizer | None  # None: synthetic tokens, which are no text


def load(config: DataConfig, on_progress: OnProgress | None = None) -> Corpus:
    """The corpus and tokenizer that `config` names; built and cached on first use.

    on_progress(stage, done, total) is called while building. Bits per character of the held-out text are
    nats per token / ln 2 / heldout_chars_per_token: separators are predicted like any token, so their cost is
    counted, and as they are no text their (zero) characters are not. A synthetic token counts as one character.

    Raises InputError: no such corpus, too little text for one window of seq_len + 1 tokens, a package missing.
    """
    if config.corpus == "synthetic":
        corpus = _synthetic(257 if config.tokenizer == "bytes" else int(config.tokenizer.removeprefix("bpe-")))
    else:
        corpus = _from_files(config, on_progress)
    for split, tokens in (("train", corpus.train), ("held-out", corpus.heldout)):
        if n_windows(tokens, config.seq_len) < 1:
            raise InputError(
                f"data.corpus {config.corpus!r} has {len(tokens)} {split} tokens, fewer than one window of "
                f"data.seq_len + 1 = {config.seq_len + 1}; add text or lower data.seq_len"
            )
    return corpus


def n_windows(tokens: np.ndarray, seq_len: int) -> int:
    """Windows of seq_len + 1 tokens (inputs, and targets one to the right), one every seq_len tokens."""
    return max(0, (len(tokens) - 1) // seq_len)


def batch(tokens: np.ndarray, *, seq_len: int, batch_size: int, seed: int, k: int) -> np.ndarray:
    """[batch_size, seq_len + 1] int32: batch k, which is sequences k * batch_size and on of `sequences`."""
    return sequences(tokens, seq_len=seq_len, seed=seed, first=k * batch_size, count=batch_size)


def sequences(tokens: np.ndarray, *, seq_len: int, seed: int, first: int, count: int) -> np.ndarray:
    """[count, seq_len + 1] int32: part of an endless stream. A pure function of its arguments, in time O(count).

    Every epoch of the stream visits each window exactly once, in an order of its own; how the stream is cut doesn't
    change it.
    """
    n = n_windows(tokens, seq_len)
    if n < 1:
        raise InputError(f"{len(tokens)} tokens are fewer than one window of seq_len + 1 = {seq_len + 1}")
    sequence = np.arange(first, first + count, dtype=np.uint64)
    epoch, position = np.divmod(sequence, np.uint64(n))
    windows = permute(position, n, _mix(_mix(np.array([seed % 2**64], np.uint64)) ^ epoch))
    offsets = windows[:, None] * np.uint64(seq_len) + np.arange(seq_len + 1, dtype=np.uint64)
    return np.asarray(tokens)[offsets.astype(np.int64)].astype(np.int32)


def permute(index: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
    """A pseudo-random permutation of 0..n-1, applied to `index` [m] uint64 under `key` [m] or [1] uint64.

    A Feistel network over pairs (left, right) with left < a and right < b, a * b >= n, adding modulo a and b (Black and
    Rogaway 2002, "Ciphers with arbitrary finite domains": generalized Feistel with cycle walking). Every round is
    invertible, so it permutes the a * b pairs; a result of n or more is permuted again until it is below n. As
    a * b - n < a, about sqrt(n), that is rare.
    """
    a = np.uint64(max(1, int(np.ceil(np.sqrt(n)))))
    b = np.uint64(-(-n // int(a)))

    def rounds(index: np.ndarray, key: np.ndarray) -> np.ndarray:
        left, right = index % a, index // a
        for i in range(6):  # with 4, orders of fewer than 10 windows are measurably uneven
            left = (left + _mix(right ^ (key + np.uint64(2 * i)))) % a
            right = (right + _mix(left ^ (key + np.uint64(2 * i + 1)))) % b
        return right * a + left

    key = np.broadcast_to(key, index.shape)
    out = rounds(index, key)
    while (outside := out >= n).any():
        out[outside] = rounds(out[outside], key[outside])
    return out


def _mix(x: np.ndarray) -> np.ndarray:
    """One step of splitmix64 (Steele, Lea, Flood 2014): uint64 arrays to uint64, well mixed; wraps around."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@functools.lru_cache(maxsize=2)
def _synthetic(vocab_size: int) -> Corpus:
    train, heldout = synthetic.tokens(vocab_size)
    digest = hashlib.blake2b(train.tobytes() + heldout.tobytes(), digest_size=16).hexdigest()
    return Corpus("synthetic", vocab_size, train, heldout, 1.0, digest, None)


def _from_files(config: DataConfig, on_progress: OnProgress | None) -> Corpus:
    documents = sources.find(config.corpus, on_progress)
    key = f"{_slug(documents.name)}-{documents.digest[:16]}"

    def build(folder: Path) -> None:
        examples = _dataset(documents, cache.root() / "corpora" / key, on_progress)
        _tokenize(examples, config.tokenizer, folder, on_progress)

    folder = cache.folder(cache.root() / "tokens" / f"{key}-{config.tokenizer}-v{_FORMAT}", build)
    meta = json.loads((folder / "meta.json").read_text())
    return Corpus(
        name=config.corpus,
        vocab_size=meta["vocab_size"],
        train=np.load(folder / "train.npy", mmap_mode="r"),
        heldout=np.load(folder / "heldout.npy", mmap_mode="r"),
        heldout_chars_per_token=meta["heldout_chars"] / meta["heldout_tokens"],
        digest=meta["digest"],
        tokenizer=tokenize.load(folder / "tokenizer.json"),
    )


def _dataset(documents: sources.Documents, path: Path, on_progress: OnProgress | None) -> dict[str, Any]:
    try:
        from engine.corpora import builder
    except ImportError as error:
        raise InputError(
            f"data.corpus {documents.name!r} needs the packages tensorflow-datasets and array_record ({error}); "
            "install them, or set data.corpus=synthetic"
        ) from None
    return builder.read(documents, cache.folder(path, lambda folder: builder.build(documents, folder, on_progress)))


def _tokenize(examples: dict[str, Any], name: str, folder: Path, on_progress: OnProgress | None) -> None:
    """Writes train.npy, heldout.npy, tokenizer.json and meta.json of a dataset into `folder`."""
    done, total, stage = 0, 0, ""

    def texts(split: str) -> Iterator[str]:
        nonlocal done
        for i in range(len(examples[split])):
            done += 1
            if on_progress is not None:
                on_progress(stage, done, total)
            yield examples[split][i]["text"].decode("utf-8")

    stage, total = "training tokenizer", len(examples["train"])
    tokenizer = tokenize.train(name, texts("train"))
    stage, done, total = "encoding", 0, len(examples["train"]) + len(examples["heldout"])
    digest = hashlib.blake2b(tokenizer.digest.encode(), digest_size=16)
    meta: dict[str, Any] = {"tokenizer": name, "vocab_size": tokenizer.vocab_size}
    for split in ("train", "heldout"):
        tokens, chars = _encode(tokenizer, texts(split))
        np.save(folder / f"{split}.npy", tokens)
        digest.update(tokens.tobytes())
        meta |= {f"{split}_tokens": len(tokens), f"{split}_chars": chars, f"{split}_documents": len(examples[split])}
    tokenizer.save(folder / "tokenizer.json")
    (folder / "meta.json").write_text(json.dumps(meta | {"digest": digest.hexdigest()}, indent=1))


def _encode(tokenizer: Tokenizer, texts: Iterator[str]) -> tuple[np.ndarray, int]:
    """All texts as one array, the separator after each; and their characters."""
    separator = np.array([tokenizer.separator], tokenizer.dtype)
    parts: list[np.ndarray] = []
    chars, pending = 0, []
    for text in texts:
        chars += len(text)
        pending.append(text)
        if len(pending) == _DOCS_PER_BATCH:
            parts += [part for ids in tokenizer.encode_batch(pending) for part in (ids, separator)]
            pending = []
    parts += [part for ids in tokenizer.encode_batch(pending) for part in (ids, separator)]
    return np.concatenate(parts), chars


def _slug(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in name)[:40]

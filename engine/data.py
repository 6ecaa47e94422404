"""Tokens to train on: a corpus as flat token arrays, and batch k as a pure function of (seed, k).

    texts -> TFDS dataset (array_record) -> token arrays (.npy, memory-mapped) -> windows -> batches

Both middle stages are cached under digests of what they were made of, so a changed file, tokenizer or format is a new
corpus, and are verified when opened (`engine.cache`).
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine import cache, mixture, tokenize
from engine.config import DataConfig
from engine.corpora import sources, synthetic
from engine.corpora.sources import OnProgress
from engine.corpora.synthetic import synthetic_entropy
from engine.errors import InputError
from engine.mixture import Mixture
from engine.shuffle import mix, permute
from engine.tokenize import Tokenizer

__all__ = ["Corpus", "batch", "check_there", "load", "n_windows", "synthetic_entropy"]

_FORMAT = "2"  # of the cached token arrays; part of their key
_DOCS_PER_BATCH = 64  # documents tokenized at a time


@dataclass(frozen=True, eq=False)
class Corpus:
    """Documents as tokens, a separator after each."""

    name: str
    vocab_size: int
    train: np.ndarray | Mixture  # [n] uint16 (uint32 for vocabularies over 65536), read-only, a memory map; or several
    heldout: np.ndarray  # [m]; of a mixture in its proportions
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
        corpus = _from_texts(config, on_progress)
    parts = corpus.train.parts if isinstance(corpus.train, Mixture) else (corpus.train,)
    names = [name for name, _ in mixture.parse(config.corpus)]
    splits = [(name, "train", tokens) for name, tokens in zip(names, parts)]
    for name, split, tokens in (*splits, (config.corpus, "held-out", corpus.heldout)):
        if n_windows(tokens, config.seq_len) < 1:
            raise InputError(
                f"data.corpus {name!r} has {len(tokens)} {split} tokens, fewer than one window of "
                f"data.seq_len + 1 = {config.seq_len + 1}; add text or lower data.seq_len"
            )
    return corpus


def check_there(config: DataConfig) -> None:
    """Raises InputError if `config` names a corpus that is not here. Reads nothing, so `load` may yet refuse it."""
    for name, _ in mixture.parse(config.corpus):
        sources.check_there(name)


def n_windows(tokens: np.ndarray, seq_len: int) -> int:
    """Windows of seq_len + 1 tokens (inputs, and targets one to the right), one every seq_len tokens."""
    return max(0, (len(tokens) - 1) // seq_len)


def batch(tokens: np.ndarray | Mixture, *, seq_len: int, batch_size: int, seed: int, k: int) -> np.ndarray:
    """[batch_size, seq_len + 1] int32: batch k, which is sequences k * batch_size and on of `sequences`."""
    return sequences(tokens, seq_len=seq_len, seed=seed, first=k * batch_size, count=batch_size)


def sequences(tokens: np.ndarray | Mixture, *, seq_len: int, seed: int, first: int, count: int) -> np.ndarray:
    """[count, seq_len + 1] int32: part of an endless stream. A pure function of its arguments, in time O(count).

    Every epoch of the stream visits each window exactly once, in an order of its own; how the stream is cut doesn't
    change it. In a mixture that holds of each corpus's part of the stream.
    """
    return sequences_at(tokens, seq_len=seq_len, seed=seed, at=np.arange(first, first + count, dtype=np.uint64))


def sequences_at(tokens: np.ndarray | Mixture, *, seq_len: int, seed: int, at: np.ndarray) -> np.ndarray:
    """[m, seq_len + 1] int32: those of the stream at the places `at`, [m] uint64."""
    if not isinstance(tokens, Mixture):
        return _windows(tokens, seq_len, seed, at)
    part, place = mixture.assign(tokens.slots, seed, at)
    out = np.zeros((len(at), seq_len + 1), np.int32)
    for j, of_part in enumerate(tokens.parts):
        out[part == j] = _windows(of_part, seq_len, seed + j, place[part == j])
    return out


def _windows(tokens: np.ndarray, seq_len: int, seed: int, at: np.ndarray) -> np.ndarray:
    """[m, seq_len + 1]: sequences `at` [m] of the stream of one corpus."""
    n = n_windows(tokens, seq_len)
    if n < 1:
        raise InputError(f"{len(tokens)} tokens are fewer than one window of seq_len + 1 = {seq_len + 1}")
    epoch, position = np.divmod(at, np.uint64(n))
    windows = permute(position, n, mix(mix(np.array([seed % 2**64], np.uint64)) ^ epoch))
    offsets = windows[:, None] * np.uint64(seq_len) + np.arange(seq_len + 1, dtype=np.uint64)
    return np.asarray(tokens)[offsets.astype(np.int64)].astype(np.int32)


@functools.lru_cache(maxsize=2)
def _synthetic(vocab_size: int) -> Corpus:
    train, heldout = synthetic.tokens(vocab_size)
    digest = hashlib.blake2b(train.tobytes() + heldout.tobytes(), digest_size=16).hexdigest()
    return Corpus("synthetic", vocab_size, train, heldout, 1.0, digest, None)


def _from_texts(config: DataConfig, on_progress: OnProgress | None) -> Corpus:
    shares = mixture.parse(config.corpus)
    if any(name == "synthetic" for name, _ in shares):
        raise InputError(f"data.corpus {config.corpus!r}: synthetic tokens are no text; leave them out")
    found = [sources.find(name, on_progress, config.text_field) for name, _ in shares]
    keys = [f"{_slug(documents.name)}-{documents.digest[:16]}" for documents in found]
    key = keys[0] if len(keys) == 1 else f"mix-{sources.content_digest(' '.join(keys).encode())[:16]}"

    def build(folder: Path) -> None:
        examples = [_dataset(d, cache.root() / "corpora" / k, on_progress) for d, k in zip(found, keys)]
        _tokenize(examples, config.tokenizer, folder, on_progress)

    folder = cache.folder(cache.root() / "tokens" / f"{key}-{config.tokenizer}-v{_FORMAT}", build)
    meta = json.loads((folder / "meta.json").read_text())
    train, heldout = (
        tuple(np.load(folder / f"{split}-{j}.npy", mmap_mode="r") for j in range(len(found)))
        for split in ("train", "heldout")
    )
    slots = mixture.slots([share for _, share in shares])
    chars_per_token = [part["heldout_chars"] / part["heldout_tokens"] for part in meta["parts"]]
    return Corpus(
        name=config.corpus,
        vocab_size=meta["vocab_size"],
        train=train[0] if len(train) == 1 else Mixture(train, slots),
        heldout=heldout[0] if len(heldout) == 1 else _in_proportion(heldout, slots),
        heldout_chars_per_token=float(np.average(chars_per_token, weights=slots)),
        digest=meta["digest"],
        tokenizer=tokenize.load(folder / "tokenizer.json"),
    )


def _in_proportion(parts: Sequence[np.ndarray], slots: Sequence[int]) -> np.ndarray:
    """The beginnings of `parts`, one after the other, as much of each as its slots say, and of one all."""
    unit = min(len(part) / n for part, n in zip(parts, slots))
    return np.concatenate([part[: int(unit * n)] for part, n in zip(parts, slots)])


def _dataset(documents: sources.Documents, path: Path, on_progress: OnProgress | None) -> dict[str, Any]:
    try:
        from engine.corpora import builder
    except ImportError as error:
        raise InputError(
            f"data.corpus {documents.name!r} needs the packages tensorflow-datasets and array_record ({error}); "
            "install them, or set data.corpus=synthetic"
        ) from None
    return builder.read(documents, cache.folder(path, lambda folder: builder.build(documents, folder, on_progress)))


def _tokenize(corpora: Sequence[dict[str, Any]], name: str, folder: Path, on_progress: OnProgress | None) -> None:
    """Writes train-J.npy and heldout-J.npy of every dataset, tokenizer.json and meta.json into `folder`."""
    done, total, stage = 0, 0, ""

    def texts(examples: Any) -> Iterator[str]:
        nonlocal done
        for i in range(len(examples)):
            done += 1
            if on_progress is not None:
                on_progress(stage, done, total)
            yield examples[i]["text"].decode("utf-8")

    stage, total = "training tokenizer", sum(len(examples["train"]) for examples in corpora)
    tokenizer = tokenize.train(name, (text for examples in corpora for text in texts(examples["train"])))
    stage, done, total = "encoding", 0, total + sum(len(examples["heldout"]) for examples in corpora)
    digest = hashlib.blake2b(tokenizer.digest.encode(), digest_size=16)
    parts: list[dict[str, int]] = []
    for j, examples in enumerate(corpora):
        parts.append({})
        for split in ("train", "heldout"):
            tokens, chars = _encode(tokenizer, texts(examples[split]))
            np.save(folder / f"{split}-{j}.npy", tokens)
            digest.update(tokens.tobytes())
            counts = {"tokens": len(tokens), "chars": chars, "documents": len(examples[split])}
            parts[-1] |= {f"{split}_{what}": n for what, n in counts.items()}
    tokenizer.save(folder / "tokenizer.json")
    meta = {"tokenizer": name, "vocab_size": tokenizer.vocab_size, "digest": digest.hexdigest(), "parts": parts}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


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

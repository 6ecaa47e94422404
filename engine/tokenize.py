"""Text to token ids and back, without loss: UTF-8 bytes, or byte-level BPE trained on a corpus.

Both keep one id, the separator, that no text encodes to: it marks the end of a document.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import InputError

SEPARATOR = "<|endoftext|>"  # its name in a BPE vocabulary; the same characters in a text are ordinary characters


def separator_of(name: str) -> int:
    """The separator's id in the tokenizer `name` that `train` makes."""
    return Bytes.separator if name == "bytes" else 0  # special tokens get the first ids


class Tokenizer:
    """`vocab_size` ids, of which `separator` ends documents; `digest` names the mapping. Made by `train` or `load`."""

    vocab_size: int
    separator: int

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """The narrowest unsigned type, of at least 16 bits, that holds every id."""
        return np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

    @property
    def digest(self) -> str:
        """BLAKE2b of the tokenizer as JSON: 32 hex digits."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=16).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        """[n] ids; no separator is added. Raises InputError for text that is not Unicode (a lone surrogate)."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text; faster than one at a time."""
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise InputError(f"text holds {text[error.start]!r}, half a surrogate pair; remove it") from None
        return self._encode(texts)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of [n] ids, without separators and ids that name nothing; bytes that are not UTF-8 become U+FFFD."""
        raise NotImplementedError

    def to_json(self) -> str:
        raise NotImplementedError

    def to_library_json(self) -> str:
        """As tokenizer.json of the tokenizers library: the same ids, the separator a special token."""
        return self.to_json()

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        raise NotImplementedError

    def save(self, path: Path) -> None:
        """Writes JSON; for BPE in the format of the tokenizers library (tokenizer.json)."""
        path.write_text(self.to_json(), encoding="utf-8")


class Bytes(Tokenizer):
    """Ids 0..255 are bytes, 256 the separator."""

    vocab_size = 257
    separator = 256

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(self.dtype) for text in texts]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        ids = np.asarray(ids)
        return ids[ids < self.separator].astype(np.uint8).tobytes().decode("utf-8", "replace")

    def to_json(self) -> str:
        return json.dumps({"type": "bytes"})

    def to_library_json(self) -> str:
        lib = _tokenizers()
        vocab = {character: byte for byte, character in enumerate(_byte_names())}
        tokenizer = lib.Tokenizer(lib.models.BPE(vocab, merges=[]))
        tokenizer.pre_tokenizer = lib.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = lib.decoders.ByteLevel()
        tokenizer.add_special_tokens([SEPARATOR])  # takes the next id, 256
        return tokenizer.to_str()


class BPE(Tokenizer):
    """A tokenizer of the tokenizers library. Ours: byte-level BPE as in GPT-2 (the same splitting of text into words).

    split_special: names of special tokens in a text are ordinary text.
    """

    def __init__(self, tokenizer: Any, separator: int, *, split_special: bool = True) -> None:
        tokenizer.encode_special_tokens = split_special  # this is not kept in the JSON
        self._tokenizer = tokenizer
        self.vocab_size = tokenizer.get_vocab_size()
        self.separator = separator

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(e.ids, self.dtype) for e in self._tokenizer.encode_batch_fast(texts)]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._tokenizer.decode(np.asarray(ids).tolist())

    def to_json(self) -> str:
        return self._tokenizer.to_str()


def train(name: str, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer `name`: "bytes", or "bpe-V" trained on `texts` to V ids (fewer if the texts have too few pairs).

    The same texts in the same order give the same tokenizer.
    """
    if name == "bytes":
        return Bytes()
    lib = _tokenizers()
    tokenizer = lib.Tokenizer(lib.models.BPE())
    tokenizer.pre_tokenizer = lib.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = lib.decoders.ByteLevel()
    trainer = lib.trainers.BpeTrainer(
        vocab_size=int(name.removeprefix("bpe-")),
        special_tokens=[SEPARATOR],
        initial_alphabet=lib.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return BPE(tokenizer, tokenizer.token_to_id(SEPARATOR))


def load(path: Path) -> Tokenizer:
    """A saved tokenizer. Raises InputError if the file is none."""
    return from_json(Path(path).read_text(encoding="utf-8"), name=str(path))


def from_json(text: str, *, name: str) -> Tokenizer:
    """The inverse of `Tokenizer.to_json`. name: what an error calls the text."""
    with contextlib.suppress(ValueError, AttributeError):
        if json.loads(text).get("type") == "bytes":
            return Bytes()
    return from_library_json(text, SEPARATOR, name=name)


def from_library_json(text: str, separator: str | int, *, name: str, split_special: bool = True) -> Tokenizer:
    """Any tokenizer.json of the tokenizers library; separator: the token that ends documents, or its id."""
    lib = _tokenizers()
    try:
        tokenizer = lib.Tokenizer.from_str(text)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise InputError(f"{name} is not a tokenizer ({error})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    found = tokenizer.token_to_id(separator) if isinstance(separator, str) else separator
    if found is None:
        raise InputError(f"{name} has no token {separator} to end documents with")
    return BPE(tokenizer, found, split_special=split_special)


def _byte_names() -> list[str]:
    """What GPT-2's byte-level vocabularies call each byte: its character if that prints, else one from U+0100."""
    prints = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in prints else next(others)) for byte in range(256)]


def _tokenizers() -> Any:
    # Its thread pool would deadlock in a forked child, and it warns about that at every fork, unless told.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import tokenizers
    except ImportError:
        raise InputError("BPE needs the package tokenizers; install it, or set data.tokenizer=bytes") from None
    return tokenizers

"""Text to token ids and back, without loss: UTF-8 bytes, or byte-level BPE trained on a corpus.

Both keep one id, the separator, that no text encodes to: it marks the end of a document.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import InputError

SEPARATOR = "<|endoftext|>"  # its name in a BPE vocabulary; the same characters in a text are ordinary characters


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
        """The text of [n] ids, separators left out; bytes that are not UTF-8 become U+FFFD."""
        raise NotImplementedError

    def to_json(self) -> str:
        raise NotImplementedError

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
        return ids[ids != self.separator].astype(np.uint8).tobytes().decode("utf-8", "replace")

    def to_json(self) -> str:
        return json.dumps({"type": "bytes"})


class BPE(Tokenizer):
    """Byte-level BPE as in GPT-2 (the same splitting of text into words), of the tokenizers library."""

    def __init__(self, tokenizer: Any) -> None:
        tokenizer.encode_special_tokens = True  # a separator's name in a text is text; this is not kept in the JSON
        self._tokenizer = tokenizer
        self.vocab_size = tokenizer.get_vocab_size()
        self.separator = tokenizer.token_to_id(SEPARATOR)

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
    return BPE(tokenizer)


def load(path: Path) -> Tokenizer:
    """A saved tokenizer. Raises InputError if the file is none."""
    text = Path(path).read_text(encoding="utf-8")
    try:
        if json.loads(text).get("type") == "bytes":
            return Bytes()
        tokenizer = _tokenizers().Tokenizer.from_str(text)
    except InputError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise InputError(f"{path} is not a tokenizer ({error})") from None
    if tokenizer.token_to_id(SEPARATOR) is None:
        raise InputError(f"{path} has no token {SEPARATOR} to end documents with")
    return BPE(tokenizer)


def _tokenizers() -> Any:
    # Its thread pool would deadlock in a forked child, and it warns about that at every fork, unless told.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import tokenizers
    except ImportError:
        raise InputError("BPE needs the package tokenizers; install it, or set data.tokenizer=bytes") from None
    return tokenizers

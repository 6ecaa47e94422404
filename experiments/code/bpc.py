"""Bits per character: how well a model compresses code, whatever its tokens are.

BPC = nats of all tokens / (ln 2 * characters), characters as Python's `len` counts them. A window slides over a text;
each token is scored once, in the first window that holds it, and sees at least window - stride tokens before it where
there are as many. Two conventions:

    files        each file for itself, behind the model's first token, to its last token
    predecessor  Huang et al. 2024 (arXiv 2404.09937): a language's files in one stream, whose first token and whose
                 tail, shorter than a stride, are not scored, while their characters are counted
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from experiments.code.corpus import Text
from experiments.code.scorers import Scorer
from experiments.errors import InputError

WINDOW, STRIDE = 1900, 512
CONVENTIONS = ("files", "predecessor")
BATCH_TOKENS = 8192
_SHORTEST = 64  # windows are padded to powers of two from here on, so that few programs are compiled


@dataclass(frozen=True)
class Rate:
    """bpc with its standard error (NaN where there is one file); counts behind it."""

    bpc: float
    se: float
    files: int
    chars: int
    tokens: int


def measure(
    scorer: Scorer,
    texts: Sequence[Text],
    *,
    window: int,
    stride: int,
    convention: str = "files",
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """One row a file: path, language, chars, tokens, bits. progress(tokens done, of all)."""
    if not 1 <= stride <= window:
        raise InputError(f"stride is {stride}; it must be from 1 to the window, {window}, or tokens would be left out")
    if not texts:
        raise InputError("there are no texts to score")
    encoded = scorer.encode([text.text for text in texts])
    windows: list[_Window] = []
    known = len(scorer.first) if convention == "files" else 1  # ids of a stream that are given, not scored
    for tokens, owner in _streams(scorer, texts, encoded, convention):
        found = list(_windows(tokens, owner, known, window, stride, tail=convention == "files"))
        if not found:
            language = texts[int(owner[0])].language
            raise InputError(
                f"the {len(tokens)} tokens of {language} are fewer than a window of {window}, and the predecessor's "
                "convention scores whole windows only; lower the window, or use the convention files"
            )
        windows += found
    nats = np.zeros(len(texts))
    done, total = 0, sum(int(one.scored.sum()) for one in windows)
    for batch in _batches(windows, window):
        rows = np.zeros((batch[1], batch[2] + 1), np.int32)
        for row, one in zip(rows, batch[0]):
            row[: len(one.tokens)] = one.tokens
        lost = np.asarray(scorer.nll(rows), np.float64)
        for row, one in zip(lost, batch[0]):
            np.add.at(nats, one.owner[one.scored], row[: len(one.scored)][one.scored])
            done += int(one.scored.sum())
        if progress is not None:
            progress(done, total)
    rows_of = {
        "path": [text.path for text in texts],
        "language": [text.language for text in texts],
        "chars": [len(text.text) for text in texts],
        "tokens": [len(ids) for ids in encoded],
        "bits": nats / math.log(2),
    }
    return pd.DataFrame(rows_of)


def rates(table: pd.DataFrame) -> dict[str, Rate]:
    """By language, and "all": every character counted once."""
    found = {str(name): rate(rows) for name, rows in table.groupby("language", sort=True)}
    return found | {"all": rate(table)}


def rate(rows: pd.DataFrame) -> Rate:
    """Of one heap of files. The standard error is of a ratio of sums over files drawn from it (Cochran 1977, 2.11);
    for files of several languages it is on the careful side, as it takes the languages' shares for drawn too."""
    bits, chars = rows["bits"].to_numpy(float), rows["chars"].to_numpy(float)
    bpc, n = bits.sum() / chars.sum(), len(rows)
    se = math.sqrt(n / (n - 1) * np.sum((bits - bpc * chars) ** 2)) / chars.sum() if n > 1 else math.nan
    return Rate(float(bpc), float(se), n, int(chars.sum()), int(rows["tokens"].sum()))


def mean_of_languages(found: dict[str, Rate]) -> tuple[float, float]:
    """(bpc, standard error) where every language counts the same."""
    own = [one for name, one in found.items() if name != "all"]
    return float(np.mean([one.bpc for one in own])), math.sqrt(sum(one.se**2 for one in own)) / len(own)


@dataclass(frozen=True)
class _Window:
    """tokens: [t + 1] ids. owner: [t] the text of every target; scored: [t] whether it counts in this window."""

    tokens: np.ndarray
    owner: np.ndarray
    scored: np.ndarray


def _streams(
    scorer: Scorer, texts: Sequence[Text], encoded: Sequence[np.ndarray], convention: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(ids, the text that each belongs to)."""
    first = np.asarray(scorer.first, np.int32)
    if convention == "files":
        for i, ids in enumerate(encoded):
            yield np.concatenate([first, ids]), np.full(len(first) + len(ids), i)
        return
    if convention != "predecessor":
        raise InputError(f"convention is {convention!r}; one of: {', '.join(CONVENTIONS)}")
    for language in sorted({text.language for text in texts}):
        own = [i for i, text in enumerate(texts) if text.language == language]
        yield np.concatenate([encoded[i] for i in own]), np.repeat(own, [len(encoded[i]) for i in own])


def _windows(
    tokens: np.ndarray, owner: np.ndarray, known: int, window: int, stride: int, *, tail: bool
) -> Iterator[_Window]:
    last = len(tokens) - 1  # of the targets
    ends = list(range(window, last + 1, stride))
    if tail and last > 0 and (not ends or ends[-1] < last):
        ends.append(last)
    before = known - 1
    for end in ends:
        begin = max(0, end - window)
        targets = np.arange(begin + 1, end + 1)
        yield _Window(tokens[begin : end + 1], owner[targets], targets > before)
        before = end


def _batches(windows: Sequence[_Window], window: int) -> Iterator[tuple[list[_Window], int, int]]:
    """(windows of about the same length, rows, the length that they are padded to)."""
    groups: dict[int, list[_Window]] = {}
    for one in windows:
        length = max(_SHORTEST, 1 << (len(one.scored) - 1).bit_length())
        groups.setdefault(min(length, max(window, len(one.scored))), []).append(one)
    for length, group in sorted(groups.items()):
        n = max(1, BATCH_TOKENS // length)
        n = min(n, 1 << (len(group) - 1).bit_length())
        for at in range(0, len(group), n):
            yield group[at : at + n], n, length

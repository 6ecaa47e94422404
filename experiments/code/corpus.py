"""Code to be scored: the texts of a folder, of a file, of a corpus made by `stepseer corpus build`, or `stdlib`.

A corpus that was built has a `manifest.json`, whose SHA-256 sums are checked when it is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.corpora import sources
from experiments.errors import InputError
from experiments.options import nearest

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Text:
    """path: relative to the corpus, '/' between parts."""

    path: str
    language: str
    text: str


def read(corpus: str | Path, *, languages: Sequence[str] = (), heldout: bool = False) -> list[Text]:
    """The texts of `corpus`, by path. languages: these alone. heldout: only those that a model trained on
    data.corpus=`corpus` has not seen. Raises InputError where there are none, and for a file of a built corpus that is
    not what its manifest says."""
    root = Path(corpus).expanduser()
    if heldout or str(corpus) in sources.NAMED:
        documents = sources.find(str(corpus))
        splits = [documents.heldout, *([] if heldout else [documents.train])]
        texts = [Text(d.path, d.language, data.decode()) for s in splits for d, data in zip(s, documents.read(s))]
    elif root.is_file():
        texts = _plain(root.parent, [root.name])
    elif root.is_dir():
        texts = list(_listed(root)) if (root / MANIFEST).is_file() else _plain(root, sources.walk(root))
    else:
        known = ", ".join(sources.NAMED)
        raise InputError(f"corpus is {str(corpus)!r}: no such folder or file, and not a known corpus ({known})")
    if not texts:
        raise InputError(f"{corpus} has no UTF-8 text or source files (such as .py, .c, .js)")
    there = sorted({text.language for text in texts})
    for language in languages:
        if language not in there:
            raise InputError(
                f"{corpus} has no {language!r}{nearest(language, there) or '; it has: ' + ', '.join(there)}"
            )
    return sorted((t for t in texts if not languages or t.language in languages), key=lambda t: t.path)


def manifest(root: Path) -> dict[str, Any]:
    """What `stepseer corpus build` wrote about a corpus. Raises InputError if it is not that."""
    try:
        said = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        if {"path", "sha256", "language"} <= said["files"][0].keys():
            return said
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        pass
    raise InputError(f"{root / MANIFEST} is not a manifest of stepseer corpus build; build the corpus again")


def _listed(root: Path) -> Iterator[Text]:
    for row in manifest(root)["files"]:
        path = root / row["path"]
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            raise InputError(f"{path} is not the file that {MANIFEST} names (SHA-256); build the corpus again")
        yield Text(row["path"], row["language"], data.decode("utf-8"))


def _plain(root: Path, paths: Any) -> list[Text]:
    """Texts with a known ending; one of equal content counts once."""
    found, seen = [], set()
    for path in paths:
        language = sources.language_of(path)
        data = (root / path).read_bytes() if language else b""
        if language and sources.is_text(data) and data not in seen:
            seen.add(data)
            found.append(Text(path, language, data.decode("utf-8")))
    return found

"""Where a file comes from: its licence, and the date on which it first was there."""

from __future__ import annotations

import datetime
import functools
import json
import re
import subprocess
from pathlib import Path

from experiments.errors import InputError
from experiments.options import nearest

PERMISSIVE = ("0BSD", "Apache-2.0", "BSD", "BSL-1.0", "CC0-1.0", "ISC", "MIT", "PSF-2.0", "Unlicense", "Zlib")
UNKNOWN = "unknown"
# What the text of each licence says, the more special first.
_PHRASES = (
    ("AGPL", r"GNU AFFERO GENERAL PUBLIC"),
    ("LGPL", r"GNU (LESSER|LIBRARY) GENERAL PUBLIC"),
    ("GPL", r"GNU GENERAL PUBLIC"),
    ("MPL-2.0", r"MOZILLA PUBLIC LICENSE"),
    ("Apache-2.0", r"APACHE LICENSE|LICENSED UNDER THE APACHE"),
    ("PSF-2.0", r"PYTHON SOFTWARE FOUNDATION LICENSE|PSF LICENSE AGREEMENT"),
    ("Artistic", r"ARTISTIC LICENSE|SAME TERMS AS PERL"),
    ("BSL-1.0", r"BOOST SOFTWARE LICENSE"),
    ("Unlicense", r"UNLICENSE\.ORG|RELEASED INTO THE PUBLIC DOMAIN"),
    ("CC0-1.0", r"CC0 1\.0"),
    ("BSD", r"REDISTRIBUTION AND USE IN SOURCE AND BINARY FORMS|BSD STYLE LICENSE"),
    ("ISC", r"PERMISSION TO USE, COPY, MODIFY, AND OR DISTRIBUTE"),
    ("Zlib", r"ALTERED SOURCE VERSIONS MUST BE PLAINLY MARKED"),
    ("MIT", r"PERMISSION IS HEREBY GRANTED, FREE OF CHARGE|MIT LICENSE"),
)
_SPDX = re.compile(r"SPDX-License-Identifier:\s*\(?([A-Za-z0-9][\w.+-]+)")
_NAMES = ("LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "LICENSE.txt", "LICENSE.md", "COPYING.txt", "LICENSE.rst")
_HEADER = 3000  # characters of a file in which it says its licence


def licence_of(root: Path, path: str, text: str) -> str:
    """A name (SPDX where it is one) by the file's own header, else by the nearest licence file or package.json above it
    in `root`; "unknown"."""
    header = text[:_HEADER]
    if said := _SPDX.search(header):
        return _named(said[1])
    return _read(header) or _of_folder(root, (root / path).parent)


def check(wanted: str) -> None:
    """Raises InputError for a wish that `permitted` does not know."""
    known = sorted({*PERMISSIVE, *(name for name, _ in _PHRASES), UNKNOWN, "any", "permissive"})
    for name in wanted.split(","):
        if not any(name == one or name.startswith(one + "-") for one in known):
            raise InputError(f"licence is {name!r}{nearest(name, known) or '; known: ' + ', '.join(known)}")


def permitted(licence: str, wanted: str) -> bool:
    """wanted: "any", "permissive", or names with commas; those of one family (GPL, BSD, ...) are not told apart."""
    if wanted == "any":
        return True
    names = PERMISSIVE if wanted == "permissive" else tuple(_named(name) for name in wanted.split(","))
    return licence in names


@functools.lru_cache(maxsize=100_000)
def _of_folder(root: Path, folder: Path) -> str:
    for name in _NAMES:
        file = folder / name
        if file.is_file():
            return _read(file.read_text(encoding="utf-8", errors="replace")[:20_000]) or UNKNOWN
    package = folder / "package.json"
    if package.is_file():
        try:
            said = json.loads(package.read_text(encoding="utf-8")).get("license")
        except (ValueError, AttributeError):
            said = None
        if isinstance(said, str):
            return _named(said)
    return UNKNOWN if folder == root or root not in folder.parents else _of_folder(root, folder.parent)


def _named(spdx: str) -> str:
    found = spdx.strip("()")
    for family in ("AGPL", "LGPL", "GPL", "BSD", "Artistic"):
        if found.startswith(family):
            return family
    return found


def _read(text: str) -> str | None:
    """The licence that a text names or is, whatever its line breaks and comment marks."""
    flat = re.sub(r"[\s#*/;%-]+", " ", text.upper())
    return next((name for name, phrase in _PHRASES if re.search(phrase, flat)), None)


class Dates:
    """When the files below a folder first were there, ISO dates: by git's history, renamings followed, or, where it has
    none of a file, by the file's time of change."""

    def __init__(self, root: Path, *, shallow_ok: bool = True):
        self._root = root
        self._added: dict[str, str] = {}
        top = _git(root, "rev-parse", "--show-toplevel")
        if top is None:
            return
        if not shallow_ok and _git(root, "rev-parse", "--is-shallow-repository") == "true":
            raise InputError(f"{root} is a shallow clone, so its files' dates are not known; git fetch --unshallow")
        log = _git(root, "log", "--reverse", "--format=%x01%as", "--name-status", "-M", "--diff-filter=AR", "-z",
                   "--relative", "--", ".")  # fmt: skip
        self._read(log or "")

    def of(self, path: str) -> tuple[str, str]:
        """(date, "git" or "mtime")."""
        if path in self._added:
            return self._added[path], "git"
        changed = (self._root / path).stat().st_mtime
        return datetime.datetime.fromtimestamp(changed, datetime.UTC).date().isoformat(), "mtime"

    def _read(self, log: str) -> None:
        date, words = "", iter(re.split(r"[\0\n]+", log))
        for word in words:
            if word.startswith("\1"):
                date = word[1:11]
            elif word == "A":
                self._added[next(words)] = date
            elif re.fullmatch(r"R\d+", word):
                old, new = next(words), next(words)
                self._added[new] = self._added.get(old, date)


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, check=False)
    except OSError:
        return None
    return done.stdout.decode("utf-8", "replace").strip("\n") if done.returncode == 0 else None

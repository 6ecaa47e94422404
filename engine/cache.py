"""Folders of derived files that are built once, verified by digest whenever they are opened, and rebuilt if damaged."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from engine.errors import InputError

_DIGESTS = "digests.json"


def root() -> Path:
    """STEPSEER_CACHE, else ~/.cache/stepseer."""
    return Path(os.environ.get("STEPSEER_CACHE") or "~/.cache/stepseer").expanduser()


def folder(path: Path, build: Callable[[Path], None]) -> Path:
    """`path`, holding what `build(empty_folder)` writes: verified if it is there, else built, then moved into place.

    Processes that want the same folder at once wait for the first to build it; one killed meanwhile leaves nothing that
    would be taken for a finished folder. Raises InputError if the cache can't be written.
    """
    if _verified(path):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(13, "no permission to write")
    except OSError as error:
        raise InputError(f"cannot write the cache {path.parent} ({error.strerror}); set STEPSEER_CACHE") from None
    with _locked(path.with_name(path.name + ".lock")):
        if _verified(path):
            return path
        if path.exists():
            warnings.warn(f"{path} is damaged (a file differs from its digest); building it anew", stacklevel=2)
            shutil.rmtree(path)
        partial = path.with_name(path.name + ".partial")  # ours alone: the lock is held
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            build(partial)
            files = sorted(f for f in partial.rglob("*") if f.is_file())
            digests = {f.relative_to(partial).as_posix(): file_digest(f) for f in files}
            (partial / _DIGESTS).write_text(json.dumps(digests, indent=1))
            os.replace(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return path


def file_digest(path: Path) -> str:
    """BLAKE2b of a file's bytes, 32 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _verified(path: Path) -> bool:
    try:
        digests = json.loads((path / _DIGESTS).read_text())
        return bool(digests) and all(file_digest(path / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl  # not on Windows, where array_record isn't either

    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

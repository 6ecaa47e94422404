"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from laws.errors import InputError


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place at the end, and is gone if that is never reached. Makes
    the folder. Raises OSError."""
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def write(path: Path, content: bytes) -> Path:
    """A file that a user named. Raises InputError where it cannot be written."""
    try:
        with whole(path) as part:
            part.write_bytes(content)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; give a path in a writable folder") from error
    return path

"""Where a command may write: refused before the work, not after."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.errors import InputError


def output(text: str, option: str, endings: Sequence[str], inputs: Iterable[str | None]) -> Path:
    """The path of a file to be written. inputs: what the command reads, files or names; a file among them is kept.

    Raises InputError for a folder, a file that the command reads, another ending, or a place that cannot be written."""
    path = Path(text).expanduser()
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder; name a file in it")
    for source in inputs:
        read = Path(source).expanduser() if source else None
        if read is not None and path.exists() and read.exists() and path.samefile(read):
            raise InputError(f"{option} {text} is what is read and would be overwritten; name another file")
    if path.suffix not in endings:
        raise InputError(f"{option} {text}: name a file ending in {', '.join(endings)}")
    folder = next(p for p in path.absolute().parents if p.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"cannot write {option} {path} ({error.strerror}); name a file in a writable folder") from None
    return path

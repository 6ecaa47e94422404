"""What was measured on this machine, kept in the cache: by device, versions and program, found again in later runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from engine import cache, row
from engine import config as config_lib
from engine.config import TrainConfig


def key(config: TrainConfig, n_trials: int, mesh: Mesh) -> str:
    """Of a program on these devices."""
    return json.dumps([row.device_name(), row.versions(), n_trials, dict(mesh.shape), config_lib.structure(config)])


def known(kind: str, key: str) -> Any:
    """What was kept under that key; None where nothing was, or the file is damaged."""
    return _read(_file(kind)).get(key)


def keep(kind: str, key: str, value: Any) -> None:
    """value: JSON. Best effort: where the cache can't be written, it is measured again next time."""
    file = _file(kind)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(_read(file) | {key: value}))
        partial.replace(file)
    except OSError:
        pass


def _file(kind: str) -> Path:
    return cache.root() / f"{kind}.json"


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}

"""Grids as YAML, for those who prefer a file: the combinators of `experiments.grid` by their names.

    base: {recipe: mine, tokens: 2e5, data.corpus: stdlib, data.seq_len: 128, optim.warmup_steps: 10}
    grid:
      prod:
        - zip: [{model.d_model: [32, 64]}, {model.n_heads: [1, 2]}]
        - optim.lr: {ladder: [1e-3, 8e-3, 2]}
    without:
      - {model.d_model: 64, optim.lr: 8e-3}

A grid is a mapping: `prod`, `zip` or `chain` of a list of grids, or fields with their values (several: every
combination). `without` leaves out the entries that agree with one of its own, each of which must leave out some.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import grid as grid_lib
from experiments.errors import InputError
from experiments.grid import Grid
from experiments.options import nearest, number

if TYPE_CHECKING:
    from engine.config import TrainConfig

_COMBINED: dict[str, Callable[..., Grid]] = {"prod": grid_lib.prod, "zip": grid_lib.zip_, "chain": grid_lib.chain}


def load(name: str) -> list[TrainConfig]:
    """The configs of a YAML file. Raises InputError that names the file, and what in it is wrong."""
    import yaml

    from engine import config as config_lib
    from engine.config import TrainConfig

    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError(
            f"grid {name!r}: no file {path}; give a YAML file, path/to/file.py:function or a recipe's name"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"grid {name!r} is not YAML ({' '.join(str(error).split())}); mend it") from None
    if not isinstance(content, dict) or "grid" not in content or content.keys() - {"base", "grid", "without"}:
        raise InputError(f"grid {name!r} must have the keys base, grid and perhaps without; mend it")
    base, without = content.get("base") or {}, content.get("without") or []
    if not (isinstance(base, dict) and isinstance(without, list) and all(isinstance(w, dict) for w in without)):
        raise InputError(f"grid {name!r}: base must be a mapping of fields, without a list of such; mend it")
    entries = _grid(content["grid"], name)
    for part in without:
        _check(part, entries, name)
    left_out = [_strings(w) for w in without]
    kept = grid_lib.where(lambda entry: not any(_agrees(_strings(entry), w) for w in left_out), entries)
    return grid_lib.trials(config_lib.replace(TrainConfig(recipe=path.stem), base), kept)


def _grid(node: Any, name: str) -> Grid:
    if not isinstance(node, dict) or not node:
        raise InputError(f"grid {name!r}: {node!r:.60} is no grid; write prod, zip, chain, or fields with their values")
    operators = node.keys() & _COMBINED.keys()
    for key, given in node.items():
        if key not in _COMBINED and isinstance(given, list) and any(isinstance(part, dict) for part in given):
            raise InputError(f"grid {name!r}: no way {key!r} to combine a list of grids; write {', '.join(_COMBINED)}")
    if not operators:
        return grid_lib.prod(*[grid_lib.axis(str(field), _values(field, given, name)) for field, given in node.items()])
    (operator,) = operators if len(node) == 1 else (None,)
    if operator is None:
        raise InputError(f"grid {name!r}: {min(operators)} stands beside {len(node) - 1} other keys; give it its own")
    parts = node[operator]
    if not isinstance(parts, list) or not parts:
        raise InputError(f"grid {name!r}: {operator} takes a list of grids, got {parts!r:.60}")
    return _COMBINED[operator](*[_grid(part, name) for part in parts])


def _values(field: Any, given: Any, name: str) -> list[Any]:
    """A list as it is, one value, or a ladder of (low, high, ratio)."""
    if isinstance(given, dict):
        rungs = given.get("ladder")
        try:
            low, high, ratio = map(float, rungs if len(given) == 1 else ())  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise InputError(
                f"grid {name!r}: {field} is {given!r:.60}; give values, or {{ladder: [low, high, ratio]}}"
            ) from None
        return grid_lib.ladder(low, high, ratio)
    return given if isinstance(given, list) else [given]


def _check(part: dict[str, Any], entries: Grid, name: str) -> None:
    """Raises InputError unless an entry of `without` is of fields that there are, and leaves something out."""
    from engine import config as config_lib

    known = config_lib.field_names()
    for field in map(str, part):
        if field not in known:
            raise InputError(f"grid {name!r}: without {part}: no field {field!r}{nearest(field, known)}; mend it")
    asked, given = _strings(part), [_strings(entry) for entry in entries]
    if asked and any(_agrees(entry, asked) for entry in given):
        return
    why = "name the fields that trials are left out by" if not asked else "its values are not together in one"
    for field, value in asked.items():
        if not any(field in entry for entry in entries):
            why = f"the grid does not vary {field}"
        elif not any(entry.get(field) == value for entry in given):
            there = dict.fromkeys(str(entry[field]) for entry in entries if field in entry)
            why = f"{field} is {', '.join(there)}" if len(there) <= 12 else f"no {field} is {value}"
        else:
            continue
        break
    raise InputError(f"grid {name!r}: without {part} matches no trial ({why}); mend it")


def _strings(entry: dict[str, Any]) -> dict[str, Any]:
    """YAML reads 1e-3 and 100k as words: numbers compare as numbers however they are written."""

    def plain(value: Any) -> Any:
        if isinstance(value, str):
            found = number(value)
            return value if found is None else found
        return float(value) if isinstance(value, (int, float)) else value

    return {str(field): plain(value) for field, value in entry.items()}


def _agrees(entry: dict[str, Any], part: dict[str, Any]) -> bool:
    return all(field in entry and entry[field] == value for field, value in part.items())

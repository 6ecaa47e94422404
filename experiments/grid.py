"""The grid language: plain lists of overrides, combined by plain functions.

A *grid* is a list of dicts from dotted config fields to values, `[{"optim.lr": 1e-3}, {"optim.lr": 2e-3}]`. The
combinators take grids and return grids; `trials` overlays one on a base config, strictly:

    shapes = zip_(axis("model.d_model", [64, 128]), axis("model.n_layers", [2, 4]))
    grid = prod(shapes, axis("optim.lr", ladder(1e-3, 8e-3, 2)), axis("tokens", [1e6, 2e6]))
    return trials(base, where(lambda t: t["tokens"] >= 1e6, grid))
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from engine import config as config_lib
from engine.config import TrainConfig
from experiments.errors import InputError

Overrides = dict[str, Any]
Grid = list[Overrides]


def axis(field: str, values: Iterable[Any]) -> Grid:
    """One field over values."""
    return [{field: value} for value in values]


def prod(*grids: Grid) -> Grid:
    """Every combination; the last grid varies fastest. Raises InputError when two grids set the same field."""
    return [_merge(parts) for parts in itertools.product(*grids)]


def zip_(*grids: Grid) -> Grid:
    """First with first, second with second. Raises InputError when lengths differ or two set the same field."""
    lengths = [len(grid) for grid in grids]
    if len(set(lengths)) > 1:
        raise InputError(f"zip_ of grids of lengths {', '.join(map(str, lengths))}; give grids of the same length")
    return [_merge(parts) for parts in zip(*grids)]


def chain(*grids: Grid) -> Grid:
    """One after another."""
    return [overrides for grid in grids for overrides in grid]


def where(keep: Callable[[Overrides], bool], grid: Grid) -> Grid:
    """The entries for which `keep(overrides)` is true."""
    return [overrides for overrides in grid if keep(overrides)]


def ladder(low: float, high: float, ratio: float) -> list[float]:
    """low, low * ratio, low * ratio^2, ... up to and including high (within rounding).

    Step Law's learning rates and batch sizes are ladders of ratio sqrt(2). Raises InputError unless
    0 < low <= high and ratio > 1.
    """
    if not (0 < low <= high < math.inf):
        raise InputError(f"ladder from {low:g} to {high:g}; give 0 < low <= high")
    if not (1 < ratio < math.inf):
        raise InputError(f"ladder of ratio {ratio:g}; give a ratio above 1, such as 2**0.5")
    rungs = math.floor(math.log(high / low) / math.log(ratio) + 1e-9)
    return [low * ratio**i for i in range(rungs + 1)]


def around(field: str, center: float, *, ratio: float = 2**0.5, steps: int = 2) -> Grid:
    """One field at center and `steps` rungs of a ladder on either side of it."""
    return axis(field, ladder(center / ratio**steps, center * ratio**steps, ratio))


def near_optimum(config: TrainConfig, *, law: Any = "steplaw", ratio: float = 2**0.5, steps: int = 2) -> Grid:
    """Learning rates and batch sizes around those that `law` (a posterior or its name) predicts for a config's N and D.

    (2 steps + 1)^2 entries, fewer where batches round to the same number of sequences.
    """
    import laws
    from engine import sizes

    posterior = laws.load_posterior(law) if isinstance(law, str) else law
    best = posterior.predict(params=float(sizes.non_embedding_params(config.model)), tokens=float(config.tokens))
    sequences = max(1.0, float(best.batch_tokens.median) / config.data.seq_len)
    batches = [max(1, round(b["batch_size"])) for b in around("batch_size", sequences, ratio=ratio, steps=steps)]
    rates = around("optim.lr", float(best.lr.median), ratio=ratio, steps=steps)
    return prod(axis("batch_size", dict.fromkeys(batches)), rates)


def trials(base: TrainConfig, grid: Grid) -> list[TrainConfig]:
    """One config per entry: `base` with its overrides.

    Raises InputError naming the field when one is unknown, or the value when a config with it is impossible.
    """
    return [config_lib.replace(base, overrides) for overrides in grid]


def unique(configs: Sequence[TrainConfig]) -> list[TrainConfig]:
    """The configs without repeats (equal run_id), in order."""
    return list({config.run_id: config for config in configs}.values())


def _merge(parts: Sequence[Mapping[str, Any]]) -> Overrides:
    merged: Overrides = {}
    for part in parts:
        twice = merged.keys() & part.keys()
        if twice:
            raise InputError(f"{min(twice)} is set by two grids that are combined; leave it in one of them")
        merged |= part
    return merged

"""Going on from another run's checkpoint: one trunk at a constant learning rate serves runs of many lengths.

A wsd run is a constant run until it decays. So it may begin with the checkpoint of a run ("constant", or a longer or
shorter "wsd") that did the same steps, and is then, bit for bit, the run that did them itself.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine import checkpoint, optim, population
from engine import config as config_lib
from engine.config import TrainConfig
from engine.errors import InputError, require

# What of a branch may differ from its trunk: the end, where it runs, and what the run is called.
FREE = (
    *("tokens", "optim.schedule", "optim.decay_fraction", "optim.final_lr", "optim.final_fraction"),
    *("recipe", "mesh", "compute"),
)


def trunk(folder: str | Path, target: Any, trials: Sequence[TrainConfig]) -> checkpoint.Saved:
    """The newest good checkpoint in `folder` that `trials` may branch from, in order.

    target: as in `Checkpoints.restore`. Raises InputError where there is none, where a trial differs from its trunk in
    more than `FREE`, or where none is early enough: before the trunk's learning rates are another's than the trial's.
    """
    with _opened(folder) as store:
        most = _check(folder, store, trials)
        saved = store.restore(target, check=lambda step, meta: None, most=most)
    if saved is None:
        raise _nothing(folder)
    return saved


def check(folder: str | Path, trials: Sequence[TrainConfig]) -> None:
    """Raises the InputError that `trunk` would, before anything is begun."""
    with _opened(folder) as store:
        _check(folder, store, trials)


def constant_steps(config: TrainConfig) -> int:
    """Steps of a wsd run until its learning rate decays, warm-up among them; or one less, since devices round the
    division differently where the decay begins."""
    return _constant_steps(config.steps, config.optim.decay_fraction, config.optim.warmup_steps)


@functools.cache
def _constant_steps(steps: int, decay_fraction: float, warmup_steps: int) -> int:
    decay_steps = max(1.0, min(decay_fraction * steps, steps - warmup_steps))
    return max(0, math.floor(steps - decay_steps - 1e-6 * steps))


def _opened(folder: str | Path) -> checkpoint.Checkpoints:
    if not Path(folder).is_dir():
        raise _nothing(folder)
    return checkpoint.Checkpoints(folder, read_only=True)


def _nothing(folder: str | Path) -> InputError:
    return InputError(f"there is no checkpoint in {folder} to branch from; name a folder that a run was saved to")


def _check(folder: str | Path, store: checkpoint.Checkpoints, trials: Sequence[TrainConfig]) -> int:
    """The last step after which trials may branch; raises InputError where no checkpoint is that early."""
    newest, oldest = store.newest(), store.oldest_step()
    if newest is None or oldest is None:
        raise _nothing(folder)
    step, meta = newest
    trunks = [config_lib.from_dict(values) for values in meta["configs"]]
    require(not meta.get("over"), f"{folder} holds trials that were given up on the way; branch from a run of all")
    require(
        len(trunks) == len(trials),
        f"{folder} holds {len(trunks)} trials, so {len(trials)} cannot branch from it; branch as many",
    )
    most = step
    for old, new in zip(trunks, trials):
        for name in config_lib.field_names():
            if not name.startswith(FREE):
                a, b = config_lib.get(old, name), config_lib.get(new, name)
                require(
                    a == b,
                    f"{name} is {b}, but {a} in {folder}; a branch may differ from its trunk only in {', '.join(FREE)}",
                )
        most = min(most, old.steps, new.steps)
        require(
            oldest <= most,
            f"{folder} is at step {oldest}, past the {min(old.steps, new.steps)} steps of a run of "
            f"{min(old.tokens, new.tokens):g} tokens; raise tokens, or branch from an earlier checkpoint",
        )
        rates_old, rates_new = _rates(old, most), _rates(new, most)
        other = np.flatnonzero(rates_old != rates_new)
        if len(other):
            most = int(other[0])
            require(
                oldest <= most,
                f"{folder} is at step {oldest}, but from step {most + 1} on its learning rate is not this run's "
                f"({rates_old[most]:g}, here {rates_new[most]:g}); raise tokens, lower optim.decay_fraction, or branch "
                "from an earlier checkpoint",
            )
    return most


def _rates(config: TrainConfig, n_steps: int) -> np.ndarray:
    """Learning rates of the first n_steps, as the compiled step computes them."""
    hyper = jax.tree.map(lambda x: x[0], population.stack_hypers([config]))
    return np.asarray(optim.learning_rate(config.optim.schedule, jnp.arange(n_steps), hyper))

"""Going on from another run's checkpoint: one trunk at a constant learning rate serves runs of many lengths.

A wsd run is a constant run until it decays. So it may begin with the checkpoint of a run ("constant", or a longer or
shorter "wsd") that did the same steps, and is then, bit for bit, the run that did them itself.
"""

from __future__ import annotations

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
    """The newest good checkpoint in `folder`, of a population that `trials` may branch from, in order.

    target: as in `Checkpoints.restore`. Raises InputError where there is none, where a trial differs from its trunk in
    more than `FREE`, or where the trunk's learning rates so far are not those of the trial.
    """
    with _opened(folder) as store:
        saved = store.restore(target, check=lambda step, meta: _check(folder, step, meta, trials))
    if saved is None:
        raise _nothing(folder)
    return saved


def check(folder: str | Path, trials: Sequence[TrainConfig]) -> None:
    """Raises the InputError that `trunk` would, before anything is begun."""
    with _opened(folder) as store:
        newest = store.newest()
    if newest is None:
        raise _nothing(folder)
    _check(folder, *newest, trials)


def _opened(folder: str | Path) -> checkpoint.Checkpoints:
    if not Path(folder).is_dir():
        raise _nothing(folder)
    return checkpoint.Checkpoints(folder, read_only=True)


def _nothing(folder: str | Path) -> InputError:
    return InputError(f"there is no checkpoint in {folder} to branch from; name a folder that a run was saved to")


def _check(folder: str | Path, step: int, meta: dict[str, Any], trials: Sequence[TrainConfig]) -> None:
    trunks = [config_lib.from_dict(values) for values in meta["configs"]]
    require(
        len(trunks) == len(trials),
        f"{folder} holds {len(trunks)} trials, so {len(trials)} cannot branch from it; branch as many",
    )
    for old, new in zip(trunks, trials):
        for name in config_lib.field_names():
            if not name.startswith(FREE):
                a, b = config_lib.get(old, name), config_lib.get(new, name)
                require(
                    a == b,
                    f"{name} is {b}, but {a} in {folder}; a branch may differ from its trunk only in {', '.join(FREE)}",
                )
        require(
            step <= min(old.steps, new.steps),
            f"{folder} is at step {step}, past the {min(old.steps, new.steps)} steps of a run of "
            f"{min(old.tokens, new.tokens):g} tokens; raise tokens, or branch from an earlier checkpoint",
        )
        rates_old, rates_new = _rates(old, step), _rates(new, step)
        other = np.flatnonzero(rates_old != rates_new)
        if len(other):
            k = int(other[0])
            raise InputError(
                f"{folder} is at step {step}, but from step {k + 1} on its learning rate is not this run's "
                f"({rates_old[k]:g}, here {rates_new[k]:g}); raise tokens, lower optim.decay_fraction, or branch from "
                "an earlier checkpoint"
            )


def _rates(config: TrainConfig, n_steps: int) -> np.ndarray:
    """Learning rates of the first n_steps, as the compiled step computes them."""
    hyper = jax.tree.map(lambda x: x[0], population.stack_hypers([config]))
    return np.asarray(optim.learning_rate(config.optim.schedule, jnp.arange(n_steps), hyper))

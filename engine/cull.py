"""Trials given up on the way: a judge names them, and the others go on as a smaller population, at its cost.

A population becomes three quarters of its first size, half, three eighths and so on, rounded up, so that few sizes are
compiled. So of the trials that the judge names only as many end as one of these frees lanes; those that diverged end
before them. The other named ones go on, as if never named. So they do where their FLOPs are few beside a compile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from engine import lanes, optim, sizes, step
from engine import model as model_lib
from engine.config import TrainConfig

WORTH = 5.0  # seconds of training that must be saved at the least, at the speed that `engine.lanes` assumes


@dataclass(frozen=True)
class Judge:
    """Says which trials may end. It must say the same when asked again, for a run that was killed to end alike."""

    at: tuple[int, ...]  # after these steps
    # (training losses so far [steps, G], nats per token; who still trains) -> why each may end, the most hopeless first
    verdict: Callable[[np.ndarray, Sequence[int]], Mapping[int, str]]


class Roster:
    """Which trials of a population still train, when and why the others ended, and the state of all."""

    def __init__(self, trials: Sequence[TrainConfig]):
        self.live = list(range(len(trials)))
        self._sizes, self._trials = _sizes(len(trials)), trials
        self.over: dict[int, tuple[int, str]] = {}  # trial -> (steps done, why)
        self._model, self._method = trials[0].model, optim.method(trials[0].optim)
        self._whole: step.State | None = None  # on the host, once some have ended

    def ends(self, loss: np.ndarray, judge: Judge, diverged: np.ndarray) -> dict[int, str]:
        """Who ends after the steps of `loss` [steps, G], and why. diverged: [G] bool."""
        reasons = {g: "" for g in self.live if diverged[g]}  # a diverged trial's row says so itself
        named = judge.verdict(loss, [g for g in self.live if g not in reasons])
        reasons |= {g: why for g, why in named.items() if g not in reasons}
        size = min(size for size in self._sizes if len(self.live) - len(reasons) <= size)
        ends = dict(list(reasons.items())[: len(self.live) - size])
        seconds = sum(self._seconds_left(g, len(loss)) for g in ends)
        return ends if seconds >= WORTH else {}

    def _seconds_left(self, g: int, done: int) -> float:
        trial = self._trials[g]
        flops = sizes.flops_per_token(trial.model, trial.data.seq_len) * trial.batch_tokens
        return (trial.steps - done) * flops / lanes.assumed_flops()

    def end(self, state: step.State, over: Mapping[int, tuple[int, str]]) -> None:
        """Takes `over` from the live, whose state is `state`."""
        self._whole = self.everyone(state)
        self.over |= over
        self.live = [g for g in self.live if g not in over]

    def everyone(self, state: Any) -> Any:
        """The state of all trials, from that of the live; on the host where some have ended."""
        if self._whole is None:
            return state
        if not self.live:
            return self._whole
        return self._map(partial(_put, self.live), self._whole, jax.device_get(state))._replace(step=state.step)

    def of_live(self) -> step.State:
        """The state of the live ones when others last ended, on the host."""
        return self._map(partial(_take, self.live), jax.device_get(self._whole))

    def _map(self, leaf: Callable[..., Any], state: Any, *others: Any) -> Any:
        """leaf(trial axis, array, ...) of every array that has trials."""
        axes = step.State(
            model_lib.trial_axis(state.params),
            step.moments_axis(self._model, self._method),
            None,  # type: ignore[arg-type]
            0,  # type: ignore[arg-type]
        )
        parts = [s._replace(step=None) for s in (state, *others)]
        found = jax.tree.map(lambda at, *trees: jax.tree.map(partial(leaf, at), *trees), axes, *parts)
        return found._replace(step=np.asarray(state.step))


def _sizes(n: int) -> set[int]:
    """That a population of n may come to have."""
    return {0, 1} | {-(-part * n // (4 * 2**k)) for part in (4, 3) for k in range(n.bit_length())}


def _take(live: Sequence[int], axis: int, leaf: Any) -> np.ndarray:
    return np.take(leaf, live, axis)


def _put(live: Sequence[int], axis: int, leaf: Any, part: Any) -> np.ndarray:
    out = np.array(leaf)
    np.moveaxis(out, axis, 0)[live] = np.moveaxis(part, axis, 0)
    return out

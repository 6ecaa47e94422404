"""What is known of a population in training: its metrics so far, and its pace."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Progress:
    """Where a population is; given to `on_progress` after every call."""

    step: int
    total_steps: int
    tokens_per_s: float  # over all trials, this session, compile time left out
    loss: float  # mean over live trials of the last step read
    eta_s: float
    mfu: float = math.nan  # share of the devices' peak, of the FLOPs that training needs; NaN where no peak is known


class Pace:
    """Seconds per step, from the moments at which metrics became known; the first call, which compiles, is left out."""

    def __init__(self) -> None:
        self._marks: list[tuple[float, int]] = []

    def mark(self, steps_done: int) -> None:
        self._marks.append((time.monotonic(), steps_done))
        del self._marks[1:-20]  # the first, and the recent ones

    def seconds_per_step(self) -> float | None:
        if len(self._marks) < 2 or self._marks[-1][1] == self._marks[0][1]:
            return None
        (t0, n0), (t1, n1) = self._marks[-2] if len(self._marks) > 2 else self._marks[0], self._marks[-1]
        return max(t1 - t0, 1e-9) / max(n1 - n0, 1)

    def steps_within(self, seconds: float) -> int:
        per_step = self.seconds_per_step()
        return 1 if per_step is None else max(1, int(seconds / per_step))


class History:
    """Metrics of every step done, [steps, G, ...], NaN of trials that had ended; and which went wrong."""

    def __init__(self, total: int, n_trials: int):
        self.steps = 0
        self._total = total
        self._rows: dict[str, np.ndarray] = {}
        self.diverged = np.zeros(n_trials, bool)
        self.live = list(range(n_trials))  # those of which rows come

    def extend(self, rows: Mapping[str, np.ndarray]) -> None:
        end = self.steps + len(rows["loss"])
        for name, values in rows.items():
            if name not in self._rows:
                shape = (self._total, len(self.diverged), *values.shape[2:])
                self._rows[name] = np.full(shape, np.nan, np.float32)
            self._rows[name][self.steps : end, self.live] = values
        self.diverged[self.live] |= ~(np.isfinite(rows["loss"]) & np.isfinite(rows["grad_norm"])).all(axis=0)
        self.steps = end

    def so_far(self, first: int = 0) -> dict[str, np.ndarray]:
        """Of the steps from `first` on."""
        return {name: values[first : self.steps] for name, values in self._rows.items()}

    def all_over(self, horizons: np.ndarray) -> bool:
        """True when no trial has anything left to learn: all ended, diverged, or past their horizon [G]."""
        resting = self.diverged | (self.steps >= horizons)
        return bool(np.all(resting[self.live]))

    def progress(self, pace: Pace, tokens_per_step: int, peak_tokens_per_s: float) -> Progress:
        last = self._rows["loss"][self.steps - 1]
        loss = float(np.mean(last[np.isfinite(last)])) if np.isfinite(last).any() else float("nan")
        per_step = pace.seconds_per_step() or float("nan")
        left = self._total - self.steps
        pace_tokens = tokens_per_step / per_step
        return Progress(self.steps, self._total, pace_tokens, loss, left * per_step, pace_tokens / peak_tokens_per_s)


def diverged_at(metrics: Mapping[str, np.ndarray]) -> int | None:
    """First of a trial's own steps with a non-finite loss or gradient."""
    bad = np.flatnonzero(~(np.isfinite(metrics["loss"]) & np.isfinite(metrics["grad_norm"])))
    return int(bad[0]) if len(bad) else None

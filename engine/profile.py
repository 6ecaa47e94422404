"""A trace of chosen steps, for TensorBoard's profile plugin or xprof."""

from __future__ import annotations

from pathlib import Path

import jax

from engine.errors import require


class Profile:
    """Traces steps first to last - 1 into a folder. A context manager: a trace under way ends with it."""

    def __init__(self, steps: tuple[int, int] | None, folder: str | Path | None):
        """steps: (first, last); None: nothing is traced. Raises InputError for steps that can't be, or no folder."""
        require(
            steps is None or 0 <= steps[0] < steps[1],
            f"profile is {steps}; give a first step and a later one to end before",
        )
        require(steps is None or folder is not None, "profile needs a folder to write its trace to; name one")
        self.borders: tuple[int, ...] = steps or ()  # steps before which a call must end
        self._folder = folder
        self._on = False

    def turns(self, done: int) -> bool:
        """True where `turn` is to be called with nothing under way: before step number `done`."""
        return done in self.borders

    def turn(self, done: int) -> None:
        """Begins or ends the trace."""
        if done == self.borders[0]:
            jax.profiler.start_trace(str(self._folder))
            self._on = True
        else:
            self._end()

    def _end(self) -> None:
        if self._on:
            self._on = False
            jax.profiler.stop_trace()

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

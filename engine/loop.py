"""The main loop: feed batches, dispatch, read metrics a call late, save, evaluate, make rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from engine import checkpoint, data, population, step
from engine import config as config_lib
from engine import mesh as mesh_lib
from engine import model as model_lib
from engine import row as row_lib
from engine.config import TrainConfig
from engine.errors import InputError

MAX_CALL_STEPS = 32  # steps of one call at most; fewer when a batch is large or a step takes long
CALL_TOKENS = 2**18  # tokens on the device per call, at most (or one batch)
CALL_SECONDS = 0.5  # aim of one call: progress and interrupts are this fine-grained


@dataclass(frozen=True)
class Progress:
    """Where a population is; given to `on_progress` after every call."""

    step: int
    total_steps: int
    tokens_per_s: float  # over all trials, this session, compile time left out
    loss: float  # mean over live trials of the last step read
    eta_s: float


@dataclass(frozen=True)
class Result:
    """One trained model."""

    config: TrainConfig
    params: Any  # pytree of numpy arrays, as `engine.init` returns
    metrics: dict[str, np.ndarray]  # "step", "loss" (nats per token), "lr", "grad_norm": one entry a step
    row: dict[str, Any]  # its run-table row
    checkpoint: Path | None  # folder of its last checkpoint; None when none was asked for


def train(
    config: TrainConfig,
    *,
    folder: str | Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Trains one model. With a folder: checkpoints go there, and a run that was cut off goes on from its last."""
    return train_population(config, [{}], folder=folder, on_progress=on_progress)[0]


def train_population(
    config: TrainConfig,
    hypers: Sequence[Mapping[str, float]],
    *,
    folder: str | Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    save_every_s: float = 60.0,
) -> list[Result]:
    """Trains len(hypers) models as one compiled program, all on the same batches; results in the same order.

    hypers: per trial, dotted names of `config.HYPERS` to numbers; the rest is `config`'s. folder: checkpoints, every
    save_every_s seconds and at the end; with one there the run goes on from it, bit for bit as if never stopped.
    A trial whose loss or gradient stops being finite freezes and is reported as diverged; the others are untouched.
    Raises InputError for impossible configs, data that can't be had, or a folder that holds something else.
    """
    started = time.monotonic()
    trials = population.trial_configs(config, hypers)
    corpus = data.load(config.data)
    _check_data(config, corpus)
    mesh = mesh_lib.make_mesh(config.mesh, n_trials=len(trials), batch_size=config.batch_size)
    program = step.program(config)
    hyper_G = jax.device_put(population.stack_hypers(trials), mesh_lib.trial_sharding(mesh))
    run_steps = population.compiled_train_steps(program, mesh)
    horizons = np.asarray([t.steps for t in trials])
    total = int(horizons.max())

    history = _History(total, len(trials))
    elapsed = 0.0
    state = None
    store = checkpoint.Checkpoints(folder) if folder is not None else None
    meta = {"trials": [t.run_id for t in trials], "configs": [config_lib.to_dict(t) for t in trials]}
    if store is not None:
        shapes = jax.eval_shape(lambda: population.init_state(mesh, trials, hyper_G))
        target = jax.tree.map(
            lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
            shapes,
            mesh_lib.state_sharding(mesh, config.model),
        )
        saved = store.restore(target, trials=meta["trials"])
        if saved is not None:
            state, elapsed = saved.state, saved.meta["elapsed_s"]
            history.extend(saved.history)
    if state is None:
        state = population.init_state(mesh, trials, hyper_G)

    def save(done: int) -> None:
        assert store is not None and state is not None
        seconds = elapsed + time.monotonic() - started
        store.save(checkpoint.Saved(done, state, history.so_far(), {**meta, "elapsed_s": seconds}))

    done = saved_step = history.steps
    call_steps = max(1, min(MAX_CALL_STEPS, CALL_TOKENS // config.batch_tokens))
    batch_sharding = mesh_lib.batch_sharding(mesh, steps_axis=True)
    pace = _Pace()
    pending: Any = None  # metrics of the last call, still on the device: read after the next is dispatched

    def read_pending() -> None:
        nonlocal pending
        if pending is None:
            return
        metrics, n = pending
        history.extend({name: rows[:n] for name, rows in jax.device_get(metrics)._asdict().items()})
        pending = None
        pace.mark(history.steps)
        if on_progress is not None:
            on_progress(history.progress(pace, config.batch_tokens * len(trials)))

    last_save = time.monotonic()
    with jax.transfer_guard("disallow"):
        while done < total and not history.all_over(horizons):
            n = min(pace.steps_within(CALL_SECONDS), call_steps, total - done)
            batches = np.zeros((call_steps, config.batch_size, config.data.seq_len + 1), np.int32)
            for k in range(n):
                batches[k] = data.batch(
                    corpus.train, seq_len=config.data.seq_len, batch_size=config.batch_size,
                    seed=config.data.seed, k=done + k,
                )  # fmt: skip
            state, metrics = run_steps(
                state, jax.device_put(batches, batch_sharding), jax.device_put(np.int32(n)), hyper_G
            )
            read_pending()
            pending = (metrics, n)
            done += n
            if store is not None and time.monotonic() - last_save > save_every_s:
                read_pending()
                save(done)
                last_save, saved_step = time.monotonic(), done
        read_pending()

    if store is not None:
        if saved_step < done:
            save(done)
        store.close()
    eval_loss_G = evaluate(config, mesh, state.params, corpus.heldout)
    params_G = jax.device_get(state.params)
    wall_s = (elapsed + time.monotonic() - started) / len(trials)
    results = []
    for g, trial in enumerate(trials):
        metrics_g = {name: values[: trial.steps, g] for name, values in history.so_far().items()}
        row = row_lib.make_row(
            trial,
            losses=metrics_g["loss"],
            eval_loss=float(eval_loss_G[g]),
            chars_per_token=corpus.heldout_chars_per_token,
            diverged_at=_diverged_at(metrics_g),
            wall_s=wall_s,
        )
        metrics_g = {"step": np.arange(len(metrics_g["loss"])), **metrics_g}
        params = model_lib.take_trial(params_G, g)
        results.append(Result(trial, params, metrics_g, row, Path(folder) if folder is not None else None))
    return results


def evaluate(config: TrainConfig, mesh: Any, params_G: Any, heldout: np.ndarray) -> np.ndarray:
    """Mean loss in nats per token, [G], over `config.eval_sequences` windows spread evenly over the held-out tokens."""
    seq_len, batch_size = config.data.seq_len, config.batch_size
    n_windows = data.n_windows(heldout, seq_len)
    starts = np.unique(np.linspace(0, n_windows - 1, config.eval_sequences).astype(np.int64)) * seq_len
    eval_step = population.compiled_eval_step(step.program(config), mesh)
    sharding = mesh_lib.batch_sharding(mesh, steps_axis=False)
    total = 0.0
    for first in range(0, len(starts), batch_size):
        rows = starts[first : first + batch_size]
        tokens = np.zeros((batch_size, seq_len + 1), np.int32)
        tokens[: len(rows)] = heldout[rows[:, None] + np.arange(seq_len + 1)]
        weights = np.zeros((batch_size, seq_len), np.float32)
        weights[: len(rows)] = 1.0
        nll_G = eval_step(params_G, jax.device_put(tokens, sharding), jax.device_put(weights, sharding))
        total = total + np.asarray(nll_G, np.float64)
    return np.asarray(total / (len(starts) * seq_len))


class _Pace:
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


class _History:
    """Metrics of every step done, [steps, G], and where each trial first went wrong."""

    def __init__(self, total: int, n_trials: int):
        self.steps = 0
        self._rows = {name: np.zeros((total, n_trials), np.float32) for name in step.Metrics._fields}
        self._diverged = np.zeros(n_trials, bool)

    def extend(self, rows: Mapping[str, np.ndarray]) -> None:
        end = self.steps + len(rows["loss"])
        for name, values in rows.items():
            self._rows[name][self.steps : end] = values
        self._diverged |= ~(np.isfinite(rows["loss"]) & np.isfinite(rows["grad_norm"])).all(axis=0)
        self.steps = end

    def so_far(self) -> dict[str, np.ndarray]:
        return {name: values[: self.steps] for name, values in self._rows.items()}

    def all_over(self, horizons: np.ndarray) -> bool:
        """True when no trial has anything left to learn: all diverged or past their horizon."""
        return bool(np.all(self._diverged | (self.steps >= horizons)))

    def progress(self, pace: _Pace, tokens_per_step: int) -> Progress:
        total = len(self._rows["loss"])
        last = self._rows["loss"][self.steps - 1]
        loss = float(np.mean(last[np.isfinite(last)])) if np.isfinite(last).any() else float("nan")
        per_step = pace.seconds_per_step() or float("nan")
        return Progress(self.steps, total, tokens_per_step / per_step, loss, (total - self.steps) * per_step)


def _diverged_at(metrics: Mapping[str, np.ndarray]) -> int | None:
    """First of a trial's own steps with a non-finite loss or gradient."""
    bad = np.flatnonzero(~(np.isfinite(metrics["loss"]) & np.isfinite(metrics["grad_norm"])))
    return int(bad[0]) if len(bad) else None


def _check_data(config: TrainConfig, corpus: data.Corpus) -> None:
    if corpus.vocab_size > config.model.vocab_size:
        raise InputError(
            f"model.vocab_size {config.model.vocab_size} is less than the {corpus.vocab_size} ids of tokenizer "
            f"{config.data.tokenizer!r}; set model.vocab_size={corpus.vocab_size}"
        )
    for split, tokens in (("train", corpus.train), ("held-out", corpus.heldout)):
        if data.n_windows(tokens, config.data.seq_len) < 1:
            raise InputError(
                f"the {split} split of corpus {config.data.corpus!r} has {len(tokens)} tokens, less than one sequence "
                f"of data.seq_len {config.data.seq_len}; lower data.seq_len or add text"
            )

"""The main loop: feed batches, dispatch, read metrics a call late, save, evaluate, make rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from engine import branch, checkpoint, data, optim, population, step
from engine import config as config_lib
from engine import lanes as lanes_lib
from engine import mesh as mesh_lib
from engine import model as model_lib
from engine import row as row_lib
from engine.config import TrainConfig
from engine.errors import InputError
from engine.optim import Hyper

MAX_CALL_STEPS = 32  # steps of one call at most; fewer when a batch is large or a step takes long
CALL_TOKENS = 2**18  # tokens on the device per call, at most (or one batch)
EVAL_TOKENS = 2048  # tokens of an evaluation batch, where the training batch is smaller
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
    metrics: dict[str, np.ndarray]  # "step", "loss" (nats per token), "lr", "grad_norm": one entry a step; of a
    # mixture of experts also "expert_load" [steps, routed layers, experts], each expert's share of a layer's choices
    row: dict[str, Any]  # its run-table row
    checkpoint: Path | None  # folder of its last checkpoint; None when none was asked for


def train(
    config: TrainConfig,
    *,
    folder: str | Path | None = None,
    branch_from: str | Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Trains one model. With a folder: checkpoints go there, and a run that was cut off goes on from its last.
    branch_from: another run's folder, from whose last checkpoint a new run goes on (`engine.branch`)."""
    return train_population(config, [{}], folder=folder, branch_from=branch_from, on_progress=on_progress)[0]


def train_population(
    config: TrainConfig,
    hypers: Sequence[Mapping[str, float]],
    *,
    folder: str | Path | None = None,
    branch_from: str | Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    save_every_s: float = 60.0,
) -> list[Result]:
    """Trains len(hypers) models as one compiled program, all on the same batches; results in the same order.

    hypers: per trial, dotted names of `config.HYPERS` to numbers; the rest is `config`'s. folder: checkpoints, every
    save_every_s seconds, at the end, and before passing on what on_progress raises; with one there the run goes on
    from it, bit for bit as if never stopped. branch_from: a folder of another population's checkpoints, from whose
    last these trials go on if they have none of their own, bit for bit as if they had done those steps
    (`engine.branch`).
    A trial whose loss or gradient stops being finite freezes and is reported as diverged; the others are untouched.
    Raises InputError for impossible configs, data that can't be had, or a folder that holds something else.
    """
    started = time.monotonic()
    job = _prepare(config, hypers)
    history = _History(job.steps, len(job.trials))
    tokenizer = None if job.corpus.tokenizer is None else job.corpus.tokenizer.to_json()
    with checkpoint.Checkpoints(folder) if folder is not None else nullcontext() as store:
        state, elapsed, job = _start(job, store, history, branch_from)

        def save(state: step.State) -> None:
            if store is not None:
                meta = {
                    **job.identity(),
                    "tokenizer": tokenizer,
                    "lanes": job.config.compute.lanes,
                    "elapsed_s": elapsed + time.monotonic() - started,
                }
                store.save(checkpoint.Saved(history.steps, state, history.so_far(), meta))

        state = _advance(job, state, history, save, save_every_s, on_progress)
    eval_loss_G = evaluate(config, job.mesh, state.params, job.corpus.heldout)
    params_G = jax.device_get(state.params)
    wall_s = (elapsed + time.monotonic() - started) / len(job.trials)
    where = Path(folder) if folder is not None else None
    results = []
    for g, trial in enumerate(job.trials):
        metrics = {name: values[: trial.steps, g] for name, values in history.so_far().items()}
        row = row_lib.make_row(
            trial,
            losses=metrics["loss"],
            eval_loss=float(eval_loss_G[g]),
            chars_per_token=job.corpus.heldout_chars_per_token,
            diverged_at=_diverged_at(metrics),
            wall_s=wall_s,
        )
        metrics = {"step": np.arange(len(metrics["loss"])), **metrics}
        results.append(Result(trial, model_lib.take_trial(params_G, g), metrics, row, where))
    return results


def check(config: TrainConfig, *, n_trials: int = 1) -> None:
    """Raises the InputError that training `config` with n_trials trials would start with, without training."""
    mesh_lib.state_sharding(_prepare(config, [{}] * n_trials).mesh, config.model, optim.method(config.optim))


@dataclass(frozen=True)
class _Job:
    """What to train, on what, where."""

    config: TrainConfig
    trials: list[TrainConfig]
    corpus: data.Corpus
    mesh: Mesh
    hyper_G: Hyper

    @property
    def horizons(self) -> np.ndarray:
        return np.asarray([t.steps for t in self.trials])

    @property
    def steps(self) -> int:
        return int(self.horizons.max())

    @property
    def call_steps(self) -> int:
        """Steps of one call of the compiled program."""
        return max(1, min(MAX_CALL_STEPS, CALL_TOKENS // self.config.batch_tokens))

    def with_lanes(self, wanted: int) -> _Job:
        config = lanes_lib.with_lanes(self.config, wanted)
        lanes = lanes_lib.choose(config, self.trials, self.mesh, self.call_steps)
        return replace(self, config=lanes_lib.with_lanes(config, lanes))

    def identity(self) -> dict[str, Any]:
        return {"trials": [t.run_id for t in self.trials], "configs": [config_lib.to_dict(t) for t in self.trials]}


def _prepare(config: TrainConfig, hypers: Sequence[Mapping[str, float]]) -> _Job:
    trials = population.trial_configs(config, hypers)
    corpus = data.load(config.data)
    if corpus.vocab_size > config.model.vocab_size:
        raise InputError(
            f"model.vocab_size {config.model.vocab_size} is less than the {corpus.vocab_size} ids of tokenizer "
            f"{config.data.tokenizer!r}; set model.vocab_size={corpus.vocab_size}"
        )
    mesh = mesh_lib.make_mesh(
        config.mesh, n_trials=len(trials), batch_size=config.compute.micro_batch or config.batch_size
    )
    hyper_G = jax.device_put(population.stack_hypers(trials), mesh_lib.trial_sharding(mesh))
    return _Job(config, trials, corpus, mesh, hyper_G)


def _start(
    job: _Job, store: checkpoint.Checkpoints | None, history: _History, branch_from: str | Path | None
) -> tuple[step.State, float, _Job]:
    """The state to go on from and the seconds spent before: the last good checkpoint's (filling history), its own or
    else its trunk's, or new; and the job with its lanes, which are those of the checkpoint, if they still fit the
    mesh."""
    wanted = job.config.compute.lanes
    if store is not None or branch_from is not None:
        target = jax.tree.map(
            lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
            jax.eval_shape(lambda: population.init_state(job.mesh, job.trials, job.hyper_G)),
            mesh_lib.state_sharding(job.mesh, job.config.model, optim.method(job.config.optim)),
        )
        saved = None if store is None else store.restore(target, check=store.of_trials(job.identity()["trials"]))
        if saved is None and branch_from is not None:
            saved = branch.trunk(branch_from, target, job.trials)
        if saved is not None:
            history.extend(saved.history)
            return saved.state, saved.meta["elapsed_s"], job.with_lanes(wanted or saved.meta["lanes"])
    return population.init_state(job.mesh, job.trials, job.hyper_G), 0.0, job.with_lanes(wanted)


def _advance(
    job: _Job,
    state: step.State,
    history: _History,
    save: Callable[[step.State], None],
    save_every_s: float,
    on_progress: Callable[[Progress], None] | None,
) -> step.State:
    """From history.steps to the last horizon. The hot loop: no transfer but the batches in and late metrics out.

    Saves every save_every_s, at the end, and before passing on what on_progress raises (a request to stop).
    """
    config, seq_len = job.config, job.config.data.seq_len
    run_steps = population.compiled_train_steps(step.program(config), job.mesh)
    call_steps = job.call_steps
    pace = _Pace()
    done = saved = history.steps
    last_save = time.monotonic()
    unread: list[tuple[step.Metrics, int]] = []  # of the last call; read after the next is dispatched

    def read_all_but(kept: int) -> None:
        while len(unread) > kept:
            metrics, n = unread.pop(0)
            history.extend({name: rows[:n] for name, rows in step.as_dict(jax.device_get(metrics)).items()})
            pace.mark(history.steps)

    with jax.transfer_guard("disallow"):
        while done < job.steps and not history.all_over(job.horizons):
            n = min(pace.steps_within(CALL_SECONDS), call_steps, job.steps - done)
            batches = np.zeros((call_steps, config.batch_size, seq_len + 1), np.int32)
            rows = data.sequences(
                job.corpus.train,
                seq_len=seq_len,
                seed=config.data.seed,
                first=done * config.batch_size,
                count=n * config.batch_size,
            )
            batches[:n] = rows.reshape(n, config.batch_size, seq_len + 1)
            device_batches = jax.device_put(batches, mesh_lib.batch_sharding(job.mesh, steps_axis=True))
            device_n = jax.device_put(np.int32(n), mesh_lib.replicated(job.mesh))
            state, metrics = run_steps(state, device_batches, device_n, job.hyper_G)
            unread.append((metrics, n))
            done += n
            read_all_but(0 if done == job.steps else 1)
            stop = None
            if on_progress is not None and history.steps:
                try:
                    on_progress(history.progress(pace, config.batch_tokens * len(job.trials)))
                except BaseException as request:
                    stop = request
            if stop is not None or time.monotonic() - last_save > save_every_s:
                read_all_but(0)
                save(state)
                saved, last_save = done, time.monotonic()
            if stop is not None:
                raise stop
        read_all_but(0)
    if saved < done:
        save(state)
    return state


def evaluate(config: TrainConfig, mesh: Any, params_G: Any, heldout: np.ndarray) -> np.ndarray:
    """Mean loss in nats per token, [G], over `config.eval_sequences` windows spread evenly over the held-out tokens."""
    seq_len = config.data.seq_len
    batch_size = config.batch_size * max(1, EVAL_TOKENS // config.batch_tokens)
    n_windows = data.n_windows(heldout, seq_len)
    starts = np.unique(np.linspace(0, n_windows - 1, config.eval_sequences).astype(np.int64)) * seq_len
    eval_step = population.compiled_eval_step(step.program(config), mesh)
    sharding = mesh_lib.batch_sharding(mesh, steps_axis=False)
    total = np.zeros(())
    for first in range(0, len(starts), batch_size):
        rows = starts[first : first + batch_size]
        tokens = np.zeros((batch_size, seq_len + 1), np.int32)
        tokens[: len(rows)] = heldout[rows[:, None] + np.arange(seq_len + 1)]
        weights = np.zeros((batch_size, seq_len), np.float32)
        weights[: len(rows)] = 1.0
        nll_G = eval_step(params_G, jax.device_put(tokens, sharding), jax.device_put(weights, sharding))
        total = total + np.asarray(nll_G, np.float64)
    return total / (len(starts) * seq_len)


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
    """Metrics of every step done, [steps, G, ...], and where each trial first went wrong."""

    def __init__(self, total: int, n_trials: int):
        self.steps = 0
        self._total = total
        self._rows: dict[str, np.ndarray] = {}
        self._diverged = np.zeros(n_trials, bool)

    def extend(self, rows: Mapping[str, np.ndarray]) -> None:
        end = self.steps + len(rows["loss"])
        for name, values in rows.items():
            if name not in self._rows:
                self._rows[name] = np.zeros((self._total, *values.shape[1:]), np.float32)
            self._rows[name][self.steps : end] = values
        self._diverged |= ~(np.isfinite(rows["loss"]) & np.isfinite(rows["grad_norm"])).all(axis=0)
        self.steps = end

    def so_far(self) -> dict[str, np.ndarray]:
        return {name: values[: self.steps] for name, values in self._rows.items()}

    def all_over(self, horizons: np.ndarray) -> bool:
        """True when no trial has anything left to learn: all diverged or past their horizon."""
        return bool(np.all(self._diverged | (self.steps >= horizons)))

    def progress(self, pace: _Pace, tokens_per_step: int) -> Progress:
        last = self._rows["loss"][self.steps - 1]
        loss = float(np.mean(last[np.isfinite(last)])) if np.isfinite(last).any() else float("nan")
        per_step = pace.seconds_per_step() or float("nan")
        left = self._total - self.steps
        return Progress(self.steps, self._total, tokens_per_step / per_step, loss, left * per_step)


def _diverged_at(metrics: Mapping[str, np.ndarray]) -> int | None:
    """First of a trial's own steps with a non-finite loss or gradient."""
    bad = np.flatnonzero(~(np.isfinite(metrics["loss"]) & np.isfinite(metrics["grad_norm"])))
    return int(bad[0]) if len(bad) else None

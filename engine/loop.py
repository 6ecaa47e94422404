"""The main loop: feed batches, dispatch, read metrics a call late, save, evaluate, make rows."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from engine import accelerators, branch, checkpoint, cull, data, optim, population, processes, step, stop
from engine import config as config_lib
from engine import lanes as lanes_lib
from engine import logs as logs_lib
from engine import mesh as mesh_lib
from engine import model as model_lib
from engine import row as row_lib
from engine.checkpoint import KEEP, Keep
from engine.config import TrainConfig
from engine.errors import InputError, require
from engine.history import History, Pace, Progress, diverged_at
from engine.optim import Hyper
from engine.profile import Profile

MAX_CALL_STEPS = 32  # steps of one call at most; fewer when a batch is large or a step takes long
CALL_TOKENS = 2**18  # tokens on the device per call, at most (or one batch)
EVAL_TOKENS = 2048  # tokens of an evaluation batch, where the training batch is smaller
CALL_SECONDS = 0.5  # aim of one call: progress and interrupts are this fine-grained


@dataclass(frozen=True)
class Result:
    """One trained model."""

    config: TrainConfig
    params: Any  # pytree of numpy arrays, as `engine.init` returns; None in a run of several processes, which leaves
    # them divided: they are in its checkpoint, for `engine.load`
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
    **how: Any,
) -> Result:
    """Trains one model. With a folder: checkpoints go there, and a run that was cut off goes on from its last.
    branch_from: another run's folder, from whose last checkpoint a new run goes on (`engine.branch`). how: further
    arguments of `train_population`.
    """
    return train_population(config, [{}], folder=folder, branch_from=branch_from, on_progress=on_progress, **how)[0]


@processes.together()
def train_population(
    config: TrainConfig,
    hypers: Sequence[Mapping[str, float]],
    *,
    folder: str | Path | None = None,
    branch_from: str | Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    save_every_s: float = 60.0,
    keep: Keep = KEEP,
    logs: str | Path | None = None,
    wandb: str | None = None,
    profile: tuple[int, int] | None = None,
    eval_every: int = 0,
    start: Sequence[model_lib.Params] | None = None,
    corpus: data.Corpus | None = None,
    judge: cull.Judge | None = None,
) -> list[Result]:
    """Trains len(hypers) models as one compiled program, all on the same batches; results in the same order.

    hypers: per trial, dotted names of `config.HYPERS` to numbers; the rest is `config`'s. folder: checkpoints, every
    save_every_s seconds, at the end, and before passing on what on_progress raises; with one there the run goes on
    from it, bit for bit as if never stopped. branch_from: a folder of another population's checkpoints, from whose
    last these trials go on if they have none of their own, bit for bit as if they had done those steps
    (`engine.branch`). keep: which checkpoints stay. logs: folder of the metrics (`engine.logs`), by default
    `folder`/logs; wandb: a Weights & Biases project for them too; profile: (first, last), steps to trace there.
    eval_every: steps between evaluations on held-out text, beside the one at the end: metrics eval_loss (nats a token)
    and eval_bpc (bits per character), NaN between.
    start: each trial's first parameters, as `engine.init` returns them, instead of drawn ones. corpus: to train on,
    instead of the one that config.data names; these two are no part of run ids. judge: gives up trials on the way
    (`engine.cull`): their rows say stopped.
    A trial whose loss or gradient stops being finite freezes and is reported as diverged; the others are untouched.
    SIGTERM, unless the caller handles it, saves at the next step and raises SystemExit(143), if there is a folder.
    In a run of several processes (`engine.processes`) all call this with the same arguments and get the same rows;
    folder must be on a file system that they share. SIGTERM to any of them, or what its on_progress raises, stops all.
    Raises InputError for impossible configs, data that can't be had, a folder of something else, or a full disk.
    """
    started = time.monotonic()
    group = processes.current()
    require(judge is None or group.count == 1, "trials are given up by runs of one process only; start a shard a host")
    group.at("the data")
    job = _prepare(config, hypers, corpus)
    run_ids = [t.run_id for t in job.trials]
    processes.same({"trials": run_ids, "tokens": job.corpus.digest, "versions": row_lib.versions()})
    history = History(job.steps, len(job.trials))
    tokenizer = None if job.corpus.tokenizer is None else job.corpus.tokenizer.to_json()
    if logs is None and folder is not None:
        logs = Path(folder) / "logs"
    with ExitStack() as stack:
        asked = stack.enter_context(stop.on_sigterm(folder))
        store = stack.enter_context(checkpoint.Checkpoints(folder, keep)) if folder is not None else None
        stack.enter_context(processes.suspecting())
        group.at("the first state")
        roster = cull.Roster(job.trials)
        state, elapsed, job = _start(job, store, history, roster, branch_from, start)
        log = stack.enter_context(logs_lib.Logs(logs, job.trials, wandb=wandb) if group.lead else logs_lib.NONE)
        log.end(roster.over)
        log.start(history.so_far())

        def save(state: step.State) -> None:
            if store is not None:
                group.at(f"the save of step {history.steps}")
                meta = {
                    **job.identity(),
                    "tokenizer": tokenizer,
                    "lanes": job.config.compute.lanes,
                    "over": {str(g): end for g, end in roster.over.items()},
                    "elapsed_s": elapsed + time.monotonic() - started,
                }
                store.save(checkpoint.Saved(history.steps, roster.everyone(state), history.so_far(), meta))

        tracing = stack.enter_context(Profile(profile, logs))
        around = _Around(
            save, save_every_s, keep.every_steps, keep.at, eval_every, log, tracing, asked, on_progress, judge
        )
        state = _advance(job, state, history, roster, around)
        if store is not None:
            store.wait()
        group.at("the evaluation")
        results = _results(job, state, history, roster, elapsed - started, folder)
        log.finish([result.row for result in results])
    return results


def _results(
    job: _Job, state: step.State, history: History, roster: cull.Roster, clock: float, folder: str | Path | None
) -> list[Result]:
    """Evaluates, and makes what `train_population` returns. clock: seconds spent before, less the moment of start."""
    eval_loss_G = evaluate(job.config, job.mesh, state.params, job.corpus.heldout)
    group = processes.current()
    params_G = jax.device_get(state.params) if group.count == 1 else None
    ends = [roster.over.get(g, (trial.steps, None)) for g, trial in enumerate(job.trials)]
    wall_s = group.agree(clock + time.monotonic()) / sum(steps for steps, _ in ends)  # a step and trial
    where = Path(folder) if folder is not None else None
    results = []
    for g, (trial, (steps, stopped)) in enumerate(zip(job.trials, ends)):
        metrics = {name: values[:steps, g] for name, values in history.so_far().items()}
        row = row_lib.make_row(
            trial,
            losses=metrics["loss"],
            eval_loss=float(eval_loss_G[g]),
            chars_per_token=job.corpus.heldout_chars_per_token,
            diverged_at=diverged_at(metrics),
            wall_s=wall_s * steps,
            stopped=stopped,
        )
        metrics = {"step": np.arange(len(metrics["loss"])), **metrics}
        params = None if params_G is None else model_lib.take_trial(params_G, g)
        results.append(Result(trial, params, metrics, row, where))
    return results


def check(config: TrainConfig, *, n_trials: int = 1) -> None:
    """Raises the InputError that training `config` with n_trials trials would start with, without training."""
    _shardings(_prepare(config, [{}] * n_trials))


def call_steps(config: TrainConfig) -> int:
    """Steps of one call of the compiled program."""
    return max(1, min(MAX_CALL_STEPS, CALL_TOKENS // config.batch_tokens))


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
        return call_steps(self.config)

    def with_lanes(self, wanted: int) -> _Job:
        config = lanes_lib.with_lanes(self.config, wanted)
        lanes = lanes_lib.choose(config, self.trials, self.mesh, self.call_steps)
        return replace(self, config=lanes_lib.with_lanes(config, lanes))

    def only(self, live: Sequence[int]) -> _Job:
        """These of its trials, as many of them together as before at most."""
        trials = [self.trials[g] for g in live]
        mesh, hyper_G = _placed(self.config, trials)
        job = replace(self, trials=trials, mesh=mesh, hyper_G=hyper_G)
        return job.with_lanes(min(self.config.compute.lanes, len(live)))

    def identity(self) -> dict[str, Any]:
        return {"trials": [t.run_id for t in self.trials], "configs": [config_lib.to_dict(t) for t in self.trials]}


def _prepare(config: TrainConfig, hypers: Sequence[Mapping[str, float]], corpus: data.Corpus | None = None) -> _Job:
    trials = population.trial_configs(config, hypers)
    corpus = corpus or data.load(config.data)
    if corpus.vocab_size > config.model.vocab_size:
        raise InputError(
            f"model.vocab_size {config.model.vocab_size} is less than the {corpus.vocab_size} ids of tokenizer "
            f"{config.data.tokenizer!r}; set model.vocab_size={corpus.vocab_size}"
        )
    return _Job(config, trials, corpus, *_placed(config, trials))


def _placed(config: TrainConfig, trials: list[TrainConfig]) -> tuple[Mesh, Hyper]:
    batch_size = config.compute.micro_batch or config.batch_size
    mesh = mesh_lib.make_mesh(config.mesh, n_trials=len(trials), batch_size=batch_size)
    return mesh, mesh_lib.put(population.stack_hypers(trials), mesh_lib.trial_sharding(mesh))


def _start(
    job: _Job,
    store: checkpoint.Checkpoints | None,
    history: History,
    roster: cull.Roster,
    branch_from: str | Path | None,
    start: Sequence[model_lib.Params] | None,
) -> tuple[step.State, float, _Job]:
    """The state to go on from and the seconds spent before: the last good checkpoint's (filling history), its own or
    else its trunk's, whose seconds are not its own, or new; and the job with its lanes, which are those of the
    checkpoint, if they still fit the mesh. The roster is told who had ended."""
    wanted = job.config.compute.lanes
    if store is not None or branch_from is not None:
        target = population.state_shapes(job.mesh, job.trials)
        saved = None if store is None else store.restore(target, check=store.of_trials(job.identity()["trials"]))
        elapsed = 0.0 if saved is None else saved.meta["elapsed_s"]
        if saved is None and branch_from is not None:
            saved = branch.trunk(branch_from, target, job.trials)
        if saved is not None:
            history.extend(saved.history)
            if saved.meta.get("over"):
                roster.end(saved.state, {int(g): tuple(end) for g, end in saved.meta["over"].items()})
            return saved.state, elapsed, job.with_lanes(wanted or saved.meta["lanes"])
    state = population.init_state(job.mesh, job.trials, job.hyper_G)
    if start is not None:
        state = state._replace(params=population.placed(job.mesh, job.trials, start))
    return state, 0.0, job.with_lanes(wanted)


@dataclass(frozen=True)
class _Around:
    """What else is done while a population trains."""

    save: Callable[[step.State], None]
    save_every_s: float
    save_every_steps: int  # at the multiples of it, beside; 0: at none
    save_at: tuple[int, ...]  # and at these steps
    eval_every: int  # as well
    log: logs_lib.Logs
    profile: Profile
    asked: stop.Asked
    on_progress: Callable[[Progress], None] | None
    judge: cull.Judge | None

    def room(self, done: int) -> int:
        """Steps until something is to be done between two steps."""
        borders = [done + every - done % every for every in (self.save_every_steps, self.eval_every) if every]
        borders += [*self.save_at, *(self.judge.at if self.judge is not None else ()), *self.profile.borders]
        return min([b for b in borders if b > done], default=sys.maxsize) - done

    def to_save(self, done: int) -> bool:
        return done in self.save_at or bool(self.save_every_steps and done % self.save_every_steps == 0)

    def stopped(self, signum: int) -> BaseException:
        """What to end the run with where another process was asked to stop."""
        if self.asked.listens:
            self.asked.set()
            return SystemExit(stop.EXIT_CODE)
        return stop.Stopped(signum)

    def request_to_stop(self, progress: Callable[[], Progress] | None) -> BaseException | None:
        """What SIGTERM or on_progress wants to end the run with. progress: None before the first metrics."""
        if self.asked.is_set():
            return SystemExit(stop.EXIT_CODE)
        if self.on_progress is not None and progress is not None:
            try:
                self.on_progress(progress())
            except BaseException as request:
                return request
        return None


def _advance(whole: _Job, state: step.State, history: History, roster: cull.Roster, around: _Around) -> step.State:
    """From history.steps to the last horizon. The hot loop: no transfer but the batches in and late metrics out.

    Saves every save_every_s, at the multiples of save_every_steps, at the end, and at a request to stop.
    """
    group = processes.current()
    config, horizons = whole.config, whole.horizons
    call_steps = whole.call_steps
    job, state, run_steps, pace = _live(whole, state, history, roster)
    within = pace.steps_within(CALL_SECONDS)
    done = saved = history.steps
    last_save = time.monotonic()
    # Metrics, steps and evaluation of the last call; read after the next is dispatched.
    unread: list[tuple[step.Metrics, int, np.ndarray | None]] = []
    peak = accelerators.peak_tokens_per_s(config, job.mesh)

    def progress() -> Progress:
        return history.progress(pace, config.batch_tokens * len(job.trials), peak)

    def read_all_but(kept: int) -> None:
        while len(unread) > kept:
            metrics, n, eval_G = unread.pop(0)
            rows = {name: rows[:n] for name, rows in step.as_dict(jax.device_get(metrics)).items()}
            if around.eval_every:
                rows |= _evaluations(eval_G, rows["loss"].shape, job.corpus.heldout_chars_per_token)
            history.extend(rows)
            pace.mark(history.steps)
            around.log.write(history.steps - n, history.so_far(history.steps - n), progress())

    with jax.transfer_guard("disallow"):
        while done < job.steps and not history.all_over(horizons):
            if around.profile.turns(done):
                read_all_but(0)
                around.profile.turn(done)
            n = min(within, call_steps, job.steps - done, around.room(done))
            group.at(f"step {done}")
            device_n = mesh_lib.put(np.int32(n), mesh_lib.replicated(job.mesh))
            state, metrics = run_steps(state, _batches(job, done, n), device_n, job.hyper_G)
            done += n
            evaluated = around.eval_every and done % around.eval_every == 0
            eval_G = evaluate(config, job.mesh, state.params, job.corpus.heldout) if evaluated else None
            unread.append((mesh_lib.readable(metrics), n, eval_G))
            read_all_but(0 if done == job.steps else 1)
            if around.judge is not None and done in around.judge.at:
                read_all_but(0)
                ends = roster.ends(history.so_far()["loss"], around.judge, history.diverged)
                if ends:
                    roster.end(state, {g: (done, why) for g, why in ends.items()})
                    around.log.end(roster.over)
                    job, state, run_steps, pace = _live(whole, state, history, roster)
            request = around.request_to_stop(progress if history.steps else None)
            late = time.monotonic() - last_save > around.save_every_s
            signum = group.told_to_stop(request)
            signum, late, within = group.agree([signum, late, pace.steps_within(CALL_SECONDS)])
            if signum or late or around.to_save(done):
                read_all_but(0)
                around.save(state)
                saved, last_save = done, time.monotonic()
            if signum:
                raise request or around.stopped(signum)
        read_all_but(0)
    if saved < done:
        around.save(state)
    if roster.over:
        state = jax.device_put(roster.everyone(state), _shardings(whole))
    return state


def _live(whole: _Job, state: step.State, history: History, roster: cull.Roster) -> tuple[_Job, step.State, Any, Pace]:
    """The job and state of the trials that still train, their compiled steps, and a pace of their own."""
    job = whole
    history.live = roster.live
    if roster.over and roster.live:
        job = whole.only(roster.live)
        state = jax.device_put(roster.of_live(), _shardings(job))
    return job, state, population.compiled_train_steps(step.program(job.config), job.mesh), Pace()


def _shardings(job: _Job) -> Any:
    return mesh_lib.state_sharding(job.mesh, job.config.model, optim.method(job.config.optim))


def _batches(job: _Job, done: int, n: int) -> jax.Array:
    """[K, B, T + 1]: the batches of the steps `done` to done + n - 1, of which this process reads its own sequences."""
    config, seq_len = job.config, job.config.data.seq_len
    batches = np.zeros((job.call_steps, config.batch_size, seq_len + 1), np.int32)
    sharding = mesh_lib.batch_sharding(job.mesh, steps_axis=True)
    ours = mesh_lib.own_rows(sharding, batches.shape, axis=1)
    at = (np.arange(done, done + n)[:, None] * config.batch_size + np.asarray(ours)).ravel().astype(np.uint64)
    rows = data.sequences_at(job.corpus.train, seq_len=seq_len, seed=config.data.seed, at=at)
    batches[:n, ours.start : ours.stop] = rows.reshape(n, len(ours), seq_len + 1)
    return mesh_lib.put(batches, sharding)


def _evaluations(eval_G: np.ndarray | None, shape: tuple[int, ...], chars_per_token: float) -> dict[str, np.ndarray]:
    """Columns [n, G] of n steps: what was found after the last."""
    loss = np.full(shape, np.nan, np.float32)
    if eval_G is not None:
        loss[-1] = eval_G
    return {"eval_loss": loss, "eval_bpc": loss / np.float32(np.log(2) * chars_per_token)}


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
        nll_G = eval_step(params_G, mesh_lib.put(tokens, sharding), mesh_lib.put(weights, sharding))
        with jax.transfer_guard("allow"):
            total = total + np.asarray(mesh_lib.readable(nll_G), np.float64)
    return total / (len(starts) * seq_len)

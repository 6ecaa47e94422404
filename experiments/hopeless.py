"""Which trials of a sweep are hopeless, by their learning curves: the rule behind `sweep run --stop-hopeless 2%`.

Runs of one cell (N, D) read the same text in the same order, whatever their batch size, so their losses are comparable
at equal tokens. When a share of the run is done, let g be by how much the log of a trial's loss is above a rival's; it
ends y above it. Regressed on finished pairs, at each share by itself: y = a g + b ln(lr / lr') + c ln(B / B') + noise
(what is due to a higher learning rate, or a smaller batch, goes away as the rate decays), the noise's scale s the root
of S^2 + g^2 times an unknown. The prior is wide and conjugate, so the prediction is a Student t, and wider the fewer
runs have finished. A trial may end when it comes within X of the final loss of one of its rivals with a probability
below CHANCE. Rivals are the trial of its batch size with the lowest loss then, and the best finished run of the cell.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine import config as config_lib
from engine.cull import Judge
from experiments.plan import Chunk, trial_flops
from experiments.runner import LOGS, Trainer
from experiments.store import Row, Store

if TYPE_CHECKING:
    from engine import Progress
    from engine.config import TrainConfig

LEAST = 0.02  # X at the least: laws take a stopped run for one that ends so far above the best
SHARES = tuple(k / 10 for k in range(1, 10))  # of a run, at which is asked
WINDOW = 0.1  # of the run: losses are means over the last steps of it
CHANCE = 0.01  # that a trial which ends would have come within X of the best
S = 0.02  # the noise's unit: about its size where g is nought, in units of SCALE
GROWTH = (0.1, 0.2, 0.4, 0.8)  # how it may grow with g: S^2 + (growth g)^2; weighed by how well each predicts
# Of (a, b, c) and of the noise: normal, inverse gamma. Wide: with them alone only a trial that is far off may end.
MEAN, SD = np.array([0.7, 0.0, 0.0]), np.array([0.3, 0.05, 0.05])
SCALE, WEIGHT = 0.3, 4.0  # of the noise, worth so many pairs
MOST = 2000  # finished runs that are learnt from: the nearest in N and D


@dataclass(frozen=True)
class Curve:
    """A finished run."""

    config: TrainConfig
    at: np.ndarray  # log of its loss at SHARES
    final: float  # log of its final loss

    @property
    def cell(self) -> tuple[str, int, float]:
        return cell(self.config)


def cell(config: TrainConfig) -> tuple[str, int, float]:
    """Runs of one cell are comparable: recipe, N and D."""
    from engine import sizes

    return config.recipe, sizes.non_embedding_params(config.model), config.tokens


def at_shares(loss: np.ndarray) -> np.ndarray:
    """Log of the mean loss [share, ...] over the last steps at each of SHARES, of losses [steps, ...]."""
    n = len(loss)
    return np.log([_mean(loss, round(share * n), n) for share in SHARES])


def _mean(loss: np.ndarray, done: int, steps: int) -> np.ndarray:
    return loss[max(0, done - max(1, round(WINDOW * steps))) : done].mean(axis=0, dtype=np.float64)


class Finished:
    """The finished runs of a results folder."""

    def __init__(self, trials: Sequence[TrainConfig], folder: Store):
        self._trials = {t.run_id: t for t in trials}
        self._folder = folder
        self._known: dict[str, Curve | None] = {}

    def curves(self) -> list[Curve]:
        """All of them, as the folder stands."""
        rows = self._folder.read(["loss"])
        if rows.empty:
            return []
        rows = rows[rows["status"] == "ok"]
        for run_id, loss in zip(rows["run_id"], rows["loss"]):
            if run_id not in self._known:
                self._known[run_id] = self._read(self._trials[run_id], loss)
        return [curve for run_id in rows["run_id"] if (curve := self._known[run_id]) is not None]

    def _read(self, config: TrainConfig, final: float) -> Curve | None:
        """None where there are no logs of it."""
        try:
            with open(self._folder.path / LOGS / config.run_id / "metrics.jsonl") as file:
                lines = [json.loads(line) for line in file]
            loss = np.array([line["loss"] for line in lines if "loss" in line])
        except (OSError, ValueError):
            return None
        return Curve(config, at_shares(loss), float(np.log(final))) if len(loss) == config.steps else None


@dataclass(frozen=True)
class Prediction:
    """y at one share, learnt, if the noise grows so with g: Student t."""

    growth: float
    mean: np.ndarray  # of (a, b, c)
    cov: np.ndarray  # theirs, in units of the noise
    scale: float  # of the noise
    freedom: float
    log_evidence: float

    def chance(self, x: np.ndarray, below: float) -> np.ndarray:
        """Probabilities [pair] that y is below that, of pairs x [pair, 3]."""
        from scipy.stats import t

        spread = self.scale * np.sqrt(_unit(x, self.growth) ** 2 + np.sum((x @ self.cov) * x, axis=1))
        return t.cdf((below - x @ self.mean) / spread, self.freedom)


def learn(x: np.ndarray, y: np.ndarray, growth: float) -> Prediction:
    """From pairs x [pair, 3] that ended y [pair] apart."""
    from scipy.special import gammaln

    unit = _unit(x, growth)
    x, y = x / unit[:, None], y / unit
    prior = np.diag((SCALE / SD) ** 2)
    precision = prior + x.T @ x
    mean = np.linalg.solve(precision, prior @ MEAN + x.T @ y)
    squares = y @ y + MEAN @ prior @ MEAN - mean @ precision @ mean
    freedom = WEIGHT + len(y)
    variance = (WEIGHT * SCALE**2 + squares) / freedom
    evidence = gammaln(freedom / 2) - freedom / 2 * np.log(freedom * variance)
    evidence -= np.linalg.slogdet(precision)[1] / 2 + np.log(unit).sum()
    return Prediction(growth, mean, np.linalg.inv(precision), float(np.sqrt(variance)), freedom, float(evidence))


def _unit(x: np.ndarray, growth: float) -> np.ndarray:
    return np.sqrt(S**2 + (growth * x[:, 0]) ** 2)


def chances(x: np.ndarray, y: np.ndarray, asked: np.ndarray, below: float) -> np.ndarray:
    """Probabilities [pair] that `asked` [pair, 3] end less than `below` apart, after pairs x that ended y apart."""
    found = [learn(x, y, growth) for growth in GROWTH]
    evidence = np.array([p.log_evidence for p in found])
    weights = np.exp(evidence - evidence.max())
    return sum(w * p.chance(asked, below) for w, p in zip(weights / weights.sum(), found))


def pairs(curves: Sequence[Curve], share: int) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of finished runs and their rivals, when SHARES[share] was done."""
    found: list[tuple[np.ndarray, float]] = []
    cells: dict[tuple, list[Curve]] = {}
    for curve in curves:
        cells.setdefault(curve.cell, []).append(curve)
    for members in cells.values():
        best = min(members, key=lambda c: c.final)
        for one in members:
            alike = [c for c in members if c.config.batch_size == one.config.batch_size]
            leader = min(alike, key=lambda c: c.at[share])
            for rival in {id(leader): leader, id(best): best}.values():
                if rival is not one:
                    gap = one.at[share] - rival.at[share]
                    found.append((features(gap, one.config, rival.config), one.final - rival.final))
    return np.array([x for x, _ in found]).reshape(-1, 3), np.array([y for _, y in found])


def features(gap: float, config: TrainConfig, rival: TrainConfig) -> np.ndarray:
    logs = (np.log(config.optim.lr / rival.optim.lr), np.log(config.batch_size / rival.batch_size))
    return np.array([gap, *logs])


def stopping(trainer: Trainer, finished: Finished, within: float) -> Trainer:
    """`trainer` (`runner.train_chunk` with some of its arguments), with a judge that has seen what finished before."""

    def train(chunk: Chunk, folder: Path, on_progress: Callable[[Progress], None]) -> Sequence[Row]:
        return trainer(chunk, folder, on_progress, judge=judge(chunk, finished.curves(), within))  # type: ignore

    return train


def as_before(rows: Sequence[Row]) -> Judge | None:
    """The judge that ends the trials of one program where their rows say that they ended; None where none did."""
    ended = {g: round(_planned(row)[0] * row["flops"] / _planned(row)[1]) for g, row in enumerate(rows)}
    ended = {g: step for g, step in ended.items() if step < _planned(rows[g])[0]}
    if not ended:
        return None
    return Judge(
        tuple(sorted(set(ended.values()))),
        lambda loss, live: {g: "as before" for g in live if ended.get(g) == len(loss)},
    )


def saved(folder: Store) -> float:
    """FLOPs that were not spent on trials which ended on the way."""
    rows = folder.read(())
    if rows.empty or "stopped" not in set(rows["status"]):
        return 0.0
    rows = folder.read(["flops", "config"])
    ended = rows[rows["status"].isin(("stopped", "diverged"))].to_dict("records")
    return sum(_planned(row)[1] - row["flops"] for row in ended)


def _planned(row: Row) -> tuple[int, float]:
    """Steps and FLOPs of a row's trial if it runs to its end."""
    config = config_lib.from_json(row["config"])
    return config.steps, trial_flops(config)


def judge(chunk: Chunk, curves: Sequence[Curve], within: float) -> Judge:
    """For `engine.train_population`. curves: of the runs that had finished before. within: such as 0.02."""
    steps = chunk.base.steps
    at = {round(share * steps): k for k, share in enumerate(SHARES)}
    here = cell(chunk.base)
    best = min((c for c in curves if c.cell == here), key=lambda c: c.final, default=None)
    near = sorted(curves, key=lambda c: _distance(c, here))[:MOST]

    def verdict(loss: np.ndarray, live: Sequence[int]) -> Mapping[int, str]:
        share = at[len(loss)]
        x, y = pairs(near, share)
        now = np.log(_mean(loss, len(loss), steps))
        leader = min(live, key=lambda g: now[g], default=None)
        low: dict[int, tuple[float, float]] = {}
        for g in live:
            rivals = [] if g == leader or leader is None else [(now[leader], chunk.trials[leader])]
            rivals += [] if best is None else [(best.at[share], best.config)]
            asked = np.array([features(now[g] - loss, chunk.trials[g], rival) for loss, rival in rivals]).reshape(-1, 3)
            chance = chances(x, y, asked, np.log1p(within))
            if len(chance) and chance.min() < CHANCE:
                low[g] = float(chance.min()), float(np.expm1(asked[chance.argmin(), 0]))
        return {g: _reason(*low[g], within) for g in sorted(low, key=lambda g: low[g])}

    return Judge(tuple(sorted(at)), verdict)


def _distance(curve: Curve, here: tuple[str, int, float]) -> float:
    _, params, tokens = curve.cell
    return abs(np.log(params / here[1])) + abs(np.log(tokens / here[2]))


def _reason(chance: float, gap: float, within: float) -> str:
    return f"{gap:.1%} above a rival; ends within {within:.2g} of it with probability {chance:.1g}"

"""Grades samples: runs each against its task's tests, and says how many would pass.

pass@k is the unbiased estimator of Chen et al. 2021 (arXiv 2107.03374): of n samples of a task with c right, the
chance that k of them drawn without replacement hold a right one. Its uncertainty is that of a hierarchy: a task's rate
of right samples is Beta distributed over tasks, and c binomial. The Beta's mean has a flat prior on (0, 1) and its
precision a log-uniform one on (0.2, 500); both are integrated over a grid, so no sampler has to settle.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import betaln, comb, logsumexp

from experiments.code.sandbox import Limits, Outcome, run_many
from experiments.code.tasks import Sample, Task, programs
from experiments.errors import InputError

LIMITS = Limits(output_bytes=1 << 18)
_MEANS = (np.arange(400) + 0.5) / 400
_PRECISIONS = np.geomspace(0.2, 500.0, 60)


@dataclass(frozen=True)
class Grade:
    """status: passed, wrong (ran, but its output is not the one wanted, or it left before its tests ended), or the
    `Outcome`'s. reason: one line, empty for passed."""

    task_id: str
    status: str
    reason: str = ""

    @property
    def passed(self) -> bool:
        return self.status == "passed"


@dataclass(frozen=True)
class Score:
    """estimate: unbiased, the mean over tasks. these: the central credible interval of that mean for these tasks, were
    there endless samples. others: for other tasks like these."""

    k: int
    estimate: float
    these: tuple[float, float]
    others: tuple[float, float]
    level: float


def grade(
    tasks: Sequence[Task],
    samples: Sequence[Sample],
    *,
    limits: Limits = LIMITS,
    workers: int | None = None,
    throwaway_vm: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Grade]:
    """One grade a sample, in order. A sample with several cases runs until one fails. Raises InputError as
    `sandbox.run_many` does."""
    by_id = {task.task_id: task for task in tasks}
    word = secrets.token_hex(8)
    todo = {i: programs(by_id[sample.task_id], sample, word) for i, sample in enumerate(samples)}
    grades: dict[int, Grade] = {}
    case = 0
    while todo:
        waiting = list(todo)
        for start in range(0, len(waiting), 256):  # outputs of so many are held at once
            part = waiting[start : start + 256]
            runs = [todo[i][case][0] for i in part]
            outcomes = run_many(runs, limits=limits, workers=workers, throwaway_vm=throwaway_vm)
            for i, outcome in zip(part, outcomes):
                status, reason = judged(outcome, todo[i][case][1], word)
                if status != "passed" or case + 1 == len(todo[i]):
                    grades[i] = Grade(samples[i].task_id, status, reason)
                    del todo[i]
            if progress:
                progress(len(grades), len(samples))
        case += 1
    return [grades[i] for i in range(len(samples))]


def judged(outcome: Outcome, wanted: str | None, word: str) -> tuple[str, str]:
    """(status, reason) of a run; wanted: the stdout it should have, None where it should end by saying `word`."""
    if outcome.status != "ok":
        return outcome.status, outcome.reason
    if wanted is None:
        said = outcome.stdout.rstrip("\n").rpartition("\n")[2].endswith(word)
        return ("passed", "") if said else ("wrong", "it ended before its tests did")
    got, want = outcome.stdout.split(), wanted.split()
    if got == want:
        return "passed", ""
    at = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), min(len(got), len(want)))
    words = [f"{x[at][:40]!r}" if at < len(x) else "nothing" for x in (got, want)]
    return "wrong", f"word {at + 1} of its output is {words[0]}, and should be {words[1]}"


def counts(grades: Sequence[Grade]) -> dict[str, tuple[int, int]]:
    """Task -> (samples, those that passed)."""
    found: dict[str, tuple[int, int]] = {}
    for one in grades:
        n, c = found.get(one.task_id, (0, 0))
        found[one.task_id] = (n + 1, c + one.passed)
    return found


def pass_at_k(n: np.ndarray, c: np.ndarray, k: int) -> np.ndarray:
    """Of each task with n samples, c of them right: the unbiased estimate of the chance that one of k is right.
    Raises InputError where a task has fewer than k samples."""
    n, c = np.asarray(n), np.asarray(c)
    if k < 1 or n.size == 0 or k > n.min():
        raise InputError(f"pass@{k} needs {k} samples of each task; the fewest are {n.min() if n.size else 0}")
    return 1.0 - comb(n - c, k) / comb(n, k)


def score(
    counted: Mapping[str, tuple[int, int]], k: int, *, level: float = 0.9, draws: int = 4000, seed: int = 0
) -> Score:
    """pass@k over tasks (task -> (samples, passed)), with credible intervals."""
    n, c = np.array(list(counted.values())).reshape(-1, 2).T
    estimate = float(pass_at_k(n, c, k).mean())
    these, others = posterior(n, c, k, draws, seed)
    tails = [(1 - level) / 2, (1 + level) / 2]
    edges = [tuple(float(x) for x in np.quantile(drawn, tails)) for drawn in (these, others)]
    return Score(k, estimate, (edges[0][0], edges[0][1]), (edges[1][0], edges[1][1]), level)


def posterior(n: np.ndarray, c: np.ndarray, k: int, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws of pass@k: the mean over these tasks, and over all tasks that these are a sample of."""
    rng = np.random.default_rng(seed)
    mean, precision = (x.ravel() for x in np.meshgrid(_MEANS, _PRECISIONS))
    a, b = mean * precision, (1 - mean) * precision
    kinds, times = np.unique(np.stack([n, c]), axis=1, return_counts=True)  # tasks of the same counts are one term
    log = sum(t * (betaln(a + ci, b + ni - ci) - betaln(a, b)) for (ni, ci), t in zip(kinds.T, times))
    at = rng.choice(len(mean), size=draws, p=np.exp(log - logsumexp(log)))
    a, b = a[at], b[at]
    these = np.mean([1 - (1 - rng.beta(a + ci, b + ni - ci)) ** k for ni, ci in zip(n, c)], axis=0)
    others = 1 - np.exp(betaln(a, b + k) - betaln(a, b))
    return these, others

"""What a model gets right of originals and of their partners, and how much less of the partners.

The drop is pass@1 on originals less pass@1 on partners, over the same pairs. Its posterior is a Bayesian bootstrap over
pairs (Rubin 1981: Dirichlet weights on the pairs' own rates), with half a pair in each corner (both, neither, one of
the two) as prior; with one sample a problem that is Jeffreys' Dirichlet on the four counts. So intervals are of other
pairs like these, pairing counts, and ten pairs all alike do not make it certain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from experiments.code import grading
from experiments.code.ctf.problems import SIDES, Pair, Problem, code_in, task
from experiments.code.tasks import Sample, Task
from experiments.errors import InputError

if TYPE_CHECKING:
    from engine import Trained

_CORNERS = np.array([[1, 1], [1, 0], [0, 1], [0, 0]])
PER_BATCH = 32  # prompts that a model continues at once


@dataclass(frozen=True)
class Interval:
    """estimate: of these pairs as they are. low, high: of the posterior's central interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Report:
    """pass@1 on both sides, the drop, the chance that it is above zero, and pairs by what was right in most samples."""

    pairs: int
    original: Interval
    partner: Interval
    drop: Interval
    above_zero: float
    level: float
    both: int
    only_original: int
    only_partner: int
    neither: int


def asked(pairs: Sequence[Pair], prompt: str) -> list[Task]:
    """Originals and partners as tasks, `PAIR_ID/original` and `PAIR_ID/partner`."""
    return [task(replace(_side(pair, side), problem_id=f"{pair.pair_id}/{side}"), prompt)
            for pair in pairs for side in SIDES]  # fmt: skip


def _side(pair: Pair, side: str) -> Problem:
    return pair.original if side == "original" else pair.partner


def written(
    trained: Trained,
    tasks: Sequence[Task],
    *,
    samples: int = 1,
    temperature: float = 0.0,
    max_new_tokens: int = 512,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Sample]:
    """What a model answers, `samples` times each. Raises InputError for a model that writes no text."""
    import engine

    tokenizer = trained.tokenizer
    if tokenizer is None:
        raise InputError("the model has no tokenizer, so it writes no text; give samples instead")
    ids = tokenizer.encode_batch([one.prompt for one in tasks])
    order = sorted(range(len(tasks)), key=lambda i: len(ids[i]))  # prompts of about a length together
    found: list[Sample] = []
    for number in range(samples):
        for start in range(0, len(order), PER_BATCH):
            part = order[start : start + PER_BATCH]
            filled = part + [part[-1]] * (PER_BATCH - len(part))  # one program for the last batch, too
            made = engine.generate(
                trained.model,
                trained.params,
                [ids[i] for i in filled],
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=(seed * 100_003 + number * 1009 + start) % 2**32,
                stop=tokenizer.separator,
            )
            found += [Sample(tasks[i].task_id, tokenizer.decode(new)) for i, new in zip(part, made)]
            if progress:
                progress(len(found), samples * len(tasks))
    return found


def graded(tasks: Sequence[Task], samples: Sequence[Sample], **how: object) -> list[grading.Grade]:
    """Grades, in order; of an answer with fenced code the code counts. how: of `grading.grade`."""
    return grading.grade(tasks, [replace(one, text=code_in(one.text)) for one in samples], **how)  # type: ignore[arg-type]


def report(pairs: Sequence[Pair], grades: Sequence[grading.Grade], *, level: float = 0.9, seed: int = 0) -> Report:
    """Raises InputError for a problem without a sample."""
    counted = grading.counts(grades)
    rates = np.array([[_rate(counted, f"{pair.pair_id}/{side}") for side in SIDES] for pair in pairs])
    draws = posterior(rates, seed=seed)
    tails = [(1 - level) / 2, (1 + level) / 2]

    def interval(estimate: float, values: np.ndarray) -> Interval:
        low, high = np.quantile(values, tails)
        return Interval(estimate, float(low), float(high))

    mean = rates.mean(axis=0)
    kinds = Counter((bool(a > 0.5), bool(b > 0.5)) for a, b in rates)
    return Report(
        pairs=len(pairs),
        original=interval(float(mean[0]), draws[:, 0]),
        partner=interval(float(mean[1]), draws[:, 1]),
        drop=interval(float(mean[0] - mean[1]), draws[:, 0] - draws[:, 1]),
        above_zero=float(np.mean(draws[:, 0] > draws[:, 1])),
        level=level,
        both=kinds[True, True],
        only_original=kinds[True, False],
        only_partner=kinds[False, True],
        neither=kinds[False, False],
    )


def posterior(rates: np.ndarray, *, draws: int = 20_000, seed: int = 0) -> np.ndarray:
    """Draws [draws, 2] of the two sides' pass@1 over pairs like those of `rates` [pairs, 2]."""
    rng = np.random.default_rng(seed)
    kinds, times = np.unique(np.concatenate([rates, _CORNERS]), axis=0, return_counts=True)
    corner = (kinds[:, None] == _CORNERS).all(axis=2).any(axis=1)
    return rng.dirichlet(times - 0.5 * corner, size=draws) @ kinds


def _rate(counted: Mapping[str, tuple[int, int]], name: str) -> float:
    if name not in counted:
        raise InputError(f"there is no sample of {name}; each pair needs samples of both its sides")
    n, c = counted[name]
    return c / n

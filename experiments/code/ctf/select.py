"""Which counterfactual samples to add to training data (CTF-Instruct, arXiv 2505.14597): three measures.

Sensitivity is by construction: every sample is the partner of an original. Difficulty is a score from 0 to 5; the
hardest share is kept. Diversity is k-center greedy among these: the original data's embeddings are the first centres;
then always the sample farthest from all centres. That gives an order, and every prefix of it is a selection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments.code import grading
from experiments.code.ctf import embed, evaluate
from experiments.code.ctf.problems import ALPACA, Problem, task
from experiments.errors import InputError

if TYPE_CHECKING:
    from engine import Trained

NO_SCORE = 2.0  # where a scorer gives none, as in the paper's code
SCORER = (
    "You are a helpful assistant. Please identify the complexity score of the following user query.\n"
    "##Query: {}\n##Complexity: "
)
BLOCK = 2048  # samples that are chosen among before all distances are brought up to date
_ROWS = 4096
_ZERO = 1e-6  # squared distances below this share of the largest squared norm are rounding


def text(problem: Problem) -> str:
    """What a sample's embedding is of: prompt and response together."""
    return ALPACA.format(problem.statement) + problem.solution


# --- diversity -------------------------------------------------------------------------------------------------------


def k_center(new: np.ndarray, centres: np.ndarray, k: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The order in which samples are farthest from all centres before: indices [m] and distances [m] (Euclidean,
    falling). new: [n, D]. centres: [c, D], those to begin with. It ends at k, or where no distance is above zero.

    Exact, but in blocks: distances only fall, so among the BLOCK farthest samples the next may be chosen, with the
    distances among these alone, until one that is not among them could be farther. Then all are compared with the
    chosen in one product of matrices.
    """
    new, centres = np.asarray(new, np.float32), np.asarray(centres, np.float32)
    if new.ndim != 2 or centres.ndim != 2 or new.shape[1] != centres.shape[1] or not len(centres):
        raise InputError(f"embeddings are {list(new.shape)} and {list(centres.shape)}; both [n, D] with one D, n >= 1")
    k = len(new) if k is None else min(k, len(new))
    middle = centres.mean(axis=0)
    x, centres = new - middle, centres - middle
    left = np.arange(len(x))  # original index of each row of x
    far = _squared(x, centres)
    zero = _ZERO * max(float(np.max(np.sum(x * x, axis=1), initial=0.0)), float(np.max(np.sum(centres**2, axis=1))))
    order: list[int] = []
    distances: list[float] = []
    while len(order) < k and len(x) and far.max() > zero:
        block = np.argpartition(-far, BLOCK)[:BLOCK] if len(far) > BLOCK else np.arange(len(far))
        block.sort()  # equal distances: the first sample
        outside = float(np.delete(far, block).max(initial=-1.0)) if len(far) > BLOCK else -1.0
        here = far[block].copy()
        among = _all_squared(x[block])
        chosen: list[int] = []
        while len(order) < k:
            j = int(np.argmax(here))
            if here[j] <= zero or here[j] < outside:
                break
            chosen.append(j)
            order.append(int(left[block[j]]))
            distances.append(float(np.sqrt(here[j])))
            np.minimum(here, among[j], out=here)
            here[j] = -1.0
        picked = block[chosen]
        np.minimum(far, _squared(x, x[picked]), out=far)
        far[picked] = -1.0
        if np.count_nonzero(far < 0) * 8 > len(far):
            keep = far >= 0
            x, far, left = x[keep], far[keep], left[keep]
    return np.asarray(order, np.int64), np.asarray(distances)


def _squared(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared distance of each row of x to the nearest centre."""
    best = np.full(len(x), np.inf, np.float32)
    # |x - c|^2 - |x|^2 = |c|^2 - 2 x.c, as one product of rows with a one behind them
    ahead = np.concatenate([-2 * centres, np.sum(centres * centres, axis=1, keepdims=True)], axis=1).T
    ones = np.ones((min(len(x), _ROWS), 1), np.float32)
    for start in range(0, len(x), _ROWS):
        rows = x[start : start + _ROWS]
        rows = np.concatenate([rows, ones[: len(rows)]], axis=1)
        for at in range(0, ahead.shape[1], _ROWS):
            np.minimum(best[start:][:_ROWS], (rows @ ahead[:, at : at + _ROWS]).min(axis=1),
                       out=best[start:][:_ROWS])  # fmt: skip
    return np.maximum(best + np.sum(x * x, axis=1), 0.0)


def _all_squared(x: np.ndarray) -> np.ndarray:
    norms = np.sum(x * x, axis=1)
    return np.maximum(norms[:, None] + norms[None, :] - 2 * x @ x.T, 0.0)


# --- difficulty ------------------------------------------------------------------------------------------------------


def difficulty(trained: Trained, problems: Sequence[Problem], *, samples: int = 1, max_new_tokens: int = 256,
               **how: object) -> np.ndarray:  # fmt: skip
    """From 0 to 5: five times the mean of a sample's failure rate in the sandbox and of the rank of the loss of its
    reference solution among all samples' (0: least, 1: most). how: of `grading.grade`."""
    losses = embed.response_loss(
        trained, [ALPACA.format(p.statement) for p in problems], [p.solution for p in problems]
    )
    tasks = [task(problem) for problem in problems]
    temperature = 0.0 if samples == 1 else 0.8
    written = evaluate.written(trained, tasks, samples=samples, temperature=temperature, max_new_tokens=max_new_tokens)
    counted = grading.counts(evaluate.graded(tasks, written, **how))
    failed = np.array([1 - c / n for n, c in (counted[one.task_id] for one in tasks)])
    return 5 * (failed + _ranks(losses)) / 2


def _ranks(values: np.ndarray) -> np.ndarray:
    """0 for the least, 1 for the largest; NaN, of texts too long to read, largest; equal ones the same."""
    values = np.where(np.isnan(values), np.inf, values)
    ordered = np.sort(values)
    middle = (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right") - 1) / 2
    return middle / max(len(values) - 1, 1)


def expected_digit(trained: Trained, statements: Sequence[str]) -> np.ndarray:
    """A scorer model's score: the mean of the digits 0 to 5 by their probabilities as the first token of its answer
    (XCoder's complexity scorer is asked like this); NO_SCORE where its tokenizer has no digit in one token."""
    assert trained.tokenizer is not None
    digits = [(value, ids[0]) for value, ids in enumerate(map(trained.tokenizer.encode, "012345")) if len(ids) == 1]
    if not digits:
        return np.full(len(statements), NO_SCORE)
    logits = embed.last_logits(trained, [SCORER.format(one) for one in statements], [id_ for _, id_ in digits])
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    found = weights @ np.array([value for value, _ in digits]) / weights.sum(axis=1)
    return np.where(np.isfinite(found), found, NO_SCORE)


def hardest(scores: np.ndarray, share: float) -> np.ndarray:
    """Indices of the hardest share, at least one, in their order."""
    count = max(1, round(share * len(scores)))
    return np.sort(np.argsort(-scores, kind="stable")[:count])

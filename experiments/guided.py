"""Of a grid only the trials that say most of a target scale: the design chooses a batch, it is trained, and so on.

A folder of `sweep run` that also holds DIR/design.json, the batches chosen so far. A batch is a function of the rows
before it, and it is written down before it is trained: so a killed run goes on with the same trials, and ends alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from engine import sizes
from engine.config import TrainConfig
from experiments.errors import InputError
from experiments.plan import trial_flops
from experiments.store import Store, write_atomic
from laws import design
from laws.design import Belief

FILE = "design.json"


@dataclass(frozen=True)
class Design:
    """What DIR/design.json holds."""

    batches: tuple[tuple[str, ...], ...]  # run ids
    flops: float | None  # that may be spent; None in files of older versions, like the next two
    left_flops: float = 0.0  # of the last batch
    finished: bool = False  # nothing more to train within the budget

    @property
    def left(self) -> tuple[str, ...]:
        """The batch that is to be trained now."""
        return () if self.finished or not self.batches else self.batches[-1]

    def as_dict(self) -> dict[str, Any]:
        return {"flops": self.flops, "batches": len(self.batches), "finished": self.finished}


@dataclass(frozen=True)
class Goal:
    """What is to be known, and for how much."""

    targets: pd.DataFrame  # params, tokens, perhaps params_active: where the best setting is wanted
    flops: float  # to be spent on trials at most
    batch: int = 16  # trials chosen at a time
    cohort: int = 1  # of which so many train in one program
    target: str = "loss"  # or eval_loss, bpc
    seed: int = 1  # of the first batch


@dataclass(frozen=True)
class State:
    """Where a folder is."""

    batch: tuple[str, ...]  # run ids to train next; none when the goal is reached
    spent: float  # FLOPs
    belief: Belief | None  # None before any row


def offer(trials: Sequence[TrainConfig]) -> pd.DataFrame:
    """The trials as candidates of the design, by run id."""
    rows = [
        {
            "params": float(sizes.non_embedding_params(t.model)),
            "params_active": float(sizes.active_params(t.model)),
            "tokens": float(t.tokens),
            "lr": t.optim.lr,
            "batch_tokens": float(t.batch_tokens),
            "flops": trial_flops(t),
        }
        for t in trials
    ]
    table = pd.DataFrame(rows, index=[t.run_id for t in trials])
    return table if (table["params_active"] < table["params"]).any() else table.drop(columns="params_active")


def states(goal: Goal, trials: Sequence[TrainConfig], folder: Store) -> Iterator[State]:
    """Every time that it is asked on, the rows of the batch before must be there; the last has no batch."""
    table = offer(trials)
    before = read_design(folder)
    chosen = [list(batch) for batch in before.batches] if before else []
    while True:
        state = _state(goal, table, folder, chosen)
        if state.batch and (not chosen or list(state.batch) != chosen[-1]):
            chosen.append(list(state.batch))
        noted = {
            "batches": chosen,
            "flops": goal.flops,
            "left_flops": float(table["flops"].loc[list(state.batch)].sum()),
            "finished": not state.batch,
        }
        write_atomic(folder.path / FILE, lambda file, noted=noted: file.write(json.dumps(noted).encode()))
        yield state
        if not state.batch:
            return


def _state(goal: Goal, table: pd.DataFrame, folder: Store, chosen: Sequence[Sequence[str]]) -> State:
    rows = folder.read([goal.target, "flops"])
    done = dict(zip(rows["run_id"], range(len(rows)))) if len(rows) else {}
    spent = float(rows["flops"].sum()) if len(rows) else 0.0
    begun = [run_id for run_id in (chosen[-1] if chosen else ()) if run_id not in done]
    runs = table.loc[list(done)].assign(**_outcome(rows, goal.target)) if done else table[:0].assign(status="")
    runs = runs[runs["status"] != "failed"].reset_index(drop=True)
    space = design.make_space(table, goal.targets)
    belief = design.fit(space, runs, target=goal.target) if len(runs) else None
    if begun:
        return State(tuple(chosen[-1]), spent, belief)
    left = table[~table.index.isin(list(done))]
    room = goal.flops - spent
    if left.empty or not (left["flops"] <= room).any():
        if not done:
            raise InputError(
                f"--flops {goal.flops:.3g} is less than any trial takes: {left['flops'].min():.3g}; raise it"
            )
        return State((), spent, belief)
    if belief is None:
        picked = design.first(left, batch=goal.batch, seed=goal.seed)
        picked = picked[np.cumsum(left["flops"].to_numpy()[picked]) <= room]
    else:
        picked, _ = design.choose(belief, left, goal.targets, batch=goal.batch, flops=room, cohort=goal.cohort)
    return State(tuple(left.index[picked]), spent, belief)


def _outcome(rows: pd.DataFrame, target: str) -> Mapping[str, np.ndarray]:
    """Losses, of finished runs alone, and what became of all."""
    ok = (rows["status"] == "ok").to_numpy()
    return {target: np.where(ok, rows[target].to_numpy(float), np.nan), "status": rows["status"].to_numpy()}


def read_design(folder: Store) -> Design | None:
    """None where there is none. Raises InputError for a damaged file."""
    file = folder.path / FILE
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_bytes())
        batches = tuple(tuple(str(run_id) for run_id in batch) for batch in found["batches"])
        return Design(batches, found.get("flops"), found.get("left_flops", 0.0), found.get("finished", False))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged ({error}); delete it: the next batch is then chosen anew") from None

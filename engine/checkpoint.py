"""Checkpoints: Orbax for the arrays, our own digests for the truth.

Orbax commits a step atomically but returns wrong values for a flipped byte without a word. So a digest of every leaf
(`engine.digest`) is stored with it and verified when it is read; a bad step is named, removed, and the one before is
used. Of several processes each writes and reads its own parts of the arrays, and what it finds counts for all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from engine import digest, processes
from engine.errors import InputError, require

log = logging.getLogger("stepseer.engine")

FORMAT = 2  # 1: BLAKE2 digests of the state's whole arrays


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the newest, and beside them some for good. Fewer than two leave none to fall back on."""

    newest: int = 2
    every_steps: int = 0  # save at the multiples of it, and keep those; 0: none
    every_hours: float = 0.0  # keep the first, and the first after every so many hours; 0: none
    at: tuple[int, ...] = ()  # save at these steps, and keep those

    def __post_init__(self) -> None:
        require(self.newest >= 1, f"keep.newest is {self.newest}; it must be at least 1")
        require(self.every_steps >= 0, f"keep.every_steps is {self.every_steps}; it must be zero or more")
        require(
            math.isfinite(self.every_hours) and self.every_hours >= 0,
            f"keep.every_hours is {self.every_hours}; it must be zero or more",
        )


KEEP = Keep()


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds. `meta` is JSON: `trials` (run ids), `configs`, `tokenizer` (as JSON; null where tokens
    are no text), `lanes`, `over` (trials that ended on the way: steps done and why, `engine.cull`), `elapsed_s`."""

    step: int
    state: Any
    history: dict[str, np.ndarray]  # metrics of the steps done, [steps, G]
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints of one population, in one folder. Saves are asynchronous; leaving the `with` block waits.

    read_only: nothing is saved, made or removed.
    """

    def __init__(self, folder: str | Path, keep: Keep = KEEP, *, read_only: bool = False):
        import orbax.checkpoint as ocp

        self.folder = Path(folder).absolute()
        self._ocp = ocp
        self._read_only = read_only
        self._group = group = processes.current()
        # All by name: else Orbax's barriers are collectives, which have no timeout.
        everybody = set(range(group.count)) if group.count > 1 else None
        options = ocp.CheckpointManagerOptions(
            preservation_policy=None if read_only else _policy(keep),
            create=False,
            cleanup_tmp_directories=not read_only,
            enable_async_checkpointing=True,
            multiprocessing_options=ocp.options.MultiprocessingOptions(active_processes=everybody),
        )
        try:
            if not read_only:
                self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise InputError(
                f"cannot write checkpoints to {folder}: {error.strerror}; name a writable folder"
            ) from None

    def save(self, saved: Saved) -> None:
        """Starts a save. Orbax copies to the host first: the caller may donate the state to its next step at once."""
        arrays = {"state": saved.state, "history": saved.history}
        meta = {"format": FORMAT, **saved.meta, "leaves": _described(arrays)}
        args = self._ocp.args
        with self._named():
            self._manager.save(
                saved.step,
                args=args.Composite(arrays=args.StandardSave(_as_dict(arrays)), meta=args.JsonSave(_signed(meta))),
            )

    def wait(self) -> None:
        """Returns when the last save is safe."""
        with self._named():
            self._manager.wait_until_finished()

    def restore(
        self, state: Any, *, check: Callable[[int, dict[str, Any]], None], most: int = sys.maxsize
    ) -> Saved | None:
        """The newest good step, up to step `most`, or None when there is none at all.

        state: pytree of ShapeDtypeStruct with shardings (any mesh). check: given step and meta, raises InputError when
        this is not the population that is wanted (`of_trials`). Raises InputError also for steps but no good one.
        """
        saved = self._newest(state, check, most)
        if saved is not None and not self._read_only:
            for damaged in [s for s in self._steps() if s > saved.step]:
                if self._group.lead:
                    shutil.rmtree(self.folder / str(damaged), ignore_errors=True)
            self._group.gather("removed")
            self._manager.reload()
        return saved

    def read(self) -> Saved | None:
        """As `restore`, for whatever trials and optimizer: state as nested dicts of numpy arrays, named as on disk."""
        return self._newest(None, lambda step, meta: None)

    def _newest(
        self, state: Any, check: Callable[[int, dict[str, Any]], None], most: int = sys.maxsize
    ) -> Saved | None:
        bad: list[str] = []
        for step in (s for s in self._steps() if s <= most):
            saved, damage = self._tried(step, state, check)
            if saved is not None:
                return saved
            bad.append(f"step {step}: {damage}")
            log.warning("checkpoint of %s is damaged (%s); trying the one before", self.folder, bad[-1])
        if bad:
            raise InputError(
                f"no good checkpoint in {self.folder} ({'; '.join(bad)}); delete that folder to start this run anew"
            )
        return None

    def _steps(self) -> list[int]:
        """Those that there are, from the last."""
        return self._group.agree(sorted(self._manager.all_steps(), reverse=True))

    def _tried(
        self, step: int, state: Any, check: Callable[[int, dict[str, Any]], None]
    ) -> tuple[Saved | None, str | None]:
        """What `_read` finds, or how the step is damaged: for all processes, if it is for one of them."""
        saved = damage = None
        try:
            saved = self._read(step, state, check)
        except InputError:
            raise
        except Exception as error:
            # Orbax and TensorStore raise whatever a damaged file leads them to; each means: not this step.
            damage = str(error).splitlines()[0] if str(error) else type(error).__name__
        damage = next((found for found in self._group.gather(damage) if found is not None), None)
        if saved is not None and damage is None:
            damage = _difference(saved)
        return (None, damage) if damage else (saved, None)

    def newest(self) -> tuple[int, dict[str, Any]] | None:
        """Step and meta of the newest whose meta is good; None when there is none."""
        for step in self._steps():
            try:
                return step, self._meta(step)
            except Exception:  # as in `restore`
                continue
        return None

    def oldest_step(self) -> int | None:
        """None when there is none."""
        return min(self._manager.all_steps(), default=None)

    def of_trials(self, run_ids: list[str]) -> Callable[[int, dict[str, Any]], None]:
        """A check that the saved trials are these."""

        def check(_: int, meta: dict[str, Any]) -> None:
            if meta["trials"] != run_ids:
                raise InputError(
                    f"{self.folder} holds a checkpoint of other trials ({meta['trials'][0]} and so on, not "
                    f"{run_ids[0]}); name another folder"
                )

        return check

    def _read(self, step: int, state: Any, check: Callable[[int, dict[str, Any]], None]) -> Saved:
        meta = self._meta(step)
        check(step, meta)
        leaves = meta["leaves"]
        # Of numpy arrays as the target numpy arrays are made, on whatever devices and hosts they were.
        shapes = _nested(
            {name: np.broadcast_to(np.zeros((), kind), shape) for name, (shape, kind, _) in leaves.items()}
        )
        if state is None:
            # In part, for Orbax: an optimizer may have parts without arrays, of which meta says nothing.
            to_numpy = jax.tree.map(lambda _: self._ocp.RestoreArgs(restore_type=np.ndarray), shapes)
            how = self._ocp.args.PyTreeRestore(shapes, restore_args=to_numpy, partial_restore=True)
            arrays = self._item(step, "arrays", self._ocp.PyTreeCheckpointHandler, args=how)
        else:
            target = {"state": _as_dict(state), "history": shapes.get("history", {})}
            arrays = self._item(step, "arrays", self._ocp.StandardCheckpointHandler, target)
        history = {k: np.asarray(v) for k, v in arrays.get("history", {}).items()}
        if state is None:
            return Saved(step, arrays["state"], history, meta)
        flat = list(_leaves({"state": arrays["state"]}).values())
        return Saved(step, jax.tree.unflatten(jax.tree.structure(state), flat), history, meta)

    def _meta(self, step: int) -> dict[str, Any]:
        meta = self._item(step, "meta", self._ocp.JsonCheckpointHandler)
        if meta != _signed({k: v for k, v in meta.items() if k != "digest"}):
            raise ValueError("its meta data differs from its digest")
        return meta

    def _item(self, step: int, name: str, handler: Any, *target: Any, **how: Any) -> Any:
        """By Orbax's handler itself: its manager would have the processes meet, which one that fails does not."""
        folder = self.folder / str(step) / name
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no {name}")
        with contextlib.closing(handler()) as reader:
            return reader.restore(folder, *target, **how)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            with self._named():
                self._manager.close()  # waits for the last save
        except InputError as failed:
            if error is None or isinstance(error, SystemExit | KeyboardInterrupt):
                raise
            log.warning("%s", failed)  # what ended the run matters more

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """What Orbax and TensorStore raise when a save fails, be it the one before, as one InputError."""
        try:
            yield
        except Exception as error:
            # Each of the many writes of a save fails for the same reason; asyncio would print them all.
            logging.getLogger("asyncio").addFilter(lambda record: "never retrieved" not in record.getMessage())
            code = re.search(r"os_error_code='(\d+)'", str(error))
            reason = os.strerror(int(code[1])) if code else getattr(error, "strerror", None) or str(error)
            raise InputError(
                f"cannot save to {self.folder} ({' '.join(reason.split()):.200}); "
                "make room there, then the same call goes on from the last good checkpoint"
            ) from error


def _policy(keep: Keep) -> Any:
    """`keep` in Orbax's terms."""
    from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

    chosen: list[Any] = [policies.LatestN(keep.newest)]
    if keep.every_steps:
        chosen.append(policies.EveryNSteps(keep.every_steps))
    if keep.at:
        chosen.append(policies.CustomSteps(list(keep.at)))
    if keep.every_hours:
        chosen.append(policies.EveryNSeconds(max(1, round(3600 * keep.every_hours))))
    return policies.AnyPreservationPolicy(chosen)


def _leaves(tree: Any) -> dict[str, Any]:
    """Leaves by path, 'state/params/embed', in tree order."""
    pairs = jax.tree_util.tree_flatten_with_path(_as_dict(tree))[0]
    return {"/".join(str(getattr(k, "key", k)) for k in path): leaf for path, leaf in pairs}


def _nested(leaves: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `_leaves`, but for the order of leaves."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *path, last = name.split("/")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def _as_dict(tree: Any) -> Any:
    """Named tuples as dicts with numbered keys (leaf order kept), so that files don't depend on Python classes."""
    if isinstance(tree, dict):
        return {k: _as_dict(v) for k, v in tree.items()}
    if isinstance(tree, tuple):
        names = getattr(tree, "_fields", range(len(tree)))
        entries = {f"{i}_{name}": _as_dict(v) for i, (name, v) in enumerate(zip(names, tree))}
        return {k: v for k, v in entries.items() if jax.tree.leaves(v)}
    return tree


def _described(arrays: dict[str, Any]) -> dict[str, Any]:
    """Shape, dtype and digest of every leaf of {"state": ..., "history": ...}, by path."""
    leaves = _leaves(arrays)
    digests = digest.of({name: leaf for name, leaf in leaves.items() if name.startswith("state/")})
    return {
        name: [list(leaf.shape), str(leaf.dtype), digests[name] if name in digests else digest.of_bytes(leaf)]
        for name, leaf in leaves.items()
    }


def _difference(saved: Saved) -> str | None:
    """Which leaf is not what was saved; None: all are."""
    wanted = saved.meta["leaves"]
    arrays = {"state": saved.state, "history": saved.history}
    if saved.meta["format"] == 1:
        found = {name: [list(x.shape), str(x.dtype), digest.of_bytes(x)] for name, x in _leaves(arrays).items()}
    else:
        found = _described(arrays)
    other = next((name for name in {**wanted, **found} if wanted.get(name) != found.get(name)), None)
    return None if other is None else f"{other} differs from its digest"


def _signed(meta: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(meta, sort_keys=True)
    return {**json.loads(text), "digest": hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}

"""Checkpoints: Orbax for the arrays, our own digests for the truth.

Orbax commits a step atomically but returns wrong values for a flipped byte without a word. So every leaf's BLAKE2
digest is stored with it and verified when it is read; a bad step is named, removed, and the one before is used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from engine.errors import InputError

log = logging.getLogger("stepseer.engine")

FORMAT = 1
KEEP = 2  # steps kept: the newest, and one to fall back on


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds. `meta` is JSON: `trials` (run ids), `configs`, `tokenizer` (as JSON; null where tokens
    are no text), `lanes`, `elapsed_s`."""

    step: int
    state: Any
    history: dict[str, np.ndarray]  # metrics of the steps done, [steps, G]
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints of one population, in one folder. Saves are asynchronous; leaving the `with` block waits.

    read_only: nothing is saved, made or removed.
    """

    def __init__(self, folder: str | Path, *, read_only: bool = False):
        import orbax.checkpoint as ocp

        self.folder = Path(folder).absolute()
        self._ocp = ocp
        self._read_only = read_only
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else KEEP, create=not read_only, enable_async_checkpointing=True
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
        """Starts a save. Copies to the host first: the caller may donate the state to its next step at once."""
        arrays = {"state": jax.tree.map(np.array, jax.device_get(saved.state)), "history": saved.history}
        meta = {
            "format": FORMAT,
            **saved.meta,
            "leaves": {k: _describe(v) for k, v in _leaves(arrays).items()},
        }
        args = self._ocp.args
        self._manager.save(
            saved.step,
            args=args.Composite(arrays=args.StandardSave(_as_dict(arrays)), meta=args.JsonSave(_signed(meta))),
        )

    def restore(self, state: Any, *, check: Callable[[int, dict[str, Any]], None]) -> Saved | None:
        """The newest good step, or None when there is none at all.

        state: pytree of ShapeDtypeStruct with shardings (any mesh). check: given step and meta, raises InputError when
        this is not the population that is wanted (`of_trials`). Raises InputError also for steps but no good one.
        """
        saved = self._newest(state, check)
        if saved is not None and not self._read_only:
            for damaged in [s for s in self._manager.all_steps() if s > saved.step]:
                shutil.rmtree(self.folder / str(damaged), ignore_errors=True)
            self._manager.reload()
        return saved

    def read(self) -> Saved | None:
        """As `restore`, for whatever trials and optimizer: state as nested dicts of numpy arrays, named as on disk."""
        return self._newest(None, lambda step, meta: None)

    def _newest(self, state: Any, check: Callable[[int, dict[str, Any]], None]) -> Saved | None:
        bad: list[str] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return self._read(step, state, check)
            except InputError:
                raise
            except Exception as error:
                # Orbax and TensorStore raise whatever a damaged file leads them to; each means: not this step.
                bad.append(f"step {step}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
                log.warning("checkpoint of %s is damaged (%s); trying the one before", self.folder, bad[-1])
        if bad:
            raise InputError(
                f"no good checkpoint in {self.folder} ({'; '.join(bad)}); delete that folder to start this run anew"
            )
        return None

    def newest(self) -> tuple[int, dict[str, Any]] | None:
        """Step and meta of the newest whose meta is good; None when there is none."""
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return step, self._meta(step)
            except Exception:  # as in `restore`
                continue
        return None

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
        args = self._ocp.args
        meta = self._meta(step)
        check(step, meta)
        shapes = _nested(
            {name: jax.ShapeDtypeStruct(tuple(shape), dtype) for name, (shape, dtype, _) in meta["leaves"].items()}
        )
        target = {"state": shapes["state"] if state is None else state, "history": shapes.get("history", {})}
        arrays = self._manager.restore(step, args=args.Composite(arrays=args.StandardRestore(_as_dict(target))))[
            "arrays"
        ]
        for name, leaf in _leaves(arrays).items():
            if list(_describe(np.asarray(leaf))) != list(meta["leaves"].get(name, ())):
                raise ValueError(f"{name} differs from its digest")
        if state is None:
            state = jax.tree.map(np.asarray, arrays["state"])
            return Saved(step, state, jax.tree.map(np.asarray, arrays["history"]), meta)
        treedef = jax.tree.structure(state)
        flat = list(_leaves({"state": arrays["state"]}).values())
        history_values = {k: np.asarray(v) for k, v in arrays["history"].items()}
        return Saved(step, jax.tree.unflatten(treedef, flat), history_values, meta)

    def _meta(self, step: int) -> dict[str, Any]:
        args = self._ocp.args
        meta = self._manager.restore(step, args=args.Composite(meta=args.JsonRestore()))["meta"]
        if meta != _signed({k: v for k, v in meta.items() if k != "digest"}):
            raise ValueError("its meta data differs from its digest")
        return meta

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.close()  # waits for the last save


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


def _describe(leaf: np.ndarray) -> list[Any]:
    data = np.ascontiguousarray(leaf)
    digest = hashlib.blake2b(data.tobytes(), digest_size=16).hexdigest()
    return [list(leaf.shape), str(leaf.dtype), digest]


def _signed(meta: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(meta, sort_keys=True)
    return {**json.loads(text), "digest": hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}

"""A finished trial as a row of the run table, and the smoothed loss that it reports."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import math
from typing import Any

import jax
import numpy as np

from engine import config as config_lib
from engine import processes, sizes
from engine.config import TrainConfig


def smooth_loss(loss: np.ndarray) -> float:
    """Step Law's final training loss, nats per token, from the loss of every step, [steps].

    A Gaussian filter of sigma = min(100, 1% of the steps), last value (`papers`: Step Law, log_analysis.py). Its
    reflecting edge makes that a half-Gaussian average of about the last 4 sigma steps.
    """
    from scipy.ndimage import gaussian_filter1d

    return float(gaussian_filter1d(loss.astype(np.float64), sigma=min(100.0, 0.01 * len(loss)))[-1])


def make_row(
    config: TrainConfig,
    *,
    losses: np.ndarray,
    eval_loss: float,
    chars_per_token: float,
    diverged_at: int | None,
    wall_s: float,
    stopped: str | None = None,
) -> dict[str, Any]:
    """The run-table row of one trial (columns and units: the run table's schema).

    losses: training loss of every step, nats per token. diverged_at: the step of the first non-finite loss or
    gradient. wall_s: seconds, the trial's share of its program's. stopped: why it was given up before its end
    (`engine.cull`): it has no final loss then, and flops are those of the steps that it did; None: it was not.
    """
    tokens = config.steps * config.batch_tokens
    done = tokens if stopped is None else len(losses) * config.batch_tokens
    status, reason = "ok", ""
    if diverged_at is not None:
        status, reason = "diverged", f"non-finite loss or gradient at step {diverged_at} of {config.steps}"
    elif stopped is not None:
        status, reason = "stopped", f"at step {len(losses)} of {config.steps}: {stopped}"
    ended = status != "ok"
    return {
        "run_id": config.run_id,
        "recipe": config.recipe,
        "params": sizes.non_embedding_params(config.model),
        "params_active": sizes.active_params(config.model),
        "params_total": sizes.total_params(config.model),
        "tokens": tokens,
        "lr": config.optim.lr,
        "batch_tokens": config.batch_tokens,
        "seq_len": config.data.seq_len,
        "loss": math.nan if ended else smooth_loss(losses),
        "eval_loss": math.nan if ended else eval_loss,
        "bpc": math.nan if ended else eval_loss / math.log(2) / chars_per_token,
        "flops": sizes.flops_per_token(config.model, config.data.seq_len) * done,
        "status": status,
        "reason": reason,
        "d_model": config.model.d_model,
        "n_layers": config.model.n_layers,
        "n_heads": config.model.n_heads,
        "n_kv_heads": config.model.n_kv_heads,
        "d_ff": config.model.d_ff,
        "n_experts": config.model.n_experts,
        "top_k": config.model.top_k,
        "d_expert": config.model.d_expert or config.model.d_ff,
        "d_shared": config.model.d_shared,
        "n_dense_layers": config.model.n_layers - config.model.n_moe_layers,
        "vocab_size": config.model.vocab_size,
        "seed": config.seed,
        "wall_s": wall_s,
        "device": device_name(),
        "versions": versions(),
        "config": config_lib.to_json(config),
    }


def device_name() -> str:
    """Such as '1 x cpu' or '8 x NVIDIA H100 80GB HBM3'."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def versions() -> str:
    """Versions of what decides a run's numbers, JSON. Of several processes also how many: sums depend on it."""
    count = processes.current().count
    return json.dumps(_versions() | ({"processes": str(count)} if count > 1 else {}))


@functools.cache
def _versions() -> dict[str, str]:
    names = ("stepseer", "jax", "jaxlib", "flax", "optax", "numpy")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found

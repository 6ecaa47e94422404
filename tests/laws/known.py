"""Posteriors whose surface is known exactly, so that questions are tested apart from how laws predict."""

from __future__ import annotations

import numpy as np

import laws
from laws.forms import farseer_staged
from laws.posterior import Prediction, Quantity
from tests.laws.conftest import CHINCHILLA, FARSEER

HOFFMANN = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.336, "beta": 0.283}


class Known(laws.Posterior):
    """A posterior that predicts `surface(p, params, tokens)` for draws p [draw, 1]."""

    def predict(self, *, params, tokens, n_draws=None, **covariates):
        params, tokens = np.broadcast_arrays(np.asarray(params, float), np.asarray(tokens, float))
        assert (params > 0).all() and (tokens > 0).all()
        total = len(next(iter(self.draws.values())))
        chosen = np.linspace(0, total - 1, n_draws or total).round().astype(int)
        p = {k: v[chosen][:, None] for k, v in self.draws.items()}
        loss = self.meta["surface"](p, params.ravel()[None], tokens.ravel()[None])
        loss = Quantity(np.broadcast_to(loss, (len(chosen), params.size)).reshape(len(chosen), *params.shape))
        notes = [note for name, x in (("params", params), ("tokens", tokens)) for note in self._outside(name, x)]
        return Prediction(self.law, {"mean_loss": loss, "loss": loss}, notes)


def known(law: str, surface, samples: dict[str, np.ndarray], target: str = "loss") -> Known:
    ranges = {"params": [1e8, 1e10], "tokens": [1e9, 1e12]}
    meta = {
        "source": "made up",
        "rows": 30,
        "excluded": 2,
        "warnings": [],
        "target": target,
        "cells": 30,
        "tails": 20.0,
    }
    meta |= {"diagnostics": {"max_rhat": 1.0, "min_ess": 900.0, "divergences": 0.0}, "data_digest": "none"}
    shape = next(iter(samples.values())).shape
    return Known(law, samples | {"noise": np.full(shape, 5e-3)}, meta | {"ranges": ranges, "surface": surface})


def chinchilla(spread: float = 0.01, truth: dict[str, float] = CHINCHILLA, seed: int = 0, draws: int = 200) -> Known:
    """Chinchilla draws about `truth`, each coefficient by itself, `spread` relative."""
    rng = np.random.default_rng(seed)
    samples = {k: v * (1 + spread * rng.standard_normal((2, draws // 2))) for k, v in truth.items()}

    def surface(p, params, tokens):
        return p["E"] + p["A"] * params ** -p["alpha"] + p["B"] * tokens ** -p["beta"]

    return known("chinchilla", surface, samples)


def farseer() -> Known:
    """The authors' law, its coefficients at full precision; four equal draws."""
    samples = {k: np.full((2, 2), v) for k, v in FARSEER.items()}
    return known("farseer", farseer_staged.loss, samples, target="bpc")


def closed_form(p: dict[str, np.ndarray], flops: float) -> np.ndarray:
    """Chinchilla's compute-optimal N in closed form (Hoffmann et al. 2022, eq. 4)."""
    power = 1 / (p["alpha"] + p["beta"])
    return (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** power * (flops / 6) ** (p["beta"] * power)

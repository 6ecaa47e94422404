"""Posteriors: predict with numpy alone, hand over to ArviZ."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from laws import forms
from laws.asked import counts, numbers, refuse_impossible
from laws.errors import InputError

if TYPE_CHECKING:
    from laws.forms.steplaw_surface import Settings, Surface

ELEMENTS = 1_000_000  # draws times queries above which draws are thinned, to 100 at the least
STREAMS = ("lr", "batch", "loss", "kappa_0", "kappa_1", "kappa_2", "error")  # what scatters from cell to cell or run


@dataclass(frozen=True)
class Quantity:
    """A predicted quantity. draws: [n_draws, *query shape]."""

    draws: np.ndarray

    @cached_property
    def median(self) -> Any:
        """Posterior median: a float, or an array of the query's shape."""
        return plain(np.median(self.draws, axis=0))

    def interval(self, level: float = 0.9) -> tuple[Any, Any]:
        """(low, high) of the central interval of probability `level`."""
        low, high = np.quantile(self.draws, edges(level), axis=0)
        return plain(low), plain(high)


def edges(level: Any) -> tuple[float, float]:
    """The probabilities at the ends of the central interval of probability `level`."""
    if not (isinstance(level, (int, float, np.number)) and 0 < level < 1):
        raise InputError(f"level must be a number between 0 and 1, got {level!r}; for a 90% interval give 0.9")
    return (1 - level) / 2, (1 + level) / 2


def plain(x: np.ndarray) -> Any:
    """A float, where there is one number only."""
    return float(x) if np.ndim(x) == 0 else x


@dataclass(frozen=True)
class Regret(Quantity):
    """By how much the loss of settings exceeds the optimum's, relatively. warnings: sentences about queries outside the
    fitted range, and settings worse than any that was fitted."""

    warnings: list[str] = field(default_factory=list)


class Prediction:
    """Predicted quantities as attributes: `.lr`, `.batch_tokens` of steplaw; `.loss` (of a new run, noise included) and
    `.mean_loss` (the curve) of a loss law. `.warnings`: sentences about queries outside the fitted range."""

    lr: Quantity
    batch_tokens: Quantity
    loss: Quantity
    mean_loss: Quantity

    def __init__(self, law: str, quantities: Mapping[str, Quantity], warnings: list[str]):
        self.law, self.quantities, self.warnings = law, dict(quantities), warnings

    def __getattr__(self, name: str) -> Quantity:
        quantities = self.__dict__.get("quantities", {})
        if name in quantities:
            return quantities[name]
        raise AttributeError(f"{self.__dict__.get('law')} predicts {' and '.join(quantities)}, not {name!r}")

    def __repr__(self) -> str:
        return f"Prediction({self.law}: {', '.join(self.quantities)})"


@dataclass(frozen=True, eq=False)  # arrays have no one truth to compare by
class Posterior:
    """Draws of a law's parameters and what they were fitted to.

    samples: site -> [chain, draw] or [chain, draw, k]. meta: law, source, rows, excluded, ranges, center, target,
    diagnostics, versions, data_digest, seed, settings, command, warnings; steplaw: censored, reach, and active_share
    of sparse models.
    """

    law: str
    samples: dict[str, np.ndarray]
    meta: dict[str, Any]

    def __repr__(self) -> str:
        runs = self.meta.get("rows", 0) - self.meta.get("excluded", 0)
        ranges = "; ".join(f"{c} {low:.3g} to {high:.3g}" for c, (low, high) in self.meta.get("ranges", {}).items())
        n = len(next(iter(self.draws.values())))
        return f"Posterior({self.law}, {runs:,} runs of {self.meta.get('source', 'a table')}: {ranges}; {n:,} draws)"

    @cached_property
    def draws(self) -> dict[str, np.ndarray]:
        """Site -> [n] (or [n, k]), chains one after the other."""
        return {k: v.reshape(-1, *v.shape[2:]) for k, v in self.samples.items()}

    @property
    def warnings(self) -> list[str]:
        """What the fit has to say about its data."""
        return self.meta["warnings"]

    def predict(self, *, params: Any, tokens: Any, n_draws: int | None = None, **covariates: Any) -> Prediction:
        """What the law says at N = params (non-embedding) and D = tokens: numbers or arrays that broadcast.

        steplaw: `lr` and `batch_tokens` at the optimum of a new (N, D) cell. Its median is the law's; its interval
        includes the scatter of cells about the law. Loss laws: `mean_loss` and `loss`. Intervals are for each query by
        itself: one draw's scatter or noise is shared by all queries.
        covariates: what the law needs besides (`forms.get(law).COVARIATES`), such as unique_tokens or, by name, recipe
        (pooled; "new" is one of which there are no runs), or may have
        (`meta["optional"]`): params_active of a steplaw fitted to sparse models too; without it the model is dense.
        n_draws: how many draws to use; by default all, fewer (100 at least) for more than a thousand queries.
        Raises InputError for params or tokens that are not positive, finite and plausible as counts.
        """
        query, shape, draws, noise = self._ask({"params": params, "tokens": tokens} | covariates, n_draws)
        out = forms.get(self.law).predict(draws, self.meta, query, noise)
        quantities = {k: Quantity(v.reshape(len(v), *shape)) for k, v in out.items()}
        notes = self._notes(query)
        if "batch_tokens" in quantities and not self.meta.get("batch_swept", True):
            notes.append("batch_tokens is its prior, not learnt: the runs hold next to one batch size")
        return Prediction(self.law, quantities, notes)

    def of(self, recipe: str) -> Posterior:
        """pooled: the posterior of one recipe's law, a nested law, to predict from, allocate by or compare; "new": of a
        recipe of which there are no runs. Its warnings are about that recipe's own range.

        Raises InputError for a recipe that the fit did not have, and for other laws."""
        if self.law != "pooled":
            raise InputError(f"{self.law} is one law for all its runs; fit pooled to tell recipes apart")
        from laws.forms import pooled

        k = int(self._recipes(str(recipe)))
        samples = pooled.one(self.samples, k)
        ranges = self.meta["recipe_ranges"].get(recipe, self.meta["ranges"])
        return Posterior("nested", samples, self.meta | {"law": "nested", "recipe": recipe, "ranges": ranges})

    def _recipes(self, given: Any) -> np.ndarray:
        """The indices of recipes' names, as floats."""
        from laws.schema import listed, nearest

        known = self.meta["recipes"]
        names = np.asarray(given, dtype=object)
        for name in names.ravel():
            if name not in known:
                raise InputError(f"no recipe {name!r}{nearest(str(name), known)}; known: {listed(known)}")
        return np.array([known.index(name) for name in names.ravel()], float).reshape(names.shape)

    def regret(
        self, *, params: Any, tokens: Any, lr: Any, batch_tokens: Any, n_draws: int | None = None, **covariates: Any
    ) -> Regret:
        """steplaw: by how much the loss at (lr, batch_tokens) exceeds the loss at the optimum, relatively, in a new
        (params, tokens) cell. All arguments broadcast. Raises InputError as `predict` does, and for settings that a run
        table may not hold, such as a batch counted in sequences."""
        from laws.forms import steplaw_surface
        from laws.schema import refuse_settings

        surface, query, shape = self._surface(
            {"params": params, "tokens": tokens, "lr": lr, "batch_tokens": batch_tokens} | covariates, n_draws
        )
        refuse_settings(query)
        out = surface.regret(np.log(query["lr"]), np.log(query["batch_tokens"]))
        notes = self._notes({name: x for name, x in query.items() if name not in ("lr", "batch_tokens")})
        notes += steplaw_surface.doubts(surface, out, query, self.meta.get("reach", {}))
        return Regret(out.reshape(len(out), *shape), notes)

    def settings(
        self, *, params: float, tokens: float, within: float = 1e-3, n_draws: int | None = None, **covariates: Any
    ) -> Settings:
        """steplaw: the (lr, batch_tokens) of least expected regret at one scale, and the settings whose expected regret
        is at most `within` (1e-3: 0.1% of the loss): see `laws.forms.steplaw_surface.Settings`.

        Raises InputError as `predict` does, and if no setting is within `within`."""
        from laws.forms import steplaw_surface

        surface, _, shape = self._surface({"params": params, "tokens": tokens} | covariates, n_draws)
        if shape != ():
            raise InputError(f"settings answers one scale at a time, got an array of shape {shape}")
        if not (isinstance(within, (int, float, np.number)) and 0 < within < 1):
            raise InputError(f"within must be between 0 and 1, got {within!r}; give 0.001 for 0.1% of the loss")
        return steplaw_surface.settings(surface, within, f"params {params:.3g} and tokens {tokens:.3g}")

    def _surface(
        self, given: dict[str, Any], n_draws: int | None
    ) -> tuple[Surface, dict[str, np.ndarray], tuple[int, ...]]:
        from laws.forms.steplaw_surface import Surface

        if self.law != "steplaw":
            raise InputError(f"{self.law} knows no learning rates and batch sizes; ask a posterior of steplaw")
        query, shape, draws, noise = self._ask(given, n_draws)
        return Surface(draws, self.meta, query, noise), query, shape

    def _ask(
        self, asked: dict[str, Any], n_draws: int | None
    ) -> tuple[dict[str, np.ndarray], tuple[int, ...], dict[str, np.ndarray], dict[str, np.ndarray]]:
        """(column -> [query], the queries' shape, draws thinned to what so many queries need, standard-normal scores)
        from what was asked, checked."""
        form = forms.get(self.law)
        named = ("params", "tokens", *form.COVARIATES)
        given = set(asked) - {"lr", "batch_tokens"}
        optional = self.meta.get("optional", {})
        if not set(named) <= given <= {*named, *optional}:
            maybe = f" (and {', '.join(optional)} if wanted)" if optional else ""
            known = f"; recipes: {', '.join(self.meta['recipes'])}" if "recipe" in set(named) - given else ""
            raise InputError(f"{self.law} predicts from {', '.join(named)}{maybe}; got {', '.join(asked)}{known}")
        values = {name: self._values(name, x) for name, x in asked.items()}
        try:
            whole = np.broadcast_arrays(*values.values())
        except ValueError:
            shapes = " and ".join(f"{name} {np.shape(value)}" for name, value in values.items())
            raise InputError(f"{shapes} do not broadcast; give one token count a size") from None
        query = {name: x.ravel() for name, x in zip(values, whole)}
        refuse_impossible(query)
        total = len(next(iter(self.draws.values())))
        if n_draws is None:
            n_draws = min(total, max(100, ELEMENTS // max(whole[0].size, 1)))
        if not (isinstance(n_draws, (int, np.integer)) and 1 <= n_draws <= total):
            raise InputError(f"n_draws must be a whole number from 1 to {total}, got {n_draws!r}")
        chosen = np.linspace(0, total - 1, n_draws).round().astype(int)
        draws = {k: v[chosen] for k, v in self.draws.items()}
        noise = {k: scores(n_draws, k) for k in STREAMS}
        return query, whole[0].shape, draws, noise

    def _values(self, name: str, given: Any) -> np.ndarray:
        """What was asked, as numbers that are plausible; recipes as indices."""
        if name == "recipe":
            return self._recipes(given)
        return (numbers if name in ("lr", "batch_tokens") else counts)(name, given)

    def _notes(self, query: dict[str, np.ndarray]) -> list[str]:
        """Sentences about queries outside the fitted range: a recipe's own, where it has one."""
        if "recipe" not in query:
            notes = [note for name, x in query.items() for note in self._outside(name, x)]
            if "active_share" in self.meta:
                notes += self._outside("active_share", query.get("params_active", query["params"]) / query["params"])
                if "params_active" not in query:
                    notes.append("without params_active the answer is for a dense model (active_share 1)")
            return notes
        out = []
        for k in np.unique(query["recipe"]).astype(int):
            name, mine = self.meta["recipes"][k], query["recipe"] == k
            asked = {c: query[c][mine] for c in ("params", "tokens")}
            out += [f"{name}: {note}" for note in self.of(name)._notes(asked)]
        return out

    def _outside(self, column: str, values: np.ndarray) -> list[str]:
        ranges = self.meta["ranges"] | self.meta.get("optional", {}) | {"active_share": self.meta.get("active_share")}
        low, high = ranges[column]
        out = []
        for worst, decades, side in (
            (values.max(initial=high), np.log10(values.max(initial=high) / high), "above"),
            (values.min(initial=low), np.log10(low / values.min(initial=low)), "below"),
        ):
            if decades > 0.005:
                far = f"{decades:.2g} decade{'' if f'{decades:.2g}' == '1' else 's'}"
                out.append(f"{column} {worst:.3g} is {far} {side} the fitted range ({low:.3g} to {high:.3g})")
        return out

    def to_arviz(self, runs: Any = None) -> Any:
        """An arviz.InferenceData; with `runs` also what ArviZ needs to compare the fit with them: see
        `laws.exchange.to_arviz`."""
        from laws.exchange import to_arviz

        return to_arviz(self, runs)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes NetCDF4 that ArviZ reads (group `posterior`), whole or not at all. Raises InputError if it cannot."""
        from laws.saved import write

        return write(self, path)


def refuse_other(given: Any) -> None:
    """Raises InputError for what is no posterior."""
    if not isinstance(given, Posterior):
        raise InputError(f"got {given!r} for a posterior; laws.load_posterior gives one of a name or a file")


def scores(n: int, stream: str) -> np.ndarray:
    """n standard-normal scores at even quantiles in a fixed random order, one for each of STREAMS: exact margins, no
    Monte Carlo error."""
    from scipy.special import ndtri

    return np.random.default_rng(STREAMS.index(stream)).permutation(ndtri((np.arange(n) + 0.5) / n))

"""The cells of a fit and how they scatter; what a law's model is given of them.

Noise is as `laws.noise` has it. Many cells are seen through a few nodes (`laws.nodes`), fewer are padded to powers of
two: tables of like size share programs. Where losses have known errors, the noise's share of a run's variance changes
with the noise, so that no rotation of the cells does for all of its values: up to FACTORED cells their covariance is
factored anew at each, beyond that the share stays as it is at the middle of the draws.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from laws import nodes, noise
from laws.forms import discrepancy

FACTORED = 64  # cells up to which known errors have their covariance factored at every step
HIDDEN = 0.3  # of the smallest known errors, of more cells: noise below it is not looked for


@dataclass(frozen=True)
class Scatter:
    """How cells scatter, in units of the noise. weight: of each one's own precision, small far off the curve, [row];
    known: size of its known error, [row]; tails (degrees of freedom), trend and shared: of `laws.noise`."""

    weight: np.ndarray
    known: np.ndarray
    tails: float = 4.0
    trend: float = 0.0
    shared: float = 0.0

    @property
    def power(self) -> float:
        """Known precisions would tell more of the law than Student-t noise does: less, by this (Fisher information)."""
        return (self.tails + 1) / (self.tails + 3)


@dataclass(frozen=True)
class Rows:
    """The cells of a fit. data: what else the model needs; phi: features of the form error [row, feature]; cells: the
    nodes that stand for them, if any do; run: index of `grid.prepare` [row]; one: size of the noise of a mean over
    seeds [row]; error: known one [row]; compute: ln C [row]; hidden: noise below it is not looked for."""

    data: dict[str, Any]
    phi: np.ndarray
    cells: nodes.Nodes | None
    run: np.ndarray | None
    one: np.ndarray
    error: np.ndarray
    compute: np.ndarray
    hidden: float

    @classmethod
    def of(cls, data: dict[str, Any], phi: np.ndarray, cells: nodes.Nodes | None) -> Rows:
        """Of data of `grid.prepare`."""
        one = 1 / np.sqrt(data.get("seeds", np.ones(len(phi))))
        error = data.get("error", np.zeros(len(phi)))
        hidden = 0.0 if len(phi) <= FACTORED else HIDDEN * float(np.quantile(error, 0.1))
        rest = {key: value for key, value in data.items() if key not in ("run", "seeds", "error")}
        return cls(rest, phi, cells, data.get("run"), one, error, data["n"] + data["d"], hidden)

    def at_first(self, sd: float) -> Weighed:
        """Before anything is known; sd: a guess at the noise."""
        return Weighed(self, Scatter(np.ones(len(self.phi)), self.error / max(sd, self.hidden)))


@dataclass(frozen=True)
class Weighed:
    """The cells of a fit and how they scatter."""

    rows: Rows
    how: Scatter

    @cached_property
    def precision(self) -> np.ndarray:
        """[row], in units of 1 / noise^2."""
        return self.how.weight / (self._own**2 + self.how.known**2)

    @cached_property
    def _own(self) -> np.ndarray:
        return self.rows.one * np.exp(self.how.trend * self.rows.compute)

    @cached_property
    def _alone(self) -> discrepancy.Rotated:
        """Of the features, as if no rows had anything in common."""
        return discrepancy.rotate(np.sqrt(self.precision)[:, None] * self.rows.phi)

    @property
    def _dense(self) -> bool:
        """Whether the covariance is factored anew at every step."""
        return bool(self.rows.error.any()) and len(self.rows.phi) <= FACTORED

    def _parts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows, how = self.rows, self.how
        return parts(rows.phi, self._own, rows.error, how.weight, rows.run, how.shared)

    def _groups(self, power: float) -> noise.Groups | None:
        run = self.rows.run
        return None if run is None else noise.groups(power * self.precision, run, self.how.shared)

    def _rotated(self, power: float) -> discrepancy.Rotated:
        grouped = self._groups(power)
        if grouped is not None and self.how.shared:
            return discrepancy.rotate(noise.whiten(self.rows.phi, power * self.precision, grouped))
        Q, s = self._alone
        return Q, np.sqrt(power) * s

    def observed(self, power: float = 1.0, least: float = 0.0) -> dict[str, Any]:
        """What the model is given. power: to which the likelihood counts; least: spread of form error, in units of
        noise^2, below which a coordinate is left to the noise."""
        rows = self.rows
        if self._dense:
            return factored(rows.data, *self._parts(), power)
        turned, precision, grouped = self._rotated(power), power * self.precision, self._groups(power)
        return observed(rows.data, turned, precision, self.how.weight.sum(), grouped, least, power, rows.cells)

    def again(self, residual: np.ndarray, noises: np.ndarray, form_errors: np.ndarray, least: float) -> Weighed:
        """With the likeliest scatter, given residuals from the law [draw, row], noise [draw] and form error [draw]: of
        the mode (one draw), or on average over the posterior. least: degrees of freedom."""
        rows, how = self.rows, self.how
        if rows.run is not None and len(residual) == 1:
            of = residual[0], rows.phi, self.precision, rows.run, noises[0], form_errors[0]
            how = replace(how, shared=noise.likeliest_shared(*of))
        squares = self._squares(how.shared, residual, noises, form_errors)
        known = rows.error / max(float(np.median(noises)), rows.hidden)
        means = squares.mean(axis=0) / rows.one**2
        tails, trend = noise.tails_and_trend(means, rows.compute, least, (known / rows.one) ** 2)
        new = Weighed(rows, replace(how, known=known, tails=tails, trend=trend))
        weight = ((tails + 1) / (tails + squares / (new._own**2 + known**2))).mean(axis=0)
        return Weighed(rows, replace(new.how, weight=weight))

    def _squares(self, shared: float, residual: np.ndarray, noises: np.ndarray, form_errors: np.ndarray) -> np.ndarray:
        """Expected squares of the cells' own noise, in units of noise^2, given all residuals: [draw, row]."""
        phi, run, out = self.rows.phi, self.rows.run, []
        for r, sd, form_error in zip(residual, noises, form_errors):
            if run is not None and shared:
                common = sd * np.sqrt(shared) * (run[:, None] == np.arange(run.max() + 1))
                both = np.concatenate([form_error * phi, common], axis=1)
                turned, size = discrepancy.rotate(np.sqrt(self.precision)[:, None] * both), 1.0
            else:
                turned, size = self._alone, form_error
            mean, variance = discrepancy.conditional_noise(turned, r, self.precision, sd, size)
            out.append((mean**2 + variance) / sd**2)
        return np.array(out)

    def discrepancies(
        self, residual: np.ndarray, noises: np.ndarray, form_errors: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """The form error's weights [draw, feature], drawn given residuals from the law and so on, as `again` has
        them."""
        phi, power = self.rows.phi, self.how.power
        if self._dense:
            own, known, _ = self._parts()
            return discrepancy.draw_factored(phi, own, known, residual, noises, form_errors, rng)
        grouped = self._groups(power)
        white, r = (noise.whiten(x, power * self.precision, grouped) for x in (phi, residual.T))
        return discrepancy.draw(self._rotated(power), white, r.T, noises, form_errors, rng)


def parts(
    felt: np.ndarray, own: np.ndarray, known: np.ndarray, weight: np.ndarray, run: np.ndarray | None, shared: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The covariance of the rows, in parts: what noise^2 multiplies [row, row], the known one [row, row], and what
    form_error^2 multiplies [row, row]. own: size of a row's own noise; known: of its known error; [row] each."""
    together = 0.0 if run is None else shared * (run[:, None] == run)
    return np.diag(own**2 / weight) + together, np.diag(known**2 / weight), felt @ felt.T


def factored(
    data: dict[str, Any], own: np.ndarray, known: np.ndarray, form: np.ndarray, power: float = 1.0
) -> dict[str, Any]:
    """`data` with its rows padded, and what `grid.observe` needs where losses have known errors: `parts`, which rows
    are `there`, and the `power` to which their likelihood counts."""
    rows = len(own)
    more = _power_of_two(rows) - rows
    pad = {key: np.pad(x, (0, more)) for key, x in {"own": own, "known": known, "form": form}.items()}
    pad["known"] += np.diag(np.arange(rows + more) >= rows).astype(float)
    return _padded(data, rows, rows + more) | pad | {"there": np.arange(rows + more) < rows, "power": power}


def _padded(data: dict[str, Any], rows: int, size: int) -> dict[str, Any]:
    return {
        key: np.concatenate([value, np.repeat(value[:1], size - rows)]) if np.shape(value) == (rows,) else value
        for key, value in data.items()
    }


def observed(
    data: dict[str, Any],
    turned: discrepancy.Rotated,
    precision: np.ndarray,
    count: float,
    grouped: noise.Groups | None = None,
    least: float = 0.0,
    known: float = 1.0,
    cells: nodes.Nodes | None = None,
) -> dict[str, Any]:
    """`data` with its rows padded, or with the nodes of `cells` in their place, and what `grid.observe` needs:
    `root_precision` [row], or what `nodes.reduce` gives; `project` [row, k] and `spread` [k] of `discrepancy.rotate`;
    `rest`: how many more coordinates `count` rows, by weight, have; `known`; `run` and `share` [row] of `noise.groups`
    where there are checkpoints. Coordinates of spread below `least` are left to the noise.

    known: factor by which `precision` is smaller than what the runs scatter with."""
    Q, s = turned
    Q, s = Q[:, s**2 >= least], s[s**2 >= least]
    rows = len(precision)
    if cells is not None:
        k = _power_of_two(max(len(s), 32))
        W, log_loss = (noise.whiten(x, precision, grouped) for x in (cells.interpolate, data["log_loss"]))
        plain = {key: value for key, value in data.items() if np.shape(value) != (rows,)}
        out = plain | cells.x | nodes.reduce(W, log_loss, np.pad(Q, ((0, 0), (0, k - len(s)))))
        out["spread"] = np.pad(s**2, (0, k - len(s)))
        return out | {"known": known, "rest": known * (count - len(s)) - (k - len(s))}
    size = _power_of_two(rows)
    k = min(size, _power_of_two(max(len(s), 32)))
    out = _padded(data, rows, size)
    out["root_precision"] = np.pad(np.sqrt(precision), (0, size - rows))
    out["project"] = np.pad(Q, ((0, size - rows), (0, k - len(s))))
    out["spread"] = np.pad(s**2, (0, k - len(s)))
    if grouped is not None:
        out["run"], out["share"] = (np.pad(x, (0, size - rows)) for x in grouped)
    return out | {"known": known, "rest": known * (count - len(s)) - (k - len(s))}


def _power_of_two(n: int) -> int:
    """The smallest that is at least n."""
    return 1 << (n - 1).bit_length()

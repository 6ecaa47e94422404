"""Many runs as few nodes: what a fit needs of a smooth curve at thousands of cells, from its values at 78 points.

A law's ln L over (ln N, ln D) is smooth: on the rectangle of the data it is a polynomial of total degree DEGREE, to
within some 1e-7. So curve(cells) = W curve(nodes), and the whitened residuals, whose squares and projections are all
that the likelihood looks at, are one small matrix times the curve at the nodes, whatever the number of cells. The nodes
are the Padua points (Bos, Caliari, De Marchi, Vianello and Xu 2006, J. Approx. Theory 143:15).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

DEGREE = 11
CLOSE = 0.02  # of the noise: the most that a curve at the cells may differ from what its nodes say
DRAWS = 500  # that this is looked at for
STRAY = 0.02  # share of them for which it may be more: a law of many coefficients has some wild draws


def padua() -> np.ndarray:
    """[(DEGREE + 1) (DEGREE + 2) / 2, 2] in [-1, 1]: of the Chebyshev-Lobatto grid every other point."""
    i, j = np.meshgrid(np.arange(DEGREE + 1), np.arange(DEGREE + 2), indexing="ij")
    i, j = (x[(i + j) % 2 == 0] for x in (i, j))
    return np.stack([np.cos(np.pi * i / DEGREE), np.cos(np.pi * j / (DEGREE + 1))], axis=1)


POINTS = padua()


class Nodes:
    """The nodes of cells at n, d ([cell] each); `x`: their n and d, [node] each."""

    def __init__(self, n: np.ndarray, d: np.ndarray):
        self._middle, self._half = (np.array([f(a) for a in (n, d)]) for f in (_middle, _half))
        self.x = dict(zip("nd", (self._middle + self._half * POINTS).T))
        self.interpolate = np.linalg.solve(_basis(POINTS).T, self._at(n, d).T).T  # [cell, node]

    def _at(self, n: np.ndarray, d: np.ndarray) -> np.ndarray:
        return _basis((np.stack([n, d], axis=1) - self._middle) / self._half)

    def close(self, log_curve: Callable[..., Any], draws: dict[str, np.ndarray], data: dict[str, Any]) -> bool:
        """Whether the curves of draws (site -> [chain, draw, ...]) at the cells are what their nodes say, all but
        STRAY of them."""
        flat = {site: x.reshape(-1, *x.shape[2:]) for site, x in draws.items() if x.ndim == 2}
        some = np.linspace(0, len(flat["noise"]) - 1, DRAWS).round().astype(int)
        p = {site: x[some, None] for site, x in flat.items()}
        off = log_curve(np, p, data) - log_curve(np, p, data | self.x) @ self.interpolate.T
        return bool(np.quantile(np.abs(off).max(axis=1), 1 - STRAY) < CLOSE * np.median(flat["noise"]))


def of(data: dict[str, Any]) -> Nodes | None:
    """The nodes of a law's cells; None where its curve is not of `n` and `d` alone."""
    cells = np.shape(data["log_loss"])
    others = {key for key, value in data.items() if np.shape(value) == cells} - {
        "n",
        "d",
        "log_loss",
        "run",
        "seeds",
        "error",
    }
    return None if others else Nodes(data["n"], data["d"])


def _middle(x: np.ndarray) -> float:
    return (x.min() + x.max()) / 2


def _half(x: np.ndarray) -> float:
    return np.ptp(x) / 2 or 1.0


def _basis(points: np.ndarray) -> np.ndarray:
    """[point, node]: products of Chebyshev polynomials of total degree up to DEGREE."""
    first, second = (np.polynomial.chebyshev.chebvander(points[:, axis], DEGREE) for axis in (0, 1))
    i, j = np.indices((DEGREE + 1, DEGREE + 1))
    kept = i + j <= DEGREE
    return first[:, i[kept]] * second[:, j[kept]]


def reduce(interpolate: np.ndarray, log_loss: np.ndarray, project: np.ndarray) -> dict[str, Any]:
    """For `grid.observe`: `root` [node, node] and `seen` [node] with whitened residuals e = seen - root curve(nodes) in
    as many coordinates; `project` [node, k] and `along` [k], with project^T e + along their projections on `project`;
    `apart`, the squares of what no curve reaches.

    interpolate [cell, node], log_loss [cell]: whitened. project: [cell, k].
    """
    Q, root = np.linalg.qr(interpolate)
    seen = Q.T @ log_loss
    apart = log_loss - Q @ seen
    return {
        "root": root,
        "seen": seen,
        "project": Q.T @ project,
        "along": project.T @ apart,
        "apart": apart @ apart,
    }

"""Form error: every law's form is wrong, and the more so the further one goes from its data.

    ln L(N, D) = law(N, D) + form_error * delta(N, D) + noise

delta is a Gaussian process over (ln N, ln D): correlation k(n - n') k(d - d') with k Matern 3/2 of LENGTH, standard
deviation 1 on the data's rectangle and growing with the distance from it (Kennedy and O'Hagan 2001, J. R. Stat. Soc. B
63:425, put such a term on any model known to be wrong). Where there are data they determine delta; beyond, it carries
the last deviations on, fades over a LENGTH or two, and its uncertainty opens up. `form_error` is learnt; that it is
next to nothing, the form as good as true, has a prior chance of one in five (`laws.forms.grid.observe`).

Written by its values on a grid of nodes, delta is a sum of features times independent standard normal weights, so that
a posterior draw is a function, the same wherever it is asked. Plain numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

LENGTH = 3.0  # in ln N and ln D: 1.3 decades
SPACING, COARSE = 0.5, 1.5  # of nodes, among the data and beyond
GROWTH = 0.15  # of the standard deviation per e-fold beyond the data: by a third a decade
OWN = 0.1  # share of the variance of delta that is each recipe's own, where a law has several
ABOVE, BELOW = 3 * np.log(10.0), np.log(10.0)  # how far beyond the data the nodes reach; further out delta is constant
AXES = ("n", "d")
Rotated = tuple[np.ndarray, np.ndarray]


def domain(data: dict[str, Any]) -> dict[str, Any]:
    """{"box": {"n": [low, high], "d": ...}, "nodes": {"n": [...], "d": [...]}}, centred coordinates; JSON."""
    box = {axis: [float(data[axis].min()), float(data[axis].max())] for axis in AXES}
    nodes = {}
    for axis, (low, high) in box.items():
        inside = np.linspace(low, high, int(np.ceil((high - low) / SPACING)) + 1)
        below, above = (np.arange(1, np.ceil(reach / COARSE) + 1) * COARSE for reach in (BELOW, ABOVE))
        nodes[axis] = [*(low - below[::-1]), *inside, *(high + above)]
    return {"box": box, "nodes": nodes}


def features(domain: dict[str, Any], x: dict[str, Any], dtype: Any = np.float64) -> np.ndarray:
    """[point, feature]: times standard normal weights they give delta at x["n"], x["d"] ([point] each)."""
    n, d = (_axis_features(np.asarray(domain["nodes"][axis]), np.asarray(x[axis])) for axis in AXES)
    n, d = (_growth(domain["box"], x) * n).astype(dtype), d.astype(dtype)
    # Points vary fastest in memory: several times faster to write, and to multiply by weights.
    return (n[:, None] * d).reshape(len(n) * len(d), n.shape[1]).T


def _axis_features(nodes: np.ndarray, x: np.ndarray) -> np.ndarray:
    """[node, point]."""
    root = np.linalg.cholesky(_matern(nodes[:, None] - nodes))
    kernel = _matern(nodes[:, None] - np.clip(x, nodes[0], nodes[-1]))
    return np.linalg.inv(root) @ kernel


def _matern(distance: np.ndarray) -> np.ndarray:
    r = np.sqrt(3.0) / LENGTH * np.abs(distance)
    return (1 + r) * np.exp(-r)


def _growth(box: dict[str, list[float]], x: dict[str, Any]) -> np.ndarray:
    beyond = [np.maximum(0.0, np.maximum(box[axis][0] - x[axis], x[axis] - box[axis][1])) for axis in AXES]
    return 1 + GROWTH * np.hypot(*beyond)


def by_recipe(phi: np.ndarray, recipe: np.ndarray, n_recipes: int) -> np.ndarray:
    """Features of what all recipes have in common, then of each recipe's own: [point, (1 + n_recipes) feature]."""
    own = [np.sqrt(OWN) * (recipe == k)[:, None] * phi for k in range(n_recipes)]
    return np.concatenate([np.sqrt(1 - OWN) * phi, *own], axis=1)


def of_each(weights: np.ndarray, n_recipes: int) -> np.ndarray:
    """Weights of the features of `by_recipe` as each recipe's, of plain features: [..., n_recipes, feature]."""
    parts = weights.reshape(*weights.shape[:-1], 1 + n_recipes, -1)
    return np.sqrt(1 - OWN) * parts[..., :1, :] + np.sqrt(OWN) * parts[..., 1:, :]


# --- the weights given the law ---------------------------------------------------------------------------------------


def rotate(weighted: np.ndarray) -> Rotated:
    """(Q [point, k], s [k]): the singular values above 3e-5 of the largest, and left vectors, of whitened features
    W phi [point, feature], W^T W the inverse of the noise's covariance in units of noise^2.

    With residuals r = form_error phi w + noise W^-1 e, w and e standard normal, the coordinates Q^T W r are independent
    with variance noise^2 + form_error^2 s^2, and the rest is noise.
    """
    tall = weighted.shape[0] > weighted.shape[1]  # the smaller Gram matrix has the same eigenvalues
    squares, vectors = np.linalg.eigh(weighted.T @ weighted if tall else weighted @ weighted.T)
    kept = squares > 1e-9 * squares[-1]
    s, vectors = np.sqrt(squares[kept][::-1]), vectors[:, kept][:, ::-1]
    return (weighted @ vectors / s if tall else vectors), s


def draw(
    rotated: Rotated,
    phi: np.ndarray,
    whitened: np.ndarray,
    noise: np.ndarray,
    form_error: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """form_error times the weights, drawn given the law's residuals: [draw, feature].

    phi: whitened features W phi [point, feature]; whitened: W r [draw, point]; noise, form_error: [draw].
    """
    Q, s = rotated
    V = (Q / s).T @ phi  # phi = Q s V: the directions that the points tell of
    noise, form_error = noise[:, None], form_error[:, None]
    total = noise**2 + (form_error * s) ** 2
    known = form_error * s * (whitened @ Q) / total
    known += noise / np.sqrt(total) * rng.standard_normal(known.shape)
    free = rng.standard_normal((len(known), V.shape[1]))
    return form_error * (free + (known - free @ V.T) @ V)


def draw_factored(
    phi: np.ndarray,
    own: np.ndarray,
    known: np.ndarray,
    residual: np.ndarray,
    noise: np.ndarray,
    form_error: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """As `draw`, where the noise's covariance is noise^2 own + known, [point, point] each: a draw from the prior moved
    by what it leaves over (Matheron's rule). residual: [draw, point]."""
    form, out = phi @ phi.T, []
    for r, sd, error_sd in zip(residual, noise, form_error):
        free, scatter = rng.standard_normal(phi.shape[1]), sd**2 * own + known
        over = r - error_sd * phi @ free - np.linalg.cholesky(scatter) @ rng.standard_normal(len(r))
        out.append(error_sd * (free + error_sd * phi.T @ np.linalg.solve(scatter + error_sd**2 * form, over)))
    return np.array(out)


def conditional_noise(
    rotated: Rotated,
    residual: np.ndarray,
    precision: np.ndarray,
    noise: float,
    form_error: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each point's noise given all residuals and that delta takes its share: [point] each."""
    Q, s = rotated
    share = (form_error * s) ** 2 / (noise**2 + (form_error * s) ** 2)
    root = np.sqrt(precision)
    safe = np.where(root > 0, root, 1.0)
    explained = Q @ (share * (Q.T @ (root * residual))) / safe
    variance = noise**2 * (Q**2 @ share) / safe**2
    return residual - explained, variance

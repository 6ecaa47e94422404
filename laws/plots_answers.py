"""Pictures of answers: how a budget is best spent, and which of two recipes is better where."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from laws.allocation import Allocation
from laws.comparison import Comparison
from laws.plots import BLUE, INK, MOST, ORANGE, SOFT, _legend, _log_axis, _mark, _panels, _plain, _shades, _thin, count

TOLERANCE = 0.005  # the flat valley that is drawn
ABOVE = 1.08  # of the loss shown, over the recommended model's


def allocation(found: Allocation) -> Figure:
    """Left: the loss along each budget (at most six) with its 90% band, the recommended size a star, the sizes within
    0.5% of its loss drawn thick. Right, where there are several budgets: size and tokens against compute, 90% bands."""
    budgets = np.atleast_1d(found.flops)
    several = len(np.unique(budgets)) > 1
    figure, axes = _panels(1, 2 if several else 1, width=4.6 if several else 6.5, height=3.6)
    axis = axes[0, 0]
    shown = _thin(list(range(budgets.size)), MOST)
    seen, tops, bottoms = [], [], []
    for i, colour in zip(shown, _shades(len(shown))):
        curve = found.curve[found.curve["flops"] == budgets.ravel()[i]]
        best = float(np.ravel(found.recommended_params)[i])
        low, high = (float(np.ravel(edge)[i]) for edge in found.valley[TOLERANCE])
        at = found.recommended_loss.draws.reshape(len(found.loss.draws), -1)[:, i].mean()
        N = curve["params"].to_numpy()
        axis.fill_between(N, curve["low"], curve["high"], color=colour, alpha=0.15, lw=0)
        axis.plot(N, curve["mean"], color=colour, lw=1.4, label=f"{_plain(budgets.ravel()[i])} FLOP")
        if np.isfinite(best):
            valley = (low <= N) & (high >= N)
            axis.plot(N[valley], curve["mean"][valley], color=colour, lw=4, alpha=0.5, solid_capstyle="round")
            axis.plot(best, at, "*", color=colour, ms=12, mec=INK, mew=0.7, zorder=3)
            near = curve["mean"] < ABOVE * at
            seen += [N[near].min(), N[near].max()]
            tops.append(ABOVE * at)
            bottoms.append(curve["low"][near].min())
    if seen:
        _log_axis(axis.xaxis, seen, count)
        axis.set_ylim(min(bottoms) * 0.995, max(tops))
    else:
        _log_axis(axis.xaxis, found.curve["params"], count)
    axis.set_xlabel("non-embedding parameters, N")
    axis.set_ylabel("mean loss at the budget")
    axis.legend(frameon=False, fontsize=8, handlelength=1.2)
    if several:
        order = np.argsort(budgets.ravel())
        flops, axis = budgets.ravel()[order], axes[0, 1]
        drawn = []
        for quantity, colour, name in ((found.params, BLUE, "parameters, N"), (found.tokens, ORANGE, "tokens, D")):
            band = [np.ravel(edge)[order] for edge in quantity.interval(0.9)]
            axis.fill_between(flops, *band, color=colour, alpha=0.2, lw=0)
            axis.plot(flops, np.ravel(quantity.median)[order], "o-", color=colour, ms=4, lw=1.5, label=name)
            drawn += band
        _log_axis(axis.xaxis, flops, _plain)
        _log_axis(axis.yaxis, np.concatenate(drawn), count)
        axis.set_xlabel("budget (FLOP)" + (", inference included" if found.inference_tokens else ""))
        axis.legend(frameon=False, fontsize=8)
    valley_key = Line2D([], [], color=SOFT, lw=4, alpha=0.5, label=f"within {TOLERANCE:.1%} of its loss")
    star = _mark("*", "white", "recommended", size=11)
    _legend(figure, [star, valley_key, Patch(fc=SOFT, alpha=0.25, label="90% interval")])
    return figure


def comparison(found: Comparison, names: tuple[str, str] = ("A", "B")) -> Figure:
    """Left: the probability that A's loss is lower over (D, N), the line where the median difference is nought.
    Right: the relative difference along each recipe's own compute-optimal line. A plane of one row or column is drawn
    as a line with its band instead."""
    flat = min(len(found.params), len(found.tokens)) == 1
    figure, axes = _panels(1, 2, width=4.8, height=3.6)
    median = np.asarray(found.difference.median)
    left, right = axes[0]
    if flat:
        along = "tokens" if len(found.params) == 1 else "params"
        x = getattr(found, along)
        low, high = (100 * np.ravel(edge) for edge in found.difference.interval(0.9))
        _band(left, x, low, 100 * median.ravel(), high, names)
        _log_axis(left.xaxis, x, count)
        left.set_xlabel("tokens, D" if along == "tokens" else "non-embedding parameters, N")
    else:
        mesh = left.pcolormesh(
            found.tokens, found.params, found.probability, cmap="PuOr", vmin=0, vmax=1, shading="nearest"
        )
        if median.min() < 0 < median.max():
            left.contour(found.tokens, found.params, median, levels=[0.0], colors=INK, linewidths=1.6)
        _log_axis(left.xaxis, found.tokens, count, pad=0)
        _log_axis(left.yaxis, found.params, count, pad=0)
        left.set_xlabel("tokens, D")
        left.set_ylabel("non-embedding parameters, N")
        bar = figure.colorbar(mesh, ax=left, pad=0.02, aspect=25)
        bar.set_label(f"probability that {names[0]} is better", color=SOFT, fontsize=8)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, colors=SOFT)
    budgets = found.budgets
    _band(right, budgets["flops"], 100 * budgets["low"], 100 * budgets["median"], 100 * budgets["high"], names)
    _log_axis(right.xaxis, budgets["flops"], _plain)
    right.set_xlabel("budget (FLOP), each at its own best size")
    kinds = [] if flat else [Line2D([], [], color=INK, lw=1.6, label="as good as each other")]
    _legend(figure, [*kinds, Line2D([], [], color=BLUE, label="median"), Patch(fc=BLUE, alpha=0.2, label="90%")])
    return figure


def _band(axis, x, low, median, high, names) -> None:
    axis.fill_between(x, low, high, color=BLUE, alpha=0.2, lw=0)
    axis.plot(x, median, "o-" if len(x) == 1 else "-", color=BLUE, lw=1.5)
    axis.axhline(0, color=INK, lw=1)
    axis.set_ylabel(f"loss of {names[0]} over {names[1]} (%)")

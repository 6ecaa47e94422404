"""Pictures of run tables, fitted laws and hold-outs: matplotlib Figures, no global state.

Colours are safe for colour-blind readers: cividis for amounts (it is perceptually uniform), Okabe and Ito's for kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from laws.cells import Cell, best_of_cells, cells
from laws.schema import COLUMNS

INK, SOFT, GRID = "#1c2430", "#5b6675", "#e3e7ec"
BLUE, ORANGE, GREEN, PINK = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
MOST = 6  # sizes or budgets shown as separate panels or lines; more are thinned evenly


def landscape(runs: pd.DataFrame, posterior: Any = None, *, target: str = "loss") -> Figure | None:
    """Loss over (learning rate, batch size), a panel a cell: percent above the cell's best, where it was tried.

    posterior: a Step Law posterior; its draws of the optimum are dots, its 90% region an ellipse, its median a star.
    None where no cell tried two batch sizes.
    """
    swept = [c for c in _swept(runs, target) if c.runs["batch_tokens"].nunique() > 1] if _has_batch(runs) else []
    if not swept:
        return None
    panels, rows, columns = _layout(swept)
    figure, axes = _panels(rows, columns, width=2.3, height=2.0, sharex=True, sharey=True)
    every = pd.concat([cell.runs for cell in panels.values()])
    excess = np.concatenate([_excess(cell.runs, target) for cell in panels.values()])
    top = float(np.clip(np.nanquantile(excess, 0.8), 0.5, 20))
    colours = {"norm": PowerNorm(0.5, vmin=0, vmax=top), "cmap": colormaps["cividis_r"]}
    x_edges, y_edges = _edges(every["lr"]), _edges(every["batch_tokens"])
    shown: list[Any] = [(x_edges[0], y_edges[0]), (x_edges[-1], y_edges[-1])]  # corners, and medians that lie outside
    for place, whole in panels.items():
        axis, cell = axes[place], whole.runs
        over = _excess(cell, target)
        grid = np.full((len(y_edges) - 1, len(x_edges) - 1), np.nan)
        at = (np.searchsorted(y_edges, cell["batch_tokens"]) - 1, np.searchsorted(x_edges, cell["lr"]) - 1)
        np.fmin.at(grid, at, over)
        mesh = axis.pcolormesh(x_edges, y_edges, grid, edgecolors="white", linewidth=0.6, **colours)
        lost = ~np.isfinite(over)
        axis.plot(cell["lr"][lost], cell["batch_tokens"][lost], "x", color=ORANGE, ms=5, mew=1.2)
        best = cell.iloc[int(np.nanargmin(over))]
        axis.plot(best["lr"], best["batch_tokens"], "s", mfc="none", mec=INK, ms=9, mew=1.4)
        if posterior is not None:
            shown.append(_optimum(axis, whole.ask(posterior)))
        _title(axis, _name(whole))
    x_shown, y_shown = np.array(shown).T
    _log_axis(axes[0, 0].xaxis, x_shown, _plain, pad=0.02)
    _log_axis(axes[0, 0].yaxis, y_shown, count, pad=0.02)
    for axis in axes.ravel():  # draws far outside would stretch their own panel only
        axis.set(xlim=axes[0, 0].get_xlim(), ylim=axes[0, 0].get_ylim())
    _frame(figure, axes, panels, "peak learning rate", "batch size (tokens)")
    shrink = min(0.9, 3.0 / figure.get_figheight())
    bar = figure.colorbar(mesh, ax=axes, extend="max", shrink=shrink, anchor=(0, 1), aspect=22, pad=0.02)
    bar.set_label("loss above the cell's best (%)", color=SOFT, fontsize=9)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=SOFT)
    kinds = [_mark("s", INK, "best tried", face="none")]
    if (every["status"] != "ok").any():
        kinds += [_mark("x", ORANGE, "diverged")]
    if posterior is not None:
        kinds += [_mark("*", "white", "Step Law median", size=12), Line2D([], [], color=ORANGE, label="90% region")]
    _legend(figure, kinds)
    return figure


def lr_curves(runs: pd.DataFrame, posterior: Any = None, *, target: str = "loss") -> Figure | None:
    """Loss against learning rate as percent above the cell's best, a panel a cell, a line a batch size; the posterior
    of the optimum as a band. None where no cell tried two learning rates."""
    swept = _swept(runs, target)
    if not swept:
        return None
    panels, rows, columns = _layout(swept)
    figure, axes = _panels(rows, columns, width=2.4, height=1.75, sharex=True, sharey=True)
    every = pd.concat([cell.runs for cell in panels.values()])
    batches = sorted(every["batch_tokens"].unique()) if _has_batch(runs) else []
    shades = dict(zip(batches, _shades(len(batches))))
    for place, whole in panels.items():
        axis = axes[place]
        cell = whole.runs.assign(over=_excess(whole.runs, target)).sort_values("lr")
        for batch, line in cell.groupby("batch_tokens") if batches else [(None, cell)]:
            line = line[np.isfinite(line["over"])]
            axis.plot(line["lr"], line["over"], "o-", color=shades.get(batch, BLUE), ms=4, lw=1.4, mec="white", mew=0.5)
        if posterior is not None:
            lr = whole.ask(posterior).lr
            axis.axvspan(*lr.interval(0.9), color=ORANGE, alpha=0.16, lw=0)
            axis.axvline(lr.median, color=ORANGE, lw=1.5)
        _title(axis, _name(whole))
    over = np.concatenate([_excess(cell.runs, target) for cell in panels.values()])
    high = float(np.clip(np.nanquantile(over, 0.95), 1, 20))
    axes[0, 0].set_ylim(-0.06 * high, 1.06 * high)
    _log_axis(axes[0, 0].xaxis, every["lr"], _plain, pad=0.12)
    _frame(figure, axes, panels, "peak learning rate", "loss above the cell's best (%)")
    kinds: list[Any] = [Line2D([], [], color=c, marker="o", ms=4, label=f"batch {count(b)}") for b, c in shades.items()]
    if posterior is not None:
        kinds += [
            Line2D([], [], color=ORANGE, label="Step Law median"),
            Patch(fc=ORANGE, alpha=0.2, label="90% interval"),
        ]
    _legend(figure, kinds)
    return figure


def loss_curves(
    runs: pd.DataFrame, posteriors: Mapping[str, Any], *, target: str = "loss", reach: float = 10
) -> Figure:
    """Best loss of each cell against tokens (upper row) and params (lower row), a column a law, and each law's median
    with 50% and 90% predictive bands, `reach` times beyond the data. Step Law says nothing of the loss: it is left out.
    """
    best = best_of_cells(runs, target)
    laws: list[tuple[str, Any]] = [(k, p) for k, p in posteriors.items() if k != "steplaw"] or [("", None)]
    figure, axes = _panels(2, len(laws), width=6.5 if len(laws) == 1 else 4.3, height=3.3, sharey=True)
    drawn = [best[target].to_numpy()]
    for column, (law, posterior) in enumerate(laws):
        for row, (x, other) in enumerate((("tokens", "params"), ("params", "tokens"))):
            axis, symbol = axes[row, column], "ND"[other == "tokens"]
            values = _thin(sorted(best[other].unique()), MOST)
            query = np.geomspace(best[x].min(), best[x].max() * reach, 60)
            for value, colour in zip(values, _shades(len(values))):
                points = best[np.isclose(best[other], value, rtol=0.02)].sort_values(x)
                axis.plot(points[x], points[target], "o", color=colour, ms=4.5, mec="white", mew=0.6, zorder=3)
                if posterior is not None:
                    loss = posterior.predict(**{x: query, other: np.full_like(query, value)}).loss
                    for level in (0.9, 0.5):
                        low, high = loss.interval(level)
                        axis.fill_between(query, low, high, color=colour, alpha=0.15, lw=0)
                    axis.plot(query, loss.median, color=colour, lw=1.5)
                    drawn.append(loss.median)
                else:
                    axis.plot(points[x], points[target], color=colour, lw=1.2)
                axis.plot([], [], color=colour, lw=2.5, label=f"{symbol} = {count(value)}")
            _log_axis(axis.xaxis, query if posterior is not None else best[x], count)
            if posterior is not None:
                axis.axvspan(best[x].max(), query[-1], color=SOFT, alpha=0.07, lw=0, zorder=0)
                axis.text(best[x].max() * 1.08, 0.98, "beyond the data", transform=axis.get_xaxis_transform(),
                          va="top", fontsize=8, color=SOFT)  # fmt: skip
            axis.set_xlabel("tokens, D" if x == "tokens" else "non-embedding parameters, N")
            if column == 0:
                axis.set_ylabel(unit(target))
            if column == len(laws) - 1:
                axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8, handlelength=1.2)
            if row == 0 and law:
                axis.set_title(law.capitalize(), loc="left", fontsize=11, fontweight="bold", color=INK)
    low, high = np.min(np.concatenate(drawn)), np.max(np.concatenate(drawn))
    axes[0, 0].set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    return figure


def lr_law(runs: pd.DataFrame, posterior: Any, *, target: str = "loss", reach: float = 10) -> Figure:
    """Step Law's optimum across scale: learning rate against N and D, batch size against D, with 50% and 90% bands.
    Points are the best tried settings of each cell; of models of several sparsities, of the commonest."""
    best = best_of_cells(runs[runs["lr"].notna()], target, every=True)
    share = (best.get("params_active", best["params"]) / best["params"]).round(3)
    best = best[share == share.mode()[0]]
    sparse = "params_active" in posterior.meta.get("optional", {})
    figure, axes = _panels(1, 3, width=3.5, height=3.1)
    pictures = (("lr", "params", "tokens"), ("lr", "tokens", "params"), ("batch_tokens", "tokens", "params"))
    for axis, (answer, x, other) in zip(axes[0], pictures):
        values = _thin(sorted(best[other].unique()), 3)
        query = np.geomspace(best[x].min(), best[x].max() * reach, 40)
        shades = _shades(len(values))
        nearest = np.abs(np.log(best[other].to_numpy()[:, None] / np.asarray(values))).argmin(axis=1)
        colours = [shades[i] for i in nearest]
        axis.scatter(best[x], best[answer], c=colours, s=26, edgecolors="white", linewidths=0.6, zorder=3)
        answers = [best[answer].to_numpy()]
        for value, colour in zip(values, shades):
            at = {x: query, other: np.full_like(query, value)}
            at |= {"params_active": at["params"] * share.mode()[0]} if sparse else {}
            optimum = getattr(posterior.predict(**at), answer)
            for level in (0.9, 0.5):
                low, high = optimum.interval(level)
                axis.fill_between(query, low, high, color=colour, alpha=0.14, lw=0)
                answers += [low, high]
            axis.plot(query, optimum.median, color=colour, lw=1.6, label=f"{'ND'[other == 'tokens']} = {count(value)}")
        axis.axvspan(best[x].max(), query[-1], color=SOFT, alpha=0.07, lw=0, zorder=0)
        _log_axis(axis.xaxis, query, count)
        _log_axis(axis.yaxis, np.concatenate(answers), _plain if answer == "lr" else count)
        axis.set_xlabel("tokens, D" if x == "tokens" else "non-embedding parameters, N")
        axis.set_title("best learning rate" if answer == "lr" else "best batch size (tokens)", loc="left", fontsize=10)
        axis.legend(frameon=False, fontsize=8, handlelength=1.2)
    return figure


def heldout(backtests: Mapping[str, Any], *, level: float = 0.9) -> Figure | None:
    """Held-out cells by law: the predictive interval relative to the measured loss, inside or outside. Step Law is
    judged by regret, in a table, and is not drawn. None where there is nothing to draw."""
    tested = {law: test for law, test in backtests.items() if law != "steplaw"}
    if not tested:
        return None
    figure, axes = _panels(1, len(tested), width=4.3, height=3.3, sharey=True)
    for axis, (law, test) in zip(axes[0], tested.items()):
        table = test.table.sort_values(["measured"])
        measured = table["measured"].to_numpy()
        low, mid, high = ((table[c].to_numpy() / measured - 1) * 100 for c in ("low", "median", "high"))
        axis.axhline(0, color=INK, lw=1)
        for mask, colour, mark in ((table["inside"], BLUE, "o"), (~table["inside"], ORANGE, "D")):
            mask = mask.to_numpy(bool)
            axis.vlines(measured[mask], low[mask], high[mask], color=colour, lw=2.2, alpha=0.45)
            axis.plot(measured[mask], mid[mask], mark, color=colour, ms=5, mec="white", mew=0.6)
        axis.set_xlabel("measured loss")
        axis.set_title(f"{law.capitalize()}: off by {test.error:.2%} on average", loc="left", fontsize=10)
    axes[0][0].set_ylabel("predicted, relative to measured (%)")
    kinds = [_mark("o", BLUE, f"measurement inside the {level:.0%} interval"), _mark("D", ORANGE, "outside")]
    _legend(figure, [*kinds, Line2D([], [], color=INK, lw=1, label="measured")])
    return figure


def count(value: float) -> str:
    """1.07e9 -> '1.07B', 2048 -> '2,048'."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= max(0.9995 * size, 9_999.5):
            return f"{value / size:.3g}{letter}"
    return f"{value:,.0f}"


def unit(target: str) -> str:
    names = {"loss": "training loss", "eval_loss": "held-out loss", "bpc": "held-out loss"}
    return f"{names.get(target, target)} ({COLUMNS[target][0]})" if target in COLUMNS else target


# --- parts ---------------------------------------------------------------------------------------------------------


def _swept(runs: pd.DataFrame, target: str) -> list[Cell]:
    """Cells that tried at least two learning rates."""
    if "lr" not in runs:
        return []
    found = cells(runs[runs["lr"].notna()])
    return [c for c in found if c.runs["lr"].nunique() > 1 and np.isfinite(_excess(c.runs, target)).any()]


def _has_batch(runs: pd.DataFrame) -> bool:
    return "batch_tokens" in runs and bool(runs["batch_tokens"].notna().all())


def _layout(swept: Sequence[Cell]) -> tuple[dict[tuple[int, int], Cell], int, int]:
    """((row, column) -> cell, rows, columns): a row a size, budgets in order; at most MOST of each."""
    sizes = _thin(sorted({c.params for c in swept}), MOST)
    panels = {}
    for row, size in enumerate(sizes):
        for column, cell in enumerate(_thin([c for c in swept if c.params == size], MOST)):
            panels[row, column] = cell
    return panels, len(sizes), 1 + max(column for _, column in panels)


def _thin(values: Sequence[Any], most: int) -> list[Any]:
    if len(values) <= most:
        return list(values)
    return [values[i] for i in np.linspace(0, len(values) - 1, most).round().astype(int)]


def _excess(cell: pd.DataFrame, target: str) -> np.ndarray:
    """Percent above the cell's best; NaN for runs that diverged."""
    loss = cell[target].where(cell["status"] == "ok").to_numpy(float)
    return (loss / np.nanmin(loss, initial=np.inf) - 1) * 100


def _edges(values: pd.Series) -> np.ndarray:
    """Edges of the tiles around the distinct settings, halfway between neighbours in the logarithm; settings within 5%
    of each other are one (tables round them)."""
    logs = np.unique(np.log(values.to_numpy(float)))
    logs = np.array([group.mean() for group in np.split(logs, np.flatnonzero(np.diff(logs) > 0.05) + 1)])
    middles = (logs[1:] + logs[:-1]) / 2
    if len(logs) == 1:
        return np.exp(logs[0] + np.array([-0.3, 0.3]))
    return np.exp(np.concatenate([[2 * logs[0] - middles[0]], middles, [2 * logs[-1] - middles[-1]]]))


def _optimum(axis: Axes, prediction: Any) -> np.ndarray:
    """Posterior of the optimum in log-log space: draws, the ellipse of 90% of them, the median, which it returns."""
    draws = np.log(np.stack([np.ravel(prediction.lr.draws), np.ravel(prediction.batch_tokens.draws)]))
    some = draws[:, :: max(1, draws.shape[1] // 150)]
    axis.plot(*np.exp(some), ".", color=ORANGE, ms=2, alpha=0.35, mew=0)
    values, vectors = np.linalg.eigh(np.cov(draws))
    angle = np.linspace(0, 2 * np.pi, 100)
    radius = np.sqrt(-2 * np.log(1 - 0.9))  # of the two-dimensional normal's 90% region
    ring = draws.mean(axis=1)[:, None] + radius * vectors @ (
        np.sqrt(np.maximum(values, 0))[:, None] * [np.cos(angle), np.sin(angle)]
    )
    axis.plot(*np.exp(ring), color=ORANGE, lw=1.4)
    median = np.exp(np.median(draws, axis=1))
    axis.plot(*median, "*", color="white", ms=7, mec=INK, mew=0.9)
    return median


def _panels(rows: int, columns: int, *, width: float, height: float, **share: Any) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(max(width * columns, 5.5) + 0.9, height * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **share)
    for axis in axes.ravel():
        axis.grid(True, color=GRID, lw=0.7)
        axis.set_axisbelow(True)
        axis.tick_params(colors=SOFT, labelsize=8, length=3)
        axis.xaxis.label.set_color(SOFT)
        axis.yaxis.label.set_color(SOFT)
        for side, spine in axis.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color("#b8c0ca")
    return figure, axes


def _frame(figure: Figure, axes: np.ndarray, panels: Mapping[tuple[int, int], Any], x: str, y: str) -> None:
    """Hides places without a cell, shows tick labels under the lowest panel of each column, names both axes once."""
    for (row, column), axis in np.ndenumerate(axes):
        axis.set_visible((row, column) in panels)
        axis.tick_params(labelbottom=(row + 1, column) not in panels)
    figure.supxlabel(x, fontsize=9, color=SOFT)
    figure.supylabel(y, fontsize=9, color=SOFT)


def _name(cell: Cell) -> str:
    active = f"\n{count(cell.active)} active" if "params_active" in cell.differ else ""
    return f"N = {count(cell.params)}, D = {count(cell.tokens)}{active}" + f"\n{cell.recipe}" * (
        "recipe" in cell.differ
    )


def _title(axis: Axes, text: str) -> None:
    axis.set_title(text, loc="left", fontsize=9, color=INK)


def _legend(figure: Figure, kinds: Sequence[Any]) -> None:
    columns = max(3, int(figure.get_figwidth() / 1.5))
    style: dict[str, Any] = {"frameon": False, "fontsize": 9, "labelcolor": SOFT, "handletextpad": 0.5}
    figure.legend(handles=list(kinds), loc="outside upper left", ncols=columns, columnspacing=1.6, **style)


def _mark(marker: str, colour: str, label: str, *, size: float = 8, face: str | None = None) -> Line2D:
    edge = colour if marker in "sx" else INK if colour == "white" else "white"
    return Line2D([], [], ls="", marker=marker, ms=size, mfc=face or colour, mec=edge, label=label)


def _shades(n: int) -> list[Any]:
    """n colours in order, dark to light, all readable on white."""
    return [colormaps["viridis"](x) for x in np.linspace(0.05, 0.82, n)] if n > 1 else [BLUE]


def _log_axis(axis: Any, values: Any, form: Callable[[float], str], pad: float = 0.04) -> None:
    """A log axis over `values` with three to seven ticks at round numbers, written out."""
    values = np.asarray(values, float)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = (high / low) ** pad if high > low else 1.3
    low, high = low / room, high * room
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.log10(high) + 1)
    ticks = np.array([])
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = np.outer(decades, steps).ravel()
        ticks = np.sort(ticks[(ticks >= low) & (ticks <= high)])
        if len(ticks) >= 3:
            break
    ticks = ticks[:: int(np.ceil(len(ticks) / 6)) or 1]
    axis._set_axes_scale("log")
    axis.set_view_interval(low, high, ignore=True)
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))


def _plain(value: float) -> str:
    """0.0003 -> '3e-4'."""
    digits, power = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(power)}"

"""What people read: numbers, tables and JSON on the terminal."""

from __future__ import annotations

import json
import math
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def console() -> Console:
    """Standard output. Wide when it is not a terminal, so that piped tables are not cut."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def count(value: float) -> str:
    """7e9 as '7B', 1.4e12 as '1.4T', 214_663_680 as '215M', 960 as '960'."""
    if not math.isfinite(value):
        return "-"
    if 0 < abs(value) < 1000:
        return f"{value:.3g}"
    for unit, suffix in _UNITS:
        shown = float(f"{value:.3g}")
        if abs(shown) >= unit:
            return f"{shown / unit:.4g}{suffix}"
    return "0"


def rate(value: float) -> str:
    """3.1e-4: a learning rate, two digits."""
    if not math.isfinite(value):
        return "-"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def loss(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "-"


def bits(value: float) -> str:
    """Bits per character."""
    return f"{value:.3f}" if math.isfinite(value) else "-"


def value(value: Any) -> str:
    """Of a config's field."""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def flops(value: float) -> str:
    """8.4e15 as '8.4e15'; in words elsewhere."""
    return rate(value) if value else "0"


def percent(value: float) -> str:
    """0.00123 as '0.12%'."""
    return f"{100 * value:.2g}%" if abs(value) < 0.1 else f"{100 * value:.0f}%"


def regret(value: float) -> str:
    """0.0012 as '0.12%'; no run tells doubling the loss from tripling it."""
    return percent(value) if value <= 1 else "over 100%"


def seconds(value: float) -> str:
    """'8 s', '3 min 20 s', '2 h 05 min', '3 days 4 h'."""
    if not math.isfinite(value):
        return "-"
    s = round(value)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    if s < 86400:
        return f"{s // 3600} h {s % 3600 // 60:02d} min"
    return f"{s // 86400} days {s % 86400 // 3600} h"


def at_least(s: float) -> str:
    """'at least 3 min 20 s', of a bound on a time."""
    return f"at least {seconds(s)}" if s >= 0.5 else "less than a second at best"


def span(values: Sequence[float], form: Any) -> str:
    """'1M' or '1M .. 4M': lowest to highest."""
    low, high = form(min(values)), form(max(values))
    return low if low == high else f"{low} .. {high}"


def tuned(meta: dict[str, Any]) -> dict[str, str]:
    """For JSON: by what the losses of a posterior with this meta were tuned, or nothing where they are as they were."""
    return {key: meta[key] for key in ("tuned_by",) if meta.get(key)}


def summary(quantity: Any, level: float, i: int) -> dict[str, float]:
    """Median and central interval of entry i of a predicted quantity."""
    low, high = quantity.interval(level)
    edges = {"median": quantity.median, "low": low, "high": high}
    return {name: float(np.ravel(value)[i]) for name, value in edges.items()} | {"level": level}


def plural(n: int, word: str) -> str:
    """'1 trial', '2,000 trials'."""
    return f"{n:,} {word}{'' if n == 1 else 's'}"


@dataclass(frozen=True)
class _Table:
    """A table under its title. Where it is wider than the terminal its headers are broken, and then the table itself,
    into several with the first columns in each: no number is cut."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        def fits(made: Table) -> bool:
            return Measurement.get(console, options.update(width=10_000), made).maximum <= options.max_width

        yield Text(self.title, style="bold")
        every = list(range(len(self.header)))
        whole = self._of(every, self.header)
        if fits(whole):
            yield whole
            return
        header = [self._broken(i) for i in every]
        keys = every[: max(self.left, 1)]
        shown = list(keys)
        for column in every[len(keys) :]:
            if len(shown) > len(keys) and not fits(self._of([*shown, column], header)):
                yield self._of(shown, header)
                shown = list(keys)
            shown.append(column)
        yield self._of(shown, header)

    def _broken(self, i: int) -> str:
        """The header of column i in lines no longer than its cells, or its longest word."""
        words = self.header[i].split()
        return textwrap.fill(self.header[i], max([1, *map(len, words), *(len(row[i]) for row in self.rows)]))

    def _of(self, columns: Sequence[int], header: Sequence[str]) -> Table:
        made = Table(box=SIMPLE_HEAD, pad_edge=False)
        for i in columns:
            made.add_column(header[i], justify="left" if i < self.left else "right", overflow="fold")
        for row in self.rows:
            made.add_row(*(Text(row[i]) for i in columns))
        return made


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> _Table:
    """A plain table under its title; the first `left` columns are text, the rest numbers to the right."""
    return _Table(title, header, rows, left)


def as_json(value: Any) -> str:
    """Strict JSON: NaN and infinities become null, numpy numbers plain ones."""
    return json.dumps(_plain(value), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):  # numpy
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

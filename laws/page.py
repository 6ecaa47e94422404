"""The parts of a report's HTML page: sections, tables, pictures. Everything is inside the one file."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

import matplotlib
from matplotlib.figure import Figure


def page(title: str, body: str) -> str:
    """The whole document, light or dark as the reader's system is; pictures stay on white."""
    return PAGE.format(title=escape(title), body=body)


def section(title: str, inner: str) -> str:
    """inner: HTML."""
    return f"<section><h2>{escape(title)}</h2>{inner}</section>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def details(title: str, inner: str) -> str:
    """Folded until the reader opens it. inner: HTML."""
    return f"<details><summary>{escape(title)}</summary>{inner}</details>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, words: Sequence[int]) -> str:
    """words: the columns that hold words, set left; the others hold numbers, set right."""

    def line(cells: Sequence[str], tag: str) -> str:
        kind = ['class="word"' if i in words else "" for i in range(len(cells))]
        return "<tr>" + "".join(f"<{tag} {k}>{escape(c)}</{tag}>" for k, c in zip(kind, cells)) + "</tr>"

    top = f"<thead>{line(head, 'th')}</thead>" if any(head) else ""
    return f'<div class="table"><table>{top}<tbody>{"".join(line(row, "td") for row in rows)}</tbody></table></div>'


def picture(figure: Figure, alt: str) -> str:
    """The figure as an SVG inside the page; an image of its own, so that names inside it cannot clash."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "stepseer"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, facecolor="white")
    code = base64.b64encode(buffer.getvalue()).decode()
    return f'<figure><img alt="{escape(alt)}" src="data:image/svg+xml;base64,{code}"></figure>'


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --line: #dde2e8; --page: #fbfcfd; --note: #fff6e5;
  --edge: #e0a030; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e6eaf0; --soft: #a2adba; --line: #343c47; --page: #14181d;
  --note: #2d2616; --edge: #b98424; }} }}
body {{ font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; color: var(--ink);
  background: var(--page); max-width: 1080px; margin: 0 auto; padding: 2.5rem 1.5rem 5rem; }}
h1 {{ font-size: 1.9rem; line-height: 1.2; margin: 0 0 .6rem; letter-spacing: -.01em; }}
h2 {{ font-size: 1.3rem; margin: 2.8rem 0 .5rem; padding-top: 1.2rem; border-top: 1px solid var(--line); }}
h3 {{ font-size: 1.05rem; margin: 1.8rem 0 .2rem; }}
p {{ max-width: 46rem; margin: .4rem 0 1rem; }}
.lead {{ font-size: 1.1rem; color: var(--soft); }}
.formula {{ font: .9rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; color: var(--soft); max-width: none; }}
.notes {{ background: var(--note); border-left: 4px solid var(--edge); border-radius: 4px; margin: 1.2rem 0;
  padding: .8rem 1rem .8rem 2rem; max-width: 60rem; }}
figure {{ background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: .8rem; margin: 1rem 0 1.6rem;
  overflow-x: auto; }}
img {{ max-width: 100%; height: auto; display: block; margin: 0 auto; }}
.table {{ overflow-x: auto; margin: .6rem 0 1.4rem; }}
table {{ border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: right; padding: .3rem .9rem; border-bottom: 1px solid var(--line); white-space: nowrap; }}
th {{ color: var(--soft); font-weight: 600; vertical-align: bottom; }}
.word {{ text-align: left; white-space: normal; }}
th:first-child, td:first-child {{ padding-left: 0; }}
details {{ margin: .6rem 0; }}
summary {{ cursor: pointer; color: var(--soft); }}
</style>
</head>
<body>
{body}
</body>
</html>
"""

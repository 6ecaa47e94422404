"""The report and its pictures: complete, self-contained, and drawn from what it is given."""

import base64
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pandas as pd
import pytest

from laws import plots, report
from laws.cells import best_of_cells, cells
from laws.errors import InputError
from laws.holdout import Backtest
from laws.posterior import Posterior

DIAGNOSTICS = {"max_rhat": 1.003, "min_ess": 812.0, "divergences": 0.0, "draws": 2000.0, "seconds": 3.0}


def posterior(law, centre, runs):
    """A posterior with the given site medians and a relative spread of 1%."""
    rng = np.random.default_rng(0)
    samples = {k: v * (1 + 0.01 * rng.normal(size=(4, 50))) for k, v in centre.items()}
    meta = {
        "law": law,
        "citation": "A paper",
        "rows": len(runs),
        "rows_used": 60,
        "excluded": 1,
        "cells": 12,
        "target": "loss",
        "center": {"ln_N": 0.0, "ln_D": 0.0},
        "tails": 8.0,
        "ranges": {c: [float(runs[c].min()), float(runs[c].max())] for c in ("params", "tokens")},
        "diagnostics": DIAGNOSTICS,
        "warnings": ["4 cells <left> out"],
    }
    return Posterior(law, samples, meta)


@pytest.fixture(scope="module")
def runs():
    """4 sizes, 3 budgets, 5 learning rates, 2 batch sizes at the two smaller sizes; one run diverged."""
    rows = []
    for n in (1e4, 4e4, 1e5, 3e5):
        for d in (6e4, 2e5, 6e5):
            for lr in (1e-3, 3e-3, 1e-2, 3e-2, 1e-1):
                for batch in (512, 1024) if n < 5e4 else (1024,):
                    x, y = np.log(lr / (0.05 * n**-0.2)), np.log(batch / 700)
                    loss = (1.7 + 20 / n**0.35 + 200 / d**0.4) * (1 + 0.01 * x**2 + 0.01 * y**2)
                    rows.append((n, d, lr, batch, loss, "ok"))
    out = pd.DataFrame(rows, columns=["params", "tokens", "lr", "batch_tokens", "loss", "status"]).assign(reason="")
    out.loc[out.index[-1], ["loss", "status", "reason"]] = [np.nan, "diverged", "non-finite loss at step 7"]
    return out


@pytest.fixture(scope="module")
def posteriors(runs):
    step = {"lr_const": -3.0, "lr_N": -0.2, "lr_D": 0.01, "batch_const": 6.5, "batch_N": 0.01, "batch_D": 0.01}
    step |= {"lr_sd": 0.05, "batch_sd": 0.05, "noise": 2e-3}
    loss = {"E": 1.7, "A": 20.0, "alpha": 0.35, "B": 200.0, "beta": 0.4, "noise": 3e-3}
    return {"steplaw": posterior("steplaw", step, runs), "chinchilla": posterior("chinchilla", loss, runs)}


@pytest.fixture(scope="module")
def backtests(posteriors):
    def made(law, rows, **columns):
        table = pd.DataFrame(
            rows, columns=["params", "tokens", "quantity", "measured", "median", "low", "high", "inside"]
        )
        coverage = {"0.5": 0.5, "0.8": 0.5, "0.9": 0.5, "0.95": 1.0}
        return Backtest(law, "params", "loss", 0.0123, coverage, 0.02, table.assign(**columns), posteriors[law])

    loss = [(3e5, 6e4, "loss", 4.1, 4.12, 4.0, 4.2, True), (3e5, 6e5, "loss", 3.1, 3.3, 3.2, 3.4, False)]
    lr = [(3e5, 6e4, "lr", 0.01, 0.012, 0.005, 0.02, True)]
    return {"chinchilla": made("chinchilla", loss), "steplaw": made("steplaw", lr, regret=0.004)}


class Page(HTMLParser):
    """Checks that tags nest and collects addresses and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "data", "action")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory, runs, posteriors, backtests):
    path = tmp_path_factory.mktemp("report") / "deep" / "report.html"
    notes = ["farseer was not fitted: too few <sizes>"]
    assert report.write(path, runs, posteriors=posteriors, backtests=backtests, notes=notes) == path
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_needs_nothing_but_itself(page):
    assert all(address.startswith("data:image/svg+xml;base64,") for address in page.addresses)
    pictures = [base64.b64decode(address.split(",", 1)[1]) for address in page.addresses]
    assert len(pictures) == 5  # landscape, curves, law across scale, loss, held out
    for picture in pictures:
        root = ET.fromstring(picture)
        links = [value for e in root.iter() for key, value in e.attrib.items() if key.endswith("href")]
        assert root.tag.endswith("svg") and all(link.startswith(("#", "data:")) for link in links)


def test_notes_and_warnings_are_shown_as_text(page):
    assert "Farseer was not fitted: too few <sizes>." in page.text
    assert "4 cells <left> out" in page.text


def test_the_numbers_are_those_of_the_posteriors(page, posteriors):
    ask = posteriors["chinchilla"].predict(params=3e6, tokens=6e6).loss  # ten times the largest
    low, high = ask.interval(0.9)
    assert f"{ask.median:.3f}" in page.text and f"{low:.3f} to {high:.3f}" in page.text
    lr = posteriors["steplaw"].predict(params=3e6, tokens=6e6).lr
    assert f"{lr.median:.2e}".replace("e-0", "e-") in page.text
    for part in ("1.003 at worst", "812 effective draws", "no draw diverged", "1.23% error", "1.23% regret"):
        assert part in page.text, part
    assert re.search(r"exponent of N, alpha0\.3[45]", page.text)


def test_runs_that_diverged_are_listed_with_their_reason(page):
    assert "non-finite loss at step 7" in page.text and "1 of which diverged" in page.text


def test_a_bare_table_gives_a_report(tmp_path):
    runs = pd.DataFrame({"params": [1e8, 2e8], "tokens": [1e9, 2e9], "bpc": [0.9, 0.8]})
    path = report.write(tmp_path / "r.html", runs, posteriors={}, backtests={}, target="bpc")
    bare = Page(path.read_text(encoding="utf-8"))
    assert len(bare.addresses) == 1 and "bits per character" in bare.text


def test_a_mistake_leaves_no_file(tmp_path, runs):
    with pytest.raises(InputError, match="'eval_loss'"):
        report.write(tmp_path / "r.html", runs, posteriors={}, backtests={}, target="eval_loss")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        report.write(tmp_path / "file" / "r.html", runs, posteriors={}, backtests={})
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_pictures_leave_matplotlib_alone(runs, posteriors, backtests):
    before = dict(matplotlib.rcParams)
    for figure in (plots.landscape(runs), plots.loss_curves(runs, posteriors), plots.heldout(backtests)):
        figure.canvas.draw()
    assert dict(matplotlib.rcParams) == before


def test_landscape_colours_are_the_excess_over_the_cells_best(runs):
    figure = plots.landscape(runs)
    panel = next(a for a in figure.axes if a.get_title(loc="left") == "N = 10K, D = 60K")
    shown = np.ma.getdata(panel.collections[0].get_array()).reshape(2, 5)
    cell = runs[(runs["params"] == 1e4) & (runs["tokens"] == 6e4)].sort_values(["batch_tokens", "lr"])
    expected = (cell["loss"] / cell["loss"].min() - 1) * 100
    np.testing.assert_allclose(shown.ravel(), expected, atol=1e-9)
    assert len([a for a in figure.axes if a.get_visible() and a.get_title(loc="left")]) == 6  # cells with two batches


def test_pictures_that_would_be_empty_are_none(runs, backtests):
    assert plots.landscape(runs[runs["batch_tokens"] == 1024]) is None
    assert plots.lr_curves(runs[runs["lr"] == 1e-2]) is None
    assert plots.heldout({"steplaw": backtests["steplaw"]}) is None


@pytest.mark.parametrize("span", [(1e-4, 3e-4), (1e3, 1e12), (2.0, 2.0), (9.5e4, 1.05e5)])
def test_log_axes_have_a_few_readable_ticks(span):
    axis = plots._panels(1, 1, width=3, height=3)[1][0, 0]
    plots._log_axis(axis.xaxis, span, plots.count)
    low, high = axis.get_xlim()
    assert 1 <= sum(low <= tick <= high for tick in axis.get_xticks()) <= 7


def test_a_cell_is_of_one_sparsity_and_recipe(runs, posteriors):
    """Sparse runs of another recipe at the same (N, D) are cells of their own, asked about as what they are."""
    sparse = runs.assign(params_active=runs["params"] / 4, loss=runs["loss"] * 0.9, recipe="sparse")
    both = pd.concat([runs.assign(recipe="dense", params_active=np.nan), sparse], ignore_index=True)
    every = cells(both)
    assert len(every) == 2 * len(cells(runs)) == 24
    assert all(cell.runs["recipe"].nunique() == 1 for cell in every)
    assert every[0].differ == ("params_active", "recipe") and cells(runs)[0].differ == ()
    best = best_of_cells(both, "loss", every=True)
    assert len(best) == 24 and len(best_of_cells(both, "loss")) == 12
    asked = []

    class Asked(Posterior):
        def predict(self, **query):
            asked.append(query)
            return super().predict(**query)

    plain = posteriors["steplaw"]
    law = Asked(plain.law, plain.samples, plain.meta | {"optional": {"params_active": [2e3, 3e5]}})
    figure = plots.landscape(both, law)
    # Against its own cell's best, each panel has a tile at 0: against the pair's, dense ones would not.
    panels = [axis for axis in figure.axes if "active" in axis.get_title(loc="left")]
    assert len(panels) == 12 and all(np.nanmin(np.ma.getdata(a.collections[0].get_array())) == 0 for a in panels)
    assert "N = 10K, D = 60K\n2.5K active\nsparse" in [
        axis.get_title(loc="left").replace("2,500", "2.5K") for axis in panels
    ]
    assert {query["params_active"] / query["params"] for query in asked} == {1.0, 0.25}
    asked.clear()
    plots.lr_law(pd.concat([both, sparse.assign(recipe="other")]), law)
    assert all(np.allclose(query["params_active"], query["params"] / 4) for query in asked)

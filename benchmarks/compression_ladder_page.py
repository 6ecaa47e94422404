"""The page of `compression_ladder`: both laws, the verdict, the picture, rankings, and what annealing changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.code.anneal import Mixture
from laws import compression
from laws.errors import FitError

CEILING = 0.05  # annealing may raise BPC by so much of it


def scores(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A row a model: BPC of the pretrained model, right answers of the annealed one in all forms together."""
    found = []
    for row in rows:
        answers = row["after"]["answers"].values()
        counts = {name: sum(n[key] for n in answers) for name, key in (("correct", "passed"), ("total", "asked"))}
        found.append({"model": row["model"], "bpc": row["before"]["bpc"], **counts})
    return pd.DataFrame(found)


def share(answers: dict[str, dict[str, int]], what: str) -> float:
    return sum(n[what] for n in answers.values()) / sum(n["asked"] for n in answers.values())


def models(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A row a model, before and after annealing, the worst compressor first."""
    found = []
    for row in rows:
        before, after = row["before"], row["after"]
        one = {"model": row["model"], "BPC": before["bpc"], "s.e.": before["se"], "BPC after": after["bpc"]}
        for what, said in (("complied", "form"), ("passed", "right")):
            for when, answers in (("before", before["answers"]), ("after", after["answers"])):
                one[f"{said} {when}"] = share(answers, what)
        found.append(one | {form: n["passed"] / n["asked"] for form, n in after["answers"].items()})
    return pd.DataFrame(found).sort_values("BPC", ascending=False)


def ranks(made: pd.DataFrame, column: str, draws: int = 4000) -> str:
    """Spearman's correlation of low BPC with `column`, and its 90% interval: models drawn anew."""
    from scipy.stats import spearmanr

    bpc, score = -made["BPC"].to_numpy(), made[column].to_numpy()
    rng, found = np.random.default_rng(0), []
    for _ in range(draws):
        some = rng.integers(len(made), size=len(made))
        if len(set(bpc[some])) > 1 and len(set(score[some])) > 1:
            found.append(spearmanr(bpc[some], score[some]).statistic)
    low, high = np.quantile(found, [0.05, 0.95])
    return f"{spearmanr(bpc, score).statistic:.3f} [{low:.3f}, {high:.3f}]"


def law(table: pd.DataFrame) -> tuple[compression.Comparison | None, str]:
    """Both forms, and the verdict, or why there is none."""
    try:
        found = compression.compare(table, num_warmup=800, num_samples=1500)
    except FitError as error:
        return None, f"no verdict: {error}"
    return found, found.sentence


def parting(found: compression.Comparison, table: pd.DataFrame, apart: float = 0.1) -> str:
    """Where the mean scores of the two forms come to differ by `apart`, outside of the models that there are."""
    low, high = table["bpc"].min(), table["bpc"].max()
    for name, grid in (("below", np.linspace(low, 0.05, 400)), ("above", np.linspace(high, 4 * high, 400))):
        lines = [fit.score(grid).median for fit in found.fits.values()]
        if len(at := np.flatnonzero(np.abs(lines[0] - lines[1]) >= apart)):
            return f"{name} the range, their mean scores differ by {apart:g} from {grid[at[0]]:.2f} bits on"
    return (
        f"their mean scores, which stay within 0 and 1, differ by {apart:g} at no BPC: tasks of more levels are needed"
    )


def draw(found: compression.Comparison | None, table: pd.DataFrame, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "stepseer"
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    grid = np.linspace(table["bpc"].min() * 0.95, table["bpc"].max() * 1.05, 80)
    for form, colour in (("log", "tab:blue"), ("linear", "tab:orange")) if found else ():
        line = found.fits[form].score(grid)  # type: ignore[union-attr]
        axis.plot(grid, line.median, color=colour, label={"log": "line in ln BPC", "linear": "line in BPC"}[form])
        axis.fill_between(grid, *line.interval(0.9), color=colour, alpha=0.15, lw=0)
    for i, (size, some) in enumerate(table.groupby(table["model"].str.split().str[0], sort=False)):
        axis.plot(some["bpc"], some["correct"] / some["total"], "os^Dv"[i % 5], color="k", ms=5, label=size)
    axis.set(xlabel="bits per character of the pretrained model", ylabel="right answers of the annealed model")
    axis.set(ylim=(-0.02, None))
    axis.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def start(row: dict[str, Any]) -> str:
    """What a model was before annealing."""
    before = row["before"]
    complied, passed = (share(before["answers"], what) for what in ("complied", "passed"))
    return f"{row['model']}, BPC {before['bpc']:.3f}, form {complied:.2f}, right {passed:.2f}"


def markdown(table: pd.DataFrame) -> list[str]:
    shown = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row] for row in table.itertuples(index=False)]
    rows = [list(map(str, table.columns)), ["---"] * len(table.columns), *shown]
    return ["| " + " | ".join(row) + " |" for row in rows]


def write(
    out: Path, rows: list[dict[str, Any]], ablated: list[dict[str, Any]], mixed: Mixture, heldout: dict[str, int]
) -> None:
    """`out`, and a picture and the table of scores beside it."""
    from benchmarks import compression_ladder as ladder

    table, made = scores(rows), models(rows)
    table.to_csv(out.with_suffix(".csv"), index=False)
    found, verdict = law(table)
    print(made.to_string(), verdict, sep="\n", flush=True)
    draw(found, table, out.with_suffix(".svg"))
    columns = ["form", "a_median", "b_median", "b_low", "b_high", "pearson", "rmse", "r2"]
    fits = [] if found is None else [one.summary.assign(form=form)[columns] for form, one in found.fits.items()]
    warnings = [] if found is None else found.warnings
    moved = made["BPC after"] / made["BPC"] - 1
    held = "holds" if moved.max() <= CEILING else "does not hold"
    parts = ", ".join(f"{name} {chars:,}" for name, chars in mixed.chars.items())
    variants = pd.DataFrame([
        {"model": row["model"], "share of formats": row["share"], "peak rate": row["lr"], "schedule": row["schedule"],
         "BPC": row["bpc"], "form": share(row["answers"], "complied"), "right": share(row["answers"], "passed")}
        for row in ablated
    ])  # fmt: skip
    shapes = "; ".join(f"{name}: {d} wide, {n} layers" for name, (d, n, _) in ladder.SIZES.items())
    out.write_text("\n".join([
        "# A ladder of small models: compression and code intelligence", "",
        "`python -m benchmarks.compression_ladder --work DIR`; the law alone, from the scores beside this page,",
        f"`stepseer code law benchmarks/{out.with_suffix('.csv').name}`", "",
        f"{len(made)} models trained here: {len(ladder.SIZES)} sizes (parameters without embeddings; {shapes}) by",
        f"{len(ladder.TOKENS)} budgets, {ladder.TOKENS[0] / 1e6:g}M to {ladder.TOKENS[-1] / 1e6:g}M tokens of a"
        f" BPE of {ladder.VOCAB} entries, on sources that the machine had",
        f"({', '.join(ladder.LANGUAGES)}) and, {ladder.FUNCTION_SHARE:.0%} of the sequences, small functions with their"
        " tests, none of them asked for.",
        f"BPC is of {heldout['files']} held-out files of real code, {heldout['chars']:,} characters, without"
        " near-duplicates of the training files",
        f"(window {ladder.WINDOW}, stride {ladder.STRIDE}).",
        f"{ladder.N_TASKS} generated Python tasks of levels {', '.join(map(str, ladder.LEVELS))} in each of four forms;"
        " right where the likeliest answer is.",
        f"Every model was annealed on the same {sum(mixed.chars.values()):,} characters",
        f"({parts}; {mixed.dropped:,} texts left out as they held a task), peak rate {ladder.BUDGET.lr:g}, linear to"
        " zero.", "",
        f"![scores against bits per character]({out.with_suffix('.svg').name})", "",
        "## The law", "",
        f"**{verdict}.** BPC is that of the pretrained model, scores are of the annealed one. Models of one size share"
        " a trunk, so they",
        "scatter less independently than the standard error takes them to. Scores are of all four forms together, a"
        " row a model.",
        *([] if found is None else [f"The models span {table['bpc'].min():.2f} to {table['bpc'].max():.2f} bits; "
                                    f"as both forms are fitted, {parting(found, table)}."]), "",
        *[text for one in fits for text in [*markdown(one), ""]],
        *[f"note: {text}" for text in warnings], "",
        "## Before and after Format Annealing", "",
        *markdown(made), "",
        f"Answers of the form asked for: {made['form before'].mean():.0%} before, {made['form after'].mean():.0%} after"
        f" (mean over models). BPC on held-out code changes by {moved.min():+.1%} to {moved.max():+.1%};",
        f"the bound for which the mixture was chosen, at most +{CEILING:.0%}, {held}.", "",
        "Spearman's correlation of low BPC with right answers, 90% interval (models drawn anew): "
        f"{ranks(made, 'right before')} before annealing, {ranks(made, 'right after')} after.", "",
        "## Choices, ablated", "",
        "The share of formats, and the learning rate: its peak, and held instead of annealed; the first row of a model"
        " is the choice made. Before annealing: "
+ "; ".join(start(row) for row in rows if row["model"] in ladder.ABLATED) + ".", "",
        *markdown(variants), "",
    ]))  # fmt: skip

"""Does a fit find the surface that made its runs? Synthetic tables of known laws, a hundred times.

    python -m benchmarks.recovery [--repetitions 100] [--nuts 20] [--laws farseer,nested,chinchilla]

Each table has 91 cells in the shape of Farseer's (sizes 2e8 to 6.4e9, tokens 1.2e9 to 3.1e11, the large sizes with
fewer tokens), losses by a law with coefficients from the paper's runs, and noise: log-normal, 0.15%, four times that in
one run out of twenty. The same law is fitted, with the form taken for true and with form error modelled, by normal
approximations; counted is how often the true loss lies inside the bands of `mean_loss`, over fixed points in the middle
of the data, at half a decade beyond it and at a decade (in params, in tokens, in both). Then the same where the form is
wrong, which is what form error is there for: Farseer's tables fitted by the other laws. For the first few tables the
fits are repeated with NUTS. Prints the tables of benchmarks/recovery.md.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd

from experiments import compile_cache
from laws import published
from laws.errors import FitError
from laws.fitting import fit
from laws.forms import nested

NOISE, OUTLIER_SHARE, OUTLIER = 1.5e-3, 0.05, 4.0
# By soft L1 on the log loss (scale 0.2%) on the 337 runs that the paper fits, bits per character.
NESTED = {"E": 0.268047, "A": 125.1327, "B": 715.771, "alpha": 0.400783, "beta": 0.421098, "k": 0.474132}
LEVELS = (0.5, 0.9)
HALF, DECADE = np.sqrt(10.0), 10.0
INSIDE = [(n, d) for n in (3e8, 8e8, 2e9) for d in (3e9, 2e10, 1e11)]
REGIONS = {"inside": INSIDE} | {
    f"{name} beyond": [
        (6.4e9 * k, 2e10),
        (6.4e9 * k, 1.5e11),
        (8e8, 3.1e11 * k),
        (6.4e9, 3.1e11 * k),
        (6.4e9 * k, 3.1e11 * k),
    ]
    for name, k in (("half a decade", HALF), ("a decade", DECADE))
}
POINTS = np.array([point for points in REGIONS.values() for point in points])
REGION = np.repeat(list(REGIONS), [len(points) for points in REGIONS.values()])


def design() -> pd.DataFrame:
    """Sizes in steps of sqrt 2, budgets in steps of 2."""
    cells = [(2e8 * 2 ** (i / 2), 1.2e9 * 2.0**j) for i in range(11) for j in range(9) if i < 7 or 1 <= j <= 7]
    return pd.DataFrame(cells, columns=["params", "tokens"])


def true_loss(law: str, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    if law == "nested":
        x = {"n": np.log(params), "d": np.log(tokens), "ln_N": 0.0, "ln_D": 0.0}
        return np.exp(nested.log_curve(np, NESTED, x))
    return published.LOSSES["farseer" if law == "farseer" else "farseer-chinchilla"].loss(params=params, tokens=tokens)


def synthetic(law: str, seed: int) -> pd.DataFrame:
    rng, table = np.random.default_rng(seed), design()
    scale = np.where(rng.uniform(size=len(table)) < OUTLIER_SHARE, OUTLIER * NOISE, NOISE)
    loss = true_loss(law, table["params"].to_numpy(), table["tokens"].to_numpy())
    return table.assign(bpc=loss * np.exp(scale * rng.standard_normal(len(table))), recipe=law)


def bands(law: str, runs: pd.DataFrame, form_error: bool, laplace: bool) -> np.ndarray:
    """[level, low and high, point] of the mean loss, at POINTS."""
    posterior = fit(law, runs, target="bpc", form_error=form_error, laplace=laplace)
    mean_loss = posterior.predict(params=POINTS[:, 0], tokens=POINTS[:, 1]).mean_loss
    return np.array([mean_loss.interval(level) for level in LEVELS])


def judged(truth: str, law: str, form_error: bool, seeds: range, laplace: bool = True) -> np.ndarray:
    """[repetition, level, low and high, point], in units of the true loss; refused fits are NaN."""
    true = true_loss(truth, *POINTS.T)
    out = np.full((len(seeds), len(LEVELS), 2, len(POINTS)), np.nan)
    for k, seed in enumerate(seeds):
        try:
            out[k] = bands(law, synthetic(truth, seed), form_error, laplace) / true
        except FitError as error:
            print(error, flush=True)
    return out


def line(label: str, result: np.ndarray) -> list[str]:
    """A row of markdown a region: coverage pooled over points and repetitions with its standard error, that
    of the points with least and most, mean width."""
    fitted = result[np.isfinite(result[:, 0, 0, 0])]
    inside = (fitted[:, :, 0] <= 1) & (fitted[:, :, 1] >= 1)  # [repetition, level, point]
    rows = []
    for region in REGIONS:
        here = inside[:, :, region == REGION]
        error = here.mean(axis=2).std(axis=0, ddof=1) / np.sqrt(len(here))
        pooled = " | ".join(f"{100 * m:.0f} ({100 * e:.0f})" for m, e in zip(here.mean(axis=(0, 2)), error))
        points = 100 * here[:, 1].mean(axis=0)
        width = 100 * (fitted[:, 1, 1] - fitted[:, 1, 0])[:, region == REGION].mean()
        rows.append(f"| {label} | {region} | {pooled} | {points.min():.0f} to {points.max():.0f} | {width:.2f} |")
    return rows


def agreement(quick: np.ndarray, nuts: np.ndarray) -> str:
    """Widths of the 90% bands by the normal approximation over NUTS, and how far the ends lie apart, in NUTS widths."""
    width, width_nuts = (x[:, 1, 1] - x[:, 1, 0] for x in (quick, nuts))
    apart = np.abs(quick[:, 1] - nuts[:, 1]).max(axis=1) / width_nuts
    cells = []
    for region in REGIONS:
        here = region == REGION
        ratio = np.nanmean(width[:, here] / width_nuts[:, here])
        cells.append(f"{ratio:.2f}, {np.nanmean(apart[:, here]):.2f}")
    return " | ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--nuts", type=int, default=20, help="tables that NUTS fits too")
    parser.add_argument("--laws", default="farseer,nested,chinchilla")
    args = parser.parse_args()
    compile_cache.use()
    began = time.perf_counter()
    laws = args.laws.split(",")
    cases = [(law, law, form_error) for law in laws for form_error in (False, True)]
    cases += [("farseer", law, form_error) for law in laws if law != "farseer" for form_error in (False, True)]
    head = (
        "| runs by | fitted | form error | by | region | inside 50%, % | inside 90%, % | by point | width of 90%, % |"
    )
    covered, agreed = [head, "|---|---|---|---|---|---|---|---|---|"], []
    for truth, law, form_error in cases:
        label = f"{truth} | {law} | {'modelled' if form_error else 'none'}"
        quick = judged(truth, law, form_error, range(args.repetitions))
        rows = line(f"{label} | normal, {len(quick)}", quick)
        if args.nuts:
            nuts = judged(truth, law, form_error, range(args.nuts), laplace=False)
            rows += line(f"{label} | NUTS, {len(nuts)}", nuts)
            agreed.append(f"| {label} | {agreement(quick[: args.nuts], nuts)} |")
        covered += rows
        print("\n".join([*rows, f"{time.perf_counter() - began:.0f} s"]), flush=True)
    head = "| runs by | fitted | form error | " + " | ".join(REGIONS) + " |"
    print("\n".join(["", *covered, "", head, "|---|---|---|" + "---|" * len(REGIONS), *agreed]))


if __name__ == "__main__":
    main()

"""How long fits, predictions and the import take, beside PyMC with nutpie and the `chinchilla` package.

    python -m benchmarks.fit_speed [fits steplaw beside nutpie coefficients predict import]

PyMC and nutpie (`pip install pymc nutpie`) sample the same density: Chinchilla's priors and the marginal likelihood
with form error, over all cells (`laws.fit` sees more than 128 cells through `laws.nodes`). The `chinchilla` package
(`pip install chinchilla`) is run as its README shows. Where they are not installed their rows say so. A fit is cold in
a process of its own, and warm where its programs are compiled, as they are for the next table of like size.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

import laws

LAWS = ("chinchilla", "nested", "farseer")
TABLES = ("epoch-chinchilla", "farseer", "synthetic")
CHAINS, WARMUP, DRAWS = 4, 400, 500  # `laws.fit`'s own
STEPLAW_TABLES = ("steplaw-dense", "steplaw-dense,steplaw-moe")
SEEDS = (1, 2)
POINTS = 10_000


def synthetic() -> pd.DataFrame:
    """2,000 cells of a Chinchilla law with Student-t noise of 0.5%."""
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e7, 1e10, 50), np.geomspace(1e9, 1e12, 40)))
    noise = 0.005 * np.random.default_rng(0).standard_t(4, size=N.size)
    return pd.DataFrame({"params": N, "tokens": D, "loss": (1.7 + 400 * N**-0.34 + 1800 * D**-0.36) * np.exp(noise)})


def table(name: str) -> pd.DataFrame:
    return synthetic() if name == "synthetic" else laws.load_runs(name)


# --- laws.fit --------------------------------------------------------------------------------------------------------


def timed(law: str, runs: pd.DataFrame, seed: int) -> tuple[float, dict[str, float]]:
    begun = time.perf_counter()
    diagnostics = laws.fit(law, runs, seed=seed).meta["diagnostics"]
    return time.perf_counter() - begun, diagnostics


def fit_rows(law: str, name: str) -> list[str]:
    """In a fresh process: the cold fit, then warm ones. Both kinds of chains are compiled before: those that start
    again with smaller steps where a draw diverged, too."""
    runs = table(name)
    cold, _ = timed(law, runs, 0)
    for seed in SEEDS:
        timed(law, runs, seed)
    warm = [timed(law, runs, seed) for seed in SEEDS]
    seconds = [s for s, _ in warm]
    worst_rhat, least_ess = max(d["max_rhat"] for _, d in warm), min(d["min_ess"] for _, d in warm)
    rate = np.median([d["min_ess"] / s for s, d in warm])
    span = f"{np.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
    return [
        law,
        f"{name}, {len(runs)} rows",
        f"{cold:.1f}",
        span,
        f"{worst_rhat:.3f}",
        f"{least_ess:.0f}",
        f"{rate:.0f}",
    ]


def steplaw_rows(name: str) -> Iterator[list[str]]:
    """In a fresh process: the cold fit, then warm ones; seconds by the clock and of both cores' work."""
    runs = table(name)
    for k, seed in enumerate((0, *SEEDS)):
        worked = time.process_time()
        seconds, d = timed("steplaw", runs, seed)
        worked = time.process_time() - worked
        what = f"{name}, {len(runs)} rows, {d['draws']:.0f} draws, {'warm' if k else 'cold'}"
        yield [what, f"{seconds:.1f}", f"{worked:.1f}", f"{d['max_rhat']:.3f}", f"{d['min_ess']:.0f}"]


def side_by_side() -> Iterator[list[str]]:
    """The nested law to 245 rows, warm, while as many other processes fit it too; in all of them OpenBLAS has one
    thread, as it is, or as many as there are cores, its default."""
    for others in (0, 1, 2):
        seconds = []
        for setting in ("one", "all"):
            command = [sys.executable, "-m", "benchmarks.fit_speed", "--beside", setting]
            neighbours = [subprocess.Popen([*command, "forever"], stdout=subprocess.PIPE) for _ in range(others)]
            try:
                for neighbour in neighbours:
                    assert neighbour.stdout is not None
                    neighbour.stdout.readline()  # warm by now
                seconds.append(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())
            finally:
                for neighbour in neighbours:
                    neighbour.kill()
        yield [str(others), *seconds]


def beside(setting: str, forever: bool) -> None:
    """Prints seconds a warm fit; forever: and goes on fitting."""
    from laws import threads

    if setting == "all":
        threads._limits.append(SimpleNamespace())  # as if another had set them
    runs = table("epoch-chinchilla")
    for seed in SEEDS:
        timed("nested", runs, seed)
    print(f"{np.mean([timed('nested', runs, seed)[0] for seed in (*SEEDS, *SEEDS)]):.1f}", flush=True)
    while forever:
        timed("nested", runs, SEEDS[0])


# --- the same density in PyMC ----------------------------------------------------------------------------------------


def density_of(runs: pd.DataFrame) -> dict[str, Any]:
    """The arrays that `laws.surface` hands the sampler for Chinchilla on `runs`, all cells in them: no nodes."""
    from laws import sampler, surface

    caught: dict[str, Any] = {}
    sample = sampler.sample

    def spy(model, data, start, **options):
        caught.update(data)
        return sample(model, data, start, **options)

    many = surface.MANY
    sampler.sample, surface.MANY = spy, len(runs)
    try:
        laws.fit("chinchilla", runs)
    finally:
        sampler.sample, surface.MANY = sample, many
    return {key: np.asarray(value) for key, value in caught.items()}


def pymc_model(data: dict[str, Any]) -> Any:
    """`chinchilla.model` line by line; rows and coordinates of padding are left out, which adds constants."""
    import pymc as pm
    import pytensor.tensor as pt

    from laws.forms import grid

    there, along = data["root_precision"] > 0, data["spread"] > 0
    n, d, y, root = (data[key][there] for key in ("n", "d", "log_loss", "root_precision"))
    project, spread = data["project"][there][:, along], data["spread"][along]
    with pm.Model() as model:
        center = pm.Normal("center", float(data["ln_L"]), 0.2)
        shares = pt.stack([0.0, pm.Normal("share_a", 0, 1), pm.Normal("share_b", 0, 1)])
        share = shares - pt.logsumexp(shares)
        slope_N = pm.Normal("log_slope_N", np.log(0.35) + share[1], 0.6)
        slope_D = pm.Normal("log_slope_D", np.log(0.35) + share[2], 0.6)
        noise = pm.LogNormal("noise", np.log(4e-3), 1.0)
        sizes = [pm.LogNormal.dist(mu, sigma) for mu, sigma in zip(*grid.SIZES)]
        form_error = pm.Mixture("form_error", w=grid.SHARES, comp_dists=sizes)
        terms = [
            center + share[0] + pt.zeros_like(n),
            center + share[1] - pt.exp(slope_N - share[1]) * n,
            center + share[2] - pt.exp(slope_D - share[2]) * d,
        ]
        whitened = root * (y - pt.logsumexp(pt.stack(terms), axis=0))
        coordinates = project.T @ whitened
        variance = data["known"] * noise**2 + form_error**2 * spread
        squares = pt.sum(coordinates**2 / variance) + (pt.sum(whitened**2) - pt.sum(coordinates**2)) / noise**2
        rest = data["rest"] + len(data["spread"]) - len(spread)
        logs = pt.sum(pt.log(variance)) + rest * 2 * pt.log(noise)
        pm.Potential("log_loss", -(squares + logs) / 2)
    return model


def nutpie_rows(name: str) -> list[list[str]]:
    """PyMC with nutpie beside `laws.fit`, in this process. Effective draws are the least over sampled parameters, by
    the same estimator."""
    import nutpie

    from laws.sampler import rank_diagnostics

    runs = table(name)
    data = density_of(runs)
    for seed in SEEDS:
        timed("chinchilla", runs, seed)
    begun = time.perf_counter()
    compiled = nutpie.compile_pymc_model(pymc_model(data))
    compiling = time.perf_counter() - begun
    theirs, ours = [], []
    for seed in SEEDS:
        begun = time.perf_counter()
        trace = nutpie.sample(
            compiled, tune=WARMUP, draws=DRAWS, chains=CHAINS, seed=seed, progress_bar=False, save_warmup=False
        )
        seconds = time.perf_counter() - begun
        names = ("center", "share_a", "share_b", "log_slope_N", "log_slope_D", "noise", "form_error")
        values = np.stack([trace.posterior[k].to_numpy() for k in names], axis=2)
        values[:, :, -2:] = np.log(values[:, :, -2:])
        rhat, ess = rank_diagnostics(values)
        divergences = int(trace.sample_stats["diverging"].sum())
        theirs.append((seconds, rhat, ess, divergences, np.median(np.exp(values[:, :, -1]))))
        begun = time.perf_counter()
        posterior = laws.fit("chinchilla", runs, seed=seed)
        seconds = time.perf_counter() - begun
        about = posterior.meta["diagnostics"]
        scale = np.median(posterior.draws["form_error"])
        ours.append((seconds, about["max_rhat"], about["min_ess"], about["divergences"], scale, about["seconds"]))
    rows = []
    for label, results in (("stepseer, all of `laws.fit`", ours), ("PyMC with nutpie, sampling alone", theirs)):
        seconds, rhat, ess, divergences, scale = (np.array([r[k] for r in results]) for k in range(5))
        rate = np.median(ess / seconds)
        rows.append(
            [label, f"{name}, {len(runs)} rows", f"{np.median(seconds):.1f}", f"{rhat.max():.3f}", f"{ess.min():.0f}"]
            + [f"{divergences.sum():.0f}", f"{np.median(scale):.4f}", f"{rate:.0f}"]
        )
    inside, ess = np.array([r[5] for r in ours]), np.array([r[2] for r in ours])
    rows.insert(1, ["stepseer, sampling alone", rows[0][1], f"{np.median(inside):.1f}", *rows[0][3:7]])
    rows[1].append(f"{np.median(ess / inside):.0f}")
    rows[2][0] += f" (and {compiling:.1f} s to compile)"
    return rows


# --- the chinchilla package ------------------------------------------------------------------------------------------


def coefficients() -> list[list[str]]:
    """Chinchilla's five on the replication's points: (estimator, seconds, E, A, B, alpha, beta)."""
    from laws.forms import chinchilla

    runs = laws.load_runs("epoch-chinchilla")
    by_hand = runs.drop(runs["loss"].nlargest(5).index)  # as the replication leaves them out
    names = ("E", "A", "B", "alpha", "beta")
    rows = [["published replication, 240 points", "", "1.817", "482", "2085", "0.348", "0.366"]]

    def row(label: str, seconds: float, values: Any) -> None:
        rows.append([label, f"{seconds:.1f}", *(f"{v:.4g}" for v in values)])

    for label, used in (("`point_fit`, 240 points", by_hand), ("`point_fit`, 245 points", runs)):
        data, _ = chinchilla.prepare(used, "loss")
        begun = time.perf_counter()
        e, a, b, alpha, beta = chinchilla.point_fit(data)
        seconds = time.perf_counter() - begun
        row(label, seconds, np.exp([e, a + alpha * data["ln_N"], b + beta * data["ln_D"]]).tolist() + [alpha, beta])
    laws.fit("chinchilla", runs, form_error=False, seed=1)
    begun = time.perf_counter()
    draws = laws.fit("chinchilla", runs, form_error=False, seed=1).draws
    seconds = time.perf_counter() - begun
    low, mid, high = (np.quantile([draws[k] for k in names], q, axis=1) for q in (0.05, 0.5, 0.95))
    bands = [f"{m:.4g} [{a:.4g}, {b:.4g}]" for m, a, b in zip(mid, low, high)]
    rows.append(["`laws.fit(form_error=False)`, warm, 245 points", f"{seconds:.1f}", *bands])
    if importlib.util.find_spec("chinchilla") is None:
        rows.append(["`chinchilla` package: not installed", *[""] * 6])
        return rows
    begun = time.perf_counter()
    values = package_fit(runs)
    row("`chinchilla` package, its README's grid, 245 points", time.perf_counter() - begun, values)
    return rows


def package_fit(runs: pd.DataFrame) -> list[float]:
    import matplotlib

    matplotlib.use("Agg")
    from chinchilla import Chinchilla

    with tempfile.TemporaryDirectory() as folder:
        frame = pd.DataFrame({"N": runs["params"], "D": runs["tokens"], "loss": runs["loss"]})
        frame.assign(C=6 * frame["N"] * frame["D"])[["C", "N", "D", "loss"]].to_csv(f"{folder}/df.csv", index=False)
        grid = {"E": np.linspace(1, 2, 5), "a": np.linspace(1, 10, 5), "b": np.linspace(1, 10, 5)}
        grid |= {"alpha": np.linspace(0.1, 0.7, 5), "beta": np.linspace(0.1, 0.7, 5)}
        package = Chinchilla(folder, param_grid=grid, log_level=50)
        package.fit()
        return [float(getattr(package, k)) for k in ("E", "A", "B", "alpha", "beta")]


# --- predict and import ----------------------------------------------------------------------------------------------


def predict_rows() -> list[list[str]]:
    """Milliseconds by the clock, least and median of 30, and of both cores' work, least, for POINTS distinct (N, D)."""
    params, rows = np.geomspace(1e8, 1e12, POINTS), []
    for law in (*LAWS, "stack"):
        posterior = laws.fit(law, laws.load_runs("epoch-chinchilla"), laplace=True)
        taken, worked = [], []
        for _ in range(30):
            begun, cpu_begun = time.perf_counter(), time.process_time()
            posterior.predict(params=params, tokens=20 * params)
            taken.append(1e3 * (time.perf_counter() - begun))
            worked.append(1e3 * (time.process_time() - cpu_begun))
        rows.append([law, f"{min(taken):.0f}", f"{np.median(taken):.0f}", f"{min(worked):.0f}"])
    return rows


def import_seconds() -> list[float]:
    """Of `import laws`, and with its functions for reading and fitting; medians of 5 processes, start included."""
    programs = ("import laws", "import laws; laws.load_posterior; laws.fit; laws.load_runs")
    return [float(np.median([_seconds([sys.executable, "-c", p]) for _ in range(5)])) for p in programs]


def _seconds(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - begun


# --- the page --------------------------------------------------------------------------------------------------------


def show(title: str, head: str, rows: Iterable[list[str]]) -> None:
    """A table, each row as soon as it is measured."""
    columns = head.split(",")
    print(f"\n## {title}\n\nLoad average {os.getloadavg()[0]:.1f} at the start of this part.\n")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def cpu() -> str:
    info = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
    return f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores"


def fits() -> Iterator[list[str]]:
    for name in TABLES:
        for law in LAWS:
            command = [sys.executable, "-m", "benchmarks.fit_speed", "--one", law, name]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            yield out.strip().split("\t")


def steplaw() -> Iterator[list[str]]:
    for name in STEPLAW_TABLES:
        command = [sys.executable, "-m", "benchmarks.fit_speed", "--one", "steplaw", name]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        yield from (line.split("\t") for line in out.splitlines())


def beside_nutpie() -> Iterator[list[str]]:
    missing = [p for p in ("pymc", "nutpie") if importlib.util.find_spec(p) is None]
    if missing:
        yield [f"{' and '.join(missing)} not installed", *[""] * 7]
        return
    for name in ("epoch-chinchilla", "synthetic"):
        yield from nutpie_rows(name)


def imports() -> Iterator[list[str]]:
    yield from zip(
        ("`import laws`", "with its functions for reading and fitting"), map("{:.2f}".format, import_seconds())
    )


PARTS: dict[str, tuple[str, str, Callable[[], Iterable[Any]]]] = {
    "fits": ("laws.fit", "law,table,cold s,warm s,R-hat,least ESS,ESS / s", fits),
    "steplaw": ("laws.fit of Step Law", "table,s,CPU s,R-hat,least ESS", steplaw),
    "beside": ("Fits side by side", "other fits,s,s with OpenBLAS on all cores", side_by_side),
    "nutpie": (
        "The same density in PyMC with nutpie",
        "sampler,table,s,R-hat,least ESS,divergences,form error,ESS / s",
        beside_nutpie,
    ),
    "coefficients": ("Coefficients", "estimator,s,E,A,B,alpha,beta", coefficients),
    "predict": (f"predict of {POINTS} points", "law,least ms,median ms,least CPU ms", predict_rows),
    "import": ("import", "what,s", imports),
}


def main() -> None:
    if sys.argv[1:2] == ["--beside"]:
        return beside(sys.argv[2], sys.argv[3:] == ["forever"])
    if sys.argv[1:2] == ["--one"]:
        rows = steplaw_rows(sys.argv[3]) if sys.argv[2] == "steplaw" else [fit_rows(*sys.argv[2:4])]
        for row in rows:
            print("\t".join(row), flush=True)
        return
    print(f"# Speed of fitting and predicting\n\n    python -m benchmarks.fit_speed\n\n{cpu()}.")
    for part in sys.argv[1:] or PARTS:
        title, head, rows = PARTS[part]
        show(title, head, rows())


if __name__ == "__main__":
    main()

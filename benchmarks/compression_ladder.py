"""A ladder of models trained here on code: bits per character, Format Annealing, and the law of scores against BPC.

python -m benchmarks.compression_ladder --work DIR [--out benchmarks/compression_ladder.md]

Three sizes by four budgets of tokens, trained on sources that this machine has (Python, JavaScript, Perl, C), bytes as
tokens. DIR keeps the corpora and the trained models: the same command goes on from there.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import engine
from engine.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from engine.trained import Trained
from experiments.code import anneal, bpc, corpus, corpus_build, families, formats, scorers
from experiments.code.contamination import Benchmark
from laws import compression
from laws.errors import FitError

LANGUAGES = ("python", "javascript", "perl", "c")
SIZES = {"25k": (32, 2, 2), "55k": (48, 2, 3), "100k": (64, 2, 4)}  # width, layers, heads
TOKENS = (0.1e6, 0.2e6, 0.4e6, 0.8e6)
SEQ_LEN, WINDOW, STRIDE = 256, 256, 128
BUDGET = anneal.Budget(chars=600_000, share=0.6, lr=4e-3)
N_TASKS, SAMPLES, TEMPERATURE = 40, 4, 0.7
SHARES, RATES = (0.2, 0.6), (1e-3, 4e-3)


def corpora(work: Path) -> tuple[Path, Path]:
    train, heldout = work / "train", work / "heldout"
    if not train.is_dir():
        wanted = corpus_build.Wanted(languages=LANGUAGES, size=3_000_000)
        corpus_build.build(train, corpus_build.machine(), wanted)
    if not heldout.is_dir():
        wanted = corpus_build.Wanted(languages=LANGUAGES, size=40_000, seed=1)
        corpus_build.build(heldout, corpus_build.machine(), wanted, [str(train)])
    return train, heldout


def pretrain(work: Path, train: Path) -> dict[str, Trained]:
    """Budgets two by two: what rests while its neighbour trains on is computed in vain."""
    models: dict[str, Trained] = {}
    for size, (width, layers, heads) in SIZES.items():
        for pair in (TOKENS[:2], TOKENS[2:]):
            config = TrainConfig(
                recipe="compression_ladder",
                model=ModelConfig(d_model=width, n_layers=layers, n_heads=heads),
                optim=OptimConfig(lr=6e-3, warmup_steps=20),
                data=DataConfig(corpus=str(train), seq_len=SEQ_LEN),
                init_std=0.06,
                batch_size=8,
                tokens=pair[-1],
            )
            begun = time.perf_counter()
            folder = work / "pretrained" / f"{size}-{pair[-1]:g}"
            results = engine.train_population(config, [{"tokens": d} for d in pair], folder=folder)
            text = engine.load(folder, results[0].row["run_id"]).tokenizer
            for d, result in zip(pair, results):
                models[f"{size} on {d / 1e6:g}M"] = Trained(config.model, result.params, text, result.config)
            print(
                f"{size}, {pair}: {time.perf_counter() - begun:.0f} s, bpc {[r.row['bpc'] for r in results]}",
                flush=True,
            )
    return models


def examined(models: dict[str, Trained], tasks: list[Any]) -> dict[str, dict[str, anneal.Answers]]:
    return anneal.examine(models, tasks, samples=SAMPLES, temperature=TEMPERATURE)


def bits(models: dict[str, Trained], texts: list[corpus.Text]) -> dict[str, bpc.Rate]:
    found = {}
    for name, model in models.items():
        table = bpc.measure(scorers.of(model), texts, window=WINDOW, stride=STRIDE)
        found[name] = bpc.rates(table)["all"]
    return found


def annealed(models: dict[str, Trained], mixed: anneal.Mixture, budget: anneal.Budget) -> dict[str, Trained]:
    found: dict[str, Trained] = {}
    for size in SIZES:
        own = [name for name in models if name.startswith(size)]
        found |= dict(zip(own, anneal.anneal([models[name] for name in own], mixed, budget)))
        print(f"annealed {size}", flush=True)
    return found


def ablation(model: Trained, texts: list[corpus.Text], code: list[corpus.Text], tasks: list[Any]) -> pd.DataFrame:
    """The share of formats, and the peak rate; and the rate held instead of annealed."""
    rows, benchmark = [], Benchmark(tasks)
    variants = [(share, BUDGET.lr, "linear") for share in SHARES]
    variants += [(BUDGET.share, lr, "linear") for lr in RATES if lr != BUDGET.lr] + [
        (BUDGET.share, BUDGET.lr, "constant")
    ]
    for share, lr, schedule in variants:
        budget = dataclasses.replace(BUDGET, share=share, lr=lr, schedule=schedule)
        made = anneal.anneal([model], anneal.mixture(code, budget, benchmark), budget)[0]
        answers = examined({"m": made}, tasks)["m"]
        asked = sum(one.asked for one in answers.values())
        rows.append({
            "share of formats": share, "peak rate": lr, "schedule": schedule,
            "BPC": bits({"m": made}, texts)["m"].bpc,
            "compliance": sum(one.complied for one in answers.values()) / asked,
            "score": sum(one.passed for one in answers.values()) / asked,
        })  # fmt: skip
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def table_of(before: Any, after: Any, first: Any, last: Any) -> pd.DataFrame:
    """A row a model, before and after."""
    rows = []
    for name in first:
        row = {"model": name, "BPC": before[name].bpc, "s.e.": before[name].se, "BPC after": after[name].bpc}
        for when, found in (("before", first[name]), ("after", last[name])):
            asked = sum(one.asked for one in found.values())
            row[f"complies {when}"] = sum(one.complied for one in found.values()) / asked
            row[f"right {when}"] = sum(one.passed for one in found.values()) / asked
        row |= {form: one.passed / one.asked for form, one in last[name].items()}
        rows.append(row)
    return pd.DataFrame(rows).sort_values("BPC", ascending=False)


def scores(before: Any, last: Any) -> pd.DataFrame:
    return pd.DataFrame([
        {"model": name, "bpc": before[name].bpc, "task": form, "correct": one.passed, "total": one.asked}
        for name, found in last.items() for form, one in found.items()
    ])  # fmt: skip


def law(table: pd.DataFrame) -> tuple[compression.Comparison | None, str]:
    """Both forms, and the verdict: of the tasks that any model solves, or why there is none."""
    solved = table.groupby("task")["correct"].transform("sum") > 0
    try:
        found = compression.compare(table[solved], num_warmup=800, num_samples=1500)
    except FitError as error:
        return None, f"no verdict: {error}"
    return found, found.sentence


def draw(found: compression.Comparison | None, table: pd.DataFrame, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "stepseer"
    import matplotlib.pyplot as plt

    tasks = sorted(set(table["task"]))
    figure, axes = plt.subplots(1, len(tasks), figsize=(3.2 * len(tasks), 3.2), sharey=True, layout="constrained")
    grid = np.linspace(table["bpc"].min() * 0.95, table["bpc"].max() * 1.05, 80)
    for axis, task in zip(np.atleast_1d(axes), tasks):
        own = table[table["task"] == task]
        for form, colour in (("log", "tab:blue"), ("linear", "tab:orange")):
            if found is None or task not in found.fits[form].tasks:
                continue
            line = found.fits[form].score(grid, task)
            axis.plot(grid, line.median, color=colour, label=form)
            axis.fill_between(grid, *line.interval(0.9), color=colour, alpha=0.15, lw=0)
        axis.plot(own["bpc"], own["correct"] / own["total"], "k.")
        axis.set(title=task, xlabel="bits per character")
    np.atleast_1d(axes)[0].set(ylabel="share of tasks right", ylim=(-0.02, 1))
    if np.atleast_1d(axes)[0].lines[:-1]:
        np.atleast_1d(axes)[0].legend()
    figure.savefig(path, metadata={"Date": None})


def page(
    made: pd.DataFrame, found: compression.Comparison | None, verdict: str, ablated: pd.DataFrame, mixed: anneal.Mixture
) -> str:
    from scipy.stats import spearmanr

    ranks = [spearmanr(-made["BPC"], made[f"right {when}"]).statistic if made[f"right {when}"].std() else float("nan")
             for when in ("before", "after")]  # fmt: skip
    moved = made["BPC after"] / made["BPC"] - 1
    parts = ", ".join(f"{name} {chars:,}" for name, chars in mixed.chars.items())
    columns = ["form", "task", "a_median", "b_median", "b_low", "b_high", "pearson", "rmse", "r2"]
    fits = {} if found is None else found.fits
    lines = [markdown(one.summary.assign(form=form)[columns]) for form, one in fits.items()]
    return "\n".join([
        "# A ladder of small models: compression and code intelligence", "",
        "`python -m benchmarks.compression_ladder --work DIR`", "",
        f"{len(made)} models trained here: {', '.join(SIZES)} parameters without embeddings by {len(TOKENS)}",
        f"budgets of bytes of sources that the machine had ({', '.join(LANGUAGES)}). BPC is of held-out files without",
        f"near-duplicates of the training files (window {WINDOW}, stride {STRIDE}).",
        f"{N_TASKS} generated Python tasks of levels 1 and 2,",
        f"in each of {len(formats.FORMATS)} forms; right where one of {SAMPLES} answers at temperature",
        f"{TEMPERATURE} is (pass@{SAMPLES}; before annealing the likeliest answer alone). Every model was",
        f"annealed on the same {sum(mixed.chars.values()):,} characters ({parts};",
        f"{mixed.dropped:,} texts dropped as they held a task), peak rate {BUDGET.lr:g}, linear to zero.", "",
        "![scores against bits per character](compression_ladder.svg)", "",
        "## The law", "",
        f"**{verdict}.** BPC is that of the pretrained model.", "",
        *[text for part in lines for text in [*part, ""]],
        *[f"note: {text}" for text in (found.warnings if found else [])], "",
        "## Before and after Format Annealing", "",
        *markdown(made), "",
        f"BPC on held-out code changes by {moved.min():+.1%} to {moved.max():+.1%}. Answers of the form",
        f"asked for: {made['complies before'].mean():.0%} before, {made['complies after'].mean():.0%} after. Rank",
        f"correlation of low BPC with the share of right answers: {ranks[0]:.2f} before, {ranks[1]:.2f} after.", "",
        "## Choices, ablated", "",
        f"One model ({ablated.attrs['model']}, BPC {ablated.attrs['bpc']:.3f} before), the other choices as above.", "",
        *markdown(ablated), "",
    ])  # fmt: skip


def markdown(table: pd.DataFrame) -> list[str]:
    shown = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row] for row in table.itertuples(index=False)]
    rows = [list(map(str, table.columns)), ["---"] * len(table.columns), *shown]
    return ["| " + " | ".join(row) + " |" for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/compression_ladder.md"))
    args = parser.parse_args()
    begun = time.perf_counter()
    train, heldout = corpora(args.work)
    texts, code = corpus.read(heldout), corpus.read(train)
    models = pretrain(args.work, train)
    tasks = families.tasks(N_TASKS, levels=(1, 2))
    before, first = bits(models, texts), anneal.examine(models, tasks)
    print(f"before: {time.perf_counter() - begun:.0f} s", flush=True)
    mixed = anneal.mixture(code, BUDGET, Benchmark(tasks))
    later = annealed(models, mixed, BUDGET)
    after, last = bits(later, texts), examined(later, tasks)
    made, table = table_of(before, after, first, last), scores(before, last)
    print(made.to_string(), flush=True)
    table.to_csv(args.work / "scores.csv", index=False)
    found, verdict = law(table)
    print(verdict, flush=True)
    name = f"55k on {TOKENS[-1] / 1e6:g}M"
    ablated = ablation(models[name], texts, code, tasks)
    ablated.attrs = {"model": name, "bpc": before[name].bpc}
    args.out.write_text(page(made, found, verdict, ablated, mixed))
    draw(found, table, args.out.with_suffix(".svg"))
    print(f"{time.perf_counter() - begun:.0f} s in all", flush=True)


if __name__ == "__main__":
    main()

"""`stepseer fit`: a law fitted to runs, saved as a posterior."""

from __future__ import annotations

import argparse

import numpy as np

import laws
from experiments import compile_cache, show
from experiments.commands.allocate import about
from experiments.options import Parser
from experiments.outputs import output
from laws import noise

LEVEL = 0.9  # of the intervals shown


def parser() -> Parser:
    made = Parser(
        "fit",
        "Fit a law to runs by NUTS and save the posterior. A bad fit is refused, with the reason.",
        examples="  stepseer fit steplaw steplaw-dense --out steplaw.nc\n"
        "  stepseer fit stack results --target eval_loss --out mine.nc",
    )
    made.add_argument(
        "law",
        metavar="LAW",
        help="steplaw (best lr and batch); of the loss: stack (several, the default answer), nested, farseer, "
        "chinchilla, kaplan; pooled (several recipes, each with its own); with more columns: "
        "data_constrained (unique_tokens), moe (params_active), routed (params_active, n_experts)",
    )
    add_runs(made)
    add_size(made)
    add_tuned(made)
    made.add_argument("--out", metavar="FILE", required=True, help="the posterior, NetCDF (.nc)")
    return made


def add_runs(made: Parser) -> None:
    """The arguments that say which runs, and which of their losses."""
    made.add_argument(
        "runs",
        metavar="RUNS",
        help="a published table (steplaw-dense), a CSV or Parquet file, a results folder",
    )
    made.add_argument(
        "--target", metavar="COLUMN", default="loss", help="loss (default), eval_loss, or bpc (bits per character)"
    )
    made.add_argument("--recipe", metavar="NAME", help="only the runs of this recipe, where the table holds several")


def add_size(made: Parser) -> None:
    made.add_argument(
        "--size",
        metavar="COLUMN",
        default="params",
        help="what N counts: params (default, no embeddings), params_total, params_active; predictions count likewise",
    )


def add_tuned(made: Parser) -> None:
    made.add_argument(
        "--tuned-by",
        metavar="POSTERIOR",
        help="laws of the loss: a fit of steplaw (its file, or the packaged steplaw) by which losses are first brought "
        "to those of the best lr and batch_tokens",
    )


def run(args: argparse.Namespace) -> int:
    from experiments.progress import bar

    compile_cache.use()
    out = output(args.out, "--out", (".nc",), args.runs.split(","))
    with bar(f"fitting {args.law}", quiet=args.json) as moved:
        chosen = {"target": args.target, "recipe": args.recipe, "size": args.size, "tuned_by": args.tuned_by}
        posterior = laws.fit(args.law, args.runs, progress=moved or False, **chosen)
    posterior.save(out)
    parameters = _parameters(posterior)
    meta = posterior.meta
    if args.json:
        kept = (
            "target",
            "size",
            "tuned_by",
            "source",
            "rows",
            "excluded",
            "censored",
            "ranges",
            "diagnostics",
            "warnings",
            "weights",
            "recipes",
            "tails",
            "scatter",
            "outliers",
        )
        facts = {name: meta[name] for name in kept if name in meta}
        print(show.as_json({"law": args.law, "out": str(out), "parameters": parameters, **facts}))
        return 0
    rows = [[name, *(f"{s[key]:.4g}" for key in ("median", "low", "high"))] for name, s in parameters.items()]
    for member, weight in meta.get("weights", {}).items():
        rows.insert(0, [f"weight of {member}", f"{weight:.2f}", "", ""])
    show.console().print(show.table(about(posterior), ["", "median", f"{LEVEL:.0%} low", "high"], rows))
    print("diagnostics: " + ", ".join(f"{name} {value:.4g}" for name, value in meta["diagnostics"].items()))
    if isinstance(meta.get("scatter"), dict):
        print(f"noise: {noise.sentence(parameters['noise']['median'], meta)}")
    if meta.get("censored"):
        lost = show.plural(meta["censored"], "run")
        print(f"{lost} that diverged or were stopped count as losses above their cell's best")
    for warning in posterior.warnings:
        print(f"note: {warning}")
    asked = f"{out} --params N --tokens D" + (" --recipe NAME" if "recipes" in meta else "")
    print(f"posterior in {out}; ask it with: stepseer predict {asked}")
    return 0


def _parameters(posterior: laws.Posterior) -> dict[str, dict[str, float]]:
    """Summaries of the law's numbers; of a stack those that all its laws have, of pooled laws those of each recipe."""
    shared = {name: draws for name, draws in posterior.draws.items() if draws.ndim == 1 and "." not in name}
    for recipe in posterior.meta.get("recipes", []):
        own = posterior.of(recipe).draws
        shared |= {f"{name} of {recipe}": own[name] for name in own if name not in shared and own[name].ndim == 1}
    return {name: _summary(draws) for name, draws in shared.items() if name != "member"}


def _summary(draws: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"median": float(np.median(draws)), "low": float(low), "high": float(high), "level": LEVEL}

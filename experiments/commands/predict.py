"""`stepseer predict`: what a posterior says about a scale. Imports neither jax nor the trainer."""

from __future__ import annotations

import argparse

import numpy as np

import laws
from experiments import show
from experiments.errors import InputError
from experiments.options import Parser, fraction, positives

# what a posterior predicts: field of Prediction -> (how people call it, how they write it)
QUANTITIES = {
    "lr": ("peak learning rate", show.rate),
    "batch_tokens": ("batch, tokens", show.count),
    "loss": ("loss, nats per token", show.loss),
}


Answer = dict[str, dict[str, float]]  # quantity -> median, low, high, level


def parser() -> Parser:
    made = Parser(
        "predict",
        "Best learning rate and batch size (steplaw), or the loss (loss laws), with a credible interval.",
        examples="  stepseer predict steplaw --params 7B --tokens 1.4T\n"
        "  stepseer predict mine.nc --params 1B,7B,70B --tokens 20B,140B,1.4T --level 0.5 --json",
    )
    made.add_argument("posterior", metavar="LAW_OR_FILE", help="a packaged posterior (steplaw) or a file from `fit`")
    made.add_argument(
        "--params", metavar="N", required=True, help="non-embedding parameters: 7e9, 7B; several with commas"
    )
    made.add_argument("--tokens", metavar="D", required=True, help="training tokens: 1.4e12, 1.4T; several with commas")
    made.add_argument("--level", metavar="P", default="0.9", help="mass of the interval (default 0.9)")
    return made


def run(args: argparse.Namespace) -> int:
    params, tokens = _pairs(positives(args.params, "--params"), positives(args.tokens, "--tokens"))
    level = fraction(args.level, "--level")
    posterior = laws.load_posterior(args.posterior)
    prediction = posterior.predict(params=np.array(params), tokens=np.array(tokens))
    given = {name: prediction.quantities[name] for name in QUANTITIES if name in prediction.quantities}
    answers = [{name: show.summary(q, level, i) for name, q in given.items()} for i in range(len(params))]
    if args.json:
        about = {"law": posterior.law, "posterior": args.posterior}
        whole = [{"params": n, "tokens": d, **answer, **about} for n, d, answer in zip(params, tokens, answers)]
        print(show.as_json({**answers[0], **about} if len(answers) == 1 else whole))
    else:
        _print(posterior, args, list(zip(params, tokens)), answers)
        for warning in prediction.warnings:
            print(f"note: {warning}")
    return 0


def _pairs(params: list[float], tokens: list[float]) -> tuple[list[float], list[float]]:
    """Queries: one N with one D; a single one goes with all of the other."""
    n = max(len(params), len(tokens))
    for given, option in ((params, "--params"), (tokens, "--tokens")):
        if len(given) not in (1, n):
            raise InputError(f"{option} has {len(given)} values and the other {n}; give one, or as many")
    return params * (n // len(params)), tokens * (n // len(tokens))


def _print(
    posterior: laws.Posterior, args: argparse.Namespace, queries: list[tuple[float, float]], answers: list[Answer]
) -> None:
    rows = []
    for (params, tokens), answer in zip(queries, answers):
        for name, summary in answer.items():
            label, form = QUANTITIES[name]
            interval = f"{form(summary['low'])} .. {form(summary['high'])}"
            rows.append([label, show.count(params), show.count(tokens), form(summary["median"]), interval])
    meta = posterior.meta
    title = f"{posterior.law}, fitted to {show.plural(meta['rows'] - meta['excluded'], 'run')} of {meta['source']}"
    header = ["", "N", "tokens", "median", f"{100 * float(args.level):.4g}% interval"]
    show.console().print(show.table(title, header, rows))

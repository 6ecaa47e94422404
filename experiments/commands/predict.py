"""`stepseer predict`: what a posterior says about a scale. Imports neither jax nor the trainer."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

import laws
from experiments import show
from experiments.commands.allocate import about
from experiments.errors import InputError
from experiments.options import Parser, fraction, positive, positives, share

if TYPE_CHECKING:
    from laws.forms.steplaw_surface import Settings

# what a posterior predicts: field of Prediction -> (how people call it, how they write it)
QUANTITIES = {
    "lr": ("peak learning rate", show.rate),
    "batch_tokens": ("batch, tokens", show.count),
    "regret": ("regret of that setting", show.regret),
    "loss": ("loss, nats per token", show.loss),
}


Answer = dict[str, dict[str, Any]]  # quantity -> median, low, high, level; settings -> what `laws` answers


def parser() -> Parser:
    made = Parser(
        "predict",
        "Best learning rate and batch size (steplaw), or the loss (loss laws), with a credible interval.",
        examples="  stepseer predict steplaw --params 7B --tokens 1.4T\n"
        "  stepseer predict steplaw --params 7B --tokens 1.4T --within 0.1%   which settings are good enough\n"
        "  stepseer predict steplaw --params 7B --tokens 1.4T --lr 9e-4 --batch-tokens 5M   what that setting costs\n"
        "  stepseer predict mine.nc --params 1B,7B,70B --tokens 20B,140B,1.4T --level 0.5 --json",
    )
    made.add_argument("posterior", metavar="LAW_OR_FILE", help="a packaged posterior (steplaw) or a file from `fit`")
    made.add_argument(
        "--params", metavar="N", required=True, help="non-embedding parameters: 7e9, 7B; several with commas"
    )
    made.add_argument("--tokens", metavar="D", required=True, help="training tokens: 1.4e12, 1.4T; several with commas")
    made.add_argument("--recipe", metavar="NAME", help="pooled: of which recipe; new: of one without runs")
    made.add_argument("--params-active", metavar="N", help="steplaw (sparse), moe, routed: parameters a token sees")
    made.add_argument("--n-experts", metavar="E", help="routed: experts of a routed layer")
    made.add_argument("--unique-tokens", metavar="U", help="data_constrained: distinct tokens among D")
    made.add_argument("--lr", metavar="X", help="steplaw: the regret of this peak learning rate ...")
    made.add_argument("--batch-tokens", metavar="Y", help="... and this batch size, in tokens")
    made.add_argument("--within", metavar="R", help="steplaw: the settings within this expected regret: 0.1%%, 0.001")
    made.add_argument("--level", metavar="P", default="0.9", help="mass of the interval (default 0.9)")
    return made


def run(args: argparse.Namespace) -> int:
    params, tokens = _pairs(positives(args.params, "--params"), positives(args.tokens, "--tokens"))
    level = fraction(args.level, "--level")
    if (args.lr is None) != (args.batch_tokens is None):
        raise InputError("--lr and --batch-tokens go together: a setting is both")
    within = None if args.within is None else share(args.within, "--within", "0.1%")
    posterior = laws.load_posterior(args.posterior)
    if args.recipe is not None:
        posterior = posterior.of(args.recipe)
    elif posterior.law == "pooled":
        known = ", ".join(posterior.meta["recipes"])
        raise InputError(f"pooled predicts for one recipe: give --recipe NAME; recipes: {known}")
    queries = [{"params": n, "tokens": d} for n, d in zip(params, tokens)]
    for column in ("params_active", "n_experts", "unique_tokens"):
        if (given_text := getattr(args, column)) is not None:
            option = f"--{column.replace('_', '-')}"
            values = positives(given_text, option)
            if len(values) not in (1, len(queries)):
                raise InputError(f"{option} has {len(values)} values for {len(queries)} scales; give one, or as many")
            queries = [q | {column: x} for q, x in zip(queries, values * (len(queries) // len(values)))]
    asked = {column: np.array([q[column] for q in queries]) for column in queries[0]}
    prediction = posterior.predict(**asked)
    given = {name: prediction.quantities[name] for name in QUANTITIES if name in prediction.quantities}
    setting: dict[str, float] = {}
    if args.lr is not None:
        setting = {"lr": positive(args.lr, "--lr"), "batch_tokens": positive(args.batch_tokens, "--batch-tokens")}
        given["regret"] = posterior.regret(**asked, **setting)
    answers: list[Answer] = [
        {name: show.summary(q, level, i) for name, q in given.items()} for i in range(len(queries))
    ]
    good = [] if within is None else [_settings(posterior, query, within) for query in queries]
    if good and all(isinstance(found, str) for found in good):
        raise InputError(str(good[0]))
    for answer, found in zip(answers, good):
        answer["settings"] = {"refused": found} if isinstance(found, str) else asdict(found)
    if args.json:
        about = {"law": posterior.law, "posterior": args.posterior, **show.tuned(posterior.meta)}
        whole = [
            {**query, **answer, **about, "warnings": _warnings(posterior, query, setting)}
            for query, answer in zip(queries, answers)
        ]
        print(show.as_json(whole[0] if len(whole) == 1 else whole))
    else:
        _print(posterior, args, list(zip(params, tokens)), answers)
        for query, found in zip(queries, good):
            print(f"{found}\n" if isinstance(found, str) else _in_words(query, found, posterior.meta["batch_swept"]))
        for warning in _together(prediction, given.get("regret")):
            print(f"note: {warning}")
    return 0


def _warnings(posterior: laws.Posterior, query: dict[str, float], setting: dict[str, float]) -> list[str]:
    """Those of one query."""
    regret = posterior.regret(**query, **setting) if setting else None
    return _together(posterior.predict(**query, n_draws=1), regret)


def _together(prediction: Any, regret: Any) -> list[str]:
    """The warnings of a prediction, and of a regret if it was asked for."""
    more = [] if regret is None else regret.warnings
    return prediction.warnings + [note for note in more if note not in prediction.warnings]


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
            if name not in QUANTITIES:
                continue
            label, form = QUANTITIES[name]
            if name == "regret" and not posterior.meta["batch_swept"]:
                label = "regret of that rate"
            interval = f"{form(summary['low'])} .. {form(summary['high'])}"
            rows.append([label, show.count(params), show.count(tokens), form(summary["median"]), interval])
    header = ["", "N", "tokens", "median", f"{100 * float(args.level):.4g}% interval"]
    show.console().print(show.table(about(posterior), header, rows))


def _settings(posterior: laws.Posterior, query: dict[str, float], within: float) -> Settings | str:
    """The settings good enough, or why there are none, so that other scales are answered."""
    try:
        return posterior.settings(**query, within=within)
    except laws.InputError as error:
        return str(error)


def _in_words(query: dict[str, float], found: Settings, batch_swept: bool) -> str:
    lr, batch = show.rate(found.best[0]), show.count(found.best[1])
    lrs = " .. ".join(map(show.rate, found.lr))
    least = (
        f"{show.count(query['params'])} on {show.count(query['tokens'])}: least expected regret "
        f"{show.percent(found.expected)}, at lr {lr}"
    )
    good = f"  within {show.percent(found.within)}: lr {lrs}"
    if not batch_swept:
        return f"{least}\n{good}; of the batch size these runs say nothing\n"
    batches = "any" if found.batch_tokens == (0.0, np.inf) else " .. ".join(map(show.count, found.batch_tokens))
    return f"{least}, batch {batch}\n{good} at that batch; batch {batches} at that lr\n"

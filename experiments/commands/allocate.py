"""`stepseer allocate`: what to train with a budget, and what a loss takes. Imports neither jax nor the trainer."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import laws
from experiments import covariates, show
from experiments.errors import InputError
from experiments.options import Parser, fraction, positive, positives
from experiments.outputs import output
from laws.allocation import refuse_without_tokens

PICTURES = (".svg", ".png", ".pdf")


def parser() -> Parser:
    made = Parser(
        "allocate",
        "The model size and tokens that a budget is best spent on; or, with --loss, what a loss takes.",
        examples="  stepseer allocate mine.nc --flops 1e21\n"
        "  stepseer allocate mine.nc --flops 1e21,1e22,1e23 --inference-tokens 1T --plot budgets.svg\n"
        "  stepseer allocate mine.nc --loss 2.0                least compute, and the model it goes to\n"
        "  stepseer allocate mine.nc --loss 2.0 --params 7B    tokens that a 7B model needs for it\n"
        "  stepseer allocate moe.nc --flops 1e22 --active-share 0.125",
    )
    made.add_argument("posterior", metavar="POSTERIOR", help="a packaged posterior of the loss, or a file from `fit`")
    made.add_argument("--recipe", metavar="NAME", help="pooled: of which recipe; new: of one without runs")
    made.add_argument("--flops", metavar="C", help="the budget in FLOP, inference included: 1e21; several with commas")
    made.add_argument("--loss", metavar="L", help="a loss to reach, in the unit of the fit; several with commas")
    made.add_argument("--params", metavar="N", help="with --loss: the size, non-embedding; answers the tokens it needs")
    made.add_argument("--tokens", metavar="D", help="with --loss: the tokens; answers the size that they need")
    made.add_argument("--inference-tokens", metavar="T", help="tokens the model will serve, at 2 N FLOP each")
    covariates.add(made)
    made.add_argument("--level", metavar="P", default="0.9", help="mass of the intervals (default 0.9)")
    made.add_argument("--plot", metavar="FILE", help="with --flops: a picture, .svg, .png or .pdf")
    return made


def run(args: argparse.Namespace) -> int:
    _refuse(args)
    level = fraction(args.level, "--level")
    inference = positive(args.inference_tokens, "--inference-tokens") if args.inference_tokens else 0.0
    budgets = positives(args.flops, "--flops") if args.flops else []
    losses = positives(args.loss, "--loss") if args.loss else []
    picture = picture_path(args.plot, args.posterior)
    posterior = laws.load_posterior(args.posterior)
    if args.recipe is not None:
        posterior = posterior.of(args.recipe)
    if not args.tokens:
        refuse_without_tokens(posterior)
    others = covariates.given(args, posterior)
    if losses:
        answer = _for_loss(args, posterior, losses, inference, level, others)
    else:
        answer = _for_flops(posterior, budgets, inference, level, picture, others)
    if args.json:
        asked = covariates.described(args) | show.tuned(posterior.meta)
        print(show.as_json({"law": posterior.law, "posterior": args.posterior, **asked, **answer}))
        return 0
    (_print_losses if losses else _print_budgets)(posterior, answer, level)
    for warning in answer["warnings"]:
        print(f"note: {warning}")
    if picture:
        print(f"picture in {picture}")
    return 0


def _refuse(args: argparse.Namespace) -> None:
    """Options that do not go together."""
    if bool(args.flops) == bool(args.loss):
        raise InputError("give either --flops C (what to train with it) or --loss L (what that takes)")
    if args.flops and (args.params or args.tokens):
        raise InputError("--params and --tokens go with --loss; with --flops the size is the answer")
    if args.params and args.tokens:
        raise InputError("give --params or --tokens, not both: the other is the answer; `stepseer predict` takes both")
    if args.inference_tokens and (args.params or args.tokens):
        raise InputError("--inference-tokens goes with --flops, or with --loss alone")
    if args.plot and args.loss:
        raise InputError("--plot goes with --flops")


def picture_path(text: str | None, *inputs: str | None) -> Path | None:
    """Where a picture goes, refused as `outputs.output` does."""
    return None if text is None else output(text, "--plot", PICTURES, inputs)


def save_picture(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


# --- a budget --------------------------------------------------------------------------------------------------------


def _for_flops(
    posterior: laws.Posterior,
    budgets: list[float],
    inference: float,
    level: float,
    picture: Path | None,
    others: dict[str, Any],
) -> dict[str, Any]:
    found = laws.allocate(posterior, flops=np.array(budgets), inference_tokens=inference, **others)
    rows, warnings = [], list(found.warnings)
    for i, flops in enumerate(budgets):
        own = {c: show.summary(getattr(found, c), level, i) for c in ("params", "tokens", "ratio", "loss")}
        best = {"params": found.recommended_params[i], "tokens": found.recommended_tokens[i]}
        best["loss"] = show.summary(found.recommended_loss, level, i)
        valley = {f"{t:g}": [edge[i] for edge in edges] for t, edges in found.valley.items()}
        row = {"flops": flops, "recommended": best, "optimum": own, "valley": valley}
        row |= {"no_optimum": found.no_optimum[i], "local_only": found.local_only[i], "smaller": []}
        if np.isfinite(best["params"]):
            smaller = laws.overtrain(posterior, flops=flops, inference_tokens=inference, **others)
            row["smaller"] = smaller.to_dict("records")
            known = [] if len(budgets) > 1 else found.warnings
            notes = [note for note in smaller.attrs["warnings"] if note not in known]
            warnings += [f"smaller models at {flop(flops)} FLOP: {note}" for note in notes]
        rows.append(row)
    if picture:
        from laws import plots_answers

        save_picture(plots_answers.allocation(found), picture)
    return {"inference_tokens": inference, "budgets": rows, "warnings": warnings}


def _print_budgets(posterior: laws.Posterior, answer: dict[str, Any], level: float) -> None:
    served = _served(answer)
    rows, valleys = [], []
    for row in answer["budgets"]:
        flops, best, own = flop(row["flops"]), row["recommended"], row["optimum"]
        rows.append([flops, show.count(best["params"]), show.count(best["tokens"]),
                     show.count(best["tokens"] / best["params"]), span(best["loss"], show.loss),
                     span(own["params"], show.count), span(own["tokens"], show.count)])  # fmt: skip
        valleys.append([flops, *(" .. ".join(show.count(edge) for edge in edges) for edges in row["valley"].values())])
    console = show.console()
    mass = f"{100 * level:.4g}%"
    head = ["FLOP", "N", "tokens", "tokens / N", f"loss, {mass} interval", f"best N, {mass}", f"best tokens, {mass}"]
    console.print(show.table(f"{about(posterior)}: least expected loss{served}", head, rows))
    head = ["FLOP", *(f"within {100 * float(t):g}%" for t in answer["budgets"][0]["valley"])]
    console.print(show.table("sizes whose loss at the same budget is nearly as good", head, valleys))
    largest = max(answer["budgets"], key=lambda row: row["flops"])
    if largest["smaller"]:
        head = ["a model", "N", "loss, same budget", "training compute for the same loss", "its tokens"]
        title = f"what a smaller model costs, at {flop(largest['flops'])} FLOP"
        console.print(show.table(title, head, [_smaller(one) for one in largest["smaller"]]))


def _smaller(row: dict[str, Any]) -> list[str]:
    """A row of `laws.overtrain`."""
    shown = [f"{row['smaller']:g}x smaller", show.count(row["params"]), f"{100 * row['loss_median']:+.2f}%"]
    if not np.isfinite(row["compute_median"]):
        return [*shown, f"out of reach in {row['unreachable']:.0%} of draws", "-"]
    high = f"{row['compute_high']:.3g}" if np.isfinite(row["compute_high"]) else "out of reach"
    compute = f"{row['compute_median']:.3g}x ({row['compute_low']:.3g} .. {high})"
    return [*shown, compute, show.count(row["tokens"])]


# --- a loss ----------------------------------------------------------------------------------------------------------


def _for_loss(
    args: argparse.Namespace,
    posterior: laws.Posterior,
    losses: list[float],
    inference: float,
    level: float,
    others: dict[str, Any],
) -> dict[str, Any]:
    if args.params or args.tokens:
        given, asked = ("params", "tokens") if args.params else ("tokens", "params")
        values = positives(getattr(args, given), f"--{given}")
        if len(values) not in (1, len(losses)) and len(losses) != 1:
            raise InputError(f"--{given} has {len(values)} values and --loss {len(losses)}; give one, or as many")
        question = laws.tokens_for if args.params else laws.params_for
        found = question(posterior, loss=np.array(losses), **{given: np.array(values)}, **others)
        n = max(len(values), len(losses))
        queries = [{"loss": losses[i % len(losses)], given: values[i % len(values)]} for i in range(n)]
        reaches, warnings = {asked: found}, found.warnings
    else:
        cheapest = laws.cheapest(posterior, loss=np.array(losses), inference_tokens=inference, **others)
        queries = [{"loss": loss} for loss in losses]
        reaches = {c: getattr(cheapest, c) for c in ("flops", "params", "tokens")}
        warnings = cheapest.warnings
    rows = [
        query
        | {name: show.summary(reach, level, i) for name, reach in reaches.items()}
        | {"unreachable": float(next(iter(reaches.values())).unreachable[i])}
        for i, query in enumerate(queries)
    ]
    return {"inference_tokens": inference, "losses": rows, "warnings": warnings}


def _print_losses(posterior: laws.Posterior, answer: dict[str, Any], level: float) -> None:
    forms = {"flops": flop, "params": show.count, "tokens": show.count}
    names = {"flops": "least FLOP", "params": "N", "tokens": "tokens"}
    first = answer["losses"][0]
    asked = [c for c in forms if isinstance(first.get(c), dict)]
    given = [c for c in forms if c in first and c not in asked]
    head = ["loss", *(names[c] for c in given)]
    head += [f"{names[c]}, {100 * level:.4g}% interval" for c in asked]
    rows = []
    for row in answer["losses"]:
        cells = [f"{row['loss']:g}", *(forms[c](row[c]) for c in given)]
        for c in asked:
            reach = {k: forms[c](v) if np.isfinite(v) else "out of reach" for k, v in row[c].items() if k != "level"}
            cells.append(f"{reach['median']} ({reach['low']} .. {reach['high']})")
        rows.append([*cells, f"{row['unreachable']:.0%}"])
    show.console().print(
        show.table(f"{about(posterior)}: what a loss takes{_served(answer)}", [*head, "out of reach"], rows)
    )


def _served(answer: dict[str, Any]) -> str:
    tokens = answer["inference_tokens"]
    return f", {show.count(tokens)} tokens of inference paid" if tokens else ""


# --- parts -----------------------------------------------------------------------------------------------------------


def about(posterior: laws.Posterior) -> str:
    """What was fitted to what."""
    meta = posterior.meta
    recipe = f", recipe {meta['recipe']}" if "recipe" in meta else ""
    counts = f"; N counts {meta['size']}" if meta.get("size", "params") != "params" else ""
    runs = show.plural(meta["rows"] - meta["excluded"], "tuned cell" if "tuned_by" in meta else "run")
    tuned = f"; losses as tuned by {meta['tuned_by']}" if "tuned_by" in meta else ""
    law = "pooled" if "recipe" in meta else posterior.law
    return f"{law}, fitted to {runs} of {meta['source']}{recipe}{counts}{tuned}"


def flop(value: float) -> str:
    """5.76e23: compute, three digits."""
    return f"{value:.3g}".replace("e+", "e")


def span(summary: dict[str, float], form: Any) -> str:
    """'2.31 .. 2.35': an interval as it is shown."""
    return f"{form(summary['low'])} .. {form(summary['high'])}"

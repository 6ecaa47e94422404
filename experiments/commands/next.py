"""`stepseer next`: which trials to run next, to know the best settings or the loss at a target scale for the least
FLOPs."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import laws
from experiments import compile_cache, show
from experiments.commands.fit import add_tuned
from experiments.errors import InputError
from experiments.options import Parser, one_of, positive, positives, whole
from experiments.outputs import output
from laws import design, design_loss, tuning
from laws.runs import require

COLUMNS = ("params", "tokens", "lr", "batch_tokens")
LAWS = ("steplaw", *design_loss.LAWS)
LAWS_WORDS = "steplaw (default): the best settings; nested, chinchilla, farseer: the loss"
OF_SETTINGS = ("target_params_active", "params_active", "lr", "batch_tokens", "prior")  # options of steplaw alone


def parser() -> Parser:
    made = Parser(
        "next",
        "The trials that most reduce, for their FLOPs, what not knowing the best learning rate and batch size costs at "
        "a target scale; or, with a law of the loss, the uncertainty of the loss there.",
        examples="  stepseer next runs.csv --target-params 7B --target-tokens 140B --flops 1e20 --out next.csv\n"
        "  stepseer next runs.csv --target-params 1B,7B --target-tokens 20B,140B --params 60M,120M,250M "
        "--tokens 2B,5B\n"
        "  stepseer next --target-params 1B --target-tokens 20B --params 60M,120M --tokens 1B,2B --lr 2e-4,2e-2 "
        "--batch-tokens 32k,2M   the first batch, before any run\n"
        "  stepseer next runs.csv --law nested --target-params 7B --target-tokens 140B --flops 1e21",
    )
    made.add_argument("runs", metavar="RUNS", nargs="?", help="the rows so far, as `fit` takes them; none: begin")
    made.add_argument("--law", metavar="LAW", default="steplaw", help=f"what is to be learnt: {LAWS_WORDS}")
    made.add_argument("--target-params", metavar="N", required=True, help="size that you care about; several: commas")
    made.add_argument("--target-tokens", metavar="D", required=True, help="its training tokens; as many, or one")
    made.add_argument("--target-params-active", metavar="N", help="mixture of experts: parameters a token sees there")
    cost = "what the batch may cost, 6 N D a trial (default: the best a FLOP)"
    made.add_argument("--flops", "--budget", metavar="C", help=cost)
    made.add_argument("--batch", metavar="K", default="16", help="trials at most (default 16)")
    made.add_argument("--cohort", metavar="K", default="1", help="take K at a time that train in one program")
    made.add_argument("--candidates", metavar="FILE", help="a CSV of params, tokens, lr, batch_tokens to choose from")
    made.add_argument("--params", metavar="N", help="sizes that may be trained (default: those of RUNS); with commas")
    made.add_argument("--tokens", metavar="D", help="budgets that may be; every one with every size")
    made.add_argument("--params-active", metavar="N", help="mixture of experts: one for each of --params")
    made.add_argument("--lr", metavar="LOW,HIGH", help="rates that may be tried (default: a step beyond those of RUNS)")
    made.add_argument("--batch-tokens", metavar="LOW,HIGH", help="batch sizes that may be, in tokens; likewise")
    made.add_argument("--prior", metavar="NAME", help="begin with a published law: steplaw, deepseek (default: none)")
    made.add_argument(
        "--target", metavar="COLUMN", default="loss", help="loss (default), eval_loss, or bpc (bits per character)"
    )
    made.add_argument("--recipe", metavar="NAME", help="only the runs of this recipe, where the table holds several")
    add_tuned(made)
    made.add_argument("--seed", metavar="K", default="1", help="of the first batch (default 1)")
    made.add_argument("--out", metavar="FILE", help="the trials as CSV")
    return made


def run(args: argparse.Namespace) -> int:
    one_of(args.law, LAWS, "--law")
    out = None if args.out is None else output(args.out, "--out", (".csv",), [args.runs, args.candidates])
    batch, cohort, seed = (whole(getattr(args, name), f"--{name}") for name in ("batch", "cohort", "seed"))
    flops = math.inf if args.flops is None else positive(args.flops, "--flops")
    targets = read_scales(args.target_params, args.target_tokens, args.target_params_active, "--target-", paired=True)
    if args.law != "steplaw":
        return _of_the_loss(args, targets, batch, flops, seed, out)
    tuning.refuse(args.law, args.tuned_by)
    runs = _runs(args) if args.runs else pd.DataFrame({c: pd.Series(dtype=float) for c in (*COLUMNS, args.target)})
    offered = _candidates(args, runs)
    space = design.make_space(runs, offered, targets)
    informed = None if args.prior is None else design.published(space, args.prior)
    belief = design.fit(space, runs, target=args.target, informed=informed)
    if runs.empty and informed is None:
        chosen = design.first(offered, batch=batch, seed=seed)
        spent = np.cumsum(offered["flops"].to_numpy()[chosen])
        if spent[0] > flops:
            raise InputError(f"--flops {flops:.3g} is less than the first trial takes, {spent[0]:.3g}; raise it")
        chosen, gains = chosen[spent <= flops], np.full(int((spent <= flops).sum()), np.nan)
    else:
        slot = 0.0 if math.isinf(flops) else flops / batch
        chosen, gains = design.choose(belief, offered, targets, batch=batch, flops=flops, slot=slot, cohort=cohort)
    trials = offered.iloc[chosen].reset_index(drop=True).assign(gain=gains)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        trials.to_csv(out, index=False)
    known = None if runs.empty and informed is None else belief
    answer = _answer(args, trials, targets, known, len(offered))
    if args.json:
        print(show.as_json(answer))
    else:
        _print(answer, trials, out)
    return 0


def _of_the_loss(
    args: argparse.Namespace, targets: pd.DataFrame, batch: int, flops: float, seed: int, out: Path | None
) -> int:
    """The trials that say most of the loss at the targets, by a law of the loss."""
    given = [f"--{name.replace('_', '-')}" for name in OF_SETTINGS if getattr(args, name) is not None]
    given += ["--cohort"] if args.cohort != "1" else []
    if given:
        raise InputError(f"{args.law} knows no settings, only params and tokens; leave out {', '.join(given)}")
    if args.runs is None:
        raise InputError(
            f"{args.law} needs RUNS to begin from: train the cheapest sizes and budgets of your grid first "
            "(--law steplaw begins with none)"
        )
    read = tuning.read(args.runs, args.target, args.recipe, args.tuned_by)
    runs = require(read, (args.target,), args.law)
    _one_recipe(args, runs, ["params", "tokens"])
    offered = _scales(args, runs)
    compile_cache.use()
    posterior = design_loss.fit(args.law, runs, target=args.target, seed=seed)
    slot = 0.0 if math.isinf(flops) else flops / batch
    chosen, gains, now, after = design_loss.choose(posterior, offered, targets, batch=batch, flops=flops, slot=slot)
    trials = offered.iloc[chosen].reset_index(drop=True).assign(gain=gains)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        trials.to_csv(out, index=False)
    guess = posterior.predict(params=targets["params"].to_numpy(), tokens=targets["tokens"].to_numpy()).mean_loss.median
    targets = targets.assign(mean_loss=guess, sd_now=now, sd_after=after)
    if args.json:
        about = {
            "law": args.law,
            **show.tuned(posterior.meta),
            "notes": runs.attrs["notes"],
            "candidates": len(offered),
            "flops": float(trials["flops"].sum()),
        }
        print(show.as_json(about | {"targets": targets.to_dict("records"), "trials": trials.to_dict("records")}))
    else:
        _print_loss(trials, targets, len(offered), out)
        for note in runs.attrs["notes"]:
            print(f"note: {note}")
    return 0


def _scales(args: argparse.Namespace, runs: pd.DataFrame) -> pd.DataFrame:
    """Every (params, tokens) that may be run, with its FLOPs."""
    grid = {"--params": args.params, "--tokens": args.tokens}
    if args.candidates is not None:
        given = [option for option, text in grid.items() if text is not None]
        if given:
            raise InputError(f"--candidates says what may be run; leave out {', '.join(given)}")
        return _read(args.candidates, COLUMNS[:2])
    params, tokens = (None if text is None else positives(text, option) for option, text in grid.items())
    offered = design_loss.candidates(runs, params, tokens)
    if offered.empty:
        raise InputError("every candidate has been run; add --params and --tokens")
    return offered


def _print_loss(trials: pd.DataFrame, targets: pd.DataFrame, offered: int, out: Path | None) -> None:
    total = float(np.sum(targets["sd_now"] ** 2))
    rows = [
        [show.count(t.params), show.count(t.tokens), show.flops(t.flops), f"{t.gain / total:.1%}"]
        for t in trials.itertuples()
    ]
    title = f"{show.plural(len(rows), 'trial')} of {offered:,} candidates, {show.flops(trials['flops'].sum())} FLOPs"
    if rows:
        show.console().print(show.table(title, ["N", "tokens", "FLOPs", "variance less by"], rows))
    else:
        print(f"none of {offered:,} candidates says anything of the loss there; allow larger scales")
    for t in targets.itertuples():
        where = f"{show.count(t.params)} on {show.count(t.tokens)}"
        print(
            f"mean loss at {where}: {t.mean_loss:.4g}, standard deviation {t.sd_now:.2%} now, "
            f"{t.sd_after:.2%} with these trials"
        )
    if out is not None:
        print(f"in {out}")


def _runs(args: argparse.Namespace) -> pd.DataFrame:
    """The rows so far; diverged ones without a loss."""
    runs = require(laws.load_runs(args.runs, recipe=args.recipe), ("lr", "batch_tokens", args.target), args.law)
    runs = runs[runs["status"] != "failed"]
    runs = runs.assign(**{args.target: runs[args.target].where(runs["status"] == "ok")}).dropna(subset=list(COLUMNS))
    _one_recipe(args, runs, [c for c in ("params", "tokens", "params_active") if c in runs])
    sparse = "params_active" in runs and (runs["params_active"].fillna(runs["params"]) < runs["params"]).any()
    return runs[[*COLUMNS, args.target, *(["params_active"] if sparse else [])]].reset_index(drop=True)


def _one_recipe(args: argparse.Namespace, runs: pd.DataFrame, keys: list[str]) -> None:
    """Raises InputError where several recipes have runs at one scale."""
    if (runs.groupby(keys, dropna=False)["recipe"].nunique() > 1).any():
        known = ", ".join(sorted(set(runs["recipe"])))
        raise InputError(f"{args.runs} holds several recipes with runs at one scale; name one with --recipe: {known}")


def read_scales(params: str, tokens: str, active: str | None, prefix: str, *, paired: bool = False) -> pd.DataFrame:
    """params, tokens (and params_active) of the options: each N with its D, or with every D."""
    N, D = positives(params, f"{prefix}params"), positives(tokens, f"{prefix}tokens")
    S = N if active is None else positives(active, f"{prefix}params-active")
    if len(S) != len(N):
        raise InputError(f"{prefix}params-active has {len(S)} values and {prefix}params {len(N)}; give as many")
    for n, a in zip(N, S):
        if a > n:
            raise InputError(f"{prefix}params-active {a:g} is more than {prefix}params {n:g}; N counts all experts")
    sizes = list(zip(N, S))
    if paired:
        n = max(len(N), len(D))
        if len(N) not in (1, n) or len(D) not in (1, n):
            raise InputError(f"{prefix}params has {len(N)} values and {prefix}tokens {len(D)}; give one, or as many")
        found = list(zip(sizes * (n // len(N)), D * (n // len(D))))
    else:
        found = [(size, d) for size in sizes for d in D]
    table = pd.DataFrame([(n, d, a) for (n, a), d in found], columns=["params", "tokens", "params_active"])
    return table if active is not None else table.drop(columns="params_active")


def _candidates(args: argparse.Namespace, runs: pd.DataFrame) -> pd.DataFrame:
    """Every trial that may be run, with its FLOPs."""
    grid = {"--params": args.params, "--tokens": args.tokens, "--lr": args.lr, "--batch-tokens": args.batch_tokens}
    if args.candidates is not None:
        given = [option for option, text in grid.items() if text is not None]
        if given:
            raise InputError(f"--candidates says what may be run; leave out {', '.join(given)}")
        return _read(args.candidates)
    if (args.params is None) != (args.tokens is None):
        raise InputError("--params and --tokens go together: a scale is both")
    lacking = [option for option, text in grid.items() if text is None]
    if runs.empty and lacking:
        raise InputError(f"before any run, say what may be run: {', '.join(lacking)} (or --candidates FILE)")
    if args.params is not None:
        scales = read_scales(args.params, args.tokens, args.params_active, "--")
    else:
        scales = design.scales_of(runs)
    lr = _range(args.lr, "--lr", runs["lr"], design.LR_RATIO)
    batch_tokens = _range(args.batch_tokens, "--batch-tokens", runs["batch_tokens"], design.BATCH_RATIO)
    offered = design.candidates(scales, lr, batch_tokens, runs)
    if offered.empty:
        raise InputError("every candidate has been run; widen --lr or --batch-tokens, or add --params and --tokens")
    return offered


def _range(text: str | None, option: str, tried: pd.Series, ratio: float) -> tuple[float, float]:
    if text is None:
        return float(tried.min() / ratio), float(tried.max() * ratio)
    values = positives(text, option)
    if len(values) != 2 or not values[0] <= values[1]:
        raise InputError(f"{option} is {text!r}; give the lowest and the highest, such as 1e-4,1e-2")
    if values[1] / values[0] > 1e6:
        raise InputError(f"{option} {text} spans more than six decades; narrow it")
    return values[0], values[1]


def _read(file: str, needed: tuple[str, ...] = COLUMNS) -> pd.DataFrame:
    """A CSV of candidates; flops are 6 N D where it has none."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise InputError(f"no file {file}; --candidates is a CSV of {', '.join(needed)}")
    try:
        table = pd.read_csv(path)
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is no CSV ({str(error).partition(chr(10))[0]:.80})") from None
    missing = [c for c in needed if c not in table]
    if missing:
        raise InputError(f"{file} has no column {', '.join(missing)}; candidates need {', '.join(needed)}")
    if table.empty:
        raise InputError(f"{file} has no rows; give at least one candidate")
    kept = [c for c in (*needed, "params_active", "flops") if c in table]
    for column in kept:
        values = pd.to_numeric(table[column], errors="coerce")
        bad = ~(np.isfinite(values) & (values > 0))
        if column == "params_active":
            bad &= table[column].notna()
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise InputError(f"{file}, row {row + 1}: {column} is {table[column].iloc[row]!r}; give a number above 0")
        table[column] = values.astype(float)
    table = table[kept]
    return table if "flops" in kept else table.assign(flops=design.training_flops(table))


def _answer(
    args: argparse.Namespace, trials: pd.DataFrame, targets: pd.DataFrame, belief: design.Belief | None, offered: int
) -> dict[str, Any]:
    rows = trials.astype(object).where(trials.notna(), None).to_dict("records")
    where = targets.to_dict("records")
    regret = None
    if belief is not None:
        now = design.expected_regret(belief, targets)
        regret = {"now": now, "after": now - float(trials["gain"].sum())}
        for row, (lr, batch) in zip(where, np.exp(belief.optimum(targets))):
            row |= {"lr": float(lr), "batch_tokens": float(batch)}
    notes = []
    if "params_active" in trials and "params_active" not in targets:
        notes.append("without --target-params-active the target is a dense model")
    about = {"law": args.law, "prior": args.prior, "notes": notes, "candidates": offered}
    about["flops"] = float(trials["flops"].sum())
    return about | {"expected_regret": regret, "targets": where, "trials": rows}


def _print(answer: dict[str, Any], trials: pd.DataFrame, out: Path | None) -> None:
    sparse = "params_active" in trials
    rows = [
        [
            show.count(t["params"]),
            *([show.count(t["params_active"] or t["params"])] if sparse else []),
            show.count(t["tokens"]),
            show.rate(t["lr"]),
            show.count(t["batch_tokens"]),
            show.flops(t["flops"]),
            "-" if t["gain"] is None else show.percent(t["gain"]),
        ]
        for t in answer["trials"]
    ]
    title = (
        f"{show.plural(len(rows), 'trial')} of {answer['candidates']:,} candidates, {show.flops(answer['flops'])} FLOPs"
    )
    header = ["N", *(["active"] if sparse else []), "tokens", "lr", "batch", "FLOPs", "regret less by"]
    show.console().print(show.table(title, header, rows))
    if answer["expected_regret"] is None:
        print("no runs yet: settings spread over the cheapest scales; run them, then ask again with their table")
    else:
        now, after = (answer["expected_regret"][k] for k in ("now", "after"))
        print(f"expected regret at the target: {show.regret(now)} now, {show.regret(after)} with these trials")
        for t in answer["targets"]:
            where = f"{show.count(t['params'])} on {show.count(t['tokens'])}"
            print(f"best guess for {where}: lr {show.rate(t['lr'])}, batch {show.count(t['batch_tokens'])}")
    for note in answer["notes"]:
        print(f"note: {note}")
    if out is not None:
        print(f"in {out}")

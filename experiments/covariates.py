"""What a law asks for besides params and tokens, on the command line of `allocate` and `compare`.

There N is the answer or runs over a plane, so the active parameters are given as a share of it.
"""

from __future__ import annotations

import argparse
from typing import Any

import laws
from experiments.errors import InputError
from experiments.options import Parser, positive
from laws import forms

# covariate -> (its option, of which laws and what)
OPTIONS = {
    "params_active": ("--active-share", "S", "moe, routed: the share of N that a token sees, such as 0.125"),
    "n_experts": ("--n-experts", "E", "routed: experts of a routed layer"),
    "unique_tokens": ("--unique-tokens", "U", "data_constrained: distinct tokens among D"),
}


def add(made: Parser) -> None:
    for option, letter, words in OPTIONS.values():
        made.add_argument(option, metavar=letter, help=words)


def given(args: argparse.Namespace, *posteriors: laws.Posterior) -> dict[str, Any]:
    """The covariates of `laws.allocate` and `laws.compare`. Raises InputError for one that none of the posteriors
    reads, and for one that is read and not given."""
    out: dict[str, Any] = {}
    for name, (option, letter, _) in OPTIONS.items():
        text = getattr(args, option[2:].replace("-", "_"))
        readers = [x.law for x in posteriors if name in forms.get(x.law).COVARIATES]
        if text is None and readers:
            raise InputError(f"{readers[0]} needs {option} {letter} too ({OPTIONS[name][2].partition(': ')[2]})")
        if text is None:
            continue
        if not readers:
            known = " and ".join(dict.fromkeys(x.law for x in posteriors))
            raise InputError(f"no {name} enters {known}: leave {option} out")
        value = positive(text, option)
        if name != "params_active":
            out[name] = value
        elif value > 1:
            raise InputError(f"{option} is {text!r}; it is a share of N, 1 at most, such as 0.125")
        else:
            out[name] = lambda params, share=value: share * params
    return out


def described(args: argparse.Namespace) -> dict[str, float]:
    """What was given, for JSON."""
    texts = {option: getattr(args, option[2:].replace("-", "_")) for option, *_ in OPTIONS.values()}
    return {option[2:].replace("-", "_"): positive(x, option) for option, x in texts.items() if x is not None}

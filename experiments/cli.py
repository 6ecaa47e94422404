"""The `stepseer` command: finds the subcommand, runs it, and turns a user's mistake into one line and exit code 2.

Exit codes: 0 done; 1 done, but some trials failed; 2 the user can fix it; 75 a process of several was lost, and
the same command goes on; 130 interrupted, 143 by SIGTERM.
Each subcommand is a module of `experiments.commands` with `parser() -> Parser` and `run(args) -> int`, imported only
when called: `stepseer predict` must not pay for the trainer.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence

from experiments.errors import InputError
from experiments.options import nearest
from tpu import absent

# command -> (module, one line); a command may be two words
COMMANDS = {
    "quickstart": ("quickstart", "the whole loop once: ask a law, train a grid, fit, hold out, report"),
    "predict": ("predict", "best learning rate and batch size, or the loss, at any scale"),
    "fit": ("fit", "fit a law to runs"),
    "allocate": ("allocate", "the size and tokens that a budget is best spent on; what a loss takes"),
    "next": ("next", "which trials to run next, to know the best settings at a target for least FLOPs"),
    "compare": ("compare", "which of two recipes is better where, and where they cross"),
    "backtest": ("backtest", "hold out the largest runs: how far off would the law have been?"),
    "check": ("check", "is a fit to be trusted? coverage, residuals, outliers, prior, in sentences"),
    "datasets": ("datasets", "the published run tables that can be named, and where they come from"),
    "report": ("report", "laws, hold-outs and pictures of your runs on one HTML page"),
    "serve": ("serve", "a page in the browser on which posteriors are asked"),
    "train": ("train", "train one model"),
    "generate": ("generate", "let a trained model go on with a text"),
    "export": ("export", "write a trained model in Hugging Face's format"),
    "sweep plan": ("sweep_plan", "what a grid would run, and what it would cost"),
    "sweep run": ("sweep_run", "run a grid; run it again to go on"),
    "sweep design": ("sweep_design", "of a grid, train the trials that say most of a target scale; again to go on"),
    "sweep status": ("sweep_status", "how far a grid is"),
    "sweep reproduce": ("sweep_reproduce", "train a row again, and compare"),
    "sweep table": ("sweep_table", "the rows so far, on the terminal or as CSV or Parquet"),
    "tpu compile": ("tpu_compile", "compile a recipe for a TPU slice, with no TPU at hand: does it fit, how fast?"),
    "tpu topologies": ("tpu_topologies", "the TPU slices and GPU nodes that can be named, and their figures"),
    "tpu flags": ("tpu_flags", "compiler flags of a TPU generation or a GPU, each with its reason"),
    "tpu launch": ("tpu_launch", "manifests and scripts for clusters, from one description"),
    "bpc": ("bpc", "bits per character of a model on code, by language"),
    "corpus build": ("corpus_build", "code by language, licence and date, without near-duplicates of training data"),
    "anneal": ("anneal", "teach pretrained models how benchmarks ask, in a short run, all alike"),
    "code tasks": ("code_tasks", "small programming tasks made here, and texts to train on"),
    "code run": ("code_run", "run a model's programs against their tasks' tests, isolated: pass@k"),
    "code law": ("code_law", "are scores a line in bits per character, or in their logarithm?"),
    "ctf build": ("ctf_build", "pairs of problems that differ in a detail: nearly the same words, another solution"),
    "ctf review": ("ctf_review", "a page for people to judge such pairs on, and what their verdicts leave"),
    "ctf evaluate": ("ctf_evaluate", "pass@1 on both sides of such pairs, and the drop with its interval"),
    "ctf select": ("ctf_select", "which counterfactual samples to add to training data, hard and far from the rest"),
}

_TRY = """\
try:
  stepseer quickstart
  stepseer predict steplaw --params 7B --tokens 1.4T
  stepseer sweep run tiny --out results
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line (default: the process's own); returns the exit code."""
    try:
        code = _dispatch(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, such as head, has gone
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("stepseer: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if not (isinstance(error, OSError) or _is_input_error(error)):
            raise
        print(f"stepseer: {_one_line(error)}", file=sys.stderr)
        return 2


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"stepseer {version('stepseer')}")
        return 0
    absent.say_so()
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            module = importlib.import_module(f"experiments.commands.{COMMANDS[name][0]}")
            return module.run(module.parser().parse(words[length:]))
    family = [name for name in COMMANDS if name.startswith(words[0] + " ")]
    if family and len(words) > 1 and not words[1].startswith("-"):
        known = ", ".join(name.split()[1] for name in family)
        hint = nearest(" ".join(words[:2]), family) or f"; {words[0]} knows: {known}"
        raise InputError(f"no command {' '.join(words[:2])!r}{hint}")
    if family:
        print("usage:\n" + "\n".join(f"  stepseer {name:16}{COMMANDS[name][1]}" for name in family))
        return 0
    tops = list(dict.fromkeys(name.split()[0] for name in COMMANDS))
    raise InputError(f"no command {words[0]!r}{nearest(words[0], tops) or '; commands: ' + ', '.join(tops)}")


def _overview() -> str:
    lines = ["stepseer: what will happen at the scale you can't afford to search, and how sure can you be?", ""]
    lines += [f"  stepseer {name:16}{about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join(
        [*lines, "", "Add --help to a command for its options, --json for output to read by machine.", "", _TRY]
    )


def _is_input_error(error: Exception) -> bool:
    """An InputError of any room. A room that was never imported cannot have raised one."""
    modules = [sys.modules.get(f"{room}.errors") for room in ("experiments", "engine", "laws")]
    return isinstance(error, tuple(module.InputError for module in modules if module is not None))


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())

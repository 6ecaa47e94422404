"""A ladder of models trained here on code: bits per character, Format Annealing, and the law of scores against BPC.

    python -m benchmarks.compression_ladder --work DIR [--out benchmarks/compression_ladder.md]

Three sizes by five budgets of tokens, trained on sources that this machine has (Python, JavaScript, Perl, C) and, a
tenth of the sequences, on small functions with their tests in four languages, as real corpora hold them too: models of
this size that have never seen one solve nothing. No function that is asked for is among them
(`experiments.code.families`), and bits per character are of real files alone. Of a size there is one trunk at a
constant learning rate, from which each budget branches off to decay (`engine.branch`). Every model is annealed on the
same mixture, and examined before and after.

DIR keeps the corpora, the models and what was measured of each: the same command goes on from there, and writes the
page when all is measured. `compression_ladder_page` has the law, the picture and the page.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import engine
from benchmarks import compression_ladder_page as page
from engine.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from engine.trained import Trained
from experiments import compile_cache
from experiments.code import anneal, bpc, corpus, corpus_build, families, scorers
from experiments.code.contamination import Benchmark

LANGUAGES = ("python", "javascript", "perl", "c")
SIZES = {"25k": (32, 2, 2), "150k": (64, 3, 4), "790k": (128, 4, 4)}  # width, layers, heads
TOKENS = (0.2e6, 0.4e6, 0.8e6, 1.6e6, 3.2e6)
VOCAB, SEQ_LEN, BATCH, LR, DECAY = 1024, 256, 8, 1e-2, 0.2
FUNCTIONS, FUNCTION_SHARE = 30_000, 0.3  # made, and their share of the sequences
WINDOW, STRIDE = 256, 128
LEVELS, N_TASKS = (1, 2), 160
BUDGET = anneal.Budget(chars=600_000, share=0.4, lr=2e-3, batch_size=4)
ABLATED = ("25k on 1.6M", "150k on 1.6M")
VARIANTS = ({}, {"share": 0.1}, {"share": 0.9}, {"lr": 5e-4}, {"lr": 8e-3}, {"schedule": "constant"})


def corpora(work: Path, benchmark: Benchmark) -> tuple[str, list[corpus.Text], list[corpus.Text]]:
    """(what to train on, its files of code, the held-out files)."""
    train, heldout, functions = work / "train", work / "heldout", work / "functions"
    wanted = corpus_build.Wanted(languages=LANGUAGES, size=3_000_000)
    if not train.is_dir():
        corpus_build.build(train, corpus_build.machine(), wanted)
    if not heldout.is_dir():
        wanted = dataclasses.replace(wanted, size=60_000, seed=1)
        corpus_build.build(heldout, corpus_build.machine(), wanted, [str(train)])
    if not functions.is_dir():
        functions.mkdir()
        made = families.solved(FUNCTIONS, seed=1, languages=("python", "javascript"), levels=LEVELS)
        texts = [_with_a_test(one, i) for i, one in enumerate(made) if not benchmark.in_task(one)]
        for at in range(0, len(texts), 20):
            (functions / f"{at:05}.txt").write_text("\n".join(texts[at : at + 20]))
    name = f"{train}:{1 - FUNCTION_SHARE:g},{functions}:{FUNCTION_SHARE:g}"
    return name, corpus.read(train), corpus.read(heldout)


def _with_a_test(task: Any, i: int) -> str:
    """A function as it stands in a file, and one of its tests."""
    end, *checks = task.tests.split("\n")
    return f"{task.prompt}{task.reference}\n{end}".rstrip() + f"\n{checks[i % len(checks)]}\n"


def pretrained(work: Path, size: str, data: str) -> dict[str, Trained]:
    """The models of one size, smallest budget first."""
    width, layers, heads = SIZES[size]
    models: dict[str, Trained] = {}
    before = None
    for tokens in TOKENS:
        config = TrainConfig(
            recipe="compression_ladder",
            model=ModelConfig(vocab_size=VOCAB, d_model=width, n_layers=layers, n_heads=heads),
            optim=OptimConfig(
                optimizer="muon", lr=LR, final_lr=0.0, warmup_steps=20, schedule="wsd", decay_fraction=DECAY
            ),
            data=DataConfig(corpus=data, tokenizer=f"bpe-{VOCAB}", seq_len=SEQ_LEN),
            init_std=0.04,
            batch_size=BATCH,
            tokens=tokens,
            eval_sequences=8,
        )
        at_peak = int((1 - DECAY) * config.steps) * config.batch_tokens
        constant = dataclasses.replace(config.optim, schedule="constant")
        trunk, folder = (work / part / f"{size}-{tokens:g}" for part in ("trunks", "pretrained"))
        engine.train(dataclasses.replace(config, tokens=at_peak, optim=constant), folder=trunk, branch_from=before)
        engine.train(config, folder=folder, branch_from=trunk)
        models[f"{size} on {tokens / 1e6:g}M"] = engine.load(folder)
        before = trunk
    return models


def bits(model: Trained, texts: list[corpus.Text]) -> dict[str, float]:
    found = bpc.rates(bpc.measure(scorers.of(model), texts, window=WINDOW, stride=STRIDE))["all"]
    return {"bpc": found.bpc, "se": found.se}


def measured(models: dict[str, Trained], texts: list[corpus.Text], tasks: list[Any]) -> dict[str, dict[str, Any]]:
    """Of each model its BPC and, form by form, the likeliest answer to each task."""
    answers = anneal.examine(models, tasks)
    return {name: bits(model, texts) | {"answers": {form: dataclasses.asdict(n) for form, n in answers[name].items()}}
            for name, model in models.items()}  # fmt: skip


def kept(path: Path, make: Any, *of: Any) -> Any:
    """What make(*of) returns, or what it returned before."""
    if not path.is_file():
        begun = time.perf_counter()
        found = make(*of)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1))
        print(f"{path.stem}: {time.perf_counter() - begun:.0f} s", flush=True)
    return json.loads(path.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/compression_ladder.md"))
    args = parser.parse_args()
    compile_cache.use()
    tasks = families.tasks(N_TASKS, levels=LEVELS)
    benchmark = Benchmark(tasks)
    data, code, texts = corpora(args.work, benchmark)
    mixed = anneal.mixture(code, BUDGET, benchmark, levels=LEVELS)

    def row(name: str, model: Trained) -> dict[str, Any]:
        (later,) = anneal.anneal([model], mixed, BUDGET)
        return {"model": name, **measured({"before": model, "after": later}, texts, tasks)}

    def ablation(name: str) -> list[dict[str, Any]]:
        rows = []
        for change in VARIANTS:
            budget = dataclasses.replace(BUDGET, **change)  # type: ignore[arg-type]
            made = anneal.anneal([models[name]], anneal.mixture(code, budget, benchmark, levels=LEVELS), budget)
            chosen = {key: getattr(budget, key) for key in ("share", "lr", "schedule")}
            rows.append({"model": name, **chosen, **measured({"m": made[0]}, texts, tasks)["m"]})
        return rows

    models = {name: model for size in SIZES for name, model in pretrained(args.work, size, data).items()}
    rows = [kept(args.work / f"{name}.json", row, name, model) for name, model in models.items()]
    ablated = [one for name in ABLATED for one in kept(args.work / f"ablation {name}.json", ablation, name)]
    page.write(args.out, rows, ablated, mixed, {"chars": sum(len(t.text) for t in texts), "files": len(texts)})


if __name__ == "__main__":
    main()

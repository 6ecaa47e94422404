"""Does fine-tuning on selected counterfactual samples beat fine-tuning on as many drawn at random?

    python -m benchmarks.ctf_finetune --out benchmarks/ctf_finetune.json

Small models, each seed with its own initial weights, learn the originals of the training part first (`before`). Each
goes on, for the same number of steps, on: the originals alone; the originals and as many of their partners as `--k`
says drawn at random (another draw each seed); or as many selected (difficulty by the first model's loss and pass rate,
then k-center greedy). Measured on pairs of the benchmark part, which share no problem with the training part: pass@1 on
originals and on partners, and the drop. Of the templates those of levels 1 and 2 alone, for time.

The interval of a difference between arms is a bootstrap over seeds and pairs together.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

import engine
from engine import ModelConfig, tokenize
from experiments.code.ctf import build as build_lib
from experiments.code.ctf import embed, evaluate, select, tune
from experiments.code.ctf.problems import Pair
from experiments.code.ctf.templates import TEMPLATES
from experiments.code.grading import Grade
from experiments.code.tasks import Sample
from experiments.commands.ctf_build import made_here

ARMS = ("before", "originals", "random", "selected")
SEQ_LEN, BATCH = 256, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--k", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--base-steps", type=int, default=500)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    start = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - start:5.0f} s] {line}", flush=True)

    easy = tuple(template for template in TEMPLATES if template.level <= 2)
    training, heldout = (build_lib.build(made_here(count, part, 1, easy)).pairs
                         for count, part in ((270, "training"), (140, "benchmark")))  # fmt: skip
    heldout = [heldout[i] for i in np.random.default_rng(0).permutation(len(heldout))[: args.pairs]]
    originals, partners = [p.original for p in training], [p.partner for p in training]
    tokenizer = tokenize.train("bpe-768", [a + b for a, b in tune.examples(originals)])
    model = ModelConfig(vocab_size=tokenizer.vocab_size, d_model=args.width, n_layers=args.layers, n_heads=4)
    longest = max(len(ids) for ids in tokenizer.encode_batch([p.solution for p in originals + partners])) + 8
    grader = Grader(heldout, longest)
    say(f"{len(training)} training pairs, {len(heldout)} held out; answers of at most {longest} tokens")

    def tuned(params, problems, steps, lr, seed):
        made = tune.examples(problems)
        sequences = len(tune.pack(tokenizer, made, SEQ_LEN, seed)[0])
        recipe = tune.Recipe(epochs=steps * BATCH / sequences, batch_size=BATCH, seq_len=SEQ_LEN, lr=lr, seed=seed)
        return tune.tune(
            model, params, tokenizer, made, recipe, lambda n, of, loss: n % 100 or say(f"  {n}/{of} {loss}")
        )

    bases = tuned([engine.init(model, s) for s in range(args.seeds)], originals, args.base_steps, 4e-3, 0)
    say(f"{args.seeds} models trained on {len(originals)} originals")
    rates = {"before": [grader(one, model, tokenizer) for one in bases]}
    say(f"before: {np.mean(rates['before'], axis=(0, 1)).round(3)}")
    chosen = {}
    for arm in ARMS[1:]:
        rates[arm] = []
        for seed, base in enumerate(bases):
            more: list[int] = []
            if arm == "random":
                more = np.random.default_rng(100 + seed).permutation(len(partners))[: args.k].tolist()
            elif arm == "selected":
                trained = engine.Trained(model, base, tokenizer, None)
                scores = select.difficulty(trained, partners, max_new_tokens=longest)
                kept = select.hardest(scores, 0.5)
                states = [embed.pooled(trained, [select.text(p) for p in some]) for some in (partners, originals)]
                more = kept[select.k_center(states[0][kept], states[1], args.k)[0]].tolist()
                chosen[seed] = {"difficulty": float(scores[more].mean()), "of_all": float(scores.mean())}
            after = tuned([base], originals + [partners[i] for i in more], args.steps, 2e-3, seed)[0]
            rates[arm].append(grader(after, model, tokenizer))
        say(f"{arm}: {np.mean(rates[arm], axis=(0, 1)).round(3)}")
    report = {"settings": {k: v for k, v in vars(args).items() if k != "out"}, "training_pairs": len(training),
              "parameters": int(sum(x.size for _, x in _leaves(bases[0]))), "difficulty": chosen,
              "seconds": round(time.monotonic() - start), "arms": {}, "differences": {}}  # fmt: skip
    for arm in ARMS:
        r = np.asarray(rates[arm])  # [seeds, pairs, 2]
        report["arms"][arm] = {
            name: _interval(values)
            for name, values in (("original", r[..., 0]), ("partner", r[..., 1]), ("drop", r[..., 0] - r[..., 1]))
        }
    for a, b in (("selected", "random"), ("selected", "originals"), ("random", "originals")):
        x = np.asarray(rates[a]) - np.asarray(rates[b])
        report["differences"][f"{a} - {b}"] = {"original": _interval(x[..., 0]), "partner": _interval(x[..., 1]),
                                               "seeds": x[..., 1].mean(axis=1).round(4).tolist()}  # fmt: skip
    print(json.dumps(report, indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


class Grader:
    """What a model gets right of pairs, [pairs, 2]; an answer that was seen before is not run again."""

    def __init__(self, pairs: list[Pair], longest: int) -> None:
        self.pairs, self.tasks, self.longest = pairs, evaluate.asked(pairs, "alpaca"), longest
        self.known: dict[tuple[str, str], Grade] = {}

    def __call__(self, params, model, tokenizer) -> np.ndarray:
        trained = engine.Trained(model, params, tokenizer, None)
        written = evaluate.written(trained, self.tasks, max_new_tokens=self.longest)
        new = list({(s.task_id, s.text) for s in written} - set(self.known))
        grades = evaluate.graded(self.tasks, [Sample(*one) for one in new]) if new else []
        self.known.update(zip(new, grades))
        found: dict[str, Grade] = {s.task_id: self.known[s.task_id, s.text] for s in written}
        return np.array([[found[f"{p.pair_id}/{side}"].passed for side in ("original", "partner")] for p in self.pairs],
                        float)  # fmt: skip


def _interval(values: np.ndarray, draws: int = 4000) -> dict[str, float]:
    """Mean of [seeds, pairs] and its 90% interval, seeds and pairs drawn anew."""
    rng = np.random.default_rng(0)
    seeds, pairs = values.shape
    means = [values[rng.integers(seeds, size=seeds)][:, rng.integers(pairs, size=pairs)].mean() for _ in range(draws)]
    low, high = np.quantile(means, [0.05, 0.95])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def _leaves(tree):
    for name, value in tree.items():
        yield from _leaves(value) if isinstance(value, dict) else [(name, value)]


if __name__ == "__main__":
    main()

"""Format Annealing: a short run, learning rate down to zero, that teaches pretrained models how benchmarks ask.

Only the idea is public (arXiv 2505.11441): a light, transparent step, so that base models are compared by what they
know of code, not by the formats that they happen to have seen. The choices here:

    mixture   `share` of its characters are solved examples in the forms of `experiments.code.formats`, all as often;
              the others are code, whole files in a random order, so that the model stays what it was
    budget    characters, the same text for every model, seen once
    schedule  a twentieth of warm-up to `lr`, then linear to zero; a new optimizer, of the pretraining's kind
    checks    no example and no file holds a task of the benchmarks (`contamination`)
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

import engine
from engine import data
from engine.config import DataConfig, OptimConfig, TrainConfig
from engine.tokenize import Tokenizer
from engine.trained import Trained
from experiments.code import families, formats, grading
from experiments.code.contamination import Benchmark
from experiments.code.corpus import Text
from experiments.code.tasks import Sample, Task
from experiments.errors import InputError

LEVELS = (1, 2)  # of the solved examples, by default


@dataclass(frozen=True)
class Budget:
    """chars: of the mixture. share: of them that teach formats. lr: peak. batch_size: sequences a step."""

    chars: int = 300_000
    share: float = 0.5
    lr: float = 2e-3
    schedule: str = "linear"
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"share is {self.share}; it must be above 0 and at most 1")
        if self.chars < 1000:
            raise InputError(f"chars is {self.chars}; a mixture has at least 1000 characters")


@dataclass(frozen=True)
class Mixture:
    """texts: in the order in which they are seen. chars: by part, a form or "code". dropped: texts left
    out, as they held a task."""

    texts: tuple[str, ...]
    chars: dict[str, int]
    dropped: int

    @property
    def digest(self) -> str:
        return hashlib.sha256("\0".join(self.texts).encode()).hexdigest()


def mixture(
    code: Sequence[Text],
    budget: Budget,
    benchmark: Benchmark,
    *,
    languages: Sequence[str] = ("python",),
    levels: Sequence[int] = LEVELS,
) -> Mixture:
    """The training texts. Raises InputError where the code is too little to be seen once."""
    rng = random.Random(budget.seed)
    examples, dropped_examples = _examples(budget, benchmark, languages, levels)
    rest = budget.chars - sum(len(text) for _, text in examples)
    texts, dropped = list(examples), dropped_examples
    order = list(code)
    rng.shuffle(order)
    for one in order:
        if rest <= 0:
            break
        if benchmark.in_text(one.text):
            dropped += 1
            continue
        texts.append(("code", one.text[:rest]))
        rest -= len(one.text)
    if rest > 0 and budget.share < 1:
        raise InputError(f"the code to go on with is {rest:,} characters short of its part of the mixture; give more, "
                         "lower the budget, or raise the share of formats")  # fmt: skip
    texts = _interleaved(texts, rng)
    chars: dict[str, int] = {}
    for part, text in texts:
        chars[part] = chars.get(part, 0) + len(text)
    return Mixture(tuple(text for _, text in texts), chars, dropped)


def _examples(
    budget: Budget, benchmark: Benchmark, languages: Sequence[str], levels: Sequence[int]
) -> tuple[list[tuple[str, str]], int]:
    """(form, text) of solved examples, every form in turn."""
    found: list[tuple[str, str]] = []
    chars = dropped = 0
    tasks = families.solved(budget.chars, seed=budget.seed, languages=languages, levels=levels)
    while chars < budget.chars * budget.share:
        for form, ask in formats.FORMATS.items():
            task = next(tasks)
            while not formats.spoken(form, task) and "python" in languages:
                task = next(tasks)
            if not formats.spoken(form, task):
                continue
            if benchmark.in_task(task):
                dropped += 1
                continue
            asked = ask(task)
            found.append((form, asked.task.prompt + asked.answer))
            chars += len(found[-1][1])
    return found, dropped


def _interleaved(texts: list[tuple[str, str]], rng: random.Random) -> list[tuple[str, str]]:
    """Files are cut to pieces of a few thousand characters, so that no long stretch is of one kind."""
    pieces = [(part, text[at : at + 2000]) for part, text in texts for at in range(0, len(text), 2000)]
    rng.shuffle(pieces)
    return pieces


def anneal(
    models: Sequence[Trained], mixed: Mixture, budget: Budget, *, folder: Path | None = None, **how: Any
) -> list[Trained]:
    """Each model after the run; models of one shape and tokenizer, which train as one program. folder, how: as in
    `engine.train_population`."""
    first = models[0]
    if first.tokenizer is None:
        raise InputError("this model has no tokenizer that we read, so no text can be taught to it")
    for model in models[1:]:
        if model.model != first.model or model.tokenizer is None or model.tokenizer.digest != first.tokenizer.digest:
            raise InputError("models annealed together must be of one shape and have one tokenizer")
    seq_len = first.config.data.seq_len if first.config else 512
    corpus = _corpus(mixed, first.tokenizer, seq_len)
    params = [model.params for model in models]
    config = _config(first, corpus, f"formats-{mixed.digest[:12]}-from-{_digest(params)}", budget, seq_len)
    hypers = [{"seed": i} for i in range(len(models))]  # as run ids differ; nothing is drawn
    results = engine.train_population(config, hypers, start=params, corpus=corpus, folder=folder, **how)
    for result in results:
        if result.row["status"] != "ok":
            raise InputError(f"the run ended as {result.row['status']} ({result.row['reason']}); lower lr {budget.lr}")
    return [dataclasses.replace(m, params=r.params, config=r.config) for m, r in zip(models, results)]


def _config(first: Trained, corpus: data.Corpus, name: str, budget: Budget, seq_len: int) -> TrainConfig:
    batch_tokens = budget.batch_size * seq_len
    steps = len(corpus.train) // batch_tokens
    if steps < 20:
        raise InputError(f"the mixture is {steps} steps of {batch_tokens} tokens; raise chars, or lower batch_size")
    vocab = corpus.vocab_size
    return TrainConfig(
        recipe="format_annealing",
        model=first.model,
        optim=OptimConfig(
            optimizer="adamw" if first.config is None else first.config.optim.optimizer,
            lr=budget.lr,
            final_lr=0.0,
            schedule=budget.schedule,
            warmup_steps=steps // 20,
        ),
        data=DataConfig(
            corpus=name,  # so that a run is known by its texts and by what it started from
            tokenizer="bytes" if vocab == 257 else f"bpe-{max(vocab, 258)}",
            seq_len=seq_len,
            seed=budget.seed,
        ),
        batch_size=budget.batch_size,
        tokens=steps * batch_tokens,
        dtype="float32" if first.config is None else first.config.dtype,
        eval_sequences=8,
    )


def _digest(params: Any) -> str:
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()[:12]


def _corpus(mixed: Mixture, tokenizer: Tokenizer, seq_len: int) -> data.Corpus:
    """The mixture as tokens, a separator behind each text. What is evaluated on is its last piece."""
    parts: list[np.ndarray] = []
    separator = np.array([tokenizer.separator], tokenizer.dtype)
    for ids in tokenizer.encode_batch(list(mixed.texts)):
        parts += [ids, separator]
    tokens = np.concatenate(parts)
    if len(tokens) < 4 * (seq_len + 1):
        raise InputError(f"the mixture is {len(tokens)} tokens, too few for sequences of {seq_len}; raise chars")
    digest = hashlib.sha256(tokens.tobytes()).hexdigest()[:32]
    chars = sum(map(len, mixed.texts)) / len(tokens)
    return data.Corpus("formats", tokenizer.vocab_size, tokens, tokens[-max(len(tokens) // 20, seq_len + 1) :], chars,
                       digest, tokenizer)  # fmt: skip


# --- what it changes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """Of one form: tasks asked; how many had a first answer of that form; how many had a right one among all."""

    asked: int
    complied: int
    passed: int


def examine(
    models: dict[str, Trained], tasks: Sequence[Task], *, samples: int = 1, temperature: float = 0.0, **how: Any
) -> dict[str, dict[str, Answers]]:
    """Model -> form -> answers: `samples` to each task, by default the likeliest one. An answer without the form is not
    right, and programs that several models write run once. how: of `grading.grade`."""
    found: dict[str, dict[str, Answers]] = {name: {} for name in models}
    for form, ask in formats.FORMATS.items():
        asked = [ask(task).task for task in tasks if formats.spoken(form, task)]
        texts = {name: [_answers(model, asked, temperature, seed) for seed in range(samples)]
                 for name, model in models.items()}  # fmt: skip
        fits = {(task.task_id, text): formats.complies(form, task, text)
                for of in texts.values() for row in of for task, text in zip(asked, row)}  # fmt: skip
        unique = sorted(key for key, fit in fits.items() if fit)
        grades = grading.grade(asked, [Sample(*key) for key in unique], **how) if unique else []
        right = {key for key, one in zip(unique, grades) if one.passed}
        for name, of in texts.items():
            told = [[(task.task_id, row[i]) for row in of] for i, task in enumerate(asked)]
            found[name][form] = Answers(
                len(asked), sum(fits[keys[0]] for keys in told), sum(any(key in right for key in keys) for keys in told)
            )
    return found


def _answers(model: Trained, asked: Sequence[Task], temperature: float, seed: int) -> list[str]:
    """What the model goes on with, 32 prompts at a time; as much as the longest right answer needs, and a little.

    A prompt's blanks at its end are left to the model: a BPE has a word and the blank before it as one token, so a
    prompt that ends with a blank is no beginning of any text that the model has seen.
    """
    tokenizer = model.tokenizer
    assert tokenizer is not None
    longest = max(len(tokenizer.encode(task.reference)) for task in asked) + 12
    found = []
    blanks = [len(task.prompt) - len(task.prompt.rstrip(" ")) for task in asked]
    for at in range(0, len(asked), 32):
        prompts = [tokenizer.encode(task.prompt.rstrip(" ")) for task in asked[at : at + 32]]
        n = len(prompts)
        prompts += [prompts[0]] * (32 - n)  # one program for all
        written = engine.generate(model.model, model.params, prompts, max_new_tokens=longest, temperature=temperature,
                                  seed=seed * len(asked) + at, stop=tokenizer.separator)  # fmt: skip
        found += [tokenizer.decode([*row, *new]).removeprefix(tokenizer.decode(row))
                  for row, new in zip(prompts[:n], written)]  # fmt: skip
    return [text.removeprefix(" " * n) for text, n in zip(found, blanks)]

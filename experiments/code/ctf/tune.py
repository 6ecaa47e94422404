"""Fine-tuning on instructions: Alpaca's prompt, loss on the response alone, examples packed into sequences.

An example is its prompt, its response and the separator; the loss is over the last two. Examples are packed whole, in a
random order, each into the first sequence with room for it; what is left of a sequence is padding without loss. Tokens
attend to earlier examples of their sequence too.

Shapes: G models, N sequences, B sequences of a batch, T tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.code.ctf.problems import ALPACA, Problem
from experiments.errors import InputError

if TYPE_CHECKING:
    from engine import ModelConfig, TrainConfig
    from engine.tokenize import Tokenizer


@dataclass(frozen=True)
class Recipe:
    """epochs: passes over the packed sequences. batch_size: sequences a step. lr: peak, warmed up over `warmup` of the
    steps, then down a cosine to a tenth."""

    epochs: float = 3.0
    batch_size: int = 8
    seq_len: int = 512
    lr: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 0.1
    seed: int = 0


def examples(problems: Sequence[Problem]) -> list[tuple[str, str]]:
    """(prompt, response) of each."""
    return [(ALPACA.format(problem.statement), problem.solution) for problem in problems]


def pack(
    tokenizer: Tokenizer, made: Sequence[tuple[str, str]], seq_len: int, seed: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Sequences [N, T + 1] int32, the weights of their predicted tokens [N, T] float32, and how many examples are
    longer than a sequence and left out. Raises InputError where none fits."""
    prompts, responses = (tokenizer.encode_batch([one[side] for one in made]) for side in (0, 1))
    order = list(range(len(made)))
    random.Random(seed).shuffle(order)
    room: list[int] = []
    rows: list[list[int]] = []  # the examples of each sequence
    size = [len(a) + len(b) + 1 for a, b in zip(prompts, responses)]
    for i in order:
        if size[i] > seq_len + 1:
            continue
        row = next((row for row, space in enumerate(room) if space >= size[i]), len(room))
        if row == len(room):
            room.append(seq_len + 1)
            rows.append([])
        room[row] -= size[i]
        rows[row].append(i)
    if not rows:
        raise InputError(f"no example fits into a sequence of {seq_len} tokens; raise seq_len")
    tokens = np.full((len(rows), seq_len + 1), tokenizer.separator, np.int32)
    weights = np.zeros((len(rows), seq_len), np.float32)
    for row, some in enumerate(rows):
        at = 0
        for i in some:
            a, b = len(prompts[i]), len(responses[i])
            tokens[row, at : at + a + b] = np.concatenate([prompts[i], responses[i]])
            weights[row, max(at + a - 1, 0) : at + a + b] = (
                1.0  # what predicts the response and the separator behind it
            )
            at += size[i]
    return tokens, weights, sum(n > seq_len + 1 for n in size)


def tune(
    model: ModelConfig,
    params: Sequence[Any],
    tokenizer: Tokenizer,
    made: Sequence[tuple[str, str]],
    recipe: Recipe,
    progress: Callable[[int, int, np.ndarray], None] | None = None,
) -> list[Any]:
    """Models, each begun from its own parameters, trained on the same batches: their new parameters.
    progress(step, steps, loss [G] in nats per token of responses)."""
    import jax
    import jax.numpy as jnp

    from engine import model as model_lib
    from engine import optim, population, step

    tokens, weights, _ = pack(tokenizer, made, recipe.seq_len, recipe.seed)
    steps = max(1, round(recipe.epochs * len(tokens) / recipe.batch_size))
    config = _config(model, recipe, steps)
    hyper_G = jax.tree.map(jnp.asarray, population.stack_hypers([config] * len(params)))
    method = optim.method(config.optim)
    axis = model_lib.trial_axis(params[0])
    params_G = {name: jax.tree.map(lambda *x, a=axis[name]: jnp.stack(x, a), *(one[name] for one in params))
                for name in params[0]}  # fmt: skip
    moments = jax.vmap(partial(optim.init_moments, method), in_axes=(axis,),
                       out_axes=step.moments_axis(model, method))(params_G)  # fmt: skip
    state = step.State(params_G, moments, jnp.int32(0), jnp.ones(len(params), bool))
    run = _compiled(step.program(config))
    batches = _batches(len(tokens), recipe.batch_size, recipe.seed)
    for n in range(steps):
        rows = next(batches)
        state, metrics = run(state, tokens[rows], hyper_G, weights[rows])
        if progress and (n % 20 == 0 or n + 1 == steps):
            progress(n + 1, steps, np.asarray(metrics.loss))
    params_G = jax.device_get(state.params)
    return [model_lib.take_trial(params_G, g) for g in range(len(params))]


@lru_cache(maxsize=4)
def _compiled(program: Any) -> Any:
    import jax

    from engine import step

    return jax.jit(partial(step.train_step, program), donate_argnums=0)


def _batches(n: int, size: int, seed: int) -> Any:
    """Row numbers of batch after batch: every epoch takes each row once, in an order of its own."""
    rng = np.random.default_rng(seed)
    waiting = np.zeros(0, np.int64)
    while True:
        while len(waiting) < size:
            waiting = np.concatenate([waiting, rng.permutation(n)])
        yield waiting[:size]
        waiting = waiting[size:]


def _config(model: ModelConfig, recipe: Recipe, steps: int) -> TrainConfig:
    from engine import DataConfig, OptimConfig, TrainConfig

    return TrainConfig(
        recipe="ctf",
        model=model,
        optim=OptimConfig(
            lr=recipe.lr,
            final_lr=0.0,
            final_fraction=0.1,
            warmup_steps=min(round(recipe.warmup * steps), steps - 1),
            weight_decay=recipe.weight_decay,
        ),
        data=DataConfig(seq_len=recipe.seq_len),
        batch_size=recipe.batch_size,
        tokens=float(steps * recipe.batch_size * recipe.seq_len),
    )

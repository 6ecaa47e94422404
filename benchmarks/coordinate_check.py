"""Does a coordinate move as far in a wide model as in a narrow one? (Tensor Programs V.)

    python -m benchmarks.coordinate_check [adamw muon lion adafactor] > benchmarks/coordinate_check.md

STEPS optimizer steps on one batch at each width, with and without `optim.parametrization=mup`. After them: the root
mean square of how far the entries of the embedding, of the residual stream behind each block, and of the logits have
moved from where they started; and its slope over width, log to log. Mup should make it zero. Of the logits' move one
part is the head's initial values seeing another stream, which mup lets die out with width, as m^-1/2; the last column
is the other part, by what the head itself has moved.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine import DataConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig, layers, population, row, step
from engine import model as model_lib

WIDTHS, HEAD_DIM, BASE = (64, 128, 256, 512), 16, 64
STEPS, SEEDS, BATCH, SEQ_LEN = 10, 4, 8, 32
LR = {"adamw": 2e-3, "muon": 2e-3, "lion": 5e-4, "adafactor": 2e-3}
NAMES = ("embedding", "block 1", "block 2", "logits", "logits, head's change")


def config(width: int, optimizer: str, parametrization: str) -> TrainConfig:
    """Two blocks; wider means more heads and a wider feed-forward, in proportion."""
    return TrainConfig(
        model=ModelConfig(d_model=width, n_layers=2, n_heads=width // HEAD_DIM, d_ff=2 * width),
        optim=OptimConfig(
            optimizer=optimizer,
            parametrization=parametrization,
            base_width=BASE,
            lr=LR[optimizer],
            schedule="constant",
            warmup_steps=0,
        ),
        data=DataConfig(seq_len=SEQ_LEN),
        mesh=MeshConfig(trial=1, data=1),
        batch_size=BATCH,
        tokens=1e6,
        init_std=0.05,
    )


def moved(trial: TrainConfig) -> np.ndarray:
    """Root mean square of what each of NAMES has moved by, mean over seeds."""
    trials = population.trial_configs(trial, [{"seed": seed} for seed in range(SEEDS)])
    hyper = jax.tree.map(jnp.asarray, population.stack_hypers(trials))
    seeds, stds = jnp.arange(SEEDS, dtype=jnp.uint32), jnp.full(SEEDS, trial.init_std)
    program = step.program(trial)
    state = jax.jit(partial(step.init_state, trial.model, program.method))(seeds, stds, hyper)
    tokens = np.random.default_rng(0).integers(0, trial.model.vocab_size, (BATCH, SEQ_LEN + 1)).astype(np.int32)
    look = jax.jit(partial(activations, trial.model))
    start = state.params
    one = jax.jit(partial(step.train_step, program))
    for _ in range(STEPS):
        state, _ = one(state, tokens, hyper)
    before, after, between = (
        look(params, tokens[:, :-1]) for params in (start, state.params, {**state.params, "head": start["head"]})
    )
    moves = [a - b for a, b in zip(after, before)] + [after[-1] - between[-1]]
    return np.asarray([jnp.sqrt(jnp.mean(move**2, axis=(1, 2, 3))).mean() for move in moves])


def activations(model: ModelConfig, params_G: Any, tokens_BT: jax.Array) -> list[jax.Array]:
    """[G, B, T, D] behind the embedding and each block, and the logits [G, B, T, V]."""
    block = partial(model_lib._block, model, model_lib._places(model, SEQ_LEN), "xla")
    x = layers.embed(params_G["embed"], tokens_BT)
    found = [x]
    for layer in range(model.n_layers):
        x, _ = block(x, {name: w[layer] for name, w in params_G["layers"].items()})
        found.append(x)
    x = layers.rmsnorm(x, params_G["norm"], model.norm_eps)
    return [*found, jnp.einsum("gbtd,gdv->gbtv", x, model_lib.head(params_G))]


def slopes(rms: np.ndarray, widths: tuple[int, ...]) -> np.ndarray:
    """d log rms / d log width of each column of rms [widths, names]."""
    return np.polyfit(np.log(widths), np.log(rms), 1)[0]


def main() -> None:
    began = time.perf_counter()
    print(f"# {__doc__.splitlines()[0]}\n")
    print("    python -m benchmarks.coordinate_check\n")
    print(
        f"RMS of the change over {STEPS} steps on one batch, mean of {SEEDS} seeds; base width {BASE}, head_dim "
        f"{HEAD_DIM}; {row.device_name()}.\nThe slope over width, log to log, is 0 where a step does the same at every "
        "width.\n"
    )
    print(f"| optimizer, lr | parametrization | width | {' | '.join(NAMES)} |")
    print("|---" * (3 + len(NAMES)) + "|")
    for optimizer in sys.argv[1:] or LR:
        for parametrization in ("standard", "mup"):
            start = f"| {optimizer}, {LR[optimizer]:g} | {parametrization} |"
            rms = np.stack([moved(config(width, optimizer, parametrization)) for width in WIDTHS])
            for width, values in zip(WIDTHS, rms):
                print(start, width, "|", " | ".join(f"{v:.4f}" for v in values), "|")
            print(start, "**slope** |", " | ".join(f"**{v:+.2f}**" for v in slopes(rms, WIDTHS)), "|", flush=True)
    print(f"\n{time.perf_counter() - began:.0f} s.", file=sys.stderr)


if __name__ == "__main__":
    main()

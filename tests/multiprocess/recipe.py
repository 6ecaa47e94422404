"""What the processes of these tests train."""

import os

from engine import DataConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from engine import config as config_lib

STEPS = 120


def model() -> TrainConfig:
    """Weights in two parts, batches in as many as there are devices left."""
    return TrainConfig(
        recipe="tiny",
        model=ModelConfig(vocab_size=257, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=24),
        optim=OptimConfig(lr=1e-2, final_lr=1e-4, warmup_steps=3),
        data=DataConfig(corpus="synthetic", seq_len=16),
        mesh=MeshConfig(fsdp=2),
        batch_size=8,
        tokens=8 * 16 * STEPS,
        eval_sequences=8,
    )


def of_each_its_own() -> TrainConfig:
    """Process 2 has another trial than the others."""
    return _of_three({"seed": int(os.environ["JAX_PROCESS_ID"] == "2")})


def missing_on_one() -> TrainConfig:
    """Process 1 lacks a file."""
    if os.environ["JAX_PROCESS_ID"] == "1":
        raise FileNotFoundError("no such corpus")
    return _of_three({})


def _of_three(changes: dict[str, object]) -> TrainConfig:
    return config_lib.replace(model(), {"mesh.fsdp": 1, "batch_size": 6, "tokens": 6 * 16 * STEPS, **changes})


def grid() -> list[TrainConfig]:
    """Two trials on two devices each, so that each is on one of two hosts; and two on one device each, which leave
    nothing to the second host, that does all of it again."""
    short = config_lib.replace(model(), {"tokens": 8 * 16 * 12, "mesh.fsdp": 1})
    rates = [config_lib.replace(short, {"optim.lr": lr}) for lr in (3e-3, 1e-2, 3e-2, 1e30)]
    return [*rates[:2], *(config_lib.replace(trial, {"mesh.data": 1}) for trial in rates[2:])]

"""What the processes of these tests train."""

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


def grid() -> list[TrainConfig]:
    """Two trials on two devices each, so that each is on one of two hosts; and two on one device each, which leave
    nothing to the second host, that does all of it again."""
    short = config_lib.replace(model(), {"tokens": 8 * 16 * 12, "mesh.fsdp": 1})
    rates = [config_lib.replace(short, {"optim.lr": lr}) for lr in (3e-3, 1e-2, 3e-2, 1e30)]
    return [*rates[:2], *(config_lib.replace(trial, {"mesh.data": 1}) for trial in rates[2:])]

"""The trainer: decoders, dense or of experts, one or many to a program, on CPU, GPU and TPU meshes.

Names are resolved on first use, so that a plan or a table, which needs `engine.config` alone, does not wait for jax. No
submodule may bear the name of a function below: importing it would take the function's place.
"""

from importlib import import_module
from typing import Any

from engine.errors import InputError

_HOMES = {
    "ComputeConfig": "engine.config",
    "DataConfig": "engine.config",
    "Keep": "engine.checkpoint",
    "MeshConfig": "engine.config",
    "ModelConfig": "engine.config",
    "OptimConfig": "engine.config",
    "Progress": "engine.loop",
    "Result": "engine.loop",
    "TrainConfig": "engine.config",
    "Trained": "engine.trained",
    "check": "engine.loop",
    "generate": "engine.sample",
    "init": "engine.model",
    "load": "engine.trained",
    "logits": "engine.model",
    "token_nll": "engine.score",
    "train": "engine.loop",
    "train_population": "engine.loop",
}
_MODULES = ("hf", "sizes")
__all__ = [
    "ComputeConfig",
    "DataConfig",
    "InputError",
    "Keep",
    "MeshConfig",
    "ModelConfig",
    "OptimConfig",
    "Progress",
    "Result",
    "TrainConfig",
    "Trained",
    "check",
    "generate",
    "hf",
    "init",
    "load",
    "logits",
    "token_nll",
    "train",
    "train_population",
]


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES})


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"engine.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value

"""The trainer: decoders, dense or of experts, one or many to a program, on CPU, GPU and TPU meshes.

Names and submodules are resolved on first use, so that a plan or a table, which needs `engine.config` alone, does not
wait for jax. No submodule may bear the name of a function below: importing it would take the function's place.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from engine.errors import InputError

if TYPE_CHECKING:
    from engine import hf
    from engine.checkpoint import Keep
    from engine.config import ComputeConfig, DataConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig
    from engine.loop import Progress, Result, check, train, train_population
    from engine.model import init, logits
    from engine.sample import generate
    from engine.score import token_nll
    from engine.trained import Trained, load

_HOMES = {
    "config": ("ComputeConfig", "DataConfig", "MeshConfig", "ModelConfig", "OptimConfig", "TrainConfig"),
    "checkpoint": ("Keep",),
    "loop": ("Progress", "Result", "check", "train", "train_population"),
    "model": ("init", "logits"),
    "sample": ("generate",),
    "score": ("token_nll",),
    "trained": ("Trained", "load"),
}
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
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"engine.{home}"), name)
            return value
    if name.startswith("_") or find_spec(f"engine.{name}") is None:
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    return import_module(f"engine.{name}")

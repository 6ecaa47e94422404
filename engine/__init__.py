"""The trainer: decoders, dense or of experts, one or many to a program, on CPU, GPU and TPU meshes."""

from engine import hf
from engine.checkpoint import Keep
from engine.config import ComputeConfig, DataConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from engine.errors import InputError
from engine.loop import Progress, Result, check, train, train_population
from engine.model import init, logits
from engine.sample import generate
from engine.score import token_nll
from engine.trained import Trained, load

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

"""Trained models from disk: a checkpoint, the results folder of `stepseer train`, or a Hugging Face folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine import checkpoint, hf, tokenize
from engine import config as config_lib
from engine import model as model_lib
from engine.architecture import ModelConfig
from engine.config import TrainConfig
from engine.errors import InputError, require
from engine.tokenize import Tokenizer

MODEL = "model"  # in the results folder of one model: its checkpoint


@dataclass(frozen=True)
class Trained:
    """A model that can be used."""

    model: ModelConfig
    params: model_lib.Params  # numpy arrays
    tokenizer: Tokenizer | None  # None: its tokens are no text, or a Hugging Face folder has none that we can read
    config: TrainConfig | None  # what it was trained by; None for a Hugging Face folder


def load(folder: str | Path, run_id: str | None = None) -> Trained:
    """The model in `folder`; run_id: which one, of a population's checkpoint.

    Of a checkpoint it is the newest good step. Raises InputError for a folder without a model, or with several and no
    run_id, or without that one.
    """
    folder = Path(folder)
    if (folder / "config.json").is_file():
        require(run_id is None, f"{folder} holds one model, of Hugging Face's kind; it has no run {run_id!r}")
        has_tokenizer = (folder / "tokenizer.json").is_file()
        return Trained(*hf.load(folder), hf.load_tokenizer(folder) if has_tokenizer else None, None)
    steps = next((at for at in (folder / MODEL, folder) if _has_steps(at)), None)
    if steps is None:
        raise InputError(
            f"{folder} holds no model; name a results folder of stepseer train, a checkpoint, or a Hugging Face folder"
        )
    with checkpoint.Checkpoints(steps) as store:
        saved = store.read()
    assert saved is not None
    trials = saved.meta["trials"]
    if run_id is None and len(trials) > 1:
        raise InputError(f"{folder} holds {len(trials)} models; choose a run: {', '.join(trials)}")
    if run_id is not None and run_id not in trials:
        raise InputError(f"{folder} has no run {run_id!r}; it has: {', '.join(trials)}")
    g = 0 if run_id is None else trials.index(run_id)
    config = config_lib.from_dict(saved.meta["configs"][g])
    (params_G,) = (tree for name, tree in saved.state.items() if name.endswith("_params"))
    text = saved.meta.get("tokenizer")
    tokenizer = None if text is None else tokenize.from_json(text, name=f"the tokenizer in {steps}")
    return Trained(config.model, model_lib.take_trial(params_G, g), tokenizer, config)


def _has_steps(folder: Path) -> bool:
    return folder.is_dir() and any(at.name.isdigit() and at.is_dir() for at in folder.iterdir())

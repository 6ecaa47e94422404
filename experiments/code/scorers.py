"""A model as a function from token windows to nats: by our engine, or by the transformers library."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine import tokenize, trained
from engine.score import token_nll
from engine.tokenize import Tokenizer
from engine.trained import Trained
from experiments.errors import InputError

BACKENDS = ("auto", "engine", "transformers")


@dataclass(frozen=True)
class Scorer:
    """encode: each text's ids, with nothing put around it. first: ids that stand before a text. nll: [B, T+1] ids to
    [B, T] nats, padding on the right harmless. context: tokens of a sequence in training, None where nobody says."""

    computed_by: str
    first: tuple[int, ...]
    encode: Callable[[Sequence[str]], list[np.ndarray]]
    nll: Callable[[np.ndarray], np.ndarray]
    context: int | None


def load(folder: str | Path, run_id: str | None = None, backend: str = "auto") -> Scorer:
    """The model in `folder`. auto: by the engine where it can import it, else by transformers. Raises InputError for a
    folder without a model, one whose tokens are no text, and one that needs transformers where that is not installed.
    """
    folder = Path(folder)
    foreign = (folder / "config.json").is_file()
    if backend == "transformers" and not foreign:
        raise InputError(f"{folder} is not of Hugging Face's kind; export it first: stepseer export")
    if backend == "transformers":
        return _by_transformers(folder, None)
    try:
        return of(trained.load(folder, run_id), says(folder))
    except ValueError as error:
        if backend == "engine" or not foreign or run_id is not None:
            raise
        return _by_transformers(folder, error)


def of(model: Trained, config_json: Mapping[str, Any] | None = None) -> Scorer:
    """A model in memory. config_json: what `says` of the folder that it came from."""
    if model.tokenizer is None:
        raise InputError(
            "this model has no tokenizer that we read, so there is no text whose characters it could score"
        )
    tokenizer, said = _plain(model.tokenizer), config_json or {}
    around = [int(i) for i in tokenizer.encode("")]
    bos = said.get("bos_token_id")
    first = around or [bos if isinstance(bos, int) else tokenizer.separator]
    return Scorer(
        "engine",
        tuple(first),
        lambda texts: [ids[len(around) :].astype(np.int32) for ids in tokenizer.encode_batch(texts)],
        lambda tokens: token_nll(model.model, model.params, tokens),
        said.get("max_position_embeddings") if model.config is None else model.config.data.seq_len,
    )


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    """That reads the names of special tokens in a file as the characters that they are."""
    if isinstance(tokenizer, tokenize.Bytes):
        return tokenizer
    return tokenize.from_library_json(tokenizer.to_library_json(), tokenizer.separator, name="the tokenizer")


def _by_transformers(folder: Path, refused: Exception | None) -> Scorer:
    try:
        import torch
        import transformers
    except ImportError:
        why = f"{refused}; transformers may read it" if refused else "transformers is not installed"
        raise InputError(f"{why}: pip install 'stepseer[hf]'") from None
    transformers.utils.logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except Exception as error:  # it raises whatever its parts do
        said = " ".join(str(error).split())[:300]
        ours = f"{refused}; and " if refused else ""
        raise InputError(f"{ours}transformers cannot load {folder}: {said}") from None
    model = model.eval().to(device)
    bos, eos = (getattr(model.config, f"{which}_token_id", None) for which in ("bos", "eos"))
    around = tokenizer("", split_special_tokens=True)["input_ids"]
    first = list(around) or [i for i in (bos, eos[0] if isinstance(eos, list) else eos) if i is not None][:1]
    if not first:
        raise InputError(f"{folder} names neither a bos_token_id nor an eos_token_id to stand before a text")

    def encode(texts: Sequence[str]) -> list[np.ndarray]:
        ids = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        return [np.asarray(row, np.int32) for row in ids]

    def nll(tokens: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            ids = torch.tensor(tokens.astype(np.int64), device=device)
            logits = model(ids[:, :-1]).logits.float()
            lost = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        return lost.cpu().numpy()

    context: Any = getattr(model.config, "max_position_embeddings", None)
    return Scorer("transformers", tuple(first), encode, nll, context)


def says(folder: Path) -> dict[str, Any]:
    """config.json of a Hugging Face folder; empty for a checkpoint."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {}

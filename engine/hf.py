"""Hugging Face folders, in and out: config.json, safetensors, tokenizer.json. Torch and transformers are not needed.

Four layouts, chosen by the model: Llama (dense), Qwen3 (dense, qk_norm), Mixtral (experts in every layer) and Qwen3-MoE
(experts, qk_norm). A model or a folder that says anything else is refused, by the name of the field or key that does.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from engine import hf_layouts as layouts
from engine import model as model_lib
from engine import tokenize
from engine.architecture import ModelConfig
from engine.errors import InputError, require
from engine.tokenize import Tokenizer

SHARD_BYTES = 5 * 10**9  # of one file, as transformers has it
_ONE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def load(folder: str | Path) -> tuple[ModelConfig, model_lib.Params]:
    """A model from config.json and safetensors, one file or shards with an index.

    Weights of float32, bfloat16 or float16 become float32 numpy arrays. Raises InputError for a folder without them, an
    architecture or setting that our decoder does not have, and tensors missing, left over, or of another shape.
    """
    folder = Path(folder)
    values = _json(folder / "config.json")
    layout = layouts.layout_of(values, str(folder))
    config = layouts.read_config(values, layout)
    params = jax.tree.map(lambda x: np.empty(x.shape, np.float32), _shapes(config))
    with _tensors(folder) as (names, get):
        for slot in layouts.slots(config, layout):
            ours = params
            for key in slot.path:
                ours = ours[key]
            ours = ours[slot.at]
            require(slot.name in names, f"{folder} has no tensor {slot.name}, which its config.json calls for")
            theirs = get(slot.name)
            wanted = slot.to_theirs(ours).shape
            require(
                theirs.shape == wanted,
                f"tensor {slot.name} in {folder} is {list(theirs.shape)}; by its config.json it is {list(wanted)}",
            )
            ours[...] = theirs.reshape(ours.shape) if slot.n_in == 0 else theirs.T.reshape(ours.shape)
            names.discard(slot.name)
    if config.tied_embeddings:
        names.discard("lm_head.weight")
    left = sorted(name for name in names if not name.endswith("rotary_emb.inv_freq"))  # a table that old files have
    require(not left, f"{folder} has tensor {left[:1]}, which our decoder has no place for")
    return config, params


def save(
    folder: str | Path,
    model: ModelConfig,
    params: model_lib.Params,
    *,
    tokenizer: Tokenizer | None = None,
    seq_len: int | None = None,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes config.json, float32 safetensors and, given a tokenizer, its files: what transformers loads.

    seq_len: tokens of a training sequence, `max_position_embeddings` there. The folder appears whole or not at all;
    one that exists is left alone unless `overwrite`, and even then unless it holds a config.json. Raises InputError
    for a model that no layout has, naming the field, and for params that are not this model's.
    """
    folder = Path(folder).absolute()
    kind = layouts.kind_of(model)
    layout = layouts.LAYOUTS[kind]
    _check_params(model, params)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        require(overwrite, f"{folder} exists; name another folder, or ask to overwrite it")
        require((folder / "config.json").is_file(), f"{folder} holds no config.json, so it is not overwritten")
    config = layouts.config_json(kind, model) | ({} if seq_len is None else {"max_position_embeddings": seq_len})
    eos = None if tokenizer is None else tokenizer.separator
    files = {"config.json": config | {"bos_token_id": None, "eos_token_id": eos}}
    if tokenizer is not None:
        files |= {"generation_config.json": {"eos_token_id": eos}, **_tokenizer_files(tokenizer)}
    partial_folder = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        partial_folder.mkdir(parents=True)
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
            (partial_folder / name).write_text(text, encoding="utf-8")
        _write_tensors(partial_folder, model, layout, params, shard_bytes)
        if folder.exists():
            old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
            folder.rename(old)
            partial_folder.rename(folder)
            shutil.rmtree(old)
        else:
            partial_folder.rename(folder)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}; name a writable folder") from None
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of tokenizer.json; its separator is the end-of-text token that the folder names.

    A beginning-of-text token is added where the file says so, and names of special tokens in a text are read as those
    tokens unless tokenizer_config.json has `split_special_tokens`. Raises InputError if there is none of these.
    """
    folder = Path(folder)
    path = folder / "tokenizer.json"
    require(path.is_file(), f"{folder} has no tokenizer.json; save its tokenizer in that format beside the weights")
    says = _json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    eos = says.get("eos_token")
    eos = eos.get("content") if isinstance(eos, dict) else eos
    if eos is None:
        eos = _json(folder / "config.json").get("eos_token_id")
        eos = eos[0] if isinstance(eos, list) else eos
    if not isinstance(eos, str | int):
        raise InputError(f"{folder} names no end-of-text token; set eos_token in its tokenizer_config.json")
    return tokenize.from_library_json(
        path.read_text(encoding="utf-8"), eos, name=str(path), split_special=bool(says.get("split_special_tokens"))
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        require(isinstance(values, dict), f"{path} is not a JSON object")
        return values
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; name a folder that Hugging Face's transformers could load"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not JSON ({error})") from None


def _shapes(model: ModelConfig) -> Any:
    return jax.eval_shape(partial(model_lib.init, model))


def _check_params(model: ModelConfig, params: model_lib.Params) -> None:
    flat = lambda tree: {  # noqa: E731
        jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    ours, wanted = flat(params), flat(_shapes(model))
    for name in sorted(ours.keys() | wanted.keys()):
        require(
            ours.get(name) == wanted.get(name),
            f"params are not of this model: {name} is {ours.get(name)}, by the config {wanted.get(name)}",
        )


@contextlib.contextmanager
def _tensors(folder: Path) -> Iterator[tuple[set[str], Any]]:
    """Names of all tensors, and a function from a name to its array."""
    library = _safetensors()
    if (folder / _INDEX).is_file():
        where = _json(folder / _INDEX).get("weight_map")
        if not (isinstance(where, dict) and where and all(isinstance(name, str) for name in where.values())):
            raise InputError(f"{folder / _INDEX} has no weight_map from tensors to files; fetch it again")
        files = sorted(set(where.values()))
    else:
        require((folder / _ONE).is_file(), f"{folder} has neither {_ONE} nor {_INDEX}; only safetensors are read")
        where, files = {}, [_ONE]
    with contextlib.ExitStack() as stack:
        opened = {}
        for name in files:
            try:
                opened[name] = stack.enter_context(library.safe_open(folder / name, framework="np"))
            except (OSError, library.SafetensorError) as error:
                raise InputError(f"{folder / name} can't be read ({error}); fetch it again") from None
        held = {tensor: file for file in opened.values() for tensor in file.keys()}  # noqa: SIM118
        lost = sorted(set(where) - set(held))
        require(not lost, f"{folder} has no tensor {lost[:1]}, which its index names")

        def get(name: str) -> np.ndarray:
            dtype = held[name].get_slice(name).get_dtype()
            require(
                dtype in ("F32", "BF16", "F16"),
                f"tensor {name} in {folder} is of type {dtype}; known: float32, bfloat16, float16",
            )
            return held[name].get_tensor(name)

        yield set(held), get


def _write_tensors(
    folder: Path, model: ModelConfig, layout: layouts.Layout, params: model_lib.Params, shard_bytes: int
) -> None:
    library = _safetensors()
    host = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    shards: list[dict[str, np.ndarray]] = [{}]
    sizes = [0]
    for slot in layouts.slots(model, layout):
        ours = host
        for key in slot.path:
            ours = ours[key]
        array = slot.to_theirs(ours[slot.at])
        if shards[-1] and sizes[-1] + array.nbytes > shard_bytes:
            shards.append({})
            sizes.append(0)
        shards[-1][slot.name] = array
        sizes[-1] += array.nbytes
    name = _ONE if len(shards) == 1 else "model-{:05d}-of-{:05d}.safetensors"
    where: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        file = name.format(i, len(shards))
        where |= dict.fromkeys(shard, file)
        dense = {key: np.ascontiguousarray(array) for key, array in shard.items()}  # views above: one shard is copied
        library.numpy.save_file(dense, folder / file, metadata={"format": "pt"})
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": where}
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _safetensors() -> Any:
    try:
        import ml_dtypes  # noqa: F401  registers bfloat16 with numpy; jax brings it
        import safetensors.numpy
    except ImportError:
        raise InputError("Hugging Face folders need the package safetensors; install it") from None
    return safetensors


def _tokenizer_files(tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer.json, and what transformers reads beside it."""
    says = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokenize.SEPARATOR,
        "split_special_tokens": True,  # the separator's name in a text is text, as in training
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**9,
    }
    return {"tokenizer.json": tokenizer.to_library_json(), "tokenizer_config.json": says}

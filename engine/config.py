"""What a training run is: frozen, validated dataclasses, to and from JSON.

Fields are of two kinds. *Structure* (shapes, dtypes, names) decides the compiled program. *Hypers* (`HYPERS`,
numbers) are array arguments of that program: trials that differ only in hypers share one program, one compile.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import typing
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from engine.architecture import DERIVED, REMAT_NAMES, ModelConfig, floats
from engine.errors import InputError, require

# Dotted names of the numbers that may differ between the trials of one program.
HYPERS = (
    "optim.lr",
    "optim.final_lr",
    "optim.final_fraction",
    "optim.warmup_steps",
    "optim.decay_fraction",
    "optim.beta1",
    "optim.beta2",
    "optim.eps",
    "optim.weight_decay",
    "optim.clip_norm",
    "optim.z_loss",
    "optim.balance_loss",
    "optim.router_z_loss",
    "optim.router_bias_rate",
    "optim.base_width",
    "tokens",
    "init_std",
    "seed",
)

OPTIMIZERS = ("adamw", "muon", "lion", "adafactor")
SCHEDULES = ("cosine", "wsd", "linear", "constant")
PARAMETRIZATIONS = ("standard", "mup")
ATTENTION = ("auto", "xla", "blocks", "cudnn", "splash", "sequence")

# Younger than published run tables: left out of a run id where they have their defaults, so that ids last.
LATER = {
    "optim": ("optimizer", "parametrization", "final_fraction", "base_width"),
    "data": ("text_field", "documents"),
}


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """An optimizer, and a learning rate over steps. Defaults as in Farseer section 2.2, which follows Step Law; there
    the warm-up is 2000 steps, of runs far longer than ours."""

    optimizer: str = "adamw"  # adamw, muon, lion, adafactor: `engine.optim.direction`
    # Linear warm-up, then "cosine", "linear" or "wsd" (constant, then linear) to final_lr + final_fraction * lr, or
    # "constant"
    schedule: str = "cosine"
    parametrization: str = "standard"  # or "mup": what was tuned at base_width holds at other widths (`engine.mup`)
    lr: float = 1e-3  # peak
    final_lr: float = 1e-5  # absolute, not a fraction: Step Law holds for cosine to a fixed 1e-5
    final_fraction: float = 0.0  # of lr, on top of final_lr
    warmup_steps: int = 100
    decay_fraction: float = 0.2  # wsd: the share of all steps spent decaying
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1  # on matrices; not on norms and embeddings
    clip_norm: float = 1.0  # global gradient norm
    z_loss: float = 0.0  # weight of mean(logsumexp^2)
    # Of experts; a dense model has none. Each loss is summed over the routed layers.
    balance_loss: float = 0.01  # weight of the load-balance loss, which is 1 where experts share evenly
    router_z_loss: float = 0.001  # weight of mean(logsumexp^2) of the router
    router_bias_rate: float = 0.001  # step of model.router_bias
    base_width: float = 256.0  # mup: the d_model at which it is the standard parametrization

    def __post_init__(self) -> None:
        floats(self)
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("parametrization", PARAMETRIZATIONS)):
            value = getattr(self, name)
            require(value in known, f"optim.{name} is {value!r}; known: {', '.join(known)}")
        require(
            math.isfinite(self.lr) and self.lr > 0,
            f"optim.lr is {self.lr}; it must be a positive finite number",
        )
        for name in (
            *("final_lr", "warmup_steps", "weight_decay"),
            *("z_loss", "balance_loss", "router_z_loss", "router_bias_rate"),
        ):
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, f"optim.{name} is {value}; it must be zero or more")
        for name in ("eps", "clip_norm", "base_width"):
            require(getattr(self, name) > 0, f"optim.{name} is {getattr(self, name)}; it must be positive")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"optim.{name} is {getattr(self, name)}; it must be in [0, 1)")
        require(0 <= self.final_fraction <= 1, f"optim.final_fraction is {self.final_fraction}; it must be in [0, 1]")
        require(
            0 < self.decay_fraction <= 1,
            f"optim.decay_fraction is {self.decay_fraction}; it must be in (0, 1]",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which tokens, in which order."""

    # "stdlib", "synthetic", a folder of text files, a file or folder of records (JSON lines, Parquet, Arrow),
    # "tfds:NAME", or several by weight: "stdlib:0.7,notes:0.3"
    corpus: str = "stdlib"
    tokenizer: str = "bytes"  # "bytes" (257 ids) or "bpe-V" (byte-level BPE of V entries trained on the corpus)
    seq_len: int = 256  # tokens per sequence
    seed: int = 0  # the order of the sequences
    text_field: str = "text"  # of records
    documents: str = "joined"  # or "apart": attention sees only the tokens of its own document

    def __post_init__(self) -> None:
        require(self.seq_len >= 2, f"data.seq_len is {self.seq_len}; it must be at least 2")
        require(bool(self.corpus), "data.corpus is empty; name a corpus or a folder of text files")
        require(
            self.documents in ("joined", "apart"),
            f"data.documents is {self.documents!r}; known: joined, apart",
        )
        require(
            self.documents == "joined" or self.corpus != "synthetic",
            "data.documents is 'apart', but data.corpus is synthetic, which is one endless document; use joined",
        )
        vocab = self.tokenizer.removeprefix("bpe-")
        require(
            self.tokenizer == "bytes" or (self.tokenizer != vocab and vocab.isdigit() and int(vocab) >= 258),
            f"data.tokenizer is {self.tokenizer!r}; use 'bytes' or 'bpe-V' with V at least 258, such as bpe-1024",
        )


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices per axis; every axis is always in the mesh, at size 1 when unused.

    -1 takes the devices that the other axes leave: `trial` first, as many as divide the number of trials, then
    `data`, as many as divide the batch. `fsdp` shards weights and batch, `expert` experts and batch, `sequence`
    the positions of each sequence, `tensor` heads, d_ff and vocabulary.
    """

    trial: int = -1
    data: int = -1
    fsdp: int = 1
    expert: int = 1
    sequence: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            auto = size == -1 and name in ("trial", "data")
            require(size >= 1 or auto, f"mesh.{name} is {size}; it must be at least 1 (trial and data: or -1)")


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How a step is computed: time and memory. It is the same run either way, but for rounding."""

    # xla, blocks (CPU), cudnn (GPU), splash (TPU) or sequence (over `mesh.sequence`); auto: what a probe finds
    # (`engine.attention.choose`)
    attention: str = "auto"
    # What the forward pass keeps of a layer for the backward pass: none (of it is computed twice), dots (the products
    # with weights), full (all is computed twice: only the layer's input is kept), or names of `REMAT_NAMES`, "a,b"
    remat: str = "none"
    lanes: int = 0  # trials of a population that step together; 0: as many as a probe finds fastest (`engine.lanes`)
    micro_batch: int = 0  # sequences whose gradient is taken at a time, summed over the batch; 0: all
    loss_chunk: int = 0  # tokens whose logits exist at a time; 0: all

    def __post_init__(self) -> None:
        require(
            self.attention in ATTENTION,
            f"compute.attention is {self.attention!r}; known: {', '.join(ATTENTION)}",
        )
        require(
            self.remat in ("none", "dots", "full") or set(self.remat.split(",")) <= set(REMAT_NAMES),
            f"compute.remat is {self.remat!r}; use none, dots, full, or what to keep, some of {','.join(REMAT_NAMES)}",
        )
        require(self.lanes >= 0, f"compute.lanes is {self.lanes}; it must be zero or more trials")
        require(self.micro_batch >= 0, f"compute.micro_batch is {self.micro_batch}; it must be zero or more sequences")
        require(self.loss_chunk >= 0, f"compute.loss_chunk is {self.loss_chunk}; it must be zero or more tokens")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run, whole. `recipe` names it in the run table."""

    recipe: str = "custom"
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = field(default_factory=DataConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    batch_size: int = 16  # sequences per step
    tokens: float = 1e6  # D: tokens trained on; rounded to whole steps
    seed: int = 0  # of the initial weights
    init_std: float = 0.02
    dtype: str = "float32"  # of activations and matmuls; weights and loss are float32
    eval_sequences: int = 64  # held-out sequences scored at the end

    def __post_init__(self) -> None:
        floats(self)
        require(self.batch_size >= 1, f"batch_size is {self.batch_size}; it must be at least 1 sequence")
        require(
            math.isfinite(self.tokens) and self.tokens > 0,
            f"tokens is {self.tokens}; it must be a positive number",
        )
        require(self.init_std > 0, f"init_std is {self.init_std}; it must be positive")
        require(0 <= self.seed < 2**31, f"seed is {self.seed}; it must be in [0, 2^31)")
        require(self.dtype in ("float32", "bfloat16"), f"dtype is {self.dtype!r}; known dtypes: float32, bfloat16")
        require(self.eval_sequences >= 1, f"eval_sequences is {self.eval_sequences}; it must be at least 1")
        require(
            self.tokens >= self.batch_tokens,
            f"tokens is {self.tokens:g}, less than one batch of {self.batch_tokens} tokens "
            f"({self.batch_size} sequences of {self.data.seq_len}); raise tokens or lower batch_size",
        )
        micro = self.compute.micro_batch
        require(
            micro == 0 or self.batch_size % micro == 0,
            f"compute.micro_batch {micro} does not divide batch_size {self.batch_size}; change one",
        )
        require(
            self.mesh.expert == 1 or self.model.n_experts > 1,
            f"mesh.expert is {self.mesh.expert}, but the model is dense; use mesh.data or mesh.fsdp",
        )
        require(
            self.data.seq_len % self.mesh.sequence == 0,
            f"mesh.sequence {self.mesh.sequence} does not divide data.seq_len {self.data.seq_len}; change one",
        )
        require(
            self.mesh.sequence == 1 or not self.model.capacity_factor,
            f"mesh.sequence is {self.mesh.sequence}, but with model.capacity_factor {self.model.capacity_factor} which "
            "tokens are dropped would depend on it; use capacity_factor=0 (dropless)",
        )
        require(
            self.optim.warmup_steps < self.steps or self.optim.warmup_steps == 0,
            f"optim.warmup_steps is {self.optim.warmup_steps}, but the run has only {self.steps} steps, so optim.lr "
            "would never be reached; lower optim.warmup_steps or raise tokens",
        )

    @property
    def batch_tokens(self) -> int:
        """Batch size in tokens."""
        return self.batch_size * self.data.seq_len

    @property
    def steps(self) -> int:
        """Optimizer steps: tokens / batch_tokens, rounded."""
        return max(1, round(self.tokens / self.batch_tokens))

    @functools.cached_property
    def run_id(self) -> str:
        """Hash of the resolved config: 16 hex digits. Where and how it is computed is left out: it is the same run."""
        return hashlib.blake2b(
            _json_without(self, ("mesh", "compute"), _at_defaults).encode(), digest_size=8
        ).hexdigest()


def _at_defaults(group: str, part: Any) -> list[str]:
    return [name for name in LATER.get(group, ()) if getattr(part, name) == getattr(type(part), name)]


def _hypers_of(group: str, part: Any) -> list[str]:
    return [name.removeprefix(f"{group}.") for name in HYPERS if name.startswith(f"{group}.")]


def _json_without(config: TrainConfig, names: Collection[str], of_group: Callable[[str, Any], list[str]]) -> str:
    """`to_json` without some fields, and without of_group(name, group) in each group.

    The text of a group, which many configs of a grid share, is kept in it.
    """
    texts = []
    for name, is_group in _sorted_fields():
        if name in names:
            continue
        value = getattr(config, name)
        if not is_group:
            text = _text(value)
        else:
            kept, key = vars(value), f"_{of_group.__name__}"
            if key not in kept:
                left_out = of_group(name, value)
                kept[key] = _canonical({k: v for k, v in to_dict(value).items() if k not in left_out})
            text = kept[key]
        texts.append(f'"{name}":{text}')
    return "{" + ",".join(texts) + "}"


@functools.lru_cache(maxsize=4096, typed=True)  # a grid's trials have few values of a field
def _text(value: Any) -> str:
    return json.dumps(value)


@functools.cache
def _sorted_fields() -> list[tuple[str, bool]]:
    """Of a TrainConfig: names, and whether they are groups."""
    return sorted((name, dataclasses.is_dataclass(hint)) for name, hint in _hints(TrainConfig).items())


def to_dict(config: Any) -> dict[str, Any]:
    """A config as nested plain dicts."""
    return {
        name: to_dict(value) if dataclasses.is_dataclass(value) else value
        for name, value in ((f.name, getattr(config, f.name)) for f in dataclasses.fields(config))
    }


def to_json(config: Any) -> str:
    """A config as canonical JSON (sorted keys, no spaces): equal configs give equal text."""
    return _canonical(to_dict(config))


def _canonical(values: dict[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def from_dict(values: dict[str, Any], cls: Any = TrainConfig, prefix: str = "") -> Any:
    """The inverse of `to_dict`. Raises InputError on an unknown field or a value of the wrong type."""
    hints = _hints(cls)
    kwargs = {}
    for name, value in values.items():
        if name not in hints:
            raise _unknown_field(prefix + name)
        hint: Any = hints[name]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, dict):
                raise InputError(
                    f"{prefix}{name} is {value!r}; it is a group of fields, set one such as "
                    f"{prefix}{name}.{dataclasses.fields(hint)[0].name}"
                )
            kwargs[name] = from_dict(value, hint, f"{prefix}{name}.")
        else:
            kwargs[name] = _coerce(value, hint, prefix + name)
    return cls(**kwargs)


def from_json(text: str) -> TrainConfig:
    """The inverse of `to_json`."""
    return from_dict(json.loads(text))


def field_names(cls: Any = TrainConfig, prefix: str = "") -> list[str]:
    """Dotted names of all fields, such as 'optim.lr'."""
    names: list[str] = []
    hint: Any
    for name, hint in _hints(cls).items():
        names += field_names(hint, f"{prefix}{name}.") if dataclasses.is_dataclass(hint) else [prefix + name]
    return names


def replace(config: TrainConfig, changes: dict[str, Any]) -> TrainConfig:
    """`config` with dotted fields changed, `{"optim.lr": 1e-3}`; strings such as "1e-3" are read as the field's type.

    Fields that `ModelConfig` derives (`DERIVED`) are derived anew when the fields that they come from change, unless
    they were set to something else. Raises InputError on an unknown field or a bad value.
    """
    kept = vars(config)
    if "_coerced" not in kept:
        kept["_coerced"] = from_dict(to_dict(config))
    base, top, groups = kept["_coerced"], {}, {}  # type: tuple[TrainConfig, dict[str, Any], dict[str, dict[str, Any]]]
    for dotted, value in changes.items():
        if dotted not in _known():
            raise _unknown_field(dotted)
        group, _, leaf = dotted.rpartition(".")
        if group:
            groups.setdefault(group, {})[leaf] = value
        else:
            top[dotted] = _coerce(value, _hints(TrainConfig)[dotted], dotted)
    made = dataclasses.replace(base, **top, **{name: _changed(base, name, values) for name, values in groups.items()})
    vars(made)["_coerced"] = made
    return made


def _changed(config: TrainConfig, group: str, changes: dict[str, Any]) -> Any:
    """The group with fields changed; kept in it, as the trials of a grid share most of theirs."""
    part = getattr(config, group)
    kept, key = vars(part).setdefault("_changed", {}), repr(changes)
    if key not in kept:
        values = to_dict(part)
        if group == "model" and values["d_model"] % values["n_heads"] == 0:
            derived = to_dict(ModelConfig(**{k: v for k, v in values.items() if k not in DERIVED}))
            values |= {name: None for name in DERIVED if values[name] == derived[name]}
        kept[key] = from_dict(values | changes, type(part), f"{group}.")
    return kept[key]


@functools.cache
def _known() -> frozenset[str]:
    return frozenset(field_names())


def structure(config: TrainConfig) -> str:
    """What decides the compiled program and the data: the config's JSON without its hypers (a cohort's key)."""
    kept = vars(config)
    if "_structure" not in kept:
        kept["_structure"] = _json_without(config, ("recipe", *HYPERS), _hypers_of)
    return kept["_structure"]


def hypers(config: TrainConfig) -> dict[str, float]:
    """The numbers of `config` that are arguments of the program, by dotted name."""
    return {dotted: get(config, dotted) for dotted in HYPERS}


def get(config: TrainConfig, dotted: str) -> Any:
    """The value of a dotted field."""
    return functools.reduce(getattr, dotted.split("."), config)


def _unknown_field(name: str) -> InputError:
    near = difflib.get_close_matches(name, field_names(), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "known fields: " + ", ".join(field_names())
    return InputError(f"unknown field {name!r}; {hint}")


_COUNTS = {"k": "e3", "m": "e6", "b": "e9", "g": "e9", "t": "e12"}


def _number(value: Any, kind: Any, name: str) -> float:
    """A number, or of whole ones and tokens a count such as '100k' or '7B'."""
    if isinstance(value, str) and (kind is int or name == "tokens") and value[-1:].lower() in _COUNTS:
        value = value[:-1] + _COUNTS[value[-1].lower()]
    return float(value)


def _coerce(value: Any, hint: Any, name: str) -> Any:
    kinds = typing.get_args(hint) or (hint,)
    if type(None) in kinds and value in (None, "none"):
        return None
    if value is None:
        raise InputError(f"{name} is empty; it needs a value of type {kinds[0].__name__}")
    kind = kinds[0]
    try:
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[str(value).lower()]
        if kind is int:
            number = _number(value, kind, name)
            if number != int(number):
                raise ValueError
            return int(number)
        if kind is float:
            return _number(value, kind, name)
        return str(value)
    except (ValueError, KeyError, TypeError, OverflowError):
        raise InputError(f"{name} is {value!r}; it must be of type {kind.__name__}") from None

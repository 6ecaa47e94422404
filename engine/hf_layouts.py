"""Hugging Face's layouts of our decoders: which config.json and which tensors say the same model.

Linear weights are [out, in] there, one tensor a layer and expert; here [in, out], stacked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from engine import config as config_lib
from engine.architecture import ModelConfig
from engine.errors import InputError, require


@dataclass(frozen=True)
class Layout:
    """What one architecture's files say. defaults: what an absent key means, where it may be absent."""

    architecture: str
    qk_norm: bool
    routed: bool
    defaults: dict[str, Any]
    mlp: str = "mlp"  # module of a routed layer
    expert: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")


LAYOUTS = {
    "llama": Layout(
        "LlamaForCausalLM", False, False, {"num_key_value_heads": None, "rms_norm_eps": 1e-6, "rope_theta": 1e4}
    ),
    "qwen3": Layout("Qwen3ForCausalLM", True, False, {"head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 1e4}),
    "mixtral": Layout(
        *("MixtralForCausalLM", False, True, {"rms_norm_eps": 1e-5, "rope_theta": 1e6}),
        mlp="block_sparse_moe",
        expert=("w1", "w3", "w2"),
    ),
    "qwen3_moe": Layout(
        *("Qwen3MoeForCausalLM", True, True),
        {"rms_norm_eps": 1e-6, "rope_theta": 1e4, "norm_topk_prob": False, "mlp_only_layers": []},
    ),
}
# Keys of config.json that our decoder has no other answer to than these.
_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "use_sliding_window": (False, None),
    "decoder_sparse_step": (1,),
    "partial_rotary_factor": (1, None),
    "quantization_config": (None,),
}


def layout_of(values: dict[str, Any], folder: str) -> Layout:
    kind = values.get("model_type")
    if kind not in LAYOUTS:
        raise InputError(f"{folder} has model_type {kind!r}; known: {', '.join(LAYOUTS)}")
    return LAYOUTS[kind]


def read_config(values: dict[str, Any], layout: Layout) -> ModelConfig:
    for key, known in _FIXED.items():
        if key in values and values[key] not in known:
            raise _unknown(key, values[key])
    if not layout.qk_norm and values.get("sliding_window") is not None:  # Qwen's counts only with use_sliding_window
        raise _unknown("sliding_window", values["sliding_window"])
    kinds = values.get("layer_types") or []
    if set(kinds) - {"full_attention"}:
        raise _unknown("layer_types", sorted(set(kinds)))
    rope: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        rope = values.get(key) or rope
        plain = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1}
        if not isinstance(rope, dict) or any(rope[name] != plain.get(name) for name in rope if name != "rope_theta"):
            raise _unknown(key, rope)

    def get(key: str) -> Any:
        if key in values:
            return values[key]
        require(key in layout.defaults, f"config.json has no {key!r}; add it")
        return layout.defaults[key]

    n_layers = get("num_hidden_layers")
    fields: dict[str, Any] = {
        "vocab_size": get("vocab_size"),
        "d_model": get("hidden_size"),
        "n_layers": n_layers,
        "n_heads": get("num_attention_heads"),
        "n_kv_heads": get("num_key_value_heads"),
        "head_dim": values.get("head_dim", layout.defaults.get("head_dim")),
        "d_ff": get("intermediate_size"),
        "rope_theta": rope.get("rope_theta", values.get("rope_theta", layout.defaults["rope_theta"])),
        "norm_eps": get("rms_norm_eps"),
        "qk_norm": layout.qk_norm,
        "tied_embeddings": bool(values.get("tie_word_embeddings", False)),
    }
    if not layout.routed:
        return _model(fields)
    n_experts = values.get("num_local_experts", values.get("num_experts"))
    require(n_experts is not None, "config.json has neither 'num_local_experts' nor 'num_experts'; add one")
    fields |= {"n_experts": n_experts, "top_k": get("num_experts_per_tok")}
    if layout.architecture.startswith("Mixtral"):
        return _model(fields | {"d_expert": fields["d_ff"], "normalized_gates": True})
    dense = get("mlp_only_layers") or []
    if sorted(dense) != list(range(len(dense))) or len(dense) == n_layers:
        raise _unknown("mlp_only_layers", dense)
    normalized, width = bool(get("norm_topk_prob")), get("moe_intermediate_size")
    return _model(fields | {"d_expert": width, "normalized_gates": normalized, "n_dense_layers": len(dense)})


def _model(fields: dict[str, Any]) -> ModelConfig:
    return config_lib.from_dict(fields, ModelConfig, "model.")


def _unknown(key: str, value: Any) -> InputError:
    return InputError(f"config.json has {key} {value!r}, which our decoder does not know; see engine/architecture.py")


def kind_of(model: ModelConfig) -> str:
    """Raises InputError, naming the field, for a model that no layout has."""

    def only(name: str, wanted: Any, where: str = "no Hugging Face layout that we write") -> None:
        value = getattr(model, name)
        require(value == wanted, f"model.{name} is {value!r}, which {where} has; only {wanted!r} can be exported")

    wanted = {"positions": "rope", "activation": "swiglu", "logit_softcap": 0, "d_shared": 0}
    for name, value in (wanted | {"router_bias": False, "capacity_factor": 0}).items():
        only(name, value)
    if model.n_experts == 1:
        if model.qk_norm:
            return "qwen3"
        require(
            model.d_model % model.n_heads == 0,
            f"model.d_model {model.d_model} is not a multiple of model.n_heads {model.n_heads}, which Llama refuses",
        )
        return "llama"
    if model.qk_norm:
        return "qwen3_moe"
    for name, value in {"n_dense_layers": 0, "normalized_gates": True}.items():
        only(name, value, "no layout of experts without model.qk_norm")
    return "mixtral"


def config_json(kind: str, model: ModelConfig) -> dict[str, Any]:
    values: dict[str, Any] = {
        "architectures": [LAYOUTS[kind].architecture],
        "model_type": kind,
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": model.d_expert if kind == "mixtral" else model.d_ff,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "tie_word_embeddings": model.tied_embeddings,
        "torch_dtype": "float32",
    }
    if kind == "mixtral":
        values |= {"num_local_experts": model.n_experts, "num_experts_per_tok": model.top_k, "sliding_window": None}
    if kind == "qwen3_moe":
        values |= {
            "num_experts": model.n_experts,
            "num_experts_per_tok": model.top_k,
            "moe_intermediate_size": model.d_expert,
            "norm_topk_prob": model.normalized_gates,
            "decoder_sparse_step": 1,
            "mlp_only_layers": list(range(model.n_dense_layers)),
        }
    return values


class Slot(NamedTuple):
    """One tensor of theirs, and where in our params it is: params[path...][at]."""

    name: str
    path: tuple[str, ...]
    at: tuple[int, ...] = ()
    n_in: int = 0  # leading axes of ours that are inputs of a linear map; 0: as it is

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        if self.n_in == 0:
            return ours
        return ours.reshape(int(np.prod(ours.shape[: self.n_in])), -1).T


def slots(model: ModelConfig, layout: Layout) -> Iterator[Slot]:
    """Every tensor of a model, in the order of its layers."""
    yield Slot("model.embed_tokens.weight", ("embed",))
    n_dense = model.n_layers - model.n_moe_layers
    for layer in range(model.n_layers):
        routed = layer >= n_dense
        stack = "dense_layers" if model.n_moe_layers and not routed else "layers"
        i = layer - n_dense if routed else layer
        at = f"model.layers.{layer}"
        yield Slot(f"{at}.input_layernorm.weight", (stack, "attn_norm"), (i,))
        for name in ("q", "k", "v"):
            yield Slot(f"{at}.self_attn.{name}_proj.weight", (stack, name), (i,), 1)
        yield Slot(f"{at}.self_attn.o_proj.weight", (stack, "o"), (i,), 2)
        if model.qk_norm:
            for name in ("q_norm", "k_norm"):
                yield Slot(f"{at}.self_attn.{name}.weight", (stack, name), (i,))
        yield Slot(f"{at}.post_attention_layernorm.weight", (stack, "mlp_norm"), (i,))
        if not routed:
            for name in ("gate", "up", "down"):
                yield Slot(f"{at}.mlp.{name}_proj.weight", (stack, name), (i,), 1)
            continue
        yield Slot(f"{at}.{layout.mlp}.gate.weight", (stack, "router"), (i,), 1)
        for expert in range(model.n_experts):
            for name, theirs in zip(("gate", "up", "down"), layout.expert):
                yield Slot(f"{at}.{layout.mlp}.experts.{expert}.{theirs}.weight", (stack, name), (i, expert), 1)
    yield Slot("model.norm.weight", ("norm",))
    if not model.tied_embeddings:
        yield Slot("lm_head.weight", ("head",), (), 1)

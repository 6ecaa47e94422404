"""What a model is: its shape, and the parts it is made of. Frozen, validated; decides the compiled program."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any

from engine.errors import require

ACTIVATIONS = ("swiglu", "gelu")
POSITIONS = ("rope", "alibi", "sqrt_alibi")
MOE_MATMULS = ("auto", "ragged", "blocks")
REMAT_NAMES = ("qkv", "attention", "projection", "ffn")  # what a block's activations are called, in order
DERIVED = ("head_dim", "n_kv_heads", "d_ff", "d_expert", "normalized_gates")  # None: made from the other fields


def floats(config: Any) -> None:
    """Whole numbers in a dataclass's float fields (tokens=1_000_000) become floats: equal configs, equal JSON."""
    kind: Any = type(config)
    for name in _float_fields(kind):
        if type(getattr(config, name)) is int:
            object.__setattr__(config, name, float(getattr(config, name)))


@functools.cache
def _float_fields(cls: Any) -> list[str]:
    return [one.name for one in dataclasses.fields(cls) if one.type == "float"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer: pre-norm RMSNorm, causal attention, feed-forward layers dense or of experts."""

    vocab_size: int = 257  # entries of the embedding and of the output head
    d_model: int = 64
    n_layers: int = 2
    n_heads: int = 2
    n_kv_heads: int | None = None  # None: one key/value head per query head
    head_dim: int | None = None  # None: d_model / n_heads
    d_ff: int | None = None  # None: 8/3 d_model, rounded up to a multiple of 8 (gelu: 4 d_model)
    activation: str = "swiglu"  # swiglu: three matrices; gelu (tanh form): two
    positions: str = "rope"  # rope, alibi, or sqrt_alibi: Step Law's, a bias of -slope sqrt(distance)
    rope_theta: float = 10_000.0
    qk_norm: bool = False  # RMSNorm of each query and key head, before its rotation (Qwen3)
    norm_eps: float = 1e-6
    tied_embeddings: bool = False  # the output head is the embedding, transposed
    logit_softcap: float = 0.0  # logits become cap tanh(logits / cap) (Gemma 2); 0: they stay
    # Mixture of experts: the layers behind the first n_dense_layers send each token to top_k of n_experts.
    n_experts: int = 1  # of a routed layer; 1: the model is dense
    top_k: int = 1
    d_expert: int | None = None  # width of an expert; None: d_ff
    d_shared: int = 0  # width of the expert that every token goes through; 0: none
    n_dense_layers: int = 0  # first layers with a dense feed-forward of width d_ff
    normalized_gates: bool | None = None  # a token's gates sum to one (Mixtral); None: where top_k is above one
    router_bias: bool = False  # balance by a bias on the choice of experts; optim.router_bias_rate moves it
    capacity_factor: float = 0.0  # an expert takes at most factor times its even share of a batch; 0: dropless
    moe_matmul: str = "auto"  # of dropless experts: ragged (jax.lax.ragged_dot), blocks; auto: blocks on a CPU

    def __post_init__(self) -> None:
        floats(self)
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "n_experts", "top_k"):
            require(getattr(self, name) >= 1, f"model.{name} is {getattr(self, name)}; it must be at least 1")
        for name, known in (("activation", ACTIVATIONS), ("positions", POSITIONS), ("moe_matmul", MOE_MATMULS)):
            value = getattr(self, name)
            require(value in known, f"model.{name} is {value!r}; known: {', '.join(known)}")
        for name in ("logit_softcap", "capacity_factor"):
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, f"model.{name} is {value}; it must be zero or more")
        self._check_attention()
        if self.d_ff is None:
            gelu = self.activation == "gelu"
            object.__setattr__(self, "d_ff", 4 * self.d_model if gelu else -(-8 * self.d_model // 24) * 8)
        assert self.d_ff is not None
        require(self.d_ff >= 1, f"model.d_ff is {self.d_ff}; it must be at least 1")
        if self.n_experts == 1:
            self._check_dense()
        else:
            self._check_experts()

    def _check_attention(self) -> None:
        if self.n_kv_heads is None:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        if self.head_dim is None:
            require(
                self.d_model % self.n_heads == 0,
                f"model.d_model {self.d_model} is not a multiple of model.n_heads {self.n_heads}; "
                "change one, or set model.head_dim",
            )
            object.__setattr__(self, "head_dim", self.d_model // self.n_heads)
        assert self.n_kv_heads is not None and self.head_dim is not None
        require(
            self.n_kv_heads >= 1 and self.n_heads % self.n_kv_heads == 0,
            f"model.n_kv_heads {self.n_kv_heads} does not divide model.n_heads {self.n_heads}",
        )
        require(self.head_dim >= 1, f"model.head_dim is {self.head_dim}; it must be at least 1")
        require(
            self.positions != "rope" or self.head_dim % 2 == 0,
            f"model.head_dim is {self.head_dim}; rotary positions need an even number",
        )

    def _check_dense(self) -> None:
        for name in (
            *("top_k", "d_expert", "d_shared", "n_dense_layers"),
            *("normalized_gates", "router_bias", "capacity_factor"),
        ):
            value = getattr(self, name)
            require(
                value == getattr(ModelConfig, name),
                f"model.{name} is {value}, but model.n_experts 1 makes the model dense; set model.n_experts",
            )

    def _check_experts(self) -> None:
        if self.d_expert is None:
            object.__setattr__(self, "d_expert", self.d_ff)
        if self.normalized_gates is None:
            object.__setattr__(self, "normalized_gates", self.top_k > 1)
        assert self.d_expert is not None
        require(
            self.top_k <= self.n_experts,
            f"model.top_k {self.top_k} is above model.n_experts {self.n_experts}; a token goes to an expert once",
        )
        require(self.d_expert >= 1, f"model.d_expert is {self.d_expert}; it must be at least 1")
        require(self.d_shared >= 0, f"model.d_shared is {self.d_shared}; it must be zero or more")
        require(
            0 <= self.n_dense_layers < self.n_layers,
            f"model.n_dense_layers {self.n_dense_layers} leaves no routed layer of model.n_layers {self.n_layers}; "
            "lower it, or set model.n_experts=1",
        )
        require(
            self.top_k > 1 or not self.normalized_gates,
            "model.normalized_gates with model.top_k 1 makes every gate 1, so the router would learn nothing; "
            "set model.normalized_gates=false",
        )
        require(
            self.capacity_factor == 0 or self.moe_matmul == "auto",
            f"model.moe_matmul {self.moe_matmul!r} is of dropless experts; set model.capacity_factor=0",
        )

    @property
    def n_moe_layers(self) -> int:
        """Layers with routed experts; 0 for a dense model."""
        return self.n_layers - self.n_dense_layers if self.n_experts > 1 else 0

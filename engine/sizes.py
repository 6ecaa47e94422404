"""Parameter counts and training FLOPs, from shapes alone, and the shapes of two papers.

N is counted as Step Law does: attention and feed-forward matrices, of all experts; no norms, no routers, no embeddings,
no output head. Farseer counts the blocks' norms too.
"""

from __future__ import annotations

from collections.abc import Callable

from engine.architecture import ModelConfig


def non_embedding_params(model: ModelConfig, *, norms: bool = False) -> int:
    """N: parameters of the blocks' matrices, of all experts.

    Step Law's: n_layers (4 d_model^2 + 3 d_model d_ff) for a dense model with multi-head attention, and for mixtures of
    experts 4 n_layers d_model^2 + 3 d_model d_ff + 3 (n_layers - 1) d_model (n_experts d_expert + d_shared).
    norms: with the blocks' norm scales, as Farseer counts: 2 n_layers d_model more.
    """
    return _matrices(model, model.n_experts) + (_block_norms(model) if norms else 0)


def active_params(model: ModelConfig) -> int:
    """Parameters among N that one token sees: its top_k experts and the shared one; N itself for a dense model."""
    return _matrices(model, model.top_k)


def total_params(model: ModelConfig) -> int:
    """All parameters: N, norm scales, routers, embedding and output head."""
    routers = _router(model) + (model.n_moe_layers * model.n_experts if model.router_bias else 0)
    tables = model.vocab_size * model.d_model * (1 if model.tied_embeddings else 2)
    return non_embedding_params(model, norms=True) + routers + model.d_model + tables


def block_flops_per_token(model: ModelConfig, seq_len: int) -> int:
    """DeepSeek's M, which Step Law and Farseer report: 6 active parameters + 12 n_layers seq_len d_attention.

    Forward and backward; attention counted without the causal half; no routers, no output head.
    """
    assert model.head_dim is not None
    return 6 * active_params(model) + 12 * model.n_layers * seq_len * model.n_heads * model.head_dim


def flops_per_token(model: ModelConfig, seq_len: int) -> float:
    """Training FLOPs (forward and backward) per token: M, the routers and the output head.

    Of experts only the active ones count, whatever a backend computes. FLOP counts are floats: paper-scale ones
    overflow int64.
    """
    outside = _router(model) + model.vocab_size * model.d_model
    return float(block_flops_per_token(model, seq_len)) + 6.0 * outside


def _matrices(model: ModelConfig, n_experts: int) -> int:
    """Parameters of the blocks' matrices with n_experts experts in a routed layer."""
    assert model.head_dim is not None and model.n_kv_heads is not None and model.d_ff is not None
    attention = model.d_model * model.head_dim * (2 * model.n_heads + 2 * model.n_kv_heads)
    routed = model.n_moe_layers * (n_experts * (model.d_expert or 0) + model.d_shared)
    widths = (model.n_layers - model.n_moe_layers) * model.d_ff + routed  # of all feed-forwards, end to end
    return model.n_layers * attention + (3 if model.activation == "swiglu" else 2) * model.d_model * widths


def _block_norms(model: ModelConfig) -> int:
    assert model.head_dim is not None
    return model.n_layers * 2 * (model.d_model + (model.head_dim if model.qk_norm else 0))


def _router(model: ModelConfig) -> int:
    return model.n_moe_layers * model.d_model * model.n_experts


def steplaw_shapes() -> dict[str, ModelConfig]:
    """Step Law's dense models by N: those of its released runs (section 1 of its repository's table)."""
    shapes = [(960, 9368, 15, 7), (1024, 9552, 16, 8), (1280, 9472, 10, 10), (1280, 9048, 10, 13), (2048, 8192, 16, 16)]
    return _named([_published(*shape) for shape in shapes], lambda m: f"{non_embedding_params(m) / 1e6:.0f}M")


def steplaw_moe_shapes() -> dict[str, ModelConfig]:
    """Step Law's four sparsities at N of about 2.15B, first layer dense, by its names: "1in8" is top 1 of 8 experts."""
    experts = [(1, 89, 352, 352), (2, 88, 352, 704), (1, 8, 3528, 3528), (3, 8, 2888, 8664)]
    models = [
        _published(1408, 3904, 11, 16, n_dense_layers=1, top_k=k, n_experts=n, d_expert=width, d_shared=shared)
        for k, n, width, shared in experts
    ]
    return _named(models, lambda m: f"{m.top_k}in{m.n_experts}")


def farseer_shapes() -> dict[str, ModelConfig]:
    """Farseer's ladder by N with norms, as it counts: 25 models of its grid and the one of 25.1B it extrapolates to."""
    shapes = [
        *[(832, 2216, 13, 12), (832, 2280, 13, 14), (896, 2544, 14, 14), (960, 2592, 15, 15), (1024, 2728, 16, 16)],
        *[(1088, 2856, 17, 17), (1152, 3032, 18, 18), (1216, 3240, 19, 19), (1280, 3472, 20, 20), (1344, 3584, 21, 22)],
        *[(1472, 3888, 23, 22), (1536, 4064, 24, 24), (1600, 4264, 25, 26), (1728, 4528, 27, 27), (1792, 4832, 28, 29)],
        *[(1920, 5184, 30, 30), (2048, 5448, 32, 32), (2176, 5712, 34, 34), (2304, 6064, 36, 36), (2432, 6488, 38, 38)],
        *[(2560, 6952, 40, 40), (2752, 7336, 43, 42), (2880, 7744, 45, 45), (3072, 8264, 48, 47), (3328, 9136, 52, 47)],
        (5120, 13616, 80, 80),
    ]
    return _named(
        [_published(*shape) for shape in shapes], lambda m: f"{non_embedding_params(m, norms=True) / 1e6:.0f}M"
    )


def _published(d_model: int, d_ff: int, n_heads: int, n_layers: int, **experts: int) -> ModelConfig:
    """A shape as both papers' tables give it: multi-head, SwiGLU, untied embeddings of 65,536, square-root ALiBi."""
    return ModelConfig(
        vocab_size=65_536,
        d_model=d_model,
        d_ff=d_ff,
        n_heads=n_heads,
        n_layers=n_layers,
        positions="sqrt_alibi",
        **experts,  # type: ignore[arg-type]
    )


def _named(models: list[ModelConfig], name: Callable[[ModelConfig], str]) -> dict[str, ModelConfig]:
    return {name(model): model for model in models}

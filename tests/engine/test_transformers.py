"""Logits against the transformers library's own models with the same random weights, where it is installed."""

import numpy as np
import pytest

import engine
from engine import ModelConfig
from tests.engine.conftest import random_params, random_tokens

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SHAPE = {"vocab_size": 37, "d_model": 32, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "d_ff": 48}


def theirs(kind, config, **more):
    """Their model of our config, in float32."""
    names = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tied_embeddings,
        "attn_implementation": "eager",
        **more,
    }
    cls = getattr(transformers, kind + "ForCausalLM")
    return cls(getattr(transformers, kind + "Config")(**names)).float().eval()


def fill(model, config, params):
    """Our parameters under their names: linear weights are [out, in] there."""
    blocks = params["layers"]
    d = config.d_model
    state = {"model.embed_tokens.weight": params["embed"], "model.norm.weight": params["norm"]}
    state["lm_head.weight"] = params["embed"] if config.tied_embeddings else params["head"].T
    for i in range(config.n_layers):
        p = {name: np.asarray(w[i]) for name, w in blocks.items()}
        layer = {
            "input_layernorm": p["attn_norm"],
            "post_attention_layernorm": p["mlp_norm"],
            **{f"self_attn.{n}_proj": p[n].reshape(d, -1).T for n in "qkv"},
            "self_attn.o_proj": p["o"].reshape(-1, d).T,
        }
        if config.qk_norm:
            layer |= {"self_attn.q_norm": p["q_norm"], "self_attn.k_norm": p["k_norm"]}
        if config.n_experts > 1:
            layer["mlp.gate"] = p["router"].T
            both = np.concatenate([p["gate"], p["up"]], axis=2).transpose(0, 2, 1)
            state[f"model.layers.{i}.mlp.experts.gate_up_proj"] = both
            state[f"model.layers.{i}.mlp.experts.down_proj"] = p["down"].transpose(0, 2, 1)
        else:
            layer |= {f"mlp.{n}_proj": p[n].T for n in ("gate", "up", "down")}
        state |= {f"model.layers.{i}.{name}.weight": w for name, w in layer.items()}
    model.load_state_dict({name: torch.tensor(np.array(w)) for name, w in state.items()}, strict=True)


@pytest.mark.parametrize(
    "kind, changes, more",
    [
        ("Llama", {}, {}),
        ("Llama", {"tied_embeddings": True, "rope_theta": 500_000.0, "norm_eps": 1e-5}, {}),
        ("Qwen3", {"qk_norm": True, "head_dim": 12}, {}),
        ("Mixtral", {"n_experts": 4, "top_k": 2, "moe_matmul": "blocks"}, {"num_local_experts": 4}),
        ("Mixtral", {"n_experts": 8, "top_k": 3, "moe_matmul": "ragged"}, {"num_local_experts": 8}),
    ],
)
def test_logits(kind, changes, more):
    config = ModelConfig(**{**SHAPE, **changes})
    if kind == "Mixtral":
        more = {**more, "num_experts_per_tok": config.top_k}
    params = random_params(config)
    model = theirs(kind, config, **more)
    fill(model, config, params)
    tokens = random_tokens((2, 19), config.vocab_size)
    with torch.no_grad():
        expected = model(torch.tensor(tokens.astype(np.int64))).logits.numpy()
    ours = np.asarray(engine.logits(config, params, tokens))
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)

"""Hugging Face folders against the transformers library, where it is installed: both ways, with the same weights."""

import numpy as np
import pytest

import engine
from engine import InputError, ModelConfig, hf, tokenize
from tests.engine.conftest import drawn_params, random_tokens
from tests.engine.test_tokenize import TEXTS

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SHAPE = {"vocab_size": 37, "d_model": 32, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "d_ff": 48}
EXPERTS = {"n_experts": 4, "top_k": 2, "d_expert": 24}
OURS = {
    "llama": {},
    "llama, tied": {"tied_embeddings": True, "rope_theta": 500_000.0, "norm_eps": 1e-5},
    "qwen3": {"qk_norm": True, "head_dim": 12},
    "qwen3, tied": {"qk_norm": True, "tied_embeddings": True},
    "mixtral": {**EXPERTS, "moe_matmul": "blocks"},
    "mixtral, head_dim": {"n_experts": 8, "top_k": 3, "moe_matmul": "ragged", "head_dim": 12},
    "qwen3_moe": {**EXPERTS, "qk_norm": True},
    "qwen3_moe, one dense layer": {**EXPERTS, "qk_norm": True, "n_dense_layers": 1, "normalized_gates": False},
}
DIMS = {
    "vocab_size": 37,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ROUTED = {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "num_experts": 4}
THEIRS = {
    "Llama": {},
    "Llama, tied": {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "Qwen3": {"head_dim": 12},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 3},
    "Qwen3Moe": {**ROUTED, "head_dim": 12, "norm_topk_prob": True},
    "Qwen3Moe, one dense layer": {**ROUTED, "mlp_only_layers": [0]},
}


def their_logits(model, tokens):
    with torch.no_grad():
        return model(torch.tensor(tokens.astype(np.int64))).logits.float().numpy()


def agree(ours, theirs):
    assert np.abs(theirs).max() > 1 and theirs.std() > 0.3
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", OURS)
def test_ours_loaded_by_them(name, tmp_path):
    config = ModelConfig(**{**SHAPE, **OURS[name]})
    params = drawn_params(config)
    hf.save(tmp_path / "out", config, params)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())  # no key missing, left over or of another shape
    assert model.config.model_type == name.partition(",")[0] and model.dtype == torch.float32
    tokens = random_tokens((2, 19), config.vocab_size)
    agree(np.asarray(engine.logits(config, params, tokens)), their_logits(model.eval(), tokens))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", THEIRS)
def test_theirs_loaded_by_us(name, dtype, tmp_path):
    kind, values = name.partition(",")[0], {**DIMS, **THEIRS[name]}
    config = getattr(transformers, kind + "Config")(**values)
    model = getattr(transformers, kind + "ForCausalLM")(config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.2 + (p.ndim == 1))
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path, max_shard_size="20KB")
    ours, params = hf.load(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    tokens = random_tokens((2, 19), ours.vocab_size)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    agree(np.asarray(engine.logits(ours, params, tokens)), their_logits(reference, tokens))


def test_greedy_generation_is_theirs(tmp_path):
    config = ModelConfig(**{**SHAPE, **OURS["mixtral"]})
    params = drawn_params(config)
    hf.save(tmp_path / "out", config, params)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    prompt = random_tokens((1, 9), config.vocab_size)
    theirs = model.generate(torch.tensor(prompt.astype(np.int64)), max_new_tokens=20, do_sample=False)[0, 9:]
    (ours,) = engine.generate(config, params, prompt, max_new_tokens=20, temperature=0)
    np.testing.assert_array_equal(ours, theirs.numpy())


@pytest.mark.parametrize("kind", ["bytes", "bpe-300"])
def test_tokenizer_gives_the_same_ids(kind, tmp_path):
    tokenizer = tokenize.train(kind, TEXTS)
    config = ModelConfig(**{**SHAPE, "vocab_size": tokenizer.vocab_size})
    hf.save(tmp_path / "out", config, drawn_params(config), tokenizer=tokenizer, seq_len=64)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    again = hf.load_tokenizer(tmp_path / "out")
    assert theirs.eos_token_id == again.separator == tokenizer.separator and len(theirs) == tokenizer.vocab_size
    for text in [*TEXTS, "", " leading, trailing ", "a<|endoftext|>b", "n't . , ?", "\u00a0\ufeff\u2028\0"]:
        ids = tokenizer.encode(text).tolist()
        assert theirs(text)["input_ids"] == ids == again.encode(text).tolist()
        assert theirs.decode(ids) == text
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.generation_config.eos_token_id == tokenizer.separator
    assert model.config.max_position_embeddings == 64


@pytest.mark.parametrize(
    "kind, values, key",
    [
        ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_parameters"),
        ("Llama", {"attention_bias": True}, "attention_bias"),
        ("Mixtral", {"sliding_window": 64}, "sliding_window"),
        ("Qwen3", {"use_sliding_window": True, "max_window_layers": 1}, "use_sliding_window"),
        ("Qwen3Moe", {**ROUTED, "decoder_sparse_step": 2}, "decoder_sparse_step"),
        ("GPTNeoX", {}, "gpt_neox"),
    ],
)
def test_their_config_that_we_have_no_answer_to_is_refused(kind, values, key, tmp_path):
    getattr(transformers, kind + "Config")(**{**DIMS, **values}).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=key) as error:
        hf.load(tmp_path)
    assert "\n" not in str(error.value)

"""Hugging Face folders without torch: nothing is lost on the way out and in, and what we can't read is named."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from engine import InputError, ModelConfig, hf, hf_layouts, tokenize
from tests.engine.conftest import drawn_params
from tests.engine.test_corpora import run_python

SHAPE = {"vocab_size": 37, "d_model": 32, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "d_ff": 48}
EXPERTS = {"n_experts": 4, "top_k": 2, "d_expert": 24}
MODELS = {
    "llama": {"rope_theta": 5e5, "norm_eps": 1e-5},
    "qwen3": {"qk_norm": True, "head_dim": 12, "tied_embeddings": True},
    "mixtral": {**EXPERTS, "d_ff": 24},  # it has no dense layer to give a width
    "qwen3_moe": {**EXPERTS, "qk_norm": True, "n_dense_layers": 1, "normalized_gates": False},
}
CONFIG = ModelConfig(**SHAPE)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def one_line(error):
    assert "\n" not in str(error.value)


@pytest.fixture
def folder(tmp_path):
    """A Llama in three shards."""
    hf.save(tmp_path / "out", CONFIG, drawn_params(CONFIG), shard_bytes=50_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) >= 3
    return tmp_path / "out"


@pytest.fixture
def single(tmp_path):
    """The same in one file."""
    hf.save(tmp_path / "one", CONFIG, drawn_params(CONFIG))
    return tmp_path / "one"


def rewrite(folder, tensors, **more):
    safetensors.numpy.save_file({**tensors, **more}, folder / "model.safetensors")


def change(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_bit_for_bit(name, tmp_path):
    config = ModelConfig(**{**SHAPE, **MODELS[name]})
    params = drawn_params(config)
    hf.save(tmp_path / "out", config, params)
    again, read = hf.load(tmp_path / "out")
    assert again == config
    same(read, params)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == name
    assert [p.name for p in tmp_path.iterdir()] == ["out"]  # no partial folder beside it


def test_names_and_shapes_are_the_published_ones(tmp_path):
    """Of Mixtral, as its published checkpoints have them."""
    config = ModelConfig(**{**SHAPE, **MODELS["mixtral"], "n_layers": 1})
    params = drawn_params(config)
    hf.save(tmp_path / "out", config, params)
    tensors = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    layer, experts = "model.layers.0", "model.layers.0.block_sparse_moe"
    expected = {
        "model.embed_tokens.weight": params["embed"],
        f"{layer}.input_layernorm.weight": params["layers"]["attn_norm"][0],
        f"{layer}.self_attn.q_proj.weight": np.reshape(params["layers"]["q"][0], (32, 32)).T,
        f"{layer}.self_attn.k_proj.weight": np.reshape(params["layers"]["k"][0], (32, 16)).T,
        f"{layer}.self_attn.v_proj.weight": np.reshape(params["layers"]["v"][0], (32, 16)).T,
        f"{layer}.self_attn.o_proj.weight": np.reshape(params["layers"]["o"][0], (32, 32)).T,
        f"{layer}.post_attention_layernorm.weight": params["layers"]["mlp_norm"][0],
        f"{experts}.gate.weight": params["layers"]["router"][0].T,
        **{f"{experts}.experts.{e}.w1.weight": params["layers"]["gate"][0, e].T for e in range(4)},
        **{f"{experts}.experts.{e}.w2.weight": params["layers"]["down"][0, e].T for e in range(4)},
        **{f"{experts}.experts.{e}.w3.weight": params["layers"]["up"][0, e].T for e in range(4)},
        "model.norm.weight": params["norm"],
        "lm_head.weight": params["head"].T,
    }
    assert tensors.keys() == expected.keys()
    same(tensors, expected)


def test_shards_and_one_file_are_the_same_model(folder, single):
    same(hf.load(folder)[1], hf.load(single)[1])
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    params = drawn_params(CONFIG)
    assert index["metadata"]["total_size"] == 4 * sum(x.size for x in jax.tree.leaves(params))
    tensors = safetensors.numpy.load_file(single / "model.safetensors")
    assert index["weight_map"].keys() == tensors.keys()
    for file in set(index["weight_map"].values()):
        assert sum(x.nbytes for x in safetensors.numpy.load_file(folder / file).values()) <= 50_000


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_is_read(single, dtype):
    tensors = safetensors.numpy.load_file(single / "model.safetensors")
    rewrite(single, {name: x.astype(dtype) for name, x in tensors.items()})
    _, params = hf.load(single)
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    same(params, jax.tree.map(lambda x: np.asarray(x).astype(dtype).astype(np.float32), drawn_params(CONFIG)))


# --- refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"positions": "alibi"}, "model.positions"),
        ({"activation": "gelu"}, "model.activation"),
        ({"logit_softcap": 30.0}, "model.logit_softcap"),
        ({**EXPERTS, "d_shared": 8}, "model.d_shared"),
        ({**EXPERTS, "router_bias": True}, "model.router_bias"),
        ({**EXPERTS, "capacity_factor": 1.25}, "model.capacity_factor"),
        ({**EXPERTS, "n_dense_layers": 1}, "model.n_dense_layers"),
        ({**EXPERTS, "normalized_gates": False}, "model.normalized_gates"),
        ({"d_model": 34, "head_dim": 8}, "model.d_model 34"),
    ],
)
def test_a_model_that_no_layout_has_is_refused(changes, field, tmp_path):
    config = ModelConfig(**{**SHAPE, **changes})
    with pytest.raises(InputError, match=field) as error:
        hf.save(tmp_path / "out", config, {})
    one_line(error)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "values, key",
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'; known: llama"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"sliding_window": 4096}, "sliding_window 4096"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters"),
        ({"rope_scaling": "linear"}, "rope_scaling 'linear'"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "rope_parameters.*0.5"),
        ({"layer_types": ["sliding_attention"] * 3}, "layer_types"),
        ({"hidden_size": "wide"}, "d_model.*'wide'"),
        ({"num_hidden_layers": 4}, "no tensor model.layers.3"),
        ({"num_hidden_layers": 2}, "model.layers.2.*no place"),
        ({"vocab_size": 38}, r"embed_tokens.*\[37, 32\].*\[38, 32\]"),
        ({"model_type": "qwen3"}, "q_norm"),
    ],
)
def test_a_folder_that_says_something_else_is_refused(values, key, single):
    change(single, **values)
    with pytest.raises(InputError, match=key) as error:
        hf.load(single)
    one_line(error)


@pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "vocab_size"])
def test_a_missing_key_is_named(key, single):
    values = json.loads((single / "config.json").read_text())
    del values[key]
    (single / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=f"no '{key}'"):
        hf.load(single)


def test_absent_keys_mean_what_the_library_means():
    least = {
        "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 9, "intermediate_size": 96,
    }  # fmt: skip
    read = lambda kind, **more: hf_layouts.read_config({**least, **more}, hf_layouts.LAYOUTS[kind])  # noqa: E731
    llama = read("llama")
    assert (llama.n_kv_heads, llama.head_dim, llama.norm_eps, llama.rope_theta) == (4, 16, 1e-6, 1e4)
    assert not llama.tied_embeddings
    assert read("qwen3", num_key_value_heads=2).head_dim == 128
    mixtral = read("mixtral", num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2)
    assert (mixtral.rope_theta, mixtral.norm_eps, mixtral.normalized_gates, mixtral.d_expert) == (1e6, 1e-5, True, 96)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def garble(path):
    path.write_bytes(b"\xff" * 100)


@pytest.mark.parametrize("damage", [truncate, garble, lambda path: path.unlink()], ids=["cut", "garbled", "gone"])
@pytest.mark.parametrize("which", ["folder", "single"])
def test_damaged_weights_are_named(damage, which, request):
    at = request.getfixturevalue(which)
    path = max(at.glob("*.safetensors"))
    damage(path)
    with pytest.raises(InputError, match=path.name) as error:
        hf.load(at)
    one_line(error)


def test_an_index_that_lies_is_refused(folder):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.extra"] = max(index["weight_map"].values())
    path.write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"model\.extra.*index"):
        hf.load(folder)
    for content in ("{}", '{"weight_map": ["a"]}', "[]", "not json", '{"weight_map": {"a": 1}}'):
        path.write_text(content)
        with pytest.raises(InputError, match=r"index\.json") as error:
            hf.load(folder)
        one_line(error)


def test_weights_of_another_kind_are_refused(single):
    tensors = safetensors.numpy.load_file(single / "model.safetensors")
    rewrite(single, tensors, **{"model.norm.weight": np.zeros(32, np.int8)})
    with pytest.raises(InputError, match=r"model\.norm\.weight.*I8; known: float32, bfloat16"):
        hf.load(single)


def test_no_folder(tmp_path):
    with pytest.raises(InputError, match=r"config\.json: No such file"):
        hf.load(tmp_path / "nowhere")


def test_params_of_another_model_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"params are not of this model: embed is \(37, 32\).*\(38, 32\)"):
        hf.save(tmp_path / "out", ModelConfig(**{**SHAPE, "vocab_size": 38}), drawn_params(CONFIG))


def test_what_stands_in_a_folder_is_kept(folder, tmp_path):
    other = drawn_params(CONFIG, seed=5)
    with pytest.raises(InputError, match="exists"):
        hf.save(folder, CONFIG, other)
    hf.save(folder, CONFIG, other, overwrite=True)
    same(hf.load(folder)[1], other)
    assert not list(folder.glob("*index.json"))  # no shard of the old model is left
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "thesis.tex").write_text("")
    with pytest.raises(InputError, match=r"no config\.json"):
        hf.save(notes, CONFIG, other, overwrite=True)
    assert [p.name for p in notes.iterdir()] == ["thesis.tex"]


# --- tokenizers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bytes", "bpe-300"])
def test_a_tokenizer_comes_back(kind, tmp_path):
    tokenizer = tokenize.train(kind, ["the cat sat on the mat; the naïve café 世界\n" * 20])
    config = ModelConfig(**{**SHAPE, "vocab_size": tokenizer.vocab_size})
    hf.save(tmp_path / "out", config, drawn_params(config), tokenizer=tokenizer)
    again = hf.load_tokenizer(tmp_path / "out")
    assert (again.vocab_size, again.separator) == (tokenizer.vocab_size, tokenizer.separator)
    for text in ("the cat", "", " \n\t\u00a0\0é🙂", "a<|endoftext|>b"):
        np.testing.assert_array_equal(again.encode(text), tokenizer.encode(text))
        assert again.decode(tokenizer.encode(text)) == text
    assert again.decode([tokenizer.separator, *tokenizer.encode("x")]) == "x"


def test_a_folder_without_a_tokenizer_says_so(folder):
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        hf.load_tokenizer(folder)


# --- packages ------------------------------------------------------------------------------------------------------


def test_the_engine_needs_neither_safetensors_nor_tokenizers():
    code = (
        "import sys\nsys.modules['safetensors'] = sys.modules['tokenizers'] = None\n"
        "import engine\nfrom engine import ModelConfig\n"
        "try:\n    engine.hf.save('out', ModelConfig(), engine.init(ModelConfig()))\n"
        "except engine.InputError as error:\n    print(error)\n"
    )
    assert "need the package safetensors; install it" in run_python(code).stdout

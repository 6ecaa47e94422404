"""Analytic counts against real parameter trees, the published tables' own columns, and the compiler."""

import csv
import os
from functools import partial
from math import prod
from pathlib import Path

import jax
import numpy as np
import pytest

import engine
from engine import ModelConfig, sizes

MODELS = {
    "grouped-query": {"n_kv_heads": 2},
    "tied": {"tied_embeddings": True},
    "head_dim apart from d_model": {"head_dim": 6},
    "gelu": {"activation": "gelu"},
    "qk-norm": {"qk_norm": True},
    "all layers routed": {"n_experts": 4, "top_k": 2, "d_expert": 6},
    "Step Law's kind": {"n_experts": 4, "d_expert": 6, "d_shared": 5, "n_dense_layers": 1},
    "gelu, router bias": {
        "n_experts": 4,
        "d_shared": 5,
        "n_dense_layers": 2,
        "activation": "gelu",
        "router_bias": True,
    },
}


def tree_sizes(model):
    """Sizes of the leaves of the real tree, by path; nothing is computed."""
    tree = jax.eval_shape(partial(engine.init, model))
    return {jax.tree_util.keystr(path): prod(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_counts_are_those_of_the_real_tree(changes):
    model = ModelConfig(**{"vocab_size": 17, "d_model": 16, "n_layers": 3, "n_heads": 4, **changes})
    leaves = tree_sizes(model)
    blocks = {path: n for path, n in leaves.items() if "layers" in path}
    norms = sum(n for path, n in blocks.items() if "norm" in path)
    gates = sum(n for path, n in blocks.items() if "router" in path)
    assert sizes.total_params(model) == sum(leaves.values())
    assert sizes.non_embedding_params(model, norms=True) == sum(blocks.values()) - gates
    assert sizes.non_embedding_params(model) == sum(blocks.values()) - gates - norms


@pytest.mark.parametrize("ladder", [sizes.steplaw_shapes, sizes.steplaw_moe_shapes, sizes.farseer_shapes])
def test_the_published_shapes_are_models_of_ours(ladder):
    for name, model in ladder().items():
        assert sizes.total_params(model) == sum(tree_sizes(model).values()), name


def table(name):
    folder = os.environ.get("STEPSEER_DATA", "")
    path = Path(folder) / name
    if not folder or not path.is_file():
        pytest.skip(f"no {name}: set STEPSEER_DATA to the folder of published run tables")
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def config_of(row):
    """A published row's model from its shape columns alone."""
    at = {name: int(row[name]) for name in ("h", "ffnh", "numh", "numl")}
    experts = {}
    if "nume" in row:
        names = {"n_experts": "nume", "top_k": "topk", "d_expert": "moeh", "d_shared": "sed", "n_dense_layers": "numld"}
        experts = {ours: int(row[theirs]) for ours, theirs in names.items()}
    return ModelConfig(d_model=at["h"], d_ff=at["ffnh"], n_heads=at["numh"], n_layers=at["numl"], **experts)


def test_every_dense_row_of_step_law():
    rows = table("steplaw/dense_lr_bs_loss.csv")
    assert len(rows) == 1911
    for row in rows:
        assert sizes.non_embedding_params(config_of(row)) == int(row["N"])
    shapes = {sizes.non_embedding_params(model) for model in sizes.steplaw_shapes().values()}
    assert shapes == {int(row["N"]) for row in rows}


def test_every_mixture_of_experts_of_step_law():
    rows = table("steplaw/moe_lr_bs_loss.csv")
    assert len(rows) == 708
    ladder = sizes.steplaw_moe_shapes()
    for row in rows:
        model = config_of(row)
        assert sizes.non_embedding_params(model) == int(row["N"])
        assert sizes.active_params(model) == int(row["Na"])
        assert sizes.block_flops_per_token(model, int(row["seq_len"])) == int(row["M"])
        assert sizes.non_embedding_params(ladder[row["moe_name"]]) == int(row["N"])
        assert sizes.active_params(ladder[row["moe_name"]]) == int(row["Na"])
    assert set(ladder) == {row["moe_name"] for row in rows}


def test_every_row_of_farseer():
    rows = table("farseer/1222_full.csv")
    assert len(rows) == 404
    for row in rows:
        model = config_of(row)
        assert sizes.non_embedding_params(model, norms=True) == int(row["N"])
        assert sizes.block_flops_per_token(model, int(row["seq_len"])) == int(row["M"])
        with_tables = sizes.total_params(engine.ModelConfig(**{**vars(model), "vocab_size": 65_536}))
        assert with_tables - model.d_model == int(row["N_add_emb"])  # the final norm is not in their count
    shapes = {sizes.non_embedding_params(model, norms=True) for model in sizes.farseer_shapes().values()}
    assert shapes == {int(row["N"]) for row in rows} | {25_120_768_000}


def test_names_of_the_ladders():
    assert list(sizes.steplaw_shapes())[-1] == "1074M" and len(sizes.steplaw_shapes()) == 5
    assert len(sizes.farseer_shapes()) == 26 and "201M" in sizes.farseer_shapes()


def test_flops_against_the_compiler():
    """Analytic FLOPs against XLA's count of a one-layer forward pass; training costs three times that."""
    model = engine.ModelConfig(vocab_size=512, d_model=128, n_layers=1, n_heads=2, d_ff=512)
    params, tokens = engine.init(model, 0), np.zeros((1, 128), np.int32)
    counted = engine.logits.lower(model, params, tokens).compile().cost_analysis()["flops"]
    assert 3 * counted / 128 == pytest.approx(sizes.flops_per_token(model, 128), rel=0.05)

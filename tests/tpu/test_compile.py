"""Steps compiled for TPU slices by libtpu, with no TPU: small models on the slices of `benchmarks/tpu_compile.py`."""

import dataclasses
import importlib.util
import json

import pytest

from engine import sizes
from engine.config import ComputeConfig, DataConfig, MeshConfig, ModelConfig, TrainConfig, replace
from engine.errors import InputError
from experiments.cli import main
from tpu import compile as compile_lib
from tpu import search, topologies
from tpu.roofline import Roofline

HERE = importlib.util.find_spec("libtpu") is not None
with_libtpu = pytest.mark.skipif(not HERE, reason="libtpu is of the extra `tpu`, for Linux on x86-64")

DENSE = TrainConfig(
    recipe="small",
    model=ModelConfig(vocab_size=512, d_model=256, n_layers=2, n_heads=2, d_ff=512),
    data=DataConfig(corpus="synthetic", seq_len=256),
    compute=ComputeConfig(remat="full"),
    batch_size=64,
    tokens=64 * 256 * 200,
    dtype="bfloat16",
)
RECIPE = f"""
from engine.config import *
def one(): return {DENSE!r}
def many(): return [replace(one(), {{"optim.lr": 1e-3 + 1e-4 * i}}) for i in range(12)]
def big(): return replace(one(), {{"batch_size": 65536, "tokens": 65536 * 256 * 200, "compute.remat": "none"}})
"""


def compiled(config, name, n_trials=1):
    trials = [replace(config, {"optim.lr": 1e-3 * (1 + i)}) for i in range(n_trials)]
    return compile_lib.compile_step(trials, topologies.find(name))


def weights_bytes(config):
    return 4 * sizes.total_params(config.model)


@with_libtpu
def test_a_population_over_trials_sends_nothing():
    report = compiled(replace(DENSE, {"batch_size": 4, "tokens": 1e6}), "v6e-64", n_trials=64)
    assert report.fits and report.config.mesh == MeshConfig(trial=64, data=1)
    assert report.collectives == [] and report.messages == {}
    assert report.config.compute.attention == "splash" and report.kernels["tpu_custom_call"] >= 3  # forward, dq, dkv
    assert report.memory.weights == weights_bytes(DENSE)  # a trial a chip
    assert report.memory.optimizer == pytest.approx(2 * weights_bytes(DENSE), rel=1e-3)


@with_libtpu
def test_a_divided_model_sends_what_its_layout_says():
    config = replace(DENSE, {"mesh.trial": 1, "mesh.data": 16, "mesh.fsdp": 4})
    report = compiled(config, "v5p-128")
    assert report.fits and report.chips == 64
    assert report.memory.weights == pytest.approx(weights_bytes(config) / 4, rel=0.02)  # norms too are divided
    assert {c.group for c in report.collectives if c.kind == "all-gather"} == {4}  # weights, over fsdp
    assert {"all-gather", "all-reduce"} <= set(report.messages)
    line = report.roofline
    assert line is not None and 0 < line.mfu(report.where, report.chips) <= 1
    tokens = 64 * 256
    assert line.model_flops == tokens * sizes.flops_per_token(config.model, 256)


@with_libtpu
def test_experts_are_grouped_matmuls():
    model = dataclasses.replace(DENSE.model, n_experts=8, top_k=2, d_expert=128)
    report = compiled(dataclasses.replace(DENSE, model=model), "v5e-16")
    assert report.fits and report.config.model.moe_matmul == "ragged"
    dense = 4  # kernels of attention
    assert report.kernels["tpu_custom_call"] >= dense + 3  # gate, up, down: forward alone


@with_libtpu
def test_what_does_not_fit_is_said_with_what_to_change(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(RECIPE)
    recipe = f"{tmp_path / 'mine.py'}:big"
    assert main(["tpu", "compile", recipe, "--topology", "v5e-4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is False and found["bytes_per_chip"] > found["bytes_per_chip_limit"] > 15 * 2**30
    assert found["advice"].startswith("compute.remat=full")
    assert "step_s" not in found


def test_the_search_ranks_what_fits(tmp_path, monkeypatch, capsys):
    """By the compiled steps' rooflines, whatever was guessed; what does not fit comes last."""
    steps = iter([0.3, None, 0.1] * 2)

    def compile_step(trials, where):
        step_s = next(steps)
        line = None if step_s is None else Roofline(step_s, 0.0, 0.0, 1e12)
        memory = compile_lib.Memory(1, 2, 3, 4, 10, None)
        return compile_lib.Report(trials[0], 1, where, 16, bool(line), memory, [], {}, line, 0.0, 0.0, "")

    monkeypatch.setattr(compile_lib, "compile_step", compile_step)
    found = search.search([DENSE], topologies.find("v5e-16"), most=3)
    assert [r.roofline and r.roofline.step_s for r in found] == [0.1, 0.3, None]
    assert len({(r.config.mesh, r.config.compute) for r in found}) == 3

    (tmp_path / "mine.py").write_text(RECIPE)
    recipe = f"{tmp_path / 'mine.py'}:one"
    assert main(["tpu", "compile", recipe, "--topology", "v5e-16", "--search", "--most", "3"]) == 0
    shown = capsys.readouterr()
    assert "3/3: " in shown.err and "2/3: " in shown.err
    assert f"the first: --set mesh.trial=1 --set mesh.data={found[0].config.mesh.data}" in shown.out


def test_the_largest_population_that_fits_is_found_by_halves(tmp_path, monkeypatch, capsys):
    tried = []

    def compile_step(trials, where):
        tried.append(len(trials))
        fits = len(trials) <= 3
        memory = compile_lib.Memory(1, 2, 3, 4, 10, None if fits else 9)
        line = Roofline(0.1, 0.0, 0.0, 1e12) if fits else None
        return compile_lib.Report(trials[0], len(trials), where, 16, fits, memory, [], {}, line, 0.0, 0.0, "less")

    monkeypatch.setattr(compile_lib, "compile_step", compile_step)
    (tmp_path / "mine.py").write_text(RECIPE)
    recipe = f"{tmp_path / 'mine.py'}:many"
    assert main(["tpu", "compile", recipe, "--topology", "v5e-4", "--largest"]) == 0
    assert tried == [12, 6, 3]
    assert "3 of 12 trials at a time" in capsys.readouterr().out
    assert main(["tpu", "compile", recipe, "--topology", "v5e-4", "--largest", "--search"]) == 2


@with_libtpu
def test_the_command_says_it_in_words_and_in_json(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(RECIPE)
    real, made = compile_lib.compile_step, []  # compiled once

    def compile_step(trials, where):
        made.append(made[0] if made else real(trials, where))
        return made[0]

    monkeypatch.setattr(compile_lib, "compile_step", compile_step)
    words = ["tpu", "compile", f"{tmp_path / 'mine.py'}:one", "--topology", "v5e-4", "--set", "batch_size=8"]
    assert main(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for what in ("4 chips (2x2) of 1 host", "of 16.00 GiB a chip", "weights", "MFU: at most", "attention splash"):
        assert what in shown
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] and sum(found["bytes_per_chip_by_kind"].values()) == found["bytes_per_chip"]
    assert {"mfu", "step_s", "collectives", "tokens_per_s", "assumptions"} <= set(found)


def test_the_search_tries_what_divides():
    where = topologies.find("v5e-16")
    found = list(search.meshes(DENSE, 1, where))
    assert len({repr(mesh) for mesh in found}) == len(found)
    for mesh in found:
        assert mesh.trial * mesh.data * mesh.fsdp * mesh.expert * mesh.tensor == 16
        assert DENSE.batch_size % (mesh.data * mesh.fsdp) == 0 and DENSE.model.n_heads % mesh.tensor == 0
    assert {mesh.tensor for mesh in found} == {1, 2} and {mesh.fsdp for mesh in found} >= {1, 2, 4, 8, 16}
    assert list(search.meshes(replace(DENSE, {"batch_size": 3}), 1, where)) == []


def test_a_step_that_fits_less_is_guessed_larger():
    where = topologies.find("v5e-4")
    every = search.guesses([DENSE], where)
    by = {(g.config.mesh.fsdp, g.config.compute.remat, g.config.compute.micro_batch): g for g in every}
    assert by[1, "none", 0].bytes > by[1, "full", 0].bytes > by[1, "full", 16].bytes
    assert by[1, "none", 0].step_s <= by[1, "full", 0].step_s
    assert by[1, "full", 0].bytes > by[4, "full", 0].bytes


def test_refusals_are_one_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.py").write_text(RECIPE)
    recipe = f"{tmp_path / 'mine.py'}:one"
    for words, said in [
        ([recipe, "--topology", "v5e-255"], "did you mean v5e-256"),
        ([recipe, "--topology", "h100-8"], "is of GPUs"),
        (["tiny", "--topology", "v5e-4"], "are of several programs"),
        ([recipe, "--topology", "v5e-4", "--trials", "2"], "has 1 trial"),
        ([recipe, "--topology", "v5e-4", "--set", "optim.lrr=1"], "did you mean optim.lr"),
        ([recipe], "--topology"),
    ]:
        assert main(["tpu", "compile", *words]) == 2, words
        shown = capsys.readouterr().err
        assert said in shown and shown.count("\n") == 1
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'stepseer\[tpu\]'"):
        compile_lib.devices(topologies.find("v5e-4"))

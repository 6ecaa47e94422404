"""Tokens per second of this engine beside PyTorch compiled; and what a grid gains by sharing a program.

    python -m benchmarks.engine_speed [single population]      # needs torch: pip install '.[bench]'

single: one model, the same shapes and optimizer; each measurement in a process of its own, ours and theirs in turn,
the least of three. The floor is FLOPs: the analytic count over what a 2048-wide matrix product reaches on this machine.
population: a learning-rate grid of 16 trials as one sweep, beside 16 commands one after the other, compile included.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.fit_speed import cpu

ROUNDS, SECONDS = 3, 6.0
VOCAB, LAYERS, SEQ_LEN, HEAD_DIM = 512, 4, 256, 64
WIDTHS = {"cpu": (128, 256, 512), "gpu": (768, 1536, 2048)}
TRIALS = 16


def shape(d_model: int, device: str) -> dict[str, Any]:
    """One model: of 4 layers on a CPU; deeper, wider batches, bfloat16 on a GPU."""
    gpu = device == "gpu"
    return {
        "vocab": 32_768 if gpu else VOCAB,
        "d_model": d_model,
        "n_layers": 16 if gpu else LAYERS,
        "n_heads": d_model // HEAD_DIM,
        "d_ff": -(-8 * d_model // 192) * 64,
        "seq_len": 1024 if gpu else SEQ_LEN,
        "batch_size": 16 if gpu else 8,
        "dtype": "bfloat16" if gpu else "float32",
    }


def our_config(s: dict[str, Any], **changes: Any) -> Any:
    from engine import DataConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig

    return TrainConfig(
        model=ModelConfig(
            vocab_size=s["vocab"],
            d_model=s["d_model"],
            n_layers=s["n_layers"],
            n_heads=s["n_heads"],
            d_ff=s["d_ff"],
        ),
        optim=OptimConfig(),
        data=DataConfig(corpus="synthetic", seq_len=s["seq_len"]),
        mesh=MeshConfig(trial=1, data=1),
        batch_size=s["batch_size"],
        tokens=1e9,
        dtype=s["dtype"],
        **changes,
    )


def ours(s: dict[str, Any]) -> dict[str, float]:
    import jax
    import numpy as np

    from engine import mesh as mesh_lib
    from engine import population, sizes, step

    config = our_config(s)
    mesh = mesh_lib.make_mesh(config.mesh, n_trials=1, batch_size=config.batch_size)
    hyper = jax.device_put(population.stack_hypers([config]), mesh_lib.trial_sharding(mesh))
    state = population.init_state(mesh, [config], hyper)
    run = population.compiled_train_steps(step.program(config), mesh)
    shape = (4, config.batch_size, config.data.seq_len + 1)
    tokens = np.random.default_rng(0).integers(0, s["vocab"], shape).astype(np.int32)
    begun = time.perf_counter()
    state, metrics = jax.block_until_ready(run(state, tokens, np.int32(4), hyper))
    compiled = time.perf_counter() - begun
    ends, least = time.perf_counter() + SECONDS, float("inf")
    while time.perf_counter() < ends:
        begun = time.perf_counter()
        state, metrics = run(state, tokens, np.int32(4), hyper)
        jax.block_until_ready(metrics)
        least = min(least, (time.perf_counter() - begun) / 4)
    flops = sizes.flops_per_token(config.model, config.data.seq_len)
    return {"compile": compiled, "step": least, "flops": flops, "attention": step.program(config).compute.attention}


def theirs(s: dict[str, Any]) -> dict[str, float]:
    from benchmarks import torch_decoder

    compiled, least = torch_decoder.seconds_per_step(**s, seconds=SECONDS)
    return {"compile": compiled, "step": least, "peak": torch_decoder.matmul_flops(dtype=s["dtype"])}


def in_process(side: str, d_model: int, device: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.engine_speed", "--one", side, str(d_model), device]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side} at d_model {d_model} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def single(device: str) -> None:
    print(f"\n## One model, {shape(1, device)['dtype']}, sequences of {shape(1, device)['seq_len']}\n")
    print("| d_model | layers | ours, tokens/s | PyTorch compiled, tokens/s | ours / theirs | ours, share of peak |")
    print("|---|---|---|---|---|---|")
    for d_model in WIDTHS[device]:
        s = shape(d_model, device)
        found = [(in_process("ours", d_model, device), in_process("theirs", d_model, device)) for _ in range(ROUNDS)]
        tokens = s["batch_size"] * s["seq_len"]
        us, them = (tokens / min(pair[i]["step"] for pair in found) for i in (0, 1))
        share = us * found[0][0]["flops"] / max(pair[1]["peak"] for pair in found)
        print(f"| {d_model} | {s['n_layers']} | {us:,.0f} | {them:,.0f} | {us / them:.2f} | {share:.0%} |", flush=True)
    print(
        f"\nAttention here: {found[0][0]['attention']}. Compile of the last: {found[0][0]['compile']:.0f} s, ", end=""
    )
    print(f"PyTorch {found[0][1]['compile']:.0f} s.")


GRID = """\
from engine.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from experiments.grid import axis, ladder, prod, trials


def grid():
    base = TrainConfig(
        recipe="speed", model=ModelConfig(d_model={d_model}, n_layers=2, n_heads={heads}), batch_size=8,
        data=DataConfig(corpus="synthetic", seq_len=128), tokens={tokens}, optim=OptimConfig(warmup_steps=10),
    )
    return trials(base, prod(axis("optim.lr", ladder(1e-4, 1e-4 * 2**({trials} - 1), 2))))


def one():
    return grid()[0]
"""


def population(device: str) -> None:
    """The sweep against single commands, whose time is the mean of three."""
    print(f"\n## A grid of {TRIALS} learning rates, compile included\n")
    print("| d_model | tokens of a trial | as one sweep, trials/hour | one command each, trials/hour | gain |")
    print("|---|---|---|---|---|")
    for d_model, tokens in ((32, 1e5), (32, 1e6), (128, 1e5)):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "speed_grid.py")
            file.write_text(GRID.format(d_model=d_model, heads=max(1, d_model // 32), tokens=tokens, trials=TRIALS))
            # each command compiles anew, as in a fresh environment; none finds the other's programs
            together = command(folder, "sweep", "run", f"{file}:grid", "--out", f"{folder}/sweep")
            alone = sum(command(f"{folder}/{i}", "train", f"{file}:one") for i in range(3)) / 3
        ours, single = 3600 * TRIALS / together, 3600 / alone
        print(f"| {d_model} | {tokens:.0e} | {ours:,.0f} | {single:,.0f} | {ours / single:.1f} |", flush=True)


def command(cache: str, *words: str) -> float:
    Path(cache).mkdir(exist_ok=True)
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "experiments.cli", *words],
        check=True,
        capture_output=True,
        env={**os.environ, "STEPSEER_CACHE": cache},
    )
    return time.perf_counter() - begun


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        side, d_model, device = sys.argv[2:]
        print(json.dumps({"ours": ours, "theirs": theirs}[side](shape(int(d_model), device))))
        return
    import jax

    device = jax.default_backend()
    kind = jax.devices()[0].device_kind if device != "cpu" else cpu()
    print(f"# Speed of the engine\n\n    python -m benchmarks.engine_speed\n\n{kind}.")
    for part in sys.argv[1:] or ("single", "population"):
        {"single": single, "population": population}[part](device)


if __name__ == "__main__":
    main()

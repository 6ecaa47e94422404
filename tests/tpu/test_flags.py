"""Flags: the compilers know every one of them."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from experiments.cli import main
from tpu import flags
from tpu.absent import NO_TPU
from tpu.topologies import GPUS, TPUS


def starts(code, environment):
    clean = {k: v for k, v in os.environ.items() if k not in (flags.TPU_VARIABLE, flags.GPU_VARIABLE)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=clean | {"JAX_PLATFORMS": "cpu"} | environment, capture_output=True, text=True
    )
    return run.returncode == 0, run.stderr


def test_xla_knows_the_gpu_flags():
    every = {
        f.text for chip in GPUS.values() for f in flags.flags(chip, deterministic=True) if f.variable == "XLA_FLAGS"
    }
    assert len(every) == 4
    good, said = starts("import jax; jax.devices()", {"XLA_FLAGS": " ".join(sorted(every))})
    assert good, said
    assert not starts("import jax; jax.devices()", {"XLA_FLAGS": "--xla_gpu_no_such_flag=1"})[0]


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is of the extra `tpu`, for Linux on x86-64"
)
def test_libtpu_knows_the_tpu_flags():
    code = (
        "from jax.experimental import topologies as t;"
        "print(len(t.get_topology_desc(platform='tpu', topology_name='v5e:2x2').devices))"
    )
    every = {f.text for chip in TPUS.values() for f in flags.flags(chip)}
    good, said = starts(code, NO_TPU | {flags.TPU_VARIABLE: " ".join(sorted(every))})
    assert good, said
    assert not starts(code, NO_TPU | {flags.TPU_VARIABLE: "--xla_tpu_no_such_flag=1"})[0]


def test_every_flag_has_a_reason_and_is_set_once():
    for chip in (TPUS | GPUS).values():
        found = flags.flags(chip, deterministic=True)
        assert len({(f.variable, f.name) for f in found}) == len(found)
        assert all(len(f.reason) > 20 for f in found)


def test_the_determinism_switch_is_of_gpus():
    assert "--xla_gpu_deterministic_ops=true" in flags.environment(GPUS["h100"], deterministic=True)["XLA_FLAGS"]
    assert "deterministic" not in flags.environment(GPUS["h100"])["XLA_FLAGS"]
    assert flags.flags(TPUS["v6e"], deterministic=True) == flags.flags(TPUS["v6e"])


def test_shell_lines_set_what_json_says(capsys):
    assert main(["tpu", "flags", "h200", "--deterministic", "--json"]) == 0
    wanted = json.loads(capsys.readouterr().out)["environment"]
    assert main(["tpu", "flags", "h200", "--deterministic", "--shell"]) == 0
    lines = capsys.readouterr().out
    names = " ".join(wanted)
    shown = subprocess.run(
        ["bash", "-c", f'{lines}for n in {names}; do printf "%s\\n" "${{!n}}"; done'], capture_output=True, text=True
    )
    assert shown.stdout.splitlines() == list(wanted.values())


def test_refusals(capsys):
    assert main(["tpu", "flags", "v9"]) == 2
    assert "no accelerator 'v9'; one of: v4" in capsys.readouterr().err
    assert main(["tpu", "flags", "v5e", "--shell", "--json"]) == 2

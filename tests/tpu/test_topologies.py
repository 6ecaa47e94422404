"""The table of slices and nodes, its names and its refusals."""

import json

import pytest

from engine import MeshConfig
from engine import mesh as mesh_lib
from engine.errors import InputError
from experiments.cli import main
from tpu import compile as compile_lib
from tpu import topologies


def test_names_count_cores_or_chips_as_cloud_tpu_does():
    shown = {name: topologies.find(name) for name in ("v5e-256", "v5p-128", "v6e-64", "v4-8", "tpu7x-128")}
    assert {name: (s.chips, s.hosts, s.libtpu) for name, s in shown.items()} == {
        "v5e-256": (256, 64, "v5e:16x16"),
        "v5p-128": (64, 16, "v5p:4x4x4"),
        "v6e-64": (64, 16, "v6e:8x8"),
        "v4-8": (4, 1, "v4:2x2x1"),
        "tpu7x-128": (64, 16, "tpu7x:4x4x4"),
    }


def test_every_name_is_found_by_libtpus_name_too():
    for name in topologies.tpu_names():
        assert topologies.find(topologies.find(name).libtpu).name == name


def test_gpu_nodes():
    assert [(topologies.find(n).chips, topologies.find(n).hosts) for n in ("h100-4", "h200-8", "b200-64")] == [
        (4, 1),
        (8, 1),
        (64, 8),
    ]


@pytest.mark.parametrize(
    "name, said",
    [
        ("v5e-255", "did you mean v5e-256"),
        ("v5p-127", "did you mean v5p-128"),
        ("v5e:3x5", "has no slice of 3x5"),
        ("h100-12", "multiple of 8"),
        ("h100-0", "no topology 'h100-0'"),
        ("", "name one of v4"),
        ("banana", "name one of v4"),
    ],
)
def test_refusals_name_what_there_is(name, said):
    with pytest.raises(InputError) as caught:
        topologies.find(name)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_the_command_gives_every_figure_with_its_source(capsys):
    assert main(["tpu", "topologies", "--json"]) == 0
    chips = {chip["chip"]: chip for chip in json.loads(capsys.readouterr().out)}
    assert set(chips) == {"v4", "v5e", "v5p", "v6e", "tpu7x", "a100", "h100", "h200", "b200"}
    assert all(chip["source"] and chip["memory_bytes"] > 1e10 and chip["flops_bf16"] > 1e14 for chip in chips.values())
    assert chips["v5e"]["slices"][-1] == {"name": "v5e-256", "shape": "16x16", "chips": 256, "hosts": 64}
    assert main(["tpu", "topologies"]) == 0
    assert "16x16" in capsys.readouterr().out


@pytest.mark.parametrize("name, trials, each, hosts", [("v5e-16", 4, 4, 1), ("tpu7x-16", 8, 2, 1), ("v5e-16", 2, 8, 2)])
def test_a_trial_stays_within_a_host_where_it_fits_into_one(name, trials, each, hosts):
    pytest.importorskip("libtpu")
    devices = compile_lib.devices(topologies.find(name))
    config = MeshConfig(trial=trials, data=1, fsdp=each)
    mesh = mesh_lib.make_mesh(config, n_trials=trials, batch_size=each, devices=devices)
    assert len(set(mesh.devices.flat)) == trials * each == len(devices)
    for group in mesh.devices.reshape(trials, each):
        assert len({device.process_index for device in group}) == hosts

"""The same population on 1 to 8 virtual devices, in every layout."""

import jax
import numpy as np
import pytest

from engine import InputError, MeshConfig, population, step
from engine import config as config_lib
from engine import mesh as mesh_lib
from tests.engine.conftest import random_tokens

N_TRIALS, STEPS = 4, 6
LAYOUTS = {
    "trial 4": MeshConfig(trial=4, data=1),
    "data 4": MeshConfig(trial=1, data=4),
    "fsdp 4": MeshConfig(trial=1, data=1, fsdp=4),
    "tensor 2": MeshConfig(trial=1, data=1, tensor=2),
    "trial 2, data 2, fsdp 2": MeshConfig(trial=2, data=2, fsdp=2),
    "trial 2, fsdp 2, tensor 2": MeshConfig(trial=2, data=1, fsdp=2, tensor=2),
    "sequence 4": MeshConfig(trial=1, data=1, sequence=4),
    "data 2, sequence 2, tensor 2": MeshConfig(trial=1, data=2, sequence=2, tensor=2),
    "automatic": MeshConfig(),
}
EXPERTS = {
    "trial 4": LAYOUTS["trial 4"],
    "trial 2, fsdp 2, tensor 2": LAYOUTS["trial 2, fsdp 2, tensor 2"],
    "expert 2, sequence 2": MeshConfig(trial=1, data=1, expert=2, sequence=2),
    "expert 4": MeshConfig(trial=1, data=1, expert=4),
    "trial 2, expert 2, tensor 2": MeshConfig(trial=2, data=1, expert=2, tensor=2),
}


def lower(config, layout):
    config = config_lib.replace(config, {"mesh.sequence": layout.sequence})
    trials = population.trial_configs(config, [{"optim.lr": 1e-3 * (g + 1), "seed": g} for g in range(N_TRIALS)])
    mesh = mesh_lib.make_mesh(layout, n_trials=N_TRIALS, batch_size=config.batch_size)
    hyper = jax.device_put(population.stack_hypers(trials), mesh_lib.trial_sharding(mesh))
    state = population.init_state(mesh, trials, hyper)
    tokens = random_tokens((STEPS, config.batch_size, config.data.seq_len + 1), config.model.vocab_size)
    args = (state, jax.device_put(tokens, mesh_lib.batch_sharding(mesh, steps_axis=True)), np.int32(STEPS), hyper)
    return mesh, population.compiled_train_steps(step.program(config), mesh), args


@pytest.fixture(scope="module")
def mixture(tiny):
    """A dense layer, then 2 of 4 experts and a shared one, balanced by bias."""
    return config_lib.replace(
        tiny,
        {"model.n_experts": 4, "model.top_k": 2, "model.d_expert": 8, "model.d_shared": 8, "model.n_dense_layers": 1,
         "model.router_bias": True},
    )  # fmt: skip


@pytest.fixture(scope="module")
def one_device(tiny):
    _, run, args = lower(tiny, MeshConfig(trial=1, data=1))
    return np.asarray(run(*args)[1].loss)


@pytest.fixture(scope="module")
def mixture_on_one_device(mixture):
    _, run, args = lower(mixture, MeshConfig(trial=1, data=1))
    return run(*args)[1]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_same_losses_in_every_layout(layout, tiny, one_device):
    mesh, run, args = lower(tiny, layout)
    assert mesh.size > 1
    state, metrics = run(*args)
    assert state.params["layers"]["q"].sharding.is_equivalent_to(args[0].params["layers"]["q"].sharding, 5)
    np.testing.assert_allclose(np.asarray(metrics.loss), one_device, rtol=1e-5)


@pytest.mark.parametrize("layout", EXPERTS.values(), ids=EXPERTS)
def test_a_mixture_of_experts_is_the_same_in_every_layout(layout, mixture, mixture_on_one_device):
    mesh, run, args = lower(mixture, layout)
    up = args[0].params["layers"]["up"]
    assert up.addressable_shards[0].data.shape[2] == mixture.model.n_experts // mesh.shape["expert"]
    metrics = run(*args)[1]
    np.testing.assert_allclose(np.asarray(metrics.loss), mixture_on_one_device.loss, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(metrics.expert_load), mixture_on_one_device.expert_load, rtol=1e-6)


COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def collectives(tiny, layout):
    _, run, args = lower(tiny, layout)
    text = run.lower(*args).compile().as_text()
    return {name: text.count(f" {name}(") + text.count(f" {name}-start(") for name in COLLECTIVES}


def test_population_over_trials_has_no_collectives(tiny):
    assert not any(collectives(tiny, MeshConfig(trial=4, data=1)).values())


def test_mixtures_over_trials_have_no_collectives(mixture):
    assert not any(collectives(mixture, MeshConfig(trial=4, data=1)).values())


def test_data_parallel_has_collectives(tiny):
    """So that the test above can fail; and gradients are all that moves."""
    found = collectives(tiny, MeshConfig(trial=1, data=4))
    assert found.pop("all-reduce") > 0
    assert not any(found.values())


def test_automatic_axes():
    def shape(config, n_trials, batch_size):
        found = dict(mesh_lib.make_mesh(config, n_trials=n_trials, batch_size=batch_size).shape)
        assert found.pop("copy") == 1  # of several processes only
        return tuple(found.values())

    assert shape(MeshConfig(), 16, 4) == (8, 1, 1, 1, 1, 1)
    assert shape(MeshConfig(), 6, 4) == (2, 4, 1, 1, 1, 1)
    assert shape(MeshConfig(), 1, 3) == (1, 1, 1, 1, 1, 1)
    assert shape(MeshConfig(fsdp=2), 1, 8) == (1, 4, 2, 1, 1, 1)
    assert shape(MeshConfig(expert=2), 1, 8) == (1, 4, 1, 2, 1, 1)


def test_micro_batches_are_spread_over_devices(tiny, one_device):
    """Two micro-batches of two sequences, a sequence a device."""
    config = config_lib.replace(tiny, {"compute.micro_batch": 2})
    _, run, args = lower(config, MeshConfig(trial=1, data=2))
    np.testing.assert_allclose(np.asarray(run(*args)[1].loss), one_device, rtol=1e-5)
    assert collectives(config, MeshConfig(trial=1, data=2))["all-gather"] == 0  # no sequence moves


def test_a_sequence_over_devices_takes_less_memory_of_each(tiny):
    """One long sequence: activations and scores are of a device's own positions."""
    config = config_lib.replace(tiny, {"data.seq_len": 512, "batch_size": 1, "tokens": 512 * 8})

    def temporaries(layout):
        _, run, args = lower(config, layout)
        return run.lower(*args).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(MeshConfig(trial=1, data=1, sequence=4)) < temporaries(MeshConfig(trial=1, data=1)) / 2


@pytest.mark.parametrize(
    "layout, value",
    [
        (MeshConfig(trial=16), "16"),
        (MeshConfig(trial=3), "mesh.trial 3"),
        (MeshConfig(data=3), "mesh.data 3"),
        (MeshConfig(trial=1, data=1, tensor=8), "mesh.tensor 8"),
        (MeshConfig(trial=1, data=1, expert=3), "mesh.expert 3"),
        (MeshConfig(trial=1, data=1, sequence=3), "mesh.sequence 3"),
    ],
)
def test_impossible_meshes_are_refused_by_name(layout, value, tiny):
    with pytest.raises(InputError, match=value):
        lower(tiny, layout)

"""What is read from a compiled program's text, on programs whose messages are known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from engine.config import ModelConfig, TrainConfig
from tpu import hlo, roofline, topologies

jax.config.update("jax_num_cpu_devices", 8)


def collectives(f, in_spec, out_spec, shape):
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("a", "b"))
    mapped = jax.shard_map(f, mesh=mesh, in_specs=in_spec, out_specs=out_spec, check_vma=False)
    text = jax.jit(mapped).lower(jax.ShapeDtypeStruct(shape, jnp.float32)).compile().as_text()
    return hlo.collectives(text, 8)


def test_a_sum_in_a_loop_is_counted_as_often_as_it_runs():
    def f(x):
        return jax.lax.fori_loop(0, 5, lambda i, x: jax.lax.psum(x, "b") * 0.5, x)

    (found,) = collectives(f, P("a", "b"), P("a", "b"), (16, 64))
    assert (found.kind, found.times, found.group) == ("all-reduce", 5, 4)
    assert found.bytes == 8 * 16 * 4


def test_a_gather_counts_what_comes_out():
    (found,) = collectives(partial(jax.lax.all_gather, axis_name="a", tiled=True), P("a"), P(), (16, 64))
    assert (found.kind, found.times, found.group, found.bytes) == ("all-gather", 1, 2, 16 * 64 * 4)


def test_no_message_no_collective():
    assert collectives(lambda x: x * 2, P("a", "b"), P("a", "b"), (16, 64)) == []


def test_the_roofline_is_the_longest_of_three():
    where = topologies.find("v5e-8")
    model = ModelConfig(d_model=128, n_layers=2, n_heads=2)
    config = TrainConfig(model=model, batch_size=8, optim=TrainConfig().optim)
    sums = [hlo.Collective("all-reduce", bytes=10**9, times=3, group=8)]
    line = roofline.roofline(config, 1, where, 8, state_bytes=819e9 / 4, temporary_bytes=0, collectives=sums)
    assert line.memory_s == pytest.approx(0.5)
    assert line.messages_s == pytest.approx(3 * 1e9 * 2 * 7 / 8 / 200e9)
    # 2 layers of 4 d^2 + 3 d 344, the head, and attention without its causal half; three passes of two each.
    n = 2 * (4 * 128**2 + 3 * 128 * 344) + 257 * 128
    flops = (6 * n + 12 * 2 * 256 * 128) * 8 * 256
    assert line.model_flops == pytest.approx(flops)
    assert line.arithmetic_s == pytest.approx(flops / (8 * 197e12))
    assert line.bound == "memory" and line.step_s == line.memory_s
    assert line.mfu(where, 8) == pytest.approx(line.arithmetic_s / line.memory_s)

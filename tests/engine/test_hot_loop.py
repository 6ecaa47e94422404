"""What the hot loop does not do: wait, transfer, compile."""

import jax
import numpy as np
import pytest

import engine
from engine import config as config_lib
from engine import loop, population

CALLS = 6


@pytest.fixture
def watched(monkeypatch):
    """What happens, in order: "call" when a program is dispatched, "read" when values come to the host."""
    happened = []
    compiled = population.compiled_train_steps

    def watch(program, mesh):
        run = compiled(program, mesh)

        def call(*args):
            happened.append("call")
            assert jax.config.jax_transfer_guard_device_to_host == "disallow"
            assert jax.config.jax_transfer_guard_host_to_device == "disallow"
            return run(*args)

        return call

    get = jax.device_get

    def device_get(tree):
        happened.append("read")
        return get(tree)

    monkeypatch.setattr(population, "compiled_train_steps", watch)
    monkeypatch.setattr(jax, "device_get", device_get)
    monkeypatch.setattr(loop, "MAX_CALL_STEPS", 1)  # as many calls as steps
    return happened


def test_metrics_are_read_a_call_late_and_nothing_else_is(tiny, watched, tmp_path):
    config = config_lib.replace(tiny, {"tokens": CALLS * tiny.batch_tokens})
    engine.train(config, logs=tmp_path, on_progress=lambda progress: None)
    steps = [*(["call", "read"] * (CALLS - 1)), "read"]  # one ahead, and the last two at the end
    assert watched == ["call", *steps, "read"]  # the last: the trained weights


def test_an_implicit_transfer_in_the_hot_loop_is_refused(tiny, monkeypatch):
    """So that the guard is known to guard: numbers that were left on the host."""
    put = jax.device_put

    def forgetful(x, where=None):
        return x if isinstance(x, np.int32) else put(x, where)

    monkeypatch.setattr(loop.jax, "device_put", forgetful)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        engine.train(tiny)

"""The package's names: all there, found when they are asked for, and no sooner."""

import subprocess
import sys

import pytest

import engine


def test_every_name_is_there():
    for name in engine.__all__:
        assert getattr(engine, name) is not None
    assert engine.train is engine.loop.train  # a submodule that nobody imported is found too


def test_a_wrong_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'engine' has no attribute 'trian'"):
        _ = engine.trian


def test_configs_do_not_wait_for_jax():
    code = "import sys, engine; engine.TrainConfig(); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

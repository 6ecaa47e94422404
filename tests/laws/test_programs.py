"""Compiled programs are dropped before they exhaust the memory maps that Linux allows a process."""

import sys

import jax
import jax.numpy as jnp
import pytest

from laws import programs

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits a process's memory maps")


def held():
    return len(programs.MAPS.read_bytes().splitlines())


@linux
def test_room_is_made_when_programs_fill_the_portion():
    compiled = jax.jit(lambda x: jnp.sort(x) + 1)
    compiled(jnp.arange(7.0))
    assert compiled._cache_size() == 1
    assert not programs.make_room(portion=1.0)
    assert compiled._cache_size() == 1
    before = held()
    assert programs.make_room(portion=0.0)
    assert compiled._cache_size() == 0
    assert held() < before
    assert compiled(jnp.arange(3.0)).tolist() == [1.0, 2.0, 3.0]


def test_without_a_limit_nothing_is_dropped(monkeypatch, tmp_path):
    monkeypatch.setattr(programs, "LIMIT", tmp_path / "no such file")
    assert not programs.make_room(portion=0.0)

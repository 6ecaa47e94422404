"""Fits run their linear algebra on one thread, and leave the process as it was."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_info

import laws
from laws import normal, sampler, threads
from laws.forms import chinchilla

from .conftest import loss_grid


def used() -> list[int]:
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


@pytest.mark.parametrize("laplace", [True, False])
def test_a_fit_is_on_one_thread(monkeypatch, laplace):
    seen, before = [], used()
    for module in (normal, sampler):
        find = module.find_modes

        def spy(*args, find=find):
            seen.append(used())
            return find(*args)

        monkeypatch.setattr(module, "find_modes", spy)
    if not laplace:  # far enough to have begun
        monkeypatch.setattr(sampler, "whitened", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            laws.fit("chinchilla", loss_grid("chinchilla", 0.003))
    else:
        laws.fit("chinchilla", loss_grid("chinchilla", 0.003), laplace=True)
    assert len(before) >= 2 and np.ptp(seen) == 0 and seen[0][0] == 1
    assert used() == before


def test_so_is_a_mode_on_its_own(monkeypatch):
    """That of a law without form error, which goes past `surface`."""
    seen = []
    monkeypatch.setattr(normal, "find_modes", lambda *_: seen.append(used()) or 1 / 0)
    data, _ = chinchilla.prepare(laws.load_runs(loss_grid("chinchilla", 0.003)), "loss")
    with pytest.raises(ZeroDivisionError):
        normal.sample(chinchilla.model, data, chinchilla.start(data), name="chinchilla")
    assert set(seen[0]) == {1}


def test_of_two_that_overlap_the_last_to_leave_restores():
    before, first, second = used(), threads.one(), threads.one()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert set(used()) == {1}
    second.__exit__(None, None, None)
    assert used() == before


def test_fits_that_threads_ask_for_at_once_are_those_alone():
    """numpyro traces on one stack: at once, sites of one model turned up in the other."""
    runs, before = loss_grid("chinchilla", 0.003), used()

    def fitted(law):
        return laws.fit(law, runs, laplace=True).draws

    asked = ["chinchilla", "kaplan", "chinchilla"]
    with ThreadPoolExecutor(3) as pool:
        at_once = list(pool.map(fitted, asked))
    for law, draws in zip(asked, at_once):
        alone = fitted(law)
        for site in alone:
            np.testing.assert_allclose(draws[site], alone[site], rtol=1e-6, atol=1e-12)
    assert used() == before

"""One trial of a population becomes NaN: the others keep every bit, also over a stop and a start."""

import jax
import numpy as np
import pytest

import engine
from tests.engine.conftest import tiny  # noqa: F401 - a fixture

GOOD = [{}, {"optim.lr": 3e-3, "seed": 5}, {"seed": 7}]
BAD = [GOOD[0], {"optim.lr": 1e30, "seed": 5}, GOOD[2]]


class Stop(Exception):
    pass


def stop_at_12(progress):
    if progress.step >= 12:
        raise Stop


def test_a_nan_in_one_trial_leaves_the_others_their_bits(tiny, tmp_path):  # noqa: F811
    good = engine.train_population(tiny, GOOD)
    with pytest.raises(Stop):
        engine.train_population(tiny, BAD, folder=tmp_path, on_progress=stop_at_12)
    bad = engine.train_population(tiny, BAD, folder=tmp_path)
    assert [r.row["status"] for r in bad] == ["ok", "diverged", "ok"]
    assert all(r.row["status"] == "ok" for r in good)
    for g in (0, 2):
        jax.tree.map(np.testing.assert_array_equal, bad[g].params, good[g].params)
        for name, values in good[g].metrics.items():
            np.testing.assert_array_equal(bad[g].metrics[name], values)
        for name in ("loss", "eval_loss", "bpc", "run_id"):
            assert bad[g].row[name] == good[g].row[name]

"""Prediction, files and ArviZ, on the packaged posterior and a small one."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

import laws
from laws.errors import InputError


@pytest.fixture(scope="module")
def packaged():
    return laws.load_posterior("steplaw")


def test_packaged_answer(packaged):
    answer = packaged.predict(params=7e9, tokens=1.4e12)
    low, high = answer.lr.interval(0.9)
    assert low < answer.lr.median < high
    assert 1e-4 < answer.lr.median < 2e-3
    assert 5e5 < answer.batch_tokens.median < 1e7
    narrow = answer.lr.interval(0.5)
    assert low < narrow[0] < narrow[1] < high
    assert len(answer.warnings) == 2
    assert "decades above the fitted range" in answer.warnings[0]
    assert packaged.predict(params=5e8, tokens=2e10).warnings == []


def test_packaged_is_small_and_says_where_it_is_from(packaged):
    from importlib import resources

    assert len((resources.files("laws") / "posteriors" / "steplaw.nc").read_bytes()) < 400_000
    assert packaged.meta["command"] == "stepseer fit steplaw steplaw-dense,steplaw-moe --out steplaw.nc"
    diagnostics = packaged.meta["diagnostics"]
    assert diagnostics["max_rhat"] <= 1.01 and diagnostics["min_ess"] >= 400 and diagnostics["divergences"] == 0


def test_median_is_the_law(packaged):
    """The scatter of cells widens the interval and leaves the median at the law's."""
    d = packaged.draws
    law = np.exp(d["lr_const"] + d["lr_N"] * np.log(5e8) + d["lr_D"] * np.log(2e10))
    answer = packaged.predict(params=5e8, tokens=2e10).lr
    assert answer.median == pytest.approx(np.median(law), rel=0.005)
    assert np.std(np.log(answer.draws)) > 1.2 * np.std(np.log(law))
    expected = np.sqrt(np.var(np.log(law)) + np.mean(d["lr_sd"] ** 2))
    assert np.std(np.log(answer.draws)) == pytest.approx(expected, rel=0.1)


def test_shapes(packaged):
    grid = packaged.predict(params=np.array([[1e8], [1e9]]), tokens=np.array([1e10, 1e11, 1e12]))
    assert grid.lr.median.shape == (2, 3)
    assert grid.lr.draws.shape[1:] == (2, 3)
    assert grid.batch_tokens.interval(0.5)[0].shape == (2, 3)
    one = packaged.predict(params=1e9, tokens=1e12).lr.median
    assert isinstance(one, float) and one == pytest.approx(grid.lr.median[1, 2], rel=1e-12)
    assert packaged.predict(params=1e9, tokens=1e11, n_draws=50).lr.draws.shape == (50,)
    assert packaged.predict(params=np.array([]), tokens=np.array([])).lr.draws.shape[1:] == (0,)


def test_ten_thousand_queries_are_quick(packaged):
    params, tokens = np.geomspace(1e8, 1e11, 10_000), np.geomspace(1e9, 1e13, 10_000)
    packaged.predict(params=params, tokens=tokens)
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        answer = packaged.predict(params=params, tokens=tokens)
        seconds.append(time.perf_counter() - begun)
    assert answer.lr.draws.shape[0] >= 100
    assert min(seconds) < 0.25  # 0.01 s on an idle machine


@pytest.mark.parametrize(
    "params, tokens, message",
    [
        (0, 1e9, "params must be positive"),
        (-1e9, 1e9, "params must be positive"),
        (1e9, float("nan"), "tokens must be positive and finite"),
        (1e9, float("inf"), "tokens must be positive and finite"),
        (7, 1.4e12, "write 7e9"),
        ("big", 1e9, "params must be a number"),
        (1e21, 1e9, "beyond any model"),
        ([1e8, 1e9], [1e9, 1e10, 1e11], "do not broadcast"),
    ],
)
def test_bad_queries(packaged, params, tokens, message):
    with pytest.raises(InputError, match=message):
        packaged.predict(params=params, tokens=tokens)


def test_wrong_quantity_and_level(packaged):
    answer = packaged.predict(params=1e9, tokens=1e11)
    with pytest.raises(AttributeError, match="lr and batch_tokens, not 'loss'"):
        _ = answer.loss
    with pytest.raises(InputError, match="between 0 and 1"):
        answer.lr.interval(90)


def test_save_and_load(packaged, tmp_path):
    path = packaged.save(tmp_path / "folder" / "mine.nc")
    again = laws.load_posterior(path)
    assert again.law == "steplaw" and again.meta == packaged.meta
    for name, value in packaged.samples.items():
        np.testing.assert_array_equal(again.samples[name], value)
    assert [p.name for p in path.parent.iterdir()] == ["mine.nc"]  # no temporary left


def test_any_flipped_byte_is_noticed(packaged, tmp_path):
    good = packaged.save(tmp_path / "good.nc").read_bytes()
    bad = tmp_path / "bad.nc"
    for at in [*np.linspace(0, len(good) - 1, 60).astype(int), len(good) - 70, len(good) - 90]:
        content = bytearray(good)
        content[at] ^= 1
        bad.write_bytes(bytes(content))
        with pytest.raises(InputError, match=r"bad\.nc"):
            laws.load_posterior(bad)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_file(packaged, tmp_path, share):
    good = packaged.save(tmp_path / "good.nc").read_bytes()
    (tmp_path / "cut.nc").write_bytes(good[: int(share * len(good))])
    with pytest.raises(InputError, match=r"cut\.nc"):
        laws.load_posterior(tmp_path / "cut.nc")


def test_not_a_posterior(tmp_path):
    (tmp_path / "runs.csv").write_text("params,tokens,loss\n1e9,1e10,3\n")
    with pytest.raises(InputError, match=r"runs\.csv: a run table, not a posterior; fit it first"):
        laws.load_posterior(tmp_path / "runs.csv")
    (tmp_path / "text.nc").write_text("of no kind")
    with pytest.raises(InputError, match=r"text\.nc: not a readable posterior"):
        laws.load_posterior(tmp_path / "text.nc")
    with pytest.raises(InputError, match="no posterior named 'nonesuch': packaged are steplaw"):
        laws.load_posterior("nonesuch")
    with pytest.raises(InputError, match=r"cannot read .*absent\.nc"):
        laws.load_posterior(tmp_path / "absent.nc")


def test_unwritable(packaged, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write"):
        packaged.save(tmp_path / "file" / "mine.nc")


def test_arviz(packaged, tmp_path):
    arviz = pytest.importorskip("arviz")
    from_memory = packaged.to_arviz().posterior
    from_file = arviz.from_netcdf(str(packaged.save(tmp_path / "mine.nc"))).posterior
    for data in (from_memory, from_file):
        assert dict(data.sizes)["chain"] == 4
        np.testing.assert_array_equal(data["lr_N"].values, packaged.samples["lr_N"])
        np.testing.assert_array_equal(data["bend"].values, packaged.samples["bend"])


def test_predicts_without_jax():
    """Loading and predicting imports neither jax, ArviZ nor the engine."""
    code = (
        "import sys, json, time; t = time.perf_counter(); import laws; "
        "p = laws.load_posterior('steplaw').predict(params=7e9, tokens=1.4e12); "
        "heavy = {'jax', 'numpyro', 'arviz', 'engine', 'tensorflow_datasets', 'torch', 'matplotlib'}; "
        "print(json.dumps([p.lr.median, sorted(heavy & set(sys.modules)), time.perf_counter() - t]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    median, heavy, _ = json.loads(out)
    assert heavy == [] and median > 0

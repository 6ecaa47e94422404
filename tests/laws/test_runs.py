"""The door: what is read, what is refused, and how the refusal reads."""

import json

import numpy as np
import pandas as pd
import pytest

from laws.errors import InputError
from laws.runs import METADATA_KEY, finished, load_runs, require, write_parquet

GOOD = {"params": [1e8, 2e8, 4e8], "tokens": [2e9, 4e9, 8e9], "loss": [3.2, 3.0, 2.8]}
SHAPED = {"params": 2 * (4 * 64**2 + 3 * 64 * 192), "tokens": 1e6, "d_model": 64, "n_layers": 2, "d_ff": 192}


def table(**columns):
    """GOOD with columns replaced (None removes one)."""
    return pd.DataFrame({name: values for name, values in {**GOOD, **columns}.items() if values is not None})


def refusal(source, **kwargs):
    with pytest.raises(InputError) as caught:
        load_runs(source, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_good_table_gains_status_recipe_and_floats():
    given = table(params=[10**8, 2 * 10**8, 4 * 10**8])
    runs = load_runs(given)
    assert runs["status"].tolist() == ["ok"] * 3
    assert runs["params"].dtype == np.float64
    assert "status" not in given  # the caller's table is left alone
    assert load_runs(runs).equals(runs)


def test_a_quickstart_sized_table_passes():
    runs = table(
        params=[1e4, 2e4, 5e4], tokens=[1e5] * 3, loss=[5.0, 4.8, 4.5], batch_tokens=[512, 2048, 8192],
        seq_len=[64, 64, 256], lr=[1e-3, 3e-3, 3e-2], vocab_size=[256] * 3, d_model=[16] * 3, n_layers=[2] * 3,
        d_ff=[64] * 3,
    )  # fmt: skip
    assert len(load_runs(runs)) == 3


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"params": [1e8, -5, 1e8]}, ["row 2", "params = -5", "above 0"]),
        ({"tokens": [2e9, 2e9, 0]}, ["row 3", "tokens = 0", "above 0"]),
        ({"params": ["7B", 1e8, 1e8]}, ["row 1", "params = '7B'", "7e9"]),
        ({"loss": [3.0, np.nan, np.nan]}, ["row 2", "loss = nan", "diverged", "1 more row"]),
        ({"loss": [3.0, np.inf, 3.0]}, ["row 2", "loss = inf", "diverged"]),
        ({"loss": [np.nan] * 3}, ["row 1", "loss = nan"]),
        ({"loss": None, "bpc": [0.5, np.nan, 0.5]}, ["row 2", "bpc = nan"]),
        ({"loss": [3.0, 300.0, 3.0]}, ["row 2", "loss = 300", "perplexity"]),
        ({"loss": [-3.0, 2.0, 2.0]}, ["row 1", "loss = -3", "log-likelihood"]),
        ({"params": [7, 13, 70]}, ["params = 7", "billions", "7e9"]),
        ({"tokens": [140, 300, 1400]}, ["tokens = 140", "billions"]),
        ({"params": [7e9] * 3, "tokens": [1400, 2000, 3000]}, ["tokens = 1400", "billions"]),
        ({"params": [1300] * 3, "tokens": [26e9] * 3}, ["params = 1300", "millions"]),
        ({"batch_tokens": [256] * 3, "seq_len": [2048] * 3}, ["batch_tokens = 256", "sequences", "sequence length"]),
        ({"batch_tokens": [256, 1024, 2048]}, ["batch_tokens = 256", "sequences"]),
        ({"tokens": [100e9] * 3, "batch_tokens": [4096] * 3, "seq_len": [2048] * 3}, ["batch_tokens = 4096"]),
        ({"batch_tokens": [1e10] * 3}, ["batch_tokens = 1e+10", "larger than the run's tokens"]),
        ({"lr": [0.0, 1e-3, 1e-3]}, ["row 1", "lr = 0"]),
        ({"status": ["ok", "done", "ok"]}, ["row 2", "status = 'done'", "ok, diverged, stopped or failed"]),
        ({"params_total": [1e7] * 3}, ["above params_total"]),
        ({"params_active": [5e8] * 3}, ["params_active = 5e+08", "above params", "all experts"]),
        ({"unique_tokens": [1e9, 5e9, 1e9]}, ["row 2", "unique_tokens = 5e+09", "above tokens"]),
        ({"n_experts": [0.5] * 3}, ["n_experts = 0.5", "dense model has 1"]),
        ({"n_experts": [2, 2, 8], "top_k": [2, 4, 2]}, ["row 2", "top_k = 4", "swapped"]),
        ({"portion": [0.5, 1.0, 50]}, ["row 3", "portion = 50", "0.5 for half"]),
        ({"loss_se": [0.01, -0.01, 0]}, ["row 2", "loss_se = -0.01", "from 0", "nats per token"]),
        ({"loss_se": [0.01, np.nan, np.inf]}, ["row 3", "loss_se = inf", "from 0 to half of loss"]),
        ({"loss_se": [5, 5, 5]}, ["row 1", "loss_se = 5", "not in percent"]),
    ],
)
def test_a_bad_row_is_named_with_its_value_and_the_remedy(columns, said):
    message = refusal(table(**columns))
    for part in said:
        assert part in message, message


@pytest.mark.parametrize(("matrices", "fine"), [(0, True), (1, False), (2, False)])
def test_params_that_count_embeddings_are_caught_by_the_shape(matrices, fine):
    row = SHAPED | {"params": SHAPED["params"] + matrices * 64 * 1000 + 2 * 2 * 64, "vocab_size": 1000, "loss": 4.0}
    if fine:
        assert len(load_runs(pd.DataFrame([row]))) == 1
    else:
        assert "counts the embeddings" in refusal(pd.DataFrame([row]))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"params": None, "parms": [1e8] * 3}, "rename 'parms' to 'params'"),
        ({"params": None, "N": [1e8] * 3}, "rename 'N' to 'params'"),
        ({"tokens": None, "D": [1e8] * 3}, "rename 'D' to 'tokens'"),
        ({"loss": None, "smooth loss": [3.0] * 3}, "rename 'smooth loss' to 'loss'"),
        ({"loss": None}, "columns there: params, tokens"),
        ({"params": None}, "no column 'params'"),
    ],
)
def test_a_missing_column_is_named_with_the_nearest_one(columns, said):
    assert said in refusal(table(**columns))


def test_diverged_and_failed_runs_may_lack_a_loss():
    runs = load_runs(table(loss=[3.0, np.nan, np.nan], status=["ok", "diverged", "failed"]))
    assert finished(runs)["loss"].tolist() == [3.0]


def test_require_names_the_column_and_the_law():
    runs = load_runs(table(lr=[1e-3, np.nan, 1e-3], bs=[32] * 3))
    with pytest.raises(InputError, match=r"steplaw needs 'lr' in every finished run; 1 of 3 rows lack it.*row 2"):
        require(runs, ["lr"], "steplaw")
    with pytest.raises(InputError, match=r"needs a column 'batch_tokens'.*rename 'bs'.*not sequences"):
        require(runs, ["batch_tokens"], "steplaw")
    require(runs, ["params", "tokens", "loss"], "chinchilla")


def test_csv_errors_give_the_line_of_the_file(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("params,tokens,loss\n1e8,2e9,3.0\n\n1e8,lots,3.0\n")
    message = refusal(path)
    assert "mine.csv: row 2 (line 4), tokens = 'lots'" in message
    path.write_text("params,tokens,loss\n1e8,2e9,3.0\n1e8,4e9,2.9\n")
    assert load_runs(path)["tokens"].tolist() == [2e9, 4e9]
    assert load_runs(str(path)).attrs["source"] == "mine.csv"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"params,tokens,loss\n", "no rows"),
        (b"params;tokens;loss\n1e8;2e9;3\n", "not separated by commas"),
        (b"\xff\xfe\x00\x01\x80binary\x00,\x9f\n", "not a readable CSV"),
        (b'params,tokens,loss\n1,2,3,4,5\n1,"2\n', "not a readable CSV"),
        (b"PAR1nonsense", "not a readable Parquet file"),
    ],
)
def test_unreadable_files_are_named(tmp_path, content, said):
    path = tmp_path / "broken.csv"
    path.write_bytes(content)
    message = refusal(path)
    assert said in message and "broken.csv" in message


def test_paths_and_names_that_do_not_exist(tmp_path):
    assert "no file or folder" in refusal(tmp_path / "absent.csv")
    assert "no results there" in refusal(tmp_path)
    assert "did you mean 'steplaw-dense'" in refusal("steplaw-dence")
    assert "`stepseer datasets` lists them" in refusal("qqq")
    assert "no table named 'qqq'" in refusal("farseer,qqq")


def test_files_with_a_comma_between_are_one_table(tmp_path):
    for name, loss in (("a", 3.0), ("b", 2.9)):
        pd.DataFrame({"params": [1e8], "tokens": [2e9], "loss": [loss]}).to_csv(tmp_path / f"{name}.csv", index=False)
    assert list(load_runs(f"{tmp_path}/a.csv, {tmp_path}/b.csv")["loss"]) == [3.0, 2.9]


def test_a_column_named_twice_is_refused(tmp_path):
    (tmp_path / "twice.csv").write_text("params,tokens,loss,loss\n1e8,2e9,3,3.1\n")
    assert "'loss' is there twice" in refusal(tmp_path / "twice.csv")
    assert "cannot read a int" in refusal(7)


def test_parquet_round_trip_keeps_rows_and_states_its_version(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    runs = load_runs(table(lr=[1e-3, 2e-3, 3e-3]))
    path = write_parquet(runs, tmp_path / "sub" / "runs.parquet")
    assert json.loads(pq.read_schema(path).metadata[METADATA_KEY]) == {"version": 2}
    assert load_runs(path).equals(runs)
    assert [p.name for p in path.parent.iterdir()] == ["runs.parquet"]

    newer = pq.read_table(path).replace_schema_metadata({METADATA_KEY: b'{"version": 99}'})
    pq.write_table(newer, tmp_path / "newer.parquet")
    assert "version 99" in refusal(tmp_path / "newer.parquet")
    pq.write_table(pa.table({"params": [1e8], "tokens": [2e9], "loss": [3.0]}), tmp_path / "plain.parquet")
    assert len(load_runs(tmp_path / "plain.parquet")) == 1


def test_a_results_folder_is_the_sum_of_its_parts(tmp_path):
    write_parquet(load_runs(table()), tmp_path / "parts" / "a.parquet")
    write_parquet(
        load_runs(table(loss=[3.0, np.nan, 3.0], status=["ok", "diverged", "ok"])), tmp_path / "parts/b.parquet"
    )
    runs = load_runs(tmp_path)
    assert len(runs) == 6 and (runs["status"] == "diverged").sum() == 1


def test_recipe_keeps_its_rows_only():
    runs = table(recipe=["code", "text", "code"])
    assert load_runs(runs, recipe="code")["params"].tolist() == [1e8, 4e8]
    assert "did you mean 'code'" in refusal(runs, recipe="coed")


def test_files_of_another_kind_are_named(tmp_path, small_chinchilla):
    posterior, other = small_chinchilla.save(tmp_path / "p.nc"), tmp_path / "runs.json"
    other.write_text('{"params": {"0": 1e9}}')
    assert "p.nc: a posterior that `stepseer fit` wrote, and no run table" in refusal(posterior)
    assert "runs.json: JSON, and no run table" in refusal(other)

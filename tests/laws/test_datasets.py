"""Published tables by name: the mapping, the lookup order and the checksums."""

import hashlib
import http.server
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from laws import datasets, published_tables
from laws.errors import InputError
from laws.runs import load_runs

FOLDER = os.environ.get("STEPSEER_DATA")
needs_tables = pytest.mark.skipif(not FOLDER, reason="STEPSEER_DATA names no folder with the published tables")

CONTENT = b"Model Size,Training FLOP,loss\n1e8,1.2e18,3.5\n2e8,4.8e18,3.1\n"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A small table 'tiny' served over HTTP; yields the folder served. No local tables, an empty cache."""
    served = tmp_path / "home"
    served.mkdir()
    (served / "tiny.csv").write_bytes(CONTENT)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(served), **kwargs)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    table = replace(
        datasets.TABLES["epoch-chinchilla"], file="tiny/tiny.csv", sha256=hashlib.sha256(CONTENT).hexdigest()
    )
    monkeypatch.setitem(datasets.TABLES, "tiny", table)
    monkeypatch.setattr(published_tables.Table, "url", f"http://127.0.0.1:{server.server_address[1]}/tiny.csv")
    monkeypatch.delenv("STEPSEER_DATA", raising=False)
    monkeypatch.setenv("STEPSEER_CACHE", str(tmp_path / "cache"))
    yield served
    server.shutdown()
    server.server_close()


def refusal():
    with pytest.raises(InputError) as caught:
        load_runs("tiny")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_downloads_once_then_reads_the_cache(home, tmp_path):
    runs = load_runs("tiny")
    np.testing.assert_allclose(runs["tokens"], [2e9, 4e9])  # C / (6N)
    (home / "tiny.csv").unlink()
    assert load_runs("tiny").equals(runs)
    assert [p.name for p in (tmp_path / "cache" / "tables" / "tiny").iterdir()] == ["tiny.csv"]


def test_a_damaged_cache_is_fetched_again(home, tmp_path):
    cached = tmp_path / "cache" / "tables" / "tiny" / "tiny.csv"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(CONTENT.replace(b"3.5", b"9.5"))
    assert load_runs("tiny")["loss"].tolist() == [3.5, 3.1]
    assert cached.read_bytes() == CONTENT


def test_a_changed_home_is_refused_and_leaves_nothing(home, tmp_path):
    (home / "tiny.csv").write_bytes(CONTENT + b"3e8,1e19,3.0\n")
    assert "no longer holds the published file" in refusal()
    assert not (tmp_path / "cache").exists()


def test_offline_names_table_address_and_remedy(home):
    (home / "tiny.csv").unlink()
    message = refusal()
    for part in ("tiny:", "http://127.0.0.1", "404", "tiny/tiny.csv", "STEPSEER_DATA"):
        assert part in message


def test_the_given_folder_comes_first_and_is_verified(home, tmp_path, monkeypatch):
    given = tmp_path / "given" / "tiny" / "tiny.csv"
    given.parent.mkdir(parents=True)
    given.write_bytes(CONTENT)
    (home / "tiny.csv").unlink()
    monkeypatch.setenv("STEPSEER_DATA", str(tmp_path / "given"))
    assert len(load_runs("tiny")) == 2
    given.write_bytes(CONTENT[:-5])
    message = refusal()
    assert str(given) in message and "SHA-256" in message


def test_an_unwritable_cache_is_one_line(home, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STEPSEER_CACHE", str(tmp_path / "file"))
    assert "set STEPSEER_CACHE" in refusal()


def test_tables_collected_from_many_files_say_so(monkeypatch, tmp_path):
    monkeypatch.delenv("STEPSEER_DATA", raising=False)
    monkeypatch.setenv("STEPSEER_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"gadre/models.csv.*STEPSEER_DATA"):
        datasets.load("gadre")


def test_addresses_pin_a_commit():
    for name, table in datasets.TABLES.items():
        assert len(table.commit) == 40 and len(table.sha256) == 64, name
        assert table.url is None or (table.url.startswith("https://") and table.commit in table.url)


@needs_tables
def test_checksums_agree_with_the_manifest():
    manifest = pd.read_csv(Path(FOLDER) / "manifest.csv")
    listed = {f"{row.source}/{row.file}": row for row in manifest.itertuples()}
    for name, table in datasets.TABLES.items():
        row = listed[table.file]
        assert (table.sha256, table.repository, table.commit) == (row.sha256_file, row.repo, row.commit), name
        assert table.path is None or table.path == row.path


@needs_tables
@pytest.mark.parametrize("name", datasets.names())
def test_every_table_passes_the_door(name):
    runs = load_runs(name)
    assert len(runs) > 80 and (runs["status"] == "ok").all()


@needs_tables
def test_the_listing_names_every_recipe():
    listing = datasets.tables().set_index("name")
    assert sorted(listing.index) == datasets.names()
    for name in datasets.names():
        assert listing.loc[name, "recipes"].split(", ") == sorted(set(load_runs(name)["recipe"])), name


@needs_tables
@pytest.mark.parametrize("table", datasets.loss_tables(), ids=lambda t: t.label)
def test_loss_tables_can_be_fitted(table):
    runs = datasets.load_loss_table(table)
    cells = runs.dropna(subset=[table.target]).groupby(["params", "tokens"])
    assert cells.ngroups >= 12 and runs["params"].nunique() >= 3 and runs["tokens"].nunique() >= 3
    assert len(set(runs["recipe"])) == 1


def test_loss_tables_are_told_apart_and_repeat_what_is_there():
    tables = datasets.loss_tables()
    assert len({t.label for t in tables}) == len(tables)
    assert {t.repeats for t in tables} - {""} <= {t.name for t in tables if not t.repeats}


@needs_tables
def test_the_count_of_parameters_can_be_chosen():
    without, both = (datasets.load_loss_table(t) for t in datasets.loss_tables() if t.name == "misfitting")
    assert (without["params"] < both["params"]).all()
    np.testing.assert_array_equal(without["params_total"], both["params"])


@needs_tables
def test_repeated_data_and_names_that_were_cut():
    runs = load_runs("datablations").set_index("run_id")
    single = runs["recipe"] == "single-epoch"
    assert (runs["unique_tokens"] <= runs["tokens"]).all()
    assert (single == (runs["unique_tokens"] == runs["tokens"])).all() and single.sum() == 41
    assert tuple(runs.loc["2b84b84b8", ["tokens", "unique_tokens"]]) == (4.8e9, 4.8e9)
    assert tuple(runs.loc["1b58b81b5", ["tokens", "unique_tokens"]]) == (8.8e9, 1.5e9)
    assert tuple(runs.loc["619m22b4b8", ["tokens", "unique_tokens"]]) == (2.2e10, 4.8e9)


@needs_tables
def test_a_routed_run_ends_once_and_counts_its_experts():
    runs, checkpoints = load_runs("routed-moe"), load_runs("routed-moe-checkpoints")
    assert len(runs) == 223 == runs["run_id"].nunique() == checkpoints["run_id"].nunique()
    assert ((runs["tokens"] / 130.5e9 - 1).abs() < 0.01).all() and len(checkpoints) > 20 * len(runs)
    dense = runs["recipe"] == "Dense"
    assert (runs["params"] == runs["params_active"])[dense].all() and (runs["n_experts"] == 1)[dense].all()
    assert (runs["params"] > runs["params_active"])[runs["n_experts"] > 1].all()


@needs_tables
def test_isoflop_points_keep_their_doubts_and_leave_out_what_is_no_loss():
    runs, llama = load_runs("isoflops"), load_runs("isoflops-llama3")
    assert runs["outlier"].sum() > 100 and (runs["outlier"] == (runs["outlier_reason"] != "")).all()
    assert len(llama) == 133 and llama["bpc"].max() < 1 and "eval_loss" not in llama


@needs_tables
def test_gadre_measurement_errors_are_those_of_a_mean():
    runs = load_runs("gadre")
    errors = [c for c in runs if c.endswith("_error")]
    assert len(errors) == 8
    for column in errors:
        assert (runs[column] / runs[column.removesuffix("_error")]).between(1e-4, 1e-2).all(), column


@needs_tables
def test_steplaw_cells_and_units():
    runs = load_runs("steplaw-dense")
    assert len(runs) == 1911
    assert runs.groupby(["params", "tokens"]).ngroups == 17
    assert (runs["batch_tokens"].min(), runs["batch_tokens"].max()) == (32_768, 4_194_304)
    # N by the paper's rule: layers (4 h^2 + 3 h ffn)
    rule = runs["n_layers"] * (4 * runs["d_model"] ** 2 + 3 * runs["d_model"] * runs["d_ff"])
    np.testing.assert_array_equal(runs["params"], rule)
    best = runs[(runs["params"] == 1073741824) & (runs["tokens"] == 20e9)].nsmallest(1, "loss").iloc[0]
    assert (round(best["loss"], 6), best["batch_tokens"]) == (2.225496, 256 * 2048)


@needs_tables
def test_farseer_counts_norms_and_keeps_both_losses():
    runs = load_runs("farseer")
    assert len(runs) == 404
    rule = runs["n_layers"] * (4 * runs["d_model"] ** 2 + 3 * runs["d_model"] * runs["d_ff"] + 2 * runs["d_model"])
    np.testing.assert_array_equal(runs["params"], rule)
    assert runs["bpc"].max() < 0.8 < 1.8 < runs["loss"].min()
    unique = runs.drop_duplicates(["params", "tokens"])
    assert ((unique["params"] > 2e8).sum()) == 337


@needs_tables
def test_moe_counts_total_and_active():
    runs = load_runs("steplaw-moe")
    assert len(runs) == 708 and runs.groupby(["params_active", "tokens"]).ngroups == 16
    assert (runs["params_active"] < runs["params"]).all()

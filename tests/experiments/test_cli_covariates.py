"""allocate and compare of laws that ask for more than N and D."""

import json

import pytest

import laws
from experiments.cli import main
from tests.laws.conftest import loss_grid
from tests.laws.test_other_laws import runs_of


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fits")
    for law in ("moe", "data_constrained"):
        laws.fit(law, runs_of(law), laplace=True).save(folder / f"{law}.nc")
    laws.fit("chinchilla", loss_grid("chinchilla", 0.003), laplace=True).save(folder / "dense.nc")
    return folder


def said(capsys, line):
    code = main(line.split())
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def test_allocate_of_a_share(capsys, saved):
    moe = laws.load_posterior(saved / "moe.nc")
    answer = json.loads(said(capsys, f"allocate {saved}/moe.nc --flops 1e21 --active-share 0.25 --json"))
    found = laws.allocate(moe, flops=1e21, params_active=lambda n: n / 4)
    assert answer["active_share"] == 0.25
    assert answer["budgets"][0]["recommended"]["params"] == pytest.approx(found.recommended_params)
    assert len(answer["budgets"][0]["smaller"]) == 4
    assert "2x smaller" in said(capsys, f"allocate {saved}/moe.nc --flops 1e21 --active-share 0.25")
    for asked, name in (("", "flops"), (" --params 1B", "tokens"), (" --tokens 20B", "params")):
        row = json.loads(said(capsys, f"allocate {saved}/moe.nc --loss 2.5{asked} --active-share 0.25 --json"))[
            "losses"
        ]
        assert row[0][name]["median"] > 0


def test_allocate_of_unique_tokens(capsys, saved):
    few, many = (
        json.loads(said(capsys, f"allocate {saved}/data_constrained.nc --flops 1e21 --unique-tokens {u} --json"))
        for u in ("1B", "16B")
    )
    losses = [one["budgets"][0]["recommended"]["loss"]["median"] for one in (few, many)]
    assert few["unique_tokens"] == 1e9 and losses[0] > losses[1]


def test_compare_sparse_with_dense(capsys, saved):
    line = f"compare {saved}/moe.nc {saved}/dense.nc --params 1B,4B --tokens 10B,40B --active-share 0.25"
    answer = json.loads(said(capsys, f"{line} --json"))
    pair = [laws.load_posterior(saved / f"{name}.nc") for name in ("moe", "dense")]
    found = laws.compare(*pair, params=[1e9, 4e9], tokens=[1e10, 4e10], params_active=lambda n: n / 4)
    assert answer["active_share"] == 0.25 and answer["probability"] == found.probability.tolist()
    assert "where the better one changes" in said(capsys, line)


@pytest.mark.parametrize(
    "line, words",
    [
        ("allocate {}/moe.nc --flops 1e21", "moe needs --active-share S too"),
        ("allocate {}/moe.nc --loss 2.5 --params 1B", "moe needs --active-share S too"),
        ("allocate {}/moe.nc --flops 1e21 --active-share 2", "a share of N, 1 at most"),
        ("allocate {}/moe.nc --flops 1e21 --active-share x", "--active-share is 'x'"),
        (
            "allocate {}/dense.nc --flops 1e21 --active-share 0.5",
            "no params_active enters chinchilla",
        ),
        ("allocate {}/data_constrained.nc --flops 1e21", "data_constrained needs --unique-tokens U too"),
        ("compare {0}/moe.nc {0}/dense.nc", "moe needs --active-share S too"),
        ("compare {0}/moe.nc {0}/dense.nc --active-share 0.5 --n-experts 8", "no n_experts enters moe and chinchilla"),
    ],
)
def test_one_line_says_what_is_missing(capsys, saved, line, words):
    assert main(line.format(saved).split()) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.strip().splitlines()) == 1

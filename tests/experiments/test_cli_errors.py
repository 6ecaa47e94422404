"""A user's mistake: exit code 2, one line on standard error that names it, nothing half-written."""

import subprocess
import sys

import pytest

from experiments.cli import main

GOOD = "params,tokens,lr,batch_tokens,loss\n1e8,2e9,1e-3,131072,3.2\n2e8,4e9,1e-3,131072,3.0\n4e8,8e9,1e-3,131072,2.8\n"

FILES = {
    "good.csv": GOOD.encode(),
    "empty.csv": b"",
    "header_only.csv": b"params,tokens,loss\n",
    "binary.csv": bytes(range(256)) * 8,
    "no_tokens.csv": b"params,loss\n1e8,3.2\n",
    "misnamed.csv": b"N,tokens,loss\n1e8,2e9,3.2\n",
    "text.csv": GOOD.replace("2e8", "many").encode(),
    "negative.csv": GOOD.replace("2e8", "-2e8").encode(),
    "zero.csv": GOOD.replace("8e9", "0").encode(),
    "sequences.csv": GOOD.replace("131072", "64").encode(),
    "nan.csv": GOOD.replace("2.8", "NaN").encode(),
    "grid.py": b"def grid():\n    return 1 / 0\n",
    "bad_field.py": b"from engine.config import *\nfrom experiments.grid import *\n"
    b"def grid():\n    return trials(TrainConfig(), axis('optim.lrr', [1]))\n",
    "bad_corpus.py": b"from engine.config import *\n"
    b"def grid():\n    return TrainConfig(data=DataConfig(corpus='no/such/folder'))\n",
    "notes/thesis.tex": b"dear reader",
    "gpt2/config.json": b'{"model_type": "gpt2"}',
    "heldout.csv": GOOD.replace("loss", "eval_loss").encode(),
    "diverged.csv": b"params,tokens,loss,status\n1e8,2e9,,diverged\n2e8,2e9,,diverged\n",
    "runs.nc": GOOD.encode(),
    "m.svg": b"CDF a posterior",
    "damaged.nc": b"CDF what is this",
}

# command line -> what the line must name. {d}: the folder with FILES
MISTAKES = [
    # the command itself
    ("pedict steplaw", ["'pedict'", "predict"]),
    ("sweep rnu tiny", ["'sweep rnu'", "sweep run"]),
    ("predict steplaw --parms 7e9 --tokens 1e12", ["'--parms'", "--params"]),
    ("predict steplaw --params 7e9", ["--tokens"]),
    ("predict", ["LAW_OR_FILE"]),
    ("datasets gader", ["'gader'", "did you mean 'gadre'"]),
    ("datasets --out {d}/x.csv", ["--out", "name it"]),
    ("datasets farseer --out {d}/x.txt", ["--out", ".csv"]),
    ("predict steplaw extra --params 7e9 --tokens 1e12", ["extra"]),
    ("sweep run tiny --out", ["--out"]),
    # predict
    ("predict steplaw --params -7e9 --tokens 1e12", ["--params", "'-7e9'", "above 0"]),
    ("predict steplaw --params=-7B --tokens 1e12", ["--params", "'-7B'"]),
    ("predict steplaw --params 0 --tokens 1e12", ["--params", "'0'"]),
    ("predict steplaw --params 7e9 --tokens seven", ["--tokens", "'seven'"]),
    ("predict steplaw --params 7e9 --tokens nan", ["--tokens", "'nan'"]),
    ("predict steplaw --params 1e999 --tokens 1e12", ["--params", "'1e999'"]),
    ("predict steplaw --params 7e9 --tokens 1e12 --level 90", ["--level", "'90'"]),
    ("predict steplaw --params 1B,2B,3B --tokens 1T,2T", ["--tokens", "2 values"]),
    ("predict steplaw --params 7e9 --tokens 1e12 --lr 1e-3", ["--lr and --batch-tokens go together"]),
    ("predict steplaw --params 7e9 --tokens 1e12 --lr 900 --batch-tokens 1M", ["lr 900", "3e-4"]),
    ("predict steplaw --params 1e9 --tokens 1e11 --lr 1e-3 --batch-tokens 512", ["batch_tokens 512", "sequences"]),
    ("predict steplaw --params 7e9 --tokens 1e12 --within 0", ["--within", "'0'"]),
    ("predict steplaw --params 7e9 --tokens 1e12 --within 200%", ["within", "got 2"]),
    ("predict steplaw --params 7e9 --tokens 1e12 --within 0.0001%", ["tokens 1e+12 is within 0.0001%: the best has"]),
    ("predict steplaw --params 7e9 --tokens 1e12 --params-active 70B", ["params_active 7e+10", "above params"]),
    ("predict stplaw --params 7e9 --tokens 1e12", ["'stplaw'"]),
    ("predict {d}/none.nc --params 7e9 --tokens 1e12", ["none.nc"]),
    ("predict {d}/damaged.nc --params 7e9 --tokens 1e12", ["damaged.nc"]),
    ("predict {d} --params 7e9 --tokens 1e12", ["{d}"]),
    # runs
    ("fit chinchilla {d}/none.csv --out {d}/x.nc", ["none.csv"]),
    ("fit chinchilla {d}/empty.csv --out {d}/x.nc", ["empty.csv", "empty"]),
    ("fit chinchilla {d}/header_only.csv --out {d}/x.nc", ["header_only.csv", "no rows"]),
    ("fit chinchilla {d}/binary.csv --out {d}/x.nc", ["binary.csv"]),
    ("fit chinchilla {d}/no_tokens.csv --out {d}/x.nc", ["'tokens'", "columns there"]),
    ("fit chinchilla {d}/misnamed.csv --out {d}/x.nc", ["'params'", "rename 'N'"]),
    ("fit chinchilla {d}/text.csv --out {d}/x.nc", ["row 2", "params", "'many'"]),
    ("fit chinchilla {d}/negative.csv --out {d}/x.nc", ["row 2", "params", "-2e+08"]),
    ("fit chinchilla {d}/zero.csv --out {d}/x.nc", ["row 3", "tokens", "= 0"]),
    ("fit steplaw {d}/sequences.csv --out {d}/x.nc", ["batch_tokens", "64", "sequences"]),
    ("fit chinchilla {d}/nan.csv --out {d}/x.nc", ["row 3", "loss"]),
    ("compare {d}/runs.nc {d}/runs.nc", ["A and B are both"]),
    ("fit chinchilla {d} --out {d}/x.nc", ["parts/*.parquet"]),
    ("fit steplaw steplaw-dnse --out {d}/x.nc", ["'steplaw-dnse'", "steplaw-dense"]),
    ("fit chinchilla {d}/heldout.csv --out {d}/x.nc", ["'loss'", "--target eval_loss"]),
    ("backtest chinchilla {d}/heldout.csv", ["'loss'", "--target eval_loss"]),
    ("report {d}/heldout.csv --out {d}/x.html", ["'loss'", "--target eval_loss"]),
    ("backtest chinchilla {d}/nan.csv", ["row 3", "loss"]),
    ("backtest chinchilla {d}/good.csv --heldout size", ["--heldout", "'size'", "params, compute"]),
    # laws
    ("backtest chinchila {d}/good.csv", ["'chinchila'", "chinchilla"]),
    ("fit chinchila {d}/good.csv --out {d}/x.nc", ["'chinchila'", "chinchilla"]),
    ("fit chinchilla {d}/good.csv --out {d}/x.nc", ["chinchilla"]),  # three runs are too few
    ("fit chinchilla {d}/good.csv --target los --out {d}/x.nc", ["'los'"]),
    ("fit chinchilla {d}/good.csv --tuned-by stplaw --out {d}/x.nc", ["'stplaw'", "steplaw"]),
    ("fit chinchilla {d}/good.csv --tuned-by {d}/none.nc --out {d}/x.nc", ["none.nc"]),
    ("fit steplaw {d}/good.csv --tuned-by steplaw --out {d}/x.nc", ["tuned_by", "laws of the loss"]),
    ("backtest chinchilla {d}/diverged.csv --tuned-by steplaw", ["'lr'", "add it"]),
    # outputs
    ("fit chinchilla {d}/good.csv --out {d}", ["{d}", "folder"]),
    ("fit chinchilla {d}/good.csv --out {d}/good.csv/x.nc", ["good.csv/x.nc"]),
    ("fit chinchilla {d}/good.csv --out /proc/x.nc", ["/proc/x.nc"]),
    ("fit chinchilla {d}/good.csv --out {d}/good.csv", ["good.csv", "overwritten"]),
    ("fit chinchilla {d}/good.csv,{d}/runs.nc --out {d}/notes/../runs.nc", ["runs.nc", "overwritten"]),
    ("fit chinchilla {d}/good.csv --out {d}/good.html", ["good.html", ".nc"]),
    ("report {d}/good.csv --out {d}/good.csv", ["good.csv", "overwritten"]),
    ("report {d}/good.csv --out {d}/good.nc", ["good.nc", ".html"]),
    ("allocate {d}/m.svg --flops 1e20 --plot {d}/m.svg", ["m.svg", "overwritten"]),
    ("compare {d}/damaged.nc {d}/m.svg --plot {d}/m.svg", ["m.svg", "overwritten"]),
    ("sweep run tiny --out {d}/good.csv", ["good.csv", "file"]),
    ("sweep run tiny --out {d}/good.csv/out", ["good.csv/out"]),
    ("sweep run tiny --out /proc/out", ["/proc/out"]),
    ("sweep run tiny --out {d}/notes", ["notes", "thesis.tex"]),
    ("train dense_1m --out {d}/notes", ["notes", "thesis.tex"]),
    # grids and recipes
    ("sweep plan tinny", ["'tinny'", "tiny"]),
    ("sweep plan {d}/none.py", ["none.py"]),
    ("sweep plan {d}/grid.py:widths", ["'widths'", "grid"]),
    ("sweep plan {d}/grid.py", ["line 2", "ZeroDivisionError"]),
    ("sweep run {d}/bad_field.py --out {d}/out", ["'optim.lrr'", "optim.lr"]),
    ("sweep run {d}/bad_corpus.py --out {d}/out", ["no/such/folder"]),
    ("sweep plan {d}/bad_corpus.py", ["no/such/folder"]),
    ("sweep run tiny --out {d}/out --max-trials 0", ["--max-trials", "'0'"]),
    ("sweep status --out {d}/none", ["none"]),
    ("sweep table --out {d}/notes", ["thesis.tex"]),
    ("train tiny", ["'tiny'", "12 trials"]),
    ("train dense_1m --set optim.lrr=1e-3 --out {d}/out", ["'optim.lrr'", "optim.lr"]),
    ("train dense_1m --set optim.lr=fast --out {d}/out", ["optim.lr", "'fast'"]),
    ("train dense_1m --set optim.lr=-1 --out {d}/out", ["optim.lr", "-1"]),
    ("train dense_1m --set optim.optimizer=adam --out {d}/out", ["'adam'", "adafactor"]),
    ("train dense_1m --branch-from {d}/none --out {d}/out", ["{d}/none"]),
    ("train dense_1m --branch-from {d}/notes --out {d}/out", ["{d}/notes"]),
    ("train dense_1m --set optim.lr --out {d}/out", ["'optim.lr'", "field=value"]),
    ("train dense_1m --set seed=1 --set seed=2 --out {d}/out", ["seed", "twice"]),
    ("train dense_1m --set model.d_model=161 --out {d}/out", ["161"]),
    ("train moe_1m --set model.top_k=17 --out {d}/out", ["model.top_k 17", "model.n_experts 16"]),
    ("train dense_1m --set model.positions=learned --out {d}/out", ["'learned'", "sqrt_alibi"]),
    ("train dense_1m --keep 0", ["--keep", "'0'"]),
    ("train dense_1m --keep-every 6d", ["--keep-every", "'6d'"]),
    ("train dense_1m --keep-every=-1h", ["--keep-every", "'-1'"]),
    ("train dense_1m --profile 15:10 --out {d}/new", ["--profile", "'15:10'", "10:15"]),
    ("train dense_1m --profile 10:15", ["--profile", "--out"]),
    ("train dense_1m --wandb mine", ["--wandb", "--out"]),
    # trained models
    ("generate {d}/none --prompt x", ["none", "holds no model"]),
    ("generate {d}/notes --prompt x", ["notes", "holds no model"]),
    ("generate {d}/gpt2 --prompt x", ["'gpt2'", "llama"]),
    ("export {d}/none --out {d}/out", ["none", "holds no model"]),
    ("export {d}/gpt2 --out {d}/out", ["'gpt2'", "llama"]),
    ("export {d}/none", ["--out"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mistakes")
    for name, content in FILES.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(content)
    return path


def snapshot(folder):
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file() and "__pycache__" not in str(p)}


@pytest.mark.parametrize("as_json", [False, True], ids=["table", "json"])
@pytest.mark.parametrize("line, named", MISTAKES, ids=[line for line, _ in MISTAKES])
def test_one_line_and_exit_code_2(folder, capfd, line, named, as_json):
    before = snapshot(folder)
    words = line.format(d=folder).split() + ["--json"] * as_json
    assert main(words) == 2
    out, err = capfd.readouterr()
    assert err.startswith("stepseer: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert "Traceback" not in err
    assert out == ""
    for word in named:
        assert word.format(d=folder) in err
    assert snapshot(folder) == before


def test_a_report_of_no_law_is_an_error(folder, capfd):
    before = snapshot(folder)
    assert main(f"report {folder}/diverged.csv --out {folder}/x.html".split()) == 2
    err = capfd.readouterr().err
    assert err.startswith("stepseer: no law can be fitted") and "status ok" in err and err.count("\n") == 1, err
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    "line, code",
    [
        ("fit chinchilla {d}/text.csv --out {d}/x.nc", 2),
        ("predict steplaw --params -7B --tokens 1T", 2),
        ("train dense_1m --set optim.lrr=1", 2),
        ("--help", 0),
    ],
)
def test_as_a_process_too(folder, line, code):
    words = line.format(d=folder).split()
    ran = subprocess.run([sys.executable, "-m", "experiments.cli", *words], capture_output=True, text=True, timeout=120)
    assert ran.returncode == code
    assert ran.stderr.count("\n") == (code == 2), ran.stderr
    assert "Traceback" not in ran.stderr


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
    from experiments.commands import sweep_plan

    def broken(args):
        raise ValueError("an error of the program, not of the user")

    monkeypatch.setattr(sweep_plan, "run", broken)
    with pytest.raises(ValueError, match="not of the user"):
        main(["sweep", "plan", "tiny"])

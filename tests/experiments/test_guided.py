"""`sweep design`: trials of a grid, batch after batch; a killed run chooses the same; the answer at the target."""

import dataclasses
import itertools
import json

import numpy as np
import pandas as pd
import pytest

import laws
from engine import sizes
from engine.row import make_row
from experiments import cli, grid, guided, runner, store
from experiments.plan import make_plan, trial_flops
from tests.experiments import fakes

TARGETS = pd.DataFrame({"params": [5e5], "tokens": [1e7]})
BUDGET = 0.15  # of the grid's FLOPs


def trials():
    """Three sizes, two budgets, three batches, eight rates."""
    base = dataclasses.replace(fakes.BASE, recipe="guided")
    entries = grid.prod(
        grid.axis("model.d_model", [16, 32, 64]),
        grid.axis("tokens", [2.0**14, 2.0**16]),
        grid.axis("batch_size", [4, 8, 16]),
        grid.axis("optim.lr", grid.ladder(2.0**-10, 2.0**-3, 2)),
    )
    return grid.trials(base, entries)


def best(params, tokens):
    """(ln lr, ln batch) of the made-up truth."""
    return np.log(0.02) - 0.3 * np.log(params / 1e4), np.log(128) + 0.3 * np.log(tokens / 2.0**15)


def row(config):
    N, D = sizes.non_embedding_params(config.model), config.tokens
    u, v = np.log([config.optim.lr, config.batch_tokens]) - best(N, D)
    loss = 2 + 30 * N**-0.5 + 20 * D**-0.4 + 0.03 * (u - 0.3 * v) ** 2 + 0.03 * v**2
    loss *= np.exp(5e-4 * np.random.default_rng(int(config.run_id[:8], 16)).normal())
    return make_row(
        config, losses=np.full(config.steps, loss), eval_loss=loss, chars_per_token=1.0, diverged_at=None, wall_s=1.0
    )


def goal():
    return guided.Goal(TARGETS, flops=BUDGET * sum(trial_flops(t) for t in trials()), batch=12)


def train(folder, batch):
    of = {t.run_id: t for t in trials()}
    plan = make_plan("g", [of[i] for i in batch], max_trials=4)
    runner.run(plan, folder, trainer=lambda chunk, *_: [row(t) for t in chunk.trials])


def new(path):
    return store.create(path, make_plan("g", trials(), max_trials=4))


def test_status_in_the_midst_of_a_batch(tmp_path, capsys):
    folder = new(tmp_path / "out")
    state = next(iter(guided.states(goal(), trials(), folder)))
    train(folder, state.batch[:5])
    assert cli.main(["sweep", "status", "--out", str(folder.path), "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    left = sum(trial_flops(t) for t in trials() if t.run_id in state.batch[5:])
    assert status["design"] == {
        "flops": goal().flops, "batches": 1, "finished": False, "trained": 5, "flops_done": status["flops_done"],
    }  # fmt: skip
    assert status["seconds_left"] == pytest.approx(5 * left / status["flops_done"])  # a second each
    assert cli.main(["sweep", "status", "--out", str(folder.path)]) == 0
    said = " ".join(capsys.readouterr().out.split())  # however wide the terminal is
    assert "5 trained" in said and "batch 1: 7 left to train" in said
    train(folder, [t.run_id for t in trials() if t.run_id not in state.batch[:5]])  # sweep run, of the whole grid
    assert cli.main(["sweep", "status", "--out", str(folder.path)]) == 0
    assert f"{len(trials())} of {len(trials())} trials" in capsys.readouterr().out


def test_a_killed_run_chooses_the_same(tmp_path, capsys):
    whole = new(tmp_path / "whole")
    states = []
    for state in guided.states(goal(), trials(), whole):
        states.append(state)
        if state.batch:
            train(whole, state.batch)
    batches = json.loads((whole.path / guided.FILE).read_text())["batches"]
    assert len(batches) >= 3 and [list(s.batch) for s in states] == [*batches, []]
    assert len(set(itertools.chain(*batches))) == sum(map(len, batches)) == len(whole.read(["loss"]))
    assert 0.5 * goal().flops < states[-1].spent <= goal().flops

    cut = new(tmp_path / "cut")
    for _ in range(50):  # killed again and again: in a batch, after it, before it
        state = next(iter(guided.states(goal(), trials(), cut)))
        if not state.batch:
            break
        done = len(cut.read(["loss"]))
        left = [i for i in state.batch if not done or i not in set(cut.read(["loss"])["run_id"])]
        train(cut, left[:5])
    pd.testing.assert_frame_equal(fakes.without_clock(cut.read()), fakes.without_clock(whole.read()), check_exact=True)
    assert json.loads((cut.path / guided.FILE).read_text())["batches"] == batches

    assert cli.main(["sweep", "status", "--out", str(whole.path)]) == 0
    said = capsys.readouterr().out
    assert (
        f"{len(whole.read(['loss']))} trained" in said and "FLOPs spent; finished" in said and "time left" not in said
    )

    found = states[-1].belief.optimum(TARGETS)[0]
    sd = states[-1].belief.optimum_sd(TARGETS)[0]
    assert np.all(np.abs(found - best(5e5, 1e7)) < 4 * sd) and np.all(sd < 1)


def test_the_spread_of_the_optimum_is_that_of_draws(tmp_path):
    from laws import design, design_fit

    table = guided.offer(trials())
    runs = table.assign(loss=[row(t)["loss"] for t in trials()])
    belief = design.fit(design.make_space(table, TARGETS), runs)
    draws = np.random.default_rng(0).multivariate_normal(belief.theta, belief.cov, 4000)
    at = belief.space.of(TARGETS)
    seen = np.array([design_fit.quantities(belief.space, theta)[at][0, :2] for theta in draws])
    np.testing.assert_allclose(belief.optimum_sd(TARGETS)[0], seen.std(axis=0), rtol=0.05)


COMMAND = ["sweep", "design", "GRID", "--target-params", "500k", "--target-tokens", "10M", "--batch", "24"]


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "train_chunk", lambda chunk, *_, **__: [row(t) for t in chunk.trials])
    words = list(COMMAND)
    words[2] = f"{__file__}:trials"
    return [*words, "--out", str(tmp_path / "out")]


def test_the_command_ends_with_the_optimum_and_its_interval(command, tmp_path, capsys):
    flops = f"{0.4 * sum(trial_flops(t) for t in trials()):.6g}"
    assert cli.main([*command, "--flops", flops, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["flops"] <= float(flops) and answer["trials"] < answer["of"] == len(trials())
    truth = np.exp(best(5e5, 1e7))
    for name, value in zip(("lr", "batch_tokens"), truth):
        q = answer["targets"][0][name]
        assert q["low"] < value < q["high"] and q["low"] < q["median"] < q["high"]
    assert laws.load_posterior(tmp_path / "out" / "steplaw.nc").predict(params=5e5, tokens=1e7).lr.median > 0
    assert cli.main(["sweep", "run", command[2], "--out", str(tmp_path / "out")]) == 0  # the rest of the grid
    assert len(laws.load_runs(tmp_path / "out")) == len(trials())


def test_where_the_law_cannot_be_fitted_the_design_answers(command, monkeypatch, capsys):
    def refuse(*_, **__):
        raise laws.FitError("too few")

    monkeypatch.setattr(laws, "fit", refuse)
    flops = f"{0.02 * sum(trial_flops(t) for t in trials()):.6g}"
    assert cli.main([*command, "--flops", flops]) == 0
    said = capsys.readouterr().out
    assert "trials to train" in said and "expected regret at the target" in said
    assert "90% interval" in said and "the law could not be fitted: too few" in said
    assert cli.main([*command, "--flops", flops, "--json"]) == 0  # nothing left to train
    q = json.loads(capsys.readouterr().out)["targets"][0]["lr"]
    assert q["low"] < q["median"] < q["high"]


def test_what_it_is_asked_wrongly(command, tmp_path, capsys):
    for words, said in (
        (["--flops", "1e3"], "less than any trial takes"),
        (["--flops", "0"], "--flops"),
        (["--flops", "1e9", "--trunks"], "--trunks"),
        (["--flops", "1e9", "--law", "kaplan"], "--law"),
        (["--flops", "1e9", "--target", "wall_s"], "--target"),
        (["--flops", "1e9", "--stop-hopeless", "1%"], "2% or more"),
    ):
        assert cli.main([*command, *words]) == 2
        assert said in capsys.readouterr().err
    (tmp_path / "out" / guided.FILE).write_text("{")
    assert cli.main([*command, "--flops", "1e9"]) == 2
    assert "is damaged" in capsys.readouterr().err

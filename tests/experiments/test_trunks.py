"""Shared trunks: less is trained, the table is the same."""

import pandas as pd
import pytest

from engine.config import replace
from experiments import grid, runner, store
from experiments import plan as plan_lib
from experiments.cli import main
from experiments.errors import InputError
from experiments.plan import make_plan

from . import fakes

STEPS = (20, 40, 100)  # at a decay over the last fifth: branches after 16 and 32
WSD = replace(fakes.BASE, {"optim.schedule": "wsd", "optim.decay_fraction": 0.2})
SHARED = {20: 15, 40: 31, 100: 0}  # one less, as devices round the division differently


def entries(lrs=(1e-3, 1e-2), steps=STEPS):
    return grid.prod(grid.axis("tokens", [64.0 * n for n in steps]), grid.axis("optim.lr", lrs))


def planned(entries, **how):
    return make_plan("wsd", grid.trials(WSD, entries), **how)


def test_the_longest_is_the_trunk_and_comes_first():
    plan = planned(entries(), trunks=True)
    trunk, *others = plan.chunks
    assert trunk.base.steps == 100 and trunk.keep_at == (15, 31) and trunk.trunk is None
    assert [(c.base.steps, c.shared_steps, c.trunk) for c in others] == [(20, 15, trunk.id), (40, 31, trunk.id)]
    alone = planned(entries())
    assert sorted(c.id for c in plan.chunks) == sorted(c.id for c in alone.chunks)  # the same parts
    assert plan.saved_flops == pytest.approx(plan.flops * 46 / 160) and alone.saved_flops == 0
    assert sum(c.flops for c in plan.chunks) == pytest.approx(plan.flops - plan.saved_flops)


def test_lines_with_the_same_budgets_go_together():
    """Three lines have two budgets, one has three; cut by twos, every chunk has one whose trunk it can be."""
    lines = grid.chain(entries((1e-3, 2e-3, 4e-3), (20, 40)), entries((8e-3,)))
    plan = planned(lines, trunks=True, max_trials=2)
    assert len(plan.trials) == 9 and sorted(len(c.trials) for c in plan.chunks) == [1] * 5 + [2] * 2
    for chunk in plan.chunks:
        (trunk,) = [c for c in plan.chunks if c.id == (chunk.trunk or chunk.id)]
        assert [t.optim.lr for t in chunk.trials] == [t.optim.lr for t in trunk.trials]
    assert sum(chunk.trunk is not None for chunk in plan.chunks) == 4


def test_what_does_not_fit_is_cut_with_its_trunk():
    plan = planned(entries((1e-3, 2e-3, 4e-3, 8e-3)), trunks=True)
    left = plan_lib.pending(plan, (), {plan.chunks[0].cohort: 2})
    assert [(len(c.trials), c.base.steps, c.shared_steps) for c in left] == [
        (2, n, SHARED[n]) for n in (100, 20, 40) * 2
    ]
    assert {c.trunk for c in left} == {None, left[0].id, left[3].id}


@pytest.mark.parametrize("of", [2, 3])
def test_a_trunk_and_its_branches_are_in_one_shard(of):
    plan = planned(entries((1e-3, 2e-3, 4e-3, 8e-3)), trunks=True, max_trials=1)
    parts = [plan_lib.shard(plan.chunks, i, of) for i in range(of)]
    assert sorted(c.id for part in parts for c in part) == sorted(c.id for c in plan.chunks)
    for part in parts:
        assert {c.trunk for c in part} <= {None, *(c.id for c in part)}


def test_cosine_trials_share_nothing():
    trials = grid.trials(fakes.BASE, entries())
    assert make_plan("cosine", trials, trunks=True).chunks == make_plan("cosine", trials).chunks


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The table of a grid in which one learning rate diverges, every trial trained from its beginning."""
    plan, path = planned(entries((1e-3, 1e30))), tmp_path_factory.mktemp("alone")
    runner.run(plan, store.create(path, plan))
    return store.load(path).read()


@pytest.fixture
def folder(tmp_path):
    return store.create(tmp_path, planned(entries((1e-3, 1e30)), trunks=True))


def same(folder, alone):
    pd.testing.assert_frame_equal(fakes.without_clock(folder.read()), fakes.without_clock(alone), check_exact=True)
    assert not list(folder.path.glob("checkpoints/*"))


def counting(first_seen):
    def trainer(chunk, folder, on_progress):
        def seen(progress):
            first_seen.setdefault(chunk.base.steps, progress.step)
            on_progress(progress)

        return runner.train_chunk(chunk, folder, seen)

    return trainer


def test_the_rows_are_those_of_trials_alone(folder, alone):
    first_seen = {}
    plan = planned(entries((1e-3, 1e30)), trunks=True)
    assert runner.run(plan, folder, trainer=counting(first_seen)).ok == 3
    assert set(alone["status"]) == {"ok", "diverged"}
    same(folder, alone)
    assert all(first_seen[n] >= SHARED[n] for n in STEPS)  # those steps were not trained again


@pytest.mark.parametrize("stop_at", [(100, 5), (100, 60), (20, 16), (40, 35)])
def test_cut_off_anywhere_it_goes_on(stop_at, folder, alone):
    """In the trunk before and after a branch, in the first branch, in the last."""
    plan = planned(entries((1e-3, 1e30)), trunks=True)

    def trainer(chunk, folder, on_progress):
        def seen(progress):
            if chunk.base.steps == stop_at[0] and progress.step >= stop_at[1]:
                raise InputError("power cut")

        return runner.train_chunk(chunk, folder, seen)

    with pytest.raises(InputError, match="power cut"):
        runner.run(plan, folder, trainer=trainer)
    first_seen = {}
    runner.run(plan, folder, trainer=counting(first_seen))
    same(folder, alone)
    assert all(first_seen[n] >= SHARED[n] for n in first_seen)


def test_without_its_trunk_a_branch_trains_all_its_steps(folder, alone):
    plan = planned(entries((1e-3, 1e30)), trunks=True)

    def trainer(chunk, checkpoints, on_progress):
        if chunk.trunk:
            folder.drop_checkpoints(chunk.trunk)
        return runner.train_chunk(chunk, checkpoints, on_progress)

    runner.run(plan, folder, trainer=trainer)
    same(folder, alone)


def test_a_backend_gets_branches_when_their_trunks_are_done(tmp_path):
    plan = planned(entries(), trunks=True)
    rounds = []

    def backend(left, folder, watcher, stop):
        rounds.append([c.base.steps for c in left])
        for chunk in reversed(left):
            yield chunk, [fakes.row(t) for t in chunk.trials]

    assert runner.run(plan, store.create(tmp_path, plan), backend=backend).ok == 6
    assert rounds == [[100], [20, 40]]


def test_the_commands(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "from tests.experiments.test_trunks import WSD, entries\nfrom experiments import grid\n\n"
        "def wsd():\n    return grid.trials(WSD, entries(steps=(20, 40)))\n\n"
        "def one():\n    return [WSD]\n"
    )
    mine, out = f"{tmp_path}/mine.py", str(tmp_path / "out")
    assert main(["sweep", "plan", f"{mine}:wsd", "--trunks"]) == 0
    assert "(25%) are not trained twice" in capsys.readouterr().out
    assert main(["sweep", "run", f"{mine}:wsd", "--out", out, "--trunks"]) == 0
    assert "(25%) are not trained twice" in capsys.readouterr().out
    assert main(["sweep", "run", f"{mine}:wsd", "--out", out]) == 0  # it is in the folder
    assert "4 done before" in capsys.readouterr().out
    assert main(["sweep", "plan", f"{mine}:one", "--trunks"]) == 2
    assert "no trials of" in capsys.readouterr().err
    assert main(["sweep", "run", "tiny", "--out", str(tmp_path / "tiny"), "--trunks"]) == 2

"""Step Law beyond its optimum: regret, settings within a regret, sparsity, and the authors' own estimator."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pandas as pd
import pytest

import laws
from laws.errors import FitError, InputError
from laws.forms import steplaw, steplaw_surface
from laws.forms.steplaw_points import fit_points

from .conftest import STEPLAW, published, swept_grid


@pytest.fixture(scope="module")
def packaged():
    return laws.load_posterior("steplaw")


@pytest.fixture(scope="module")
def swept_moe() -> laws.Posterior:
    """Dense and sparse models: the learning rate follows the total size, the batch size the active one."""
    parts = []
    for share in (1.0, 0.5, 0.1):
        runs = swept_grid(seed=int(10 * share)).assign(recipe=f"{share:g}")
        wider = runs["batch_tokens"] * share**-0.3
        parts.append(runs.assign(params_active=runs["params"] * share, batch_tokens=wider))
    return laws.fit("steplaw", pd.concat(parts, ignore_index=True), laplace=True)


# --- regret ----------------------------------------------------------------------------------------------------------


def test_numpy_regret_is_the_models():
    """With no scatter, the model's loss at any setting exceeds its loss at the optimum by the numpy regret."""
    data, facts = steplaw.prepare(swept_grid(), "loss")
    with jax.enable_x64(True):
        data = {k: jnp.asarray(v) for k, v in data.items()}
        quiet = numpyro.handlers.substitute(
            numpyro.handlers.seed(steplaw.model, jax.random.key(3)),
            {name: jnp.zeros(len(data["n"])) for name in ("lr_cell", "batch_cell", "floor_cell")},
        )
        trace = numpyro.handlers.trace(quiet).get_trace(data)
        draws = {k: np.asarray(v["value"])[None] for k, v in trace.items()}
        query = {"params": np.exp(data["ln_N"] + data["n"]), "tokens": np.exp(data["ln_D"] + data["d"])}
        zero = {k: np.zeros(1) for k in ("lr", "batch")}
        surface = steplaw_surface.Surface(draws, facts, query, zero)

        def log_loss(lr, batch):
            at = {"lr": jnp.asarray(lr)[:, None], "batch": jnp.asarray(batch)[:, None]}
            at = {k: jnp.broadcast_to(v, data[k].shape) for k, v in at.items()}
            moved = numpyro.handlers.trace(quiet).get_trace(data | at)["log_loss"]["fn"].base_dist.loc
            return np.asarray(moved)[:, 0]

        lr, batch = surface.lr[0], surface.batch[0]
        for u, v in ((0.5, 0.0), (-0.7, 0.4), (1.2, -1.0)):
            rise = log_loss(lr + u, batch + v) - log_loss(lr, batch)
            np.testing.assert_allclose(surface.regret(lr + u, batch + v)[0], np.expm1(rise), rtol=1e-8)


def test_regret_broadcasts_and_is_least_near_the_optimum(packaged):
    best = packaged.predict(params=5e8, tokens=2e10)
    lr, batch = best.lr.median, best.batch_tokens.median
    steps = np.array([[0.25], [0.5], [1.0], [2.0], [4.0]])
    at = packaged.regret(params=5e8, tokens=2e10, lr=lr * steps, batch_tokens=batch * steps.T)
    assert at.draws.shape[1:] == (5, 5) and np.all(at.draws >= 0)
    assert np.argmin(at.median) == 12  # the middle
    one = packaged.regret(params=5e8, tokens=2e10, lr=4 * lr, batch_tokens=batch / 4)
    assert one.median == pytest.approx(at.median[4, 0]) and isinstance(one.median, float)
    assert one.interval(0.9)[0] > 0.005


@pytest.mark.parametrize("which", ["packaged", "small_steplaw"])
def test_settings_end_where_expected_regret_does(which, request):
    posterior = request.getfixturevalue(which)
    scale = {"params": 5e8, "tokens": 2e10} if which == "packaged" else {"params": 1e5, "tokens": 1e6}
    found = posterior.settings(**scale, within=0.003)
    lr, batch = found.best

    def expected(lr, batch):
        return posterior.regret(**scale, lr=lr, batch_tokens=batch).draws.mean(axis=0)

    assert expected(lr, batch) == pytest.approx(found.expected, rel=1e-9)
    for ends, at in ((found.lr, lambda x: expected(x, batch)), (found.batch_tokens, lambda x: expected(lr, x))):
        assert [at(end) for end in ends] == pytest.approx([0.003, 0.003], rel=0.01)
        assert ends[0] < ends[1]
    assert expected(*found.region.T) == pytest.approx(0.003, rel=0.01)
    rng = np.random.default_rng(0)
    near = np.exp(0.3 * rng.normal(size=(200, 2)))
    assert np.all(expected(lr * near[:, 0], batch * near[:, 1]) >= found.expected - 1e-8)
    wider = posterior.settings(**scale, within=0.01)
    assert wider.lr[0] < found.lr[0] < found.lr[1] < wider.lr[1]


def test_settings_where_the_batch_was_not_swept():
    posterior = laws.fit("steplaw", swept_grid(batches=1), laplace=True)
    found = posterior.settings(params=1e5, tokens=1e6, within=0.005)
    assert found.batch_tokens == (0.0, np.inf)
    assert found.lr[0] < found.best[0] < found.lr[1]
    at = [posterior.regret(params=1e5, tokens=1e6, lr=0.01, batch_tokens=b).median for b in (100, 1e6)]
    assert at[0] == at[1]
    assert any("batch_tokens is its prior" in text for text in posterior.predict(params=1e5, tokens=1e6).warnings)


def test_no_question_is_too_long_to_be_asked(packaged):
    """1.5e8 steps, which no run has; a batch of 512 is one of sequences all the same."""
    far = packaged.regret(params=7e10, tokens=1.5e13, lr=2e-4, batch_tokens=1e5)
    assert any("batch_tokens 1e+05 is" in text and "below the optimum" in text for text in far.warnings)
    with pytest.raises(InputError, match="looks like sequences"):
        packaged.regret(params=7e10, tokens=1.5e13, lr=2e-4, batch_tokens=512)


def test_sweeps_of_a_parabola_are_fitted_with_two_bowls(packaged):
    """Dense sweeps about each cell's optimum, of losses that are a parabola in the logs: with a third bowl, either of
    two could be all of it, and chains did not settle."""
    rng, rows = np.random.default_rng(0), []
    for N in np.geomspace(3e7, 1e9, 4):
        for D in np.geomspace(1e9, 1e10, 3):
            lr, batch = 2.0 * N**-0.7 * D**0.3, 0.6 * D**0.57
            for u in 0.42 * np.arange(-3, 4):
                for v in 0.49 * np.arange(-2, 3):
                    loss = 2.0 + 400 * N**-0.34 + 400 * D**-0.28
                    loss *= np.exp(0.0056 * u**2 + 0.0042 * v**2 + 0.0015 * rng.standard_normal())
                    rows.append((N, D, lr * np.exp(u), batch * np.exp(v), loss))
    runs = pd.DataFrame(rows, columns=["params", "tokens", "lr", "batch_tokens", "loss"])
    law = laws.fit("steplaw", runs)
    assert law.draws["bend"].shape[-1] == 1 and packaged.draws["bend"].shape[-1] == 2
    for site, true in (("lr_N", -0.7), ("lr_D", 0.3), ("batch_N", 0.0), ("batch_D", 0.57)):
        low, high = np.quantile(law.draws[site], [0.005, 0.995])
        assert low < true < high and high - low < 0.5


def test_regret_of_the_paper_on_its_own_cells(packaged):
    """What the posterior says of the published settings is what the runs say: 0.1%, not 1% (dense, N in 2e8..1e9)."""
    N, D = np.array([2.1e8, 4.3e8, 1.07e9]), np.array([2e10, 4e10, 5.7e10])
    said = packaged.regret(params=N, tokens=D, lr=1.79 * N**-0.713 * D**0.307, batch_tokens=0.58 * D**0.571)
    assert np.all(said.median < 0.002)
    far = packaged.regret(params=N, tokens=D, lr=0.2 * 1.79 * N**-0.713 * D**0.307, batch_tokens=0.58 * D**0.571)
    assert np.all(far.median > 0.003)


def test_a_setting_far_from_all_that_was_tried_is_doubted(packaged):
    where = {"params": 1e9, "tokens": 1e11}
    near = packaged.regret(**where, lr=1e-3, batch_tokens=5e5)
    assert near.warnings == [] and near.median < 0.01
    bad = packaged.regret(params=[1e9, 7e9], tokens=1e11, lr=[1e-3, 10], batch_tokens=5e5)
    assert bad.median[1] > 1 and len(bad.warnings) == 3
    assert "params 7e+09 is" in bad.warnings[0] and "the regret of lr 10 with batch_tokens 5e+05" in bad.warnings[1]
    for batch, words in ((512, "looks like sequences"), (2e11, "larger than the run's tokens")):
        with pytest.raises(InputError, match=words):
            packaged.regret(**where, lr=1e-3, batch_tokens=batch)


def test_settings_further_off_than_the_fitted_runs_are_named(packaged):
    where = {"params": 1e9, "tokens": 2e10}
    best = packaged.predict(**where)
    narrow = laws.Posterior("steplaw", packaged.samples, packaged.meta | {"reach": {"batch_tokens": [-0.5, 0.5]}})
    for decades, said in ((0.4, []), (0.6, ["above"]), (-0.4, []), (-0.6, ["below"])):
        regret = narrow.regret(**where, lr=best.lr.median, batch_tokens=best.batch_tokens.median * 10**decades)
        assert regret.median < 0.1 and len(regret.warnings) == len(said)
        assert all(f"decades {way} the optimum" in regret.warnings[0] for way in said)
    assert packaged.regret(**where, lr=[], batch_tokens=1e6).draws.shape[1] == 0


def test_reach_is_that_of_the_runs(small_steplaw):
    """Of the grid's runs within 10% of their cell's best, from the optimum that the law gives."""
    runs, law = swept_grid(), small_steplaw
    near = runs[runs["loss"] <= 1.1 * runs.groupby(["params", "tokens"])["loss"].transform("min")]
    optimum = law.predict(params=near["params"].to_numpy(), tokens=near["tokens"].to_numpy())
    for column in ("lr", "batch_tokens"):
        off = np.log10(near[column] / getattr(optimum, column).median)
        np.testing.assert_allclose(law.meta["reach"][column], [off.min(), off.max()])


def test_refusals(packaged, small_chinchilla):
    where = {"params": 7e9, "tokens": 1.4e12}
    with pytest.raises(InputError, match=r"at params 7e\+09 and tokens 1.4e\+12 is within 0.0001%: the best has an"):
        packaged.settings(**where, within=1e-6)
    with pytest.raises(InputError, match="within must be between 0 and 1, got 10"):
        packaged.settings(**where, within=10)
    with pytest.raises(InputError, match="one scale at a time"):
        packaged.settings(params=np.array([1e9, 2e9]), tokens=1e10)
    with pytest.raises(InputError, match="chinchilla knows no learning rates"):
        small_chinchilla.regret(**where, lr=1e-3, batch_tokens=1e6)
    with pytest.raises(InputError, match="lr must be positive"):
        packaged.regret(**where, lr=-1, batch_tokens=1e6)
    with pytest.raises(InputError, match="lr 300 is no peak learning rate"):
        packaged.regret(**where, lr=300, batch_tokens=1e6)
    with pytest.raises(InputError, match=r"params_active 8e.09 is above params 7e.09"):
        packaged.predict(**where, params_active=8e9)


# --- sparsity --------------------------------------------------------------------------------------------------------


def test_sparsity_is_recovered(swept_moe):
    d = swept_moe.draws
    for name, true in (("lr_S", 0.0), ("batch_S", -0.3), ("lr_N", STEPLAW["lr_N"]), ("lr_D", STEPLAW["lr_D"])):
        low, high = np.quantile(d[name], [0.005, 0.995])
        assert low < true < high, name
        assert high - low < 1.0, name
    assert swept_moe.meta["cells"] == 36  # cells of different sparsity are not one


def test_active_parameters_are_optional(swept_moe, small_steplaw):
    at = {"params": 2e5, "tokens": 1e6}
    whole, sparse = swept_moe.predict(**at), swept_moe.predict(**at, params_active=2e4)
    assert swept_moe.predict(**at, params_active=2e5).lr.median == whole.lr.median  # absent: dense
    assert sparse.batch_tokens.median / whole.batch_tokens.median == pytest.approx(10**0.3, rel=0.35)
    assert any("without params_active" in note for note in whole.warnings) and not sparse.warnings
    far = swept_moe.predict(**at, params_active=2e3).warnings
    assert any(note.startswith("active_share 0.01 is") and "below" in note for note in far)
    with pytest.raises(InputError, match="steplaw predicts from params, tokens; got params, tokens, params_active"):
        small_steplaw.predict(**at, params_active=2e4)
    with pytest.raises(InputError, match=r"params, tokens \(and params_active if wanted\)"):
        swept_moe.predict(**at, n_experts=8)


def test_packaged_on_the_mixtures_of_experts(packaged):
    """Regret at the nearest tried setting; the published law costs 0.159% with the total N, 1.0% with the active."""
    regret = {"ours": [], "total": [], "active": []}
    for _, cell in published("steplaw-moe").groupby(["recipe", "tokens"]):
        N, active, D = (float(cell[c].iloc[0]) for c in ("params", "params_active", "tokens"))
        answer = packaged.predict(params=N, tokens=D, params_active=active)
        points = {"ours": (answer.lr.median, answer.batch_tokens.median)}
        points |= {k: (1.79 * n**-0.713 * D**0.307, 0.58 * D**0.571) for k, n in (("total", N), ("active", active))}
        for law, (lr, batch) in points.items():
            far = np.log(cell["lr"] / lr) ** 2 + np.log(cell["batch_tokens"] / batch) ** 2
            regret[law].append(100 * (cell.loc[far.idxmin(), "loss"] / cell["loss"].min() - 1))
    assert np.mean(regret["total"]) == pytest.approx(0.159, abs=0.001)
    assert np.mean(regret["active"]) == pytest.approx(1.001, abs=0.001)
    assert np.mean(regret["ours"]) < 0.06


# --- the authors' estimator ------------------------------------------------------------------------------------------


def test_authors_estimator_on_their_release():
    """As an independent reproduction has it: 129 runs; bootstrap means and 95% intervals."""
    runs = published("steplaw-dense")
    found = fit_points(runs)
    assert found.runs == 129
    assert found.lr[0] == pytest.approx(4.36, abs=0.1) and found.batch[0] == pytest.approx(-1.54, abs=0.1)
    np.testing.assert_allclose([*found.lr[1:], *found.batch[1:]], [-0.768, 0.198, 0.0, 0.611], atol=0.005)
    for draws, low, high in (
        (found.lr_draws[:, 1], -0.877, -0.665),
        (found.lr_draws[:, 2], 0.136, 0.262),
        (found.batch_draws[:, 2], 0.537, 0.687),
        (fit_points(runs, batch_has_N=True).batch_draws[:, 1], -0.39, -0.16),
    ):
        np.testing.assert_allclose(np.quantile(draws, [0.025, 0.975]), [low, high], atol=0.015)


def test_authors_estimator_is_exact_without_noise():
    runs = swept_grid(noise=0.0)
    best = runs.loc[runs.groupby(["params", "tokens"])["loss"].idxmin()].assign(
        lr=lambda r: np.exp(2.0) * r["params"] ** -0.5 * r["tokens"] ** 0.2,
        batch_tokens=lambda r: 3 * r["tokens"] ** 0.5,
    )
    found = fit_points(best, batch_has_N=True)
    np.testing.assert_allclose(found.lr, [2.0, -0.5, 0.2], atol=1e-8)
    np.testing.assert_allclose(found.batch, [np.log(3), 0.0, 0.5], atol=1e-8)
    lr, batch = found.predict(1e9, np.array([1e10, 1e11]))
    np.testing.assert_allclose(batch, 3 * np.sqrt([1e10, 1e11]))
    np.testing.assert_allclose(lr, np.exp(2.0) * 1e9**-0.5 * np.array([1e10, 1e11]) ** 0.2)
    with pytest.raises(FitError, match="2 sizes and 1 budgets"):
        fit_points(best[best["tokens"] == 3e5].head(2))

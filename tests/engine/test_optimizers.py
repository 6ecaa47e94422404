"""Muon, Lion and Adafactor: each against plain numpy matrix by matrix; and as trials of a population, sharded, a few at
a time, diverged, resumed. (AdamW: everywhere else.) Width transfer: the table, and what it is equal to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engine
from engine import InputError, MeshConfig, OptimConfig, model, population, step
from engine import config as config_lib
from tests.engine.conftest import as_hyper, random_params
from tests.engine.test_checkpoint import Stop, same, stop_at
from tests.engine.test_mesh import lower, mixture  # noqa: F401

OTHERS = ("muon", "lion", "adafactor")
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


# --- the directions, in numpy, of one matrix or vector: gradients of all steps -> directions of all steps -------------


def adam(gradients, *, beta1, beta2, eps):
    m = v = 0.0
    for k, g in enumerate(gradients, start=1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        yield m / (1 - beta1**k) / (np.sqrt(v / (1 - beta2**k)) + eps)


def lion(gradients, *, beta1, beta2, eps):
    """Chen et al. 2023, algorithm 2."""
    m = 0.0
    for g in gradients:
        yield np.sign(beta1 * m + (1 - beta1) * g)
        m = beta2 * m + (1 - beta2) * g


def muon(gradients, *, beta1, beta2, eps):
    """Jordan 2024 with Nesterov momentum (both terms debiased, as NAdam's), at the RMS of Liu et al. 2025."""
    m = 0.0
    for k, g in enumerate(gradients, start=1):
        m = beta1 * m + (1 - beta1) * g
        x = beta1 * m / (1 - beta1 ** (k + 1)) + (1 - beta1) * g / (1 - beta1**k)
        x = x / (np.linalg.norm(x) + eps)
        for _ in range(5):
            u, s, vt = np.linalg.svd(x, full_matrices=False)
            x = u * (3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5) @ vt
        yield 0.2 * np.sqrt(max(x.shape)) * x


def adafactor(gradients, *, beta1, beta2, eps):
    """Shazeer & Stern 2018, algorithm 4 (5 for vectors), without the relative step; forgetting capped at beta2."""
    rows = columns = v = 0.0
    for k, g in enumerate(gradients, start=1):
        beta = min(beta2, 1 - k**-0.8)
        square = g**2 + eps**2
        if g.ndim == 2:
            rows = beta * rows + (1 - beta) * square.sum(axis=1)
            columns = beta * columns + (1 - beta) * square.sum(axis=0)
            v = np.outer(rows, columns) / rows.sum()
        else:
            v = beta * v + (1 - beta) * square
        u = g / np.sqrt(v)
        yield u / max(1.0, np.sqrt(np.mean(u**2)))


REFERENCES = {"adamw": adam, "lion": lion, "muon": muon, "adafactor": adafactor}


def parts(path, leaf):
    """A leaf's matrices and vectors, each as numpy would have it: (index, shape)."""
    name, stacked = path[-1], path[0].endswith("layers")
    own = {"q": 3, "k": 3, "v": 3, "o": 3}.get(name, 1 if name.endswith(("norm", "bias")) else 2)
    assert leaf.ndim - own in ((1, 2) if stacked else (0,))
    for index in np.ndindex(leaf.shape[: leaf.ndim - own]):
        shape = leaf[index].shape
        yield (
            index,
            {"q": (shape[0], -1), "k": (shape[0], -1), "v": (shape[0], -1), "o": (-1, shape[-1])}.get(name, shape),
        )


def flat(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {tuple(entry.key for entry in path): np.asarray(leaf, np.float64) for path, leaf in leaves}


def expected(trial, params, gradients):
    """Parameters after a step by each of the gradients (flat dicts)."""
    o = trial.optim
    new = {path: leaf.copy() for path, leaf in params.items()}
    clip = [min(1.0, o.clip_norm / np.sqrt(sum((g**2).sum() for g in step.values()))) for step in gradients]
    numbers = {"beta1": o.beta1, "beta2": o.beta2, "eps": o.eps}
    for path, leaf in new.items():
        hidden = path[0].endswith("layers") and path[-1].removeprefix("shared_") in MATRICES
        reference = adam if o.optimizer == "muon" and not hidden else REFERENCES[o.optimizer]
        decay = 0.0 if path[-1].endswith(("norm", "bias")) or path[-1] == "embed" else o.weight_decay
        for index, shape in parts(path, leaf):
            seen = [c * g[path][index].reshape(shape) for c, g in zip(clip, gradients)]
            for direction in reference(seen, **numbers):
                leaf[index] -= o.lr * (direction.reshape(leaf[index].shape) + decay * leaf[index])
    return new


@pytest.mark.parametrize("optimizer", ["adamw", *OTHERS])
def test_steps_equal_numpys(optimizer, mixture):  # noqa: F811
    """Three steps by given gradients, two trials of different numbers; dense and routed layers."""
    base = config_lib.replace(
        mixture,
        {"optim.optimizer": optimizer, "optim.schedule": "constant", "optim.warmup_steps": 0, "optim.eps": 1e-5,
         "model.router_bias": False},
    )  # fmt: skip
    hypers = [
        {"optim.lr": 1e-2, "optim.clip_norm": 5.0},
        {"optim.lr": 3e-3, "optim.beta1": 0.7, "optim.beta2": 0.4, "optim.weight_decay": 0.5, "optim.clip_norm": 1e9},
    ]
    trials = population.trial_configs(base, hypers)
    each = [random_params(base.model, seed) for seed in range(2)]
    gradients = [[random_params(base.model, 10 * k + g) for g in range(2)] for k in range(1, 4)]
    axis = model.trial_axis(each[0])

    def stacked(trees):
        return {
            name: jax.tree.map(lambda *x, a=axis[name]: jnp.stack(x, a), *[t[name] for t in trees]) for name in axis
        }

    hyper, program = as_hyper(trials), step.program(base)
    state = step.init_state(base.model, program.method, jnp.zeros(2, jnp.uint32), jnp.ones(2), hyper)
    state = state._replace(params=stacked(each))

    @jax.jit
    def by(state, grads):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(step, "_gradients", lambda *_: (grads, (jnp.zeros(2), jnp.zeros((2, 1, 4)))))
            return step.train_step(program, state, jnp.zeros((1, 1), jnp.int32), hyper)[0]

    for grads in gradients:
        state = by(state, stacked(grads))
    for g, trial in enumerate(trials):
        start, ours = flat(each[g]), flat(model.take_trial(state.params, g))
        for path, leaf in expected(trial, start, [flat(grads[g]) for grads in gradients]).items():
            error = np.abs(ours[path] - leaf).max() / np.abs(leaf - start[path]).max()
            assert error < 3e-4, (path, error)


# --- in a population -------------------------------------------------------------------------------------------------


def with_optimizer(tiny, optimizer, **changes):
    return config_lib.replace(tiny, {"optim.optimizer": optimizer, "optim.lr": 3e-3, **changes})


@pytest.mark.parametrize("optimizer", OTHERS)
def test_a_population_is_its_trials_anywhere(optimizer, tiny):
    """Sharded over trials, weights and heads, a trial of a device at a time by micro-batches; and beside a trial that
    diverges."""
    config = with_optimizer(tiny, optimizer)
    _, together, args = lower(config, MeshConfig(trial=1, data=1))
    state, tokens, n, hyper = args
    again = jax.tree.map(lambda x: jax.device_put(np.asarray(x), x.sharding), state)  # a step donates its state
    state, metrics = jax.device_get(together(*args))
    assert state.alive.all() and (metrics.loss[-1] != metrics.loss[0]).all()

    alone = config_lib.replace(config, {"compute.lanes": 2, "compute.micro_batch": 2})
    _, sharded, args = lower(alone, MeshConfig(trial=2, data=1, fsdp=2, tensor=2))
    moments = {str(path): x for path, x in jax.tree_util.tree_flatten_with_path(args[0].moments)[0]}
    q = args[0].params["layers"]["q"]
    alike = [x for path, x in moments.items() if "'q'" in path and x.shape == q.shape]
    assert all(x.sharding.is_equivalent_to(q.sharding, 5) for x in alike) and bool(alike) == (optimizer != "adafactor")
    tolerance = 1e-3 if optimizer == "lion" else 2e-5  # a sign turns on the last bit
    np.testing.assert_allclose(np.asarray(sharded(*args)[1].loss), metrics.loss, rtol=tolerance)

    bad = hyper._replace(lr=jax.device_put(np.asarray(hyper.lr) * np.float32([1, 1e33, 1, 1]), hyper.lr.sharding))
    beside, beside_metrics = jax.device_get(together(again, tokens, n, bad))
    assert list(beside.alive) == [True, False, True, True]
    np.testing.assert_array_equal(beside_metrics.loss[:, [0, 2, 3]], metrics.loss[:, [0, 2, 3]])
    for g in (0, 2, 3):
        jax.tree.map(
            np.testing.assert_array_equal, model.take_trial(beside.params, g), model.take_trial(state.params, g)
        )


@pytest.mark.parametrize("optimizer", ["muon", "adafactor"])
def test_resumed_equals_undisturbed(optimizer, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(engine.loop, "MAX_CALL_STEPS", 4)
    config = with_optimizer(tiny, optimizer)
    hypers = [{}, {"optim.lr": 1e-3}]
    with pytest.raises(Stop):
        engine.train_population(config, hypers, folder=tmp_path, on_progress=stop_at(12))
    resumed = engine.train_population(config, hypers, folder=tmp_path)
    same(resumed, engine.train_population(config, hypers))
    for result in resumed:
        jax.tree.map(np.testing.assert_array_equal, engine.load(tmp_path, result.config.run_id).params, result.params)


def test_optimizers_are_named(tiny):
    with pytest.raises(InputError, match=r"optim.optimizer is 'adam'; known: adamw, muon, lion, adafactor"):
        OptimConfig(optimizer="adam")
    assert len({with_optimizer(tiny, o).run_id for o in REFERENCES}) == 4


def test_ids_of_older_runs_stay():
    """Written down before there was another optimizer than AdamW."""
    assert engine.TrainConfig().run_id == "fdff0133e4fbd2c4"
    assert config_lib.replace(engine.TrainConfig(), {"optim.final_fraction": 0.1}).run_id != "fdff0133e4fbd2c4"

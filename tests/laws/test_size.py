"""N by another count: one column in place of another, the same everywhere it is asked."""

import numpy as np
import pytest

import laws
from laws.errors import InputError

from .conftest import loss_grid

EMBEDDINGS = 5e7


def runs():
    table = loss_grid("chinchilla", 0.002, sizes=5, budgets=5)
    table["params_total"] = table["params"] + EMBEDDINGS * (table["params"] / 1e9) ** 0.4
    return table.assign(recipe="a")


def test_a_fit_by_another_count_is_the_fit_of_that_column():
    by_size = laws.fit("nested", runs(), size="params_total", laplace=True)
    renamed = runs().drop(columns="params").rename(columns={"params_total": "params"})
    by_name = laws.fit("nested", renamed, laplace=True)
    at = {"params": 7e9, "tokens": 5e10}
    assert by_size.predict(**at).loss.median == by_name.predict(**at).loss.median
    assert by_size.meta["data_digest"] == by_name.meta["data_digest"]
    assert (by_size.meta["size"], by_name.meta["size"]) == ("params_total", "params")
    assert "--size params_total" in by_size.meta["command"] and "--size" not in by_name.meta["command"]
    assert by_size.meta["ranges"]["params"] == by_name.meta["ranges"]["params"]


def test_the_stack_and_the_checks_count_alike():
    stack = laws.fit("stack", runs(), size="params_total", laplace=True)
    assert stack.meta["size"] == "params_total"
    assert stack.meta["ranges"]["params"][1] == runs()["params_total"].max()
    assert laws.check(stack, runs(), prior=False).fitted_to_these


def test_a_backtest_by_another_count():
    found = laws.backtest("nested", runs(), size="params_total", heldout="compute", laplace=True)
    assert set(found.table["params"]) <= set(runs()["params_total"])
    assert found.posterior.meta["size"] == "params_total"


def test_shapes_that_say_params_count_embeddings_are_no_objection():
    """The check of `params` against the model's shape is of params, not of the total."""
    table = runs().assign(n_layers=12.0, d_model=1024.0, d_ff=4096.0, vocab_size=50304.0)
    table["params_total"] = 12 * (4 * 1024.0**2 + 3 * 1024 * 4096) + 50304 * 1024 + table["params"] * 1e-3
    table["params"] = table["params_total"] / 2 * (1 + np.arange(len(table)) / 100)
    assert laws.fit("nested", table, size="params_total", laplace=True).meta["size"] == "params_total"


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ("params_totl", "size 'params_totl' is no count of parameters, did you mean 'params_total'?"),
        ("tokens", "is no count of parameters"),
        ("params_active", "N as params_active needs a column 'params_active'"),
    ],
)
def test_what_counts_no_parameters_is_refused(size, said):
    with pytest.raises(InputError) as error:
        laws.fit("nested", runs(), size=size, laplace=True)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_two_counts_are_not_compared():
    a, b = (laws.fit("nested", runs(), size=size, laplace=True) for size in ("params", "params_total"))
    with pytest.raises(InputError, match="N counts params in a and params_total in b"):
        laws.compare(a, b)

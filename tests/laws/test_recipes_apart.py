"""A table of several recipes: pointed out, and told apart on request."""

import pandas as pd

import laws

from .conftest import loss_grid


def test_mixed_recipes_are_pointed_out_and_can_be_chosen():
    a = loss_grid("chinchilla", 0.002).assign(recipe="a")
    both = pd.concat([a, a.assign(recipe="b", loss=a["loss"] * 1.1)], ignore_index=True)
    mixed = laws.fit("chinchilla", both, laplace=True)
    assert any("2 recipes (a, b) in one law" in note for note in mixed.warnings)
    alone = laws.fit("chinchilla", both, recipe="b", laplace=True)
    assert not any("recipes" in note for note in alone.warnings)
    assert "--recipe b" in alone.meta["command"]
    at = {"params": 1e9, "tokens": 1e10}
    lower = laws.fit("chinchilla", both, recipe="a", laplace=True)
    ratio = alone.predict(**at).mean_loss.median / lower.predict(**at).mean_loss.median
    assert abs(ratio / 1.1 - 1) < 0.005

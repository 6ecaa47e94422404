"""Recipes by name and grids from files."""

import pytest

from engine import InputError as EngineInputError
from engine.config import TrainConfig
from experiments import recipes
from experiments.errors import InputError


def write(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text("from engine.config import TrainConfig\nfrom experiments.grid import *\n" + text)
    return path


def refusal(name):
    with pytest.raises((InputError, EngineInputError)) as caught:
        recipes.load(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_packaged_recipe_loads_and_describes_itself():
    names = recipes.names()
    assert {"tiny", "dense_1m"} <= set(names)
    for name in names:
        configs = recipes.load(name)
        assert configs and all(isinstance(c, TrainConfig) for c in configs), name
        assert all(c.recipe.startswith(name) for c in configs), name
        assert len(recipes.describe(name)) > 20, name
        assert (len(configs) == 1) == (name in recipes.single()), name


def test_tiny_is_twelve_distinct_trials():
    assert len({c.run_id for c in recipes.load("tiny")}) == 12


def test_a_grid_in_a_file(tmp_path):
    path = write(tmp_path, "def widths():\n return trials(TrainConfig(), axis('model.d_model', [32, 64]))\n")
    assert [c.model.d_model for c in recipes.load(f"{path}:widths")] == [32, 64]


def test_the_function_may_be_left_out_and_one_config_is_enough(tmp_path):
    path = write(tmp_path, "def grid():\n return TrainConfig(seed=7)\n")
    assert [c.seed for c in recipes.load(str(path))] == [7]
    assert recipes.load_one(str(path)).seed == 7


def test_a_grid_is_not_one_model():
    with pytest.raises(InputError, match="'tiny' is a grid of 12 trials"):
        recipes.load_one("tiny")


def test_refusals_name_what_was_asked_and_what_there_is(tmp_path):
    assert "'tinny'; did you mean tiny?" in refusal("tinny")
    assert "known: " in refusal("zzz")
    assert "no file nowhere.py" in refusal("nowhere.py:grid")
    path = write(tmp_path, "def widths():\n return []\nx = 1\n")
    assert "no function 'width'; it has: widths" in refusal(f"{path}:width")
    assert "is empty" in refusal(f"{path}:widths")


def test_a_file_that_fails_says_where(tmp_path):
    path = write(tmp_path, "def grid():\n return 1 / 0\n")
    assert "failed at line 4" in refusal(str(path)) and "ZeroDivisionError" in refusal(str(path))
    path.write_text("def grid(:\n")
    assert "failed at line 1" in refusal(str(path)) and "SyntaxError" in refusal(str(path))
    path.write_text("import no_such_module\n")
    assert "no_such_module" in refusal(str(path))


def test_a_bad_field_in_a_file_reads_like_anywhere_else(tmp_path):
    path = write(tmp_path, "def grid():\n return trials(TrainConfig(), axis('model.width', [32]))\n")
    assert refusal(str(path)).startswith("unknown field 'model.width'")


@pytest.mark.parametrize("value, said", [("3", "int"), ("[1]", "overlay"), ("{}", "dict"), ("None", "NoneType")])
def test_anything_but_configs_is_refused(tmp_path, value, said):
    path = write(tmp_path, f"def grid():\n return {value}\n")
    assert said in refusal(str(path))


def test_the_mixes_of_step_law_are_shares_of_one():
    from engine import mixture

    by_mix = {}
    for c in recipes.load("steplaw_recipes"):
        by_mix.setdefault(c.recipe, []).append(c)
    assert [len(configs) for configs in by_mix.values()] == [45] * 4  # as many as the paper's
    code = {}
    for name, configs in by_mix.items():
        shares = dict(mixture.parse(configs[0].data.corpus))
        assert sum(shares.values()) == pytest.approx(1) and len({c.data.corpus for c in configs}) == 1
        code[name.removeprefix("steplaw_recipes_")] = shares["code-the-stack"]
    assert code == pytest.approx(
        {"baseline": 0.0462, "code_math": 0.3236, "more_code_math": 0.5705, "en_cn": 0.0463}, 1e-3
    )

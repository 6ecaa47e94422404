"""Recipes: what to run, by name. Each module here is one, named by its file; its docstring's first line describes it.

A recipe is a function without arguments, `grid()`, that returns a TrainConfig or a list of them. A user's own lives in
any Python file and is named `path/to/file.py:function` (`:grid` may be left out).
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import yaml_grid
from experiments.errors import InputError

if TYPE_CHECKING:
    from engine.config import TrainConfig


def names() -> list[str]:
    """Names of the packaged recipes."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def single() -> list[str]:
    """Names of those that are one run, no grid (by what their `grid` says that it returns; read, not imported)."""
    return [name for name in names() if any(map(_returns_one, ast.walk(_source(name))))]


def _returns_one(node: ast.AST) -> bool:
    if not (isinstance(node, ast.FunctionDef) and node.name == "grid" and node.returns is not None):
        return False
    return ast.unparse(node.returns) == "TrainConfig"


def _source(name: str) -> ast.Module:
    return ast.parse((Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8"))


def describe(name: str) -> str:
    """First line of a packaged recipe's docstring (read, not imported)."""
    return (ast.get_docstring(_source(name)) or "").partition("\n")[0]


def load(name: str) -> list[TrainConfig]:
    """The configs of a packaged recipe, of `file.py:function` or of a YAML file (`yaml_grid`), repeats included.

    Raises InputError when there is no such recipe, file or function, when the user's code fails (with its own words),
    or when it returns anything but configs.
    """
    if name.endswith((".yaml", ".yml")):
        return _checked(name, yaml_grid.load(name))
    if not (".py" in name or "/" in name):
        return _checked(name, _packaged(name)())
    path, function = _from_file(name)
    with _user_code(name, path):
        configs = function()
    return _checked(name, configs)


def load_one(name: str) -> TrainConfig:
    """The single config of a recipe. Raises InputError when it has several."""
    configs = load(name)
    if len(configs) > 1:
        raise InputError(f"recipe {name!r} is a grid of {len(configs)} trials; run it with: stepseer sweep run {name}")
    return configs[0]


def _packaged(name: str) -> Callable[[], Any]:
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names())}; or path/to/file.py:function"
        raise InputError(f"no recipe {name!r}; {hint}")
    return importlib.import_module(f"experiments.recipes.{name}").grid


def _from_file(name: str) -> tuple[Path, Callable[[], Any]]:
    file, _, function = name.partition(".py")
    path = Path(file + ".py").expanduser()
    function = function.removeprefix(":") or "grid"
    if not path.is_file():
        raise InputError(f"grid {name!r}: no file {path}; give path/to/file.py:function or a recipe's name")
    spec = importlib.util.spec_from_file_location(f"stepseer_grid_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and typing look modules up there
    with _user_code(name, path):
        spec.loader.exec_module(module)
    found = getattr(module, function, None)
    if not callable(found):
        here = [k for k, v in vars(module).items() if callable(v) and v.__module__ == module.__name__]
        raise InputError(f"grid {name!r}: {path} has no function {function!r}; it has: {', '.join(here) or 'none'}")
    return path, found


@contextlib.contextmanager
def _user_code(name: str, path: Path) -> Iterator[None]:
    """Turns whatever the user's code raises into one line that says where."""
    from engine.errors import InputError as EngineInputError

    try:
        yield
    except (InputError, EngineInputError):
        raise
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        at = f" at line {line}" if line else ""
        raise InputError(f"grid {name!r} failed{at} of {path}: {type(error).__name__}: {error}; mend it") from error


def _checked(name: str, configs: Any) -> list[TrainConfig]:
    from engine.config import TrainConfig

    if isinstance(configs, TrainConfig):
        return [configs]
    if not isinstance(configs, (list, tuple)):
        raise InputError(f"grid {name!r} returned {type(configs).__name__}; return a list of TrainConfig")
    for config in configs:
        if not isinstance(config, TrainConfig):
            raise InputError(
                f"grid {name!r} returned a list with {config!r:.60} in it; overlay overrides on a base config with "
                "experiments.grid.trials(base, grid)"
            )
    if not configs:
        raise InputError(f"grid {name!r} is empty; return at least one trial")
    return list(configs)

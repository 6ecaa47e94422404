"""Settings for the whole suite: published run tables are read from ../shared/data beside the repository, if present."""

import importlib.util
import os
from pathlib import Path

import pytest

if importlib.util.find_spec("libtpu"):  # it would look for a TPU at every start, and say so
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

from laws.programs import make_room

_TABLES = Path(__file__).resolve().parents[2] / "shared" / "data"
if "STEPSEER_DATA" not in os.environ and _TABLES.is_dir():
    os.environ["STEPSEER_DATA"] = str(_TABLES)


@pytest.fixture(autouse=True, scope="module")
def room_for_programs():
    """The suite compiles more than one process may hold."""
    make_room()

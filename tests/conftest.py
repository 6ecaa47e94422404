"""Settings for the whole suite: published run tables are read from ../shared/data beside the repository, if present."""

import os
from pathlib import Path

import pytest

from laws.programs import make_room

_TABLES = Path(__file__).resolve().parents[2] / "shared" / "data"
if "STEPSEER_DATA" not in os.environ and _TABLES.is_dir():
    os.environ["STEPSEER_DATA"] = str(_TABLES)


@pytest.fixture(autouse=True, scope="module")
def room_for_programs():
    """The suite compiles more than one process may hold."""
    make_room()

"""Measurements, each a script: `python -m benchmarks.NAME`. Published run tables are read from ../shared/data beside
the repository, if present."""

import os
from pathlib import Path

_TABLES = Path(__file__).resolve().parents[2] / "shared" / "data"
if "STEPSEER_DATA" not in os.environ and _TABLES.is_dir():
    os.environ["STEPSEER_DATA"] = str(_TABLES)

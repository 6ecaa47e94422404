"""Machines with libtpu and without a TPU: what it would ask at every start, and complain of, answered."""

from __future__ import annotations

import glob
import importlib.util
import os

NO_TPU = {  # there is no TPU machine to ask, nor a chip that only one process may hold
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def has_tpu() -> bool:
    """True where a TPU is attached."""
    return bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))


def say_so() -> None:
    """Sets these variables, but for those that are set, where libtpu is installed and there is no TPU."""
    if importlib.util.find_spec("libtpu") and not has_tpu():
        for name, value in NO_TPU.items():
            os.environ.setdefault(name, value)

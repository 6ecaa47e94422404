"""Fits keep their linear algebra on one thread.

Matrices of a fit are small, and OpenBLAS (numpy's, scipy's, and by scipy's JAX's on CPUs) on several threads is no
faster with them. But its threads spin while they wait for each other: where other processes keep the cores busy, a fit
took ten times as long (benchmarks/fit_speed.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def one() -> Iterator[None]:
    """A context, or a decorator, in which the BLAS libraries loaded so far use one thread, in all of the process."""
    with threadpool_limits(limits=1, user_api="blas"):
        yield

"""Fits keep their linear algebra on one thread, and take turns where several threads ask for them.

Matrices of a fit are small, and OpenBLAS (numpy's, scipy's, and by scipy's JAX's on CPUs) on several threads is no
faster with them. But its threads spin while they wait for each other: two fits side by side took three times as long
as one (benchmarks/fit_speed.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from threading import Lock, RLock
from typing import Any, ParamSpec, TypeVar

from threadpoolctl import threadpool_limits

P = ParamSpec("P")
R = TypeVar("R")
_lock, _turn = Lock(), RLock()
_limits: list[Any] = []  # the same one for each that is inside


@contextmanager
def one() -> Iterator[None]:
    """A context, or a decorator, in which the BLAS libraries loaded so far use one thread, in all of the process; as
    they were once the last of those that overlap has left."""
    with _lock:
        _limits.append(_limits[0] if _limits else threadpool_limits(limits=1, user_api="blas"))
    try:
        yield
    finally:
        with _lock:
            limits = _limits.pop()
            if not _limits:
                limits.restore_original_limits()


def in_turn(function: Callable[P, R]) -> Callable[P, R]:
    """A decorator: one call at a time in a process, of all the functions that have it. numpyro keeps what it traces on
    one stack for all threads."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        with _turn:
            return function(*args, **kwargs)

    return called

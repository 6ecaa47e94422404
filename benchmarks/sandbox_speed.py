"""How many programs a second the sandbox runs, and what of that is isolation.

python benchmarks/sandbox_speed.py [--count 300] [--workers 2]
"""

from __future__ import annotations

import argparse
import time
from unittest import mock

from experiments.code import isolation
from experiments.code.sandbox import Program, run_many

PROGRAMS = {
    "python, one line": Program("print(6 * 7)"),
    "python, half a second of work": Program("x = 0\nfor i in range(5_000_000): x += i\nprint(x)"),
    "bash, one line": Program("echo 42", "bash"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    print(f"{isolation.probe()}; {args.workers} at once")
    for name, program in PROGRAMS.items():
        count = args.count // 10 if "work" in name else args.count
        isolated = _rate(program, count, args.workers)
        with mock.patch.object(isolation, "probe", lambda: isolation.Isolation("taken away")):
            bare = _rate(program, count, args.workers, throwaway_vm=True)
        print(f"{name:32}{isolated:8.1f} programs/s{bare:8.1f} without isolation")


def _rate(program: Program, count: int, workers: int, **options: bool) -> float:
    begun = time.perf_counter()
    outcomes = run_many([program] * count, workers=workers, **options)
    assert all(outcome.status == "ok" for outcome in outcomes), {outcome.reason for outcome in outcomes}
    return count / (time.perf_counter() - begun)


if __name__ == "__main__":
    main()

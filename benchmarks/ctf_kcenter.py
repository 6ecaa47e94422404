"""How long k-center greedy takes to put all samples in order, beside the originals that it starts from.

    python -m benchmarks.ctf_kcenter --out benchmarks/ctf_kcenter.svg

Made-up embeddings: 200 clusters of unlike width, as those of texts have; as many originals as samples.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from experiments.code.ctf.select import k_center


def made_up(n: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    middles = np.random.default_rng(0).normal(size=(200, width))
    scale = rng.gamma(2.0, 0.2, size=(n, 1))
    return (middles[rng.integers(200, size=n)] + scale * rng.normal(size=(n, width))).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5000, 10_000, 20_000, 40_000, 70_000])
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 768])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for width in args.widths:
        seconds = []
        for n in args.sizes:
            new, originals = made_up(n, width, 1), made_up(n, width, 2)
            start, cpu = time.perf_counter(), time.process_time()
            order, _ = k_center(new, originals)
            seconds.append(time.perf_counter() - start)
            cpu = time.process_time() - cpu
            print(f"{n} samples, {n} originals, {width} wide: {len(order)} in order, {seconds[-1]:.1f} s, "
                  f"{cpu:.1f} s of CPU", flush=True)  # fmt: skip
        axes.loglog(args.sizes, seconds, "o-", label=f"{width} wide")
    axes.axhline(60, color="0.6", linewidth=1)
    axes.set(xlabel="samples, all put in order (and as many originals)", ylabel="seconds", title="k-center greedy")
    axes.legend(frameon=False)
    if args.out:
        figure.savefig(args.out, metadata={"Date": None})


if __name__ == "__main__":
    main()

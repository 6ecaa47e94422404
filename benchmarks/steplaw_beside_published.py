"""Our packaged Step Law posterior beside the paper's formula, at three scales. Needs no data.

python -m benchmarks.steplaw_beside_published
"""

import laws

SCALES = [(1.07e9, 1e11), (7e9, 1.4e12), (7e10, 1.5e13)]  # inside the fitted range, and one and two decades above it


def published(params: float, tokens: float) -> tuple[float, float]:
    """(lr, batch in tokens), arXiv 2503.04715 as printed."""
    return 1.79 * params**-0.713 * tokens**0.307, 0.58 * tokens**0.571


def main() -> None:
    posterior = laws.load_posterior("steplaw")
    print("| N | D | lr: ours, 90% | lr: paper | batch: ours, 90% | batch: paper |")
    print("|---|---|---|---|---|---|")
    for params, tokens in SCALES:
        said = posterior.predict(params=params, tokens=tokens)
        lr, batch = published(params, tokens)
        cells = [f"{params:.3g}", f"{tokens:.3g}"]
        for quantity, theirs, unit, digits in ((said.lr, lr, 1, ".2e"), (said.batch_tokens, batch, 1e6, ".2f")):
            low, high = quantity.interval(0.9)
            suffix = "M" if unit == 1e6 else ""
            ours = f"{quantity.median / unit:{digits}}{suffix} [{low / unit:{digits}}, {high / unit:{digits}}]"
            cells += [ours, f"{theirs / unit:{digits}}{suffix}"]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

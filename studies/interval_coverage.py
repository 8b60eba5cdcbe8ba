"""How often 95% intervals of avg@k hold the truth, by simulation: the project's method beside others.

    .venv/bin/python studies/interval_coverage.py [--benchmarks 2000] [--problems 30] [--samples 16] [--seed 0]

Each simulated benchmark draws the problems' chances of success from a Beta distribution and, for each problem, k samples from
its chance: samples are clustered by problem. The truth is the distribution's mean. The methods:

    ours          aster.evaluation.mean_interval, as every result here has it
    percentile    the percentiles of the means of resampled problems
    two levels    the same, with the samples of a drawn problem drawn again
    naive         all samples as if independent: share +- 1.96 standard errors

Prints a Markdown table: the percentage of intervals that hold the truth, and the mean width of ours. The percentage of 2,000
benchmarks has a standard error of half a point. The table is in docs/results/evaluation.md.
"""

from __future__ import annotations

import argparse
import math

import numpy as np

from aster.evaluation import mean_interval

SHAPES = {
    "uniform": (1.0, 1.0),
    "often 0 or 1": (0.5, 0.5),
    "nearly always 0 or 1": (0.1, 0.1),
    "peaked": (2.0, 2.0),
    "narrow": (20.0, 20.0),
    "easy": (2.0, 0.5),
    "very easy": (3.0, 0.3),
    "hard": (0.5, 1.5),
    "very hard": (0.3, 2.7),
    "hardly ever": (0.1, 1.9),
}
"""Beta(a, b) of the problems' chances."""
METHODS = ("ours", "percentile", "two levels", "naive")
RESAMPLES = 2000


def simulate(a: float, b: float, benchmarks: int, problems: int, samples: int, seed: int) -> dict[str, float]:
    """Coverage of each method (0 to 1), and ``width``: the mean width of ours."""
    generator = np.random.default_rng(seed)
    truth = a / (a + b)
    held = dict.fromkeys(METHODS, 0)
    width = 0.0
    for trial in range(benchmarks):
        right = generator.binomial(samples, generator.beta(a, b, size=problems))
        means = right / samples
        weights = generator.multinomial(problems, [1 / problems] * problems, size=RESAMPLES)
        again = generator.binomial(weights * samples, means).sum(axis=1) / (problems * samples)
        share = float(means.mean())
        error = math.sqrt(share * (1 - share) / (problems * samples))
        intervals = {
            "ours": mean_interval(means.tolist(), trial, RESAMPLES),
            "percentile": tuple(np.quantile(weights @ means / problems, [0.025, 0.975])),
            "two levels": tuple(np.quantile(again, [0.025, 0.975])),
            "naive": (share - 1.96 * error, share + 1.96 * error),
        }
        for name, (low, high) in intervals.items():
            held[name] += bool(low <= truth <= high)
        width += intervals["ours"][1] - intervals["ours"][0]
    return {name: count / benchmarks for name, count in held.items()} | {"width": width / benchmarks}


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--benchmarks", type=int, default=2000)
    parser.add_argument("--problems", type=int, default=30)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(f"| chances of the problems | mean | {' | '.join(METHODS)} | width of ours |")
    print("|---|---|" + "---|" * (len(METHODS) + 1))
    for index, (name, (a, b)) in enumerate(SHAPES.items()):
        found = simulate(a, b, given.benchmarks, given.problems, given.samples, given.seed + index)
        cells = " | ".join(f"{100 * found[method]:.1f}" for method in METHODS)
        print(f"| {name}: Beta({a:g}, {b:g}) | {a / (a + b):.2f} | {cells} | {found['width']:.3f} |", flush=True)


if __name__ == "__main__":
    main()

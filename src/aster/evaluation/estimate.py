"""avg@k and pass@k of a benchmark, and how sure we are of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
"""Coverage of the intervals."""

CHUNK = 1_000_000
"""Most numbers drawn at once in the bootstrap; bounds its memory to some 10 MB."""


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with its 95% interval ``[low, high]``; all three in the unit of the rewards (0 to 1)."""

    mean: float
    low: float
    high: float
    k: int
    """Samples per problem (the fewest, where problems have unequal numbers)."""
    problems: int


def avg_at_k(rewards: Mapping[str, Sequence[float]], seed: int, resamples: int = 10_000) -> Estimate:
    """avg@k: the mean over problems of each problem's mean reward, with a 95% bootstrap interval.

    The interval is a percentile bootstrap over *problems*: each resample draws as many problems as there are, with
    replacement, and takes all k samples of a drawn problem along (a cluster bootstrap, the problem being the cluster).
    The k samples of one problem are alike, so counting them as independent would make the interval far too narrow; and
    what a benchmark stands for is the population its problems came from. Source: Davison and Hinkley, Bootstrap Methods
    and their Application (1997), section 3.8, for resampling whole clusters; Miller, Adding Error Bars to Evals (2024,
    arXiv 2411.00640), for the same view of language-model benchmarks, with standard errors instead of the bootstrap.

    With few problems (AIME has 30) percentile intervals are somewhat too narrow. Where no problem was ever solved, or every
    one always, resampling sees no spread at all, and [0, 0] would read as certainty: there the interval is the exact binomial
    one for so many problems (Clopper and Pearson 1934): 0 of 30 gives [0, 0.116]. Other means that are all equal give an
    interval of width zero, which says nothing.

    ``rewards`` maps a problem id to its k rewards. ``seed`` alone decides the draws; the order of the mapping does not
    matter. Raises ValueError where there is no problem, a problem has no reward, or a reward is not finite.
    """
    if not rewards:
        raise ValueError("no problems to average over")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    for name, values in rewards.items():
        if len(values) == 0:
            raise ValueError(f"problem {name!r} has no rewards")
        if not all(math.isfinite(value) for value in values):
            raise ValueError(f"problem {name!r} has a reward that is not a finite number")
    # fsum rounds once, so that the order of the rewards does not matter either.
    means = np.array([math.fsum(rewards[name]) / len(rewards[name]) for name in sorted(rewards)])
    mean = math.fsum(means) / len(means)
    unseen = 1 - ((1 - LEVEL) / 2) ** (1 / len(means))
    if np.all(means == 0):
        low, high = 0.0, unseen
    elif np.all(means == 1):
        low, high = 1 - unseen, 1.0
    elif np.all(means == means[0]):
        low = high = mean
    else:
        low, high = _bootstrap(means, seed, resamples)
    return Estimate(mean, low, high, min(len(values) for values in rewards.values()), len(means))


def _bootstrap(means: np.ndarray, seed: int, resamples: int) -> tuple[float, float]:
    """The percentile interval of the mean of ``means`` (one number a problem)."""
    generator = np.random.default_rng(seed)
    problems = len(means)
    rows = max(1, CHUNK // problems)
    totals = np.empty(resamples)
    for start in range(0, resamples, rows):
        end = min(start + rows, resamples)
        totals[start:end] = means[generator.integers(problems, size=(end - start, problems))].mean(axis=1)
    low, high = np.quantile(totals, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The unbiased estimate of pass@k: the chance that at least one of k samples of a problem is right.

    Of ``samples`` independent samples ``correct`` were right; the estimate is ``1 - C(samples - correct, k) / C(samples, k)``
    (Chen et al., Evaluating Large Language Models Trained on Code, 2021, arXiv 2107.03374, equation 1). Raises ValueError
    unless ``0 <= correct <= samples`` and ``1 <= k <= samples``.
    """
    if not 0 <= correct <= samples:
        raise ValueError(f"correct must be between 0 and samples ({samples}), not {correct}")
    if not 1 <= k <= samples:
        raise ValueError(f"k must be between 1 and samples ({samples}), not {k}")
    # Whole-number arithmetic is exact; math.comb gives 0 where fewer than k samples are wrong.
    wrong, ways = math.comb(samples - correct, k), math.comb(samples, k)
    return (ways - wrong) / ways

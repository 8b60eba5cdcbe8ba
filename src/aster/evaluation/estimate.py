"""avg@k and pass@k of a benchmark, with 95% intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
"""Coverage of the intervals."""

RESAMPLES = 10_000
"""Bootstrap resamples of an interval."""

CHUNK = 1_000_000
"""Most numbers drawn at once in the bootstrap. It limits the memory to some 10 MB."""


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with its 95% interval ``[low, high]``; all three in the unit of the rewards (0 to 1)."""

    mean: float
    low: float
    high: float
    k: int
    """Samples per problem (the fewest, where problems have unequal numbers)."""
    problems: int


def avg_at_k(rewards: Mapping[str, Sequence[float]], seed: int, resamples: int = RESAMPLES) -> Estimate:
    """avg@k: the mean over problems of each problem's mean reward, with its 95% interval (:func:`mean_interval`).

    ``rewards`` maps a problem id to its k rewards, each from 0 to 1. Only ``seed`` decides the draws; the order of the
    mapping does not matter. Raises ValueError where there is no problem, a problem has no reward, or a reward is out of range.
    """
    if not rewards:
        raise ValueError("no problems to average over")
    for name, values in rewards.items():
        if len(values) == 0:
            raise ValueError(f"problem {name!r} has no rewards")
        if not all(0 <= value <= 1 for value in values):
            raise ValueError(f"problem {name!r} has a reward that is not a number from 0 to 1")
    # fsum rounds once, so that the order of the rewards does not matter either.
    means = [math.fsum(rewards[name]) / len(rewards[name]) for name in sorted(rewards)]
    low, high = mean_interval(means, seed, resamples)
    return Estimate(math.fsum(means) / len(means), low, high, min(len(values) for values in rewards.values()), len(means))


def mean_interval(values: Sequence[float], seed: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """The 95% interval of a mean over problems, from one value from 0 to 1 for each problem. All intervals use this method.

    A bootstrap over *problems*: each resample draws as many problems as there are, with replacement, and takes all samples of
    a drawn problem (a cluster bootstrap). The k samples of one problem are alike, so counting them as independent would
    make the interval far too narrow. A benchmark represents the population that its problems came from. Samples are not drawn
    again within the drawn problems: the spread of the problems' means already contains the noise of their samples, and a
    second draw would count it twice. (Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8; Miller,
    Adding Error Bars to Evals, 2024, arXiv 2411.00640, has the same view of language-model benchmarks, with standard errors.)

    The resamples give a bootstrap-t interval on the scale arcsin(sqrt(mean)), on which the variance of a share hardly
    depends on its value (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, sections 12.5 and 12.6). With the 30
    problems of AIME a percentile interval is too narrow, and more so the farther the mean is from 1/2.
    ``studies/interval_coverage.py`` compares them; docs/results/evaluation.md has its table.

    A mean cannot be larger than the share of problems whose value is above 0, or smaller than the share whose value is 1. The
    exact binomial bounds of these shares (Clopper and Pearson 1934) therefore limit the interval: 0 solved of 30 gives
    [0, 0.116] and not [0, 0]. Where all values are equal to c, there is no spread to resample. Then the same bound b of the
    share of problems with another value, which might be 0 or 1, gives [c (1 - b), c + (1 - c) b].

    Raises ValueError where there is no value, or a value is out of range.
    """
    means = np.asarray(values, dtype=float)
    if means.ndim != 1 or len(means) == 0 or not np.all((means >= 0) & (means <= 1)):
        raise ValueError("an interval needs at least one value, all of them from 0 to 1")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, not {resamples}")
    mean = math.fsum(means) / len(means)
    if np.all(means == means[0]):
        others = _share_bound(0, len(means))
        return mean * (1 - others), mean + (1 - mean) * others
    least = 1 - _share_bound(int(np.sum(means < 1)), len(means))
    most = _share_bound(int(np.sum(means > 0)), len(means))
    low, high = _bootstrap_t(means, seed, resamples)
    return min(mean, max(low, least)), max(mean, min(high, most))


def _share_bound(count: int, total: int) -> float:
    """The upper end of Clopper and Pearson's interval for a share, after ``count`` cases among ``total``."""
    # Importing scipy.stats takes a second; importing scipy.special does not.
    from scipy.special import betaincinv

    return 1.0 if count == total else float(betaincinv(count + 1, total - count, (1 + LEVEL) / 2))


def _bootstrap_t(means: np.ndarray, seed: int, resamples: int) -> tuple[float, float]:
    """The bootstrap-t interval of the mean of ``means`` (one number per problem, not all equal), on the arcsine scale."""
    generator = np.random.default_rng(seed)
    problems = len(means)
    rows = max(1, CHUNK // problems)
    centre, error = (float(part[0]) for part in _on_scale(means[None, :]))
    statistics = np.empty(resamples)
    for start in range(0, resamples, rows):
        end = min(start + rows, resamples)
        drawn, errors = _on_scale(means[generator.integers(problems, size=(end - start, problems))])
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = (drawn - centre) / errors
        # A resample without spread has no ratio: as far out as can be, on the side of its mean.
        outermost = np.where(drawn > centre, np.inf, np.where(drawn < centre, -np.inf, 0.0))
        statistics[start:end] = np.where(errors > 0, ratios, outermost)
    statistics.sort()
    # Use order statistics without interpolation, because infinite and finite values cannot be interpolated.
    outer = min(resamples - 1, int(resamples * (1 + LEVEL) / 2))
    upper, lower = statistics[outer], statistics[resamples - 1 - outer]
    ends = np.clip([centre - upper * error, centre - lower * error], 0, math.pi / 2)
    return float(np.sin(ends[0]) ** 2), float(np.sin(ends[1]) ** 2)


def _on_scale(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """arcsin(sqrt(mean)) of each row and its standard error by the delta method; 0 where a row has no spread."""
    mean = samples.mean(axis=1)
    error = samples.std(axis=1, ddof=1) / math.sqrt(samples.shape[1])
    slope = 2 * np.sqrt(np.maximum(mean * (1 - mean), 1e-12))
    spread = samples.max(axis=1) > samples.min(axis=1)
    return np.arcsin(np.sqrt(np.clip(mean, 0, 1))), np.where(spread, error / slope, 0.0)


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

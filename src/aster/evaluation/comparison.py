"""Compares two results on the same problems."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aster.evaluation.estimate import CHUNK, mean_interval

EXACT = 16
"""With at most this many problems that differ, all sign patterns are counted. With more, patterns are drawn at random."""
DRAWS = 100_000


@dataclass(frozen=True)
class Comparison:
    """``first`` minus ``second``, in the unit of the rewards, over the problems both have."""

    difference: float
    low: float
    high: float
    """The 95% interval of the difference, bootstrapped over problems."""
    p_value: float
    """Two-sided, of the paired permutation test."""
    exact: bool
    """Whether all patterns were counted. False: they were drawn at random."""
    better: int
    """Problems on which the first has the higher mean."""
    worse: int
    problems: int


def compare(first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]], seed: int) -> Comparison:
    """The paired permutation test over problems, with an interval of the difference.

    Each argument maps problem ids to rewards from 0 to 1. Both must have the same problems; the numbers of samples may differ.
    If the two results did not differ, each problem's difference would be equally likely to have the other sign. The p-value is
    the share of sign patterns whose mean difference is at least as far from 0 as the observed one (Fisher, The Design of
    Experiments, 1935; Good, Permutation Tests, 2000, section 3.2.1). With drawn patterns the observed one counts among them, so
    that p is never 0 (Phipson and Smyth 2010). The test permutes problems and not samples, because samples of a problem are
    alike. Raises ValueError where the problems differ."""
    if first.keys() != second.keys() or not first:
        raise ValueError("the two results are not of the same problems")
    differences = np.array(
        [math.fsum(first[name]) / len(first[name]) - math.fsum(second[name]) / len(second[name]) for name in sorted(first)]
    )
    low, high = mean_interval((np.clip(differences, -1, 1) + 1) / 2, seed)
    p_value, exact = _p_value(differences[differences != 0], seed)
    return Comparison(
        difference=math.fsum(differences) / len(differences),
        low=2 * low - 1,
        high=2 * high - 1,
        p_value=p_value,
        exact=exact,
        better=int(np.sum(differences > 0)),
        worse=int(np.sum(differences < 0)),
        problems=len(differences),
    )


def _p_value(differences: np.ndarray, seed: int) -> tuple[float, bool]:
    """The two-sided p-value of the mean of ``differences`` (none of them 0), and whether it is exact."""
    count = len(differences)
    # Differences that are equal except for rounding count as equally far from 0.
    seen = abs(math.fsum(differences)) * (1 - 1e-9)
    if count == 0:
        return 1.0, True
    if count <= EXACT:
        signs = (np.arange(1 << count)[:, None] >> np.arange(count) & 1) * 2.0 - 1
        return float(np.mean(np.abs(signs @ differences) >= seen)), True
    generator = np.random.default_rng(seed)
    rows = max(1, CHUNK // count)
    hits = 0
    for start in range(0, DRAWS, rows):
        signs = generator.integers(2, size=(min(rows, DRAWS - start), count)) * 2.0 - 1
        hits += int(np.sum(np.abs(signs @ differences) >= seen))
    return (hits + 1) / (DRAWS + 1), False

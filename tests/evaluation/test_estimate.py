"""avg@k, its interval, and pass@k."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aster.evaluation import Estimate, avg_at_k, pass_at_k


def test_mean_over_problems_not_over_samples() -> None:
    estimate = avg_at_k({"a": [1.0, 1.0, 1.0, 1.0], "b": [0.0, 0.0]}, seed=0)
    assert (estimate.mean, estimate.k, estimate.problems) == (0.5, 2, 2)


def test_nothing_solved_is_not_certainty() -> None:
    nothing = avg_at_k({str(i): [0.0] for i in range(30)}, seed=0)
    everything = avg_at_k({str(i): [1.0, 1.0] for i in range(30)}, seed=0)
    # Clopper-Pearson for 0 of 30 and 30 of 30.
    assert (nothing.low, round(nothing.high, 4)) == (0.0, 0.1157)
    assert (round(everything.low, 4), everything.high) == (0.8843, 1.0)


def test_one_problem_and_equal_problems_have_no_width() -> None:
    assert avg_at_k({"a": [0.0, 1.0, 1.0]}, seed=0) == Estimate(2 / 3, 2 / 3, 2 / 3, 3, 1)
    assert avg_at_k({str(n): [1.0, 0.0] for n in range(7)}, seed=0) == Estimate(0.5, 0.5, 0.5, 2, 7)


def test_the_seed_alone_decides() -> None:
    rewards = {str(n): [n**0.5, 1 / (n + 1)] for n in range(40)}
    backwards = dict(reversed(rewards.items()))
    assert avg_at_k(rewards, seed=1) == avg_at_k(backwards, seed=1)
    assert avg_at_k(rewards, seed=1) != avg_at_k(rewards, seed=2)


def test_samples_of_one_problem_are_not_independent_evidence() -> None:
    """Problems solved always or never: 64 samples of each tell no more than one."""
    once = avg_at_k({str(n): [float(n < 15)] for n in range(30)}, seed=0)
    often = avg_at_k({str(n): [float(n < 15)] * 64 for n in range(30)}, seed=0)
    assert (once.low, once.high) == (often.low, often.high)
    # Binomial with n = 30, p = 1/2: the 2.5% and 97.5% quantiles are 10 and 20 of 30.
    assert (often.low, often.high) == pytest.approx((10 / 30, 20 / 30))


def test_the_interval_covers_the_truth_about_95_times_in_100() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        chances = generator.beta(1, 1, size=60)
        rewards = {str(n): generator.binomial(1, chance, size=4).astype(float).tolist() for n, chance in enumerate(chances)}
        estimate = avg_at_k(rewards, seed=trial, resamples=1000)
        hits += estimate.low <= 0.5 <= estimate.high
    assert 180 <= hits <= 198


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=5), min_size=1, max_size=12), st.integers(0, 9))
def test_the_interval_holds_the_mean_and_stays_in_range(rewards: list[list[float]], seed: int) -> None:
    estimate = avg_at_k({str(n): values for n, values in enumerate(rewards)}, seed, resamples=2000)
    assert 0.0 <= estimate.low <= estimate.mean <= estimate.high <= 1.0


def test_many_problems_are_resampled_in_pieces() -> None:
    estimate = avg_at_k({str(n): [float(n % 2)] for n in range(3000)}, seed=0, resamples=1000)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * 0.5 / 3000**0.5, rel=0.1)


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ({}, "no problems"),
        ({"a": []}, "'a' has no rewards"),
        ({"a": [1.0], "b": [float("nan")]}, "'b' has a reward that is not"),
    ],
)
def test_nothing_to_average_is_an_error(rewards: dict[str, list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        avg_at_k(rewards, seed=0)


@pytest.mark.parametrize("samples", [1, 4, 6])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(samples: int) -> None:
    for correct in range(samples + 1):
        outcomes = [1] * correct + [0] * (samples - correct)
        for k in range(1, samples + 1):
            subsets = [any(subset) for subset in itertools.combinations(outcomes, k)]
            assert pass_at_k(samples, correct, k) == pytest.approx(sum(subsets) / len(subsets))


@pytest.mark.parametrize(("samples", "correct", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)])
def test_pass_at_k_refuses_impossible_counts(samples: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="must be between"):
        pass_at_k(samples, correct, k)

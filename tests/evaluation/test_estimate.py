"""avg@k, its interval, and pass@k."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aster.evaluation import avg_at_k, mean_interval, pass_at_k
from studies.interval_coverage import SHAPES, simulate


def test_mean_over_problems_not_over_samples() -> None:
    estimate = avg_at_k({"a": [1.0, 1.0, 1.0, 1.0], "b": [0.0, 0.0]}, seed=0)
    assert (estimate.mean, estimate.k, estimate.problems) == (0.5, 2, 2)


def test_nothing_solved_is_not_certainty() -> None:
    nothing = avg_at_k({str(i): [0.0] for i in range(30)}, seed=0)
    everything = avg_at_k({str(i): [1.0, 1.0] for i in range(30)}, seed=0)
    # Clopper-Pearson for 0 of 30 and 30 of 30.
    assert (nothing.low, round(nothing.high, 4)) == (0.0, 0.1157)
    assert (round(everything.low, 4), everything.high) == (0.8843, 1.0)


def test_what_is_hardly_ever_solved_is_bounded_by_the_problems_ever_solved() -> None:
    """One sample of one problem of 30: a resample without it has no spread, and yet the interval is not all of [0, 1]."""
    low, high = mean_interval([1 / 16] + [0.0] * 29, seed=0)
    # Clopper-Pearson for 1 of 30 bounds the share of problems that are ever solved.
    assert 0 <= low < 1 / 480 < high <= 0.1722
    mirrored = mean_interval([15 / 16] + [1.0] * 29, seed=0)
    assert mirrored == pytest.approx((1 - high, 1 - low))


def test_one_problem_and_equal_problems_are_not_certainty() -> None:
    # Nothing was seen of other problems but that there were none in so many: Clopper and Pearson's 0 of 1, and 0 of 7.
    one = avg_at_k({"a": [0.0, 1.0, 1.0]}, seed=0)
    assert (one.mean, one.low, one.high) == pytest.approx((2 / 3, 2 / 3 * 0.025, 1 - 1 / 3 * 0.025))
    equal = avg_at_k({str(n): [1.0, 0.0] for n in range(7)}, seed=0)
    assert (equal.mean, equal.low, equal.high) == pytest.approx((0.5, 0.5 * 0.025 ** (1 / 7), 1 - 0.5 * 0.025 ** (1 / 7)))


def test_only_the_seed_decides() -> None:
    rewards = {str(n): [n / 40, 1 / (n + 1)] for n in range(40)}
    backwards = dict(reversed(rewards.items()))
    assert avg_at_k(rewards, seed=1) == avg_at_k(backwards, seed=1)
    assert avg_at_k(rewards, seed=1) != avg_at_k(rewards, seed=2)


def test_samples_of_one_problem_are_not_independent_evidence() -> None:
    """Problems solved always or never: 64 samples of each tell no more than one."""
    once = avg_at_k({str(n): [float(n < 15)] for n in range(30)}, seed=0)
    often = avg_at_k({str(n): [float(n < 15)] * 64 for n in range(30)}, seed=0)
    assert (once.low, once.high) == (often.low, often.high)
    # As wide as for 15 of 30 coin tosses: Clopper and Pearson have [.313, .687], Wilson [.332, .668].
    assert (often.low, often.high) == pytest.approx((0.33, 0.67), abs=0.02)


def test_the_interval_covers_the_truth_about_95_times_in_100_and_the_naive_one_does_not() -> None:
    """A small part of the study, with its code: shapes on both sides and with a long tail."""
    for shape in ("uniform", "very hard", "very easy"):
        found = simulate(*SHAPES[shape], benchmarks=60, problems=30, samples=16, seed=3)
        # Four standard errors of a share of .95 in 60.
        assert 0.837 <= found["ours"] <= 1.0
        assert found["naive"] < 0.8


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=5), min_size=1, max_size=12), st.integers(0, 9))
def test_the_interval_holds_the_mean_and_stays_in_range(rewards: list[list[float]], seed: int) -> None:
    estimate = avg_at_k({str(n): values for n, values in enumerate(rewards)}, seed, resamples=500)
    assert 0.0 <= estimate.low <= estimate.mean <= estimate.high <= 1.0


def test_many_problems_are_resampled_in_pieces() -> None:
    estimate = avg_at_k({str(n): [float(n % 2)] for n in range(3000)}, seed=0, resamples=1000)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * 0.5 / 3000**0.5, rel=0.1)


@pytest.mark.parametrize(
    ("rewards", "named"),
    [
        ({}, "problems"),
        ({"a": []}, "'a'"),
        ({"a": [1.0], "b": [float("nan")]}, "'b'"),
        ({"a": [1.5]}, r"'a'.*\b0\b.*\b1\b"),
    ],
)
def test_nothing_to_average_is_an_error(rewards: dict[str, list[float]], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        avg_at_k(rewards, seed=0)


@pytest.mark.parametrize("samples", [1, 4, 6])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(samples: int) -> None:
    for correct in range(samples + 1):
        outcomes = [1] * correct + [0] * (samples - correct)
        for k in range(1, samples + 1):
            subsets = [any(subset) for subset in itertools.combinations(outcomes, k)]
            assert pass_at_k(samples, correct, k) == pytest.approx(sum(subsets) / len(subsets))


@pytest.mark.parametrize(
    ("samples", "correct", "k", "named"),
    [(4, 5, 1, "correct"), (4, -1, 1, "correct"), (4, 2, 5, "k"), (4, 2, 0, "k")],
)
def test_pass_at_k_refuses_impossible_counts(samples: int, correct: int, k: int, named: str) -> None:
    given = {"correct": correct, "k": k}[named]
    with pytest.raises(ValueError, match=rf"\b{named}\b.*\b{samples}\b.*(?<!\d){given}\b"):
        pass_at_k(samples, correct, k)

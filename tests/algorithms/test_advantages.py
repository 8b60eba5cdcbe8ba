from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aster.algorithms.advantages import group_advantages

groups = st.lists(st.floats(-10, 10, allow_subnormal=False), min_size=2, max_size=16)


def test_a_group_by_hand() -> None:
    # mean 1/4; std with K - 1: sqrt((9/16 + 3 * 1/16) / 3) = 1/2
    np.testing.assert_allclose(group_advantages([1, 0, 0, 0]), [1.5, -0.5, -0.5, -0.5], rtol=1e-5)
    np.testing.assert_allclose(group_advantages([1, 0, 0, 0], normalize_std=False), [0.75, -0.25, -0.25, -0.25])


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, -0.3])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 16])
def test_equal_rewards_carry_no_signal_at_all(reward: float, size: int) -> None:
    assert group_advantages([reward] * size).tolist() == [0.0] * size
    assert group_advantages([reward] * size, normalize_std=False).tolist() == [0.0] * size


@settings(max_examples=100, deadline=None)
@given(groups, st.booleans())
def test_advantages_sum_to_zero_and_keep_the_order(rewards: list[float], normalize_std: bool) -> None:
    advantages = group_advantages(rewards, normalize_std)
    assert advantages.shape == (len(rewards),)
    assert abs(advantages.sum()) < 1e-8
    order = np.argsort(rewards, kind="stable")
    assert (np.diff(advantages[order]) >= 0).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 1), min_size=2, max_size=16), st.floats(0.5, 100), st.floats(-100, 100))
def test_scale_and_shift_of_the_rewards_do_not_matter(rewards: list[int], scale: float, shift: float) -> None:
    np.testing.assert_allclose(
        group_advantages([scale * r + shift for r in rewards]), group_advantages(rewards), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("rewards", [[], [1.0, float("nan")], [float("inf"), 0.0]])
def test_what_is_no_group_is_refused(rewards: list[float]) -> None:
    with pytest.raises(ValueError, match="reward"):
        group_advantages(rewards)

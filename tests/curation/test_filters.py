"""The funnel: which trajectories teach, and how many each filter leaves."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from aster.core.types import CallStatus, ToolCall, Trajectory
from aster.curation import Funnel, curate


def attempt(name: str, *statuses: CallStatus, reward: float = 1.0) -> Trajectory:
    """A trajectory with one turn of tool calls."""
    trajectory = Trajectory(name, 0, 0, reward=reward)
    trajectory.append("assistant", [1], [0.0]).calls += [ToolCall("1", status, "1", 0.0) for status in statuses]
    return trajectory


OK = CallStatus.OK


def names(kept: list[Trajectory]) -> list[str]:
    return [trajectory.problem_id for trajectory in kept]


def test_every_filter_has_its_count() -> None:
    attempts = [
        attempt("good", OK, OK),
        attempt("wrong", OK, OK, reward=0.0),
        attempt("failed", OK, CallStatus.ERROR),
        attempt("late", OK, CallStatus.TIMEOUT),
        attempt("dead", OK, CallStatus.CRASHED),
        attempt("garbled", OK, OK, CallStatus.MALFORMED),
        attempt("few", OK),
        attempt("many", OK, OK, OK, OK),
        attempt("more", OK, OK, OK),
    ]
    kept, funnel = curate(attempts, 2, 3, None, 0)
    assert names(kept) == ["good", "more"]
    assert funnel == [
        Funnel("attempts", 9),
        Funnel("answer verified", 8),
        Funnel("every call succeeded", 4),
        Funnel("2 to 3 tool calls", 2),
    ]


def test_a_band_may_be_open() -> None:
    attempts = [attempt(str(count), *[OK] * count) for count in range(6)]
    kept, funnel = curate(attempts, 4, None, None, 0)
    assert names(kept) == ["4", "5"]
    assert funnel[-1].filter == "at least 4 tool calls"
    assert names(curate(attempts, 0, 0, None, 0)[0]) == ["0"]


def test_partial_credit_is_not_a_verified_answer() -> None:
    assert curate([attempt("half", OK, reward=0.5)], 0, None, None, 0)[0] == []


def test_nothing_in_nothing_out() -> None:
    kept, funnel = curate([], 1, None, 5, 0)
    assert kept == []
    assert [step.kept for step in funnel] == [0, 0, 0, 0]


def test_the_choice_is_the_seeds_and_keeps_the_order() -> None:
    attempts = [attempt(str(index), OK) for index in range(40)]
    kept, funnel = curate(attempts, 1, None, 10, 7)
    assert funnel[-1] == Funnel("chosen by seed", 10)
    chosen = [int(name) for name in names(kept)]
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 10
    assert names(curate(attempts, 1, None, 10, 7)[0]) == names(kept)
    assert names(curate(attempts, 1, None, 10, 8)[0]) != names(kept)


def test_a_set_that_is_small_enough_is_not_chosen_from() -> None:
    attempts = [attempt(str(index), OK) for index in range(10)]
    kept, funnel = curate(attempts, 1, None, 10, 7)
    assert len(kept) == 10
    assert funnel[-1].filter == "at least 1 tool calls"


@settings(max_examples=60, deadline=None)
@given(
    attempts=st.lists(st.tuples(st.booleans(), st.lists(st.sampled_from(list(CallStatus)), max_size=5)), max_size=30),
    low=st.integers(0, 4),
    width=st.none() | st.integers(0, 3),
    size=st.none() | st.integers(1, 10),
    seed=st.integers(0, 5),
)
def test_the_funnel_never_widens_and_ends_with_what_is_kept(
    attempts: list[tuple[bool, list[CallStatus]]], low: int, width: int | None, size: int | None, seed: int
) -> None:
    made = [attempt(str(index), *calls, reward=float(right)) for index, (right, calls) in enumerate(attempts)]
    high = None if width is None else low + width
    kept, funnel = curate(made, low, high, size, seed)
    counts = [step.kept for step in funnel]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == len(made)
    assert counts[-1] == len(kept)
    for trajectory in kept:
        assert trajectory.reward == 1
        assert all(call.status is OK for call in trajectory.calls)
        assert low <= len(trajectory.calls) <= (99 if high is None else high)

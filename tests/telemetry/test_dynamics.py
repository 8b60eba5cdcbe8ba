"""Tool-use telemetry and the collapse alarm."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aster.telemetry import collapse_alarm, smooth, tool_use
from aster.types import CallStatus, StopReason, ToolCall, Trajectory


def with_calls(*statuses: CallStatus, tokens: int = 3, stop: StopReason | None = StopReason.ANSWERED) -> Trajectory:
    trajectory = Trajectory("p", 0, 1, stop_reason=stop)
    trajectory.append("prompt", [0] * 5)
    turn = trajectory.append("assistant", [1] * tokens, [0.0] * tokens)
    turn.calls += [ToolCall("1", status, "", 0.0) for status in statuses]
    return trajectory


def test_tool_use_counts_calls_tokens_and_stop_reasons() -> None:
    ok, error, malformed = CallStatus.OK, CallStatus.ERROR, CallStatus.MALFORMED
    described = tool_use(
        [
            with_calls(ok, ok, error, tokens=10),
            with_calls(malformed, tokens=2),
            with_calls(ok, stop=StopReason.CALL_BUDGET),
            with_calls(stop=None),
        ]
    )
    assert described == {
        "trajectories": 4,
        "calls_mean": 1.0,
        "calls_median": 0.5,
        "calls_histogram": [2, 1, 0, 1],
        "call_success": 3 / 4,
        "malformed": 1 / 5,
        "no_call": 0.5,
        "sampled_tokens": 18 / 4,
        "stop_reasons": {"answered": 2, "call_budget": 1, "unfinished": 1},
    }


def test_tool_use_without_trajectories_has_no_means() -> None:
    described = tool_use([])
    assert described["trajectories"] == 0
    assert described["calls_histogram"] == []
    assert described["calls_mean"] is described["call_success"] is described["no_call"] is None


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.sampled_from(CallStatus), max_size=8), min_size=1, max_size=20))
def test_histogram_agrees_with_the_mean(calls: list[list[CallStatus]]) -> None:
    described = tool_use(with_calls(*statuses) for statuses in calls)
    histogram = described["calls_histogram"]
    assert sum(histogram) == described["trajectories"] == len(calls)
    assert sum(number * count for number, count in enumerate(histogram)) / len(calls) == pytest.approx(described["calls_mean"])
    assert histogram[-1] > 0


levels = st.floats(0.05, 60)
noise = st.lists(st.floats(0.75, 1.25), min_size=1, max_size=80)


@settings(max_examples=200, deadline=None)
@given(levels, noise)
def test_a_noisy_flat_series_never_alarms(level: float, factors: list[float]) -> None:
    assert collapse_alarm([level * factor for factor in factors]) is None


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 100), levels | st.just(0.0))
def test_a_flat_series_never_alarms(length: int, level: float) -> None:
    assert collapse_alarm([level] * length) is None


@settings(max_examples=200, deadline=None)
@given(levels, st.integers(5, 40), st.floats(0, 0.35), st.lists(st.floats(0.8, 1.2), min_size=60, max_size=60))
def test_a_sustained_fall_below_half_alarms(level: float, before: int, rest: float, factors: list[float]) -> None:
    series = [level * factor * (1.0 if step < before else rest) for step, factor in enumerate(factors)]
    alarm = collapse_alarm(series)
    assert alarm is not None
    step = int(alarm.split("at step ")[1].split(":")[0])
    # The window has to fill and the fall has to last, so the alarm comes at most nine steps after the fall.
    assert before < step <= before + 9
    # The alarm does not depend on later steps, and is not raised before its step.
    assert collapse_alarm(series[:step]) == alarm
    assert collapse_alarm(series[: step - 1]) is None


@settings(max_examples=100, deadline=None)
@given(levels)
def test_a_fall_to_half_is_a_collapse_and_a_smaller_fall_is_not(level: float) -> None:
    assert collapse_alarm([2 * level] * 10 + [level] * 10) is not None
    assert collapse_alarm([2 * level] * 10 + [1.1 * level] * 100) is None


def test_a_short_dip_is_not_a_collapse() -> None:
    assert collapse_alarm([8.0] * 10 + [0.0] * 4 + [8.0] * 10) is None
    assert collapse_alarm([8.0] * 10 + [0.0] * 5 + [8.0] * 10) is not None


def test_the_parameters_change_the_alarm() -> None:
    series = [10.0] * 3 + [6.0] * 6
    assert collapse_alarm(series) is None
    alarm = collapse_alarm(series, baseline=3, window=1, sustained=4, share=0.7)
    assert alarm is not None
    assert all(part in alarm for part in ("step 7", "6.00", "10.00", "3 steps"))
    assert collapse_alarm(series, baseline=3, window=1, sustained=7, share=0.7) is None


def test_smooth_returns_a_trailing_mean() -> None:
    assert smooth([1, 2, 3, 4], 2) == [1, 1.5, 2.5, 3.5]
    assert smooth([], 3) == []

"""Trajectories: JSON keeps them, and spans cover the tokens."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aster.types import Budget, CallStatus, StopReason, ToolCall, Trajectory

any_text = st.text(st.characters(), max_size=12)  # lone surrogates too
calls = st.builds(
    ToolCall,
    code=any_text,
    status=st.sampled_from(CallStatus),
    output=any_text,
    seconds=st.floats(0, 1e4, allow_nan=False),
    tool=any_text,
    arguments=st.none() | st.dictionaries(any_text, st.integers() | any_text, max_size=2),
)


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    """A trajectory of any shape."""
    trajectory = Trajectory(
        draw(any_text),
        draw(st.integers(0, 99)),
        draw(st.integers(0, 2**63)),
        stop_reason=draw(st.none() | st.sampled_from(StopReason)),
        answer=draw(st.none() | any_text),
        reward=draw(st.floats(-1, 1)),
        verdict=draw(any_text),
        error=draw(any_text),
        turn_rewards=draw(st.none() | st.lists(st.floats(-1, 1), max_size=3)),
        seconds=draw(st.floats(0, 1e6)),
    )
    for _ in range(draw(st.integers(0, 4))):
        tokens = draw(st.lists(st.integers(0, 200_000), max_size=6))
        if draw(st.booleans()):
            # Micro-units: JSON keeps six decimals.
            turn = trajectory.append("assistant", tokens, [draw(st.integers(-(10**8), 0)) / 10**6 for _ in tokens])
            turn.calls += draw(st.lists(calls, max_size=3))
        else:
            trajectory.append("tool", tokens)
    return trajectory


@settings(max_examples=100, deadline=None)
@given(trajectories())
def test_json_keeps_a_trajectory(trajectory: Trajectory) -> None:
    assert Trajectory.from_json(json.loads(json.dumps(trajectory.to_json()))) == trajectory


@settings(max_examples=100, deadline=None)
@given(trajectories())
def test_turns_are_consecutive_spans_and_masks_follow_their_roles(trajectory: Trajectory) -> None:
    assert len(trajectory.loss_mask) == len(trajectory.logprobs) == len(trajectory.token_ids)
    end = 0
    for turn in trajectory.turns:
        assert turn.start == end
        end = turn.end
        assert set(trajectory.loss_mask[turn.start : turn.end]) <= {int(turn.role == "assistant")}
    assert end == len(trajectory.token_ids)
    assert trajectory.sampled_tokens == sum(turn.end - turn.start for turn in trajectory.turns if turn.role == "assistant")


def test_density_counts_calls_whose_code_ran() -> None:
    trajectory = Trajectory("p", 0, 1)
    for status in CallStatus:
        trajectory.append("assistant", [1], [0.0]).calls.append(ToolCall("", status, "", 0.0))
    assert len(trajectory.calls) == len(CallStatus)
    assert trajectory.tool_calls == len(CallStatus) - 1


def test_to_json_shares_no_turn_with_the_trajectory() -> None:
    trajectory = Trajectory("p", 0, 1)
    trajectory.append("assistant", [1], [0.0])
    record = trajectory.to_json()
    trajectory.turns[0].role = "changed"
    assert record["turns"][0]["role"] == "assistant"


def test_logprobs_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 tokens but 1 logprobs"):
        Trajectory("p", 0, 1).append("assistant", [1, 2], [0.0])


@pytest.mark.parametrize("change", [{"turns": [{"role": "tool"}]}, {"unknown": 1}, {"stop_reason": "tired"}])
def test_records_that_are_not_trajectories_are_refused(change: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Trajectory.from_json(Trajectory("p", 0, 1).to_json() | change)


@pytest.mark.parametrize(
    ("room", "turns", "seconds", "reason"),
    [
        (0, 3, 9.0, StopReason.TOKEN_BUDGET),
        (-5, 0, 0.0, StopReason.TOKEN_BUDGET),
        (1, 3, 9.0, StopReason.TURN_BUDGET),
        (1, 2, 9.0, StopReason.TIME_BUDGET),
        (1, 2, 5.0, None),
    ],
)
def test_of_several_spent_budgets_the_first_in_order_is_the_reason(
    room: int, turns: int, seconds: float, reason: StopReason | None
) -> None:
    budget = Budget(context_tokens=10, turn_tokens=5, tool_calls=2, turns=3, wall_seconds=5.0)
    assert budget.before_turn(room, turns, seconds) is reason

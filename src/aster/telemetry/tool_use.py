"""Tool use of a set of trajectories, as numbers that can be logged."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aster.types import CallStatus, Trajectory


def call_statistics(calls: Sequence[int], statuses: Mapping[CallStatus, int]) -> dict[str, Any]:
    """Describe the calls of some trajectories.

    ``calls`` is the number of calls of each trajectory whose code ran; ``statuses`` is the number of calls by status. Keys of
    the result (a share or mean of nothing is None):

        calls_mean, calls_median   calls per trajectory whose code ran (interaction density)
        calls_histogram            item n: number of trajectories with n such calls
        call_success               share of the calls whose code ran that ended without error
        malformed                  share of all calls that could not be parsed
    """
    counts = Counter(calls)
    asked = sum(statuses.values())
    malformed = statuses.get(CallStatus.MALFORMED, 0)
    return {
        "calls_mean": sum(calls) / len(calls) if calls else None,
        "calls_median": statistics.median(calls) if calls else None,
        "calls_histogram": [counts[number] for number in range(max(calls, default=-1) + 1)],
        "call_success": statuses.get(CallStatus.OK, 0) / (asked - malformed) if asked > malformed else None,
        "malformed": malformed / asked if asked else None,
    }


def tool_use(trajectories: Iterable[Trajectory]) -> dict[str, Any]:
    """Describe how trajectories used the tool.

    Keys of the result besides those of :func:`call_statistics` (a share or mean of nothing is None):

        trajectories       number of trajectories
        no_call            share of trajectories in which no code ran
        sampled_tokens     mean number of tokens that the policy sampled per trajectory
        stop_reasons       number of trajectories by stop reason
    """
    calls: list[int] = []
    sampled = 0
    statuses: Counter[CallStatus] = Counter()
    reasons: Counter[str] = Counter()
    for trajectory in trajectories:
        calls.append(trajectory.tool_calls)
        sampled += trajectory.sampled_tokens
        statuses.update(call.status for call in trajectory.calls)
        reasons[str(trajectory.stop_reason.value) if trajectory.stop_reason else "unfinished"] += 1
    return {
        "trajectories": len(calls),
        **call_statistics(calls, statuses),
        "no_call": calls.count(0) / len(calls) if calls else None,
        "sampled_tokens": sampled / len(calls) if calls else None,
        "stop_reasons": dict(sorted(reasons.items())),
    }

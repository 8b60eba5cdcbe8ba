"""Tool use of a set of trajectories, as numbers that can be logged."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable
from typing import Any

from aster.types import CallStatus, Trajectory


def tool_use(trajectories: Iterable[Trajectory]) -> dict[str, Any]:
    """Describe how trajectories used the tool.

    Keys of the result; a share or mean of nothing is None:

        trajectories       their number
        calls_mean, calls_median   tool calls per trajectory whose code ran (interaction density)
        calls_histogram    item n: number of trajectories with n such calls
        call_success       share of the calls whose code ran that ended without error
        malformed          share of all calls that could not be parsed
        no_call            share of trajectories that ran no code at all
        sampled_tokens     mean tokens the policy sampled per trajectory
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
    counts = Counter(calls)
    asked, ran = statuses.total(), statuses.total() - statuses[CallStatus.MALFORMED]
    return {
        "trajectories": len(calls),
        "calls_mean": sum(calls) / len(calls) if calls else None,
        "calls_median": statistics.median(calls) if calls else None,
        "calls_histogram": [counts[number] for number in range(max(calls, default=-1) + 1)],
        "call_success": statuses[CallStatus.OK] / ran if ran else None,
        "malformed": statuses[CallStatus.MALFORMED] / asked if asked else None,
        "no_call": counts[0] / len(calls) if calls else None,
        "sampled_tokens": sampled / len(calls) if calls else None,
        "stop_reasons": dict(sorted(reasons.items())),
    }

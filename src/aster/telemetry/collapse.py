"""The collapse alarm.

**Interaction collapse**: during RL the policy stops calling the tool. It is defined on the series c[1], c[2], ... of the mean
tool calls per trajectory of each RL step:

    level   = mean of c[1] ... c[baseline]                    at the start of RL
    s[t]    = mean of c[t - window + 1] ... c[t]              the smoothed series
    alarm   at the first t > baseline at which s has been at most ``share`` of the level for ``sustained`` steps in a row

A policy that never called the tool (level 0) does not collapse.
"""

from __future__ import annotations

from collections.abc import Sequence

from aster.terminal import say

BASELINE_STEPS = 5
WINDOW_STEPS = 5
SUSTAINED_STEPS = 5
SHARE = 0.5


def smooth(values: Sequence[float], window: int = WINDOW_STEPS) -> list[float]:
    """Return the mean of the last ``window`` values at each position (fewer at the beginning)."""
    smoothed = []
    for end in range(1, len(values) + 1):
        recent = values[max(0, end - window) : end]
        smoothed.append(sum(recent) / len(recent))
    return smoothed


def collapse_alarm(
    calls_per_step: Sequence[float],
    baseline: int = BASELINE_STEPS,
    window: int = WINDOW_STEPS,
    sustained: int = SUSTAINED_STEPS,
    share: float = SHARE,
) -> str | None:
    """Return the alarm's message, or None if tool use has not collapsed or there are too few steps to tell.

    ``calls_per_step`` is the mean number of tool calls per trajectory of each RL step, from the first. The module's docstring
    defines the alarm. ``baseline``, ``window`` and ``sustained`` are in steps; ``share`` is a fraction of the level.
    """
    if len(calls_per_step) < baseline + sustained:
        return None
    level = sum(calls_per_step[:baseline]) / baseline
    if level <= 0:
        return None
    low = 0
    for index, value in enumerate(smooth(calls_per_step, window)):
        low = low + 1 if index >= baseline and value <= share * level else 0
        if low == sustained:
            return (
                f"interaction collapse at step {index + 1}: tool calls per trajectory fell to {value:.2f}, "
                f"from {level:.2f} over the first {baseline} steps"
            )
    return None


class CollapseWatch:
    """Prints the alarm's message once, at the step at which tool use has collapsed."""

    def __init__(self, calls_per_step: Sequence[float]) -> None:
        """``calls_per_step`` is the mean number of tool calls per trajectory of each finished step of a resumed run."""
        self._calls = list(calls_per_step)
        self._reported = collapse_alarm(self._calls) is not None

    def see(self, calls: float) -> None:
        """Add the mean number of tool calls per trajectory of the next step."""
        self._calls.append(calls)
        message = None if self._reported else collapse_alarm(self._calls)
        if message is not None:
            self._reported = True
            say(f"rl: {message}")

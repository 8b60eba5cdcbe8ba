"""Measure how trajectories use the tool, and raise an alarm if tool use collapses during RL. Pure functions, no torch."""

from aster.telemetry.collapse import collapse_alarm, smooth
from aster.telemetry.tool_use import call_statistics, tool_use

__all__ = ["call_statistics", "collapse_alarm", "smooth", "tool_use"]

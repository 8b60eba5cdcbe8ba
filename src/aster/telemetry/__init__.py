"""How tool use moves under training: telemetry of trajectories and the collapse alarm. Pure functions, no torch."""

from aster.telemetry.collapse import collapse_alarm, smooth
from aster.telemetry.tool_use import tool_use

__all__ = ["collapse_alarm", "smooth", "tool_use"]

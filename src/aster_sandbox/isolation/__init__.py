"""Isolation of sessions: the levels, the probe of what this machine supports, and the mechanisms. See docs/sandbox.md.

The supervisor calls ``probe``, ``choose`` and ``make_plan``. The zygote calls ``enter_zygote``, ``make_scratch`` and
``fork_session``. Each new session process calls ``confine_session``. The package uses only the standard library and ctypes.
"""

from aster_sandbox.isolation.confine import (
    confine_session,
    die_with_parent,
    enter_zygote,
    fork_session,
    make_scratch,
    remove_scratch,
)
from aster_sandbox.isolation.levels import Level, Limits, Plan
from aster_sandbox.isolation.machine import Report, choose, make_plan, probe

__all__ = [
    "Level",
    "Limits",
    "Plan",
    "Report",
    "choose",
    "confine_session",
    "die_with_parent",
    "enter_zygote",
    "fork_session",
    "make_plan",
    "make_scratch",
    "probe",
    "remove_scratch",
]

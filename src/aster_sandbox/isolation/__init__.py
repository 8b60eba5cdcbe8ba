"""How sessions are shut in: levels, what this machine allows of them, and the walls themselves. See docs/sandbox.md.

The supervisor calls ``probe``, ``choose`` and ``make_plan``; the zygote ``enter_zygote``, ``make_scratch`` and
``fork_session``; a new session's process ``confine_session``. Everything is the standard library and ctypes: no compiled
extension and no program of the system is needed.
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

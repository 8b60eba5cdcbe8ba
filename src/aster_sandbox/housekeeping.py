"""What the sandbox does by itself: end the processes of idle sessions, and make room when memory runs short."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Set
from typing import TYPE_CHECKING

from aster_sandbox.pressure import Admission
from aster_sandbox.runner import Runner
from aster_sandbox.session import Session

if TYPE_CHECKING:
    from aster_sandbox.settings import Settings

LOOK_SECONDS = 0.25
AT_ONCE = 8
"""Idle sessions that are reclaimed between two looks at a short memory."""
MAX_PROCESSES = 512
"""So many sessions may keep their processes while they are idle. Of more, those that are idle for longest lose them."""
MIN_IDLE_SECONDS = 5.0
"""A session beyond that number keeps its processes so long after its last cell all the same."""
RECENT_SECONDS = 1.0
"""A session that ran a cell less than that ago is not idle."""
MIN_VICTIM_MB = 32.0
"""A session that holds less is not to blame for a shortage."""
Held = Callable[[list[Runner]], Awaitable[dict[Runner, float]]]


async def run_housekeeping(sessions: Set[Session], admission: Admission, settings: Settings, held: Held) -> None:
    """Look after the sessions, for ever. ``held`` says how many MiB processes hold."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        await _evict(too_idle(sessions, settings.idle_seconds))
        with contextlib.suppress(OSError):  # no descriptor is left to look at the memory with: the next round may have one
            if admission.short():
                await free_memory(sessions, held)


def too_idle(sessions: Set[Session], idle_seconds: float) -> list[Session]:
    """Sessions whose processes can end for the moment: idle for long, or the idlest of very many."""
    now = time.monotonic()
    awake = sorted((session for session in sessions if session.runner is not None), key=_last_used)
    many = max(0, len(awake) - MAX_PROCESSES)
    return [
        session
        for place, session in enumerate(awake)
        if session.evictable
        and now - session.last_used > (min(idle_seconds, MIN_IDLE_SECONDS) if place < many else idle_seconds)
    ]


async def free_memory(sessions: Set[Session], held: Held) -> None:
    """Make room. The processes of the sessions that were idle for longest go first; where there are none, the session that
    holds most memory loses its cell."""
    now = time.monotonic()
    idle = [session for session in sessions if session.evictable and now - session.last_used > RECENT_SECONDS]
    if idle:
        await _evict(sorted(idle, key=_last_used)[:AT_ONCE])
        return
    found = {session.runner: session for session in sessions if session.runner is not None and not session.runner.doomed}
    sizes = await held(list(found))
    if sizes:
        runner, most = max(sizes.items(), key=lambda each: each[1])
        session = found[runner]
        if most >= MIN_VICTIM_MB and session.runner is runner:
            session.kill_for_memory(f"was killed because the machine ran short of memory (the session held {most:.0f} MB)")


async def _evict(sessions: list[Session]) -> None:
    await asyncio.gather(*(session.evict() for session in sessions))


def _last_used(session: Session) -> float:
    return session.last_used

"""Background housekeeping of a sandbox: evict idle sessions' processes, and free memory when it runs short."""

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
"""How many idle sessions are evicted at a time while memory is short."""
MAX_PROCESSES = 512
"""So many idle sessions may keep their processes. If there are more, the longest idle ones lose theirs."""
MIN_IDLE_SECONDS = 5.0
"""A session beyond that number keeps its process at least so long after its last cell."""
RECENT_SECONDS = 1.0
"""While memory is short, a session counts as idle so long after its last cell."""
MIN_VICTIM_MB = 32.0
"""A session that holds less than this is not killed for memory."""
Held = Callable[[list[Runner]], Awaitable[dict[Runner, float]]]


async def run_housekeeping(sessions: Set[Session], admission: Admission, settings: Settings, held: Held) -> None:
    """Run housekeeping forever. ``held`` returns the MiB that processes hold."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        await _evict(too_idle(sessions, settings.idle_seconds))
        with contextlib.suppress(OSError):  # no descriptor is left to read /proc; try again in the next round
            if admission.short():
                await free_memory(sessions, held)


def too_idle(sessions: Set[Session], idle_seconds: float) -> list[Session]:
    """The sessions to evict: idle for ``idle_seconds``, or the longest idle ones if very many have processes."""
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
    """Evict the longest idle sessions. If no session is idle, kill the process of the one that holds most memory."""
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

"""What the sandbox does by itself: end the processes of idle sessions, and make room when memory runs short."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Set
from typing import TYPE_CHECKING

from aster.sandbox.pool import Pool
from aster.sandbox.pressure import Admission, held_mb
from aster.sandbox.protocol import SandboxFailure
from aster.sandbox.session import Session

if TYPE_CHECKING:
    from aster.core import recipe

LOOK_SECONDS = 0.25
AT_ONCE = 8
"""Idle sessions that are reclaimed between two looks at a short memory."""
AWAKE = 512
"""So many sessions may keep their processes while they are idle. Of more, those that are idle for longest lose them."""
AWAKE_SECONDS = 5.0
"""A session beyond that number keeps its processes so long after its last cell all the same."""
RESTED_SECONDS = 1.0
"""A session that ran a cell less than that ago is not idle."""
WHO_SECONDS = 0.05
"""Time for keepers to say who they are."""
WORTH_MB = 32.0
"""A session that holds less is not to blame for a shortage."""


async def keep_house(sessions: Set[Session], pool: Pool, admission: Admission, settings: recipe.Sandbox) -> None:
    """Look after the sessions, for ever."""
    last_look = time.monotonic()
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(pool.wanting.wait(), LOOK_SECONDS)
        if time.monotonic() - last_look >= LOOK_SECONDS:
            last_look = time.monotonic()
            await _reclaim(too_idle(sessions, settings.idle_seconds))
        try:
            short = admission.short()
        except OSError:  # no descriptor is left to read that with
            await asyncio.sleep(LOOK_SECONDS)
            continue
        if short:
            await relieve(sessions, pool)
        else:
            with contextlib.suppress(SandboxFailure):  # the next session that needs a place says so
                await pool.prepare()


def too_idle(sessions: Set[Session], idle_seconds: float) -> list[Session]:
    """Sessions that need no processes for the moment: idle for long, or the idlest of very many."""
    now = time.monotonic()
    awake = sorted((session for session in sessions if session.keeper is not None), key=lambda session: session.last_used)
    many = max(0, len(awake) - AWAKE)
    return [
        session
        for place, session in enumerate(awake)
        if now - session.last_used > (min(idle_seconds, AWAKE_SECONDS) if place < many else idle_seconds)
    ]


async def relieve(sessions: Set[Session], pool: Pool) -> None:
    """Make room. Places without a session go first, then the processes of the sessions that were idle for longest; where
    there are none, the session that holds most memory loses its cell."""
    now = time.monotonic()
    idle = [session for session in sessions if now - session.last_used > RESTED_SECONDS]
    if pool.clear() or await _reclaim(sorted(idle, key=lambda session: session.last_used)[:AT_ONCE]):
        return
    for session in sessions:
        if session.keeper is not None and session.keeper.pid is None:
            session.keeper.tell("who")
    await asyncio.sleep(WHO_SECONDS)
    pids = {pid for session in sessions if (pid := _pid(session)) is not None}
    # For hundreds of sessions, thousands of files in /proc: cells go on meanwhile.
    held: dict[int | None, float] = await asyncio.to_thread(lambda: {pid: held_mb(pid) for pid in pids})
    # Branches are counted together: those that can lose a cell come before those that lost theirs already.
    found = [(held.get(_pid(session), 0.0), session.running, session) for session in sessions]
    if found:
        most, _, session = max(found, key=lambda each: each[:2])
        if most >= WORTH_MB:
            session.shed(f"was killed because the machine ran short of memory (the session held {most:.0f} MB)")


def _pid(session: Session) -> int | None:
    """Of its keeper, where that has said who it is."""
    return session.keeper.pid if session.keeper is not None else None


async def _reclaim(sessions: list[Session]) -> int:
    """End the processes of those that replay brings back. Returns how many that were."""
    chosen = [session for session in sessions if session.reclaimable]
    await asyncio.gather(*(session.reclaim() for session in chosen))
    return len(chosen)

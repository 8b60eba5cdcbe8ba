"""How much memory the machine has left, and how much of it a session holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from aster.sandbox.protocol import SandboxFailure

CGROUPS = Path("/sys/fs/cgroup")
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
"""Seconds between two tries to get a process."""
PATIENCE_SECONDS = 300.0
"""Waiting for memory ends then with a SandboxFailure."""
FRESH_SECONDS = 0.1
"""So long a reading of the machine's memory is good."""


class Backoff:
    """Longer and longer pauses, while a process cannot be had."""

    def __init__(self) -> None:
        self._pause = FIRST_PAUSE
        self._waited = 0.0

    async def wait(self, reason: str) -> None:
        """Wait a little. SandboxFailure after PATIENCE_SECONDS of that."""
        if self._waited > PATIENCE_SECONDS:
            raise SandboxFailure(f"for {self._waited:.0f} s no process could be started for a session: {reason}")
        await asyncio.sleep(self._pause)
        self._waited += self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)


class Admission:
    """The queue for memory: who wants a process waits here, first come, first served, while too little is left."""

    def __init__(self, reserve_mb: int) -> None:
        self._reserve_mb = reserve_mb
        self._turn = asyncio.Lock()
        self._read_at = float("-inf")
        self._short = False

    def short(self) -> bool:
        """Whether less than the reserve is left."""
        now = time.monotonic()
        if now - self._read_at > FRESH_SECONDS:
            self._read_at = now
            self._short = available_mb() < self._reserve_mb
        return self._short

    async def wait(self, idle: Callable[[], bool], wanted: Callable[[], bool]) -> None:
        """Return when there is memory, or when no session has a process (``idle``): then waiting would free none.

        SandboxFailure after PATIENCE_SECONDS, or where the process is not ``wanted`` any more.
        """
        async with self._turn:
            began = time.monotonic()
            pause = FIRST_PAUSE
            while wanted() and self.short() and not idle():
                if time.monotonic() - began > PATIENCE_SECONDS:
                    raise SandboxFailure(
                        f"for {PATIENCE_SECONDS:g} s the machine has had less than {self._reserve_mb} MB of memory left; "
                        "lower sandbox.sessions, or sandbox.reserve_mb"
                    )
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        if not wanted():
            raise SandboxFailure("the session is closed")


def available_mb() -> float:
    """Memory that can be had without swapping: the machine's, or this control group's where that has less."""
    with open("/proc/meminfo") as file:
        machine = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:")) / 1024
    return min(machine, _control_group_mb())


def _control_group_mb() -> float:
    try:
        path = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
        limit = (CGROUPS / path / "memory.max").read_text().strip()
        if limit == "max":
            return float("inf")
        used = int((CGROUPS / path / "memory.current").read_text())
        statistics = (CGROUPS / path / "memory.stat").read_text().split()
        cache = int(statistics[statistics.index("inactive_file") + 1])
    except (OSError, ValueError):  # no control groups of version 2, or none with a limit
        return float("inf")
    return (int(limit) - used + cache) / 2**20


def held_mb(keeper: int) -> float:
    """Anonymous memory of all processes of a keeper's sessions, as far as each has more than the keeper itself."""
    shared = _anonymous_mb(keeper)
    total = 0.0
    todo = _children(keeper)
    while todo:
        process = todo.pop()
        total += max(0.0, _anonymous_mb(process) - shared)
        todo += _children(process)
    return total


def _anonymous_mb(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/status").read_text().partition("RssAnon:")[2].split()[0]) / 1024
    except (OSError, IndexError):  # it ended meanwhile
        return 0.0


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    except OSError:  # it ended meanwhile
        return []

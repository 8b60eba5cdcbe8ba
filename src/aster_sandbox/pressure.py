"""How much memory the machine has left, and how much of it a session holds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path

from aster_sandbox.errors import SandboxFailure

CGROUPS = Path("/sys/fs/cgroup")
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
"""Seconds between two tries to get a process."""
PATIENCE_SECONDS = 300.0
"""Waiting for memory ends then with a SandboxFailure."""
UNSEEN_MB = 16.0
"""Reckoned for each process that a session has beside its first: descriptors full of unread data are the usual way to hold
kernel memory that nobody is charged for, and each process can have as many."""
FRESH_SECONDS = 0.1
"""So long a reading of the machine's memory is good."""


class Backoff:
    """Longer and longer pauses, while a process cannot be had."""

    def __init__(self) -> None:
        self._pause = FIRST_PAUSE
        self._deadline = time.monotonic() + PATIENCE_SECONDS

    async def wait(self, trouble: str, event: asyncio.Event | None = None) -> None:
        """Wait a little, or until an event. SandboxFailure when PATIENCE_SECONDS have gone by since this was made: for so long,
        ``trouble``."""
        if time.monotonic() > self._deadline:
            raise SandboxFailure(f"for {PATIENCE_SECONDS:g} s {trouble}")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._pause):
                await (event or asyncio.Event()).wait()
        self._pause = min(2 * self._pause, LONGEST_PAUSE)


class Admission:
    """The queue for memory: who wants a process waits here, first come, first served, while too little is left."""

    def __init__(self, reserve_mb: int) -> None:
        self._reserve_mb = reserve_mb
        self._queue: list[asyncio.Event] = []
        """One for each that waits. It is set for the first."""
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
        backoff = Backoff()
        first = asyncio.Event()
        self._queue.append(first)
        self._queue[0].set()
        try:
            while wanted() and not (first.is_set() and (idle() or not self.short())):
                await backoff.wait(
                    f"the machine has had less than {self._reserve_mb} MB of memory left; "
                    "lower sandbox.sessions, or sandbox.reserve_mb",
                    None if first.is_set() else first,
                )
        finally:
            self._queue.remove(first)
            if self._queue:
                self._queue[0].set()
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


def held_mb(runners: Collection[int], warm: int | None) -> dict[int, float]:
    """MiB that each of these processes holds, with all processes of its process session: anonymous memory, as far as each has
    more than the warm parent, whose pages they share, and for each further process what the kernel may hold for it unseen.

    That is all that can be seen without a control group: files on a tmpfs and the buffers of sockets are charged to nobody.
    """
    shared = _anonymous_mb(warm) if warm is not None else 0.0
    held = dict.fromkeys(runners, 0.0)
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as file:
                session = int(file.read().rpartition(")")[2].split()[3])
        except (OSError, IndexError):  # it ended meanwhile
            continue
        if session in held:
            held[session] += max(0.0, _anonymous_mb(int(entry)) - shared)
            held[session] += 0.0 if session == int(entry) else UNSEEN_MB
    return held


def _anonymous_mb(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/status").read_text().partition("RssAnon:")[2].split()[0]) / 1024
    except (OSError, IndexError):  # it ended meanwhile
        return 0.0

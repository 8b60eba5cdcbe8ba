"""How much memory the machine has free and how much each session holds; the queue of sessions that wait for memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path

from aster_sandbox.cgroups import read_memory_stat
from aster_sandbox.errors import SandboxFailure

CGROUPS = Path("/sys/fs/cgroup")
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
"""Shortest and longest pause between attempts to start a process, in seconds."""
PATIENCE_SECONDS = 300.0
"""After so long, waiting for memory ends with a SandboxFailure."""
UNSEEN_MB = 16.0
"""Kernel memory assumed for each further process of a session: sockets and pipes full of unread data hold memory that counts
for no process, and each process can have as many as the first."""
FRESH_SECONDS = 0.1
"""How long a reading of the machine's memory is used."""


class Backoff:
    """Pauses between attempts to start a process; each is twice as long as the one before."""

    def __init__(self) -> None:
        self._pause = FIRST_PAUSE
        self._deadline = time.monotonic() + PATIENCE_SECONDS

    async def wait(self, trouble: str, event: asyncio.Event | None = None) -> None:
        """Pause, or wait until an event. Raises SandboxFailure with the text ``trouble`` when PATIENCE_SECONDS have passed
        since this object was made."""
        if time.monotonic() > self._deadline:
            raise SandboxFailure(f"for {PATIENCE_SECONDS:g} s {trouble}")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._pause):
                await (event or asyncio.Event()).wait()
        self._pause = min(2 * self._pause, LONGEST_PAUSE)


class Admission:
    """The queue in which new processes wait, first come, first served, while too little memory is free."""

    def __init__(self, reserve_mb: int) -> None:
        self._reserve_mb = reserve_mb
        self._queue: list[asyncio.Event] = []
        """One event for each waiting process; the first one is set."""
        self._read_at = float("-inf")
        self._short = False

    def short(self) -> bool:
        """Whether less memory than the reserve is free."""
        now = time.monotonic()
        if now - self._read_at > FRESH_SECONDS:
            self._read_at = now
            self._short = available_mb() < self._reserve_mb
        return self._short

    async def wait(self, idle: Callable[[], bool], wanted: Callable[[], bool]) -> None:
        """Wait until there is memory, or until no session has a process (``idle``), because then waiting frees none.

        Raises SandboxFailure after PATIENCE_SECONDS, or if the process is no longer ``wanted``.
        """
        backoff = Backoff()
        first = asyncio.Event()
        self._queue.append(first)
        self._queue[0].set()
        try:
            while wanted() and not (first.is_set() and (idle() or not self.short())):
                await backoff.wait(
                    f"less than sandbox.reserve_mb ({self._reserve_mb} MiB) of memory has been free; "
                    "lower sandbox.sessions or sandbox.reserve_mb",
                    None if first.is_set() else first,
                )
        finally:
            self._queue.remove(first)
            if self._queue:
                self._queue[0].set()
        if not wanted():
            raise SandboxFailure("the session is closed")


def available_mb() -> float:
    """Memory that is available without swapping, in MiB: the machine's, or this control group's if that is less."""
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
        cache = read_memory_stat(CGROUPS / path, "inactive_file")
    except (OSError, ValueError):  # no control groups of version 2, or no limit
        return float("inf")
    return (int(limit) - used + cache) / 2**20


def held_mb(runners: Collection[int], warm: int | None) -> dict[int, float]:
    """Estimate the memory, in MiB, that each of these process sessions (by the leader's pid) holds.

    Counts the anonymous memory of each process beyond that of the zygote (pid ``warm``), whose pages they share, and UNSEEN_MB
    for each process other than the leader. Without control groups more is not visible: tmpfs files and socket buffers count for
    no process.
    """
    shared = _anonymous_mb(warm) if warm is not None else 0.0
    held = dict.fromkeys(runners, 0.0)
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as file:
                session = int(file.read().rpartition(")")[2].split()[3])
        except (OSError, IndexError):  # it has ended in the meantime
            continue
        if session in held:
            held[session] += max(0.0, _anonymous_mb(int(entry)) - shared)
            held[session] += 0.0 if session == int(entry) else UNSEEN_MB
    return held


def _anonymous_mb(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/status").read_text().partition("RssAnon:")[2].split()[0]) / 1024
    except (OSError, IndexError):  # it has ended in the meantime
        return 0.0

"""Memory of processes, as the kernel counts it. MiB everywhere."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict


def pss_below() -> float:
    """Of all processes below this one together. PermissionError where they may not be looked at."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{name}/stat") as file:
                parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
    children = defaultdict(list)
    for process, parent in parents.items():
        children[parent].append(process)
    found: list[int] = []
    below = [os.getpid()]
    while below:
        some = children[below.pop()]
        found += some
        below += some
    return sum(map(pss, found))


def pss(process: int) -> float:
    """Of one process: its own pages, and its share of those it has in common with others. One that has ended has none."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{process}/smaps_rollup") as file:
        return next((int(line.split()[1]) for line in file if line.startswith("Pss:")), 0) / 1024
    return 0.0


def available() -> float:
    """What the machine could still give."""
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:")) / 1024

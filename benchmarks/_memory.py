"""Memory of processes, as the kernel counts it. MiB everywhere."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


_libc = ctypes.CDLL(None)


def pss_below() -> float:
    """Of all processes below this one together. PermissionError where they may not be looked at.

    Processes that share one address space, as those of ``CLONE_VM`` do, each report all of it; it counts once.
    """
    total = 0.0
    spaces: dict[str, list[int]] = defaultdict(list)
    for process in processes_below():
        alike = spaces[_size(process)]
        if not any(_share_memory(process, other) for other in alike):
            alike.append(process)
            total += pss(process)
    return total


def _size(process: int) -> str:
    """Of its address space, in pages: the same for all who share it. Empty where it has ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{process}/statm") as file:
        return file.read().split()[0]
    return ""


def _share_memory(process: int, other: int) -> bool:
    """Whether two processes have one address space (kcmp(2), KCMP_VM). False where that cannot be asked."""
    number = {"x86_64": 312, "aarch64": 272}.get(platform.machine())
    return number is not None and _libc.syscall(number, process, other, 1, 0, 0) == 0


def processes_below() -> list[int]:
    """The processes that this one started, and those that they did."""
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
    return found


def pss(process: int) -> float:
    """Of one process: its own pages, and its share of those it has in common with others. One that has ended has none."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{process}/smaps_rollup") as file:
        return next((int(line.split()[1]) for line in file if line.startswith("Pss:")), 0) / 1024
    return 0.0


def available() -> float:
    """What the machine could still give."""
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:")) / 1024


def resident(device: torch.device) -> float:
    """What this process holds now: in memory, or for a GPU what torch has allocated there."""
    return _own("VmRSS") if device.type == "cpu" else _allocated(device, "allocated_bytes.all.current")


def reset_peak(device: torch.device) -> None:
    """Forget the peak so far."""
    if device.type == "cpu":
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    else:
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> float:
    """The most of :func:`resident` since :func:`reset_peak`."""
    return _own("VmHWM") if device.type == "cpu" else _allocated(device, "allocated_bytes.all.peak")


def _own(field: str) -> float:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(f"{field}:")) / 1024


def _allocated(device: torch.device, statistic: str) -> float:
    import torch

    return float(torch.cuda.memory_stats(device)[statistic]) / (1 << 20)

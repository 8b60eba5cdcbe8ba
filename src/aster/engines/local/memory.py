"""Memory: how much was used, and keeping the C allocator from giving it back between training steps.

By default glibc hands every large tensor back to the kernel and asks for fresh, zeroed pages the next time. On a small model in
a virtual machine that can cost more than the arithmetic: a training process was seen at 100% system time, and at 3% with its
pages kept. ``benchmarks/train_step.py --default-malloc`` compares.
"""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from pathlib import Path

import torch

# The numbers of glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8


def keep_freed_memory() -> None:
    """Set glibc's malloc to reuse freed blocks. Does nothing on other C libraries."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    # One arena: the torch thread's blocks come from the heap that the settings below are about.
    mallopt(M_ARENA_MAX, 1)
    # Blocks of a size that a small model never asks for go back: their arithmetic costs more than their pages, and they would
    # fragment the heap.
    mallopt(M_MMAP_THRESHOLD, 4 << 20)
    mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
    mallopt(M_TOP_PAD, 64 << 20)


def give_back(device: torch.device) -> None:
    """Give a GPU's memory that torch keeps for later back to its driver, for other processes. Nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


class PeakMemory:
    """The most memory in use since :meth:`restart`: a GPU's, or that of the whole process on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def restart(self) -> None:
        """Begin to measure anew. Where the kernel does not allow it, the peak stays that of the process's whole life."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    def mebibytes(self) -> float:
        """The peak, in MiB."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / (1 << 20)
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
        except (OSError, StopIteration):  # not Linux
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1024)

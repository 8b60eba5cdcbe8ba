"""Memory: how much was used, and settings of the C allocator that keep freed memory for the next training step.

By default glibc returns every large tensor to the kernel and asks for new, zeroed pages the next time. With a small model on a
virtual machine that can cost more than the arithmetic: a training process spent 100% of its time in the kernel, and 3% with
these settings. ``benchmarks/train_step.py --default-malloc`` compares.
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
    # One arena: the settings below hold for the main heap only, and torch's thread would have another.
    mallopt(M_ARENA_MAX, 1)
    # Blocks of 4 MiB and more are still returned. Small models have none; in larger ones the arithmetic on such a block costs
    # more than its pages, and the blocks would fragment the heap.
    mallopt(M_MMAP_THRESHOLD, 4 << 20)
    mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
    mallopt(M_TOP_PAD, 64 << 20)


def give_back(device: torch.device) -> None:
    """Return the GPU memory that torch keeps unused to the driver, for other processes. Does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


class PeakMemory:
    """The most memory in use since :meth:`restart`: of torch on a GPU, of the whole process on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def restart(self) -> None:
        """Start to measure. Where the kernel does not allow that on a CPU, the peak is that since the process began."""
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

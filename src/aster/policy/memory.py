"""Make the C allocator keep memory between training steps.

By default glibc hands every large tensor back to the kernel and asks for fresh, zeroed pages the next time. On a small model in
a virtual machine that can cost more than the arithmetic: a training process was seen at 100% system time, and at 3% with its
pages kept. ``benchmarks/trainer.py --default-malloc`` compares.
"""

from __future__ import annotations

import ctypes
import sys

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
    # A signed 32-bit argument: 1 GiB is the largest round value.
    mallopt(M_MMAP_THRESHOLD, 1 << 30)
    mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
    mallopt(M_TOP_PAD, 64 << 20)

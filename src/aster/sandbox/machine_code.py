"""Two routines of machine code for x86-64, for what must not be interrupted by Python: calls to the kernel in a row, and the
dropping of pages. ``machine_code_x86_64.s`` is their source.

Python changes its own memory with each step that it takes. Memory cannot be moved, or compared and dropped, by Python code that
lies in it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Sequence

from aster.sandbox.isolation.syscalls import MACHINE, libc

CODE = bytes.fromhex(
    "5341544889fb4989f44d85e4742c488b03488b7b08488b7310488b53184c8b53204c8b43284c8b4b300f05483b433875094883c34049ffcc"
    "ebcf4c89e0415c5bc366662e0f1f8400000000000f1f40005355415441554156415757564889fb4989f431ed4d85e40f8488000000488b3b"
    "488b7318ba16000000b81c0000000f054885c075644531ed4d89ee4c3b731873134d89f7e8bf00000075094981c600100000ebe74c89f64c"
    "29ee74304801f5488b3b4c01efba04000000b81c0000000f05488b7b104c89e848c1e80cc60407014981c5001000004d39f572e94d8dae00"
    "1000004c3b6b18729f4883c32049ffcce96fffffff415c5b4d85e4744d4531ed488b7b104c89e848c1e80c803c07007423c60407004d89ef"
    "e83b0000007415488b3b4c01ef488b73084c01eeb900020000f348a54981c5001000004c3b6b1872bf4883c32049ffccebae4889e8415f41"
    "5e415d415c5d5bc3488b3b4c01ff488b73084c01fe31c9f30f6f040ff30f6f4c0f10f30f6f540f20f30f6f5c0f30660f74040e660f744c0e"
    "10660f74540e20660f745c0e30660fdbc1660fdbd3660fdbc2660fd7c03dffff0000750b83c14081f90010000075b0c3"
)
MAKE_CALLS, DROP_EQUAL = 0, 0x50
"""Where in it the routines begin."""
PAGE = 4096
RUN = struct.Struct("4q")
ALL_SIGNALS = signal.valid_signals()
PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_NORESERVE = 2, 0x10, 0x20, 0x4000
_MAP = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_mmap = ctypes.CFUNCTYPE(ctypes.c_size_t, *_MAP, use_errno=True)(("mmap", libc))
_mprotect = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, use_errno=True)(("mprotect", libc))
_routine = ctypes.PYFUNCTYPE(ctypes.c_long, ctypes.c_size_t, ctypes.c_long)  # keeps the interpreter's lock


class Runs:
    """Pages to compare, as ``drop_equal`` takes them, in memory of their own."""

    def __init__(self, runs: Sequence[tuple[int, int, int]]) -> None:
        """``runs``: the address of pages, that of their originals, bytes."""
        self.count = len(runs)
        table = RUN.size * len(runs)
        mark = table
        size = table + sum(size for _, _, size in runs) // PAGE
        self.address = map_memory(0, max(size, 1), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        for place, (address, original, length) in enumerate(runs):
            entry = RUN.pack(address, original, self.address + mark, length)
            ctypes.memmove(self.address + RUN.size * place, entry, RUN.size)
            mark += length // PAGE


class Routines:
    """The routines, in executable memory. OSError where that cannot be had, or on another machine."""

    def __init__(self) -> None:
        if MACHINE != "x86_64" or os.sysconf("SC_PAGESIZE") != PAGE:
            raise OSError(f"not built for {MACHINE}")
        place = map_memory(0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        ctypes.memmove(place, CODE, len(CODE))
        if _mprotect(place, PAGE, PROT_READ | PROT_EXEC) != 0:
            raise OSError(ctypes.get_errno(), "no executable memory can be had")
        self._make_calls = _routine(place + MAKE_CALLS)
        self._drop_equal = _routine(place + DROP_EQUAL)

    def make_calls(self, calls: Sequence[tuple[int, ...]]) -> None:
        """Make system calls in a row: number, six arguments, the result that each must have. OSError at the first that has
        another; those after it are not made."""
        words = struct.pack(f"{8 * len(calls)}q", *(word for call in calls for word in call))
        buffer = ctypes.create_string_buffer(words, len(words))
        left = self._without_signals(self._make_calls, ctypes.addressof(buffer), len(calls))
        if left:
            number = calls[len(calls) - left][0]
            raise OSError(f"system call {number} failed, {left} calls before the last of {len(calls)}")

    def drop_equal(self, runs: Runs) -> int:
        """Drop the pages that are equal to their originals. Returns how many bytes are."""
        return self._without_signals(self._drop_equal, runs.address, runs.count)

    @staticmethod
    def _without_signals(routine: ctypes._CFunctionType, address: int, count: int) -> int:
        """A handler that is no Python code would run within the routine."""
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)
        try:
            return int(routine(address, count))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def map_memory(address: int, size: int, protection: int, flags: int, file: int, offset: int) -> int:
    """mmap(2)."""
    place = int(_mmap(address, size, protection, flags, file, offset))
    if place == ctypes.c_size_t(-1).value:
        raise OSError(ctypes.get_errno(), f"mmap of {size} bytes failed")
    return place

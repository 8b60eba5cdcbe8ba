"""Pages that a session has in common with the warm parent again, given back.

A fork copies a page as soon as it writes to it, and Python writes to an object when it merely looks at it: the count of
references goes up, and down again. A third of the pages that a session has copied have the warm parent's content once more.

``share`` makes the warm parent's heap a private mapping of a file without a name, so that the content is there to compare with,
and to be had again. ``give_back`` then drops each page of a session that is equal to the file's: the next read finds the
file's page, which all have in common, and the next write copies it again.

**Why nothing is lost.** A page is dropped only if it is equal in that moment, and nobody writes to it between the comparison
and the drop: the process has one thread, which the kernel is asked about; its signals are blocked; and both are one routine of
machine code, which touches none of these pages. A session may have unmapped a part of the heap, and have something else
there: what cannot be read is left alone, and what is not the same after the drop gets its content again.

**Why sessions stay apart.** Nobody can write to the file: it is sealed, its descriptor is closed before the first session, and
every mapping of it is private.

Where that cannot be (another processor than x86-64, a kernel before 5.14, no executable memory), sessions keep their pages.
``aster doctor`` says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import select
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from resource import RUSAGE_SELF, getrusage

from aster.sandbox.isolation.syscalls import has_one_thread, libc
from aster.sandbox.machine_code import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    PAGE,
    PROT_READ,
    PROT_WRITE,
    RUN,
    Routines,
    Runs,
    map_memory,
)

HUGE_PAGE = 2 << 20
SMALLEST = 1 << 20
"""Bytes of an area that is worth a mapping of its own. Python's arenas have as many."""
PLAIN = frozenset(["rd", "wr", "mr", "mw", "me", "ac", "sd", "hg", "nh", "nr"])
"""What the kernel may say of an area that is moved (``VmFlags`` in proc(5)): readable, writable, private, and like any other.
Those that a fork empties, such as the C library's random numbers, are not."""
IDLE_SECONDS = 0.25
"""A session that has had nothing to do for so long gives back."""
WORTH = 512
"""Page faults since the last time that make it worth while. To look takes several milliseconds of processor time."""
SYS_PWRITE64, SYS_MMAP, SYS_MADVISE = 18, 9, 28
MADV_DONTNEED, MADV_POPULATE_READ, MADV_COLLAPSE = 4, 22, 25
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_madvise = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)(("madvise", libc))
_thread = ctypes.CFUNCTYPE(ctypes.c_size_t)(("pthread_self", libc))
_sbrk = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_ssize_t)(("sbrk", libc))
_common: tuple[Routines, Runs] | None = None
"""What this process and its forks compare."""


def share(exercise: Callable[[], object]) -> None:
    """Let forks of this process give back what they have in common with it. OSError where that cannot be.

    ``exercise`` does in a fork what sessions do. What that copies is where sessions look: they cannot ask the kernel which
    pages are their own, and to compare all of the heap would take them several times as long.
    """
    global _common
    if not has_one_thread():
        raise OSError("the warm parent has several threads")
    routines = Routines()
    with SharedFile(routines, list(heap())) as file:
        collapse((area.address, area.size) for area in file.areas)
        for area in file.areas:
            # So that whoever counts memory finds the pages here, and not with the first session that reads them.
            _madvise(area.original, area.size, MADV_POPULATE_READ)
        _common = routines, Runs(_copied_by(exercise, file.areas))
        file.take_in()


def give_back() -> int:
    """Drop what is equal to the warm parent's, in a process that is a fork of the one that called ``share``.

    Returns how many of the bytes that were looked at are equal: none are looked at where there is a second thread.
    """
    if _common is None or not has_one_thread():
        return 0
    routines, runs = _common
    return routines.drop_equal(runs)


class Giver:
    """Decides when a session's process gives back: when it is about to be copied, or has nothing to read at a descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._faults = getrusage(RUSAGE_SELF).ru_minflt
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def give(self) -> None:
        """Give back, if this process has copied so much since the last time that it is worth while."""
        if self._worth_while():
            self._give()

    def wait(self) -> None:
        """Return when there is something to read, or give back and return after a moment; at once where that is not worth
        while."""
        if self._worth_while() and not self._poll.poll(1e3 * IDLE_SECONDS):
            self._give()

    def _worth_while(self) -> bool:
        return _common is not None and getrusage(RUSAGE_SELF).ru_minflt - self._faults >= WORTH

    def _give(self) -> None:
        give_back()
        self._faults = getrusage(RUSAGE_SELF).ru_minflt


@dataclass(frozen=True, slots=True)
class Area:
    """A part of the heap that is a mapping of the file. Bytes are multiples of PAGE."""

    address: int
    size: int
    original: int
    """Where the file's pages for it can be read."""


class SharedFile(contextlib.AbstractContextManager["SharedFile"]):
    """A file without a name that holds parts of this process's memory, which maps it, each page private as before. It can be
    written to inside the context alone."""

    def __init__(self, routines: Routines, places: Sequence[tuple[int, int]]) -> None:
        """Moves the memory: ``places`` are addresses and sizes. OSError where that fails; what was moved until then stays so,
        and is memory like any other."""
        self._routines = routines
        size = 0
        offsets = []
        for address, length in places:
            size += (address - size) % HUGE_PAGE  # a huge page in the file is one in the memory
            offsets.append(size)
            size += length
        reserved = map_memory(0, size + HUGE_PAGE, 0, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        self._originals = -(-reserved // HUGE_PAGE) * HUGE_PAGE
        self.areas = [
            Area(address, length, self._originals + offset) for (address, length), offset in zip(places, offsets, strict=True)
        ]
        self._file = os.memfd_create("aster", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._file, size)
            map_memory(self._originals, size, PROT_READ, MAP_PRIVATE | MAP_FIXED, self._file, 0)
            protection, flags = PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE
            calls = []
            for (address, length), offset in zip(places, offsets, strict=True):
                calls.append((SYS_PWRITE64, self._file, address, length, offset, 0, 0, length))
                calls.append((SYS_MMAP, address, length, protection, flags, self._file, offset, address))
            routines.make_calls(calls)
        except BaseException:
            self.__exit__()
            raise

    def take_in(self) -> None:
        """Put into the file what this process wrote to that memory since it was moved."""
        calls = []
        for address, original, size in _own_pages(self.areas):
            calls.append((SYS_PWRITE64, self._file, address, size, original - self._originals, 0, 0, size))
            calls.append((SYS_MADVISE, address, size, MADV_DONTNEED, 0, 0, 0, 0))
        self._routines.make_calls(calls)

    def __exit__(self, *_: object) -> None:
        fcntl.fcntl(self._file, fcntl.F_ADD_SEALS, _SEALS)
        os.close(self._file)


def heap() -> Iterator[tuple[int, int]]:
    """Address and size of the areas that hold this process's objects. OSError without /proc."""
    # The C library shortens its heap when what lies at its end is freed, as the text below will be. What is beyond its present
    # end may be gone in a moment.
    with contextlib.suppress(AttributeError):  # not every C library has that
        libc.malloc_trim(0)
    end = _sbrk(0)
    with open("/proc/self/smaps") as file:
        text = file.read()
    thread = _thread()
    heads = r"^([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0 *(?:\[heap\])?\n((?:\w+: .*\n)+)"
    for found in re.finditer(heads, text, re.MULTILINE):
        first, last = int(found[1], 16), int(found[2], 16)
        if first < end < last:
            last = -(-end // PAGE) * PAGE
        if last - first < SMALLEST or first <= thread < last:  # the kernel itself writes to a thread's own area
            continue
        fields = dict(line.split(":", 1) for line in found[3].splitlines())
        half_full = int(fields["Rss"].split()[0]) << 11 >= last - first
        if half_full and PLAIN.issuperset(fields["VmFlags"].split()):
            yield first, last - first


def collapse(places: Iterable[tuple[int, int]]) -> None:
    """Put memory into huge pages, as far as the kernel will (Linux 6.1 and later). ``places`` are addresses and sizes.

    A fork copies the page table's entries one by one, and a huge page has one for 512. A child that writes still copies 4 KiB.
    """
    for address, size in places:
        for start in range(-(-address // HUGE_PAGE) * HUGE_PAGE, address + size - HUGE_PAGE + 1, HUGE_PAGE):
            _madvise(start, HUGE_PAGE, MADV_COLLAPSE)  # refused where the range is not filled: no harm


def _own_pages(areas: Sequence[Area]) -> Iterator[tuple[int, int, int]]:
    """The pages that this process does not have from the file, in runs: their address, that of the originals, bytes."""
    with open("/proc/self/pagemap", "rb", 0) as pagemap:
        for area in areas:
            entries = os.pread(pagemap.fileno(), area.size // PAGE * 8, area.address // PAGE * 8)
            # Of each entry's topmost three bits: present, swapped, a page of a file.
            own = bytes(top >> 5 in (0b100, 0b010) for top in entries[7::8])
            for run in re.finditer(b"\x01+", own):
                start, size = run.start() * PAGE, len(run[0]) * PAGE
                yield area.address + start, area.original + start, size


def _copied_by(exercise: Callable[[], object], areas: Sequence[Area]) -> list[tuple[int, int, int]]:
    """The same of a fork of this process, after it did something. OSError where it does not come to that."""
    reading, writing = os.pipe()
    child = -1
    try:
        child = os.fork()
        if child == 0:
            try:
                exercise()
                with open(writing, "wb") as out:
                    for run in _own_pages(areas):
                        out.write(RUN.pack(*run, 0))
                os._exit(0)
            except BaseException:  # noqa: BLE001 - the child must never come back from here
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(1)
    finally:
        os.close(writing)
        with open(reading, "rb") as file:
            told = file.read()
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise OSError("the process that was to show what sessions copy failed")
    return [(address, original, size) for address, original, size, _ in RUN.iter_unpack(told)]


def try_it() -> None:
    """Do it with a little memory, and look at the result. OSError where it cannot be."""
    routines = Routines()
    size = 4 * PAGE
    place = map_memory(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    ctypes.memset(place, 7, size)
    with SharedFile(routines, [(place, size)]) as file:
        (area,) = file.areas
    ctypes.memset(place, 8, PAGE)
    changed = list(_own_pages([area]))
    equal = routines.drop_equal(Runs([(place, area.original, size)]))
    if changed != [(place, area.original, PAGE)] or equal != size - PAGE:
        raise OSError("the kernel does not say which pages are copies, or does not drop them (it needs Linux 5.14)")

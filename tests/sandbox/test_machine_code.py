"""The routines of machine code: they are their source, and no page loses its content through them."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from aster_sandbox import machine_code
from aster_sandbox.giving import Area, SharedFile
from aster_sandbox.isolation.syscalls import libc
from aster_sandbox.machine_code import (
    CODE,
    DROP_EQUAL,
    MAKE_CALLS,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    PAGE,
    PROT_READ,
    PROT_WRITE,
    Routines,
    Runs,
    map_memory,
)
from tests.sandbox.conftest import need_pages_given_back

SOURCE = Path(machine_code.__file__).with_name("machine_code_x86_64.s")
PAGES = 40
MAP_SHARED = 1


@pytest.fixture
def routines() -> Routines:
    """The routines, where the machine has all that giving pages back needs."""
    need_pages_given_back()
    return Routines()


@pytest.fixture
def area(routines: Routines) -> Iterator[Area]:
    """PAGES pages of memory, each with a content of its own, that have become a file's."""
    place = map_memory(0, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    ctypes.memmove(place, random.Random(1).randbytes(PAGES * PAGE), PAGES * PAGE)
    with SharedFile(routines, [(place, PAGES * PAGE)]) as file:
        (area,) = file.areas
    yield area
    libc.munmap(ctypes.c_size_t(place), ctypes.c_size_t(PAGES * PAGE))


def content(area: Area) -> bytes:
    """What is in its memory."""
    return ctypes.string_at(area.address, area.size)


def copies(area: Area) -> int:
    """How many of its pages are this process's own."""
    with open("/proc/self/smaps") as file:
        for line in file:
            if line.startswith(f"{area.address:x}-"):
                return next(int(below.split()[1]) for below in file if below.startswith("Anonymous:")) * 1024 // PAGE
    raise AssertionError("the area is not mapped")


def test_the_bytes_are_the_assembled_source(tmp_path: Path) -> None:
    if machine_code.MACHINE != "x86_64" or shutil.which("as") is None or shutil.which("objcopy") is None:
        pytest.skip("it needs the GNU assembler and objcopy for x86-64")
    subprocess.run(["as", "--64", "-o", "code.o", SOURCE], cwd=tmp_path, check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", "code.o", "code.bin"], cwd=tmp_path, check=True)
    assert (tmp_path / "code.bin").read_bytes() == CODE
    if shutil.which("nm") is not None:
        names = subprocess.run(["nm", "code.o"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        places = {name: int(place, 16) for place, _, name in (line.split() for line in names.splitlines())}
        assert (places["make_calls"], places["drop_equal"]) == (MAKE_CALLS, DROP_EQUAL)


@pytest.mark.parametrize("seed", range(20))
def test_pages_that_are_equal_again_are_dropped_and_the_others_stay(routines: Routines, area: Area, seed: int) -> None:
    draw = random.Random(seed)
    original = content(area)
    changed = set()
    for page in range(PAGES):
        kind = draw.choice(["read", "written back", "changed"])
        place = area.address + page * PAGE + draw.choice([0, PAGE - 1, draw.randrange(PAGE)])
        byte = ctypes.c_ubyte.from_address(place)
        if kind != "read":
            byte.value ^= 1
        if kind == "written back":
            byte.value ^= 1
        if kind == "changed":
            changed.add(page)
    before = content(area)
    cuts = [0, *sorted(draw.sample(range(1, PAGES), draw.randrange(5))), PAGES]
    runs = Runs([(area.address + a * PAGE, area.original + a * PAGE, (b - a) * PAGE) for a, b in itertools.pairwise(cuts)])
    for _ in range(2):
        assert routines.drop_equal(runs) == (PAGES - len(changed)) * PAGE
        assert content(area) == before
        assert copies(area) == len(changed)
    assert ctypes.string_at(area.original, area.size) == original


@pytest.mark.parametrize("protection", [PROT_READ | PROT_WRITE, 0], ids=["mapped anew", "not readable"])
def test_memory_that_came_in_place_of_the_heap_keeps_its_content(routines: Routines, area: Area, protection: int) -> None:
    original = content(area)
    middle = area.address + 10 * PAGE
    map_memory(middle, 10 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)
    ctypes.memmove(middle, original[10 * PAGE :], 10 * PAGE)
    if not protection:
        libc.mprotect(ctypes.c_size_t(middle), ctypes.c_size_t(10 * PAGE), protection)
    routines.drop_equal(Runs([(area.address, area.original, area.size)]))
    if not protection:
        libc.mprotect(ctypes.c_size_t(middle), ctypes.c_size_t(10 * PAGE), PROT_READ)
    assert content(area) == original


def test_shared_memory_in_place_of_the_heap_stays_shared(routines: Routines, area: Area) -> None:
    original = content(area)
    with mmap.mmap(-1, 10 * PAGE) as other:
        there = ctypes.addressof(ctypes.c_char.from_buffer(other))
        libc.mremap.restype = ctypes.c_size_t
        moved = libc.mremap(*map(ctypes.c_size_t, (there, 0, 10 * PAGE)), 3, ctypes.c_size_t(area.address))
        assert moved == area.address
        other[:] = original[: 10 * PAGE]
        routines.drop_equal(Runs([(area.address, area.original, area.size)]))
        assert content(area) == original
        ctypes.memset(area.address, 5, 1)
        assert other[0] == 5


def test_a_hole_in_the_heap_ends_nothing(routines: Routines, area: Area) -> None:
    libc.munmap(ctypes.c_size_t(area.address + 10 * PAGE), ctypes.c_size_t(PAGE))
    halves = [(area.address, area.original, 20 * PAGE), (area.address + 20 * PAGE, area.original + 20 * PAGE, 20 * PAGE)]
    assert routines.drop_equal(Runs(halves)) == 20 * PAGE


def test_calls_end_with_the_first_that_fails(routines: Routines, area: Area) -> None:
    original = content(area)
    getppid, close = 110, 3
    parent = libc.getppid()
    routines.make_calls([(getppid, 0, 0, 0, 0, 0, 0, parent)] * 3)
    write_nothing = (close, 1 << 30, 0, 0, 0, 0, 0, 0)
    drop = (28, area.address, area.size, 4, 0, 0, 0, 0)
    ctypes.memset(area.address, 9, PAGE)
    with pytest.raises(OSError, match="system call 3 failed, 2 calls before the last of 3"):
        routines.make_calls([(getppid, 0, 0, 0, 0, 0, 0, parent), write_nothing, drop])
    assert content(area) == b"\x09" * PAGE + original[PAGE:]

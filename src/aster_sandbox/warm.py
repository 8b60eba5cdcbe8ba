"""Prewarm the zygote: import and exercise libraries, then prepare the process's memory so that forks are cheap."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import io
import itertools
import mmap
import multiprocessing.context
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from aster_sandbox.cells import Interpreter
from aster_sandbox.isolation.syscalls import libc
from aster_sandbox.limits import keep_hard_limits
from aster_sandbox.protocol import Kind
from aster_sandbox.shown import pretty_printer
from aster_sandbox.traces import shorten_paths

STANDARD = """
import asyncio, collections, dataclasses, datetime, decimal, fractions, functools, heapq, inspect, itertools, json, math
import random, re, statistics, string, subprocess, tempfile, typing
import aster_sandbox.service.inside
"""
REPAIRED = ("```python\nx = 1\n```", "    if True:\n        x = 1", ">>> x = [\n...    1]\n>>> x\n[1]")
EXERCISES = {
    "sympy": """
sympy.core.cache.clear_cache()
from sympy.abc import x, y
sympy.factorint(2**32 + 1), sympy.isprime(10**9 + 7), sympy.totient(360), sympy.divisors(360)
sympy.solve(x**2 - 5*x + 6, x), sympy.solve([x + y - 3, x - y - 1], [x, y]), sympy.simplify(sympy.sin(x)**2 + sympy.cos(x)**2)
sympy.integrate(x**2 * sympy.exp(x), x), sympy.diff(sympy.sin(x)/x, x), sympy.series(sympy.exp(x), x, 0, 4)
sympy.factor(x**4 - 1), sympy.expand((x + 1)**5), sympy.Matrix([[1, 2], [3, 4]]).inv(), sympy.Rational(1, 3).evalf(30)
sympy.summation(x, (x, 1, y)), str(sympy.sqrt(8)), sympy.parse_expr("x**2 + 1"), sympy.nsimplify(0.25)
""",
    "numpy": """
import numpy.linalg
numpy.linalg.solve(numpy.eye(3) * 2, numpy.ones(3)), numpy.linalg.eigvals(numpy.eye(3)), str(numpy.arange(6).reshape(2, 3))
""",
    "scipy": """
import scipy.integrate, scipy.linalg, scipy.optimize, scipy.sparse, scipy.special, scipy.stats
scipy.optimize.brentq(lambda t: t*t - 2, 0, 2), scipy.integrate.quad(math.exp, 0, 1), scipy.special.comb(10, 3)
""",
    "networkx": "networkx.shortest_path(networkx.cycle_graph(5), 0, 2)",
    "mpmath": "mpmath.mpf(2)**0.5, mpmath.quad(mpmath.sin, [0, 1])",
}
"""Code to run after a package's import, to fill its caches. Other packages are only imported."""
ROUNDS = 4
"""How often all exercises run. CPython specializes a function's bytecode in its first calls; memory that is already rewritten
need not be copied by a session. A session after six typical cells holds about 2 MiB less than with one round; 20 rounds save no
more."""
POOL, POOL_HEADER, SMALL_STEP, LARGEST_SMALL = 16 << 10, 48, 16, 512
"""CPython's layout of small objects, in bytes: a pool has blocks of one size, which is a multiple of 16, at most 512."""
POOL_USED = 250
"""A pool that yields so many blocks (or all it has) was unused before."""
HUGE_PAGE = 2 << 20
MADV_COLLAPSE = 25
_madvise = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)(("madvise", libc))
MOST_FILLING = 1 << 20
"""Maximum number of bytes filled for one block size, in case an interpreter has another memory layout."""


def warm_up(packages: Iterable[str], echo: str = "python") -> None:
    """Import and exercise ``packages``, with the code that runs cells, and make this process cheap to fork.

    ``echo``: the setting of that name. Raises Unloadable if a package cannot be imported."""
    shorten_paths()
    if echo == "ipython":
        pretty_printer()([{1: (2.0, "three")}])
    packages = list(packages)
    for package in packages:
        _load(package)
    cells = [STANDARD, *REPAIRED, *(f"import {package}\n{EXERCISES.get(package, '')}" for package in packages)]
    exercise(cells * ROUNDS)
    keep_hard_limits()
    refuse_audit_hooks()
    fork_instead_of_spawn()
    # Make the C library's stdout unbuffered (_IONBF), so that output of C code keeps its order and none is left in a buffer.
    libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, 2, 0)
    gc.collect()
    fill_pools()
    gc.freeze()
    merge_mappings()
    with contextlib.suppress(OSError):  # without /proc this optimization is skipped
        collapse(list(heap()))


class Unloadable(Exception):
    """A package cannot be imported. The message is one line for the user."""


def _load(package: str) -> None:
    try:
        importlib.import_module(package)
    except Exception as error:  # importing may raise anything
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        hint = "if sessions cannot see its folder, add that to sandbox.mounts; or remove the package from the list"
        raise Unloadable(f"sandbox.preload: {package!r} cannot be imported in the sandbox ({why}); {hint}") from error


def exercise(cells: list[str]) -> None:
    """Run cells that must succeed, and one that fails. Raises RuntimeError if another fails."""
    paper = _Recorder()
    interpreter = Interpreter({"__name__": "warm_up"}, paper)
    with contextlib.redirect_stdout(paper.stream):
        for code in cells:
            if interpreter.run(0, code) is not Kind.OK:
                raise RuntimeError(paper.stream.getvalue())
        interpreter.run(0, "1 / 0")


class _Recorder:
    """Collects the output of the exercises (``cells.CellProcess``)."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    def report(self, text: str) -> None:
        """Record a traceback."""
        self.stream.write(text)

    def lower_memory(self) -> None:
        """Do nothing: the zygote has no limit."""

    raise_memory = reporting = lower_memory


def fill_pools() -> None:
    """Fill the free blocks between this process's small objects, so that a session's objects get pages of their own.

    Otherwise a session's new objects would go into free blocks on shared pages, and each such page would be copied. The filling
    blocks are never freed. A session after six typical cells holds about 1 MiB less.
    """
    allocate = ctypes.pythonapi.PyObject_Malloc
    allocate.argtypes, allocate.restype = [ctypes.c_size_t], ctypes.c_size_t
    for size in range(LARGEST_SMALL, 0, -SMALL_STEP):
        used: Counter[int] = Counter()
        enough = min((POOL - POOL_HEADER) // size, POOL_USED)
        for _ in range(MOST_FILLING // size):
            pool = allocate(size) // POOL
            used[pool] += 1
            if used[pool] == enough:
                break


def merge_mappings() -> None:
    """Give neighbouring mappings of a library the same access rights, so that the kernel merges them.

    Each fork copies the list of mappings, and each process end releases them one by one: with numpy and scipy there are nine
    hundred, five per library. Afterwards read-only data is also executable, and data that was read-only after loading is
    writable. In a process that runs arbitrary code that costs no security.
    """
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    try:
        with open("/proc/self/maps") as file:
            lines = file.readlines()
    except OSError:  # without /proc this optimization is skipped
        return
    mappings = [[*line.split(None, 5), ""][:6] for line in lines]
    for (bounds, rights, _, _, _, name), (_, next_rights, _, _, _, next_name) in itertools.pairwise(mappings):
        if rights == "r--p" and name.startswith("/"):
            first, last = (int(bound, 16) for bound in bounds.split("-"))
            data = next_name == name and next_rights == "rw-p"
            libc.mprotect(first, last - first, mmap.PROT_READ | (mmap.PROT_WRITE if data else mmap.PROT_EXEC))


def fork_instead_of_spawn() -> None:
    """Make ``multiprocessing`` always fork. A spawned process would look for the cells' functions in a file that does not
    exist, and each of its replacements would die too."""
    contexts = multiprocessing.context._concrete_contexts  # type: ignore[attr-defined]
    contexts["spawn"] = contexts["forkserver"] = contexts["fork"]


def refuse_audit_hooks() -> None:
    """Make ``sys.addaudithook`` raise: a hook cannot be removed, so it would apply to every later cell."""

    def addaudithook(hook: Callable[[str, tuple[Any, ...]], Any]) -> None:  # noqa: ARG001
        raise RuntimeError("audit hooks cannot be had here: they would hold for every later cell")

    sys.addaudithook = addaudithook


def heap() -> Iterator[tuple[int, int]]:
    """Address and size of each memory area with this process's objects. Raises OSError without /proc."""
    with open("/proc/self/maps") as file:
        for bounds in re.findall(r"^([0-9a-f]+-[0-9a-f]+) rw-p \S+ \S+ 0 *(?:\[heap\])?\n", file.read(), re.MULTILINE):
            first, last = (int(bound, 16) for bound in bounds.split("-"))
            yield first, last - first


def collapse(places: Iterable[tuple[int, int]]) -> None:
    """Collapse memory areas (address and size) into huge pages, as far as the kernel allows it (Linux 6.1 and later).

    A fork copies page table entries one by one, and a huge page has one entry instead of 512. A child that writes to it still
    copies only 4 KiB.
    """
    for address, size in places:
        for start in range(-(-address // HUGE_PAGE) * HUGE_PAGE, address + size - HUGE_PAGE + 1, HUGE_PAGE):
            _madvise(start, HUGE_PAGE, MADV_COLLAPSE)  # fails, without harm, if the range is not completely mapped

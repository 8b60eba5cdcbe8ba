"""What the zygote does before it serves: import and exercise libraries, then make itself cheap to fork."""

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
"""What a package is put through after its import, so that sessions find its caches filled. A package not named is imported."""
ROUNDS = 4
"""Times that all of it runs. CPython rewrites the bytecode of a function in its first calls: what a session need not rewrite,
it need not copy. A session after six typical cells holds about 2 MiB less than with one round; 20 save no more."""
POOL, POOL_HEADER, SMALL_STEP, LARGEST_SMALL = 16 << 10, 48, 16, 512
"""How CPython lays out small objects, in bytes: a pool has blocks of one size, a multiple of 16 and 512 at the most."""
POOL_USED = 250
"""So many blocks from one pool, where it has as many, and it was a free one."""
HUGE_PAGE = 2 << 20
MADV_COLLAPSE = 25
_madvise = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)(("madvise", libc))
MOST_FILLING = 1 << 20
"""Bytes of one block size that are filled at the most, should an interpreter lay out its memory in another way."""


def warm_up(packages: Iterable[str], echo: str = "python") -> None:
    """Import and exercise what cells use, through the same code that runs cells, and make the process cheap to fork.

    ``echo``: how values are shown."""
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
    # _IONBF: what C code prints keeps its place among the lines, and nothing of it waits for the end of a cell.
    libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, 2, 0)
    gc.collect()
    fill_pools()
    gc.freeze()
    merge_mappings()
    with contextlib.suppress(OSError):  # without /proc forks cost what they cost
        collapse(list(heap()))


class Unloadable(Exception):
    """A package cannot be loaded. The message is one line for the user."""


def _load(package: str) -> None:
    try:
        importlib.import_module(package)
    except Exception as error:  # whatever it raises, it cannot be had
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        hint = "if its folder is not shown to sessions, name that in sandbox.mounts; or take the package off the list"
        raise Unloadable(f"sandbox.preload: {package!r} cannot be loaded in the sandbox ({why}); {hint}") from error


def exercise(cells: list[str]) -> None:
    """Run cells, and one that fails. RuntimeError where another does."""
    paper = _Recorder()
    interpreter = Interpreter({"__name__": "warm_up"}, paper)
    with contextlib.redirect_stdout(paper.stream):
        for code in cells:
            if interpreter.run(0, code) is not Kind.OK:
                raise RuntimeError(paper.stream.getvalue())
        interpreter.run(0, "1 / 0")


class _Recorder:
    """What the exercises are written on."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    def report(self, text: str) -> None:
        """Keep it."""
        self.stream.write(text)

    def lower_memory(self) -> None:
        """There is no limit here."""

    raise_memory = reporting = lower_memory


def fill_pools() -> None:
    """Leave no free block between the objects of this process, so that the objects of a session lie side by side.

    A fork copies a page as soon as it writes to it, and a new object would go into a hole of a page that all share. What fills
    the holes is never freed. A session after six typical cells holds about 1 MiB less.
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
    """Give neighbouring parts of a library the same rights, so that the kernel keeps them as one.

    A fork copies the list of mappings, and the end of a process takes it apart, one by one: with numpy and scipy they are nine
    hundred, five for each library. What was for reading may be run then, and what was fixed after loading may be written: in
    a process in which any code may run, that protects nobody.
    """
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    try:
        with open("/proc/self/maps") as file:
            lines = file.readlines()
    except OSError:  # no /proc: forks cost what they cost
        return
    mappings = [[*line.split(None, 5), ""][:6] for line in lines]
    for (bounds, rights, _, _, _, name), (_, next_rights, _, _, _, next_name) in itertools.pairwise(mappings):
        if rights == "r--p" and name.startswith("/"):
            first, last = (int(bound, 16) for bound in bounds.split("-"))
            data = next_name == name and next_rights == "rw-p"
            libc.mprotect(first, last - first, mmap.PROT_READ | (mmap.PROT_WRITE if data else mmap.PROT_EXEC))


def fork_instead_of_spawn() -> None:
    """Have ``multiprocessing`` fork, whatever a cell asks for: a process that it spawns would look for the cells' functions in
    a file that is not there, and die for ever."""
    contexts = multiprocessing.context._concrete_contexts  # type: ignore[attr-defined]
    contexts["spawn"] = contexts["forkserver"] = contexts["fork"]


def refuse_audit_hooks() -> None:
    """Have ``sys.addaudithook`` raise: nobody can take a hook off again, and it would hold for every later cell."""

    def addaudithook(hook: Callable[[str, tuple[Any, ...]], Any]) -> None:  # noqa: ARG001
        raise RuntimeError("audit hooks cannot be had here: they would hold for every later cell")

    sys.addaudithook = addaudithook


def heap() -> Iterator[tuple[int, int]]:
    """Address and size of the areas that hold this process's objects. OSError without /proc."""
    with open("/proc/self/maps") as file:
        for bounds in re.findall(r"^([0-9a-f]+-[0-9a-f]+) rw-p \S+ \S+ 0 *(?:\[heap\])?\n", file.read(), re.MULTILINE):
            first, last = (int(bound, 16) for bound in bounds.split("-"))
            yield first, last - first


def collapse(places: Iterable[tuple[int, int]]) -> None:
    """Put memory into huge pages, as far as the kernel will (Linux 6.1 and later). ``places`` are addresses and sizes.

    A fork copies the page table's entries one by one, and a huge page has one for 512. A child that writes still copies 4 KiB.
    """
    for address, size in places:
        for start in range(-(-address // HUGE_PAGE) * HUGE_PAGE, address + size - HUGE_PAGE + 1, HUGE_PAGE):
            _madvise(start, HUGE_PAGE, MADV_COLLAPSE)  # refused where the range is not filled: no harm

"""A session's own process, from the fork to its end. Runs in the zygote's child, under whatever the cells did to it."""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import signal
import sys
import tempfile
from types import ModuleType
from typing import Any, NoReturn, TextIO

from aster.sandbox.cells import Interpreter, short_traceback
from aster.sandbox.isolation import Plan, confine_session
from aster.sandbox.isolation.syscalls import PR_SET_CHILD_SUBREAPER, libc, prctl
from aster.sandbox.protocol import ForkRequest, pack, read_frame

# Descriptors above what careless cells close, and below the least limit that a recipe may set.
CONNECTION, OUTPUT, EMPTY = 500, 501, 502
RESERVE_BYTES = 64 << 20
"""Address space beyond a cell's limit in which its MemoryError is reported and the next cell is compiled."""
LARGEST_INT_DIGITS = 200_000
"""Digits of an integer that ``str`` converts; Python's own 4,300 stops ordinary problems such as the digit sum of 2**20000."""


class MemoryGuard(contextlib.AbstractContextManager["MemoryGuard"]):
    """Holds the address space to ``limit`` bytes inside, and to ``limit + RESERVE_BYTES`` outside."""

    def __init__(self, limit: int) -> None:
        self._inside = (limit, limit + RESERVE_BYTES)
        self._outside = (limit + RESERVE_BYTES, limit + RESERVE_BYTES)

    def __enter__(self) -> MemoryGuard:
        resource.setrlimit(resource.RLIMIT_AS, self._inside)
        return self

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_AS, self._outside)


class Worker:
    """Serves one session's requests until its connection ends."""

    def __init__(self, request: ForkRequest, address_space: int) -> None:
        module = ModuleType("__main__")
        sys.modules["__main__"] = module  # so that pickle and multiprocessing find what cells define
        self._output = _output_stream()
        self._pid = os.getpid()
        guard = MemoryGuard(address_space + (request.memory_mb << 20))
        guard.__exit__()
        self._interpreter = Interpreter(module.__dict__, self._report, guard, request.timeout_text)

    def serve(self) -> NoReturn:
        """Answer requests for ever; end the process at the end of the connection."""
        while True:
            try:
                request = read_frame(CONNECTION)
            except OSError:  # a cell closed the connection, and kept it open in a child
                os._exit(1)
            except BaseException:  # noqa: BLE001, S112 - a signal handler that a cell left behind raised; its cell is over
                continue
            if request is None:
                os._exit(0)
            reply = self._start(request) if request["op"] == "start" else self._run(request)
            if os.getpid() != self._pid:  # a child that a cell forked came to the end of the cell
                os._exit(0)
            os.write(CONNECTION, pack(reply))

    def _start(self, request: dict[str, Any]) -> dict[str, Any]:
        self._restore()
        seed_everything(request["seed"])
        status = "ok"
        try:
            self._interpreter.setup(request["setup"])
        except BaseException as error:  # noqa: BLE001 - the supervisor turns it into a SandboxFailure
            status = "error"
            self._report(short_traceback(error))
        self._flush()
        return {"nonce": request["nonce"], "status": status, "interrupted": False}

    def _run(self, request: dict[str, Any]) -> dict[str, Any]:
        self._restore()
        status = self._interpreter.run(request["number"], request["code"])
        self._flush()
        return {"nonce": request["nonce"], "status": status, "interrupted": self._interpreter.interrupted}

    def _restore(self) -> None:
        """Give the next cell its standard streams and our interrupt handler, whatever the last one did to them."""
        os.dup2(EMPTY, 0)
        os.dup2(OUTPUT, 1)
        os.dup2(OUTPUT, 2)
        if self._output.closed:
            self._output = _output_stream()
        # One stream for both keeps the order of what is written to them.
        sys.stdout = sys.stderr = self._output
        if sys.stdin is None or sys.stdin.closed or sys.stdin.fileno() != 0:
            sys.stdin = open(0, closefd=False)  # noqa: SIM115 - lives as long as the process
        signal.signal(signal.SIGINT, self._interpreter.interrupt)

    def _report(self, text: str) -> None:
        """Write a traceback where it will be seen, even where the cell closed or replaced its output."""
        self._restore()
        self._output.write(text)

    def _flush(self) -> None:
        """Push everything into the pipe before the reply: Python's buffers and the C library's."""
        signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm belongs to its cell
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__, self._output):
            # Cells may leave anything there, and close the descriptor below: their own output is all that is lost.
            with contextlib.suppress(Exception):
                stream.flush()  # type: ignore[union-attr]
        libc.fflush(None)


def become_session(request: ForkRequest, plan: Plan, scratch: str, connection: int, output: int) -> NoReturn:
    """Turn a fresh child of the zygote into a session, shut it in and serve. Closes every descriptor but the two given."""
    os.setsid()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    _take_descriptors(connection, output)
    # Both need /proc, which a session has not.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")  # where memory runs out, a session goes before the trainer; some containers forbid it
    address_space = _address_space()
    confine_session(plan, scratch, request.limits)
    os.environ["HOME"] = os.environ["TMPDIR"] = os.environ["MPLCONFIGDIR"] = scratch
    tempfile.tempdir = None
    sys.argv = [""]
    sys.path.insert(0, scratch)
    sys.set_int_max_str_digits(LARGEST_INT_DIGITS)
    Worker(request, address_space).serve()


def seed_everything(seed: int) -> None:
    """Seed the global generators: ``random``'s, and numpy's legacy one and sympy's where the zygote has loaded them. Every fork
    shares their state otherwise."""
    random.seed(seed)
    if "numpy" in sys.modules:
        import numpy.random

        numpy.random.seed([seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF])
    if "sympy" in sys.modules:
        import sympy.core.random

        sympy.core.random.seed(seed)


def _take_descriptors(connection: int, output: int) -> None:
    os.dup2(connection, 0)
    os.dup2(output, 1)
    os.closerange(2, os.sysconf("SC_OPEN_MAX"))
    os.dup2(0, CONNECTION, inheritable=False)
    os.dup2(1, OUTPUT, inheritable=False)
    os.dup2(os.open(os.devnull, os.O_RDONLY), EMPTY, inheritable=False)
    os.dup2(EMPTY, 0)
    os.dup2(OUTPUT, 2)


def _output_stream() -> TextIO:
    """Descriptor 1 as text, a write a line: what a subprocess prints then falls into its place."""
    return io.TextIOWrapper(
        open(1, "wb", closefd=False),
        encoding="utf-8",
        errors="backslashreplace",
        newline="\n",
        line_buffering=True,
    )


def _address_space() -> int:
    """Bytes of address space this process has now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()

"""The session process: what a runner executes from its fork on.

Everything here runs in a process that cells may have changed. Functions that are called before and after each cell are imported
by name, so that a cell which replaces functions of the standard library does not replace these.
"""

from __future__ import annotations

import json
import os
import random
import stat
import sys
import tempfile
from _signal import (  # type: ignore[import-not-found]
    ITIMER_PROF,
    ITIMER_REAL,
    ITIMER_VIRTUAL,
    SIG_DFL,
    SIG_SETMASK,
    SIGCHLD,
    SIGINT,
    pthread_sigmask,
    set_wakeup_fd,
    setitimer,
)
from _signal import signal as set_handler
from collections.abc import Callable
from contextlib import suppress
from fcntl import F_DUPFD, fcntl
from os import _exit, chdir, getpid, makedirs, read, set_blocking, write
from os import stat as os_stat
from resource import getpagesize
from sys import getrecursionlimit, setrecursionlimit
from threading import getprofile as thread_profile
from threading import gettrace as thread_trace
from threading import setprofile as profile_threads
from threading import settrace as trace_threads
from types import ModuleType
from typing import NoReturn

from aster_sandbox import cellbuiltins
from aster_sandbox.cells import Interpreter
from aster_sandbox.fonts import config_folder, link_list
from aster_sandbox.isolation import Plan, confine_session
from aster_sandbox.isolation.guard import close_all_but
from aster_sandbox.limits import Limits
from aster_sandbox.protocol import (
    FIRST_READ_BYTES,
    INTERRUPT,
    MAX_DATA,
    READ_BYTES,
    Kind,
    Reply,
    Request,
    line_mark,
    pack_reply,
    take_request,
)
from aster_sandbox.streams import CONNECTION, EMPTY, OUTPUT, Streams
from aster_sandbox.traces import short_traceback

TIMERS = (ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF)
INTERRUPT_NUMBER = int(INTERRUPT)
LARGEST_INT_DIGITS = 200_000
"""Maximum digits of an integer that ``str`` converts. Python's limit of 4,300 is too low for ordinary problems such as the
digit sum of 2**20000."""
LEAST_RECURSION = 1000
"""Python's default recursion limit, restored if a cell set a lower one: code that runs between cells needs part of it."""
RESTORE_ATTEMPTS = 3
"""How often to try restoring the process for the next cell: a signal handler that a cell left behind may raise meanwhile, once
for each pending signal."""


class Worker:
    """Serves the supervisor's requests in a session process."""

    def __init__(self, plan: Plan, scratch: str, address_space: int) -> None:
        """``scratch``: the working directory. ``address_space``: the current size of this process, in bytes."""
        self._home = scratch
        self._pid = getpid()
        self._nonce = b""
        self._mark = ""
        module = ModuleType("__main__")
        self._builtins = module.__dict__["__builtins__"] = cellbuiltins.module()
        sys.modules["__main__"] = module  # so that pickle and multiprocessing find what cells define
        self._main = module
        sys.set_int_max_str_digits(LARGEST_INT_DIGITS)
        sys.argv = [""]
        sys.path.insert(0, scratch)
        os.environ["HOME"] = os.environ["TMPDIR"] = scratch
        self._fonts = plan.fonts
        if plan.fonts:
            os.environ["MPLCONFIGDIR"] = config_folder(scratch)
        tempfile.tempdir = None
        self._streams = Streams()
        self._limits = Limits(address_space + (plan.memory_mb << 20))
        self._interpreter = Interpreter(module.__dict__, self, plan.timeout_text)
        self._on_sigint = self._interpreter.handler_of_sigint()
        self._hook = cellbuiltins.enter(self._streams, self._mark_here, scratch, plan.echo)

    def serve(self) -> NoReturn:
        """Answer requests until the connection closes, then end the process."""
        buffer = bytearray()
        while True:
            try:
                taken = take_request(buffer)
                if taken is None:
                    data = read(CONNECTION, READ_BYTES if buffer else FIRST_READ_BYTES)
                    if not data:
                        _exit(0)
                    buffer += data
                    continue
            except BlockingIOError:  # a cell made all descriptors non-blocking
                set_blocking(CONNECTION, True)
                continue
            except (OSError, MemoryError):  # a cell closed the connection here (a child may hold it open), or no memory is left
                _exit(1)
            except BaseException:  # noqa: BLE001, S112 - a signal handler that a cell left behind raised
                continue
            self._nonce, request = taken
            self._mark = line_mark(self._nonce)
            reply = self._answer(request)
            if getpid() != self._pid:  # this is a child that a cell forked; it ends with the cell
                _exit(self._interpreter.exit_status)
            self._send(reply)

    def _mark_here(self) -> str:
        """The current cell's mark; empty in a child that a cell forked, because it may write while another cell runs."""
        return self._mark if getpid() == self._pid else ""

    def _send(self, reply: Reply) -> None:
        data = pack_reply(self._nonce, reply)
        while data:
            data = data[write(CONNECTION, data) :]

    def _answer(self, request: Request) -> Reply:
        if not self._make_ready():
            return Reply(Kind.UNREADY)
        match request.op:
            case "run":
                return self._run(request)
            case "start":
                return self._start(request)
            case "hello":
                return Reply(Kind.OK)
            case "seed":
                return self._attempt(lambda: seed_everything(int(request.data)))
            case "write":
                return self._attempt(lambda: self._write(request.number, *request.data.split(b"\0", 1)))
            case "read":
                return self._read(request)
        raise ValueError(f"unknown request {request.op!r}")

    def _start(self, request: Request) -> Reply:
        wanted = json.loads(request.data)
        kind = Kind.OK
        try:
            os.environ.update(wanted["environment"])
            seed_everything(wanted["seed"])
            if wanted["setup"]:
                self._link_fonts()
                self._interpreter.setup(wanted["setup"])
        except BaseException as error:  # noqa: BLE001 - the supervisor raises SandboxFailure
            kind = Kind.ERROR
            self.report(short_traceback(error))
        self._flush()
        return Reply(kind)

    def _run(self, request: Request) -> Reply:
        source = request.data.decode("utf-8", "surrogatepass")
        self._limits.touched |= "rlimit" in source
        self._link_fonts()
        kind = self._interpreter.run(request.number, source, request.limit)
        cellbuiltins.restore(source)
        self._flush()
        if kind is Kind.INTERRUPTED:
            return Reply(kind, self._interpreter.finished, self._interpreter.line)
        return Reply(kind)

    def _link_fonts(self) -> None:
        """Let matplotlib find its font list, in this process and in those that cells start. Done with the first cell, because
        sessions are often started many at a time."""
        if self._fonts:
            with suppress(Exception):  # if there is no space or no descriptor left, matplotlib makes its own list
                link_list(self._fonts, self._home)
            self._fonts = ""

    def _attempt(self, action: Callable[[], object]) -> Reply:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - the reply carries its text
            return Reply(Kind.ERROR, data=_error_text(error))
        return Reply(Kind.OK)

    def _write(self, begin: int, path: bytes, content: bytes) -> None:
        """Put bytes into a file. Those that go to its beginning are the first of a new one."""
        place = os.path.join(os.fsencode(self._home), path)
        makedirs(os.path.dirname(place), exist_ok=True)
        # Without waiting: a cell may have put a pipe there.
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o644)
        with open(descriptor, "wb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError("not a regular file")
            os.ftruncate(descriptor, begin)
            file.seek(begin)
            file.write(content)

    def _read(self, request: Request) -> Reply:
        """Read a part of a regular file. ``finished`` of the reply is the file's size."""
        try:
            descriptor = os.open(os.path.join(os.fsencode(self._home), request.data), os.O_RDONLY | os.O_NONBLOCK)
            with open(descriptor, "rb", buffering=0) as file:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    return Reply(Kind.ERROR, data=b"not a regular file")
                file.seek(request.number)
                return Reply(Kind.OK, finished=status.st_size, data=file.read(min(request.limit, MAX_DATA)))
        except Exception as error:  # noqa: BLE001 - the reply carries its text
            return Reply(Kind.ERROR, data=_error_text(error))

    # ----- between cells

    def _make_ready(self) -> bool:
        """Restore the process for the next cell. Returns whether a cell can run."""
        for _ in range(RESTORE_ATTEMPTS):
            try:
                self._restore()
            except BaseException:  # noqa: BLE001, S112 - if it comes again, the supervisor replaces this process
                continue
            return True
        return False

    def _restore(self) -> None:
        """Undo what the last cell did to the process's streams, limits, signal handlers, builtins and so on. Raises if that is
        impossible."""
        self._limits.restore()
        self._streams.restore()
        # _signal.signal, because signal.signal converts to enums and back, which takes longer than everything else here.
        set_handler(INTERRUPT_NUMBER, self._interpreter.interrupt)
        set_handler(SIGINT, self._on_sigint)
        set_wakeup_fd(-1)
        if thread_trace() is not None or thread_profile() is not None:
            trace_threads(None)
            profile_threads(None)
        if getrecursionlimit() < LEAST_RECURSION:
            setrecursionlimit(LEAST_RECURSION)
        if (names := self._main.__dict__).get("__builtins__") is not self._builtins:
            names["__builtins__"] = self._builtins
        if sys.modules.get("__main__") is not self._main:
            sys.modules["__main__"] = self._main
        if not callable(sys.__dict__.get("displayhook")):
            sys.displayhook = self._hook
        try:  # not os.getcwd: it takes seconds if a cell made a path that is too long for the kernel
            removed = not os_stat(".").st_nlink
        except PermissionError:  # a cell changed the directory's mode, and can change it back
            removed = False
        if removed:
            makedirs(self._home, exist_ok=True)
            chdir(self._home)

    def _flush(self) -> None:
        """Write all buffered output into the pipe before the reply. (``warm_up`` made the C library's stdout unbuffered.)"""
        self._cancel_timers()
        self._streams.flush()

    def _cancel_timers(self) -> None:
        """Stop the cell's timers and unblock signals, so that pending ones are delivered to this cell and not to the next."""
        while True:
            try:
                for timer in TIMERS:
                    setitimer(timer, 0)
                pthread_sigmask(SIG_SETMASK, ())
            except BaseException:  # noqa: BLE001, S112 - a cell's signal handler raised
                continue
            return

    # ----- for the interpreter

    def report(self, text: str) -> None:
        """Write a traceback to the cell's output, on its own line, even if the cell closed or replaced its streams."""
        with suppress(ValueError, OSError):  # if it fails, it fails again before the next cell, which reports it
            self._limits.restore()
        self._streams.flush()
        self._streams.restore()
        self._streams.write(self._mark_here() + text)

    def lower_memory(self) -> None:
        """Set the address-space limit for a cell's code."""
        self._limits.lower_memory()

    def raise_memory(self) -> None:
        """Lift that limit after the cell's code has ended, and restore the recursion limit."""
        self._limits.raise_memory()
        if getrecursionlimit() < LEAST_RECURSION:
            setrecursionlimit(LEAST_RECURSION)

    def reporting(self) -> None:
        """Tell the supervisor that an interrupt has ended the cell and its traceback follows."""
        if getpid() == self._pid:
            self._send(Reply(Kind.REPORTING))


def become_runner(plan: Plan, scratch: str, connection: int, output: int) -> NoReturn:
    """Turn a new child of the zygote into a session process: confine it and serve requests.

    ``connection`` and ``output``: descriptors of its connection and its output pipe. Closes all others."""
    # Use _signal, not signal: each memory page that is written to here is copied for each session.
    set_wakeup_fd(-1)
    set_handler(SIGCHLD, SIG_DFL)
    os.setsid()  # the processes of a session share one share of the processor, and can be found by their process session
    # The next two need /proc, which is not available after confine_session.
    with suppress(OSError):  # some containers forbid it
        write(os.open("/proc/self/oom_score_adj", os.O_WRONLY), b"500")  # the kernel kills sessions before the trainer
    address_space = int(read(os.open("/proc/self/statm", os.O_RDONLY), 100).split()[0]) * getpagesize()
    # Move them above their final numbers first: in a zygote with many sessions they may already have one of those numbers.
    wanted = (connection, CONNECTION), (output, OUTPUT), (os.open(os.devnull, os.O_RDONLY), EMPTY)
    lifted = [(fcntl(descriptor, F_DUPFD, EMPTY + 1), place) for descriptor, place in wanted]
    for descriptor, place in lifted:
        os.dup2(descriptor, place, inheritable=False)
    close_all_but(2, CONNECTION, OUTPUT, EMPTY)
    confine_session(plan, scratch)
    for place, descriptor in enumerate((EMPTY, OUTPUT, OUTPUT)):  # before this, errors go to descriptor 2, the zygote's log
        os.dup2(descriptor, place)
    Worker(plan, scratch, address_space).serve()


def seed_everything(seed: int) -> None:
    """Seed the global generators of ``random``, and of numpy (legacy) and sympy if they are imported. Without this all forks of
    the zygote would have the same state."""
    random.seed(seed)
    # No imports, and a small seed for numpy: anything more would make every session copy further memory pages.
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed((seed ^ seed >> 32) & 0xFFFFFFFF)
    if (sympy := sys.modules.get("sympy")) is not None:
        sympy.core.random.seed(seed)


def _error_text(error: BaseException) -> bytes:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).encode("utf-8", "replace")[:1000]

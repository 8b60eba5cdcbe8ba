"""A session's interpreter: what runs in a runner, from its fork on.

Everything here runs under whatever the cells did to the process. What is called before and after each cell is bound to names of
this module when it is loaded, so that cells which replace functions of the standard library do not replace ours.
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
"""Digits of an integer that ``str`` converts; Python's own 4,300 stops ordinary problems such as the digit sum of 2**20000."""
LEAST_RECURSION = 1000
"""Python's own limit: what runs between cells needs a part of it."""
RESTORE_ATTEMPTS = 3
"""A signal handler that a cell left behind may raise while order is made for the next one, once for each signal that waits."""


class Worker:
    """A session's interpreter."""

    def __init__(self, plan: Plan, scratch: str, address_space: int) -> None:
        """``scratch``: the working directory. ``address_space``: what this process has now, in bytes."""
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
        """Answer requests for ever; end the process at the end of the connection."""
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
            except BlockingIOError:  # a cell has set up all descriptors that there are
                set_blocking(CONNECTION, True)
                continue
            except (OSError, MemoryError):  # a cell closed the connection, and kept it open in a child; a request is too large
                _exit(1)
            except BaseException:  # noqa: BLE001, S112 - a signal handler that a cell left behind raised; its cell is over
                continue
            self._nonce, request = taken
            self._mark = line_mark(self._nonce)
            reply = self._answer(request)
            if getpid() != self._pid:  # a child that a cell forked came to the end of the cell
                _exit(self._interpreter.exit_status)
            self._send(reply)

    def _mark_here(self) -> str:
        """The present cell's mark. None in a child that a cell forked: it may write when another cell has another."""
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
        except BaseException as error:  # noqa: BLE001 - the supervisor turns it into a SandboxFailure
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
        """Have matplotlib find its font list, in this process and in those that it starts. Not at the start: many processes are
        started together, and wait for one another."""
        if self._fonts:
            with suppress(Exception):  # no room, no descriptors: matplotlib makes its own list then
                link_list(self._fonts, self._home)
            self._fonts = ""

    def _attempt(self, action: Callable[[], object]) -> Reply:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - told in words
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
                raise OSError("is no file")
            os.ftruncate(descriptor, begin)
            file.seek(begin)
            file.write(content)

    def _read(self, request: Request) -> Reply:
        """A part of a regular file. ``finished`` is the file's size."""
        try:
            descriptor = os.open(os.path.join(os.fsencode(self._home), request.data), os.O_RDONLY | os.O_NONBLOCK)
            with open(descriptor, "rb", buffering=0) as file:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    return Reply(Kind.ERROR, data=b"is no file")
                file.seek(request.number)
                return Reply(Kind.OK, finished=status.st_size, data=file.read(min(request.limit, MAX_DATA)))
        except Exception as error:  # noqa: BLE001 - told in words
            return Reply(Kind.ERROR, data=_error_text(error))

    # ----- between cells

    def _make_ready(self) -> bool:
        """Whether a cell can run now."""
        for _ in range(RESTORE_ATTEMPTS):
            try:
                self._restore()
            except BaseException:  # noqa: BLE001, S112 - whatever it is: where it comes again, this process is given up
                continue
            return True
        return False

    def _restore(self) -> None:
        """Bring everything that the next cell needs into its own order, whatever the last one did to it. Raises where that is
        impossible."""
        self._limits.restore()
        self._streams.restore()
        # signal.signal turns its arguments into enums and back, which takes longer than all else here.
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
        try:  # os.getcwd walks for seconds where a cell made a path too long for the kernel
            removed = not os_stat(".").st_nlink
        except PermissionError:  # a cell closed its working directory to all: it can open it again
            removed = False
        if removed:
            makedirs(self._home, exist_ok=True)
            chdir(self._home)

    def _flush(self) -> None:
        """Push everything into the pipe before the reply. (The C library has no buffer: ``warm_up``.)"""
        self._cancel_timers()
        self._streams.flush()

    def _cancel_timers(self) -> None:
        """Stop the cell's alarms, and let come what still waits behind a mask: it belongs to this cell, and not to the next."""
        while True:
            try:
                for timer in TIMERS:
                    setitimer(timer, 0)
                pthread_sigmask(SIG_SETMASK, ())
            except BaseException:  # noqa: BLE001, S112 - a cell's signal handler raised, and the cell is over
                continue
            return

    # ----- for the interpreter

    def report(self, text: str) -> None:
        """Write a traceback where it will be seen, even where the cell closed or replaced its output, on a line of its own."""
        with suppress(ValueError, OSError):  # where it fails, the next cell's beginning tells
            self._limits.restore()
        self._streams.flush()
        self._streams.restore()
        self._streams.write(self._mark_here() + text)

    def lower_memory(self) -> None:
        """Set the address-space limit that a cell's code runs under."""
        self._limits.lower_memory()

    def raise_memory(self) -> None:
        """Lift the limit for cells: their code has ended. Python's own recursion limit comes back with it."""
        self._limits.raise_memory()
        if getrecursionlimit() < LEAST_RECURSION:
            setrecursionlimit(LEAST_RECURSION)

    def reporting(self) -> None:
        """Tell the supervisor that the cell has ended, and its report comes."""
        if getpid() == self._pid:
            self._send(Reply(Kind.REPORTING))


def become_runner(plan: Plan, scratch: str, connection: int, output: int) -> NoReturn:
    """Turn a fresh child of the zygote into a session's process, shut it in and serve. Closes every descriptor but the two
    given and the log."""
    # What the standard library has above the system's own calls writes to many more pages of memory, and each is copied.
    set_wakeup_fd(-1)
    set_handler(SIGCHLD, SIG_DFL)
    os.setsid()  # all that runs for a session shares the processor as one, and can be found by it
    # Both need /proc, which a session has not.
    with suppress(OSError):  # some containers forbid it
        write(os.open("/proc/self/oom_score_adj", os.O_WRONLY), b"500")  # where memory runs out, sessions go before the trainer
    address_space = int(read(os.open("/proc/self/statm", os.O_RDONLY), 100).split()[0]) * getpagesize()
    # First beyond their places: where the zygote holds a descriptor for each of many sessions, these have such numbers already.
    wanted = (connection, CONNECTION), (output, OUTPUT), (os.open(os.devnull, os.O_RDONLY), EMPTY)
    lifted = [(fcntl(descriptor, F_DUPFD, EMPTY + 1), place) for descriptor, place in wanted]
    for descriptor, place in lifted:
        os.dup2(descriptor, place, inheritable=False)
    close_all_but(2, CONNECTION, OUTPUT, EMPTY)
    confine_session(plan, scratch)
    for place, descriptor in enumerate((EMPTY, OUTPUT, OUTPUT)):  # until here, 2 was the zygote's log
        os.dup2(descriptor, place)
    Worker(plan, scratch, address_space).serve()


def seed_everything(seed: int) -> None:
    """Seed the global generators: ``random``'s, and numpy's legacy one and sympy's where the zygote has loaded them. Every fork
    shares their state otherwise."""
    random.seed(seed)
    # No import statements here, and one small number for numpy: each would have every session pay for pages of memory.
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed((seed ^ seed >> 32) & 0xFFFFFFFF)
    if (sympy := sys.modules.get("sympy")) is not None:
        sympy.core.random.seed(seed)


def _error_text(error: BaseException) -> bytes:
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(said).encode("utf-8", "replace")[:1000]

"""A session's interpreter. The same object lives in a runner, its savepoints and its branches: they are forks of each other.

Everything here runs under whatever the cells did to the process.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import signal
import socket
import sys
import tempfile
from _signal import signal as set_handler  # type: ignore[import-not-found]
from collections.abc import Callable, Set
from types import ModuleType
from typing import Any, NoReturn, TextIO

from aster.sandbox import copies, giving, snapshot
from aster.sandbox.cells import Interpreter, short_traceback
from aster.sandbox.copies import CONNECTION, EMPTY, OUTPUT, Copied, Work
from aster.sandbox.isolation.guard import remove_tree
from aster.sandbox.isolation.syscalls import libc
from aster.sandbox.protocol import ForkRequest, Reply, Request, pack_reply, receive, take_request
from aster.sandbox.snapshot import Snapshot

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
    """A session's interpreter, from the fork of its first runner on: savepoints and branches are forks of that."""

    def __init__(self, request: ForkRequest, scratch: str, line: int, keeper: int, address_space: int) -> None:
        """``scratch`` is the working directory of the keeper's first line, ``address_space`` what the keeper has, in bytes."""
        self._scratch = scratch
        self._line = line
        self._keeper = keeper
        self._pid = os.getpid()
        self._step = -1
        """How far the session has come: -1 before its setup, then the number of its steps."""
        self._files = True
        self._saved = False
        """A savepoint was made after the last reply."""
        self._unsaved = False
        """The next savepoint does not wait until it is worth the fork: replay could not lead here, or would be long."""
        module = ModuleType("__main__")
        sys.modules["__main__"] = module  # so that pickle and multiprocessing find what cells define
        sys.set_int_max_str_digits(LARGEST_INT_DIGITS)
        sys.argv = [""]
        home = line_folder(scratch, line)
        remove_tree(home)
        os.mkdir(home, 0o700)
        os.chdir(home)
        sys.path.insert(0, home)
        self._settle(line)
        self._output = _output_stream()
        guard = MemoryGuard(address_space + (request.memory_mb << 20))
        guard.__exit__()
        self._interpreter = Interpreter(module.__dict__, self._report, guard, request.timeout_text)
        self._work = Work()
        self._giver = giving.Giver(CONNECTION)

    def serve(self, connection: int, output: int) -> NoReturn:
        """Answer the requests of a supervisor for ever."""
        self._attach(connection, output)
        self._serve()

    def _serve(self) -> NoReturn:
        """Answer requests for ever; end the process at the end of the connection."""
        connection = socket.socket(fileno=CONNECTION)
        buffer = bytearray()
        descriptors: list[int] = []
        while True:
            try:
                taken = take_request(buffer)
                if taken is None:
                    self._giver.wait()
                    data, passed = receive(connection, 1 << 16, 2)
                    if not data:
                        os._exit(0)
                    buffer += data
                    descriptors += passed
                    continue
            except OSError:  # a cell closed the connection, and kept it open in a child
                os._exit(1)
            except BaseException:  # noqa: BLE001, S112 - a signal handler that a cell left behind raised; its cell is over
                continue
            nonce, request = taken
            if self._saved:
                self._saved = False
                copies.tell({"accepted": self._line})
            reply = self._answer(request, descriptors)
            descriptors.clear()
            if os.getpid() != self._pid:  # a child that a cell forked came to the end of the cell
                os._exit(0)
            if reply is None:
                continue
            os.write(CONNECTION, pack_reply(nonce, reply))
            if self._unsaved or self._work.enough():
                self._save()

    def _answer(self, request: Request, descriptors: list[int]) -> Reply | None:
        match request.op:
            case "run":
                return self._run(request)
            case "start":
                return self._start(request)
            case "hello":
                return Reply(True, step=self._step, files=self._files)
            case "seed":
                seed_everything(int(request.text))
                self._step = request.step
                return Reply(True)
            case "branch":
                return self._branch(request.step, *descriptors)
        raise ValueError(f"unknown request {request.op!r}")

    def _start(self, request: Request) -> Reply:
        seed, _, setup = request.text.partition("\n")
        seed_everything(int(seed))
        ok = True
        self._work.begin()
        try:
            self._interpreter.setup(setup)
        except BaseException as error:  # noqa: BLE001 - the supervisor turns it into a SandboxFailure
            ok = False
            self._report(short_traceback(error))
        self._work.end()
        self._flush()
        self._step = 0
        return Reply(ok)

    def _run(self, request: Request) -> Reply:
        self._restore()
        self._work.begin()
        status = self._interpreter.run(request.number, request.text)
        self._work.end()
        self._flush()
        self._step = request.step
        # Nobody can interrupt a cell again at the same place: replay could not repeat it.
        self._unsaved |= self._interpreter.interrupted
        return Reply(status == "ok", self._interpreter.interrupted)

    def _save(self) -> None:
        """Leave a sleeping copy of this process behind, where a fork makes one. Returns in this process, and in the copy when
        that is woken."""
        self._unsaved = False
        self._giver.give()  # or the copy would keep what this process gives back later
        folder = line_folder(self._scratch, self._line)
        state = random.getstate()
        message = {"saved": self._line, "of": self._pid, "step": self._step}
        copied = self._copy(lambda: snapshot.take(folder, True, self._ours()), message)
        if isinstance(copied, Copied):
            try:
                self._attach(*copies.sleep(copied.bell))
                copied.snapshot.restore(folder)
                self._files = copied.snapshot.entries is not None
                self._come_alive(state, copied)
            except BaseException:  # noqa: BLE001 - the keeper hears of its end
                os._exit(1)
        else:
            self._saved = copied
        self._work.restart()

    def _branch(self, line: int, connection: int, output: int) -> Reply | None:
        """Fork another line from here. None in the branch: it has not been asked."""
        old, new = line_folder(self._scratch, self._line), line_folder(self._scratch, line)

        def prepare() -> Snapshot:
            snapshot.copy_folder(old, new)
            return snapshot.take(old, False, self._ours() | {connection, output})

        state = random.getstate()
        copied = self._copy(prepare, {"branched": line}, {connection, output})
        if isinstance(copied, Copied):
            try:
                self._attach(connection, output)
                copied.snapshot.reopen(new)
                copied.bell.close()
                self._settle(line)
                self._come_alive(state, copied)
            except BaseException:  # noqa: BLE001 - the keeper hears of its end
                os._exit(1)
            return None
        os.close(connection)
        os.close(output)
        return Reply(copied)

    def _copy(self, prepare: Callable[[], Snapshot], message: dict[str, Any], passed: Set[int] = frozenset()) -> Copied | bool:
        """A copy of this process, unless a fork would not be one."""
        if snapshot.obstacle(self._ours() | passed):
            return False
        return copies.copy_process(self._keeper, prepare, message)

    def _ours(self) -> frozenset[int]:
        return copies.OURS | self._interpreter.descriptors()

    def _settle(self, line: int) -> None:
        """Let the process's own idea of its home follow its line."""
        old, new = line_folder(self._scratch, self._line), line_folder(self._scratch, line)
        os.environ["HOME"] = os.environ["TMPDIR"] = os.environ["MPLCONFIGDIR"] = new
        tempfile.tempdir = None
        sys.path[:] = [new if entry == old else entry for entry in sys.path]
        self._line = line

    def _come_alive(self, random_state: Any, copied: Copied) -> None:
        """In a copy: be somebody else than the process it was forked from."""
        self._pid = os.getpid()
        random.setstate(random_state)  # Python reseeds it in every fork
        self._interpreter.after_fork()
        self._unsaved = True
        self._work.restart()
        self._giver = giving.Giver(CONNECTION)
        copied.take_signals()

    def _attach(self, connection: int, output: int) -> None:
        os.dup2(connection, CONNECTION, inheritable=False)
        os.dup2(output, OUTPUT, inheritable=False)
        os.close(connection)
        os.close(output)
        self._restore()

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
        # signal.signal turns its arguments into enums and back, which takes longer than all else here.
        set_handler(signal.SIGINT, self._interpreter.interrupt)

    def _report(self, text: str) -> None:
        """Write a traceback where it will be seen, even where the cell closed or replaced its output."""
        self._restore()
        self._output.write(text)

    def _flush(self) -> None:
        """Push everything into the pipe before the reply: Python's buffers and the C library's."""
        signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm belongs to its cell
        for stream in {id(stream): stream for stream in (sys.stdout, sys.stderr, sys.__stdout__, self._output)}.values():
            # Cells may leave anything there, and close the descriptor below: their own output is all that is lost.
            try:
                stream.flush()  # type: ignore[union-attr]
            except Exception:  # noqa: BLE001, S112
                continue
        libc.fflush(None)


def line_folder(scratch: str, line: int) -> str:
    """The working directory of one of a keeper's lines: ``scratch``, or one beside it."""
    return f"{scratch}-{line}" if line else scratch


def seed_everything(seed: int) -> None:
    """Seed the global generators: ``random``'s, and numpy's legacy one and sympy's where the zygote has loaded them. Every fork
    shares their state otherwise."""
    random.seed(seed)
    # No import statements here, and one small number for numpy: each would have every session pay for pages of memory.
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed((seed ^ seed >> 32) & 0xFFFFFFFF)
    if (sympy := sys.modules.get("sympy")) is not None:
        sympy.core.random.seed(seed)


def _output_stream() -> TextIO:
    """Descriptor 1 as text, a write a line: what a subprocess prints then falls into its place."""
    return io.TextIOWrapper(
        open(1, "wb", closefd=False),
        encoding="utf-8",
        errors="backslashreplace",
        newline="\n",
        line_buffering=True,
    )

"""The supervisor's side of one keeper: its control socket, and the word from its zygote that it is gone."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import signal
import socket
import struct
from typing import Any, Protocol

from aster.sandbox.handle import ZygoteHandle
from aster.sandbox.protocol import MAX_REPLY, ForkRequest, SandboxFailure, pack, take_frame

GONE_SECONDS = 10.0
"""A keeper that has not ended by then is killed; if that takes as long again, its zygote hangs."""
FULL_SECONDS = 0.002
"""Between two tries to send where the keeper has not read yet what was sent."""
CREDENTIALS = struct.Struct("3i")


class NoRoom(Exception):
    """The machine is short of memory or processes for the moment."""


class RunnerEvents(Protocol):
    """What a keeper tells of one runner."""

    def on_interrupted(self) -> None:
        """A soft interrupt was sent."""

    def on_ended(self, status: int | None) -> None:
        """It ended. None where its keeper did, and took it along."""

    def on_failed(self, error: Exception) -> None:
        """It could not be forked."""


class KeeperHandle:
    """One keeper and the lines it has."""

    def __init__(self, zygote: ZygoteHandle, number: int) -> None:
        self.number = number
        self.lines: set[int] = set()
        """Lines that a session uses."""
        self.pid: int | None = None
        """As this process sees it, once it has said something."""
        self.runners: dict[int, RunnerEvents] = {}
        self._zygote = zygote
        self._loop = asyncio.get_running_loop()
        self._control, self._theirs = socket.socketpair()
        self._control.setblocking(False)
        self._control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._buffer = bytearray()
        self.gone: asyncio.Future[int | None] = self._loop.create_future()
        self._closed: dict[int, asyncio.Future[None]] = {}
        self._next_line = itertools.count()
        self._open = True
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._control, self._on_readable)

    @property
    def alive(self) -> bool:
        """Whether runners may be asked for."""
        return self._open and not self.gone.done()

    @property
    def zygote_lost(self) -> bool:
        """Whether it ended because its zygote did."""
        return self.gone.done() and self.gone.result() is None

    async def fork(self, request: ForkRequest) -> None:
        """Have the zygote fork it. Raises ZygoteLost."""
        try:
            with self._theirs:
                await self._zygote.fork(self.number, request, self._theirs, self)
        except BaseException:
            self.on_gone(None)  # it never came to be
            raise

    def new_line(self) -> int:
        """A number for another session."""
        line = next(self._next_line)
        self.lines.add(line)
        return line

    async def send(self, message: dict[str, Any], descriptors: list[int] | None = None) -> None:
        """Send a request of any length. Does nothing where the keeper is gone: the zygote says so."""
        data = memoryview(pack(message))
        while data and self._open:
            try:
                sent = socket.send_fds(self._control, [data], descriptors or [])
                data, descriptors = data[sent:], None
            except BlockingIOError:
                await asyncio.sleep(FULL_SECONDS)
            except OSError:
                return

    def tell(self, op: str, line: int = -1) -> None:
        """Send a short request. A keeper that has not read the ones before is killed."""
        if self._open:
            try:
                self._control.send(pack({"op": op, "line": line}))
            except BlockingIOError:
                self.kill()
            except OSError:
                return  # it is gone: the zygote says so

    async def leave(self, line: int) -> None:
        """End a line, its processes and its files; the keeper with its last line."""
        self.lines.discard(line)
        self.runners.pop(line, None)
        if self.lines and self.alive:
            closed = self._closed[line] = self._loop.create_future()
            self.tell("end", line)
            self._set_timer(GONE_SECONDS, self.kill)
            await asyncio.wait({closed, self.gone}, return_when=asyncio.FIRST_COMPLETED)
        else:
            self.close()
            await asyncio.shield(self.gone)

    def close(self) -> None:
        """Have it end, with all below it."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._control)
            # Not here: the keeper wakes up and ends everything below it, often on this processor and before the call returns,
            # and the loop has other sessions to serve.
            self._loop.run_in_executor(None, self._control.close)
            self._theirs.close()
            if not self.gone.done():
                self._set_timer(GONE_SECONDS, self.kill)

    def kill(self) -> None:
        """Kill it: it does not answer."""
        if self._zygote.awaits(self.number):
            self._set_timer(GONE_SECONDS, self.kill)  # nobody is there yet
            return
        self._zygote.kill(self.number)
        if not self.gone.done():
            self._set_timer(GONE_SECONDS, self._zygote.condemn)

    def on_failed(self, error_number: int, reason: str) -> None:
        """From the zygote: no fork."""
        for runner in list(self.runners.values()):
            runner.on_failed(no_process(error_number, reason))
        self.on_gone(0)

    def on_gone(self, status: int | None) -> None:
        """From the zygote: it is dead, with all below it."""
        self.close()
        self._set_timer(0, None)
        if not self.gone.done():
            self.gone.set_result(status)
        for runner in list(self.runners.values()):
            runner.on_ended(None)

    def _set_timer(self, seconds: float, callback: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, callback) if callback is not None else None

    def _on_readable(self) -> None:
        try:
            data, ancillary, _, _ = self._control.recvmsg(MAX_REPLY, socket.CMSG_SPACE(CREDENTIALS.size))
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        if not data:
            self.close()  # it ends, or has ended: the zygote says when
            return
        for _, kind, credentials in ancillary:
            if kind == socket.SCM_CREDENTIALS:
                self.pid = CREDENTIALS.unpack(credentials[: CREDENTIALS.size])[0]
        self._buffer += data
        try:
            while (message := take_frame(self._buffer, MAX_REPLY)) is not None:
                self._take(message)
        except (ValueError, KeyError, TypeError):
            # Only code of a cell that took the keeper over can bring this about.
            self.kill()

    def _take(self, message: dict[str, Any]) -> None:
        match message:
            case {"here": True}:
                pass  # its credentials came along
            case {"interrupted": int(line)}:
                if line in self.runners:
                    self.runners[line].on_interrupted()
            case {"ended": int(line), "status": int(status)}:
                if line in self.runners:
                    self.runners[line].on_ended(status)
            case {"failed": int(line), "errno": int(error_number), "reason": str(reason)}:
                if line in self.runners:
                    self.runners[line].on_failed(no_process(error_number, reason))
            case {"closed": int(line)}:
                self._closed.pop(line).set_result(None)
                if not self._closed:
                    self._set_timer(0, None)
            case _:
                raise ValueError(f"unknown message from a keeper: {message}")


def no_process(error_number: int, reason: str) -> Exception:
    """What a failed fork means: come again, or give up."""
    if error_number in (errno.EAGAIN, errno.ENOMEM):
        return NoRoom(reason)
    return SandboxFailure(f"no process could be started for a session: {reason}")


def ending(status: int) -> str:
    """How a process ended, for the model to read."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"was killed by {signal.Signals(number).name}"
        except ValueError:  # most real-time signals have no name
            return f"was killed by signal {number}"
    return f"exited with status {os.WEXITSTATUS(status)}"

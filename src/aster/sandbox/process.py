"""The supervisor's side of one session process: requests, replies, deadlines, output."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aster.sandbox.handle import Forked, ZygoteHandle
from aster.sandbox.output import Clip
from aster.sandbox.protocol import ForkRequest, pack, take_frame

GRACE_SECONDS = 1.0
"""From the first soft interrupt to SIGKILL."""
INTERRUPTS = 4
"""Soft interrupts in that time: a library may swallow the first."""
GONE_SECONDS = 10.0
"""A killed session that its zygote has not buried by then proves that the zygote hangs."""
DRAIN_SECONDS = 0.005
"""Between two looks at a running cell's output. With a pipe of 64 KiB this also slows endless output to 13 MB/s."""
PIPE_BYTES = 1 << 20
"""The most a pipe holds, however a cell enlarges it: what must be read after a reply to have all of the cell's output."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one request."""

    status: str | None
    """``ok`` or ``error``; None where the process ended instead of answering."""
    interrupted: bool = False
    """The session says that the soft interrupt reached the cell."""
    overran: bool = False
    """The deadline passed and the process was killed for it."""


class SessionProcess:
    """One session process. Requests go one at a time."""

    def __init__(
        self,
        zygote: ZygoteHandle,
        forked: Forked,
        connection: socket.socket,
        output: int,
        clip: Clip,
        remove_files: Callable[[], None] | None,
    ) -> None:
        self.pid = forked.pid
        self.clip = clip
        self.gone = forked.gone
        self.doomed = False
        """No request can succeed any more."""
        self._zygote = zygote
        self._pidfd = forked.pidfd
        self._connection = connection
        self._output = output
        self._remove_files = remove_files
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._nonce = ""
        self._answer: asyncio.Future[Outcome] | None = None
        self._overran = False
        self._armed = False
        self._looks: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._closed = False
        self._fault = ""
        self._loop.add_reader(connection, self._on_readable)
        self.gone.add_done_callback(self._on_gone)

    @classmethod
    async def fork(
        cls, zygote: ZygoteHandle, request: ForkRequest, clip: Clip, remove_files: Callable[[], None] | None
    ) -> SessionProcess:
        """A new process from the zygote; ``remove_files`` is called in a thread once it is gone. Raises ZygoteLost or
        SandboxFailure."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        output, their_output = os.pipe()
        os.set_blocking(output, False)
        try:
            forked = await zygote.fork(request, theirs, their_output)
        except BaseException:
            ours.close()
            os.close(output)
            raise
        finally:
            theirs.close()
            os.close(their_output)
        return cls(zygote, forked, ours, output, clip, remove_files)

    @property
    def zygote_lost(self) -> bool:
        """Whether this process ended because its zygote did."""
        return self.gone.done() and self.gone.result() is None

    async def request(self, message: dict[str, Any], seconds: float) -> Outcome:
        """Send a request and wait for its answer: ``seconds``, then soft interrupts for a grace time, then SIGKILL."""
        if self.doomed:
            return Outcome(None)
        self._nonce = secrets.token_hex(8)
        self._overran = False
        answer = self._answer = self._loop.create_future()
        self._timer = self._loop.call_later(seconds, self._interrupt, INTERRUPTS)
        self._looks = self._loop.call_later(DRAIN_SECONDS, self._look)
        try:
            with contextlib.suppress(OSError):  # the process is gone: the answer says so
                await self._loop.sock_sendall(self._connection, pack({**message, "nonce": self._nonce}))
            return await answer
        finally:
            self._answer = None
            self._timer.cancel()
            self._looks.cancel()
            self._disarm()
            self.clip.drain(self._output, PIPE_BYTES)

    def kill(self) -> None:
        """Kill the process; its zygote then kills what it started."""
        self.doomed = True
        if self.gone.done() or self._watch is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._watch = self._loop.call_later(GONE_SECONDS, self._zygote.condemn)

    async def end(self) -> None:
        """Kill the process and its group, wait until they are gone, and remove its files."""
        if self._closed:
            return
        self.kill()
        await asyncio.shield(self.gone)
        self.release()
        if self._remove_files is not None:
            await asyncio.to_thread(self._remove_files)

    def release(self) -> None:
        """Close this side's descriptors."""
        if self._closed:
            return
        self._closed = self.doomed = True
        if self._watch is not None:
            self._watch.cancel()
        self._loop.remove_reader(self._connection)
        self._disarm()
        self._connection.close()
        os.close(self._output)
        os.close(self._pidfd)

    def ending(self) -> str:
        """How the process ended, for the model to read."""
        if self._fault:
            return self._fault
        status = self.gone.result() if self.gone.done() else None
        if status is None:
            return "was lost with the sandbox's parent process"
        if os.WIFSIGNALED(status):
            return f"was killed by {signal.Signals(os.WTERMSIG(status)).name}"
        return f"exited with status {os.WEXITSTATUS(status)}"

    def _interrupt(self, left: int) -> None:
        """Deadline: interrupt softly, ``left`` times, then kill."""
        if self._answer is None or self._answer.done():
            return
        if left == 0:
            self._overran = True
            self.kill()
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGINT)
        self._timer = self._loop.call_later(GRACE_SECONDS / INTERRUPTS, self._interrupt, left - 1)

    def _on_readable(self) -> None:
        try:
            data = self._connection.recv(1 << 16)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self._distrust("")  # it ended, or closed its connection
            return
        self._buffer += data
        try:
            reply = take_frame(self._buffer)
            if reply is None:
                return
            if self._answer is None or reply["nonce"] != self._nonce:
                raise ValueError("a frame that answers no request")
            outcome = Outcome(str(reply["status"]), bool(reply["interrupted"]))
        except (ValueError, KeyError):
            self._distrust("was killed because the code wrote to the sandbox's own connection")
            return
        if not self._answer.done():
            self._answer.set_result(outcome)

    def _distrust(self, fault: str) -> None:
        """No answer can be had from this process any more, or none to be believed."""
        self._fault = fault
        self._loop.remove_reader(self._connection)
        self.kill()

    def _on_gone(self, _: asyncio.Future[int | None]) -> None:
        self.doomed = True
        if self._watch is not None:
            self._watch.cancel()
        if not self._closed:
            with contextlib.suppress(OSError):  # wakes a request that is still being sent
                self._connection.shutdown(socket.SHUT_RDWR)
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(Outcome(None, overran=self._overran))

    # A running cell's output is looked at on a timer while it flows, and waited for with the loop's reader while it does not:
    # a cell that prints line by line then costs the supervisor no wake-up a line, and a silent one costs nothing.

    def _look(self) -> None:
        if self.clip.drain(self._output, 1 << 16):
            self._looks = self._loop.call_later(DRAIN_SECONDS, self._look)
        else:
            self._armed = True
            self._loop.add_reader(self._output, self._on_output)

    def _on_output(self) -> None:
        self._disarm()
        if self.clip.drain(self._output, 1 << 16):
            self._looks = self._loop.call_later(DRAIN_SECONDS, self._look)

    def _disarm(self) -> None:
        if self._armed:
            self._armed = False
            self._loop.remove_reader(self._output)

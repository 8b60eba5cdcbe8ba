"""The supervisor's side of one runner, a session's process: requests, replies, deadlines, output, its end."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import signal
import socket
import termios
from dataclasses import dataclass

from aster_sandbox.handle import ZygoteHandle, pid_of
from aster_sandbox.output import Clip
from aster_sandbox.protocol import (
    FIRST_READ_BYTES,
    INTERRUPT,
    NONCE_BYTES,
    READ_BYTES,
    Kind,
    Reply,
    Request,
    line_mark,
    pack_request,
    take_reply,
)

GRACE_SECONDS = 1.0
"""From the first soft interrupt to SIGKILL."""
PAUSES = (0.25, 0.25, *[0.05] * 10)
"""Between soft interrupts, as shares of that time: a library may swallow the first. From the third on they come more often, and
repeat themselves inside the process (``cells.SINGLE_INTERRUPTS``)."""
REPORT_SECONDS = 5.0
"""For the traceback of a cell that gave way to an interrupt."""
FIRST_LOOK_SECONDS = 0.02
"""Of a cell that has ended by then, nothing is looked at before its end."""
DRAIN_SECONDS = 0.005
"""Between two looks at a running cell's output. With a pipe of 64 KiB this also slows endless output to 13 MB/s."""
PIPE_BYTES = 1 << 20
"""The most a pipe holds, however a cell enlarges it: what must be read after a reply to have all of the cell's output."""
LOOK_BYTES = 1 << 16
"""Of a running cell's output, taken at one look."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one request."""

    reply: Reply | None
    """None where the process ended instead of answering."""
    overran: bool = False
    """The deadline passed and the process was killed for it."""

    @property
    def kind(self) -> Kind | None:
        """Of the reply."""
        return None if self.reply is None else self.reply.kind


class Runner:
    """One process. Requests go one at a time."""

    def __init__(self, zygote: ZygoteHandle, number: int, clip: Clip) -> None:
        self.number = number
        self.doomed = False
        """No request can succeed any more."""
        self.killed_for_memory = False
        """It was killed because memory ran short, whatever the cell did."""
        self.unread = False
        """It ended before it read the last request, or was killed because it did not read it."""
        self.fork_error: Exception | None = None
        """Why it could not be forked."""
        self.charged = False
        """What is held for it counts in a control group of its own."""
        self._clip = clip
        self._zygote = zygote
        self._loop = asyncio.get_running_loop()
        self._pidfd = -1
        self._connection, theirs = socket.socketpair()
        try:
            self._output, their_output = os.pipe()
        except OSError:
            self._connection.close()
            theirs.close()
            raise
        self._connection.setblocking(False)
        os.set_blocking(self._output, False)
        self._child_ends = [theirs.detach(), their_output]
        self.forked: asyncio.Future[None] = self._loop.create_future()
        """Done when the zygote has told of the fork, or that there will be none."""
        self.gone: asyncio.Future[int | None] = self._loop.create_future()
        """Its status, as of waitpid; None where the zygote's end was its own."""
        self._buffer = bytearray()
        self._nonce = self._before = b""
        self._answer: asyncio.Future[Outcome] | None = None
        self._overran = self._interrupted = self._reporting = False
        self._reader_added = False
        self._looks: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._deadline = self._patience = 0.0
        self._grace = GRACE_SECONDS
        self._fault = ""
        self._loop.add_reader(self._connection, self._on_readable)

    async def launch(self, name: str) -> None:
        """Have the zygote fork it. Requests may follow at once. Raises ZygoteLost."""
        try:
            await self._zygote.fork(self.number, name, self._child_ends, self)
        except BaseException:
            self.on_gone(None)  # it never came to be
            raise
        finally:
            self._close_child_ends()

    async def request(self, request: Request, seconds: float, patience: float, grace: float | None = None) -> Outcome:
        """Send a request and wait for its answer: ``seconds``, then soft interrupts for a grace time, then SIGKILL.

        ``patience``: in so many seconds a runner that lives begins to read it; one that does not is killed.
        """
        if self.doomed:
            self.unread = True
            return Outcome(None)
        self._before, self._nonce = self._nonce, secrets.token_bytes(NONCE_BYTES)
        self._clip.begin(line_mark(self._nonce))
        self._overran = self._interrupted = self._reporting = False
        self._grace = GRACE_SECONDS if grace is None else grace
        answer = self._answer = self._loop.create_future()
        self._deadline = self._loop.time() + seconds
        self._patience = patience
        self._looks = self._loop.call_later(min(FIRST_LOOK_SECONDS, seconds), self._start_watching)
        try:
            await self._send(pack_request(self._nonce, request))
            return await answer
        finally:
            self._answer = None
            for timer in (self._timer, self._unread_timer, self._looks):
                if timer is not None:
                    timer.cancel()
            self._remove_reader()
            if self._output >= 0:
                self._clip.drain(self._output, PIPE_BYTES)

    def kill(self, fault: str = "") -> None:
        """Kill the process; the zygote then ends what it started. ``fault`` is what the model is told."""
        self.doomed = True
        self._fault = self._fault or fault
        if not self.gone.done():
            self._signal(signal.SIGKILL)  # one that is not forked yet is killed when it is
            self._zygote.expect_end(self.number)

    async def end(self) -> None:
        """Kill the process and what it started, and wait until all is gone."""
        try:
            self.kill()
            await asyncio.shield(self.gone)
        finally:
            self.release()

    def release(self) -> None:
        """Close this side's descriptors."""
        self.doomed = True
        if self._output < 0:
            return
        self._loop.remove_reader(self._connection)
        self._remove_reader()
        self._close_child_ends()
        self._connection.close()
        os.close(self._output)
        self._output = -1
        if self.gone.done():
            self._close_pidfd()

    @property
    def pid(self) -> int | None:
        """As this process sees it; None where it is not forked yet, or has ended."""
        return pid_of(self._pidfd) if self._pidfd >= 0 else None

    @property
    def died_with_zygote(self) -> bool:
        """Whether the end of the zygote was this process's."""
        return self.gone.done() and self.gone.result() is None

    @property
    def died_by_itself(self) -> bool:
        """Whether it was not killed for others' sake, and came to life at all."""
        return not self.killed_for_memory and self.fork_error is None and self.gone.done() and self.gone.result() is not None

    def ending(self) -> str:
        """How the process ended, for the model to read."""
        if self._fault:
            return self._fault
        status = self.gone.result() if self.gone.done() else None
        return "was lost with the sandbox's parent process" if status is None else ending(status)

    # ----- from the zygote

    def on_forked(self, pidfd: int) -> None:
        """The zygote has forked the process, and gives its pidfd."""
        self._pidfd = pidfd
        self.forked.set_result(None)
        if self.doomed:
            self.kill()

    def on_failed(self, error: Exception) -> None:
        """No fork."""
        self.fork_error = error
        self.on_gone(None)

    def on_gone(self, status: int | None) -> None:
        """It is dead, and so is what it left."""
        if self.gone.done():
            return
        self.gone.set_result(status)
        if not self.forked.done():
            self.forked.set_result(None)
        if not self.doomed:
            self._on_readable()  # it may have answered before
        self.doomed = True
        with contextlib.suppress(OSError):  # wakes a request that is still being sent
            self._connection.shutdown(socket.SHUT_RDWR)
        if self._interrupted and status is not None and os.WIFSIGNALED(status) and os.WTERMSIG(status) == INTERRUPT:
            self._overran = True  # the cell had taken our handler away
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(Outcome(None, overran=self._overran))
        if self._output < 0:
            self._close_pidfd()

    # ----- requests

    async def _send(self, data: bytes) -> None:
        try:
            sent = self._connection.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:  # the process is gone: the answer says so
            self.unread = True
            return
        if sent < len(data):
            with contextlib.suppress(OSError):
                await self._loop.sock_sendall(self._connection, data[sent:])

    def _close_child_ends(self) -> None:
        for descriptor in self._child_ends:
            os.close(descriptor)
        self._child_ends = []

    def _close_pidfd(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def _signal(self, number: signal.Signals) -> None:
        if self._pidfd >= 0 and not self.gone.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def _interrupt(self, left: int) -> None:
        """Deadline: interrupt softly, ``left`` times, then kill."""
        if self._answer is None or self._answer.done() or self.doomed:
            return
        if left == 0:
            self._overran = True
            self.kill()
            return
        self._interrupted = True
        self._signal(INTERRUPT)
        self._timer = self._loop.call_later(self._grace * PAUSES[-left], self._interrupt, left - 1)

    def _check_request_read(self) -> None:
        """A process that reads no request is busy with something else than requests: a cell that forged its answer and goes on,
        a thread that holds the interpreter."""
        if self._answer is None or self._answer.done() or self.doomed or self._pidfd < 0:
            return
        waiting = fcntl.ioctl(self._connection, termios.TIOCOUTQ, b"\0" * 4)
        if int.from_bytes(waiting, "little"):
            self.unread = True
            self.kill("did not answer")

    def _on_readable(self) -> None:
        try:
            data = self._connection.recv(READ_BYTES if self._buffer else FIRST_READ_BYTES)
        except BlockingIOError:
            return
        except ConnectionError:  # what was sent is still unread: the kernel tells
            data = b""
            self.unread = True
        if not data:
            self._stop_trusting("")  # it ended, or closed its connection
            return
        self._buffer += data
        try:
            # What is no reply is known by its first bytes, before the cell goes on to its end.
            while self._answer is not None and not self._answer.done() and self._buffer:
                reply = take_reply(self._buffer, self._nonce)
                if reply is None:
                    return
                if reply.kind is Kind.REPORTING:
                    if not self._interrupted or self._reporting:
                        raise ValueError("a cell that was not interrupted, or that gives way twice")
                    self._await_report()
                else:
                    self._answer.set_result(Outcome(reply))
            if not self._buffer:
                return
        except ValueError:
            # The true answer to the request before: what was taken for it was forged, and this one may not even be read.
            self.unread |= self._buffer.startswith(self._before)
        self._stop_trusting("was killed because the code wrote to the sandbox's own connection")

    def _await_report(self) -> None:
        """The cell has ended: what is still to come is its report."""
        self._reporting = True
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(REPORT_SECONDS, self._interrupt, 0)

    def _stop_trusting(self, fault: str) -> None:
        """No answer can be had from this process any more, or none to be believed."""
        self._loop.remove_reader(self._connection)
        self.kill(fault)

    # A running cell's output is looked at on a timer while it flows, and waited for with the loop's reader while it does not:
    # a cell that prints line by line then costs the supervisor no wake-up a line, and a silent one costs nothing.

    def _start_watching(self) -> None:
        now = self._loop.time()
        self._timer = self._loop.call_at(self._deadline, self._interrupt, len(PAUSES))
        if now + self._patience < self._deadline + self._grace:
            self._unread_timer = self._loop.call_at(now + self._patience, self._check_request_read)
        self._look()

    def _look(self) -> None:
        taken = self._clip.drain(self._output, LOOK_BYTES)
        if taken:
            self._looks = self._loop.call_later(DRAIN_SECONDS, self._look)
        elif taken is not None:
            self._reader_added = True
            self._loop.add_reader(self._output, self._on_output)

    def _on_output(self) -> None:
        self._remove_reader()
        self._look()

    def _remove_reader(self) -> None:
        if self._reader_added:
            self._reader_added = False
            self._loop.remove_reader(self._output)


def ending(status: int) -> str:
    """How a process ended, for the model to read."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"was killed by {signal.Signals(number).name}"
        except ValueError:  # most real-time signals have no name
            return f"was killed by signal {number}"
    return f"exited with status {os.WEXITSTATUS(status)}"

"""The supervisor's side of one runner (a session process): requests, replies, deadlines, output, and its end."""

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
"""Time from the first soft interrupt to SIGKILL."""
PAUSES = (0.25, 0.25, *[0.05] * 10)
"""Pauses after each soft interrupt, as fractions of the grace time: a library may swallow the first. From the third on they
come more often, and repeat inside the process (``cells.SINGLE_INTERRUPTS``)."""
REPORT_SECONDS = 5.0
"""Time limit for writing the traceback of an interrupted cell."""
FIRST_READ_SECONDS = 0.02
"""The output of a running cell is first read after this time. A shorter cell's output is read only at its end."""
DRAIN_SECONDS = 0.005
"""Pause between two reads of a running cell's output. With a pipe of 64 KiB this limits endless output to 13 MB/s."""
PIPE_BYTES = 1 << 20
"""Maximum size of a pipe, which a cell can enlarge: reading so much after a reply yields all of the cell's output."""
CHUNK_BYTES = 1 << 16
"""How much of a running cell's output is read at a time."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one request."""

    reply: Reply | None
    """None if the process ended without a reply."""
    overran: bool = False
    """Whether the process was killed because the deadline passed."""

    @property
    def kind(self) -> Kind | None:
        """The reply's kind; None without a reply."""
        return None if self.reply is None else self.reply.kind


class Runner:
    """One session process. It takes one request at a time."""

    def __init__(self, zygote: ZygoteHandle, number: int, clip: Clip) -> None:
        self.number = number
        self.doomed = False
        """Whether no request can succeed any more."""
        self.killed_for_memory = False
        """Whether it was killed because the machine was short of memory."""
        self.unread = False
        """Whether it ended before it read the last request, or was killed because it did not read it."""
        self.fork_error: Exception | None = None
        """Why it could not be forked."""
        self.charged = False
        """Whether it was put into its control group, if there are any."""
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
        """Done when the zygote has reported the fork or its failure."""
        self.gone: asyncio.Future[int | None] = self._loop.create_future()
        """Done when the process has ended: its wait status, or None if it ended with the zygote."""
        self._buffer = bytearray()
        self._nonce = self._before = b""
        self._answer: asyncio.Future[Outcome] | None = None
        self._overran = self._interrupted = self._reporting = False
        self._reader_added = False
        self._output_timer: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._deadline = self._patience = 0.0
        self._grace = GRACE_SECONDS
        self._fault = ""
        self._loop.add_reader(self._connection, self._on_readable)

    async def launch(self, name: str) -> None:
        """Ask the zygote to fork it. Requests may be sent immediately after. Raises ZygoteLost."""
        try:
            await self._zygote.fork(self.number, name, self._child_ends, self)
        except BaseException:
            self.on_gone(None)  # it was never forked
            raise
        finally:
            self._close_child_ends()

    async def request(self, request: Request, seconds: float, patience: float, grace: float | None = None) -> Outcome:
        """Send a request and wait for its outcome. After ``seconds`` come soft interrupts for ``grace`` seconds, then SIGKILL.

        ``patience``: a runner that has not begun to read the request after so many seconds is killed.
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
        self._output_timer = self._loop.call_later(min(FIRST_READ_SECONDS, seconds), self._start_watching)
        try:
            await self._send(pack_request(self._nonce, request))
            return await answer
        finally:
            self._answer = None
            for timer in (self._timer, self._unread_timer, self._output_timer):
                if timer is not None:
                    timer.cancel()
            self._remove_reader()
            if self._output >= 0:
                self._clip.drain(self._output, PIPE_BYTES)

    def kill(self, fault: str = "") -> None:
        """Kill the process; the zygote then ends what it started. ``fault``: the reason, as the cell's output names it."""
        self.doomed = True
        self._fault = self._fault or fault
        if not self.gone.done():
            self._signal(signal.SIGKILL)  # if it is not forked yet, on_forked kills it
            self._zygote.expect_end(self.number)

    async def end(self) -> None:
        """Kill the process and everything it started, and wait until all of it has ended."""
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
        """The process's pid as this process sees it; None if it is not forked yet or has ended."""
        return pid_of(self._pidfd) if self._pidfd >= 0 else None

    @property
    def died_with_zygote(self) -> bool:
        """Whether the process ended because the zygote did."""
        return self.gone.done() and self.gone.result() is None

    @property
    def died_by_itself(self) -> bool:
        """Whether it was forked and ended for a reason of its own: not with the zygote, and not because memory was short."""
        return not self.killed_for_memory and self.fork_error is None and self.gone.done() and self.gone.result() is not None

    def ending(self) -> str:
        """How the process ended, in the words of a cell's output."""
        if self._fault:
            return self._fault
        status = self.gone.result() if self.gone.done() else None
        return "was lost with the sandbox's parent process" if status is None else ending(status)

    # ----- from the zygote

    def on_forked(self, pidfd: int) -> None:
        """The zygote has forked the process. This object owns the pidfd now."""
        self._pidfd = pidfd
        self.forked.set_result(None)
        if self.doomed:
            self.kill()

    def on_failed(self, error: Exception) -> None:
        """The fork failed."""
        self.fork_error = error
        self.on_gone(None)

    def on_gone(self, status: int | None) -> None:
        """The process has ended, and so has everything it started."""
        if self.gone.done():
            return
        self.gone.set_result(status)
        if not self.forked.done():
            self.forked.set_result(None)
        if not self.doomed:
            self._on_readable()  # it may have sent its reply before it ended
        self.doomed = True
        with contextlib.suppress(OSError):  # wakes a request that is still being sent
            self._connection.shutdown(socket.SHUT_RDWR)
        if self._interrupted and status is not None and os.WIFSIGNALED(status) and os.WTERMSIG(status) == INTERRUPT:
            self._overran = True  # the cell had removed the interrupt handler
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
        except OSError:  # the process has ended; the outcome will say so
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
        """The deadline has passed: interrupt softly, ``left`` times, then kill."""
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
        """Kill a process that has not read its request: a cell forged its reply and still runs, or a thread holds the
        interpreter lock."""
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
        except ConnectionError:  # the kernel reports that the process ended with the request unread
            data = b""
            self.unread = True
        if not data:
            self._stop_trusting("")  # it ended, or closed its connection
            return
        self._buffer += data
        try:
            # take_reply refuses forged bytes as soon as they arrive, before the cell ends.
            while self._answer is not None and not self._answer.done() and self._buffer:
                reply = take_reply(self._buffer, self._nonce)
                if reply is None:
                    return
                if reply.kind is Kind.REPORTING:
                    if not self._interrupted or self._reporting:
                        raise ValueError("REPORTING without an interrupt, or twice")
                    self._await_report()
                else:
                    self._answer.set_result(Outcome(reply))
            if not self._buffer:
                return
        except ValueError:
            # If this is the real reply to the previous request, the reply taken for it was forged, and this request is unread.
            self.unread |= self._buffer.startswith(self._before)
        self._stop_trusting("was killed because the code wrote to the sandbox's own connection")

    def _await_report(self) -> None:
        """The cell was interrupted and has stopped; give it time to write its traceback."""
        self._reporting = True
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(REPORT_SECONDS, self._interrupt, 0)

    def _stop_trusting(self, fault: str) -> None:
        """Kill a process whose replies cannot be trusted any more, or that closed its connection."""
        self._loop.remove_reader(self._connection)
        self.kill(fault)

    # While a running cell writes output, a timer reads it, so that a cell which prints line by line does not wake the
    # supervisor for each line. While it writes nothing, the loop's reader waits, so that a silent cell costs nothing.

    def _start_watching(self) -> None:
        now = self._loop.time()
        self._timer = self._loop.call_at(self._deadline, self._interrupt, len(PAUSES))
        if now + self._patience < self._deadline + self._grace:
            self._unread_timer = self._loop.call_at(now + self._patience, self._check_request_read)
        self._read_output()

    def _read_output(self) -> None:
        taken = self._clip.drain(self._output, CHUNK_BYTES)
        if taken:
            self._output_timer = self._loop.call_later(DRAIN_SECONDS, self._read_output)
        elif taken is not None:
            self._reader_added = True
            self._loop.add_reader(self._output, self._on_output)

    def _on_output(self) -> None:
        self._remove_reader()
        self._read_output()

    def _remove_reader(self) -> None:
        if self._reader_added:
            self._reader_added = False
            self._loop.remove_reader(self._output)


def ending(status: int) -> str:
    """How a process with this wait status ended, in the words of a cell's output."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"was killed by {signal.Signals(number).name}"
        except ValueError:  # most real-time signals have no name
            return f"was killed by signal {number}"
    return f"exited with status {os.WEXITSTATUS(status)}"

"""The supervisor's side of one runner: requests, replies, deadlines, output."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from aster.sandbox.keeper_handle import KeeperHandle, ending
from aster.sandbox.output import Clip
from aster.sandbox.protocol import NONCE_BYTES, REPLY, Reply, Request, pack_request, unpack_reply

GRACE_SECONDS = 1.0
"""From the first soft interrupt to SIGKILL."""
INTERRUPTS = 4
"""Soft interrupts in that time: a library may swallow the first."""
GONE_SECONDS = 10.0
"""A killed runner that its keeper has not buried by then proves that the keeper is stopped."""
FIRST_LOOK_SECONDS = 0.02
"""Of a cell that has ended by then, nothing is looked at before its end."""
DRAIN_SECONDS = 0.005
"""Between two looks at a running cell's output. With a pipe of 64 KiB this also slows endless output to 13 MB/s."""
PIPE_BYTES = 1 << 20
"""The most a pipe holds, however a cell enlarges it: what must be read after a reply to have all of the cell's output."""


NO_REPLY = Reply(False)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one request."""

    status: str | None
    """``ok`` or ``error``; None where the process ended instead of answering."""
    reply: Reply = NO_REPLY
    overran: bool = False
    """The deadline passed and the process was killed for it."""


class Runner:
    """One runner of a keeper's line. Requests go one at a time."""

    def __init__(self, keeper: KeeperHandle, line: int, clip: Clip) -> None:
        self.keeper = keeper
        self.clip = clip
        self.doomed = False
        """No request can succeed any more."""
        self.shed = False
        """It was killed because memory ran short, whatever the cell did."""
        self.unread = False
        """It ended before it read the last request."""
        self.unborn: Exception | None = None
        """Why it could not be forked."""
        self._line = line
        self._loop = asyncio.get_running_loop()
        self._connection, theirs = socket.socketpair()
        self._connection.setblocking(False)
        self._output, their_output = os.pipe()
        os.set_blocking(self._output, False)
        self._theirs = [theirs.detach(), their_output]
        self._ended: asyncio.Future[int | None] = self._loop.create_future()
        self._buffer = bytearray()
        self._nonce = b""
        self._answer: asyncio.Future[Outcome] | None = None
        self._overran = False
        self._unheard = 0
        self._heard: asyncio.Future[None] | None = None
        self._armed = False
        self._looks: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._fault = ""
        self._loop.add_reader(self._connection, self._on_readable)
        keeper.runners[line] = self
        if not keeper.alive:
            self.on_ended(None)

    async def launch(self, steps: int) -> None:
        """Have the keeper fork it, from its line's latest savepoint that is not beyond so many steps; -1 takes none. Requests
        may follow at once."""
        await self.keeper.send({"op": "launch", "line": self._line, "steps": steps}, self._theirs)
        self._give_away()

    async def request(self, request: Request, seconds: float, branch: Runner | None = None) -> Outcome:
        """Send a request and wait for its answer: ``seconds``, then soft interrupts for a grace time, then SIGKILL.

        ``branch`` is the runner that this one is asked to fork.
        """
        if self.doomed:
            self.unread = True
            return Outcome(None)
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._overran = False
        answer = self._answer = self._loop.create_future()
        self._deadline = self._loop.time() + seconds
        self._looks = self._loop.call_later(min(FIRST_LOOK_SECONDS, seconds), self._first_look)
        try:
            await self._send(pack_request(self._nonce, request), branch)
            return await answer
        finally:
            self._answer = None
            if self._timer is not None:
                self._timer.cancel()
            self._looks.cancel()
            self._disarm()
            if self._output >= 0:
                self.clip.drain(self._output, PIPE_BYTES)
            if self._unheard and not self.doomed:
                await self._hear()

    def kill(self, fault: str = "") -> None:
        """Kill the process; its keeper then kills what it started. ``fault`` is what the model is told."""
        self.doomed = True
        self._fault = self._fault or fault
        if not self._ended.done() and self._watch is None:
            self.keeper.tell("kill", self._line)
            self._watch = self._loop.call_later(GONE_SECONDS, self.keeper.kill)

    async def end(self) -> None:
        """Kill the process and its group, and wait until they are gone."""
        self.kill()
        await asyncio.shield(self._ended)
        self.release()

    def release(self) -> None:
        """Close this side's descriptors."""
        self.doomed = True
        if self._output < 0:
            return
        if self._watch is not None:
            self._watch.cancel()
        self._loop.remove_reader(self._connection)
        self._disarm()
        self._give_away()
        self._connection.close()
        os.close(self._output)
        self._output = -1
        if self.keeper.runners.get(self._line) is self:
            del self.keeper.runners[self._line]

    @property
    def taken_along(self) -> bool:
        """Whether the end of its keeper, or of the zygote, was this process's."""
        return self._ended.done() and self._ended.result() is None

    @property
    def dying(self) -> bool:
        """Whether it was killed and is not gone yet."""
        return self.doomed and not self._ended.done()

    @property
    def died_alone(self) -> bool:
        """Whether it was not killed for others' sake, and came to life at all."""
        return not self.shed and self.unborn is None and self._ended.done() and self._ended.result() is not None

    def ending(self) -> str:
        """How the process ended, for the model to read."""
        if self._fault:
            return self._fault
        status = self._ended.result() if self._ended.done() else None
        if status is None:
            return f"was lost with the sandbox's {'parent process' if self.keeper.zygote_lost else 'own process'}"
        return ending(status)

    def on_interrupted(self) -> None:
        """From the keeper: a soft interrupt was sent."""
        self._unheard -= 1
        if self._unheard == 0 and self._heard is not None:
            self._heard.set_result(None)
            self._heard = None

    def on_failed(self, error: Exception) -> None:
        """From the keeper: no fork."""
        self.unborn = error
        self.on_ended(None)

    def on_ended(self, status: int | None) -> None:
        """From the keeper: it is dead, and so is what it left."""
        if self._ended.done():
            return
        self._ended.set_result(status)
        if not self.doomed:
            self._on_readable()  # it may have answered before
        self.doomed = True
        if self._watch is not None:
            self._watch.cancel()
        if self._unheard:
            self._unheard = 1
            self.on_interrupted()
        with contextlib.suppress(OSError):  # wakes a request that is still being sent
            self._connection.shutdown(socket.SHUT_RDWR)
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(Outcome(None, overran=self._overran))

    async def _hear(self) -> None:
        """Wait until the interrupts are sent: one that is still under way would hit the next cell."""
        self._heard = self._loop.create_future()
        done, _ = await asyncio.wait({self._heard}, timeout=GONE_SECONDS)
        if not done:
            self.doomed = True
            self.keeper.kill()

    async def _send(self, data: bytes, branch: Runner | None) -> None:
        try:
            if branch is not None:
                sent = socket.send_fds(self._connection, [data], branch._theirs)
                branch._give_away()
            else:
                sent = self._connection.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:  # the process is gone: the answer says so
            self.unread = True
            return
        if sent < len(data):
            with contextlib.suppress(OSError):
                await self._loop.sock_sendall(self._connection, data[sent:])

    def _give_away(self) -> None:
        for descriptor in self._theirs:
            os.close(descriptor)
        self._theirs = []

    def _interrupt(self, left: int) -> None:
        """Deadline: interrupt softly, ``left`` times, then kill."""
        if self._answer is None or self._answer.done() or self.doomed:
            return
        if left == 0:
            self._overran = True
            self.kill()
            return
        self._unheard += 1
        self.keeper.tell("interrupt", self._line)
        self._timer = self._loop.call_later(GRACE_SECONDS / INTERRUPTS, self._interrupt, left - 1)

    def _on_readable(self) -> None:
        try:
            data = self._connection.recv(1 << 16)
        except BlockingIOError:
            return
        except ConnectionError:  # what was sent is still unread: the kernel tells
            data = b""
            self.unread = True
        if not data:
            self._distrust("")  # it ended, or closed its connection
            return
        self._buffer += data
        # What is no reply is known by its first bytes, before the cell goes on to its end.
        if self._answer is not None and self._nonce.startswith(bytes(self._buffer[:NONCE_BYTES])):
            if len(self._buffer) < REPLY.size:
                return
            with contextlib.suppress(ValueError):
                reply = unpack_reply(self._buffer, self._nonce)
                self._buffer.clear()
                if not self._answer.done():
                    self._answer.set_result(Outcome("ok" if reply.ok else "error", reply))
                return
        self._distrust("was killed because the code wrote to the sandbox's own connection")

    def _distrust(self, fault: str) -> None:
        """No answer can be had from this process any more, or none to be believed."""
        self._loop.remove_reader(self._connection)
        self.kill(fault)

    # A running cell's output is looked at on a timer while it flows, and waited for with the loop's reader while it does not:
    # a cell that prints line by line then costs the supervisor no wake-up a line, and a silent one costs nothing.

    def _first_look(self) -> None:
        self._timer = self._loop.call_at(self._deadline, self._interrupt, INTERRUPTS)
        self._look()

    def _look(self) -> None:
        taken = self.clip.drain(self._output, 1 << 16)
        if taken:
            self._looks = self._loop.call_later(DRAIN_SECONDS, self._look)
        elif taken is not None:
            self._armed = True
            self._loop.add_reader(self._output, self._on_output)

    def _on_output(self) -> None:
        self._disarm()
        self._look()

    def _disarm(self) -> None:
        if self._armed:
            self._armed = False
            self._loop.remove_reader(self._output)


async def to_its_end(work: Coroutine[Any, Any, Result]) -> Result:
    """What the work returns. A cancellation is heeded when that has ended."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    return task.result()

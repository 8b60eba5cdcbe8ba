"""The warm parent: ``python -m aster.sandbox.zygote DESCRIPTOR PLAN SUPERVISOR_PID [PACKAGE ...]``.

It enters the isolation level of the PLAN, imports and exercises the libraries once and then forks keepers on request, one a
session. It has one thread and never runs a cell. It is the subreaper of everything that a dead keeper leaves behind, and kills
it. It ends, with all sessions, when the supervisor closes the connection; its guard sees to the rest.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import sys
import traceback
from typing import Any

from aster.sandbox.isolation import Level, Plan, enter_zygote, fork_session, make_scratch
from aster.sandbox.isolation.guard import kill_all_below
from aster.sandbox.keeper import become_keeper
from aster.sandbox.protocol import MAX_PACKET, ForkRequest, receive
from aster.sandbox.warm import warm_up

STRAY_SECONDS = 2.0
"""How long the zygote fights processes that a keeper left behind, before it goes back to serving."""
BURST = 16
"""Forks in a row, before the dead are buried."""
PER_PACKET = 100
"""The dead that one packet names."""


class Zygote:
    """Forks keepers and buries them."""

    def __init__(self, connection: socket.socket, plan: Plan) -> None:
        self._connection = connection
        self._plan = plan
        self._keepers: dict[int, int] = {}
        """pid -> id of every keeper that was not buried yet."""
        self._bell, wake = os.pipe()
        for descriptor in (self._bell, wake):
            os.set_blocking(descriptor, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # the byte in the pipe is what is wanted
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._poll.register(self._bell, select.POLLIN)

    def serve(self) -> None:
        """Answer until the supervisor closes the connection."""
        pidfd = os.pidfd_open(os.getpid())
        self._send({"ready": True}, pidfd)
        os.close(pidfd)
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._bell:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._bell, 4096)
                    self._bury()
                elif not self._answer():
                    return

    def end(self) -> None:
        """Kill everything below."""
        with contextlib.suppress(OSError):  # nobody may be left to tell who is gone
            self._connection.shutdown(socket.SHUT_RDWR)
        for pid in self._keepers:
            os.kill(pid, signal.SIGKILL)
        kill_all_below()

    def _answer(self) -> bool:
        """Serve what has come, up to a burst. False at the end of the connection."""
        forked: list[int] = []
        alive = True
        for _ in range(BURST):
            try:
                data, descriptors = receive(self._connection, MAX_PACKET, 1, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except ConnectionResetError:
                data, descriptors = b"", []
            if not data:
                alive = False
                break
            message = json.loads(data)
            if message["op"] == "kill":
                for pid, number in self._keepers.items():
                    if number == message["id"]:
                        os.kill(pid, signal.SIGKILL)
                continue
            try:
                if self._fork(message, descriptors[0]):
                    forked.append(message["id"])
            finally:
                os.close(descriptors[0])
        if forked:
            self._send({"forked": forked})
        return alive

    def _fork(self, message: dict[str, Any], control: int) -> bool:
        request = ForkRequest.from_message(message)
        try:
            scratch = make_scratch(self._plan, request.name)
            pid = fork_session(self._plan)
        except OSError as error:
            self._send({"failed": message["id"], "errno": error.errno or errno.EIO, "reason": str(error)})
            return False
        if pid == 0:
            self._connection.detach()  # its number is the child's to use again
            try:
                become_keeper(request, self._plan, scratch, control)
            except BaseException:  # noqa: BLE001 - the child must never come back into the zygote's loop
                with contextlib.suppress(OSError):
                    os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(1)
        self._keepers[pid] = message["id"]
        return True

    def _bury(self) -> None:
        """Reap the dead, and kill what keepers leave behind, where that did not die with their process namespace."""
        gone: list[tuple[int, int]] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid not in self._keepers:
                continue  # an orphan
            gone.append((self._keepers.pop(pid), status))
        if gone and self._plan.level is not Level.NAMESPACES:
            kill_all_below(self._keepers, STRAY_SECONDS)
        for start in range(0, len(gone), PER_PACKET):
            self._send({"gone": gone[start : start + PER_PACKET]})

    def _send(self, message: dict[str, Any], *descriptors: int) -> None:
        with contextlib.suppress(OSError):  # the supervisor is gone: the loop sees that next
            socket.send_fds(self._connection, [json.dumps(message).encode()], list(descriptors))


def main() -> None:
    """Serve on an inherited descriptor."""
    descriptor, plan, supervisor = int(sys.argv[1]), Plan.from_text(sys.argv[2]), int(sys.argv[3])
    plan = enter_zygote(plan, supervisor)
    connection = socket.socket(fileno=descriptor)
    warm_up(sys.argv[4:])
    zygote = Zygote(connection, plan)
    zygote.serve()
    zygote.end()


if __name__ == "__main__":
    main()

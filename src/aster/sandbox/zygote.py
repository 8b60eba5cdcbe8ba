"""The warm parent: ``python -m aster.sandbox.zygote DESCRIPTOR ROOT SUPERVISOR_PID [PACKAGE ...]``.

It imports and exercises the libraries once and then forks keepers on request, one a session. It has one thread and never runs
a cell. It is the subreaper of everything that a dead keeper leaves behind, and kills it. It ends, with all sessions and the
directory ROOT, when the supervisor closes the connection or is gone.
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

from aster.sandbox import confine
from aster.sandbox.keeper import CLEAN, become_keeper
from aster.sandbox.protocol import MAX_PACKET, ForkRequest, receive
from aster.sandbox.warm import warm_up

LOOK_SECONDS = 1.0
"""How often the zygote checks that the supervisor lives: a process that inherited its socket can keep that open."""
STRAY_SECONDS = 2.0
"""How long the zygote fights processes that a keeper left behind, before it goes back to serving."""
END_SECONDS = 30.0
"""The same at the zygote's own end, when nobody waits."""
BURST = 16
"""Forks in a row, before the dead are buried."""
PER_PACKET = 100
"""The dead that one packet names."""


class Zygote:
    """Forks keepers and buries them."""

    def __init__(self, connection: socket.socket, root: str, supervisor: int) -> None:
        self._connection = connection
        self._root = root
        self._supervisor = supervisor
        self._pid = os.getpid()
        self._keepers: dict[int, tuple[int, str]] = {}
        """pid -> (id, directory's name) of every keeper that was not buried yet."""
        self._bell, wake = os.pipe()
        for descriptor in (self._bell, wake):
            os.set_blocking(descriptor, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # the byte in the pipe is what is wanted
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._poll.register(self._bell, select.POLLIN)

    def serve(self) -> None:
        """Answer until the supervisor is gone."""
        self._send({"ready": self._pid})
        while os.getppid() == self._supervisor:
            for descriptor, _ in self._poll.poll(LOOK_SECONDS * 1000):
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
        confine.kill_children((), END_SECONDS)

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
                for pid, (number, _) in self._keepers.items():
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
        request = ForkRequest(message["name"], message["memory_mb"], message["timeout_text"])
        try:
            scratch = confine.make_scratch(self._root, request.name)
            try:
                pid = confine.fork_session()
            except OSError:
                confine.remove_scratch(self._root, request.name)
                raise
        except OSError as error:
            self._send({"failed": message["id"], "errno": error.errno or errno.EIO, "reason": str(error)})
            return False
        if pid == 0:
            self._connection.detach()  # its number is the child's to use again
            try:
                become_keeper(request, scratch, self._pid, control)
            except BaseException:  # noqa: BLE001 - the child must never come back into the zygote's loop
                with contextlib.suppress(OSError):
                    os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(1)
        self._keepers[pid] = (message["id"], request.name)
        return True

    def _bury(self) -> None:
        """Reap the dead. A keeper that did not end in order leaves processes behind: kill them."""
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
            number, name = self._keepers.pop(pid)
            if not (os.WIFEXITED(status) and os.WEXITSTATUS(status) == CLEAN):
                # What it left is this process's now.
                confine.kill_children(self._keepers, STRAY_SECONDS)
            confine.remove_scratch(self._root, name)
            gone.append((number, status))
        for start in range(0, len(gone), PER_PACKET):
            self._send({"gone": gone[start : start + PER_PACKET]})

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the supervisor is gone: the loop sees that next
            self._connection.send(json.dumps(message).encode())


def main() -> None:
    """Serve on an inherited descriptor."""
    descriptor, root, supervisor = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    connection = socket.socket(fileno=descriptor)
    confine.enter_zygote()
    warm_up(sys.argv[4:])
    zygote = Zygote(connection, root, supervisor)
    zygote.serve()
    zygote.end()
    confine.remove_tree(root)


if __name__ == "__main__":
    main()

"""The warm parent: ``python -m aster_sandbox.zygote DESCRIPTOR PLAN SUPERVISOR_PID``.

It enters the isolation level of the PLAN, imports and exercises the libraries once and then forks runners on request, one a
session. It has one thread and never runs a cell. When a runner has ended, it ends and reaps all that the runner started. It
ends, with all sessions, when the supervisor closes the connection; its guard sees to the rest."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import select
import signal
import socket
import sys
import traceback
from resource import setrlimit  # by name: the module's is replaced for cells
from typing import Any

from aster_sandbox.fonts import link_list
from aster_sandbox.isolation import Plan, enter_zygote, fork_session, make_scratch
from aster_sandbox.isolation.guard import kill_all_below, kill_strays
from aster_sandbox.protocol import MAX_PACKET, receive
from aster_sandbox.warm import Unloadable, warm_up
from aster_sandbox.worker import become_runner

BURST = 16
"""Forks in a row, before the dead are buried."""
IGNORED_BY_PYTHON = {signal.SIGPIPE, signal.SIGXFSZ}
PER_PACKET = 100
"""The dead that one packet names."""


class Zygote:
    """Forks runners and buries them."""

    def __init__(self, connection: socket.socket, plan: Plan) -> None:
        self._connection = connection
        self._plan = plan
        self._runners: dict[int, tuple[int, int, int]] = {}
        """pid -> number, first process of its namespace and the pidfd of that, of every runner that was not buried yet."""
        self._ending: dict[int, tuple[int, int]] = {}
        """pidfd of the first process of a namespace that was killed -> the runner's number and status."""
        self._wakeup, wake = os.pipe()
        for descriptor in (self._wakeup, wake):
            os.set_blocking(descriptor, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # the byte in the pipe is what is wanted
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._poll.register(self._wakeup, select.POLLIN)
        # A descriptor for each session.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def serve(self) -> None:
        """Answer until the supervisor closes the connection."""
        pidfd = os.pidfd_open(os.getpid())
        self._send({"ready": True}, pidfd)
        os.close(pidfd)
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._wakeup:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wakeup, 4096)
                    self._reap()
                elif descriptor in self._ending:
                    self._close_namespace(descriptor)
                elif not self._answer():
                    return

    def end(self) -> None:
        """Kill everything below."""
        with contextlib.suppress(OSError):  # nobody may be left to tell who is gone
            self._connection.shutdown(socket.SHUT_RDWR)
        for pid in self._runners:
            os.kill(pid, signal.SIGKILL)
        kill_all_below()

    def _answer(self) -> bool:
        """Serve what has come, up to a burst. False at the end of the connection."""
        forked: dict[int, int] = {}
        alive = True
        for _ in range(BURST):
            try:
                data, descriptors = receive(self._connection, MAX_PACKET, 2, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except ConnectionResetError:
                data, descriptors = b"", []
            if not data:
                alive = False
                break
            message = json.loads(data)
            try:
                forked[message["id"]] = self._fork(message, *descriptors)
            except OSError as error:
                self._send({"failed": message["id"], "errno": error.errno or errno.EIO, "reason": str(error)})
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
        if forked:
            self._send({"forked": list(forked)}, *forked.values())
            for pidfd in forked.values():
                os.close(pidfd)
        return alive

    def _fork(self, message: dict[str, Any], connection: int, output: int) -> int:
        """A runner's pidfd. OSError where there is none."""
        scratch = make_scratch(self._plan, message["name"])
        pid, init, place = fork_session(self._plan)
        if pid == 0:
            try:
                self._connection.detach()  # its number is the child's to use again
                become_runner(self._plan, scratch, connection, output)
            except BaseException:  # noqa: BLE001 - the child must never come back into the zygote's loop
                with contextlib.suppress(OSError):
                    os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(1)
        self._runners[pid] = message["id"], init, place
        try:
            return os.pidfd_open(pid)
        except OSError:  # no descriptor is left; its end is not told, since it never was
            os.kill(pid, signal.SIGKILL)
            self._runners[pid] = -1, init, place
            raise

    def _reap(self) -> None:
        """Reap the dead, and end what runners leave behind."""
        alone: list[tuple[int, int]] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid not in self._runners:
                continue  # an orphan
            number, init, place = self._runners.pop(pid)
            if init:  # with the first process of a namespace all others in it end
                signal.pidfd_send_signal(place, signal.SIGKILL)
                self._ending[place] = number, status
                self._poll.register(place, select.POLLIN)
            else:
                alone.append((number, status))
        if alone:
            kill_strays(self._runners)
        self._report_gone(alone)

    def _close_namespace(self, place: int) -> None:
        """All that was in a runner's namespace has ended."""
        self._poll.unregister(place)
        os.close(place)
        self._report_gone([self._ending.pop(place)])

    def _report_gone(self, gone: list[tuple[int, int]]) -> None:
        known = [each for each in gone if each[0] >= 0]
        for start in range(0, len(known), PER_PACKET):
            self._send({"gone": known[start : start + PER_PACKET]})

    def _send(self, message: dict[str, Any], *descriptors: int) -> None:
        with contextlib.suppress(OSError):  # the supervisor is gone: the loop sees that next
            socket.send_fds(self._connection, [json.dumps(message).encode()], list(descriptors))


def main() -> None:
    """Serve on an inherited descriptor."""
    descriptor, plan, supervisor = int(sys.argv[1]), Plan.from_text(sys.argv[2]), int(sys.argv[3])
    for number in signal.valid_signals() - IGNORED_BY_PYTHON:  # nohup, or a shell's background, is not for sessions
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    plan = enter_zygote(plan, supervisor)
    connection = socket.socket(fileno=descriptor)
    if plan.fonts:
        os.environ["MPLCONFIGDIR"] = link_list(plan.fonts, os.path.join(plan.root, "work"))
    try:
        warm_up(plan.preload, plan.echo)
    except Unloadable as error:
        sys.exit(str(error))
    zygote = Zygote(connection, plan)
    zygote.serve()
    zygote.end()


if __name__ == "__main__":
    main()

"""The zygote, the prewarmed parent of all sessions: ``python -m aster_sandbox.zygote DESCRIPTOR PLAN SUPERVISOR_PID``.

It enters the isolation level of PLAN, imports and exercises the libraries once, and then forks a runner for each session on
request. It has one thread and never runs a cell. When a runner has ended, it kills and reaps everything that the runner
started. It ends, with all sessions, when the supervisor closes the connection (its guard cleans up if that fails)."""

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
"""Maximum number of forks in a row before ended processes are reaped."""
IGNORED_BY_PYTHON = {signal.SIGPIPE, signal.SIGXFSZ}
PER_PACKET = 100
"""Maximum number of ended runners in one packet."""


class Zygote:
    """Forks runners, reaps them, and reports both to the supervisor."""

    def __init__(self, connection: socket.socket, plan: Plan) -> None:
        self._connection = connection
        self._plan = plan
        self._runners: dict[int, tuple[int, int, int]] = {}
        """pid -> (number, init, pidfd of init) of every runner that was not reaped yet."""
        self._ending: dict[int, tuple[int, int]] = {}
        """pidfd of an init that was killed -> (number, status) of its runner."""
        self._wakeup, wake = os.pipe()
        for descriptor in (self._wakeup, wake):
            os.set_blocking(descriptor, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # needed for the wake-up byte in the pipe
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._poll.register(self._wakeup, select.POLLIN)
        # The zygote needs a descriptor for each session.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def serve(self) -> None:
        """Serve until the supervisor closes the connection."""
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
        """Kill all descendants."""
        with contextlib.suppress(OSError):  # the supervisor may have ended
            self._connection.shutdown(socket.SHUT_RDWR)
        for pid in self._runners:
            os.kill(pid, signal.SIGKILL)
        kill_all_below()

    def _answer(self) -> bool:
        """Serve the pending requests, at most BURST. Returns False at the end of the connection."""
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
        """Fork a runner and return its pidfd. Raises OSError."""
        scratch = make_scratch(self._plan, message["name"])
        pid, init, place = fork_session(self._plan)
        if pid == 0:
            try:
                self._connection.detach()  # so that the child does not close the number, which it may use itself
                become_runner(self._plan, scratch, connection, output)
            except BaseException:  # noqa: BLE001 - the child must never return to the zygote's loop
                with contextlib.suppress(OSError):
                    os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(1)
        self._runners[pid] = message["id"], init, place
        try:
            return os.pidfd_open(pid)
        except OSError:  # no descriptor is left; the number -1 keeps its end from being reported
            os.kill(pid, signal.SIGKILL)
            self._runners[pid] = -1, init, place
            raise

    def _reap(self) -> None:
        """Reap ended children, and kill what ended runners left behind."""
        without_init: list[tuple[int, int]] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid not in self._runners:
                continue  # an orphan of a session
            number, init, place = self._runners.pop(pid)
            if init:  # killing it ends everything in its namespace
                signal.pidfd_send_signal(place, signal.SIGKILL)
                self._ending[place] = number, status
                self._poll.register(place, select.POLLIN)
            else:
                without_init.append((number, status))
        if without_init:
            kill_strays(self._runners)
        self._report_gone(without_init)

    def _close_namespace(self, place: int) -> None:
        """Report a runner whose init, and so everything in its namespace, has ended."""
        self._poll.unregister(place)
        os.close(place)
        self._report_gone([self._ending.pop(place)])

    def _report_gone(self, gone: list[tuple[int, int]]) -> None:
        known = [each for each in gone if each[0] >= 0]
        for start in range(0, len(known), PER_PACKET):
            self._send({"gone": known[start : start + PER_PACKET]})

    def _send(self, message: dict[str, Any], *descriptors: int) -> None:
        with contextlib.suppress(OSError):  # the supervisor has ended; the loop will see it
            socket.send_fds(self._connection, [json.dumps(message).encode()], list(descriptors))


def main() -> None:
    """Run the zygote on an inherited descriptor of its connection."""
    descriptor, plan, supervisor = int(sys.argv[1]), Plan.from_text(sys.argv[2]), int(sys.argv[3])
    for number in signal.valid_signals() - IGNORED_BY_PYTHON:  # undo what nohup or a background shell set
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

"""A session's first process: it is shut in, sleeps, forks runners when it is told to, and reaps what they leave behind.

It never runs code of a session, so that a runner forked from it is a fresh interpreter. The runners of branches are its
children too. When the control socket ends it does, and everything below it with it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import select
import signal
import socket
import struct
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from aster.sandbox.copies import ALL_SIGNALS, EMPTY, OUTPUT, REGISTRY
from aster.sandbox.isolation import Level, Plan, confine_session, die_with_parent
from aster.sandbox.isolation.guard import close_all_but, remove_tree
from aster.sandbox.isolation.syscalls import PR_SET_CHILD_SUBREAPER, prctl
from aster.sandbox.protocol import DROP, MAX_REQUEST, WAKE, ForkRequest, pack, receive, take_frame
from aster.sandbox.worker import Worker, line_folder

CONTROL, RUNNERS, DEATHS, DEATH, CHILDREN = 504, 505, 506, 507, 508
"""The keeper's own descriptors, next to those it shares with runners: the control socket, the other side of ``REGISTRY``, a
pipe that gets a byte with every SIGCHLD, and the list of its children."""
STRAY_SECONDS = 2.0
"""How long a keeper fights processes that a runner left behind, before it leaves that to the zygote."""
AT_ONCE = 100
"""Messages of copies that are read in a row: a cell can send nonsense there without end."""
NONSENSE = (ValueError, TypeError, LookupError, ArithmeticError, RecursionError, OSError)
"""What comes of taking such a message for a copy's."""


@dataclass(frozen=True, slots=True)
class Savepoint:
    """A sleeping copy of a runner."""

    pid: int
    step: int
    """How far the session had come."""
    bell: socket.socket
    """Wakes it."""

    def drop(self) -> None:
        """Let go of it."""
        with contextlib.suppress(OSError):  # it is dead
            self.bell.send(DROP, socket.MSG_DONTWAIT)
        self.bell.close()


@dataclass(slots=True)
class Line:
    """One session: its runner, and the savepoints behind it.

    There are two from the making of one to the runner's next request, which tells that the supervisor took the reply before:
    where it does not, because it was forged or nobody waits for it, the older one is what recovery needs.
    """

    runner: int | None = None
    savepoints: list[Savepoint] = field(default_factory=list)
    """The latest is the last."""

    def drop(self, left: int) -> None:
        """Let go of all savepoints but the latest ``left``."""
        while len(self.savepoints) > left:
            self.savepoints.pop(0).drop()


class Keeper:
    """Serves the control socket."""

    def __init__(self, request: ForkRequest, plan: Plan, scratch: str, address_space: int) -> None:
        self._request = request
        self._alone = plan.level is Level.NAMESPACES
        """All processes in sight are its own, and a signal to all reaches no other."""
        self._scratch = scratch
        self._address_space = address_space
        self._lines: dict[int, Line] = {}
        self._over: set[int] = set()
        """Lines that were ended: a branch may come to life after that."""
        self._buffer = bytearray()
        self._passed: list[int] = []
        self._control = socket.socket(fileno=CONTROL)
        _move([end.detach() for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)], [RUNNERS, REGISTRY])
        _move(os.pipe2(os.O_NONBLOCK), [DEATHS, DEATH])
        self._runners = socket.socket(fileno=RUNNERS)
        # Nothing but the death of a child reaches this process.
        signal.signal(signal.SIGCHLD, lambda *_: None)  # the byte in the pipe is what is wanted
        signal.set_wakeup_fd(DEATH, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_SETMASK, ALL_SIGNALS - {signal.SIGCHLD})

    def serve(self) -> NoReturn:
        """Run until the supervisor closes the control socket. What is left then dies with this process's namespace, or is for
        the zygote to kill."""
        poll = select.poll()
        for descriptor in (CONTROL, RUNNERS, DEATHS):
            poll.register(descriptor, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if DEATHS in ready:
                os.read(DEATHS, 4096)
            self._meet_copies()  # before the dead are buried: a copy may be among them
            self._bury()
            if CONTROL in ready:
                if not self._receive():
                    os._exit(0)
                while (message := take_frame(self._buffer, MAX_REQUEST)) is not None:
                    self._obey(message)

    # ----- the supervisor's words

    def _receive(self) -> bool:
        """Take what has come. False at the end."""
        try:
            data, descriptors = receive(self._control, 1 << 16, 8)
        except ConnectionResetError:
            return False
        self._buffer += data
        self._passed += descriptors
        return bool(data)

    def _obey(self, message: dict[str, Any]) -> None:
        number = message.get("line", -1)
        line = self._lines.get(number)
        match message["op"]:
            case "launch":
                connection, output = self._passed[:2]
                del self._passed[:2]
                try:
                    self._launch(number, message["steps"], connection, output)
                finally:
                    os.close(connection)
                    os.close(output)
            case "interrupt":
                if line is not None and line.runner is not None:
                    os.kill(line.runner, signal.SIGINT)
                self._send({"interrupted": number})
            case "kill":
                if line is not None:
                    _kill_group(line.runner)
            case "end":
                self._end(number)
            case "who":
                self._send({"here": True})

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the supervisor is gone: the loop sees that next
            self._control.sendall(pack(message))

    def _launch(self, number: int, steps: int, connection: int, output: int) -> None:
        """A runner for a line: its latest savepoint that is not beyond so many steps, or a fork of this process."""
        line = self._lines.setdefault(number, Line())
        while line.savepoints:
            savepoint = line.savepoints.pop()
            if savepoint.step <= steps:
                try:
                    os.kill(savepoint.pid, signal.SIGCONT)
                    socket.send_fds(savepoint.bell, [WAKE], [connection, output])
                except OSError:  # it was killed
                    pass
                else:
                    line.runner = savepoint.pid
                    savepoint.bell.close()
                    line.drop(0)  # it makes one of its own
                    return
            savepoint.drop()
        keeper = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._send({"failed": number, "errno": error.errno or errno.EIO, "reason": str(error)})
            return
        if pid == 0:
            try:
                self._become_runner(keeper, number, connection, output)
            except BaseException:  # noqa: BLE001 - the child must never come back into the keeper's loop
                with contextlib.suppress(OSError):
                    os.write(OUTPUT, traceback.format_exc().encode())
            finally:
                os._exit(1)
        line.runner = pid

    def _become_runner(self, keeper: int, number: int, connection: int, output: int) -> NoReturn:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setpgid(0, 0)  # and stay in the keeper's session: all that runs for it shares the processor as one
        die_with_parent(keeper)
        for connected in (self._control, self._runners, *(savepoint.bell for savepoint in self._savepoints())):
            connected.close()
        for ours in (DEATHS, DEATH, CHILDREN):
            with contextlib.suppress(OSError):  # CHILDREN may be missing
                os.close(ours)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        Worker(self._request, self._scratch, number, keeper, self._address_space).serve(connection, output)

    # ----- the living and the dead

    def _meet_copies(self) -> None:
        """Take down who they are. The messages come from where cells run too: nonsense is dropped."""
        for _ in range(AT_ONCE):
            try:
                data, descriptors = receive(self._runners, 4096, 1, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            try:
                if not descriptors:
                    self._lines[json.loads(data)["accepted"]].drop(1)
                for descriptor in descriptors:
                    self._meet(json.loads(data), descriptor)
            except NONSENSE:
                continue
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)

    def _meet(self, message: dict[str, Any], descriptor: int) -> None:
        with _socket_of(descriptor) as bell:
            pid = struct.unpack("3i", bell.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            if pid in (0, os.getpid()):
                raise ValueError("a socket that the supervisor or this process made")
            if "saved" in message:
                line = self._lines[message["saved"]]
                if message["of"] != line.runner:
                    raise ValueError("a savepoint that comes after the end of its runner")
                savepoint = Savepoint(pid, int(message["step"]), bell.dup())
                savepoint.bell.setblocking(False)  # it may be full already
                line.savepoints.append(savepoint)
                line.drop(2)
            else:
                number = int(message["branched"])
                if number in self._over:
                    _kill_group(pid)
                elif number not in self._lines and len(self._lines) < self._request.limits.processes:
                    self._lines[number] = Line(pid)

    def _bury(self) -> None:
        """Reap the dead, and kill what runners leave behind."""
        while True:
            try:
                dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if dead is None:
                return
            pid = dead.si_pid
            for number, line in self._lines.items():
                if line.runner == pid:
                    line.runner = None
                    self._send({"ended": number, "status": self._bury_runner(pid)})
                    break
                for savepoint in [savepoint for savepoint in line.savepoints if savepoint.pid == pid]:
                    line.savepoints.remove(savepoint)
                    savepoint.drop()
            else:
                os.waitpid(pid, 0)

    def _bury_runner(self, pid: int) -> int:
        """Kill its group and all else that it leaves. Returns its status."""
        _kill_group(pid)  # its number is not given away before waitpid
        _, status = os.waitpid(pid, 0)
        if self._strays(pid):
            self._kill_strays(pid)
        return status

    def _kill_strays(self, runner: int) -> None:
        deadline = time.monotonic() + STRAY_SECONDS
        if self._alone:
            os.kill(-1, signal.SIGSTOP)  # a bomb that forks faster than it is killed; but a stopped one does not
        while strays := self._strays(runner):
            for stray in strays:
                os.kill(stray, signal.SIGKILL)
            for stray in strays:
                os.waitpid(stray, 0)
            if time.monotonic() > deadline:
                os._exit(1)
        if self._alone:
            with contextlib.suppress(ProcessLookupError):  # nobody else is left
                os.kill(-1, signal.SIGCONT)

    def _strays(self, runner: int) -> list[int]:
        """Children that are neither runner nor savepoint. Beside other lines, those that stayed in the runner's group."""
        ours = {line.runner for line in self._lines.values()} | {savepoint.pid for savepoint in self._savepoints()}
        strays = [pid for pid in _children() if pid not in ours]
        if len(self._lines) == 1:
            return strays
        return [pid for pid in strays if os.getpgid(pid) == runner]

    def _savepoints(self) -> list[Savepoint]:
        return [savepoint for line in self._lines.values() for savepoint in line.savepoints]

    def _end(self, number: int) -> None:
        line = self._lines.get(number)
        self._over.add(number)
        if line is not None:
            line.drop(0)
            if line.runner is not None:
                runner, line.runner = line.runner, None
                self._bury_runner(runner)
            del self._lines[number]
        remove_tree(line_folder(self._scratch, number))
        self._send({"closed": number})


def become_keeper(request: ForkRequest, plan: Plan, scratch: str, control: int) -> NoReturn:
    """Turn a fresh child of the zygote into a keeper, shut it in and serve. Closes every descriptor but the one given."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    os.dup2(control, 0)
    close_all_but(0, 2)
    _move([0, os.open(os.devnull, os.O_RDONLY), os.open(os.devnull, os.O_WRONLY)], [CONTROL, EMPTY, OUTPUT])
    os.dup2(EMPTY, 0)
    os.dup2(OUTPUT, 1)
    # Both need /proc, which a session has not.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")  # where memory runs out, a session goes before the trainer; some containers forbid it
    address_space = _address_space()
    children = confine_session(plan, scratch, request.limits)
    if children >= 0:
        _move([children], [CHILDREN])
    os.dup2(OUTPUT, 2)  # until here it was the zygote's log
    Keeper(request, plan, scratch, address_space).serve()


def _address_space() -> int:
    """Bytes of address space this process has now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _children() -> list[int]:
    """The child processes of this process, zombies too. Where the kernel does not tell, the end of this process: the zygote
    then sees to them."""
    text = b""
    try:
        while part := os.pread(CHILDREN, 1 << 16, len(text)):
            text += part
    except OSError:
        os._exit(1)
    return [int(pid) for pid in text.split()]


def _socket_of(descriptor: int) -> socket.socket:
    """A socket object of its own for a descriptor. OSError where that is no socket."""
    own = os.dup(descriptor)
    try:
        return socket.socket(fileno=own)
    except OSError:
        os.close(own)
        raise


def _move(descriptors: Iterable[int], places: list[int]) -> None:
    for descriptor, place in zip(descriptors, places, strict=True):
        os.dup2(descriptor, place, inheritable=False)
        os.close(descriptor)


def _kill_group(leader: int | None) -> None:
    """Kill a child and its process group, where it leads one already."""
    if leader is not None:
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(leader, signal.SIGKILL)

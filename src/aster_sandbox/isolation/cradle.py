"""The first processes of the sessions' process namespaces, and who makes them: the cradle.

The first process of a namespace inherits its orphans, must reap them, and gets no signal from inside that it has no handler
for. A session's own process must not be it: ``os.kill(os.getpid(), 9)`` would do nothing there, ``os.wait()`` would find
children of others, and zombies would fill the session's limit. So a process that only sleeps is the first: an *init*.

A fork would make each init cost a millisecond and half a MiB. Instead all inits share the memory of one small process, as
threads do: ``clone(2)`` with ``CLONE_VM``, on ``pause(3)`` of the C library. This works because an init never returns from that
call: every signal is blocked in it, and what is left is SIGKILL from outside. It also never uses its stack again, so
the next ones can have it. Its orphans are reaped by the kernel, because it ignores SIGCHLD.

The small process is the cradle, the first in the zygote's own process namespace. It is forked before the zygote imports
anything."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import select
import signal
import socket
import struct
from typing import NoReturn

from aster_sandbox.isolation.guard import close_all_but
from aster_sandbox.isolation.syscalls import CLONE_NEWPID, libc

CLONE_VM = 0x100
STACK_BYTES = 4 << 10
STACKS = 32
PID = struct.Struct("=i")
READY = 8


class Cradle:
    """The zygote's side. Some inits are asked for in advance, because on a busy machine the cradle has to wait for a
    processor."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        for _ in range(READY):
            connection.send(b".")

    def take_init(self) -> int:
        """The pid of a new init, in a namespace of its own below the caller's. OSError where there is none."""
        self._connection.send(b".")
        (pid,) = PID.unpack(self._connection.recv(PID.size))
        if pid < 0:
            raise OSError(-pid, f"clone: {os.strerror(-pid)}")
        return int(pid)


def start_cradle() -> Cradle:  # noqa: RET503 - _serve never returns
    """Fork. The parent becomes the cradle, and never returns; it ends, and all in its process namespace with it, when the child
    does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        theirs.close()
        return Cradle(ours)
    ours.close()
    _serve(theirs.detach(), os.pidfd_open(child))


def _serve(requests: int, zygote: int) -> NoReturn:
    try:
        close_all_but(2, requests, zygote)
        # What inits inherit: nothing is handled, and everything is blocked.
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            with contextlib.suppress(OSError):  # the C library keeps two for itself
                signal.signal(number, signal.SIG_IGN if number == signal.SIGCHLD else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        connection = socket.socket(fileno=requests)
        # Several inits may be on their way to their sleep at once; those before them never use their stacks again.
        stacks = ctypes.create_string_buffer(STACKS * STACK_BYTES)
        tops = itertools.cycle((ctypes.addressof(stacks) + (place + 1) * STACK_BYTES) & ~0xF for place in range(STACKS))
        pause = ctypes.cast(libc.pause, ctypes.c_void_p)
        poll = select.poll()
        poll.register(requests, select.POLLIN)
        poll.register(zygote, select.POLLIN)
        while all(descriptor == requests for descriptor, _ in poll.poll()):
            if not connection.recv(1):
                break
            pid = libc.clone(pause, ctypes.c_void_p(next(tops)), CLONE_VM | CLONE_NEWPID | signal.SIGCHLD, None)
            connection.send(PID.pack(pid if pid > 0 else -(ctypes.get_errno() or errno.EAGAIN)))
    finally:
        os._exit(0)

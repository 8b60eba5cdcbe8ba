"""The *cradle*: a small process that creates the *init*, the first process, of each session's process namespace.

The first process of a namespace inherits orphans and must reap them, and it ignores signals from inside that it has no handler
for. A session process in that place would break programs: ``os.kill(os.getpid(), 9)`` would do nothing, ``os.wait()`` would
return children of other processes, and zombies would use up the session's process limit. So each namespace gets an init that
only sleeps.

Forking an init would cost a millisecond and half a MiB each. Instead all inits share the cradle's memory, as threads do:
``clone(2)`` with ``CLONE_VM``, running ``pause(3)`` of the C library. An init never returns from that call, because every
signal is blocked in it; only SIGKILL from outside ends it. It does not use its stack again either, so later inits can reuse it.
The kernel reaps its orphans, because it ignores SIGCHLD.

The cradle is the first process of the zygote's own process namespace. It is forked before the zygote imports anything."""

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
    """The zygote's side of the cradle.

    It requests ``READY`` inits in advance, because on a busy machine the cradle has to wait for a processor."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        for _ in range(READY):
            connection.send(b".")

    def take_init(self) -> int:
        """The pid of an init in its own process namespace below the caller's. Raises OSError if clone(2) failed."""
        self._connection.send(b".")
        (pid,) = PID.unpack(self._connection.recv(PID.size))
        if pid < 0:
            raise OSError(-pid, f"clone: {os.strerror(-pid)}")
        return int(pid)


def start_cradle() -> Cradle:  # noqa: RET503 - _serve never returns
    """Fork. The parent becomes the cradle and never returns; the child returns. When the child ends, the cradle ends too, and
    with it everything in its process namespace."""
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
        # Inits inherit this: no handlers, and every signal blocked.
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            with contextlib.suppress(OSError):  # the C library reserves two
                signal.signal(number, signal.SIG_IGN if number == signal.SIGCHLD else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        connection = socket.socket(fileno=requests)
        # Several new inits may not have reached pause(3) yet, so they need different stacks; older ones no longer use theirs.
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

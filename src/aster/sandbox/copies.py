"""Copies of a running interpreter: when one is worth its fork, how it is forked, how it sleeps.

A copy is no child of its original, so that a cell that waits for its children does not meet it: a process between the two ends
at once, and the copy becomes the keeper's child.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from resource import RUSAGE_SELF, getrusage
from typing import Any

from aster.sandbox.isolation import die_with_parent
from aster.sandbox.protocol import WAKE, receive
from aster.sandbox.snapshot import Snapshot

# Descriptors above what careless cells close, and below the least limit that a recipe may set.
CONNECTION, OUTPUT, EMPTY, REGISTRY = 500, 501, 502, 503
OURS = frozenset((CONNECTION, OUTPUT, EMPTY, REGISTRY))
SAVE_SECONDS = 0.25
"""Work since the last savepoint that is worth another. Less is repeated about as fast as a copy is made."""
SHORT_SECONDS = 0.01
"""Whether a shorter cell slept does not matter."""
ALL_SIGNALS = signal.valid_signals()


class Work:
    """Measures what replay would have to repeat."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin to count."""
        self._wall = self._slept = 0.0
        self._processor = _processor_seconds()

    def begin(self) -> None:
        """A cell begins."""
        self._switches = getrusage(RUSAGE_SELF).ru_nvcsw
        self._began = time.monotonic()

    def end(self) -> None:
        """It has ended."""
        wall = time.monotonic() - self._began
        self._wall += wall
        # Who sleeps gives the processor away; who merely has to wait for one does not, and that is no work.
        if wall > SHORT_SECONDS and getrusage(RUSAGE_SELF).ru_nvcsw != self._switches:
            self._slept += wall

    def enough(self) -> bool:
        """Whether a savepoint is due: by processor time, children's included, or by the time of cells that slept."""
        if self._wall < SAVE_SECONDS:
            return False
        if max(self._slept, _processor_seconds() - self._processor) >= SAVE_SECONDS:
            return True
        self._wall = 0.0
        return False


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy knows of the moment it was made."""

    snapshot: Snapshot
    bell: socket.socket
    """Its own side of what made it known to the keeper."""
    mask: set[int]
    """The signals that were blocked in the original. In the copy all are."""

    def take_signals(self) -> None:
        """Forget the signals that came while all were blocked, and block those of the original."""
        while signal.sigtimedwait(ALL_SIGNALS, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)


def copy_process(keeper: int, prepare: Callable[[], Snapshot], message: dict[str, Any]) -> Copied | bool:
    """Fork a copy of this process, in a process group of its own, and make it known to the keeper by ``message``.

    In the original: whether that worked. In the copy: a ``Copied``. ``prepare`` runs in the process between the two. The
    original goes on when the keeper has the message, so that what it then does cannot cost it the copy.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)
    try:
        between = os.fork()
    except OSError:  # memory or processes are short: replay will have more to do
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return False
    if between:
        _, status = os.waitpid(between, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return status == 0
    try:
        snapshot = prepare()
        parent = os.getpid()
        told, tell = os.pipe()
        if os.fork():
            os.close(tell)
            os._exit(0 if os.read(told, 1) else 1)
        os.close(told)
        os.setpgid(0, 0)
        bell = _register(message)
        os.write(tell, b".")
        os.close(tell)
        while os.getppid() == parent:
            time.sleep(0.0005)
        die_with_parent(keeper)
    except BaseException:  # noqa: BLE001 - nothing of this may come back into the cells' process
        os._exit(1)
    return Copied(snapshot, bell, {int(number) for number in mask})


def _register(message: dict[str, Any]) -> socket.socket:
    """Returns this side of a socket pair whose other side the keeper gets: the kernel tells it who made that pair."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, socket.socket(fileno=os.dup(REGISTRY)) as registry:
        socket.send_fds(registry, [json.dumps(message).encode()], [theirs.fileno()])
    return mine


def tell(message: dict[str, Any]) -> None:
    """Send the keeper a message without a descriptor. Where that cannot be, it only keeps a savepoint for longer."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(REGISTRY)) as registry:
        registry.send(json.dumps(message).encode(), socket.MSG_DONTWAIT)


def sleep(bell: socket.socket) -> tuple[int, int]:
    """In a copy: let go of the original's connection and output, and sleep until the keeper wakes this process. Returns a new
    connection and output. Ends the process where it is not needed any more."""
    for descriptor in (0, 1, 2, CONNECTION, OUTPUT):
        os.dup2(EMPTY, descriptor, inheritable=descriptor < 3)
    with bell:
        message, descriptors = receive(bell, 16, 2)
    if message != WAKE:
        os._exit(0)
    connection, output = descriptors
    return connection, output


def _processor_seconds() -> float:
    return sum(os.times()[:4])

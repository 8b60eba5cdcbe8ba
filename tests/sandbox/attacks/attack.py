"""The attacks, as data. Each is one cell; the test beside it says what must hold afterwards.

A cell that gets what it must not get prints ``BREACH``, or the secret itself. The word stands in no line of a cell: a traceback
that shows such a line, as of a cell that timed out, would look like a breach. A cell finds these names, set by its setup:

    SECRET_FILE, HOME_FILE   files of the host, in the temporary directory and in the home
    PORT, SOCKET_FILE        where the host listens: TCP and UDP on the loopback address, and a UNIX socket (also abstract)
    SUPERVISOR               the pid of the process that runs the sandbox
"""

from __future__ import annotations

from dataclasses import dataclass

from aster_sandbox.isolation import Level


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack."""

    name: str
    tries: str
    code: str
    covered_from: Level = Level.RLIMITS
    """The weakest level at which it fails. At a weaker one it may succeed: that is what is not covered there."""
    harms_the_user: str = ""
    """Why it is not run where it is not covered and sessions run as the user: what it would do to whoever runs the tests."""
    breaks_itself: bool = False
    """The cell succeeds, so it is not rolled back, and what it breaks in its own interpreter stays broken."""


HEADER = """
import contextlib, ctypes, errno, os, signal, socket, subprocess, sys, time, threading
libc = ctypes.CDLL(None, use_errno=True)
def others():
    try:
        pids = list(map(int, filter(str.isdigit, os.listdir('/proc')))) or range(1, 4000)
    except OSError:
        pids = range(1, 4000)
    return [pid for pid in pids if pid != os.getpid()]
def breached(*what):
    print('BREACH', *what)
def leave():
    try:
        os.setsid()
    except PermissionError:
        os.setpgid(0, 0)
def attempt(action):
    try:
        result = action()
    except Exception as error:
        return type(error).__name__
    breached(result)
"""
"""Runs in the attacker's first cell."""

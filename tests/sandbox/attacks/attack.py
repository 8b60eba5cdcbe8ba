"""The attacks, as data. Each is one cell; ``test_attacks.py`` checks what must be true afterwards.

A cell that succeeds with something forbidden prints ``BREACH``, or the secret. That word must not occur in the code of a cell,
because a traceback that shows the line would look like a breach. The setup defines these names for the cells:

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
    """The weakest level that prevents it. At a weaker level it may succeed."""
    harms_the_user: str = ""
    """What it would do to the user who runs the tests. If set, it is skipped where it is not covered and sessions run as the
    user."""
    breaks_itself: bool = False
    """Whether the cell succeeds and leaves its own interpreter broken, because it is not rolled back."""


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
"""The code of the attacker's first cell."""

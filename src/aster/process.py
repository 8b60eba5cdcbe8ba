"""Runs a command and ends it, with all it has started, when the process that asked for it dies. Standard library alone:

    python guard.py PARENT SECONDS FOLDER COMMAND ...

It must lead a process group. When PARENT dies, the group is asked to end (SIGTERM), and killed SECONDS later; FOLDER, which may
be in memory, is deleted. A SIGTERM to the group is left to the command, whose exit code is the guard's.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys

PR_SET_PDEATHSIG = 1


class Orphaned(Exception):
    """PARENT has died."""


def orphaned(*_: object) -> None:
    """The signal's handler. It comes once for each thread of PARENT that dies: the others must not disturb what follows."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    raise Orphaned


def deliver() -> None:
    """Let the signal through."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})


def main() -> int:
    """Run the command; returns its exit code, as a shell does."""
    parent, seconds, folder, command = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4:]
    # A handler and not SIG_IGN, which the command would inherit.
    signal.signal(signal.SIGTERM, lambda *_: None)
    # It waits until there is a command to end.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGUSR1)
    if os.getppid() != parent:
        return 1
    process = subprocess.Popen(command, preexec_fn=deliver)
    try:
        signal.signal(signal.SIGUSR1, orphaned)
        deliver()
        code = process.wait()
        return code if code >= 0 else 128 - code
    except Orphaned:
        os.killpg(0, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        shutil.rmtree(folder, ignore_errors=True)
        os.killpg(0, signal.SIGKILL)
        raise


if __name__ == "__main__":
    sys.exit(main())

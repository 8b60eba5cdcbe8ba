"""Processes that end when this one does, however it ends.

    start        a command that is killed with this process
    start_group  a command that is asked to end first, together with all that it has started, and whose folder is deleted
    end_group    ends such a group while this process goes on

Both kinds of command are started through this file, run as a script. It imports the standard library only and is run by its
path with ``-I -S``, so it starts in 20 ms and finds none of the modules beside it:

    python -I -S process.py kill PARENT COMMAND ...
    python -I -S process.py end PARENT SECONDS FOLDER COMMAND ...

``kill`` asks the kernel for a SIGKILL when PARENT dies and becomes COMMAND. ``end`` stays as COMMAND's parent: when PARENT
dies, it sends its process group a SIGTERM, a SIGKILL SECONDS later, and deletes FOLDER.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that the kernel sends when the parent dies. A later exec keeps it."""
CANNOT_RUN = 127
"""The exit code of a command that cannot be run, as a shell has it."""


def start(command: Sequence[str], **settings: Any) -> subprocess.Popen[bytes]:
    """Start a command that is killed when this process ends; any thread may call this.

    ``settings`` are those of :class:`subprocess.Popen`. The command leads a process group of its own, because Ctrl-C in the
    terminal is for this process. A command that cannot be run ends with exit code 127 and says why on its stderr. OSError
    where no process can be started."""
    return _start(["kill", str(os.getpid()), *command], settings)


def start_group(command: Sequence[str], *, seconds: float, folder: Path, **settings: Any) -> subprocess.Popen[bytes]:
    """Start a command that is ended, with all that it has started, when this process ends; any thread may call this.

    The process returned leads the command's process group and ends with the command's exit code (128 + N for signal N). When
    this process dies, the group is sent a SIGTERM and, ``seconds`` later, a SIGKILL; then ``folder``, which may be in memory,
    is deleted. ``settings`` and errors as in :func:`start`."""
    return _start(["end", str(os.getpid()), str(seconds), str(folder), *command], settings)


def end_group(process: subprocess.Popen[bytes], seconds: float) -> None:
    """End a group that :func:`start_group` started: SIGTERM, then SIGKILL once its leader has ended or ``seconds`` are over.

    Blocks until the leader has ended. Its folder stays."""
    for number, longest in ((signal.SIGTERM, seconds), (signal.SIGKILL, None)):
        # The group outlives its leader where a child does, so it is killed in any case.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(longest)


class _Starter(threading.Thread):
    """The thread that starts every process. To the kernel the thread that forks is the parent, and its end is the parent's
    death; this one ends with the process only."""

    def __init__(self) -> None:
        super().__init__(name="process-starter", daemon=True)
        self.orders: queue.SimpleQueue[tuple[list[str], dict[str, Any], queue.SimpleQueue[Any]]] = queue.SimpleQueue()

    def run(self) -> None:
        while True:
            command, settings, answer = self.orders.get()
            try:
                answer.put(subprocess.Popen(command, **settings))
            except BaseException as error:  # noqa: BLE001 - raised where the order came from
                answer.put(error)


_lock = threading.Lock()
_starter: _Starter | None = None


def _forget_starter() -> None:
    """In a forked child, which has none of its parent's threads."""
    global _lock, _starter
    _lock, _starter = threading.Lock(), None


os.register_at_fork(after_in_child=_forget_starter)


def _start(arguments: list[str], settings: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Run this file as a script, from the starter's thread."""
    global _starter
    with _lock:
        if _starter is None:
            _starter = _Starter()
            _starter.start()
        orders = _starter.orders
    answer: queue.SimpleQueue[subprocess.Popen[bytes] | BaseException] = queue.SimpleQueue()
    orders.put(([sys.executable, "-I", "-S", __file__, *arguments], {"process_group": 0, **settings}, answer))
    found = answer.get()
    if isinstance(found, BaseException):
        raise found
    return found


# -- the script


class Orphaned(Exception):
    """PARENT has died."""


def orphaned(*_: object) -> None:
    """The signal's handler. It may come again as PARENT's other threads die; those must not disturb what follows."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    raise Orphaned


def deliver() -> None:
    """Let the signal through."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})


def watch(parent: int, number: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent dies; exit where it has died already."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        sys.exit(1)


def cannot_run(command: list[str], error: OSError) -> int:
    """Say so; returns the exit code."""
    print(f"{command[0]}: cannot be run: {error.strerror}", file=sys.stderr)
    return CANNOT_RUN


def run_and_kill(parent: int, command: list[str]) -> int:
    """Become the command. Returns only where it cannot be run."""
    watch(parent, signal.SIGKILL)
    # Python ignores these two, and a command would inherit that.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        return cannot_run(command, error)


def run_and_end(parent: int, seconds: float, folder: str, command: list[str]) -> int:
    """Run the command; returns its exit code, as a shell does. A SIGTERM to the group is left to the command."""
    # A handler and not SIG_IGN, which the command would inherit.
    signal.signal(signal.SIGTERM, lambda *_: None)
    # It waits until there is a command to end.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    watch(parent, signal.SIGUSR1)
    try:
        process = subprocess.Popen(command, preexec_fn=deliver)
    except OSError as error:
        return cannot_run(command, error)
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
    if sys.argv[1] == "kill":
        sys.exit(run_and_kill(int(sys.argv[2]), sys.argv[3:]))
    sys.exit(run_and_end(int(sys.argv[2]), float(sys.argv[3]), sys.argv[4], sys.argv[5:]))

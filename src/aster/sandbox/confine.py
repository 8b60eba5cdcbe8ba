"""Where a session is shut in: its place in the tree of processes, its directory, its limits. For zygote and keeper alone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import stat
import time
from collections.abc import Collection

OPEN_FILES = 512
FILE_BYTES = 256 << 20
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
SYS_CLOSE_RANGE = 436
"""The same number on every architecture. Python's ``closerange`` may not know the call, and then closes numbers one by one."""

libc = ctypes.CDLL(None, use_errno=True)


def enter_zygote() -> None:
    """In the zygote, before it imports anything large: orphans of dead sessions become its children."""
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)


def fork_session() -> int:
    """Like ``os.fork``: the child will be a keeper."""
    return os.fork()


def enter_keeper() -> None:
    """In the keeper: orphans of its session become its children."""
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)


def make_scratch(root: str, name: str) -> str:
    """A private directory for one keeper's sessions. Returns its path."""
    path = os.path.join(root, name)
    os.mkdir(path, 0o700)
    return path


def remove_scratch(root: str, name: str) -> None:
    """Remove that directory with all that is in it."""
    remove_tree(os.path.join(root, name))


def confine_session() -> None:
    """In the keeper, last thing before foreign code runs: limits that its children inherit."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")  # where memory runs out, a session goes before the trainer; some containers forbid it
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))


def die_with_parent(parent: int, signal_number: int) -> None:
    """Have the kernel send this process a signal when its parent, which is ``parent``, ends. Exits where it has ended."""
    libc.prctl(PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent:
        os._exit(1)


def close_from(first: int) -> None:
    """Close all descriptors from ``first`` on."""
    if libc.syscall(SYS_CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(-1), 0):  # before Linux 5.9
        os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def children() -> list[int]:
    """The child processes of this process, which has one thread; zombies too."""
    try:
        with open("/proc/thread-self/children") as file:
            return [int(child) for child in file.read().split()]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat") as file:
                if int(file.read().rpartition(")")[2].split()[1]) == os.getpid():
                    found.append(int(entry))
        return found


def kill_children(spared: Collection[int], seconds: float) -> bool:
    """Kill all children of this process but some, and what becomes its child by that. False where that takes too long."""
    deadline = time.monotonic() + seconds
    while doomed := set(children()).difference(spared):
        for pid in doomed:
            os.kill(pid, signal.SIGKILL)
        for pid in doomed:
            os.waitpid(pid, 0)
        if time.monotonic() > deadline:
            return False
    return True


def remove_tree(path: str) -> None:
    """Remove a directory, whatever modes a cell gave to what is in it. Fine where it is gone, or goes meanwhile."""
    try:
        os.rmdir(path)  # mostly it is empty
        return
    except FileNotFoundError:
        return
    except OSError:
        pass
    shutil.rmtree(path, ignore_errors=True)
    if os.path.lexists(path):
        for folder, _, _ in os.walk(path):
            with contextlib.suppress(OSError):
                os.chmod(folder, stat.S_IRWXU)
        shutil.rmtree(path, ignore_errors=True)

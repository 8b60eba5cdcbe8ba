"""The guard: a small process between the supervisor and the zygote that sees to it that nothing outlives either.

It sleeps until one of them ends. When the supervisor does, it kills the zygote; in either case it then kills what is left below
itself, being the subreaper of all that, and it removes the sandbox's files where nobody else is left to do so.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import stat
import time
from typing import NoReturn

from aster.sandbox.isolation.syscalls import PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, prctl

BURY_SECONDS = 10.0
"""How long the guard fights processes that go on forking."""


def stand_guard(supervisor: int, root: str) -> int:
    """Fork. The parent becomes the guard and never returns; the child returns and dies with it.

    Returns the guard's pidfd. ``supervisor`` is the caller's parent; a caller whose parent it is not any more ends.
    """
    try:
        supervisor_pidfd = os.pidfd_open(supervisor)
    except ProcessLookupError:
        os._exit(1)
    if os.getppid() != supervisor:  # it died, and its number is another's
        os._exit(1)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    own = os.pidfd_open(os.getpid())
    child = os.fork()
    if child != 0:
        _watch(child, supervisor_pidfd, root)
    os.close(supervisor_pidfd)
    die_with(own)
    return own


def die_with(parent_pidfd: int) -> None:
    """Have the kernel kill this process when its parent ends. To be repeated after a change of user or capabilities."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if has_ended(parent_pidfd):  # before the line above
        os._exit(1)


def has_ended(pidfd: int) -> bool:
    """Whether a process has ended."""
    return bool(select.select([pidfd], [], [], 0)[0])


def mirror(child: int) -> NoReturn:
    """Wait for a child and end as it ended."""
    close_all_but(1, 2)
    _, status = os.waitpid(child, 0)
    os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))


def close_all_but(*kept: int) -> None:
    """Close every descriptor but these."""
    start = 0
    for descriptor in sorted(kept):
        os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))


def children(pid: int) -> list[int]:
    """The child processes of a process with one thread, zombies too."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(child) for child in file.read().split()]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat") as file:
                if int(file.read().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(entry))
        return found


def remove_tree(path: str) -> None:
    """Remove a directory that cells wrote, whatever permissions they left on what is in it. Nothing may run in it any more."""
    for place, directories, _ in os.walk(path):
        for name in directories:
            directory = os.path.join(place, name)
            # A directory without its permissions could not be listed, and the walk comes to it next.
            with contextlib.suppress(OSError):
                if stat.S_ISDIR(os.lstat(directory).st_mode):
                    os.chmod(directory, 0o700)
    shutil.rmtree(path, ignore_errors=True)


def _watch(child: int, supervisor_pidfd: int, root: str) -> NoReturn:
    child_pidfd = os.pidfd_open(child)
    close_all_but(1, 2, supervisor_pidfd, child_pidfd)
    select.select([supervisor_pidfd, child_pidfd], [], [])
    orphaned = has_ended(supervisor_pidfd)
    if orphaned:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(child_pidfd, signal.SIGKILL)
    os.waitpid(child, 0)
    deadline = time.monotonic() + BURY_SECONDS
    while (left := children(os.getpid())) and time.monotonic() < deadline:
        for pid in left:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    if orphaned or has_ended(supervisor_pidfd):
        remove_tree(root)
    os._exit(0)

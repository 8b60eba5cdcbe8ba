"""The guard: a small process between the supervisor and the zygote that sees to it that nothing outlives either.

It sleeps until one of them ends. When the supervisor does, it kills the zygote; in either case it then kills what is left below
itself, being the subreaper of all that, and it removes the sandbox's files where nobody else is left to do so.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import select
import signal
import time
from collections.abc import Callable, Collection
from typing import NoReturn

from aster_sandbox.cgroups import remove_groups
from aster_sandbox.isolation.syscalls import PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, prctl

KILL_SECONDS = 10.0
"""How long the guard fights processes that go on forking."""
STRAY_SECONDS = 2.0
"""How long the zygote fights what a runner left behind, before it goes back to serving."""


def start_guard(supervisor: int, root: str, groups: str) -> int:
    """Fork. The parent becomes the guard and never returns; the child returns and dies with it.

    Returns the guard's pidfd. ``supervisor`` is the caller's parent; a caller whose parent it is not any more ends. ``root``
    and ``groups`` are what is removed when the supervisor has ended: the sandbox's files and its control groups."""
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
        _watch(child, supervisor_pidfd, root, groups)
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
        if start < descriptor:  # CPython's closerange(0, 0) closes all there are
            os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))


def kill_all_below(seconds: float = KILL_SECONDS) -> None:
    """Kill and reap all descendants of this process, which must be their subreaper."""
    _kill(lambda: _below(lambda _pid, _session: True), seconds)


def kill_strays(live: Collection[int], seconds: float = STRAY_SECONDS) -> None:
    """Kill and reap those descendants of this process, their subreaper, that are in no process session of a child in ``live``.

    A runner leads a session, and what it starts cannot leave that: so these are what dead runners left behind.
    """
    own = os.getpid()
    with contextlib.suppress(OSError), open(f"/proc/{own}/task/{own}/children") as file:
        # Mostly there is none, and then one read says so, unless the kernel lacks CONFIG_PROC_CHILDREN.
        if all(pid in live or _session_of(pid) in live for pid in map(int, file.read().split())):
            return
    # By its own number too: one that was forked a moment ago may not lead its session yet.
    _kill(lambda: _below(lambda pid, session: pid not in live and session not in live), seconds)


def _kill(find: Callable[[], dict[int, int]], seconds: float) -> None:
    """Kill what is found, and reap this process's own children among it, until nothing is found.

    They are stopped first, until none is left running, and killed then: the processes of a bomb that forks faster than it is
    killed still count against its limit while they are stopped.
    """
    deadline = time.monotonic() + seconds
    while (left := find()) and time.monotonic() < deadline:
        stopped: set[int] = set()
        while (running := left.keys() - stopped) and time.monotonic() < deadline:
            for pid in running:
                _signal(pid, signal.SIGSTOP)
            stopped |= running
            left = find()
        for pid in left:
            _signal(pid, signal.SIGKILL)
        for pid, parent in left.items():
            if parent == os.getpid():
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)


def _session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:  # it was reaped
        return 0


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # its parent may have reaped it meanwhile
        os.kill(pid, number)


def _below(wanted: Callable[[int, int], bool]) -> dict[int, int]:
    """Every descendant of this process, zombies too, that is wanted by its number and its process session, with its parent."""
    children: dict[int, list[int]] = {}
    sessions: dict[int, int] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{entry}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(entry))
            sessions[int(entry)] = int(fields[3])
    found: dict[int, int] = {}
    todo = [os.getpid()]
    while todo:
        parent = todo.pop()
        for child in children.get(parent, ()):
            todo.append(child)
            if wanted(child, sessions[child]):
                found[child] = parent
    return found


def remove_tree(path: str) -> None:
    """Remove a directory that cells wrote, whatever rights they left and however deep it is; what cannot be removed stays.

    Nothing may run in it any more. Directories are moved up and emptied there, so that no path grows long and nothing recurses.
    """
    count = itertools.count()
    prefix = f".{secrets.token_hex(8)}-"
    _make_writable(path)
    removed = True
    while removed:
        removed = False
        for entry in _entries(path):
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    _make_writable(entry.path)
                    for inner in _entries(entry.path):
                        if inner.is_dir(follow_symlinks=False):
                            _make_writable(inner.path)  # to move a directory is to write to it
                            os.rename(inner.path, os.path.join(path, f"{prefix}{next(count)}"))
                        else:
                            os.unlink(inner.path)
                    os.rmdir(entry.path)
                else:
                    os.unlink(entry.path)
                removed = True
    with contextlib.suppress(OSError):
        os.rmdir(path)


def _make_writable(directory: str) -> None:
    with contextlib.suppress(OSError):
        os.chmod(directory, 0o700)


def _entries(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError:
        return []


def _watch(child: int, supervisor_pidfd: int, root: str, groups: str) -> NoReturn:
    child_pidfd = os.pidfd_open(child)
    close_all_but(1, 2, supervisor_pidfd, child_pidfd)
    select.select([supervisor_pidfd, child_pidfd], [], [])
    orphaned = has_ended(supervisor_pidfd)
    if orphaned:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(child_pidfd, signal.SIGKILL)
    os.waitpid(child, 0)
    kill_all_below()
    if orphaned or has_ended(supervisor_pidfd):
        remove_tree(root)
        remove_groups(groups)
    os._exit(0)

"""The guard: a small process between the supervisor and the zygote that cleans up when either of them ends.

If the supervisor ends, the guard kills the zygote. In either case it then kills all its remaining descendants (it is their
subreaper). If the supervisor has ended, it also removes the sandbox's files and control groups.
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
"""How long the guard tries to kill descendants that keep forking."""
STRAY_SECONDS = 2.0
"""How long the zygote tries to kill what an ended runner left behind, before it serves again."""


def start_guard(supervisor: int, root: str, groups: str) -> int:
    """Fork. The parent becomes the guard and never returns; the child returns the guard's pidfd and dies with the guard.

    ``supervisor``: the pid of the caller's parent; the process exits if that has already ended. ``root`` and ``groups``: the
    folders of the sandbox's files and of its control groups, which the guard removes after the supervisor has ended."""
    try:
        supervisor_pidfd = os.pidfd_open(supervisor)
    except ProcessLookupError:
        os._exit(1)
    if os.getppid() != supervisor:  # it has ended, and its pid belongs to another process now
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
    """Have the kernel kill this process when its parent ends. Call it again after a change of user or capabilities, which
    clears the setting."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if has_ended(parent_pidfd):  # it ended before prctl
        os._exit(1)


def has_ended(pidfd: int) -> bool:
    """Whether the process of a pidfd has ended."""
    return bool(select.select([pidfd], [], [], 0)[0])


def mirror(child: int) -> NoReturn:
    """Wait for a child and exit with its status; 128 plus the signal's number if a signal killed it."""
    close_all_but(1, 2)
    _, status = os.waitpid(child, 0)
    os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))


def close_all_but(*kept: int) -> None:
    """Close every descriptor but these."""
    start = 0
    for descriptor in sorted(kept):
        if start < descriptor:  # CPython's closerange(0, 0) closes every descriptor
            os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))


def kill_all_below(seconds: float = KILL_SECONDS) -> None:
    """Kill and reap all descendants of this process, which must be their subreaper."""
    _kill(lambda: _below(lambda _pid, _session: True), seconds)


def kill_strays(live: Collection[int], seconds: float = STRAY_SECONDS) -> None:
    """Kill and reap the descendants that belong to no runner in ``live`` (pids). This process must be their subreaper.

    A runner leads a process session, which the processes it starts cannot leave. So a descendant outside the sessions of live
    runners was left behind by a runner that has ended.
    """
    own = os.getpid()
    with contextlib.suppress(OSError), open(f"/proc/{own}/task/{own}/children") as file:
        # Usually there is none, and this one read shows it. (The file needs CONFIG_PROC_CHILDREN.)
        if all(pid in live or _session_of(pid) in live for pid in map(int, file.read().split())):
            return
    # Compare the pid too: a runner that was forked a moment ago may not lead its session yet.
    _kill(lambda: _below(lambda pid, session: pid not in live and session not in live), seconds)


def _kill(find: Callable[[], dict[int, int]], seconds: float) -> None:
    """Kill the processes that ``find`` returns (pid -> parent), and reap the own children among them, until it returns none.

    All are stopped first and killed when none runs any more: stopped processes still count against a fork bomb's limit, so the
    bomb cannot replace them.
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
    """Descendants of this process, zombies included, as pid -> parent, for which ``wanted(pid, process session)`` is true."""
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
    """Remove a directory that cells wrote, whatever its modes and depth. Ignores what cannot be removed.

    No process may use it any more. Inner directories are moved up before they are emptied, so paths stay short and the function
    needs no recursion.
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
                            _make_writable(inner.path)  # moving a directory writes to it (its "..")
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

"""What a fork does not copy: the working directory, and where open files stand. Taken before a fork, put back after it.

A fork shares its parent's open files, offsets included, and has none of its threads and child processes. A process with such
things cannot be saved by forking it; :func:`obstacle` says which ones there are. All this goes without /proc, which sessions do
not see.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import resource
import select
import shutil
import stat
import sys
import threading
import time
from dataclasses import dataclass

from aster.sandbox.isolation.guard import remove_tree
from aster.sandbox.isolation.syscalls import has_one_thread

COPY_BYTES = 8 << 20
COPY_ENTRIES = 1000
"""A working directory with more bytes or more entries than that is not copied into a savepoint."""
BRANCH_COPY_SECONDS = 15.0
"""A working directory that takes longer is not copied for a branch. The supervisor's patience with a fork is longer: beyond
that it would kill the runner that is to be copied."""


class TooLarge(Exception):
    """A working directory takes too long to be copied."""


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file or directory that cells hold open, by its path in the working directory."""

    descriptor: int
    path: str
    flags: int
    offset: int
    inheritable: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the working directory."""

    path: str
    """Relative to the directory."""
    mode: int
    modified: int
    """Nanoseconds."""
    content: bytes
    """A file's bytes, a link's target."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A working directory and the open files, at one moment."""

    folder: str
    current: str
    """The process's current directory, which a cell may have changed."""
    open_files: list[OpenFile]
    entries: list[Entry] | None
    """None where the directory is too large to be copied."""

    def restore(self, folder: str) -> None:
        """Make ``folder`` what the snapshot's was, where that was copied, and open files stand where they stood."""
        if self.entries is not None:
            _restore_folder(folder, self.entries)
        os.makedirs(folder, 0o700, exist_ok=True)
        self.reopen(folder)

    def reopen(self, folder: str) -> None:
        """Give this process open files of its own, with what was below the snapshot's folder now below ``folder``."""
        current = _moved(self.current, self.folder, folder)
        os.chdir(current if os.path.isdir(current) else folder)
        for file in self.open_files:
            with contextlib.suppress(OSError):  # the path is gone: the shared file is the best there is
                descriptor = os.open(_moved(file.path, self.folder, folder), file.flags)
                os.lseek(descriptor, file.offset, os.SEEK_SET)
                os.dup2(descriptor, file.descriptor, inheritable=file.inheritable)
                os.close(descriptor)


def take(folder: str, copy: bool, ours: frozenset[int]) -> Snapshot:
    """A snapshot of this process; the directory's content is copied into memory with ``copy``, if it is small. Descriptors in
    ``ours`` are not the cells'. OSError where a file is open that is not in the working directory."""
    return Snapshot(folder, _current(folder), _open_files(folder, ours), _copy(folder) if copy else None)


def obstacle(ours: frozenset[int]) -> str:
    """Why a fork of this process would not be a copy of it, or an empty string."""
    if threading.active_count() > 1 or not has_one_thread():
        return "it has several threads"
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return "it has child processes"
    for descriptor in _descriptors(ours):
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            return "it holds pipes or sockets"
        if stat.S_IFMT(mode) == 0:
            return "it holds a kernel object"  # epoll, eventfd, timerfd, pidfd ...
    if _shared_memory():
        return "it has shared memory"
    return ""


def copy_folder(source: str, target: str) -> None:
    """Copy a working directory for a branch. TooLarge where that takes too long; nothing is left of the copy then."""
    deadline = time.monotonic() + BRANCH_COPY_SECONDS

    def copy(old: str, new: str) -> None:
        if time.monotonic() > deadline:
            raise TooLarge
        shutil.copy2(old, new)

    remove_tree(target)
    try:
        shutil.copytree(source, target, symlinks=True, ignore=_special, copy_function=copy)
    except TooLarge:
        remove_tree(target)
        raise


def _restore_folder(folder: str, entries: list[Entry]) -> None:
    os.chdir("/")
    remove_tree(folder)
    os.makedirs(folder, 0o700, exist_ok=True)
    for entry in entries:
        path = os.path.join(folder, entry.path)
        if stat.S_ISDIR(entry.mode):
            os.mkdir(path, 0o700)
        elif stat.S_ISLNK(entry.mode):
            os.symlink(entry.content, path)
        else:
            with open(path, "wb") as file:
                file.write(entry.content)
    for entry in reversed(entries):  # what is inside a directory before the directory itself
        if not stat.S_ISLNK(entry.mode):
            path = os.path.join(folder, entry.path)
            with contextlib.suppress(PermissionError):  # forbidden to sessions that share the user's id
                os.chmod(path, stat.S_IMODE(entry.mode))
                os.utime(path, ns=(entry.modified, entry.modified))


def _special(folder: str, names: list[str]) -> list[str]:
    """The names of what cannot be copied: named pipes, sockets, devices."""
    kinds = {name: os.lstat(os.path.join(folder, name)).st_mode for name in names}
    return [name for name, mode in kinds.items() if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode))]


def _moved(path: str, old: str, new: str) -> str:
    return new + path[len(old) :] if path == old or path.startswith(old + os.sep) else path


def _current(folder: str) -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # a cell removed it
        return folder


def _descriptors(ours: frozenset[int]) -> list[int]:
    """Descriptors that cells opened."""
    poll = select.poll()
    candidates = [number for number in range(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0]) if number not in ours]
    for descriptor in candidates:
        poll.register(descriptor, 0)
    closed = {descriptor for descriptor, events in poll.poll(0) if events & select.POLLNVAL}
    return [descriptor for descriptor in candidates if descriptor not in closed]


def _open_files(folder: str, ours: frozenset[int]) -> list[OpenFile]:
    files = []
    paths: dict[tuple[int, int], str] = {}
    for descriptor in _descriptors(ours):
        status = os.fstat(descriptor)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            continue
        paths = paths or _paths(folder)
        try:
            path = paths[status.st_dev, status.st_ino]
        except KeyError:
            raise OSError(f"descriptor {descriptor} is of no file in the working directory") from None
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC)
        offset = os.lseek(descriptor, 0, os.SEEK_CUR)
        files.append(OpenFile(descriptor, path, flags, offset, os.get_inheritable(descriptor)))
    return files


def _paths(folder: str) -> dict[tuple[int, int], str]:
    """Where the files and directories of a working directory are, by what ``os.fstat`` knows of them."""
    found = {}
    for below, _, names in os.walk(folder):
        for path in (below, *(os.path.join(below, name) for name in names)):
            status = os.lstat(path)
            found[status.st_dev, status.st_ino] = path
    return found


def _shared_memory() -> bool:
    """Whether Python code has made a mapping, as ``multiprocessing.Value`` does: a fork would write into its parent's."""
    mapping = getattr(sys.modules.get("mmap"), "mmap", None)
    return mapping is not None and any(isinstance(candidate, mapping) for candidate in gc.get_objects())


def _copy(folder: str) -> list[Entry] | None:
    """All entries, a directory before what it holds; None where that is too much."""
    entries: list[Entry] = []
    left = COPY_BYTES
    todo = [""]
    while todo:
        below = todo.pop()
        with os.scandir(os.path.join(folder, below)) as found:
            for item in found:
                status = item.stat(follow_symlinks=False)
                path = os.path.join(below, item.name)
                content = b""
                if stat.S_ISDIR(status.st_mode):
                    todo.append(path)
                elif stat.S_ISLNK(status.st_mode):
                    content = os.fsencode(os.readlink(item.path))
                elif stat.S_ISREG(status.st_mode):
                    left -= status.st_size
                    if left < 0:
                        return None
                    with open(item.path, "rb") as file:
                        content = file.read()
                else:
                    continue  # a named pipe, a socket: not a file
                entries.append(Entry(path, status.st_mode, status.st_mtime_ns, content))
                if len(entries) > COPY_ENTRIES:
                    return None
    return entries

"""A control group for each session, if this process may create some. The kernel then counts all memory of a session, including
its tmpfs files, socket buffers and page tables.

The groups set no limits. They tell which session holds how much when memory runs short.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path

MOUNTS = Path("/proc/self/mounts")
OWN = Path("/proc/self/cgroup")
USED = ("memory.current", "memory.usage_in_bytes")
"""The file with a group's memory use in bytes: in version 2, in version 1."""
REMOVE_SECONDS = 1.0


class Groups:
    """The control groups of one sandbox, below one folder."""

    def __init__(self, folder: Path, file: str) -> None:
        self._folder = folder
        self._file = file

    @classmethod
    def find(cls) -> Groups | None:
        """Find a place where groups can be created, and try it with a process. None if there is none."""
        for base in _candidates():
            folder = base / f"aster-sandbox-{os.getpid()}-{time.monotonic_ns()}"
            with contextlib.suppress(OSError):
                folder.mkdir()
                groups = cls(folder, "")
                try:
                    if groups._works():
                        return groups
                except OSError:
                    pass
                groups.close()
        return None

    def add(self, number: int, pid: int) -> None:
        """Put a process, and so everything it will start, into group ``number``. Does nothing if the process has ended."""
        group = self._group(number)
        with contextlib.suppress(OSError):
            group.mkdir(exist_ok=True)
            (group / "cgroup.procs").write_text(str(pid))

    @property
    def folder(self) -> str:
        """The folder of the groups."""
        return str(self._folder)

    def held_mb(self, number: int) -> float:
        """The memory of a group in MiB, without the page cache of files on disk, which the kernel frees by itself."""
        group = self._group(number)
        try:
            used = int((group / self._file).read_text())
            cache = read_memory_stat(group, "inactive_file", "active_file")
        except (OSError, ValueError):  # the group was removed
            return 0.0
        return (used - cache) / 2**20

    def remove(self, number: int) -> None:
        """Remove a group whose processes have ended."""
        with contextlib.suppress(OSError):
            self._group(number).rmdir()

    def close(self) -> None:
        """Remove all groups and their folder."""
        remove_groups(self.folder)

    def _group(self, number: int) -> Path:
        return self._folder / f"session-{number}"

    def _works(self) -> bool:
        """Whether a process can be put into a group and its memory is counted there."""
        self._enable(self._folder)
        process = subprocess.Popen(["/bin/sh", "-c", "read line"], stdin=subprocess.PIPE)
        try:
            group = self._group(0)
            group.mkdir()
            (group / "cgroup.procs").write_text(str(process.pid))
            self._file = next((name for name in USED if (group / name).exists()), "")
        finally:
            process.communicate()
        self.remove(0)
        return bool(self._file)

    @staticmethod
    def _enable(folder: Path) -> None:
        """Version 2: make the groups below a folder count memory. Raises OSError if that is not allowed."""
        for place in (folder.parent, folder):
            control = place / "cgroup.subtree_control"
            if control.exists() and "memory" not in control.read_text().split():
                control.write_text("+memory")


def remove_groups(folder: str) -> None:
    """Remove a folder of groups whose processes have ended or are about to end."""
    deadline = time.monotonic() + REMOVE_SECONDS
    while os.path.isdir(folder) and time.monotonic() < deadline:
        with contextlib.suppress(OSError):  # one of them still has a process
            for group in [entry.path for entry in os.scandir(folder) if entry.is_dir()] + [folder]:
                os.rmdir(group)
        if os.path.isdir(folder):
            time.sleep(0.005)


def read_memory_stat(group: Path, *names: str) -> int:
    """The sum of these fields of a group's ``memory.stat``, in bytes. Raises OSError, or ValueError if a field is missing."""
    fields = (group / "memory.stat").read_text().split()
    return sum(int(fields[fields.index(name) + 1]) for name in names)


def _candidates() -> list[Path]:
    """Folders in which groups might be created: this process's own group, and in version 2 also the one above it, because a
    group cannot contain processes and also groups that count memory."""
    own = {}
    with contextlib.suppress(OSError):
        for line in OWN.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            own[controllers] = path.lstrip("/")
        for line in MOUNTS.read_text().splitlines():
            _, mounted, kind, options = line.split()[:4]
            if kind == "cgroup" and "memory" in options.split(",") and "memory" in own:
                return [Path(mounted) / own["memory"]]
        for line in MOUNTS.read_text().splitlines():
            _, mounted, kind = line.split()[:3]
            if kind == "cgroup2" and "" in own:
                place = Path(mounted) / own[""]
                return [place, place.parent] if own[""] and _is_delegated(place.parent) else [place]
    return []


def _is_delegated(group: Path) -> bool:
    """Whether systemd delegated a group to its user. Moving a process into any other group could free it of limits set for
    it."""
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return True
    return False

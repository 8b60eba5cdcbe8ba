"""A control group for each session, where the machine lets this process make some: the kernel then charges to a session all
that is held for it, also the files of its tmpfs, the buffers of its sockets and the page tables of its processes.

Nothing is limited by them: they tell who holds what when memory runs short.
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
"""What is charged, in bytes: version 2, version 1."""
REMOVE_SECONDS = 1.0


class Groups:
    """The groups of one sandbox, below a folder of its own."""

    def __init__(self, folder: Path, file: str) -> None:
        self._folder = folder
        self._file = file

    @classmethod
    def find(cls) -> Groups | None:
        """A place for groups, tried out with a process. None where there is none."""
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
        """Put a process, and all that it will start, into a group of its own. One that has ended meanwhile gets none."""
        group = self._group(number)
        with contextlib.suppress(OSError):
            group.mkdir(exist_ok=True)
            (group / "cgroup.procs").write_text(str(pid))

    @property
    def folder(self) -> str:
        """Where the groups are."""
        return str(self._folder)

    def held_mb(self, number: int) -> float:
        """MiB charged to a group, without the cache of files on disk, which the kernel takes back by itself."""
        group = self._group(number)
        try:
            used = int((group / self._file).read_text())
            statistics = (group / "memory.stat").read_text().split()
            cache = sum(int(statistics[statistics.index(name) + 1]) for name in ("inactive_file", "active_file"))
        except (OSError, ValueError):  # it is gone
            return 0.0
        return (used - cache) / 2**20

    def remove(self, number: int) -> None:
        """Remove the group of processes that have ended."""
        with contextlib.suppress(OSError):
            self._group(number).rmdir()

    def close(self) -> None:
        """Remove what is left."""
        remove_groups(self.folder)

    def _group(self, number: int) -> Path:
        return self._folder / f"session-{number}"

    def _works(self) -> bool:
        """Whether a process can be put into a group, and is charged there."""
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
        """Version 2: have the groups below a folder count memory. OSError where that may not be."""
        for place in (folder.parent, folder):
            control = place / "cgroup.subtree_control"
            if control.exists() and "memory" not in control.read_text().split():
                control.write_text("+memory")


def remove_groups(folder: str) -> None:
    """Remove a folder of groups, whose processes have ended or are about to."""
    deadline = time.monotonic() + REMOVE_SECONDS
    while os.path.isdir(folder) and time.monotonic() < deadline:
        with contextlib.suppress(OSError):  # a process is still in one
            for group in [entry.path for entry in os.scandir(folder) if entry.is_dir()] + [folder]:
                os.rmdir(group)
        if os.path.isdir(folder):
            time.sleep(0.005)


def _candidates() -> list[Path]:
    """Folders in which groups could be made: this process's own, and for version 2 the one above it, since no group has both
    processes and groups that count."""
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
    """Whether systemd gave a group to whoever runs in it. From any other, a process would leave limits that are set for it."""
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return True
    return False

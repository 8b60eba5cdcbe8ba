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

    def held_mb(self, number: int) -> float:
        """MiB charged to a group."""
        try:
            return int((self._group(number) / self._file).read_text()) / 2**20
        except (OSError, ValueError):  # it is gone
            return 0.0

    def remove(self, number: int) -> None:
        """Remove the group of processes that have ended."""
        with contextlib.suppress(OSError):
            self._group(number).rmdir()

    def close(self) -> None:
        """Remove what is left."""
        deadline = time.monotonic() + REMOVE_SECONDS
        while self._folder.exists():
            with contextlib.suppress(OSError):
                for group in [entry for entry in self._folder.iterdir() if entry.is_dir()]:
                    group.rmdir()
                self._folder.rmdir()
            if time.monotonic() > deadline:
                return
            time.sleep(0.005)

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
                return [place, place.parent] if own[""] else [place]
    return []

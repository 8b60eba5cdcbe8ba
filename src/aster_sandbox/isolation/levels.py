"""The words of isolation: levels, and the plan that the supervisor makes and the processes below it carry out."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How well sessions are shut in; the strongest first."""

    NAMESPACES = "namespaces"
    """A file system, processes and a network of their own, and all that the next level has."""
    LANDLOCK = "landlock"
    """Landlock and seccomp on the host's file system. Needs no user namespaces and no root."""
    RLIMITS = "rlimits"
    """Limits, and seccomp where the kernel has it. This does not isolate: files and processes of the user are in reach."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one session may use, besides time and memory."""

    processes: int
    """Processes and threads."""
    disk_mb: int
    """MiB in files, all together. Held at the level NAMESPACES alone."""
    file_mb: int
    """MiB in one file."""
    open_files: int
    """Descriptors of a process."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is the same for all sessions of a sandbox. JSON on its way to the zygote."""

    level: Level
    root: str
    """The sandbox's directory on the host."""
    readable: tuple[str, ...]
    """Files and directories that sessions may read, and run programs from."""
    landlock_abi: int
    """0: without Landlock."""
    seccomp: bool
    sessions: int
    """Sessions that may be alive at once."""
    limits: Limits
    """Of each session."""
    memory_mb: int = 1024
    """Address space a session may add, in MiB."""
    timeout_text: str = ""
    """Message of the exception that a soft interrupt raises in a cell."""
    echo: str = "python"
    """How values are shown."""
    groups: str = ""
    """A folder of control groups; empty where there are none."""
    fonts: str = ""
    """A folder with matplotlib's list of fonts, which sessions may read; empty where matplotlib is not installed."""
    preload: tuple[str, ...] = ()
    """Packages to load before the first session."""
    processors: tuple[int, ...] = ()
    """The numbers of those that all processes of the sandbox begin on; empty: all."""
    session_ids: bool = False
    """Each session has a user id of its own. The zygote finds out whether that can be: it needs root."""
    keep_reading: bool = False
    """Sessions with ids of their own keep the capability to read everything: their interpreter is below a closed directory."""
    tasks: int = 0
    """Processes and threads of the user before the first session, where its sessions are counted along with them."""

    def to_text(self) -> str:
        """For the zygote's command line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Plan:
        """The inverse of to_text."""
        values = json.loads(text)
        tuples = {name: tuple(values[name]) for name in ("readable", "processors", "preload")}
        return cls(**{**values, **tuples, "level": Level(values["level"]), "limits": Limits(**values["limits"])})

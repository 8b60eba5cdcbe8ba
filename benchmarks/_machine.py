"""What every benchmark says about the machine, and its line of JSON. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any


def facts(*packages: str) -> dict[str, Any]:
    """What the numbers depend on, with the versions of ``packages``."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    } | {package: metadata.version(package) for package in packages}


def print_json(result: dict[str, Any]) -> None:
    """The result as one line, which is the last that a benchmark prints."""
    print(json.dumps(result))


def processes_naming(text: str) -> int:
    """Other living processes whose command line holds a text. The zygote's names the sandbox's directory, and its forks have
    the same."""
    count = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            with contextlib.suppress(OSError):  # it ended meanwhile
                count += text.encode() in (entry / "cmdline").read_bytes()
    return count


def _cpu() -> str:
    """The processor's name where Linux tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            names = [line.partition(":")[2].strip() for line in stream if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()

"""Which host files sessions may read: system programs and libraries, Python, this package, installed packages, user mounts."""

from __future__ import annotations

import importlib.util
import os
import site
import sys
from collections.abc import Iterable
from pathlib import Path

from aster_sandbox.errors import SettingsError

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc/alternatives")
RESERVED = ("/proc", "/sys", "/dev")
"""Directories that may not be mounted, nor anything below them."""
PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])


def readable_paths(preload: Iterable[str] = (), mounts: Iterable[str] = ()) -> tuple[str, ...]:
    """The existing files and directories that sessions may read, as absolute paths, none below another.

    A directory of ``sys.path`` is included if it belongs to the Python installation, or if packages were installed into it
    (``pip install --target``). Others are not: the first entry is often the working directory, which may be the user's home. A
    preloaded package is included wherever it is.
    """
    wanted = [*SYSTEM, sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix, PACKAGE_ROOT]
    wanted += _links(sys.executable)
    if site.ENABLE_USER_SITE and site.getusersitepackages() in sys.path:
        wanted.append(site.getusersitepackages())
    wanted += filter(os.path.isabs, os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep))
    wanted += _package_folders()
    for package in preload:
        wanted += _locations(package)
    wanted += mounts
    candidates = {form for path in wanted for form in (os.path.normpath(path), os.path.realpath(path)) if os.path.exists(form)}
    return tuple(sorted(path for path in candidates if not any(_is_below(path, other) for other in candidates)))


def check_mounts(mounts: Iterable[str]) -> None:
    """Raise SettingsError for a path that cannot be mounted in sessions."""
    for path in mounts:
        if not os.path.isabs(path):
            raise SettingsError(f"sandbox.mounts: {path!r} is not absolute; write the absolute path, sessions see it there too")
        if not os.path.exists(path):
            raise SettingsError(f"sandbox.mounts: {path!r} does not exist; create it or remove it from the list")
        real = os.path.realpath(path)
        if real in ("/", "/tmp") or any(real == place or _is_below(real, place) for place in RESERVED):
            raise SettingsError(
                f"sandbox.mounts: {path!r} cannot be mounted: not all of / or /tmp, and nothing in /proc, /sys or /dev; "
                "name a more specific path"
            )


def _package_folders() -> list[str]:
    """Directories of ``sys.path`` into which packages were installed. Never the home, the working directory, or a directory
    that contains one of them."""
    private = [os.path.realpath(place) for place in (os.path.expanduser("~"), os.curdir)]
    found = []
    for entry in filter(os.path.isdir, filter(os.path.isabs, sys.path)):
        real = os.path.realpath(entry)
        open_to_all = not any(place == real or _is_below(place, real) for place in private)
        if open_to_all and os.access(entry, os.R_OK) and any(name.endswith(".dist-info") for name in os.listdir(entry)):
            found.append(entry)
    return found


def _is_below(path: str, other: str) -> bool:
    return path.startswith(other.rstrip("/") + "/")


def _links(path: str) -> list[str]:
    """A path and the targets of its chain of symbolic links."""
    found = [path]
    while os.path.islink(found[-1]) and len(found) < 40:
        found.append(os.path.join(os.path.dirname(found[-1]), os.readlink(found[-1])))
    return found


def _locations(package: str) -> list[str]:
    """The directories of an importable package, or the file of a module."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return list(spec.submodule_search_locations)
    return [spec.origin] if spec.has_location and spec.origin is not None else []

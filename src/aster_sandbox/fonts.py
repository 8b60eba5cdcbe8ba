"""matplotlib's list of the machine's fonts. To make it takes seconds, so it is made once and kept in the user's cache folder.

A running sandbox has a copy of its own, which its sessions may read: ``make_list``. Each of them has a folder for matplotlib
with a link to that: ``link_list``."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

FONTS = ("/usr/share/fonts", "/usr/local/share/fonts")
"""What sessions can see of the machine's."""
LISTS = "fontlist-*.json"
FOLDER = ".matplotlib"
"""A session's, beside its working directory."""
BUILD_SECONDS = 120.0


def is_wanted() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def make_list(folder: str, environment: Mapping[str, str]) -> None:
    """Put the list into a folder, whole or not at all: from the cache, or new. ``environment``: for the program that makes it.

    Where it cannot be made, each session makes its own, as matplotlib does anywhere."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache, prefix = Path(base, "aster-sandbox"), f"{_fingerprint()}-"
    found = _read_list(cache, prefix)
    if found is None:
        found = _new_list(environment)
        if found is None:
            return
        with contextlib.suppress(OSError):  # the user has no home that can be written
            cache.mkdir(parents=True, exist_ok=True)
            _write(cache / f"{prefix}{found[0]}", found[1])
    name, content = found
    _write(Path(folder, name), content)


def config_folder(scratch: str) -> str:
    """A session's folder for matplotlib: beside its working directory."""
    return os.path.join(os.path.dirname(scratch), FOLDER)


def link_list(folder: str, scratch: str) -> str:
    """Make a session's folder for matplotlib, with a link to the list in ``folder``. Returns its path."""
    place = config_folder(scratch)
    os.makedirs(place, 0o700, exist_ok=True)
    for name in os.listdir(folder):
        with contextlib.suppress(FileExistsError):
            os.symlink(os.path.join(folder, name), os.path.join(place, name))
    return place


def _fingerprint() -> str:
    """Changes with matplotlib and with the machine's fonts."""
    spec = importlib.util.find_spec("matplotlib")
    facts: list[object] = []
    if spec is not None and spec.origin is not None:
        module = os.path.join(os.path.dirname(spec.origin), "font_manager.py")
        facts += [module, os.stat(module).st_mtime_ns]
    for top in FONTS:
        facts += [(folder, sorted(files)) for folder, _, files in os.walk(top)]
    return hashlib.sha256(repr(facts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _read_list(folder: Path, prefix: str = "") -> tuple[str, bytes] | None:
    """A list's name, without the prefix, and its content; None where there is none, or only a broken one."""
    for path in folder.glob(prefix + LISTS):
        with contextlib.suppress(OSError, ValueError):  # somebody removed it, or it was cut short
            content = path.read_bytes()
            json.loads(content)
            return path.name.removeprefix(prefix), content
    return None


def _write(path: Path, content: bytes) -> None:
    """The whole file, or nothing: others may write and read it at the same time."""
    descriptor, unfinished = tempfile.mkstemp(dir=path.parent, prefix=".unfinished-")
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        os.chmod(unfinished, 0o644)
        os.replace(unfinished, path)
    except BaseException:
        os.unlink(unfinished)
        raise


def _new_list(environment: Mapping[str, str]) -> tuple[str, bytes] | None:
    """A list made by matplotlib, in a program of its own: this one need not load it."""
    with tempfile.TemporaryDirectory(prefix="aster-sandbox-fonts-", ignore_cleanup_errors=True) as work:
        # The user's own fonts are not looked at: no session sees them.
        places = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR"), work)
        command = [sys.executable, "-P", "-c", "import matplotlib.font_manager"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):  # then there is no list
            subprocess.run(
                command,
                env={**environment, **places},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=BUILD_SECONDS,
                cwd=work,
                check=False,
            )
        return _read_list(Path(work))

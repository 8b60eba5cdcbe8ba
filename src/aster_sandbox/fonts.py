"""matplotlib's list of the machine's fonts. Building it takes seconds, so it is built once and kept in the user's cache folder.

``make_list`` gives each running sandbox a copy, which its sessions may read. ``link_list`` makes each session's configuration
folder for matplotlib, with a link to that copy."""

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
"""The machine's font folders that sessions can see."""
LISTS = "fontlist-*.json"
FOLDER = ".matplotlib"
"""Name of a session's configuration folder for matplotlib, beside its working directory."""
BUILD_SECONDS = 120.0


def is_wanted() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def make_list(folder: str, environment: Mapping[str, str]) -> None:
    """Write the font list into ``folder``, from the cache or newly built. ``environment``: for the program that builds it.

    If it cannot be built, writes nothing; then each session builds its own, as matplotlib always does. Raises OSError if the
    folder cannot be written."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    cache, prefix = Path(base, "aster-sandbox"), f"{_fingerprint()}-"
    found = _read_list(cache, prefix)
    if found is None:
        found = _new_list(environment)
        if found is None:
            return
        with contextlib.suppress(OSError):  # the user has no writable home
            cache.mkdir(parents=True, exist_ok=True)
            _write(cache / f"{prefix}{found[0]}", found[1])
    name, content = found
    _write(Path(folder, name), content)


def config_folder(scratch: str) -> str:
    """The path of a session's configuration folder for matplotlib. ``scratch``: its working directory."""
    return os.path.join(os.path.dirname(scratch), FOLDER)


def link_list(folder: str, scratch: str) -> str:
    """Make a session's configuration folder for matplotlib, with a link to the list in ``folder``. Returns its path."""
    place = config_folder(scratch)
    os.makedirs(place, 0o700, exist_ok=True)
    for name in os.listdir(folder):
        with contextlib.suppress(FileExistsError):
            os.symlink(os.path.join(folder, name), os.path.join(place, name))
    return place


def _fingerprint() -> str:
    """A hash that changes when matplotlib or the machine's fonts change."""
    spec = importlib.util.find_spec("matplotlib")
    facts: list[object] = []
    if spec is not None and spec.origin is not None:
        module = os.path.join(os.path.dirname(spec.origin), "font_manager.py")
        facts += [module, os.stat(module).st_mtime_ns]
    for top in FONTS:
        facts += [(folder, sorted(files)) for folder, _, files in os.walk(top)]
    return hashlib.sha256(repr(facts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _read_list(folder: Path, prefix: str = "") -> tuple[str, bytes] | None:
    """A list's name without the prefix, and its content; None if there is no valid one."""
    for path in folder.glob(prefix + LISTS):
        with contextlib.suppress(OSError, ValueError):  # it was removed, or is truncated
            content = path.read_bytes()
            json.loads(content)
            return path.name.removeprefix(prefix), content
    return None


def _write(path: Path, content: bytes) -> None:
    """Write a file atomically, because other processes may read and write it at the same time."""
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
    """Let matplotlib build a list, in another process, so that this one need not import it. None if that fails."""
    with tempfile.TemporaryDirectory(prefix="aster-sandbox-fonts-", ignore_cleanup_errors=True) as work:
        # Leave out the user's own fonts, because sessions cannot see them.
        places = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR"), work)
        command = [sys.executable, "-P", "-c", "import matplotlib.font_manager"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):  # _read_list then finds none
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

"""Prints the interpreters of this machine that ASTER supports, one path for each version that pyproject.toml names.

The version that runs this is left out. Looked for on PATH, and among those of pyenv.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def main() -> None:
    """Print them, in one line."""
    minors = map(int, re.findall(r"Programming Language :: Python :: 3\.(\d+)", PROJECT.read_text()))
    print(*(path for minor in minors if minor != sys.version_info.minor and (path := find(minor))))


def find(minor: int) -> str | None:
    """An interpreter of version 3.``minor`` that starts; None where there is none."""
    name = f"python3.{minor}"
    folders = sorted((pyenv_root() / "versions").glob(f"3.{minor}.*/bin/{name}"))
    for candidate in [name, *map(str, reversed(folders))]:
        try:
            # pyenv's name on PATH stands for versions that are not switched on, too: only starting it tells.
            found = subprocess.run([candidate, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True)
        except OSError:
            continue
        if found.returncode == 0:
            return found.stdout.strip()
    return None


def pyenv_root() -> Path:
    """Where pyenv keeps its versions; a folder that is not there where there is no pyenv."""
    try:
        found = subprocess.run(["pyenv", "root"], capture_output=True, text=True)
    except OSError:
        return Path("/nonexistent")
    return Path(found.stdout.strip() or "/nonexistent")


if __name__ == "__main__":
    main()

"""How to install a package that an optional part of ASTER needs.

Packages and their versions stand in ``pyproject.toml`` only. An installed ASTER has them in its metadata, which is read here.
"""

from __future__ import annotations

import re
import shlex

DISTRIBUTION = "aster-tir"
PLAIN = ""
"""Stands for what ASTER needs without any extra."""


def install_command(*packages: str) -> str:
    """The command that installs packages in the versions that ASTER takes, for instance ``pip install 'peft>=0.17'``. A package
    that its metadata does not name is installed in any version."""
    known = {name: requirement for asked in _extras().values() for name, requirement in asked.items()}
    return shlex.join(["pip", "install", *(known.get(_normal(name), name) for name in packages)])


def packages_for(module: str | None) -> list[str]:
    """What to install where a module could not be imported: the package of its name, then those of the same extra that are
    missing too. Empty where ASTER asks for no package of that name."""
    missing, extras = _normal((module or "").partition(".")[0]), _extras()
    if missing in extras.get(PLAIN, ()):
        return [missing]
    # `dev` has the packages of other extras as well: the smallest is the one for this purpose.
    beside = min((asked for asked in extras.values() if missing in asked), key=len, default={})
    return sorted((name for name in beside if name == missing or not _is_installed(name)), key=lambda name: name != missing)


def _extras() -> dict[str, dict[str, str]]:
    """The requirements of each extra, by the packages' normal names. Empty where ASTER is run from its source and was never
    installed."""
    import importlib.metadata  # not for every `aster --help`

    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found: dict[str, dict[str, str]] = {}
    for line in lines:
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        extra = re.search(r"""extra == ['"]([^'"]+)""", marker)
        name = _normal(re.split(r"[^A-Za-z0-9._-]", requirement)[0])
        found.setdefault(extra[1] if extra else PLAIN, {})[name] = requirement
    return found


def _is_installed(package: str) -> bool:
    import importlib.metadata

    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()

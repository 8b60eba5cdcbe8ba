"""The interface of sandboxes and sessions, whether they run on this machine or behind a service."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

from aster_sandbox.errors import SettingsError
from aster_sandbox.types import CellResult

_VARIABLE_NAME = re.compile(r"[^=\0]+")
TOKEN_VARIABLE = "ASTER_SANDBOX_TOKEN"
"""The environment variable with the client's token. The token is no setting, because run folders keep the settings."""


class AnySession(Protocol):
    """A stateful Python interpreter."""

    async def run(self, code: str) -> CellResult:
        """Run one cell. Never raises for what the code does."""

    async def fork(self, seed: int | None = None) -> AnySession:
        """A second, independent session with the same state. With a ``seed``, its generators are seeded with that."""

    async def reseed(self, seed: int) -> None:
        """Seed the session's global random generators again."""

    async def upload(self, path: str, content: bytes) -> None:
        """Write a file in the session. ``path``: relative to its working directory, or absolute. Raises OSError if the session
        may not write it."""

    async def download(self, path: str) -> bytes:
        """The content of a file in the session. ``path``: as for ``upload``. Raises OSError if it is not a readable file."""

    async def close(self) -> None:
        """End the session."""


class AnySandbox(Protocol):
    """Opens sessions. An async context manager."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

    async def open(self, seed: int = 0, setup: str = "", environment: Mapping[str, str] | None = None) -> AnySession:
        """Open a new session. ``seed``: for its random generators. ``setup``: Python that runs before the first cell.
        ``environment``: environment variables, in addition to those of every session."""


def encode_path(path: str, errors: str = "surrogateescape") -> bytes:
    """A path in a session as bytes. Raises OSError if it is empty or contains a zero byte."""
    if not path or "\0" in path:
        raise OSError(f"{path!r} is no valid path")
    return path.encode("utf-8", errors)


def check_environment(environment: Mapping[str, str]) -> None:
    """Raise SettingsError if a name or value cannot be an environment variable."""
    for name, value in environment.items():
        if not isinstance(name, str) or not _VARIABLE_NAME.fullmatch(name):
            raise SettingsError(f"environment: {name!r} is no valid variable name: use text without '=' and zero bytes")
        if not isinstance(value, str) or "\0" in value:
            raise SettingsError(f"environment: the value of {name!r} must be text without zero bytes")
        try:
            os.fsencode(name + value)
        except UnicodeEncodeError:
            raise SettingsError(f"environment: {name!r} or its value contains characters that UTF-8 cannot encode") from None

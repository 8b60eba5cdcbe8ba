"""What a user of sessions needs of them, wherever they are: in this process's sandbox, or behind a service."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from aster_sandbox.errors import SettingsError
from aster_sandbox.types import CellResult

if TYPE_CHECKING:
    from aster_sandbox.settings import Settings

_VARIABLE_NAME = re.compile(r"[^=\0]+")
TOKEN_VARIABLE = "ASTER_SANDBOX_TOKEN"
"""The environment variable with the client's token. Not in the recipe: run folders keep that."""


class AnySession(Protocol):
    """A Python interpreter of its own."""

    async def run(self, code: str) -> CellResult:
        """Run one cell."""

    async def fork(self, seed: int | None = None) -> AnySession:
        """A second session with the same state, and with other random numbers where it is given a ``seed``. Neither notices
        what the other does from here on."""

    async def reseed(self, seed: int) -> None:
        """Other random numbers from here on."""

    async def upload(self, path: str, content: bytes) -> None:
        """Put a file into it. ``path`` is below its working directory, or absolute. OSError where it may not be written."""

    async def download(self, path: str) -> bytes:
        """A file of it. OSError where there is none that can be read."""

    async def close(self) -> None:
        """End it."""


class AnySandbox(Protocol):
    """Where sessions come from. Used as ``async with``."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

    async def open(self, seed: int = 0, setup: str = "", environment: Mapping[str, str] | None = None) -> AnySession:
        """A fresh session. ``environment``: variables for it, beside those that all have."""


def check_environment(environment: Mapping[str, str]) -> None:
    """SettingsError for what cannot be a session's environment."""
    for name, value in environment.items():
        if not isinstance(name, str) or not _VARIABLE_NAME.fullmatch(name):
            raise SettingsError(
                f"environment: {name!r} cannot name a variable: a name is text without = and without zero bytes"
            )
        if not isinstance(value, str) or "\0" in value:
            raise SettingsError(f"environment: the value of {name!r} must be text without zero bytes")
        try:
            os.fsencode(name + value)
        except UnicodeEncodeError:
            raise SettingsError(f"environment: {name!r} or its value holds characters that UTF-8 cannot write") from None


def make_sandbox(settings: Settings, *, beside_sampler: bool = False) -> AnySandbox:
    """The sandbox that settings ask for: services where they name addresses, else one in this process.

    ``beside_sampler``: this process samples a policy too, and cells leave it ``spare_processors``."""
    if settings.addresses:
        from aster_sandbox.client import SandboxClient  # with an HTTP library, which no zygote needs

        return SandboxClient(settings.addresses, os.environ.get(TOKEN_VARIABLE), settings)
    from aster_sandbox.supervisor import Sandbox

    return Sandbox(settings, beside_sampler=beside_sampler)
